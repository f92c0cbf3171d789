"""Cases of the ways by which a machine boots Gearshift: loaders, firmware and media."""

import threading
from pathlib import Path

from gearshift_host import image, imaging, paths
from gearshift_host.session import Options

from .case import Case
from .linux import PROMPT

WRITING = threading.Lock()


def road(boot: str, medium: str, about: str) -> Case:
    """The stock guest reaches its shell when the machine boots that way."""
    unavailable = image.limine_obstacle if boot.startswith("limine") else None
    protocol = "booted by Limine" if boot.startswith("limine") else "booted by Multiboot2"
    return Case(f"boot-{boot}-{medium}", about, options={"boot": boot, "medium": medium, "expect": PROMPT}, said=(protocol,), unavailable=unavailable)


def written_image(hypervisor: Path) -> Path:
    """The image that scripts/image writes, once for all cases."""
    place = paths.cache() / "nested" / "gearshift.iso"
    with WRITING:
        if not place.exists() or place.stat().st_mtime < hypervisor.stat().st_mtime:
            place.parent.mkdir(parents=True, exist_ok=True)
            imaging.write(place, Options(memory=128 << 20, append="console=ttyS0 quiet", prebuilt=hypervisor), "grub", 0)
    return place


def image_file(name: str, about: str, timeout: float = 180, **options) -> Case:
    """The stock guest reaches its shell from the image that scripts/image writes."""
    return Case(name, about, iso=written_image, options={"boot": "grub-bios", "expect": PROMPT, **options}, timeout=timeout)


CASES = [
    image_file("image-on-amd", "the image of scripts/image boots on QEMU with AMD-V"),
    road("grub-bios", "cd", "GRUB boots it from a CD by BIOS"),
    road("grub-bios", "usb", "GRUB boots it from a USB stick by BIOS"),
    road("grub-uefi", "cd", "GRUB boots it from a CD by UEFI"),
    road("grub-uefi", "usb", "GRUB boots it from a USB stick by UEFI"),
    road("limine-bios", "cd", "Limine boots it from a CD by BIOS"),
    road("limine-uefi", "cd", "Limine boots it from a CD by UEFI"),
    road("limine-uefi", "usb", "Limine boots it from a USB stick by UEFI"),
]
