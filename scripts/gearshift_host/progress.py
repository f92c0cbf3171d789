"""One progress line on standard error for each step that takes over a second.

On a terminal the line counts the seconds in place; elsewhere a line says that the step began and another that it ended.
"""

import contextlib
import sys
import threading
import time

SHOW_AFTER_SECONDS = 1.0


def say(text: str) -> None:
    """Prints one line for the user, apart from the guest's console on standard output."""
    print(f"gearshift: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str):
    """Shows `what` and its duration while the body runs, if that takes over a second."""
    start = time.monotonic()
    ended = threading.Event()
    live = sys.stderr.isatty()
    shown = threading.Event()

    def show() -> None:
        if ended.wait(SHOW_AFTER_SECONDS):
            return
        shown.set()
        if not live:
            say(f"{what} ...")
            return
        while not ended.is_set():
            print(f"\r\x1b[Kgearshift: {what} ... {time.monotonic() - start:.0f} s", end="", file=sys.stderr, flush=True)
            ended.wait(1.0)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        ended.set()
        watcher.join()
        if shown.is_set():
            if live:
                print("\r\x1b[K", end="", file=sys.stderr)
            say(f"{what}: {outcome} in {time.monotonic() - start:.0f} s")
