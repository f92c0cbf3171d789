"""Bootable images: one ISO file that boots by BIOS and by UEFI, from a CD and from a USB stick.

Two loaders: GRUB, whose modules `setup` brings, and Limine, where its binaries are installed. Key types: `Entry` (what the
loader starts), `Look` (what its menu does). Nothing of the system's own loaders is used or touched.

The file holds the hypervisor or a kernel under /boot, its modules under /modules, and the loader's menu. For UEFI a FAT partition
with the loader is appended behind the ISO file system, named both by El Torito and by the partition table.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import setup
from .archive import Program
from .errors import UserError
from .progress import step

BIOS_MODULES = ("biosdisk", "part_msdos", "part_gpt", "iso9660", "normal", "configfile", "search", "search_fs_file", "serial", "terminal",
                "echo", "multiboot2", "multiboot", "linux", "halt", "reboot", "test")
UEFI_MODULES = ("part_msdos", "part_gpt", "fat", "iso9660", "normal", "configfile", "search", "search_fs_file", "serial", "terminal",
                "echo", "multiboot2", "linux", "halt", "reboot", "test")
VOLUME = "GEARSHIFT"
FAT_SLACK = 256 << 10  # what the file system itself takes, generously
LIMINE_FILES = ("limine-bios-cd.bin", "limine-bios.sys", "BOOTX64.EFI")
LIMINE_FOLDER = "/usr/share/limine"


@dataclass(frozen=True)
class Entry:
    """What a loader starts: a program with its command line, by the loader's own protocol or Linux's, and the files handed to it.

    `modules` maps the names that the program knows them by to paths or bytes.
    """

    title: str
    program: Path
    command_line: str
    modules: dict = field(default_factory=dict)
    linux: bool = False

    @property
    def place(self) -> str:
        """Where the program is in the image."""
        return "boot/vmlinuz" if self.linux else "boot/gearshift"


@dataclass(frozen=True)
class Look:
    """What the loader's menu does: seconds until the entry starts by itself, and whether it speaks on the serial port alone."""

    seconds: int = 0
    serial_only: bool = True


def _call(program: Program, *arguments: str) -> None:
    done = subprocess.run(program.command(*arguments), env={**program.env(), "MTOOLS_SKIP_CHECK": "1"}, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{Path(program.argv[-1]).name} failed: {done.stderr.strip()[-300:]}", 3)


def _copy(source, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, bytes):
        target.write_bytes(source)
    else:
        shutil.copyfile(source, target)


def _lay_out(root: Path, entry: Entry) -> None:
    """Puts the entry's files where the menus name them."""
    _copy(entry.program if entry.linux else _stripped(entry.program, root.parent), root / entry.place)
    for name, content in entry.modules.items():
        if "/" in name or any(character in name for character in "\n\r#"):
            raise UserError(f"a module cannot be called {name!r} in a boot image")
        _copy(content, root / "modules" / name)


def _stripped(program: Path, work: Path) -> Path:
    """The program without debugging information, which loaders would read too; the program itself where there is no `strip` or nothing to strip."""
    tool = shutil.which("strip")
    if not tool:
        return program
    place = work / "stripped"
    done = subprocess.run([tool, "-o", str(place), str(program)], capture_output=True, stdin=subprocess.DEVNULL)
    return place if done.returncode == 0 else program


# GRUB


def _quoted(text: str) -> str:
    """A word for GRUB's script, whatever it holds."""
    return "'" + text.replace("'", "'\\''") + "'"


def grub_configuration(entry: Entry, look: Look) -> str:
    """The menu."""
    words = " ".join(_quoted(word) for word in entry.command_line.split())
    lines = ["if serial --unit=0 --speed=115200; then"]
    lines += ["  terminal_output serial"] if look.serial_only else ["  terminal_output --append serial", "  terminal_input --append serial"]
    lines += ["fi", f"set timeout={look.seconds}", "set default=0", f"menuentry {_quoted(entry.title)} {{"]
    if entry.linux:
        lines.append(f"  linux /{entry.place} {words}")
        if entry.modules:
            lines.append("  initrd " + " ".join(_quoted(f"/modules/{name}") for name in entry.modules))
    else:
        lines.append(f"  multiboot2 /{entry.place} {words}")
        lines += [f"  module2 {_quoted('/modules/' + name)} {_quoted(name)}" for name in entry.modules]
    return "\n".join([*lines, "}", ""])


def _grub_core(work: Path, kind: str, format_name: str, modules: tuple, marker: str) -> Path:
    """A GRUB core image that looks for the volume with the marker file and goes on with its menu."""
    early = work / f"{format_name}.cfg"
    early.write_text(f"search --no-floppy --set=root --file /{marker}\nset prefix=($root)/boot/grub\n")
    place = work / f"{format_name}.img"
    folder = setup.image_tree() / "usr/lib/grub" / kind
    _call(setup.image_tool("usr/bin/grub-mkimage"), "-d", str(folder), "-O", format_name, "-p", "/boot/grub", "-c", str(early),
          "-o", str(place), *modules)
    return place


def _efi_partition(work: Path, program: Path) -> Path:
    """A FAT file system with the UEFI program in its default place."""
    place = work / "efi.fat"
    kibibytes = -(-(program.stat().st_size + FAT_SLACK) // 1024)
    _call(setup.image_tool("usr/bin/mformat"), "-C", "-i", str(place), "-T", str(2 * kibibytes), "-h", "2", "-s", "32",
          "-N", "47454152", "-v", "GEARSHIFT", "::")
    for folder in ("::/EFI", "::/EFI/BOOT"):
        _call(setup.image_tool("usr/bin/mmd"), "-i", str(place), folder)
    _call(setup.image_tool("usr/bin/mcopy"), "-i", str(place), str(program), "::/EFI/BOOT/BOOTX64.EFI")
    return place


def grub_iso(place: Path, entry: Entry, look: Look, work: Path) -> Path:
    """Writes an image that GRUB boots; `work` is a folder for the parts."""
    with step("building a boot image with GRUB"):
        root = work / "iso"
        _lay_out(root, entry)
        configuration = grub_configuration(entry, look)
        _copy(configuration.encode(), root / "boot/grub/grub.cfg")
        # Another disk of the machine may hold another Gearshift: the marker is this one's.
        digest = hashlib.sha256(configuration.encode())
        digest.update((root / entry.place).read_bytes())
        marker = f"boot/grub/{digest.hexdigest()[:16]}.id"
        _copy(b"", root / marker)
        core = _grub_core(work, "i386-pc", "i386-pc-eltorito", BIOS_MODULES, marker)
        _copy(core, root / "boot/grub/eltorito.img")
        partition = _efi_partition(work, _grub_core(work, "x86_64-efi", "x86_64-efi", UEFI_MODULES, marker))
        hybrid = setup.image_tree() / "usr/lib/grub/i386-pc/boot_hybrid.img"
        _call(setup.image_tool("usr/bin/xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", VOLUME,
              "--grub2-mbr", str(hybrid), "-append_partition", "2", "0xef", str(partition),
              "-b", "boot/grub/eltorito.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info",
              "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", "-o", str(place), str(root))
    return place


# Limine


def limine_folder() -> Path | None:
    """The folder with Limine's binaries: LIMINE_DIR, else where packages put them; None if they are not there."""
    for folder in filter(None, (os.environ.get("LIMINE_DIR"), LIMINE_FOLDER)):
        if all((Path(folder) / name).is_file() for name in LIMINE_FILES):
            return Path(folder)
    return None


def limine_obstacle() -> str:
    """Why Limine cannot be used here; empty if it can."""
    if limine_folder():
        return ""
    named = os.environ.get("LIMINE_DIR")
    where = f"LIMINE_DIR={named}" if named else LIMINE_FOLDER
    return f"Limine's binaries ({', '.join(LIMINE_FILES)}) are not in {where}: install Limine 8 or newer, or name its folder by LIMINE_DIR"


def limine_configuration(entry: Entry, look: Look) -> str:
    """The menu."""
    if entry.linux:
        lines = ["protocol: linux", f"kernel_path: boot():/{entry.place}", f"cmdline: {entry.command_line}"]
        lines += [f"module_path: boot():/modules/{name}" for name in entry.modules]
    else:
        lines = ["protocol: limine", f"kernel_path: boot():/{entry.place}", f"cmdline: {entry.command_line}"]
        for name in entry.modules:
            lines += [f"module_path: boot():/modules/{name}", f"module_cmdline: {name}"]
    opening = [f"timeout: {look.seconds}", "serial: yes", "serial_baudrate: 115200", *(["graphics: no"] if look.serial_only else [])]
    return "\n".join([*opening, f"/{entry.title}", *(f"    {line}" for line in lines), ""])


def limine_iso(place: Path, entry: Entry, look: Look, work: Path) -> Path:
    """Writes an image that Limine boots; `work` is a folder for the parts.

    From a USB stick it boots by BIOS only if Limine's own installer was there, beside its binaries or on the path, to write the MBR.
    """
    folder = limine_folder()
    if not folder:
        raise UserError(limine_obstacle())
    with step("building a boot image with Limine"):
        root = work / "iso"
        _lay_out(root, entry)
        _copy(limine_configuration(entry, look).encode(), root / "boot/limine/limine.conf")
        for name in ("limine-bios-cd.bin", "limine-bios.sys"):
            _copy(folder / name, root / "boot/limine" / name)
        partition = _efi_partition(work, folder / "BOOTX64.EFI")
        _call(setup.image_tool("usr/bin/xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", VOLUME,
              "-append_partition", "2", "0xef", str(partition),
              "-b", "boot/limine/limine-bios-cd.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
              "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", "-o", str(place), str(root))
        installer = limine_installer(folder)
        if installer:
            _call(Program((installer,)), "bios-install", str(place))
    return place


def limine_installer(folder: Path) -> str | None:
    """Limine's program that writes its MBR, if there is one."""
    beside = folder / "limine"
    return str(beside) if os.access(beside, os.X_OK) and beside.is_file() else shutil.which("limine")


# What is booted


def hypervisor_entry(hypervisor: Path, command_line: str, modules: dict) -> Entry:
    """The hypervisor with its files."""
    return Entry("Gearshift", hypervisor, command_line, modules)


def linux_entry(kernel: Path, initrd: Path | None, command_line: str) -> Entry:
    """A Linux kernel without the hypervisor."""
    return Entry("Linux", kernel, command_line, {"initrd": initrd} if initrd else {}, linux=True)


ISO_MAKERS = {"grub": grub_iso, "limine": limine_iso}
