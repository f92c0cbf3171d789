"""What a nested test case is, and how one is run.

A case gives the options of a run and judges its outcome. `Case.check` gets the `Outcome` and returns what is wrong, or nothing.
Each run leaves its console, log and statistics in a folder of the cache named after the case.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from gearshift_host import guests, paths, setup
from gearshift_host.errors import UserError
from gearshift_host.session import Options, Outcome, Session

CONSOLE_LINES_SHOWN = 25
LOG_LINES_SHOWN = 20
LINE_SHOWN = 300


@dataclass
class Case:
    """A guest, the options it runs with and what must come of it.

    `script` is run by a Linux guest as its only work, with `files` (name to bytes or path) beside it; else `guest` names a tiny guest of
    tests/guests, else the guest is the default shell. `kernel` and `initrd` bring other images, `iso` a whole boot image,
    given the hypervisor. `status` is the exit status that scripts/run must have. `wanted` texts must appear on the console in this order, `unwanted`
    ones must not. `alone` keeps other machines from running at the same time. A `command` is a whole command line of the front door
    `tool`, with `environment` added; what it must say is in `said`. `unavailable` says why this machine cannot run the case, if so.
    `vms` writes a vms.toml and what it names into a folder. A `slow` case runs only when it is named.
    """

    name: str
    about: str
    script: str | None = None
    guest: str | None = None
    options: dict = field(default_factory=dict)
    status: int = 0
    wanted: tuple = ()
    unwanted: tuple = ()
    check: Callable[[Outcome], str] | None = None
    timeout: float = 180.0
    alone: bool = False
    command: tuple | None = None
    said: tuple = ()
    tool: str = "run"
    environment: dict = field(default_factory=dict)
    unavailable: Callable[[], str] | None = None
    kernel: Callable[[], Path] | None = None
    initrd: Callable[[], Path] | None = None
    files: Callable[[], dict] | None = None
    iso: Callable[[Path], Path] | None = None
    vms: Callable[[Path], Path] | None = None
    slow: bool = False

    @property
    def cpu(self) -> str:
        """Whose virtualization the case runs on: amd (QEMU) or intel (Bochs)."""
        return "intel" if self.options.get("cpu") == "intel" else "amd"

    def obstacle(self) -> str:
        """Why this machine cannot run the case; empty if it can."""
        return self.unavailable() if self.unavailable else ""


def folder_of(case: Case) -> Path:
    """Where the files of a case's run are."""
    return paths.cache() / "nested" / case.name


def prepare(cases: list) -> None:
    """Fetches and builds what the cases need, once, before machines run at the same time."""
    if any(case.guest for case in cases):
        from . import tiny  # pylint: disable=import-outside-toplevel

        tiny.build()
    if any(not case.guest for case in cases):
        guests.kernel()
        guests.shell_initramfs()
    if any(case.cpu == "intel" for case in cases):
        setup.bochs()
    if any(case.cpu == "intel" or case.iso or case.options.get("boot") for case in cases):
        setup.image_tree()
        setup.ovmf()
    for case in cases:
        if not case.obstacle():
            for bring in filter(None, (case.kernel, case.initrd, case.files)):
                bring()


def options_of(case: Case, hypervisor: Path) -> Options:
    """The options of a case's run."""
    folder = folder_of(case)
    fields = {"timeout": case.timeout, "log": str(folder / "log"), "report": str(folder / "report"), "stats": str(folder / "stats.json"),
              **case.options}
    if case.vms is not None:
        fields["vms"] = str(case.vms(folder))
    if case.iso is not None:
        fields["iso"] = case.iso(hypervisor)
    if case.kernel is not None:
        fields["kernel"] = str(case.kernel())
    if case.initrd is not None:
        fields["initrd"] = str(case.initrd())
    if case.script is not None:
        fields["initrd"] = str(guests.script_initramfs(case.script, folder / "initrd", case.files() if case.files else None))
    elif case.guest is not None and case.vms is None:
        from . import tiny  # pylint: disable=import-outside-toplevel

        fields["kernel"] = str(tiny.image(case.guest))
        fields.setdefault("append", "")
    return Options(prebuilt=hypervisor, **fields)


def run(case: Case, hypervisor: Path) -> str:
    """Runs a case; what is wrong with its outcome, or an empty text."""
    folder = folder_of(case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if case.command is not None:
            return run_command(case)
        outcome = Session(options_of(case, hypervisor), echo=False).run()
    except UserError as error:
        return f"  {error}"
    (folder / "console").write_bytes(outcome.console)
    problem = judge(case, outcome)
    if not problem:
        return ""
    shown = outcome.text().splitlines()[-CONSOLE_LINES_SHOWN:]
    log = [line[:LINE_SHOWN] for line in outcome.journal.text.splitlines()[-LOG_LINES_SHOWN:]]
    parts = [problem, f"(files in {folder})", "console, last lines:", *shown, "hypervisor's log, last lines:", *log]
    return "\n".join("  " + line for part in parts for line in part.splitlines())


def run_command(case: Case) -> str:
    """Runs a case that is a command line of a front door."""
    done = subprocess.run([str(paths.REPOSITORY / "scripts" / case.tool), *case.command], capture_output=True, text=True, timeout=case.timeout,
                          stdin=subprocess.DEVNULL, env={**os.environ, **case.environment})
    if done.returncode != case.status:
        return f"  status {done.returncode}, not {case.status}: {done.stderr.strip()[-500:]}"
    for text in case.said:
        if text not in done.stderr:
            return f"  {text!r} is not in what was said: {done.stderr.strip()[-500:]}"
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    if case.status == 2 and len(lines) != 1:
        return f"  {len(lines)} error lines, not one: {done.stderr.strip()[-500:]}"
    return ""


def judge(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome, or an empty text."""
    if outcome.status != case.status:
        return f"status {outcome.status}, not {case.status}: {outcome.reason or 'it ended in order'}"
    text = outcome.text()
    position = 0
    for wanted in case.wanted:
        found = text.find(wanted, position)
        if found < 0:
            return f"{wanted!r} is not on the console" + (f" after {text[max(0, position - 40):position]!r}" if position else "")
        position = found + len(wanted)
    for unwanted in case.unwanted:
        if unwanted in text:
            return f"{unwanted!r} is on the console"
    for text in case.said:
        if text not in outcome.journal.text and text not in outcome.reason:
            return f"{text!r} is neither in the hypervisor's log nor the reason given ({outcome.reason})"
    return case.check(outcome) if case.check else ""
