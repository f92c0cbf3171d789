"""Builds Gearshift itself and the tiny guests with cargo."""

import os
import subprocess
import sys
from pathlib import Path

from . import paths, setup
from .errors import UserError
from .progress import step

BINARY = "gearshift"


def cargo(*arguments: str, what: str, folder: Path = paths.REPOSITORY) -> None:
    """Runs cargo; its messages are shown only if it fails."""
    with step(what):
        done = subprocess.run(["cargo", *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              env={**os.environ, "CARGO_TERM_COLOR": "always" if sys.stderr.isatty() else "never"})
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        raise UserError(f"{what} failed (cargo {arguments[0]})", 3)


def hypervisor() -> Path:
    """The bootable hypervisor, built if its sources changed."""
    setup.rust()
    cargo("build", "--release", "-p", "kernel", "--features", "bare-metal", "--bin", BINARY, "--target", setup.TARGET,
          what="building the hypervisor")
    return paths.cargo_target() / setup.TARGET / "release" / BINARY


def tiny_guests() -> Path:
    """Builds all tiny guests of tests/guests; the folder that holds their images."""
    setup.rust()
    folder = paths.REPOSITORY / "tests/guests"
    if not (folder / "Cargo.toml").exists():
        raise UserError("tests/guests has no Cargo.toml: the tiny guests are missing", 3)
    target = paths.cargo_target() / "guests"
    cargo("build", "--release", "--target", setup.TARGET, "--target-dir", str(target), what="building the tiny guests", folder=folder)
    return target / setup.TARGET / "release"


def tiny_guest(name: str) -> Path:
    """The image of a tiny guest."""
    image = tiny_guests() / name
    if not image.exists():
        raise UserError(f"tests/guests has no guest named {name}", 3)
    return image


def linux_program(name: str) -> Path:
    """A static Linux program of tests/linux_programs, for a guest's initramfs."""
    setup.rust()
    target = paths.cargo_target() / "linux-programs"
    cargo("build", "--release", "--target", setup.TARGET, "--target-dir", str(target), what="building the guests' programs",
          folder=paths.REPOSITORY / "tests/linux_programs")
    return target / setup.TARGET / "release" / name
