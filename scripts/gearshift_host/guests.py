"""Guest images: the stock Debian 12 cloud kernel and a small initramfs around busybox.

The initramfs is reproducible: the same busybox gives the same bytes. Two kinds: `shell_initramfs` ends in an interactive shell on
the console, `script_initramfs` runs a given script and powers off.
"""

import gzip
import shutil
import subprocess
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


def kernel() -> Path:
    """The stock kernel image (bzImage)."""
    place = paths.cache() / "guests" / "vmlinuz"
    if place.exists():
        return place
    ubuntu = setup.mirror().distribution == "ubuntu"
    meta = _guest_bundle("linux-image-virtual" if ubuntu else "linux-image-cloud-amd64")
    with archive.cache_lock():
        with step("looking for the guest kernel's current version"):
            apt = archive.PrivateApt(meta)
            apt.update()
            package = apt.dependency(meta.packages[0], r"linux-image-[0-9].*")
    bundle = Bundle("guest-kernel", meta.mirror, meta.suites, (package,), closure=False)
    tree = archive.installed(bundle, f"the guest kernel {package} (once)")
    image = next((tree / "boot").glob("vmlinuz-*"))
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(image, place.with_suffix(".new"))
    place.with_suffix(".new").chmod(0o644)
    place.with_suffix(".new").rename(place)
    return place


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
