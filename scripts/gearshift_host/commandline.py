"""scripts/run: parses its options, refuses wrong ones with one line, and runs a session."""

import argparse
import os
import re
import sys
from pathlib import Path

from . import image, qemu
from .errors import UserError
from .progress import say
from .session import Interrupted, Options, Session, show_ending

MIB = 1 << 20
MEMORY_LEAST, MEMORY_MOST = 16 * MIB, 64 << 30
CPUS_MOST = 64
UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": 1 << 30}
BOOT_WAYS = ("pvh", "grub-bios", "grub-uefi", "limine-bios", "limine-uefi")
MEDIA = ("cd", "usb")

EPILOG = """\
Without --kernel the guest is Debian 12's stock cloud kernel with a busybox shell. In the terminal, Ctrl-A x quits, Ctrl-A 1..9 shows
another guest's console, Ctrl-A m the monitor, Ctrl-A h the keys, and Ctrl-A Ctrl-A types Ctrl-A. Exit status: 0 the guest powered off or the expected text appeared; 1 the VM was stopped with a report, the text did not appear
or the time was up; 2 a wrong option, a missing file or a machine that cannot run guests; 3 the hypervisor or the set-up failed.

Examples:
  scripts/run
  scripts/run --memory 128M --expect '~ #' --timeout 120
  scripts/run --expect-first '~ #' --send 'cat /proc/cpuinfo' --expect hypervisor --timeout 120
"""


class OneLineParser(argparse.ArgumentParser):
    """Refuses wrong options with one line and without the usage text."""

    def error(self, message: str):
        raise UserError(f"{message} (see scripts/run --help)")


def size(text: str) -> int:
    """Bytes of a size such as 512M, 2G or 512 (MiB)."""
    match = re.fullmatch(r"(\d+)([kKmMgG]?)(?:i?[bB])?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512M or 2G")
    value = int(match.group(1)) * UNITS[match.group(2).lower()]
    if not MEMORY_LEAST <= value <= MEMORY_MOST:
        raise argparse.ArgumentTypeError(f"{text} is out of range: a VM has from {MEMORY_LEAST // MIB}M to {MEMORY_MOST >> 30}G")
    if value % (2 * MIB):
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 2 MiB")
    return value


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def positive(text: str) -> int:
    """A number from 1 on."""
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def guest_options(p: OneLineParser) -> None:
    """Adds the options that say which guest runs and what the hypervisor is told."""
    guest = p.add_argument_group("the guest")
    guest.add_argument("--kernel", metavar="FILE", help="kernel to boot: a Linux bzImage or a PVH or Multiboot 1 program")
    guest.add_argument("--vms", metavar="FILE", help="several guests: a vms.toml, which names kernels and RAM disks that lie beside it")
    guest.add_argument("--initrd", metavar="FILE", help="its initial RAM disk")
    guest.add_argument("--append", metavar="STR", default="console=ttyS0", help="its command line (default: %(default)s)")
    guest.add_argument("--module", metavar="FILE", action="append", default=[], dest="modules",
                       help="a further file for the hypervisor, known by its base name; repeatable")
    guest.add_argument("--memory", metavar="SIZE", type=size, default=512 * MIB, help="its RAM, such as 128M or 2G (default: 512M)")
    guest.add_argument("--vcpus", metavar="N", type=positive, default=1, help="its virtual CPUs (default: %(default)s)")
    guest.add_argument("--hypervisor-options", metavar="STR", default="", help="further words for the hypervisor's own command line")


def parser() -> OneLineParser:
    """The options of scripts/run."""
    p = OneLineParser(prog="scripts/run", description="Boots Gearshift in an emulated or nested machine and a guest inside Gearshift.",
                      epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    guest_options(p)
    machine = p.add_argument_group("the machine")
    machine.add_argument("--cpu", choices=("amd", "intel", "auto"), default="auto",
                         help="whose virtualization to use: amd (QEMU), intel (Bochs), auto (nested KVM if there is, else QEMU)")
    machine.add_argument("--boot", choices=BOOT_WAYS,
                         help="how the machine boots Gearshift (default: pvh, with --cpu intel grub-bios); limine needs Limine's binaries (LIMINE_DIR)")
    machine.add_argument("--medium", choices=MEDIA, default="cd", help="what a loader boots from (default: %(default)s)")
    machine.add_argument("--host-cpus", metavar="N", type=positive, default=1, help="the machine's own CPUs (default: %(default)s)")
    machine.add_argument("--host-memory", metavar="SIZE", type=size, help="the machine's own memory (default: what its guests need)")
    machine.add_argument("--icount", action="store_true", help="count instructions deterministically (slower; time is instructions)")
    machine.add_argument("--kvm", action="store_true", help="use nested KVM instead of emulation; refused where it is not there")
    machine.add_argument("--cpu-model", metavar="MODEL", default="", help=f"QEMU's CPU model and flags (default: {qemu.CPU_MODEL})")
    machine.add_argument("--bare", action="store_true", help="boot the guest without Gearshift in the same machine, to compare")
    script = p.add_argument_group("without a person at the terminal")
    script.add_argument("--expect", metavar="TEXT", help="end with status 0 once TEXT appears on the guest's console")
    script.add_argument("--timeout", metavar="SECONDS", type=seconds, help="give up after that time with status 1 (with --expect: 300 if not given)")
    script.add_argument("--expect-first", metavar="TEXT", help="wait for TEXT before typing what --send says")
    script.add_argument("--send", metavar="TEXT", help="what to type then, followed by Enter; its echo does not count for --expect")
    record = p.add_argument_group("what to keep")
    record.add_argument("--log", metavar="FILE", help="write the hypervisor's own log there")
    record.add_argument("--report", metavar="FILE", help="if a VM is stopped, write its report there as text, and as JSON to FILE.json; only JSON if FILE ends so")
    record.add_argument("--stats", metavar="FILE", help="write JSON there: exits by reason, times, instructions if counted, memory")
    return p


def checked(arguments: list) -> Options:
    """The options, or a UserError that says in one line what is wrong."""
    given = parser().parse_args(arguments)
    check_guest(given)
    for option, file in (("--log", given.log), ("--report", given.report), ("--stats", given.stats)):
        if file is not None:
            writable_place(option, file)
    for option in ("expect", "expect_first", "send"):
        if getattr(given, option) == "":
            raise UserError(f"--{option.replace('_', '-')} needs a text")
    if (given.send is None) != (given.expect_first is None):
        raise UserError("--send and --expect-first belong together: type the one when the other has appeared")
    if given.kvm and given.icount:
        raise UserError("--kvm and --icount contradict each other: only the emulator counts instructions")
    if given.cpu == "intel" and given.kvm:
        raise UserError("--cpu intel and --kvm contradict each other: that machine is emulated")
    if given.cpu == "intel" and given.icount:
        raise UserError("--cpu intel counts instructions by itself: leave out --icount")
    refuse_boot_way(given)
    if given.host_cpus > CPUS_MOST:
        raise UserError(f"--host-cpus {given.host_cpus} is too many: at most {CPUS_MOST}")
    if given.bare and given.vms:
        raise UserError("--bare runs one guest without the hypervisor: --vms has no meaning then")
    if given.bare and (given.modules or given.hypervisor_options):
        raise UserError("--bare runs without the hypervisor: --module and --hypervisor-options have no meaning then")
    kvm = given.kvm
    if kvm or not given.bare and not given.icount and given.cpu == "auto":
        obstacle = qemu.kvm_obstacle("svm", "kvm_amd")
        if kvm and obstacle:
            raise UserError(f"--kvm: {obstacle}")
        kvm = not obstacle
    fields = {name: value for name, value in vars(given).items() if name not in ("bare", "kvm")}
    if given.expect is not None and given.timeout is None:
        fields["timeout"] = 300.0
    return Options(**fields, kvm=kvm, without_hypervisor=given.bare)


def check_guest(given: argparse.Namespace) -> None:
    """Refuses a guest that cannot be: a file that cannot be read, too many CPUs, a contradiction."""
    for option, file in [("--kernel", given.kernel), ("--initrd", given.initrd), ("--vms", given.vms), *(("--module", m) for m in given.modules)]:
        if file is not None:
            readable_file(option, file)
    if given.vcpus > CPUS_MOST:
        raise UserError(f"--vcpus {given.vcpus} is too many: at most {CPUS_MOST}")
    if given.vms and (given.kernel or given.initrd):
        raise UserError("--vms names the guests' files itself: leave out --kernel and --initrd")


def refuse_boot_way(given: argparse.Namespace) -> None:
    """Refuses a way to boot that the machine does not have."""
    direct = given.boot == "pvh" or given.boot is None and given.cpu != "intel"
    if given.cpu == "intel" and given.boot == "pvh":
        raise UserError("--cpu intel and --boot pvh contradict each other: that machine boots from a CD, by grub-bios or limine-bios")
    if given.cpu == "intel" and (given.boot or "").endswith("-uefi"):
        raise UserError(f"--cpu intel and --boot {given.boot} contradict each other: that machine has a BIOS")
    if given.medium == "usb" and (direct or given.cpu == "intel"):
        raise UserError("--medium usb needs a machine that boots from one: with --boot grub-... or limine-..., not --cpu intel")
    if (given.boot or "").startswith("limine"):
        obstacle = image.limine_obstacle()
        if obstacle:
            raise UserError(f"--boot {given.boot}: {obstacle}")
        if given.boot == "limine-bios" and given.medium == "usb" and not image.limine_installer(image.limine_folder()):
            raise UserError("--boot limine-bios --medium usb: the program `limine`, which writes the stick's boot sector, is neither beside Limine's "
                            "binaries nor on the path")


def readable_file(option: str, file: str) -> None:
    """Refuses a file that cannot be read."""
    try:
        if not Path(file).is_file():
            reason = "no such file" if not Path(file).exists() else "not a file"
            raise UserError(f"{option} {file}: {reason}")
        with open(file, "rb") as opened:
            if not opened.read(1):
                raise UserError(f"{option} {file}: the file is empty")
    except OSError as error:
        raise UserError(f"{option} {file}: {error.strerror}") from None


def writable_place(option: str, file: str) -> None:
    """Refuses a file that cannot be written."""
    place = Path(file).absolute()
    if place.is_dir():
        raise UserError(f"{option} {file}: is a folder")
    if not place.parent.is_dir():
        raise UserError(f"{option} {file}: the folder {place.parent} does not exist")
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise UserError(f"{option} {file}: cannot be written")


def main(arguments: list) -> int:
    """Runs scripts/run and returns its exit status."""
    try:
        options = checked(arguments)
        unattended = options.expect is not None or options.send is not None
        typing = not unattended and sys.stdin is not None
        terminal = typing and sys.stdin.isatty() and sys.stdout.isatty()
        if terminal:
            say("attaching to the guest's console (Ctrl-A x quits)")
        outcome = Session(options, terminal=terminal, typing=typing).run()
        show_ending(outcome)
        return outcome.status
    except UserError as error:
        say(f"error: {error}")
        return error.status
    except Interrupted as interrupted:
        return 128 + interrupted.args[0]
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        say(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}")
        return 3
