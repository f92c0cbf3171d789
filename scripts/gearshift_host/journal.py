"""The hypervisor's own log, and what a run learns from it.

Lines with a meaning: `STATS {json}` at the end of a run; a VM's stop report between `REPORT BEGIN name` and `REPORT END`, and
`REPORT JSON {json}` with the same; `ERROR text` for something the user must change; `PANIC` opens a crash dump that goes on to the end; `ENDED 0x10` says how the hypervisor ended,
with the value that it writes to the debug-exit port. A line may carry a time stamp or level before these words.
"""

import enum
import json
import re

PANIC_LINES_SHOWN = 80
EXITS_SHOWN = 16


class Ending(enum.Enum):
    """How the hypervisor says that it ended: the value it writes to the debug-exit port."""

    IN_ORDER = 0x10
    VM_STOPPED = 0x11
    PANIC = 0x12
    USER_ERROR = 0x13


def ending_of_qemu_status(status: int) -> Ending | None:
    """QEMU's exit status for a debug-exit write of v is (v << 1) | 1; None for any other status."""
    if status & 1 and (status >> 1) in {ending.value for ending in Ending}:
        return Ending(status >> 1)
    return None


class Journal:
    """The log's text with its meaningful lines picked out."""

    def __init__(self, raw: bytes):
        self.text = raw.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\0", "")

    def statistics(self) -> dict | None:
        """The last `STATS` object, or None."""
        for found in reversed(re.findall(r"\bSTATS (\{.*\})", self.text)):
            try:
                return json.loads(found)
            except json.JSONDecodeError:
                continue
        return None

    def reports(self) -> list:
        """The stop reports of all VMs, as (name, text)."""
        return [(name.strip(), text.rstrip("\n")) for name, text in re.findall(r"REPORT BEGIN([^\n]*)\n(.*?)^[^\n]*REPORT END", self.text, re.S | re.M)]

    def report(self) -> str:
        """The stop reports of all VMs, as written; empty if none."""
        return "\n".join(text for _, text in self.reports())

    def brief_report(self) -> str:
        """As `report`, with only the newest of each vCPU's exits."""
        kept: list = []
        exits: list = []
        for line in [*self.report().splitlines(), ""]:
            if line.startswith("    ") and re.match(r" *the last \d+ of \d+ exits", kept[-1] if kept else ""):
                exits.append(line)
                continue
            if len(exits) > EXITS_SHOWN:
                kept.append(f"    ... {len(exits) - EXITS_SHOWN} older ones: run with --report FILE to keep them")
            kept += exits[-EXITS_SHOWN:]
            exits = []
            kept.append(line)
        return "\n".join(kept[:-1])

    def report_objects(self) -> list:
        """The stop reports of all VMs as the hypervisor's JSON has them; one that was torn is left out."""
        found = []
        for text in re.findall(r"\bREPORT JSON (\{.*\})", self.text):
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return found

    def user_error(self) -> str:
        """The hypervisor's last `ERROR` line; empty if none."""
        found = re.findall(r"\bERROR:? +(.*)", self.text)
        return found[-1].strip() if found else ""

    def panic(self) -> str:
        """The crash dump; empty if none."""
        start = re.search(r"^.*\bPANIC\b", self.text, re.M)
        return "\n".join(self.text[start.start():].splitlines()[:PANIC_LINES_SHOWN]) if start else ""

    def ending(self) -> Ending | None:
        """What the last `ENDED` line says; None if there is none."""
        found = re.findall(r"\bENDED 0x([0-9a-f]+)", self.text)
        values = {ending.value: ending for ending in Ending}
        return values.get(int(found[-1], 16)) if found else None

    def tail(self, lines: int = 15) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-lines:])
