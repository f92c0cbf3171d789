"""scripts/bench: measures exits and the boot of the stock kernel in emulated instructions, beside what KVM and Xen take.

Under --icount the time-stamp counter counts instructions at every level, so the numbers do not depend on the load of this machine. The
bench guest (tests/guests) prints `BENCH <name> <least instructions of a round trip>`; the kernel's boot is measured from power-on
to its shell by the hypervisor's own count. The reference columns were measured once on QEMU 10.0.2 with the same CPU model.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from . import build, guests, paths, setup
from .commandline import OneLineParser, writable_place
from .errors import UserError
from .progress import say, step
from .session import Interrupted, Options, Outcome, Session

GUEST = "bench"
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Row:
    """An operation: its name in the guest's output, its title, and the reference columns (None: not measured, "-": no exit)."""

    name: str
    title: str
    bare: int | None
    kvm: int | None
    xen_pvh: int | str | None
    xen_hvm: int | str | None


NO_EXIT = "no exit"
ROWS = (
    Row("cpuid", "CPUID", 7, 2681, 2477, 2929),
    Row("vmmcall", "VMMCALL", None, 2825, 2544, 2996),
    Row("rdmsr_apic_base", "RDMSR 0x1B", 7, 2770, 2390, 2834),
    Row("wbinvd", "WBINVD", 6, 2562, 2336, 2780),
    Row("in_pic", "IN 0x21 (PIC)", 6, 1731, None, 1180),
    Row("out_80", "OUT 0x80", 7, 5291, NO_EXIT, NO_EXIT),
    Row("in_uart_lsr", "IN 0x3FD (UART status)", 7, 5364, None, 42671),
    Row("lapic_read", "LAPIC read (MMIO)", 6, 3666, 4586, 5558),
    Row("lapic_eoi", "LAPIC EOI write (MMIO)", 6, 3555, 5195, 6343),
    Row("ioapic_read", "IOAPIC read (MMIO)", 6, 3858, 5749, 5130),
    Row("hpet_read", "HPET read (MMIO)", 6, 7880, 5749, 5919),
    Row("self_ipi", "self-IPI + delivery + EOI", 13, 9090, 11212, 13383),
)
# Power-on to /init of the stock kernel; KVM and none: instructions, exits.
BOOT_BARE = {"quiet": (6_110_000_000, None)}
BOOT_KVM = {"quiet": (6_160_000_000, 9066), "verbose": (6_720_000_000, 58099)}
# A boot guest powers off at once: what it counts is the way there.
BOOT_SCRIPT = "true\n"


def run_guest(options: Options, what: str) -> Outcome:
    """Runs a guest to its end, or a UserError with the reason."""
    with step(what):
        outcome = Session(options, echo=False).run()
    if outcome.status:
        report = outcome.journal.report() or outcome.journal.panic()
        raise UserError(f"{what} failed: {outcome.reason}" + (f"\n{report}" if report else ""), outcome.status)
    if not outcome.statistics:
        raise UserError(f"{what}: the hypervisor left no statistics", 3)
    return outcome


def measured_exits(outcome: Outcome) -> dict:
    """The guest's `BENCH` lines: name to instructions."""
    found = {}
    for line in outcome.text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "BENCH" and words[2].isdigit():
            found[words[1]] = int(words[2])
    return found


def boots(hypervisor: Path, memory: int) -> dict:
    """Instructions, exits and their reasons of the stock kernel's way from power-on to /init, by loudness of its console."""
    initrd = guests.script_initramfs(BOOT_SCRIPT, paths.cache() / "bench" / "initrd")
    found = {}
    for loudness, append in (("quiet", "console=ttyS0 quiet"), ("verbose", "console=ttyS0")):
        options = Options(initrd=str(initrd), append=append, memory=memory, icount=True, timeout=TIMEOUT_SECONDS, prebuilt=hypervisor)
        statistics = run_guest(options, f"booting the stock kernel, {loudness} console").statistics
        exits = statistics.get("exits", {})
        found[loudness] = {"instructions": statistics.get("instructions"), "exits": sum(exits.values()), "exits_by_reason": exits}
    return found


def table(rows: list) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{str(cell):<{widths[i]}}" if i == 0 else f"{str(cell):>{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cell(value) -> str:
    """A number with separators, or a dash for what was not measured."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def exits_table(measured: dict) -> str:
    """What the bench guest measured, beside the reference columns."""
    rows = [("instructions per round trip", "Gearshift", "no hypervisor", "KVM + QEMU", "Xen PVH", "Xen HVM")]
    for row in ROWS:
        rows.append((row.title, *map(cell, (measured.get(row.name), row.bare, row.kvm, row.xen_pvh, row.xen_hvm))))
    known = {row.name for row in ROWS}
    rows += [(name, cell(value), "-", "-", "-", "-") for name, value in measured.items() if name not in known]
    return table(rows)


def boots_table(measured: dict) -> str:
    """The boots beside KVM's and the plain machine's."""
    rows = [("stock kernel, power-on to /init", "Gearshift", "exits", "KVM guest", "exits", "no hypervisor")]
    for loudness, found in measured.items():
        kvm, bare = BOOT_KVM.get(loudness, (None, None)), BOOT_BARE.get(loudness, (None, None))
        rows.append((f"{loudness} console", *map(cell, (found["instructions"], found["exits"], *kvm, bare[0]))))
    return table(rows)


def main(arguments: list) -> int:
    """Runs scripts/bench and returns its exit status."""
    p = OneLineParser(prog="scripts/bench", description="Measures Gearshift in emulated instructions, beside KVM and Xen.", allow_abbrev=False)
    p.add_argument("--json", metavar="FILE", help="write what was measured there")
    p.add_argument("--no-boot", action="store_true", help="leave out the boots of the stock kernel")
    p.add_argument("--memory", metavar="MIB", type=int, default=512, help="RAM of the booted guest (default: %(default)s)")
    p.add_argument("--cpu", choices=("amd", "intel"), default="amd", help="whose virtualization to measure (intel: not built yet)")
    try:
        given = p.parse_args(arguments)
        if given.cpu == "intel":
            raise UserError("--cpu intel is not built yet: this version runs on AMD-V only")
        if given.memory < 64 or given.memory % 2:
            raise UserError("--memory: an even number of MiB from 64 on")
        if given.json:
            writable_place("--json", given.json)
        hypervisor = build.hypervisor()
        setup.qemu()
        guest = build.tiny_guest(GUEST)
        outcome = run_guest(Options(kernel=str(guest), append="", icount=True, timeout=TIMEOUT_SECONDS, memory=64 << 20, prebuilt=hypervisor),
                            "measuring round trips")
        measured = measured_exits(outcome)
        if not measured:
            raise UserError("the bench guest printed no BENCH line", 3)
        print(exits_table(measured), flush=True)
        result = {"round_trips": measured}
        if not given.no_boot:
            result["boots"] = boots(hypervisor, given.memory << 20)
            print("\n" + boots_table(result["boots"]), flush=True)
        if given.json:
            Path(given.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return 0
    except UserError as error:
        say(f"error: {error}")
        return error.status
    except Interrupted as interrupted:
        return 128 + interrupted.args[0]
    except KeyboardInterrupt:
        return 130
    finally:
        sys.stdout.flush()
