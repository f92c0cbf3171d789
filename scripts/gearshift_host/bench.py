"""scripts/bench: measures exits and the boot of the stock kernel in emulated instructions, beside what KVM and Xen take.

On both test beds the time-stamp counter counts instructions at every level, so the numbers do not depend on the load of this machine. The
bench guest (tests/guests) prints `BENCH <mode>.<operation> <least instructions of a round trip>`; the kernel's boot is measured from
power-on to its shell by the hypervisor's own count. The reference columns were measured once on the same beds: QEMU 10.0.2, Bochs 3.0.
"""

import hashlib
import json
import subprocess
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


# What the guest measures in, and how the tables call it.
MODES = {"flat32": "32-bit flat", "paged64": "64-bit paged"}


@dataclass(frozen=True)
class Row:
    """An operation: its name in the guest's output, its title, and the references by bed and column (None: not measured)."""

    name: str
    title: str
    references: dict


def row(name: str, title: str, bare, kvm, xen_pvh, xen_hvm, kvm_bochs=None) -> Row:  # pylint: disable=too-many-arguments,too-many-positional-arguments
    """A row of both beds' tables."""
    qemu = {"no hypervisor": bare, "KVM + QEMU": kvm, "Xen PVH": xen_pvh, "Xen HVM": xen_hvm}
    return Row(name, title, {"amd": qemu, "intel": {"KVM + QEMU": kvm_bochs}})


NO_EXIT = "no exit"
ROWS = (
    row("cpuid", "CPUID", 7, 2681, 2477, 2929, 969),
    row("vmmcall", "VMMCALL", None, 2825, 2544, 2996),
    row("vmcall", "VMCALL", None, None, None, None),
    row("rdmsr_1b", "RDMSR 0x1B", 7, 2770, 2390, 2834),
    row("wbinvd", "WBINVD", 6, 2562, 2336, 2780),
    row("in_21", "IN 0x21 (PIC)", 6, 1731, None, 1180),
    row("out_80", "OUT 0x80", 7, 5291, NO_EXIT, NO_EXIT, 3115),
    row("in_3fd", "IN 0x3FD (UART status)", 7, 5364, None, 42671),
    row("lapic_read", "LAPIC read (MMIO)", 6, 3666, 4586, 5558),
    row("lapic_eoi", "LAPIC EOI write (MMIO)", 6, 3555, 5195, 6343),
    row("ioapic_read", "IOAPIC read (MMIO)", 6, 3858, 5749, 5130),
    row("hpet_read", "HPET read (MMIO)", 6, 7880, 5749, 5919),
    row("self_ipi", "self-IPI + delivery + EOI", 13, 9090, 11212, 13383),
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


def operations(measured: dict) -> list:
    """The rows that were measured."""
    return [operation for operation in ROWS if any(f"{mode}.{operation.name}" in measured for mode in MODES)]


def exits_table(measured: dict, cpu: str) -> str:
    """What the bench guest measured, beside the reference columns."""
    references = list(ROWS[0].references[cpu])
    rows = [("instructions per round trip", *(f"Gearshift, {title}" for title in MODES.values()), *references)]
    for operation in operations(measured):
        found = (measured.get(f"{mode}.{operation.name}") for mode in MODES)
        rows.append((operation.title, *map(cell, (*found, *(operation.references[cpu][title] for title in references)))))
    return table(rows)


def boots_table(measured: dict) -> str:
    """The boots beside KVM's and the plain machine's."""
    rows = [("stock kernel, power-on to /init", "Gearshift", "exits", "KVM guest", "exits", "no hypervisor")]
    for loudness, found in measured.items():
        kvm, bare = BOOT_KVM.get(loudness, (None, None)), BOOT_BARE.get(loudness, (None, None))
        rows.append((f"{loudness} console", *map(cell, (found["instructions"], found["exits"], *kvm, bare[0]))))
    return table(rows)


def commit() -> str:
    """The commit that is measured, with a mark if the tree differs from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=paths.REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def flat(value, prefix: str = "") -> dict:
    """The numbers in nested dictionaries by their path."""
    if isinstance(value, dict):
        return {path: number for name, part in value.items() for path, number in flat(part, f"{prefix}{name}.").items()}
    return {prefix[:-1]: value} if isinstance(value, int) else {}


def differences(before: dict, now: dict) -> list:
    """A line for each number that changed, came or went."""
    old, new = flat(before), flat(now)
    lines = []
    for path in [*old, *(path for path in new if path not in old)]:
        if old.get(path) != new.get(path):
            both = old.get(path) and path in new
            change = f" ({(new[path] - old[path]) / old[path]:+.1%})" if both else ""
            lines.append(f"{path}: {cell(old.get(path))} -> {cell(new.get(path))}{change}")
    return lines


def read_result(place: str) -> dict:
    """What an earlier run wrote with --json."""
    try:
        found = json.loads(Path(place).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--compare: cannot read {place}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--compare: {place} is not what --json writes") from error
    if not isinstance(found, dict) or "round_trips" not in found:
        raise UserError(f"--compare: {place} is not what --json writes")
    return found


SVG_LINE, SVG_LEFT, SVG_WIDTH = 16, 190, 760


def drawing(measured: dict, cpu: str, of_commit: str) -> str:
    """An SVG of the round trips in 64-bit mode beside KVM's, in bars of one scale."""
    pairs = [(operation.title, (("Gearshift", "#2a6f97", measured.get(f"paged64.{operation.name}")),
                                ("KVM + QEMU", "#adb5bd", operation.references[cpu]["KVM + QEMU"]))) for operation in operations(measured)]
    most = max(value for _, bars in pairs for _, _, value in bars if isinstance(value, int))
    lines, y = [], 30
    for title, bars in pairs:
        lines.append(f'<text x="{SVG_LEFT - 8}" y="{y + 16}" text-anchor="end">{title}</text>')
        for who, colour, value in bars:
            if isinstance(value, int):
                width = round((SVG_WIDTH - SVG_LEFT - 150) * value / most)
                lines.append(f'<rect x="{SVG_LEFT}" y="{y + 1}" width="{width}" height="{SVG_LINE - 4}" fill="{colour}"/>')
                lines.append(f'<text x="{SVG_LEFT + width + 6}" y="{y + 11}">{value:,} {who}</text>')
            y += SVG_LINE
        y += SVG_LINE // 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SVG_WIDTH}" height="{y}" font-family="sans-serif" font-size="11">'
    title = f'<text x="8" y="18" font-size="13">Instructions per round trip, {"AMD-V on QEMU" if cpu == "amd" else "VT-x on Bochs"}, commit {of_commit}</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', title, *lines, "</svg>", ""])


def parser() -> OneLineParser:
    """The options of scripts/bench."""
    p = OneLineParser(prog="scripts/bench", description="Measures Gearshift in emulated instructions, beside KVM and Xen.", allow_abbrev=False)
    p.add_argument("--json", metavar="FILE", help="write what was measured there")
    p.add_argument("--svg", metavar="FILE", help="draw the round trips there")
    p.add_argument("--compare", metavar="FILE", help="name what differs from what an earlier --json wrote")
    p.add_argument("--no-boot", action="store_true", help="leave out the boots of the stock kernel")
    p.add_argument("--memory", metavar="MIB", type=int, default=512, help="RAM of the booted guest (default: %(default)s)")
    p.add_argument("--cpu", choices=("amd", "intel"), default="amd", help="whose virtualization to measure: AMD-V on QEMU, or VT-x on Bochs (round trips only)")
    return p


def measure(cpu: str, memory: int, with_boots: bool) -> dict:
    """Measures, and prints each table as it is there."""
    hypervisor = build.hypervisor()
    (setup.qemu if cpu == "amd" else setup.bochs)()
    options = Options(cpu=cpu, kernel=str(build.tiny_guest(GUEST)), append="", icount=cpu == "amd", timeout=TIMEOUT_SECONDS, memory=64 << 20,
                      prebuilt=hypervisor)
    outcome = run_guest(options, "measuring round trips")
    measured = measured_exits(outcome)
    if not measured:
        raise UserError("the bench guest printed no BENCH line", 3)
    print(exits_table(measured, cpu), flush=True)
    result = {"commit": commit(), "cpu": cpu, "round_trips": measured}
    if with_boots and cpu == "amd":
        result["kernel_sha256"] = hashlib.sha256(guests.kernel().read_bytes()).hexdigest()
        result["boots"] = boots(hypervisor, memory)
        print("\n" + boots_table(result["boots"]), flush=True)
    return result


def main(arguments: list) -> int:
    """Runs scripts/bench and returns its exit status."""
    try:
        given = parser().parse_args(arguments)
        if given.memory < 64 or given.memory % 2:
            raise UserError("--memory: an even number of MiB from 64 on")
        for option, file in (("--json", given.json), ("--svg", given.svg)):
            if file:
                writable_place(option, file)
        before = read_result(given.compare) if given.compare else None
        result = measure(given.cpu, given.memory << 20, not given.no_boot)
        if before is not None:
            same = {name: before[name] for name in result if name in before}
            print("\n" + "\n".join(differences(same, result) or ["nothing changed"]))
        if given.json:
            Path(given.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if given.svg:
            Path(given.svg).write_text(drawing(result["round_trips"], given.cpu, result["commit"]), encoding="utf-8")
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
