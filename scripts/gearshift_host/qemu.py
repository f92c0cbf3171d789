"""The QEMU machine that Gearshift runs in: a q35 PC whose CPU has AMD-V.

COM1 is the focused guest's console, COM2 the hypervisor's log and, the other way, its control line; both are sockets that the
caller already holds. A debug-exit port tells how the hypervisor ended. `kvm_obstacle` says why nested KVM cannot be used.
"""

from dataclasses import dataclass
from pathlib import Path

from . import setup
from .archive import Program

DEBUG_EXIT_PORT = 0x501
MIB = 1 << 20
HYPERVISOR_MEMORY = 128 * MIB
UEFI_MEMORY = 128 * MIB  # what OVMF keeps for itself or scatters itself over
CPU_MODEL = "EPYC,+svm,+x2apic,+vgif"
# For counted runs: QEMU stops with "Bad icount read" when an x2APIC's timer is written by WRMSR.
COUNTED_CPU_MODEL = "EPYC,+svm"


@dataclass(frozen=True)
class Direct:
    """A kernel that QEMU itself loads (by PVH or as Linux), its command line and one file of modules or initial RAM disk."""

    kernel: Path
    command_line: str
    modules: Path | None

    def arguments(self) -> list:
        """QEMU's options for it."""
        return ["-kernel", str(self.kernel), "-append", self.command_line, *(["-initrd", str(self.modules)] if self.modules else [])]


@dataclass(frozen=True)
class Disc:
    """An image that the firmware boots: as a CD or as a USB stick, by SeaBIOS or, where a variable store is named, by OVMF."""

    image: Path
    usb: bool = False
    uefi_variables: Path | None = None

    def arguments(self) -> list:
        """QEMU's options for it."""
        drive = f"id=disc,if=none,format=raw,file={_escaped(self.image)}"
        if self.usb:
            # A stick can be written: Limine writes to it to tell disks apart, and OVMF crashes where that fails.
            device = ["-device", "qemu-xhci", "-device", "usb-storage,drive=disc,bootindex=0", "-drive", drive + ",snapshot=on"]
        else:
            device = ["-device", "ide-cd,drive=disc,bootindex=0", "-drive", drive + ",readonly=on,media=cdrom"]
        if self.uefi_variables is None:
            return device
        code, _ = setup.ovmf()
        return [*device, "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_escaped(code)}",
                "-drive", f"if=pflash,unit=1,format=raw,file={_escaped(self.uefi_variables)}"]


def _escaped(path: Path) -> str:
    """A path inside an option with commas."""
    return str(path).replace(",", ",,")


@dataclass(frozen=True)
class Machine:
    """What to start. Sizes in bytes; the two descriptors are connected stream sockets that QEMU inherits."""

    start: "Direct | Disc"
    memory: int
    console: int
    log: int
    icount: bool = False
    kvm: bool = False
    cpu_model: str = ""
    cpus: int = 1


def command(machine: Machine) -> tuple:
    """The program and its whole command line."""
    program: Program = setup.qemu()
    accelerator = "kvm" if machine.kvm else "tcg"
    model = machine.cpu_model or ("host" if machine.kvm else COUNTED_CPU_MODEL if machine.icount else CPU_MODEL)
    arguments = [
        "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot",
        "-machine", f"q35,accel={accelerator}", "-cpu", model, "-smp", str(machine.cpus), "-m", f"{machine.memory // MIB}M",
        "-device", f"isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=2",
        "-chardev", f"socket,id=console,fd={machine.console}", "-serial", "chardev:console",
        "-chardev", f"socket,id=log,fd={machine.log}", "-serial", "chardev:log",
        *machine.start.arguments(),
    ]
    if machine.icount:
        # Time is instructions: nothing depends on the load of this machine or on the day.
        arguments += ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm"]
    return program, program.command(*arguments)


def memory_for(guest_bytes: int, module_bytes: int) -> int:
    """Machine memory for a guest of that size: its RAM, the modules twice (as loaded and as placed) and the hypervisor's own."""
    total = guest_bytes + 2 * module_bytes + HYPERVISOR_MEMORY
    return -(-total // MIB) * MIB


def kvm_obstacle(flag: str, module: str) -> str:
    """Why nested KVM with the CPU flag `svm` or `vmx` cannot be used here; empty if it can."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return "/proc/cpuinfo names no CPU flags"
    if flag not in flags:
        return f"this machine's CPU does not offer {flag}"
    try:
        nested = Path(f"/sys/module/{module}/parameters/nested").read_text().strip()
    except OSError:
        return f"the {module} module is not loaded"
    if nested not in ("1", "Y", "y"):
        return f"{module} is loaded without nested=1"
    try:
        with open("/dev/kvm", "r+b", buffering=0):
            return ""
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
