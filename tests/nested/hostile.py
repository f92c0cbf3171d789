"""Cases of a guest that attacks its host, beside a healthy one on the same processor.

Whatever it does, the healthy one goes on, the host answers, and the attacker's memory is free again to the byte when it is gone.
"""

import re

from gearshift_host.dialogue import LOG, Step
from gearshift_host.session import Outcome

from . import programs
from .case import Case
from .several import machines, program

ROUNDS = 3
TRIPLE_FAULT = "stopped: triple fault"
DELIVERY = "stopped: event delivery into device space"
NOT_EMULATED = "stopped: an instruction that accesses the device"
# What is kept of a machine that stopped, until it is started again: its report as text and JSON.
REPORT_BYTES = 1 << 20
GONE = "hostile: its memory is free"


def attack(seconds: float) -> tuple:
    """Starts the attacker twice beside the healthy guest, stops it where it does not end by itself, and asks for the memory before and after."""
    steps = [Step("GUEST neighbour start", order="memory")]
    for number in range(ROUNDS):
        steps += [Step("MEMORY free=", on=LOG, order="start hostile"), Step("hostile: the guest starts", on=LOG)]
        # The first time it is there for as long as the healthy one measures.
        steps.append(Step("AWAY times=", order="stop hostile") if number == 0 else Step("", pause=seconds, order="stop hostile"))
        steps.append(Step(GONE, on=LOG, order="memory"))
    return tuple([*steps, Step("MEMORY free=", on=LOG)])


def hostile(case: str, about: str, *said: str, millis: int = 800, timeout: float = 60) -> Case:
    """A case of the guest "hostile" beside a healthy one; `said` is what its report says, if it stops with one."""

    def survived(outcome: Outcome) -> str:
        text = outcome.journal.text
        missing = [part for part in said if part not in text]
        if missing:
            return f"{missing} not in the hypervisor's log"
        first, *later = [int(free) for free in re.findall(r"MEMORY free=(\d+) ", text)]
        if len(later) != ROUNDS or len(set(later)) != 1:
            return f"free memory was {later} after the rounds"
        return "" if 0 <= first - later[0] <= REPORT_BYTES else f"free memory was {first} before, {later[0]} after the first round"

    definitions = machines(program("healthy", "neighbour", f"role=run millis={millis} then=spin"),
                           program("hostile", "hostile", f"case={case} {programs.excused('hostile')}", "autostart = false"))
    return Case(f"hostile-{case}", f"a healthy guest beside one that attacks: {about}", guest="hostile", vms=definitions, check=survived, timeout=timeout,
                options={"dialogue": attack(millis / 1000)})


CASES = [
    programs.program("hostile", "a guest that tries every port, MSR and register, and storms of interrupts, is alive afterwards", "case=all", timeout=120),
    hostile("all", "every port, MSR, leaf and register, storms of interrupts", millis=4000, timeout=120),
    hostile("debug-loop", "#DB whose delivery meets a breakpoint"),
    hostile("alignment-loop", "#AC whose delivery is misaligned"),
    hostile("pin-storm", "a level-triggered interrupt that nobody quiets"),
    hostile("split-lock", "a locked operation across memory and a device", NOT_EMULATED),
    hostile("exception-loop", "#UD in the handler of #UD, until the stack ends", TRIPLE_FAULT),
    hostile("page-fault-loop", "page faults in the handler of page faults", TRIPLE_FAULT),
    hostile("stack-nowhere", "a stack where no memory is", DELIVERY),
    hostile("gates-nowhere", "an IDT where no memory is", DELIVERY),
    hostile("descriptors-nowhere", "a GDT where no memory is", NOT_EMULATED),
    hostile("task-switch", "a task gate, which 64-bit mode does not have", TRIPLE_FAULT),
    hostile("device-as-stack", "a stack in a device's registers", NOT_EMULATED),
    hostile("device-as-gates", "an IDT in a device's registers", DELIVERY),
    hostile("cr3-nonsense", "page tables beyond the physical addresses, which QEMU lets into CR3", "VM entry refused"),
    hostile("halt-for-ever", "HLT with interrupts off"),
]
