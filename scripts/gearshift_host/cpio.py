"""Writes newc cpio archives: the format of initramfs images and of Gearshift's module archive.

Reproducible: times and inode numbers depend on the order of the entries alone, the owner is always root.
"""

import stat
from pathlib import Path

BLOCK = 512


class Archive:
    """A newc cpio archive under construction."""

    def __init__(self):
        self._bytes = bytearray()
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
        self._pad(4)
        self._bytes += data
        self._pad(4)

    def _pad(self, to: int) -> None:
        self._bytes += bytes(-len(self._bytes) % to)

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Adds a folder."""
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, to: str) -> None:
        """Adds a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, to.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The archive with its trailer."""
        self._entry("TRAILER!!!", 0)
        self._pad(BLOCK)
        return bytes(self._bytes)


def of_files(files: dict) -> bytes:
    """An archive of regular files: name to path or bytes."""
    archive = Archive()
    for name, content in files.items():
        archive.file(name, content if isinstance(content, bytes) else Path(content).read_bytes())
    return archive.finish()
