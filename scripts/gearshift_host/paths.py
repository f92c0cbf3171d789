"""Where things are: the repository, its cache and cargo's output."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def cache() -> Path:
    """The folder for everything fetched or generated: GEARSHIFT_CACHE, or .cache in the repository."""
    place = Path(os.environ.get("GEARSHIFT_CACHE") or REPOSITORY / ".cache").absolute()
    place.mkdir(parents=True, exist_ok=True)
    return place


def cargo_target() -> Path:
    """Cargo's output folder for the workspace."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target").absolute()
