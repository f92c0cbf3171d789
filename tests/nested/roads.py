"""Cases of the ways by which a machine boots Gearshift: loaders, firmware and media."""

from gearshift_host import image

from .case import Case
from .linux import PROMPT


def road(boot: str, medium: str, about: str) -> Case:
    """The stock guest reaches its shell when the machine boots that way."""
    unavailable = image.limine_obstacle if boot.startswith("limine") else None
    protocol = "booted by Limine" if boot.startswith("limine") else "booted by Multiboot2"
    return Case(f"boot-{boot}-{medium}", about, options={"boot": boot, "medium": medium, "expect": PROMPT}, said=(protocol,), unavailable=unavailable)


CASES = [
    road("grub-bios", "cd", "GRUB boots it from a CD by BIOS"),
    road("grub-bios", "usb", "GRUB boots it from a USB stick by BIOS"),
    road("grub-uefi", "cd", "GRUB boots it from a CD by UEFI"),
    road("grub-uefi", "usb", "GRUB boots it from a USB stick by UEFI"),
    road("limine-bios", "cd", "Limine boots it from a CD by BIOS"),
    road("limine-uefi", "cd", "Limine boots it from a CD by UEFI"),
    road("limine-uefi", "usb", "Limine boots it from a USB stick by UEFI"),
]
