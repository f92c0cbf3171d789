"""Packages from the machine's own package archive, without touching the system's package state.

The mirror is taken from the machine's apt sources (one-line `.list` and deb822 `.sources` files); the suite may be
another one than the system's. Everything lives in the cache: `apt` is pointed at private lists, an empty package status
and a private download folder, and the packages are unpacked into a private tree, so that neither root nor sudo is needed and
no other version on the system is disturbed. apt checks signatures and hashes as always.

Key types: `Mirror` (where packages come from), `Bundle` (which packages, from which suites), `Program` (how a program of
an unpacked bundle is started: through the bundle's own ld.so with the bundle's own libraries).
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import paths
from .errors import UserError
from .progress import step

LAYOUT = "1"  # of an unpacked bundle; a change unpacks everything anew

DEBIAN_SUITES = {"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"}
KEYRINGS = {
    "debian": ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"],
    "ubuntu": ["/usr/share/keyrings/ubuntu-archive-keyring.gpg"],
}
COMPONENTS = {"debian": "main", "ubuntu": "main universe"}


@dataclass(frozen=True)
class Entry:
    """One binary-package line of the machine's apt sources."""

    uri: str
    suites: tuple
    components: tuple
    signed_by: str = ""


@dataclass(frozen=True)
class Mirror:
    """Where a distribution's packages come from, and the key that signs them."""

    distribution: str
    uri: str
    security_uri: str = ""
    keyring: str = ""


@dataclass(frozen=True)
class Bundle:
    """Packages that are fetched and unpacked together.

    `suites` are names in the mirror, of which those ending in -security come from its security archive; `prefer` is the one
    whose versions win; without `closure` the dependencies are left out. `members` are tar patterns of what is unpacked, all if empty.
    """

    name: str
    mirror: Mirror
    suites: tuple
    packages: tuple
    prefer: str = ""
    closure: bool = True
    members: tuple = ()

    def key(self) -> str:
        """A name that changes with the definition of the bundle."""
        chosen = (self.members,) if self.members else ()
        text = repr((LAYOUT, self.mirror.distribution, self.suites, self.packages, self.prefer, self.closure, *chosen))
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Program:
    """A program with what must precede it on the command line and stand in its environment."""

    argv: tuple
    environment: dict = field(default_factory=dict)

    def command(self, *arguments: str) -> list:
        """The whole command line."""
        return [*self.argv, *arguments]

    def env(self) -> dict:
        """The whole environment for `subprocess`."""
        return {**os.environ, **self.environment}


def os_release() -> dict:
    """The fields of /etc/os-release."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            name, equals, value = line.partition("=")
            if equals:
                fields[name] = value.strip().strip('"')
    return fields


def parse_list(text: str) -> list:
    """The entries of a one-line-format sources file."""
    entries = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*?)\s*(?:#.*)?$", line)
        if match:
            options, uri, suite, components = match.groups()
            signed = re.search(r"signed-by=(\S+)", options or "")
            entries.append(Entry(uri, (suite,), tuple(components.split()), signed.group(1) if signed else ""))
    return entries


def parse_deb822(text: str) -> list:
    """The entries of a deb822-format sources file; a key written into the file itself is left out."""
    entries = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields, last = {}, None
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and last:
                fields[last] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                last = name.strip().lower()
                fields[last] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        signed = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            suites = tuple(fields.get("suites", "").split())
            components = tuple(fields.get("components", "").split())
            entries.append(Entry(uri, suites, components, signed if signed.startswith("/") and " " not in signed else ""))
    return entries


def system_entries(etc_apt: Path = Path("/etc/apt")) -> list:
    """All entries of the machine's apt sources, in apt's order."""
    entries = []
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    for file in files:
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
            if file.suffix == ".list":
                entries += parse_list(text)
            elif file.suffix == ".sources":
                entries += parse_deb822(text)
    return entries


def pick_mirror(distribution: str, entries: list, own_suites: set) -> Mirror | None:
    """The distribution's main archive (and its security archive, if named) among the machine's entries."""

    def score(entry: Entry) -> int:
        path = entry.uri.rstrip("/").rsplit("/", 1)[-1]
        companions = sum(1 for other in entries if other.uri == entry.uri for suite in other.suites if suite.endswith("-updates"))
        return (4 if path == distribution else 0) + (2 if companions else 0)

    main = [e for e in entries if "main" in e.components and own_suites & set(e.suites) and not e.uri.startswith("cdrom:")]
    if not main:
        return None
    best = max(main, key=score)
    security = next((e.uri for e in entries if any(suite.endswith("-security") for suite in e.suites)), "")
    keyring = next((k for k in KEYRINGS[distribution] if os.path.exists(k)), best.signed_by)
    return Mirror(distribution, best.uri, security, keyring)


def debian_mirror() -> Mirror | None:
    """A Debian archive: the machine's own on Debian, else the one that GEARSHIFT_DEBIAN_MIRROR names."""
    named = os.environ.get("GEARSHIFT_DEBIAN_MIRROR")
    if named:
        keyring = next((k for k in KEYRINGS["debian"] if os.path.exists(k)), "")
        if not keyring:
            raise UserError("GEARSHIFT_DEBIAN_MIRROR is set but Debian's keys are missing: install debian-archive-keyring")
        return Mirror("debian", named, "", keyring)
    suites = DEBIAN_SUITES | {os_release().get("VERSION_CODENAME", "")} if os_release().get("ID") == "debian" else DEBIAN_SUITES
    return pick_mirror("debian", system_entries(), suites)


def ubuntu_mirror() -> Mirror | None:
    """The machine's Ubuntu archive, if it has one."""
    return pick_mirror("ubuntu", system_entries(), {os_release().get("UBUNTU_CODENAME", "")})


def sources_text(bundle: Bundle) -> str:
    """The private sources file of a bundle."""
    groups = {}
    for suite in bundle.suites:
        security = suite.endswith("-security") and bundle.mirror.distribution == "debian"
        if security and not bundle.mirror.security_uri:
            continue
        groups.setdefault(bundle.mirror.security_uri if security else bundle.mirror.uri, []).append(suite)
    signed = f"Signed-By: {bundle.mirror.keyring}\n" if bundle.mirror.keyring else ""
    components = COMPONENTS[bundle.mirror.distribution]
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\nComponents: {components}\n{signed}" for uri, suites in groups.items()
    )


class PrivateApt:
    """apt with its own sources, lists, package status and download folder."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        text = sources_text(bundle)
        self.root = paths.cache() / "apt" / hashlib.sha256(text.encode()).hexdigest()[:10]
        self.downloads = self.root / "archives"
        for folder in (self.root / "lists" / "partial", self.downloads / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.root / "status").write_text("")
        (self.root / "private.sources").write_text(text)
        places = {
            "Dir::State": self.root,
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": self.root / "status",
            "Dir::State::extended_states": self.root / "extended_states",
            "Dir::Cache": self.root,
            "Dir::Cache::archives": self.downloads,
            "Dir::Etc::sourcelist": self.root / "private.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Log": self.root,
            "APT::Sandbox::User": "",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "1",
        }
        self.options = [part for name, value in places.items() for part in ("-o", f"{name}={value}")]
        # The system's own hooks that run after an update are for the system's state.
        self.configuration = self.root / "apt.conf"
        self.configuration.write_text("#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n")

    def run(self, tool: str, *arguments: str) -> str:
        """Runs apt-get or apt-cache privately; its output, or a UserError with the reason."""
        command = [tool, *self.options, "-c", str(self.configuration), *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=self.downloads, env=environment)
        except FileNotFoundError:
            raise UserError(f"{tool} is missing: set-up knows Debian and Ubuntu only") from None
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("E:", "W:"))]
            reason = "; ".join(lines[:3]) or done.stderr.strip()[-300:]
            raise UserError(f"{tool} could not get {', '.join(self.bundle.packages)}: {reason}", 3)
        return done.stdout

    def update(self) -> None:
        """Fetches the package lists."""
        self.run("apt-get", "update")

    def version_candidates(self, package: str) -> list:
        """The versions of a package in the bundle's suites, as apt lists them."""
        rows = [line.split("|") for line in self.run("apt-cache", "madison", package).splitlines()]
        return [row[1].strip() for row in rows if len(row) > 1]

    def download(self) -> list:
        """Fetches the bundle's packages (with all they depend on, if it is a closure); the .deb files."""
        shutil.rmtree(self.downloads)
        (self.downloads / "partial").mkdir(parents=True)
        target = ["-t", self.bundle.prefer] if self.bundle.prefer else []
        if self.bundle.closure:
            self.run("apt-get", *target, "install", "-y", "--no-install-recommends", "--download-only", *self.bundle.packages)
        else:
            self.run("apt-get", *target, "download", *self.bundle.packages)
        return sorted(self.downloads.glob("*.deb"))

    def dependency(self, package: str, pattern: str, fallback: str | None = None) -> str:
        """The first package that `package` depends on and whose name matches `pattern`; `fallback`, if given, where there is none."""
        target = ["-t", self.bundle.prefer] if self.bundle.prefer else []
        for line in self.run("apt-cache", *target, "show", package).splitlines():
            if line.startswith("Depends:"):
                for name in re.findall(r"[a-z0-9][a-z0-9+.-]+", line[len("Depends:"):]):
                    if re.fullmatch(pattern, name):
                        return name
        if fallback is not None:
            return fallback
        raise UserError(f"{package} depends on nothing like {pattern}", 3)


@contextlib.contextmanager
def cache_lock():
    """Keeps two set-ups from filling the cache at once."""
    with open(paths.cache() / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("waiting for another set-up that uses the same cache"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack(files: list, tree: Path, members: tuple = ()) -> None:
    """Unpacks .deb files, or what of them matches the patterns, into one tree with a merged /usr."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    for file in files:
        reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE)
        writer = subprocess.run(
            ["tar", "-C", str(tree), "-x", "--keep-directory-symlink", "--no-same-owner", "--no-same-permissions",
             *(["--wildcards", *members] if members else [])],
            stdin=reader.stdout, capture_output=True, text=True,
        )
        reader.stdout.close()
        # tar calls a pattern that matches nothing an error; whoever asks for members looks whether they came.
        if reader.wait() != 0 or writer.returncode != 0 and not members:
            raise UserError(f"cannot unpack {file.name}: {writer.stderr.strip()[-300:]}", 3)


def installed(bundle: Bundle, what: str) -> Path:
    """The tree of an unpacked bundle, fetched first if it is not there yet; `what` names it for the user."""
    place = paths.cache() / "packages" / bundle.key()
    if (place / "complete").exists():
        return place / "tree"
    with cache_lock():
        if (place / "complete").exists():
            return place / "tree"
        with step(f"fetching {what}"):
            apt = PrivateApt(bundle)
            apt.update()
            files = apt.download()
        with step(f"unpacking {what.partition(' (')[0]}"):
            shutil.rmtree(place, ignore_errors=True)
            unpack(files, place / "tree", bundle.members)
            (place / "complete").write_text("".join(f"{file.name}\n" for file in files))
            shutil.rmtree(apt.downloads)
    return place / "tree"


def program(tree: Path, path: str, library_folders: tuple = (), environment: dict | None = None) -> Program:
    """A program of an unpacked tree, started through the tree's own ld.so so that the system's libraries do not matter."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    folders = [libraries, *(libraries / name for name in library_folders), tree / "usr/lib"]
    loader = libraries / "ld-linux-x86-64.so.2"  # not the one in lib64: an absolute link, out of the tree
    argv = (str(loader), "--library-path", ":".join(map(str, folders)), "--argv0", Path(path).name, str(tree / path))
    return Program(argv, environment or {})
