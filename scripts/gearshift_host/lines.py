"""Serial lines between this process and a machine: a socket that QEMU inherits or a pseudo-terminal that Bochs opens.

Key type: `Line`. Whoever reads gets bytes, None for "nothing yet" and empty bytes at the end.
"""

import errno
import os
import socket
import tty

READ_SIZE = 1 << 16


class Line:
    """Our end of a serial line, and the machine's end until the machine has it."""

    def __init__(self, ours: int, theirs: int):
        self._ours = ours
        self.theirs = theirs
        os.set_blocking(ours, False)

    @classmethod
    def by_socket(cls) -> "Line":
        """A line whose other end is an inherited socket."""
        ours, theirs = socket.socketpair()
        return cls(ours.detach(), theirs.detach())

    @classmethod
    def by_terminal(cls) -> "Line":
        """A line whose other end is a terminal device with a path."""
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        return cls(ours, theirs)

    def path(self) -> str:
        """The terminal's device path."""
        return os.ttyname(self.theirs)

    def fileno(self) -> int:
        """Our end, to wait for."""
        return self._ours

    def given_away(self) -> None:
        """Closes the machine's end in this process."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def read(self) -> bytes | None:
        """What has arrived; empty at the end of the line, None if there is nothing yet."""
        try:
            return os.read(self._ours, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EIO, errno.ECONNRESET, errno.EPIPE):
                return b""
            raise

    def write(self, data: bytes) -> int | None:
        """Sends what fits now: how many bytes; None if nobody listens any more."""
        try:
            return os.write(self._ours, data)
        except BlockingIOError:
            return 0
        except OSError:
            return None

    def close(self) -> None:
        """Closes both ends."""
        self.given_away()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
