"""Bootable images made with GRUB: an ISO that boots by BIOS from CD, carrying a GRUB configuration and files.

Neighbours: `setup` brings GRUB's modules and xorriso; nothing of the system's GRUB is used.
"""

import subprocess
from pathlib import Path

from . import setup
from .archive import Program
from .errors import UserError
from .progress import step

BIOS_MODULES = ("biosdisk", "iso9660", "normal", "configfile", "serial", "terminal", "echo", "multiboot2", "multiboot", "linux", "halt", "test")


def _call(program: Program, *arguments: str) -> None:
    done = subprocess.run(program.command(*arguments), env=program.env(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{Path(program.argv[-1]).name} failed: {done.stderr.strip()[-300:]}", 3)


def bios_iso(place: Path, configuration: str, files: dict, work: Path) -> Path:
    """Writes an ISO that GRUB boots on a BIOS machine; `files` maps paths in the image to paths or bytes, `work` is a folder for the parts."""
    with step("building a boot image"):
        root = work / "iso"
        grub = root / "boot/grub"
        grub.mkdir(parents=True)
        (grub / "grub.cfg").write_text(configuration)
        for name, content in files.items():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        modules = setup.image_tree() / "usr/lib/grub/i386-pc"
        _call(setup.image_tool("usr/bin/grub-mkimage"), "-d", str(modules), "-O", "i386-pc-eltorito", "-p", "/boot/grub",
              "-o", str(grub / "eltorito.img"), *BIOS_MODULES)
        _call(setup.image_tool("usr/bin/xorriso"), "-as", "mkisofs", "-quiet", "-R", "-b", "boot/grub/eltorito.img", "-no-emul-boot",
              "-boot-load-size", "4", "-boot-info-table", "-o", str(place), str(root))
    return place
