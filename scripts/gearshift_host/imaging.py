"""scripts/image: writes one image that boots Gearshift with a guest on a real or emulated PC."""

import argparse
import os
import tempfile
from pathlib import Path

from . import build, image
from .commandline import OneLineParser, guest_options, readable_guest, writable_place
from .errors import UserError
from .progress import say
from .session import Options, command_line, module_files

EPILOG = """\
The image boots by BIOS and by UEFI, as a CD and from a USB stick. To write a stick (all that is on it is lost; find its name by lsblk):
  dd if=gearshift.iso of=/dev/sdX bs=4M conv=fsync
In QEMU:
  qemu-system-x86_64 -machine q35 -cpu EPYC,+svm -m 1G -cdrom gearshift.iso -serial mon:stdio
The guest's console is the first serial port, the hypervisor's log the second. Without --kernel the guest is Debian 12's stock cloud kernel
with a busybox shell.

Examples:
  scripts/image
  scripts/image --output stick.iso --memory 4G --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
"""
SECONDS_MOST = 3600


def seconds(text: str) -> int:
    """A whole number of seconds from 0 on."""
    if not text.isdigit() or int(text) > SECONDS_MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {SECONDS_MOST}")
    return int(text)


def parser() -> OneLineParser:
    """The options of scripts/image."""
    p = OneLineParser(prog="scripts/image", description="Writes an image that boots Gearshift with a guest on a PC.", epilog=EPILOG,
                      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    guest_options(p)
    made = p.add_argument_group("the image")
    made.add_argument("--output", metavar="FILE", default="gearshift.iso", help="where to write it (default: %(default)s)")
    made.add_argument("--loader", choices=("auto", "grub", "limine"), default="auto",
                      help="what boots it: auto is Limine where its binaries are installed (LIMINE_DIR or /usr/share/limine), else GRUB")
    made.add_argument("--menu-seconds", metavar="N", type=seconds, default=3, help="how long its menu waits (default: %(default)s)")
    return p


def chosen_loader(wanted: str) -> str:
    """The loader to use, or a UserError."""
    obstacle = image.limine_obstacle()
    if wanted == "limine" and obstacle:
        raise UserError(f"--loader limine: {obstacle}")
    if wanted == "auto":
        return "grub" if obstacle else "limine"
    return wanted


def main(arguments: list) -> int:
    """Runs scripts/image and returns its exit status."""
    try:
        given = parser().parse_args(arguments)
        readable_guest(given)
        writable_place("--output", given.output)
        loader = chosen_loader(given.loader)
        options = Options(kernel=given.kernel, initrd=given.initrd, append=given.append, modules=given.modules, memory=given.memory,
                          vcpus=given.vcpus, vms=given.vms, hypervisor_options=given.hypervisor_options)
        files = module_files(options)
        entry = image.hypervisor_entry(build.hypervisor(), command_line(options, files), files)
        place = Path(given.output).absolute()
        look = image.Look(given.menu_seconds, serial_only=False)
        # Beside its place, so that what is not whole never stands there.
        with tempfile.TemporaryDirectory(prefix=".gearshift-", dir=place.parent) as folder:
            made = image.ISO_MAKERS[loader](Path(folder) / "image", entry, look, Path(folder))
            os.replace(made, place)
        say(f"{given.output}: {place.stat().st_size >> 20} MiB, boots by {loader.capitalize() if loader == 'limine' else loader.upper()}")
        return 0
    except UserError as error:
        say(f"error: {error}")
        return error.status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        say(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}")
        return 3
