"""Fuzzing: builds the targets of tests/fuzz and runs each over its kept inputs and new ones for some seconds.

An input that breaks something is left in cargo's output folder under fuzz/found; when it is mended, it becomes a seed: a file under
tests/fuzz/seeds/TARGET. New inputs that reach new code are kept beside, in fuzz/corpus, and make the next run start further on.
"""

import concurrent.futures
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import build, paths, setup
from .errors import UserError
from .session import RUNNING, end_process, interrupts_raised

FOLDER = paths.REPOSITORY / "tests/fuzz"
# An input that takes this long is an endless loop.
INPUT_SECONDS = 10
MEMORY_MIB = 2048
# Beyond the given time, for the last input and the end.
GRACE_SECONDS = 60
LONGEST_INPUT = 1024
LONGEST_IMAGE = 8192
LINES_SHOWN = 40


@dataclass
class Ran:
    """What became of one target."""

    target: str
    inputs: int
    problem: str


def targets() -> list:
    """The names of all targets."""
    return sorted(source.stem for source in (FOLDER / "src/bin").glob("*.rs"))


def build_targets() -> Path:
    """Builds all targets; the folder that holds them."""
    setup.rust()
    setup.cpp_compiler()
    target = paths.cargo_target() / "fuzz"
    build.cargo("build", "--release", "--target-dir", str(target), what="building the fuzz targets", folder=FOLDER)
    return target / "x86_64-unknown-linux-gnu/release"


def run_target(programs: Path, name: str, seconds: int, repeatable: bool) -> Ran:
    """Runs one target for so many seconds; repeatable: from the seeds alone and in the same order each time."""
    if repeatable:
        with tempfile.TemporaryDirectory() as corpus:
            return run_over(Path(corpus), programs, name, seconds, ["-seed=1"])
    return run_over(paths.cargo_target() / "fuzz/corpus" / name, programs, name, seconds, [])


def run_over(corpus: Path, programs: Path, name: str, seconds: int, options: list) -> Ran:
    """Runs one target over the inputs in `corpus` and new ones, which it keeps there."""
    found = paths.cargo_target() / "fuzz/found" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    longest = LONGEST_IMAGE if name == "guest_image" else LONGEST_INPUT
    command = [programs / name, corpus, f"-max_total_time={seconds}", f"-max_len={longest}", f"-timeout={INPUT_SECONDS}", "-print_final_stats=1",
               f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={found}/", *options]
    seeds = FOLDER / "seeds" / name
    if seeds.is_dir():
        command.append(seeds)
    process = subprocess.Popen(["nice", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=FOLDER)
    RUNNING.add(process)
    try:
        said = process.communicate(timeout=seconds + GRACE_SECONDS)[1].decode(errors="replace")
    except subprocess.TimeoutExpired:
        end_process(process)
        return Ran(name, 0, f"did not end within {seconds + GRACE_SECONDS} s")
    finally:
        RUNNING.discard(process)
    counted = re.search(r"number_of_executed_units: (\d+)", said)
    inputs = int(counted.group(1)) if counted else 0
    if process.returncode == 0 and inputs:
        return Ran(name, inputs, "")
    kept = [line for line in said.splitlines() if not re.match(r"#\d+|INFO:|\s*(at|\d+:) ", line)]
    return Ran(name, inputs, "\n".join(kept[-LINES_SHOWN:]) or f"ended with status {process.returncode}")


def fuzz(seconds: int, jobs: int, chosen: list, repeatable: bool = False) -> tuple:
    """Runs the chosen targets: (how many passed, how many failed, what to show)."""
    programs = build_targets()
    with interrupts_raised(), concurrent.futures.ThreadPoolExecutor(min(jobs, os.cpu_count() or 1)) as pool:
        try:
            results = list(pool.map(lambda name: run_target(programs, name, seconds, repeatable), chosen))
        except BaseException:
            for process in list(RUNNING):
                end_process(process)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for ran in results:
        print(f"  {ran.target:<16} {ran.inputs:>12,} inputs{', FAILED' if ran.problem else ''}", flush=True)
    print(f"  {'all':<16} {sum(ran.inputs for ran in results):>12,} inputs", flush=True)
    failed = [ran for ran in results if ran.problem]
    return len(results) - len(failed), len(failed), "\n".join(f"{ran.target}: {ran.problem}" for ran in failed)


def matching(words: list) -> list:
    """The targets that words on the command line choose: all of them without words."""
    if not words:
        return targets()
    found = []
    for word in words:
        matches = [name for name in targets() if word == name] or [name for name in targets() if word in name]
        if not matches:
            raise UserError(f"no fuzz target matches {word!r}: there are {', '.join(targets())}")
        found += [name for name in matches if name not in found]
    return found
