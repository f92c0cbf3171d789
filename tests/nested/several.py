"""Cases with several virtual machines on one host: consoles, the monitor, memory, shares of a processor, clocks."""

import re
import shutil
from pathlib import Path

from gearshift_host import guests
from gearshift_host.dialogue import LOG, Step
from gearshift_host.session import Outcome

from . import tiny
from .case import Case

PROMPT = "~ # "
MONITOR = "gearshift> "
SLICE_MICROS = 5000
# What an exchange of machines costs, and what the one that is measured takes to look.
SLACK_MICROS = 500
CLOCK_SECONDS, LONG_SECONDS = 60, 600
CLOCK_TOLERANCE_SECONDS = 1.0


def linux(name: str, *fields: str) -> str:
    """The definition of a machine with the default guest."""
    return "\n".join(["[[vm]]", f'name = "{name}"', 'kernel = "kernel"', 'initrd = "initrd"', 'memory = "128M"',
                      f'append = "console=ttyS0 quiet machine={name}"', *fields, ""])


def program(name: str, guest: str, append: str, *fields: str) -> str:
    """The definition of a machine with a tiny guest."""
    return "\n".join(["[[vm]]", f'name = "{name}"', f'kernel = "{guest}"', 'memory = "32M"', f'append = "{append}"', *fields, ""])


def machines(*definitions: str):
    """Writes the definitions and the files that they name into a case's folder."""

    def written(folder: Path) -> Path:
        text = "\n".join(definitions)
        for name in set(re.findall(r'kernel = "(.*)"', text)) - {"kernel"}:
            shutil.copy(tiny.image(name), folder / name)
        place = folder / "vms.toml"
        place.write_text(text, encoding="utf-8")
        return place

    return written


def keys(number: str) -> bytes:
    """Ctrl-A and a key."""
    return b"\x01" + number.encode()


def each_ended(*ends: str):
    """The statistics say of each machine how it ended."""

    def check(outcome: Outcome) -> str:
        found = tuple(machine["end"] for machine in (outcome.statistics or {}).get("vms", []))
        return "" if found == ends else f"the machines ended {found}, not {ends}"

    return check


def memory_comes_back(outcome: Outcome) -> str:
    """The hypervisor's free memory is the same, to the byte, whenever it was asked for."""
    found = re.findall(r"MEMORY free=\d+ .*", outcome.journal.text)
    if len(found) < 3:
        return f"asked for {len(found)} times"
    return "" if len(set(found)) == 1 else f"{len(set(found))} different answers: {found[0]} ... {found[-1]}"


def start_and_stop(times: int) -> tuple:
    """Starts and stops the machine "again", and asks for the free memory, while another one runs."""
    steps = [Step(PROMPT, order="start again")]
    for _ in range(times):
        steps.append(Step("again: the guest starts", on=LOG, pause=0.03, order="stop again"))
        steps.append(Step("again: its memory is free", on=LOG, order="memory"))
        steps.append(Step("MEMORY free=", on=LOG, order="start again"))
    return tuple([*steps, Step("again: the guest starts", on=LOG)])


def away(share: float):
    """The guest was never away for longer than a slice, and its neighbour had this share of the processor."""

    def check(outcome: Outcome) -> str:
        found = re.search(r"AWAY times=(\d+) longest=(\d+) total=(\d+) of=(\d+)", outcome.text())
        if not found:
            return "the guest did not say how long it was away"
        _, longest, total, whole = map(int, found.groups())
        if longest > SLICE_MICROS + SLACK_MICROS:
            return f"away for {longest} microseconds at once"
        had = total / whole
        return "" if abs(had - share) < 0.05 else f"the neighbour had {had:.3f} of the processor, not {share}"

    return check


def woken_in_time(outcome: Outcome) -> str:
    """The guest that sleeps was never woken later than a slice."""
    found = re.search(r"LATE times=(\d+) longest=(\d+) total=(\d+)", outcome.text())
    if not found:
        return "the guest did not say how late it was"
    longest = int(found.group(2))
    return "" if longest <= SLICE_MICROS + SLACK_MICROS else f"woken {longest} microseconds late"


def neighbours(name: str, about: str, role: str, check, *weights: str) -> Case:
    """One guest that measures beside one that spins with its interrupts off, in counted instructions."""
    definitions = machines(program("measures", "neighbour", f"role={role}", *weights), program("spins", "neighbour", "role=spin"))
    return Case(f"vms-{name}", about, guest="neighbour", vms=definitions, check=check, timeout=180,
                options={"icount": True, "dialogue": (Step("RESULT neighbour pass"),)})


def clocks_right(outcome: Outcome) -> str:
    """Both guests counted as many seconds as the host between two questions."""
    heard = [outcome.moments[number] for number in ANSWERS]
    said = {label: (int(date), float(up)) for label, date, up in re.findall(r"\nTIME-(\w) (\d+) ([\d.]+)", outcome.text())}
    if sorted(said) != list("abcd"):
        return f"answers to {sorted(said)}, not to all four questions"
    for guest, first, second, host in (("one", "a", "c", heard[2] - heard[0]), ("two", "b", "d", heard[3] - heard[1])):
        date, uptime = (said[second][i] - said[first][i] for i in (0, 1))
        if abs(date - host) > CLOCK_TOLERANCE_SECONDS + 1 or abs(uptime - host) > CLOCK_TOLERANCE_SECONDS:
            return f"{guest} counted {date} s by date, {uptime:.2f} s by uptime, where the host counted {host:.2f} s"
    return ""


def ask_time(label: str) -> tuple:
    """Asks the guest for its time when it prompts, and waits for its whole answer."""
    question = f"echo TIME-{label} $(date +%s) $(cut -d' ' -f1 /proc/uptime)\r"
    return Step("", say=b"\r"), Step(PROMPT, say=question.encode()), Step(f"\nTIME-{label} "), Step(PROMPT)


def switch_to(number: int, name: str) -> tuple:
    """Moves the focus."""
    return Step("", say=keys(str(number))), Step(f"console of {name}]")


BUSY = Step(PROMPT, say=b"while :; do :; done &\r")


def look_twice(seconds: int) -> tuple:
    """Two looks at the clocks of two busy guests, so long apart."""
    return (BUSY, *switch_to(2, "two"), BUSY, *switch_to(1, "one"),
            *ask_time("a"), *switch_to(2, "two"), *ask_time("b"), Step("", pause=seconds),
            *switch_to(1, "one"), *ask_time("c"), *switch_to(2, "two"), *ask_time("d"))


# When, counted by steps, the four answers come; the same however long the pause is.
ANSWERS = [number for number, step in enumerate(look_twice(0)) if step.text.startswith("\nTIME-")]


def clocks(name: str, about: str, seconds: int, host_cpus: int, slow: bool = False) -> Case:
    """Two busy guests whose clocks are compared with the host's."""
    return Case(f"vms-{name}", about, alone=True, timeout=seconds + 180, vms=machines(linux("one"), linux("two")), check=clocks_right, slow=slow,
                options={"dialogue": look_twice(seconds), "host_cpus": host_cpus})


FOCUS = (
    Step(PROMPT, say=b"cat /proc/cmdline\r"), Step("machine=one\r\n"), Step(PROMPT, say=keys("2")),
    Step("[gearshift: console of two]"), Step(PROMPT, say=b"cat /proc/cmdline\r"), Step("machine=two\r\n"),
    # The other one prints while nobody looks, and is shown whole again.
    Step(PROMPT, say=keys("1")), Step("console of one]"), Step(PROMPT, say=b"(sleep 1; seq 1 40; echo unseen) &\r" + keys("2")),
    Step("console of two]", pause=3, say=keys("9")), Step("no machine 9"), Step("", say=keys("1")), Step("console of one]"), Step("\r\n40\r\nunseen\r\n"),
    # Ctrl-A for the guest: the shell's line editor goes to the start of the line.
    Step("", say=b"\rho two" + b"\x01\x01" + b"ec\r"), Step("\ntwo\r\n"), Step(PROMPT, say=b"poweroff\r" ), Step("one: powered off"),
    Step("", say=keys("2")), Step("console of two]"), Step(PROMPT, say=b"poweroff\r"), Step("ENDED 0x10", on=LOG),
)

TALK = (
    Step(PROMPT, say=keys("m")), Step(MONITOR, say=b"lst\x7f\x7fist\r"), Step("1 one"), Step("running"), Step("2 two"), Step("stopped with a report"),
    Step(MONITOR, say=b"report two\r"), Step("vCPU 0 stopped: triple fault"), Step(MONITOR, say=b"stats\r"), Step("port_write"),
    Step(MONITOR, say=b"log\r"), Step("INFO"), Step(MONITOR, say=b"start three\r"), Step("three: the guest starts", on=LOG, say=b"stop three\r"),
    Step("three: powered off"), Step("", say=b"stop four\r"), Step("no machine 'four'"), Step(MONITOR, say=b"quit\r"), Step("ENDED 0x11", on=LOG),
)


def refused(name: str, about: str, definitions: str, *said: str) -> Case:
    """A file that the hypervisor refuses in one line that names line and field."""
    return Case(f"vms-{name}", about, vms=machines(definitions), status=2, said=("vms.toml line ", *said), timeout=60)


CASES = [
    Case("vms-focus", "two guests on one line: focus, text that nobody saw, Ctrl-A for the guest, power-off of each",
         vms=machines(linux("one"), linux("two")), options={"dialogue": FOCUS}, check=each_ended("powered_off", "powered_off")),
    Case("vms-monitor", "the monitor lists, starts, stops and reports while a guest runs", guest="unsupported",
         vms=machines(linux("one"), program("two", "unsupported", "case=triple-fault"), linux("three", "autostart = false")),
         options={"dialogue": TALK}, check=each_ended("powered_off", "stopped", "powered_off")),
    refused("unknown-field", "an unknown field is named with its line", linux("one", "colour = 7"), "line 7: unknown field 'colour'"),
    refused("bad-size", "a bad memory size is named with line and field", linux("one").replace("128M", "lots"), "line 5: field 'memory'", "lots"),
    refused("same-name", "two machines of one name are refused", linux("one") + linux("one"), "another machine named 'one'"),
    refused("no-toml", "a file that is no TOML is refused", linux("one") + "\n= 5\n", "line 8"),
    Case("vms-too-large", "a machine too large for the host is an error line, and the others run",
         vms=machines(linux("one"), linux("large").replace("128M", "4G")), said=("large: not enough memory",),
         options={"host_memory": 512 << 20, "expect": PROMPT}),
    Case("vms-too-many", "one machine too many is an error line, and the others run",
         vms=machines(linux("one"), *(linux(f"more-{number}") for number in range(4))), said=("more-3: not enough memory",),
         options={"host_memory": 512 << 20, "expect": PROMPT}),
    Case("vms-start-stop", "a machine started and stopped 20 times leaves the hypervisor's memory as it was, to the byte",
         vms=machines(linux("one"), linux("again", "autostart = false")), options={"dialogue": start_and_stop(20)}, check=memory_comes_back),
    Case("vms-start-stop-200", "the same 200 times", slow=True, timeout=900,
         vms=machines(linux("one"), linux("again", "autostart = false")), options={"dialogue": start_and_stop(200)}, check=memory_comes_back),
    neighbours("fair", "two busy guests share a processor evenly, and neither waits longer than a slice", "run", away(0.5)),
    neighbours("weights", "a guest of three times the weight has three times the share", "run", away(0.25), "weight = 768"),
    neighbours("wake", "a guest that sleeps is woken in time beside one that spins with its interrupts off", "nap", woken_in_time),
    clocks("clocks", "the clocks of two busy guests are right over a minute", CLOCK_SECONDS, 1),
    clocks("ten-minutes", "two busy guests side by side for ten minutes, their clocks right", LONG_SECONDS, 1, slow=True),
    clocks("ten-minutes-smp", "the same on two processors", LONG_SECONDS, 2, slow=True),
    Case("vms-start-stop-smp", "a machine with two processors started and stopped 20 times on two others leaves no memory behind",
         vms=machines(linux("one", "vcpus = 2"), linux("again", "autostart = false", "vcpus = 2")), check=memory_comes_back,
         options={"dialogue": start_and_stop(20), "host_cpus": 2}),
    Case("vms-focus-intel", "two guests on one line on VT-x: focus, text that nobody saw, power-off of each", alone=True, timeout=300,
         vms=machines(linux("one"), linux("two")), options={"dialogue": FOCUS, "cpu": "intel"}, check=each_ended("powered_off", "powered_off")),
]
