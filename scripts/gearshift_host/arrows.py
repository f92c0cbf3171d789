"""Checks the arrows between the crates against the complete list of the design: any other arrow is an error."""

import json
import subprocess
from pathlib import Path

from . import paths
from .errors import UserError

ANYTHING = "*"
ALLOWED = {
    "kernel": {"boot", "machine", "vmx", "svm", "vcpu", "devices", "memory"},
    "machine": {"vcpu", "devices", "memory"},
    "vmx": {"vcpu"},
    "svm": {"vcpu"},
    "vcpu": {"memory"},
    "devices": {"memory"},
    "memory": set(),
    "boot": set(),
    "tests": ANYTHING,
}
ROOMS = {*ALLOWED, "scripts", "docs", "target"}
FORBIDDEN_NAMES = ("util", "utils", "common", "helper", "helpers", "manager", "base")


def crate_graph() -> dict:
    """Folder of each workspace crate to the folders of the workspace crates that it depends on, in any way."""
    done = subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=paths.REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"cargo metadata failed: {done.stderr.strip()[-300:]}", 3)
    root = paths.REPOSITORY.resolve()
    graph = {}
    for package in json.loads(done.stdout)["packages"]:
        folder = str(Path(package["manifest_path"]).resolve().parent.relative_to(root))
        depends = [d["path"] for d in package["dependencies"] if d.get("path")]
        graph[folder] = {str(Path(path).resolve().relative_to(root)) for path in depends}
    return graph


def violations() -> list:
    """What contradicts the design, one line each."""
    found = []
    for crate, depends in sorted(crate_graph().items()):
        if crate not in ALLOWED:
            found.append(f"{crate}: no room of this name in the design")
            continue
        allowed = ALLOWED[crate]
        if allowed is ANYTHING:
            continue
        found += [f"{crate} -> {other}: not among the design's arrows" for other in sorted(depends - allowed)]
    tracked = subprocess.run(["git", "ls-files"], cwd=paths.REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    for file in tracked:
        parts = file.split("/")
        if len(parts) > 1 and parts[0] not in ROOMS and not parts[0].startswith("."):
            found.append(f"{parts[0]}/: joins the top level, which is closed")
        for part in parts:
            if part.rsplit(".", 1)[0] in FORBIDDEN_NAMES:
                found.append(f"{file}: nothing is called {part}")
    return sorted(set(found))
