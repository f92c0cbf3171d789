"""scripts/image: writes one image that boots Gearshift with a guest on a real or emulated PC."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from . import build, image
from .commandline import OneLineParser, check_guest, guest_options, writable_place
from .errors import UserError
from .machines import MODULE
from .progress import say
from .session import COMMAND_LINE_MODULE, INITRD_MODULE, KERNEL_MODULE, Options, module_files

EPILOG = """\
The image boots by BIOS and by UEFI, as a CD and from a USB stick. To write a stick (all that is on it is lost; find its name by lsblk):
  dd if=gearshift.iso of=/dev/sdX bs=4M conv=fsync
In QEMU:
  qemu-system-x86_64 -machine q35 -cpu EPYC,+svm -m 1G -cdrom gearshift.iso -serial mon:stdio
The guest's console is the first serial port, the hypervisor's log the second. Without --kernel the guest is Debian 12's stock cloud kernel
with a busybox shell. The image holds the guests' definition as /modules/vms.toml; --vms brings one of several guests.

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


def definition(options: Options, files: dict) -> str:
    """The vms.toml of the one guest that the options describe."""
    fields = {"name": "guest", "kernel": KERNEL_MODULE, **({"initrd": INITRD_MODULE} if INITRD_MODULE in files else {}),
              "append": options.append, "memory": f"{options.memory >> 20}M", "vcpus": options.vcpus}
    # What JSON calls a string or a number, TOML does too.
    return "\n".join(["[[vm]]", *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()), ""])


def carried(options: Options) -> dict:
    """The files in the image: vms.toml and what it names."""
    files = module_files(options)
    if not options.vms:
        del files[COMMAND_LINE_MODULE]
        files = {MODULE: definition(options, files).encode(), **files}
    return files


def write(place: Path, options: Options, loader: str, menu_seconds: int) -> None:
    """Writes the image."""
    entry = image.hypervisor_entry(options.prebuilt or build.hypervisor(), options.hypervisor_options, carried(options))
    look = image.Look(menu_seconds, serial_only=False)
    # Beside its place, so that what is not whole never stands there.
    with tempfile.TemporaryDirectory(prefix=".gearshift-", dir=place.parent) as folder:
        made = image.ISO_MAKERS[loader](Path(folder) / "image", entry, look, Path(folder))
        os.replace(made, place)


def main(arguments: list) -> int:
    """Runs scripts/image and returns its exit status."""
    try:
        given = parser().parse_args(arguments)
        check_guest(given)
        writable_place("--output", given.output)
        loader = chosen_loader(given.loader)
        options = Options(kernel=given.kernel, initrd=given.initrd, append=given.append, modules=given.modules, memory=given.memory,
                          vcpus=given.vcpus, vms=given.vms, hypervisor_options=given.hypervisor_options)
        place = Path(given.output).absolute()
        write(place, options, loader, given.menu_seconds)
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
