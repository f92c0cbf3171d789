"""All nested cases, in the order in which they run."""

from . import contract, hostile, intel, linux, programs, reports, roads, several, stock

ALL = [*contract.CASES, *programs.CASES, *reports.CASES, *linux.CASES, *roads.CASES, *several.CASES, *hostile.CASES, *stock.CASES, *intel.CASES]
