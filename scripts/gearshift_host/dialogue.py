"""A conversation with a run: wait for a text, then type at the console or send on the control line, step by step.

Key types: `Step`, `Dialogue`. A session with a dialogue ends with success after its last step.
"""

import time
from dataclasses import dataclass

CONSOLE, LOG = "console", "log"


@dataclass(frozen=True)
class Step:
    """Waits for `text` on the console or in the log (`on`), behind what the step before waited for on the same line, and for `pause`
    seconds more; then types `say` at the console and sends `order` on the control line."""

    text: str = ""
    on: str = CONSOLE
    pause: float = 0.0
    say: bytes = b""
    order: str = ""


class Dialogue:
    """Goes through steps as bytes arrive."""

    def __init__(self, steps):
        self._steps = list(steps)
        self._number = 0
        self._position = {CONSOLE: 0, LOG: 0}
        self._pause_ends: float | None = None
        # When each step was done, in seconds of the monotonic clock.
        self.moments: list = []

    def done(self) -> bool:
        """Whether all steps are done."""
        return self._number == len(self._steps)

    def awaited(self) -> str:
        """What the current step waits for, for messages."""
        return "" if self.done() else self._steps[self._number].text

    def pause_left(self) -> float | None:
        """Seconds until a pause ends; None outside of a pause."""
        return None if self._pause_ends is None else max(self._pause_ends - time.monotonic(), 0.0)

    def advance(self, console: bytes, log: bytes) -> tuple:
        """Goes on as far as what arrived allows: (what to type, what to send on the control line)."""
        said, ordered = bytearray(), bytearray()
        heard = {CONSOLE: console, LOG: log}
        while not self.done():
            step = self._steps[self._number]
            if self._pause_ends is None:
                found = heard[step.on].find(step.text.encode(), self._position[step.on])
                if found < 0:
                    break
                self._position[step.on] = found + len(step.text.encode())
                self._pause_ends = time.monotonic() + step.pause
            if self._pause_ends > time.monotonic():
                break
            self._pause_ends = None
            said += step.say
            ordered += (step.order + "\n").encode() if step.order else b""
            self.moments.append(time.monotonic())
            self._number += 1
        return bytes(said), bytes(ordered)
