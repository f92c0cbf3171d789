"""scripts/test: the stages and the nested tests, counted into one closing line.

Stages: fmt, clippy, clippy-bare, docs, arrows, tools (these host tools' own tests), host (cargo test), fuzz (tests/fuzz), nested (guests
in emulated machines; not with --quick). The nested cases are in tests/nested.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import time
import traceback
import unittest
from dataclasses import dataclass

from . import arrows, build, fuzzing, paths, setup
from .commandline import OneLineParser, positive
from .errors import UserError
from .progress import say
from .session import RUNNING, Interrupted, end_process, interrupts_raised

PARALLEL_MACHINES = 2
LINES_SHOWN = 60
STAGE_SECONDS = 1200
FUZZ_SECONDS = 10


@dataclass
class Tally:
    """Individual tests counted."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, passed: int, failed: int) -> None:
        """Counts further tests."""
        self.passed += passed
        self.failed += failed

    def close(self) -> int:
        """Prints the closing line and returns the exit status."""
        print(f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else ""), flush=True)
        return 0 if self.passed and not self.failed else 1


def cargo(*arguments: str, environment: dict | None = None) -> tuple:
    """Runs cargo in the repository: (whether it succeeded, what it printed)."""
    try:
        done = subprocess.run(["cargo", *arguments], cwd=paths.REPOSITORY, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env={**os.environ, **(environment or {}), "CARGO_TERM_COLOR": "never"}, timeout=STAGE_SECONDS)
    except subprocess.TimeoutExpired as hung:
        return False, (hung.stdout or b"").decode(errors="replace") + f"\ncargo {arguments[0]} did not end within {STAGE_SECONDS} s"
    return done.returncode == 0, done.stdout


def one(success: bool, output: str) -> tuple:
    """The result of a stage that is one test."""
    return int(success), int(not success), output


def fmt() -> tuple:
    """Formatting of all crates."""
    success, output = cargo("fmt", "--all", "--check")
    fuzz_success, fuzz_output = cargo("fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml")
    return one(success and fuzz_success, output + fuzz_output)


def clippy() -> tuple:
    """Lints of everything that builds on the host."""
    return one(*cargo("clippy", "--workspace", "--all-targets", "--", "-D", "warnings"))


def clippy_bare() -> tuple:
    """Lints of the hypervisor itself."""
    return one(*cargo("clippy", "-p", "kernel", "--features", "bare-metal", "--bin", build.BINARY, "--target", setup.TARGET, "--", "-D", "warnings"))


def docs() -> tuple:
    """Documentation without warnings, private items included: the readers of these rooms are their authors."""
    return one(*cargo("doc", "--workspace", "--no-deps", "--document-private-items", environment={"RUSTDOCFLAGS": "-D warnings -A rustdoc::private_intra_doc_links"}))


def check_arrows() -> tuple:
    """The arrows between the rooms."""
    wrong = arrows.violations()
    return one(not wrong, "\n".join(wrong))


def host() -> tuple:
    """All host tests."""
    success, output = cargo("test", "--workspace", "--no-fail-fast")
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", output, re.M)
    passed, failed = sum(int(r[0]) for r in results), sum(int(r[1]) for r in results)
    if not success and failed == 0:
        failed = 1  # it did not even build
    kept = [line for line in output.splitlines() if not re.match(r"test .* \.\.\. ok$|\s*(Compiling|Running|Doc-tests|Finished|Downloaded|Blocking)|running \d+ test", line)]
    return passed, failed, "\n".join(kept)


def tools() -> tuple:
    """The host tools' own tests."""
    sys.path.insert(0, str(paths.REPOSITORY / "tests"))
    suite = unittest.defaultTestLoader.discover(str(paths.REPOSITORY / "tests/host_tools"), pattern="*_test.py", top_level_dir=str(paths.REPOSITORY / "tests"))
    result = unittest.TestResult()
    suite.run(result)
    problems = [text for _, text in result.failures + result.errors]
    return result.testsRun - len(problems), len(problems), "\n".join(problems)


def fuzz() -> tuple:
    """Some seconds of each fuzz target, the same inputs each time (not with --quick)."""
    return fuzzing.fuzz(FUZZ_SECONDS, PARALLEL_MACHINES, fuzzing.targets(), repeatable=True)


STAGES = {"fmt": fmt, "clippy": clippy, "clippy-bare": clippy_bare, "docs": docs, "arrows": check_arrows, "tools": tools, "host": host, "fuzz": fuzz}


def run_stage(name: str, tally: Tally) -> None:
    """Runs a stage and shows its result, and its output if it failed."""
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    try:
        passed, failed, output = STAGES[name]()
    except UserError as error:
        passed, failed, output = 0, 1, str(error)
    tally.add(passed, failed)
    if failed:
        print("\n".join(output.splitlines()[-LINES_SHOWN:]))
    print(f"{name}: {passed} passed, {failed} failed in {time.monotonic() - start:.0f} s", flush=True)


def nested_cases() -> list:
    """The cases of tests/nested, in order."""
    sys.path.insert(0, str(paths.REPOSITORY / "tests"))
    from nested import cases  # pylint: disable=import-outside-toplevel

    return cases.ALL


def run_nested(cases: list, jobs: int, tally: Tally) -> None:
    """Runs nested cases, those that measure time one by one at the end."""
    print(f"nested: {len(cases)} cases ...", flush=True)
    start = time.monotonic()
    before = (tally.passed, tally.failed)
    try:
        hypervisor = build.hypervisor()
        setup.qemu()
    except UserError as error:
        say(f"error: {error}")
        tally.add(0, len(cases))
        print(f"nested: 0 passed, {len(cases)} failed: there is no hypervisor to run", flush=True)
        return
    prepare = sys.modules["nested.case"]
    failed_names = []

    def attempt(case) -> None:
        obstacle = case.obstacle()
        if obstacle:
            tally.skipped += 1
            print(f"skipped {case.name}: {obstacle}", flush=True)
            return
        began = time.monotonic()
        try:
            problem = prepare.run(case, hypervisor)
        except Exception:  # pylint: disable=broad-exception-caught  # One broken case must not hide what the others find.
            problem = traceback.format_exc()
        tally.add(int(not problem), int(bool(problem)))
        seconds = time.monotonic() - began
        if problem:
            failed_names.append(case.name)
            print(f"FAILED {case.name} ({seconds:.1f} s)\n{problem}", flush=True)
        else:
            print(f"ok {case.name} ({seconds:.1f} s)", flush=True)

    with interrupts_raised():
        try:
            prepare.prepare(cases)
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                waiting = [pool.submit(attempt, case) for case in cases if not case.alone]
                try:
                    for future in waiting:
                        future.result()
                except BaseException:
                    for future in waiting:
                        future.cancel()
                    for process in list(RUNNING):
                        end_process(process)
                    raise
            for case in cases:
                if case.alone:
                    attempt(case)
        except UserError as error:
            tally.add(0, 1)
            say(f"error: {error}")
    summary = f"nested: {tally.passed - before[0]} passed, {tally.failed - before[1]} failed in {time.monotonic() - start:.0f} s"
    print(summary + (f": {' '.join(failed_names)}" if failed_names else ""), flush=True)


def chosen(names: list, available: list) -> list:
    """The names that a word on the command line chooses: the equal one, else those that contain it."""
    found = []
    for word in names:
        matches = [word] if word in available else [name for name in available if word in name]
        if not matches:
            raise UserError(f"no stage or case matches {word!r} (see scripts/test --list)")
        found += [name for name in matches if name not in found]
    return found


def only_fuzz(seconds: int, jobs: int, names: list) -> tuple:
    """Runs the fuzz targets that the names choose: (passed, failed)."""
    passed, failed, output = fuzzing.fuzz(seconds, jobs, fuzzing.matching(names))
    if output:
        print(output)
    return passed, failed


def main(arguments: list) -> int:
    """Runs scripts/test and returns its exit status."""
    p = OneLineParser(prog="scripts/test", description="Checks Gearshift; the last line says how many tests passed and failed.", allow_abbrev=False)
    p.add_argument("names", nargs="*", metavar="NAME", help="run only the stages and nested cases of this name, or whose name contains it")
    p.add_argument("--quick", action="store_true", help="leave out the nested cases, which need emulators, and the fuzz targets")
    p.add_argument("--list", action="store_true", help="list the stages and the nested cases")
    p.add_argument("--fuzz", metavar="SECONDS", type=positive, help="only fuzz, each target so long; NAME chooses targets then")
    p.add_argument("--cpu", choices=("amd", "intel"), help="run only the nested cases on QEMU with AMD-V, or only those on Bochs with VT-x")
    p.add_argument("--jobs", metavar="N", type=int, default=min(PARALLEL_MACHINES, os.cpu_count() or 1), help="machines at once (default: %(default)s)")
    tally = Tally()
    try:
        given = p.parse_args(arguments)
        if given.fuzz and not given.list:
            tally.add(*only_fuzz(given.fuzz, max(1, given.jobs), given.names))
            return tally.close()
        cases = nested_cases()
        available = [*STAGES, *(case.name for case in cases)]
        if given.list:
            for name, stage in STAGES.items():
                print(f"{name:<28} {(stage.__doc__ or '').strip()}")
            for case in cases:
                print(f"{case.name:<28} {case.about}{' (slow: only by name)' if case.slow else ''}")
            return 0
        wanted = chosen(given.names, available) if given.names else available
        setup.rust()
        for name in STAGES:
            if name in wanted and not (given.quick and name == "fuzz"):
                run_stage(name, tally)
        nested = [case for case in cases if case.name in wanted and (not case.slow or case.name in given.names)]
        nested = [case for case in nested if given.cpu in (None, case.cpu)]
        if nested and not given.quick:
            run_nested(nested, max(1, given.jobs), tally)
    except UserError as error:
        say(f"error: {error}")
        if tally.passed + tally.failed == 0:
            return error.status
        tally.add(0, 1)
    except Interrupted as interrupted:
        return 128 + interrupted.args[0]
    except KeyboardInterrupt:
        return 130
    return tally.close()
