"""The machines of a vms.toml as the scripts see them: which files they need and how much memory.

The hypervisor itself judges the file and says which line is wrong. Here only what has to be known before it runs is picked out,
line by line, so that a file with mistakes reaches it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from . import guests
from .errors import UserError

MODULE = "vms.toml"
FIELD = re.compile(r"\s*(kernel|initrd|memory)\s*=\s*[\"']?([^\"'#]*?)[\"']?\s*(?:#.*)?")
USUAL_MEMORY = 512 << 20
# What the hypervisor takes for a machine's tables beside its RAM, at most.
OVERHEAD = 8 << 20
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Machines:
    """`files` by the names that the hypervisor knows them by, the definitions among them; `memory` of all machines, in bytes."""

    files: dict
    memory: int


def read(place: Path) -> Machines:
    """What the machines of the file at `place` need.

    A file that a machine names lies beside vms.toml; the names `kernel` and `initrd` mean the default guest's where it does not.
    """
    text = place.read_bytes()
    files: dict = {MODULE: text}
    memory, machines, given = 0, 0, 0
    for line in text.decode(errors="replace").splitlines():
        machines += line.strip().replace(" ", "") == "[[vm]]"
        found = FIELD.fullmatch(line)
        if found and found.group(1) == "memory":
            given += 1
            memory += _bytes(found.group(2)) + OVERHEAD
        elif found and found.group(2):
            files[found.group(2)] = _file(place, found.group(2))
    return Machines(files, memory + max(machines - given, 0) * (USUAL_MEMORY + OVERHEAD))


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+)([kKmMgG]?)", size)
    return int(found.group(1)) * UNITS[found.group(2).lower()] if found else USUAL_MEMORY


def _file(place: Path, name: str) -> Path:
    beside = place.parent / name
    if beside.is_file():
        return beside
    if name == "kernel":
        return guests.kernel()
    if name == "initrd":
        return guests.shell_initramfs()
    raise UserError(f"{place} names {name}, and there is no such file beside it")
