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


GRUB_SERIAL = "serial --unit=0 --speed=115200\nterminal_output serial\nset timeout=0\n"


def _quoted(text: str) -> str:
    """A word for GRUB's script, whatever it holds."""
    return "'" + text.replace("'", "'\\''") + "'"


def hypervisor_iso(work: Path, hypervisor: Path, command_line: str, modules: dict) -> Path:
    """An ISO that boots the hypervisor by Multiboot2 with named modules."""
    lines = [f"multiboot2 /boot/gearshift {command_line}"]
    lines += [f"module2 /modules/{name} {name}" for name in modules]
    files = {"boot/gearshift": hypervisor, **{f"modules/{name}": content for name, content in modules.items()}}
    return bios_iso(work / "gearshift.iso", GRUB_SERIAL + "\n".join(lines) + "\nboot\n", files, work)


def linux_iso(work: Path, kernel: Path, initrd: Path | None, command_line: str) -> Path:
    """An ISO that boots a Linux kernel without the hypervisor."""
    words = " ".join(_quoted(word) for word in command_line.split())
    lines = [f"linux /boot/vmlinuz {words}"] + (["initrd /boot/initrd"] if initrd else [])
    files = {"boot/vmlinuz": kernel, **({"boot/initrd": initrd} if initrd else {})}
    return bios_iso(work / "linux.iso", GRUB_SERIAL + "\n".join(lines) + "\nboot\n", files, work)
