"""The tiny guests of tests/guests: freestanding programs that speak on the serial port.

The protocol is in tests/guests; a case needs only the name of a guest and what it must print.
"""

from pathlib import Path

from gearshift_host import build as cargo_build
from gearshift_host.errors import UserError

_IMAGES: dict = {}


def build() -> None:
    """Builds all of them."""
    _IMAGES["folder"] = cargo_build.tiny_guests()


def image(name: str) -> Path:
    """The image of a guest."""
    if "folder" not in _IMAGES:
        build()
    place = _IMAGES["folder"] / name
    if not place.exists():
        raise UserError(f"tests/guests has no guest named {name}", 3)
    return place
