"""Cases with guests as others ship them: further kernels of Debian, a 32-bit one, Xen, and a kernel by PVH.

Each comes to its marker with no parameter but the console, with little, usual and much memory. What v86's image and Xen print when
they are up is their own.
"""

import re

from gearshift_host import build, guests
from gearshift_host.session import Outcome

from .case import Case
from .linux import MESSAGES_SCRIPT, PROMPT, same_warnings_as_plain

MIB = 1 << 20
SIZES = {"128m": 128 * MIB, "512m": 512 * MIB, "5g": 5120 * MIB}
# What v86's kernel unpacks from itself does not fit into 128 MiB, on a plain PC neither.
V86_SIZES = ("512m", "5g")
# What the kernel and its tables keep of 5 GiB, at most.
KEPT_MIB = 500

LINUX = {
    "debian-12": ("Debian 12's kernel", lambda: guests.stock("debian-12")),
    "debian-13-cloud": ("Debian 13's cloud kernel", lambda: guests.stock("debian-13-cloud")),
    "debian-13": ("Debian 13's kernel", lambda: guests.stock("debian-13")),
    "debian-backports": ("the newest kernel of Debian's backports", lambda: guests.stock("debian-backports")),
    "vmlinux": ("Debian 12's kernel as an ELF image, by PVH,", guests.vmlinux),
}


def boots(name: str, size: str) -> Case:
    """A kernel of Debian's reaches the shell with that much memory."""
    title, kernel = LINUX[name]
    return Case(f"stock-{name}-{size}", f"{title} reaches a shell with {size.upper()}", kernel=kernel, initrd=guests.shell_initramfs,
                options={"memory": SIZES[size], "expect": PROMPT}, unavailable=guests.stock_obstacle)


def messages(name: str) -> Case:
    """A kernel of Debian's warns of nothing that it does not warn of on a plain PC."""
    title, kernel = LINUX[name]
    return Case(f"stock-{name}-messages", f"{title} warns of nothing that it does not warn of on a plain PC", kernel=kernel,
                script=MESSAGES_SCRIPT, wanted=("MESSAGES-END", "SCRIPT-ENDED 0"), check=same_warnings_as_plain(kernel),
                unavailable=guests.stock_obstacle)


def v86(size: str) -> Case:
    """v86's 32-bit kernel reaches its shell."""
    return Case(f"stock-v86-{size}", f"v86's 32-bit Linux reaches its shell with {size.upper()}", kernel=guests.v86_kernel,
                options={"memory": SIZES[size], "expect": PROMPT}, unavailable=guests.v86_obstacle)


def xen(size: str) -> Case:
    """Xen starts by Multiboot and misses its dom0."""
    return Case(f"stock-xen-{size}", f"Debian's Xen starts by Multiboot and says that it has no dom0, with {size.upper()}",
                kernel=lambda: guests.stock("xen"), options={"memory": SIZES[size], "append": "console=com1 com1=115200", "expect": "dom0 kernel not specified"},
                wanted=("Xen version",), unavailable=guests.stock_obstacle)


def all_memory_used(outcome: Outcome) -> str:
    """The guest found memory above 4 GiB, and nearly all of its memory was written and read back."""
    above = re.search(r"\[mem 0x0000000100000000-0x([0-9a-f]+)\] usable", outcome.text())
    written = re.search(r"PATTERN (\d+) MiB written and read back", outcome.text())
    if not above:
        return "the kernel lists no memory from 4 GiB on"
    if not written:
        return "the pattern was not read back"
    least = SIZES["5g"] // MIB - KEPT_MIB
    return "" if int(written.group(1)) >= least else f"only {written.group(1)} MiB were written, of at least {least}"


MEMORY_SCRIPT = """\
dmesg | grep -F BIOS-e820
available=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
memory-pattern $((available - 64))
"""

CASES = [
    *(boots(name, size) for name in LINUX for size in SIZES),
    *(messages(name) for name in LINUX if name != "vmlinux"),
    *(v86(size) for size in V86_SIZES),
    *(xen(size) for size in SIZES),
    Case("stock-xen-dom0", "Debian's Xen with a Linux kernel for its module builds a dom0 and starts it", kernel=lambda: guests.stock("xen"),
         initrd=lambda: guests.stock("debian-12-cloud"), options={"append": "console=com1 com1=115200", "expect": "about to get started..."},
         wanted=("Brought up 1 CPUs", "Building a PV Dom0"), unavailable=guests.stock_obstacle),
    Case("memory-5g", "memory above 4 GiB is found; all of 5 GiB is written and read back", script=MEMORY_SCRIPT,
         files=lambda: {"bin/memory-pattern": build.linux_program("memory-pattern")}, options={"memory": SIZES["5g"]}, timeout=300,
         wanted=("SCRIPT-ENDED 0",), unwanted=("PATTERN WRONG",), check=all_memory_used),
]
