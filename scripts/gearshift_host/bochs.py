"""The Bochs machine that Gearshift runs in on Intel's side: an i440fx PC whose CPU has VT-x, booted from an ISO.

COM1 is the focused guest's console, COM2 the hypervisor's log and control line; both are pseudo-terminals that the caller holds.
Bochs ends with status 1 whatever the reason: `ending` reads the reason from its log. Version 3.0 is meant (setup.bochs).
"""

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from . import setup
from .archive import Program

CPU_MODEL = "corei7_haswell_4770"
CPU_MODELS = ("corei5_arrandale_m520", "corei7_ivy_bridge_3770k", "corei7_haswell_4770", "corei7_skylake_x")
LOG_NAME = "bochs.log"
MEMORY_MOST = 2 << 30
MIB = 1 << 20
# Guest time is instructions over this rate: no more than what Bochs reaches, so that timeouts keep their meaning.
INSTRUCTIONS_PER_SECOND = 50_000_000


class MachineEnding(enum.Enum):
    """Why the machine stopped, by what its log says."""

    SHUTDOWN_PORT = "shutdown requested by the program"
    ACPI_POWER_OFF = "powered off through ACPI"
    TRIPLE_FAULT = "triple fault"
    REFUSED = "Bochs refused to go on"
    RUNNING = "still running"


@dataclass(frozen=True)
class Machine:
    """What to start. Memory in bytes (at most 2 GiB); `console` and `log` are the terminals' device paths."""

    iso: Path
    memory: int
    console: str
    log: str
    cpu_model: str = CPU_MODEL
    cpus: int = 1


def configuration(machine: Machine, machine_log: Path) -> str:
    """The bochsrc of a machine."""
    share = setup.bochs_tree() / "usr/share/bochs"
    megabytes = machine.memory // MIB
    return "\n".join([
        "config_interface: textconfig",
        "display_library: term",
        f"romimage: file={share / 'BIOS-bochs-latest'}",
        f"vgaromimage: file={share / 'VGABIOS-lgpl-latest'}",
        f"memory: guest={megabytes}, host={megabytes}",
        f"cpu: model={machine.cpu_model}, count={machine.cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1",
        "clock: sync=none, time0=946684800",
        "pci: enabled=1, chipset=i440fx",
        "plugin_ctrl: unmapped=true, biosdev=true, extfpuirq=true, serial=true",
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        f"ata0-master: type=cdrom, path={machine.iso}, status=inserted",
        "boot: cdrom",
        f"com1: enabled=1, mode=term, dev={machine.console}",
        f"com2: enabled=1, mode=term, dev={machine.log}",
        f"log: {machine_log}",
        "logprefix: %t%e%d",
        "panic: action=fatal",
        "error: action=report",
        "info: action=report",
        "debug: action=ignore",
        "",
    ])


def command(machine: Machine, folder: Path) -> tuple:
    """The program, its whole command line and the path of its own log; `folder` takes the configuration."""
    machine_log = folder / LOG_NAME
    file = folder / "bochsrc"
    file.write_text(configuration(machine, machine_log))
    program: Program = setup.bochs()
    return program, program.command("-q", "-f", str(file)), machine_log


def ending(machine_log: str) -> tuple:
    """Why the machine stopped, and the line that says so."""
    panic = re.search(r"PANIC[^\n]*", machine_log)
    if not panic:
        return MachineEnding.RUNNING, ""
    line = panic.group(0)
    lower = line.lower()
    if "shutdown" in lower:
        return MachineEnding.SHUTDOWN_PORT, line
    if "acpi" in lower or "soft power off" in lower:
        return MachineEnding.ACPI_POWER_OFF, line
    if "3rd" in lower or "triple" in lower:
        return MachineEnding.TRIPLE_FAULT, line
    return MachineEnding.REFUSED, line


def refused_entries(machine_log: str) -> list:
    """The refused VM entries that Bochs explains by name."""
    return re.findall(r"VMENTER FAIL[^\n]*|VMFAIL[^\n]*", machine_log)
