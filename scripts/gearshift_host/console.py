"""The guest's serial console: the user's terminal, expectations on its text, and typing into it.

Key types: `Expectation` (has a text appeared, echo of typed lines aside?) and `RawTerminal` (the user's terminal while
attached). `EscapeKey` finds Ctrl-A x in what the user types. Pure but for `RawTerminal`.
"""

import os
import sys
import termios
import tty

ESCAPE = 0x01  # Ctrl-A
QUIT_KEY = ord("x")
NARROWEST_TERMINAL = 16  # columns; a line editor does not wrap before


class Expectation:
    """Waits for texts in a stream that also carries the echo of what was typed.

    The echo of a typed line is its first appearance after it was typed, and any later one that follows other text on its line, as
    after a prompt; it never begins inside a word. Bytes that may be the beginning of such an echo are held back until it is clear.
    Terminal escapes inside an echo, and line ends where a line editor wraps, do not hide it.
    """

    def __init__(self):
        self._counted = bytearray()
        self._held = b""
        self._typed = b""
        self._echo_seen = False
        self._line_has_text = False
        self._in_word = False

    def typed(self, line: bytes) -> None:
        """Tells that `line` was typed: what came before counts no more, and its echo will not count."""
        self._counted.clear()
        self._held = b""
        self._typed = printable(line)
        self._echo_seen = False
        self._in_word = False

    def feed(self, data: bytes) -> None:
        """Adds what the console printed."""
        data = self._held + data
        self._held = b""
        if not self._typed:
            self._counted += data
            self._line_has_text = bool(printable(data[max(data.rfind(b"\r"), data.rfind(b"\n")) + 1:]))
            return
        position = 0
        while position < len(data):
            if not self._in_word and data[position] == self._typed[0] and (self._line_has_text or not self._echo_seen):
                length, whole = echo_at(data, position, self._typed)
                if length and not whole:
                    self._held = data[position:]
                    return
                if whole:
                    self._echo_seen = True
                    self._counted += b"\n"
                    position += length
                    continue
            control = _control_length(data, position)
            if control > 1 and position + control == len(data):
                self._held = data[position:]  # an escape sequence, perhaps not whole yet
                return
            self._in_word = chr(data[position]).isalnum()
            if data[position] in b"\r\n":
                self._line_has_text = False
            elif data[position] > 0x20:
                self._line_has_text = True
            self._counted += data[position:position + max(control, 1)]
            position += max(control, 1)

    def appeared(self, text: bytes) -> bool:
        """Whether `text` has appeared, echoes aside."""
        return text in self._counted


def printable(data: bytes) -> bytes:
    """`data` without control characters and terminal escape sequences."""
    kept = bytearray()
    position = 0
    while position < len(data):
        skipped = _control_length(data, position)
        if skipped:
            position += skipped
        else:
            kept.append(data[position])
            position += 1
    return bytes(kept)


def _control_length(data: bytes, position: int) -> int:
    """How many bytes at `position` are a control character or an escape sequence; 0 for text."""
    if data[position] == 0x1B and data[position + 1:position + 2] == b"[":
        end = position + 2
        while end < len(data) and not 0x40 <= data[end] <= 0x7E:
            end += 1
        return min(end + 1, len(data)) - position
    return 1 if data[position] < 0x20 or data[position] == 0x7F else 0


def echo_at(data: bytes, position: int, typed: bytes) -> tuple:
    """Whether the printable text from `position` on is `typed`: (bytes covered, whether to its end); (0, False) if it is not."""
    start = position
    matched = 0
    while position < len(data):
        skipped = _control_length(data, position)
        if skipped:
            if data[position] in b"\r\n" and matched < NARROWEST_TERMINAL:
                return 0, False
            position += skipped
            continue
        if data[position] != typed[matched]:
            return 0, False
        matched += 1
        position += 1
        if matched == len(typed):
            return position - start, True
    return position - start, False


class EscapeKey:
    """Splits typed bytes into the wish to quit and all others, which the hypervisor gets: its own keys lie behind Ctrl-A too."""

    def __init__(self):
        self._pending = False

    def filter(self, data: bytes) -> tuple:
        """(bytes for the serial line, whether Ctrl-A x was typed)."""
        passed = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                if byte == QUIT_KEY:
                    return bytes(passed), True
                passed += bytes((ESCAPE, byte))
            elif byte == ESCAPE:
                self._pending = True
            else:
                passed.append(byte)
        return bytes(passed), False


class RawTerminal:
    """The user's terminal without line editing and signals, restored on exit; does nothing when standard input is none."""

    def __init__(self, wanted: bool):
        self._descriptor = sys.stdin.fileno() if wanted else -1
        self._saved = None

    def __enter__(self):
        if self._descriptor >= 0:
            self._saved = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor)
        return self

    def __exit__(self, *_):
        if self._saved is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)
            self._saved = None


def write_out(data: bytes) -> None:
    """Writes the guest's text to standard output, whole."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
