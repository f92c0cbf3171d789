"""All nested cases, in the order in which they run."""

from . import contract, linux, roads

ALL = [*contract.CASES, *linux.CASES, *roads.CASES]
