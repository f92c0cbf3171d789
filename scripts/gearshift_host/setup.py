"""What must be there before anything runs, each fetched on first use and found at once later.

Neighbours: `archive` brings the packages. Nothing of the system is changed, with two exceptions: the bare-metal target is added
to the Rust toolchain, and a missing C linker is installed with the system's own apt (Rust cannot link build scripts without).
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from . import archive, paths
from .archive import Bundle, Mirror, Program
from .errors import UserError
from .progress import say, step

TARGET = "x86_64-unknown-none"
QEMU_OLDEST = 10  # 7.2 ignores the VMCB's interrupt shadow and hangs with two vCPUs
RUSTUP_SECONDS = 240
DEBIAN_12 = ("bookworm", "bookworm-updates", "bookworm-security")
DEBIAN_13 = ("trixie", "trixie-updates", "trixie-security")
UBUNTU_WITH_QEMU_10 = "resolute"


@functools.cache
def mirror() -> Mirror:
    """The archive that packages come from: Debian's, or on Ubuntu its own."""
    found = archive.debian_mirror() or archive.ubuntu_mirror()
    if not found:
        raise UserError("no Debian or Ubuntu archive in /etc/apt: set GEARSHIFT_DEBIAN_MIRROR to the address of a Debian archive")
    return found


def _suites_newest() -> tuple:
    """Where Bochs 3.0 and image tools come from."""
    if mirror().distribution == "ubuntu":
        return (UBUNTU_WITH_QEMU_10,)
    return DEBIAN_13


def _bundle(name: str, *packages: str, closure: bool = True) -> Bundle:
    return Bundle(name, mirror(), _suites_newest(), packages, closure=closure)


@functools.cache
def qemu() -> Program:
    """qemu-system-x86_64 of version 10 or newer: the system's, else a private one."""
    found = shutil.which("qemu-system-x86_64")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        match = re.search(r"version (\d+)\.", version)
        if match and int(match.group(1)) >= QEMU_OLDEST:
            return Program((found,))
    packages = ("qemu-system-x86", "seabios")
    if mirror().distribution == "debian" and archive.os_release().get("VERSION_CODENAME") == "bookworm":
        suites, prefer = (*DEBIAN_12, "bookworm-backports"), "bookworm-backports"
    else:
        suites, prefer = _suites_newest(), ""
    tree = archive.installed(Bundle("qemu", mirror(), suites, packages, prefer), "QEMU 10 (once; about 45 MB)")
    firmware = [str(tree / folder) for folder in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")]
    started = archive.program(tree, "usr/bin/qemu-system-x86_64", environment={"QEMU_MODULE_DIR": str(tree / "usr/lib/x86_64-linux-gnu/qemu")})
    options = tuple(part for folder in firmware for part in ("-L", folder))
    return Program((*started.argv, *options), started.environment)


def ovmf() -> tuple:
    """OVMF's code image and its empty variable store, both 4 MiB layout without SMM."""
    folder = archive.installed(_bundle("ovmf", "ovmf", closure=False), "OVMF (once)") / "usr/share/OVMF"
    return folder / "OVMF_CODE_4M.fd", folder / "OVMF_VARS_4M.fd"


@functools.cache
def bochs_tree() -> Path:
    """The tree that holds Bochs 3.0, its BIOS images and its libraries."""
    return archive.installed(_bundle("bochs", "bochs", "bochs-term", "bochsbios", "vgabios"), "Bochs 3.0 (once; about 55 MB)")


@functools.cache
def bochs() -> Program:
    """Bochs 3.0, started without the system's libraries."""
    tree = bochs_tree()
    environment = {
        "LTDL_LIBRARY_PATH": str(tree / "usr/lib/x86_64-linux-gnu/bochs/plugins"),
        "BXSHARE": str(tree / "usr/share/bochs"),
        "TERM": "dumb",
        "TERMINFO": "/usr/share/terminfo" if os.path.isdir("/usr/share/terminfo") else "/lib/terminfo",
    }
    return archive.program(tree, "usr/bin/bochs-bin", ("pulseaudio",), environment)


@functools.cache
def image_tree() -> Path:
    """The tree that holds GRUB's modules for BIOS and UEFI, xorriso and mtools."""
    packages = ("grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools")
    return archive.installed(_bundle("image-tools", *packages), "GRUB and image tools (once)")


def image_tool(path: str) -> Program:
    """A program of `image_tree`."""
    return archive.program(image_tree(), path)


def _tool(path: str, bundle: Bundle, what: str) -> Program:
    """A program of the system's, or of a bundle that has it at `path`."""
    found = shutil.which(Path(path).name)
    return Program((found,)) if found else archive.program(archive.installed(bundle, f"{what} (once)"), path)


@functools.cache
def iasl() -> Program:
    """The ACPI compiler, to check the tables that guests see."""
    return _tool("usr/bin/iasl", _bundle("acpica", "acpica-tools"), "the ACPI compiler")


@functools.cache
def dmidecode() -> Program:
    """The reader of SMBIOS tables, to check those that guests see."""
    return _tool("usr/sbin/dmidecode", _bundle("dmidecode", "dmidecode"), "dmidecode")


def _compiler(command: str, what: str, *packages: str) -> None:
    """A compiler for the host; installed with the system's apt if there is none."""
    if shutil.which(command):
        return
    elevate = [] if os.geteuid() == 0 else ["sudo"]
    if elevate and not shutil.which("sudo"):
        raise UserError(f"{what} is missing: as root, run apt-get install {' '.join(packages)}")
    with step(f"installing {what} with apt"):
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run([*elevate, "apt-get", *arguments], capture_output=True, text=True)
            if done.returncode != 0:
                raise UserError(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-300:]}", 3)


def linker() -> None:
    """A C linker for the host."""
    _compiler("cc", "a C linker", "gcc", "libc6-dev")


def cpp_compiler() -> None:
    """A C++ compiler for the host: the fuzzer's runtime is C++."""
    _compiler("c++", "a C++ compiler", "g++")


def rust() -> None:
    """The Rust toolchain with its bare-metal target."""
    for tool in ("cargo", "rustc"):
        if not shutil.which(tool):
            raise UserError(f"{tool} is missing: install the Rust toolchain first (rustup.rs)")
    linker()
    libraries = Path(_rustc("--print", "target-libdir", "--target", TARGET))
    if has_target_libraries(libraries):
        return
    if shutil.which("rustup"):
        with step(f"adding the {TARGET} target to the Rust toolchain"):
            try:
                subprocess.run(["rustup", "target", "add", TARGET], capture_output=True, cwd=paths.REPOSITORY, timeout=RUSTUP_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # no way to its server; seen below
        if has_target_libraries(libraries):
            return
    say(f"rustup cannot add {TARGET}: building its libraries from the archive's rust-src")
    build_target_libraries(libraries)


def has_target_libraries(folder: Path) -> bool:
    """Whether the bare target's libraries are all there."""
    return all(any(folder.glob(f"lib{name}-*.rlib")) for name in ("core", "alloc", "compiler_builtins"))


def _rustc(*arguments: str) -> str:
    done = subprocess.run(["rustc", *arguments], capture_output=True, text=True, cwd=paths.REPOSITORY)
    if done.returncode != 0:
        raise UserError(f"rustc {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}", 3)
    return done.stdout.strip()


def build_target_libraries(destination: Path) -> None:
    """Builds core, alloc and compiler_builtins for the bare target from the archive's source of the very same compiler version."""
    version = re.search(r"^release: (\S+)", _rustc("--version", "--verbose"), re.M).group(1)
    source = _rust_source(version)
    sysroot = Path(_rustc("--print", "sysroot"))
    library = sysroot / "lib/rustlib/src/rust/library"
    if not library.exists():
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, library, symlinks=False)
        except OSError as error:
            raise UserError(f"cannot write the Rust toolchain's folder: {error}") from None
    with step(f"building the libraries of {TARGET}"):
        place = paths.cache() / "rust-target"
        shutil.rmtree(place, ignore_errors=True)
        (place / "src").mkdir(parents=True)
        (place / "Cargo.toml").write_text('[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n')
        (place / "src/lib.rs").write_text("#![no_std]\n")
        command = ["cargo", "build", "--release", "--target", TARGET, "-Zbuild-std=core,alloc,compiler_builtins",
                   "-Zbuild-std-features=compiler-builtins-mem"]
        # Cargo leaves the bitcode out where it sees no link-time optimisation, which the hypervisor's build then wants.
        environment = {**os.environ, "RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": "-Cembed-bitcode=yes", "CARGO_TARGET_DIR": str(place / "target")}
        built = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        if built.returncode != 0:
            raise UserError(f"cannot build the libraries of {TARGET}: {built.stderr.strip()[-400:]}", 3)
        destination.mkdir(parents=True, exist_ok=True)
        for name in ("core", "alloc", "compiler_builtins"):
            for file in (place / "target" / TARGET / "release/deps").glob(f"lib{name}-*.rlib"):
                shutil.copy(file, destination)


def _rust_source(version: str) -> Path:
    """The `library` folder of the standard library's source of this compiler version."""
    if mirror().distribution == "ubuntu":
        suites = (UBUNTU_WITH_QEMU_10,)
    else:
        suites = (*DEBIAN_13, "trixie-backports", "sid")
    with archive.cache_lock():
        with step("looking for the Rust library's source"):
            apt = archive.PrivateApt(Bundle("rust-src", mirror(), suites, ("rust-src",), closure=False))
            apt.update()
            wanted = [v for v in apt.version_candidates("rust-src") if v.startswith(version + "+") or v.startswith(version + "-")]
    if not wanted:
        raise UserError(f"the archive has no rust-src {version}: run rustup target add {TARGET} where rustup can download")
    bundle = Bundle("rust-src", mirror(), suites, (f"rust-src={wanted[0]}",), closure=False)
    tree = archive.installed(bundle, f"the Rust library's source {version} (once)")
    return next((tree / "usr/src").glob("rustc-*")) / "library"
