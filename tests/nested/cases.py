"""All nested cases, in the order in which they run."""

from . import contract, linux

ALL = [*contract.CASES, *linux.CASES]
