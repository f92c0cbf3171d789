"""Cases with the stock Debian kernel: what a Linux user sees of the virtual machine."""

import hashlib
import base64
import re
import subprocess
import time
from pathlib import Path
from typing import Callable

from gearshift_host import guests, paths, setup
from gearshift_host.session import Options, Outcome, Session

from .case import Case

BANNER = "Gearshift guest:"
PROMPT = "~ # "
SLEEP_SECONDS = 10
SLEEP_TOLERANCE = 0.01
CLOCK_TOLERANCE_SECONDS = 2.0
# The host's RTC, the guest's RTC and what date prints are each cut to whole seconds; and one for a busy machine.
CLOCK_BEHIND_SECONDS = 4.0
# Linux draws its memory layout from RDRAND, so its counts repeat nearly; those of the tiny guests repeat exactly.
COUNT_TOLERANCE = 0.02
# Some runs access device memory a thousand times more often, and are interrupted as much oftener; why is not known yet.
COUNTS_APART = ("memory_access", "interrupt_window", "host_interrupt")
COUNTED = {"icount": True, "append": "console=ttyS0 quiet", "timeout": 300}
WARNING_LEVEL = 4  # of the kernel's log: warnings and worse
EXCEPTIONS = Path(__file__).with_name("dmesg-exceptions.txt")

MESSAGES_SCRIPT = "echo MESSAGES-BEGIN\ndmesg -r\necho MESSAGES-END\n"


def statistics_complete(outcome: Outcome) -> str:
    """The run ended in order and left complete statistics."""
    statistics = outcome.statistics
    if not statistics:
        return "the hypervisor's log has no STATS line"
    if sum(statistics.get("exits", {}).values()) < 1000:
        return f"implausibly few exits: {statistics.get('exits')}"
    if not 0 < statistics.get("run_time_ns", 0) < outcome.seconds * 1e9 * 1.05:
        return f"run_time_ns {statistics.get('run_time_ns')} does not fit {outcome.seconds:.1f} s of wall time"
    if not statistics.get("hypervisor_memory_bytes", 0) > 0:
        return "no hypervisor_memory_bytes"
    return ""


def warnings(text: str) -> set:
    """The kernel's warnings in the raw dmesg between the markers, without what differs from boot to boot."""
    section = text.partition("MESSAGES-BEGIN\n")[2].partition("MESSAGES-END")[0]
    found = set()
    for line in section.splitlines():
        match = re.match(r"<(\d+)>\[\s*[\d.]+\] (.*)", line)
        if match and int(match.group(1)) & 7 <= WARNING_LEVEL:
            found.add(re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "#", match.group(2)).strip())
    return found


def exceptions() -> list:
    """The patterns of dmesg-exceptions.txt; each is preceded by its reason in a comment."""
    lines = [line.strip() for line in EXCEPTIONS.read_text(encoding="utf-8").splitlines()]
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def same_warnings_as_plain(kernel: Callable[[], Path]) -> Callable[[Outcome], str]:
    """A check that the kernel warns of nothing that it does not warn of in the same machine without Gearshift."""

    def check(outcome: Outcome) -> str:
        if "MESSAGES-END" not in outcome.text():
            return "the kernel's messages are not complete on the console"
        image = kernel()
        # By the whole path: kernels of one name run at the same time.
        place = paths.cache() / "nested" / f"plain-messages-{hashlib.sha256(str(image).encode()).hexdigest()[:10]}"
        initrd = guests.script_initramfs(MESSAGES_SCRIPT, place / "initrd")
        plain = Session(Options(kernel=str(image), initrd=str(initrd), without_hypervisor=True, timeout=120), echo=False).run()
        (place / "console").write_bytes(plain.console)
        if "MESSAGES-END" not in plain.text():
            return f"the plain machine did not finish: {plain.reason}"
        allowed = exceptions()
        new = sorted(line for line in warnings(outcome.text()) - warnings(plain.text()) if not any(p.search(line) for p in allowed))
        return "warnings that the plain machine does not have:\n" + "\n".join(new) if new else ""

    return check


def slept_right(outcome: Outcome) -> str:
    """The guest's sleep took as long by the host's clock."""
    begin, end = outcome.moment(b"SLEEP-BEGIN"), outcome.moment(b"SLEEP-END")
    if begin is None or end is None:
        return "the markers are not on the console"
    took = end - begin
    if abs(took - SLEEP_SECONDS) > SLEEP_SECONDS * SLEEP_TOLERANCE:
        return f"sleep {SLEEP_SECONDS} took {took:.3f} s of the host's clock"
    uptimes = re.findall(r"UPTIME ([\d.]+)", outcome.text())
    counted = float(uptimes[1]) - float(uptimes[0])
    if abs(counted - took) > SLEEP_SECONDS * SLEEP_TOLERANCE:
        return f"the guest counted {counted:.3f} s where the host counted {took:.3f} s"
    return ""


def clock_right(outcome: Outcome) -> str:
    """The RTC and the system time agree with the host's."""
    found = re.search(r"SYSTEM (\d+)", outcome.text())
    rtc = re.search(r"RTC (\d+)-(\d+)-(\d+) (\d+):(\d+):(\d+)", outcome.text())
    if not found or not rtc:
        return "the guest printed no time"
    moment = outcome.moment(b"SYSTEM ")
    now = time.time() - (outcome.seconds - moment)
    if not -CLOCK_BEHIND_SECONDS < int(found.group(1)) - now < CLOCK_TOLERANCE_SECONDS:
        return f"the guest's time is {int(found.group(1)) - now:.1f} s off"
    import calendar  # pylint: disable=import-outside-toplevel

    by_rtc = calendar.timegm((*map(int, rtc.groups()), 0, 0, 0))
    if not -CLOCK_BEHIND_SECONDS < by_rtc - now < CLOCK_TOLERANCE_SECONDS:
        return f"the RTC is {by_rtc - now:.1f} s off"
    return ""


def counted_alike(outcome: Outcome) -> str:
    """A second counted run takes nearly the same exits and instructions."""
    place = paths.cache() / "nested" / "linux-instruction-count"
    again = Session(Options(initrd=str(place / "initrd"), **COUNTED), echo=False).run()
    if not outcome.statistics or not again.statistics:
        return f"no statistics: {outcome.reason or again.reason}"
    first, second = outcome.statistics, again.statistics
    counts = [statistics.get("instructions", 0) for statistics in (first, second)]
    if min(counts) < 10**9:
        return f"implausibly few instructions: {counts}"
    if abs(counts[0] - counts[1]) > counts[0] * COUNT_TOLERANCE:
        return f"{counts[0]} instructions, then {counts[1]}"
    exits = [sum(count for kind, count in statistics["exits"].items() if kind not in COUNTS_APART) for statistics in (first, second)]
    if abs(exits[0] - exits[1]) > exits[0] * COUNT_TOLERANCE:
        return f"exits {first['exits']}, then {second['exits']}"
    return ""


def interrupts_count_up(outcome: Outcome) -> str:
    """The local timer's and the UART's interrupts went up between two looks."""
    looks = outcome.text().split("INTERRUPTS-LOOK")[1:]
    if len(looks) != 2:
        return "the two looks at /proc/interrupts are not on the console"

    def counts(look: str, label: str) -> int:
        rows = [line.split() for line in look.splitlines() if re.search(label, line)]
        return sum(int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit())

    for label in (r"^\s*LOC:", r"IO-APIC.*ttyS0"):
        before, after = counts(looks[0], label), counts(looks[1], label)
        if after <= before:
            return f"{label}: {before} before, {after} after"
    timers = counts(looks[1], r"IO-APIC.*timer") + counts(looks[1], r"HPET|hpet")
    return "" if timers > 0 else "no timer interrupt came through the IOAPIC"


SMBIOS_SCRIPT = """\
cd /sys/firmware/dmi/tables
echo ENTRY-BEGIN; base64 smbios_entry_point; echo ENTRY-END
echo TABLE-BEGIN; base64 DMI; echo TABLE-END
"""
# In a dump, the table follows at this offset, and the entry point says so.
DUMP_TABLE = 0x20
SMBIOS_WANTED = ("SMBIOS 3.0.0 present.", "Vendor: Gearshift", "Product Name: Gearshift PC (Q35)", "Core Count: 1", "Maximum Capacity: 512 MB",
                 "Size: 512 MB", "Range Size: 512 MB", "Status: No errors detected", "End Of Table")


def smbios_right(outcome: Outcome) -> str:
    """The guest's SMBIOS tables are what dmidecode takes for right, and say what machine it is."""
    text = outcome.text()

    def section(name: str) -> bytes:
        return base64.b64decode(text.partition(f"{name}-BEGIN\n")[2].partition(f"{name}-END")[0])

    entry, table = bytearray(section("ENTRY")), section("TABLE")
    if entry[:5] != b"_SM3_" or sum(entry) & 0xFF:
        return f"the entry point is not right: {entry.hex()}"
    entry[16:24] = DUMP_TABLE.to_bytes(8, "little")
    entry[5] = (entry[5] - sum(entry)) & 0xFF
    dump = paths.cache() / "nested" / "linux-smbios" / "dump"
    dump.write_bytes(bytes(entry).ljust(DUMP_TABLE, b"\0") + table)
    reader = setup.dmidecode()
    done = subprocess.run(reader.command("--from-dump", str(dump)), env=reader.env(), capture_output=True, text=True)
    if done.returncode != 0 or done.stderr.strip():
        return f"dmidecode: {done.stderr.strip() or done.returncode}"
    missing = [wanted for wanted in SMBIOS_WANTED if wanted not in done.stdout]
    wrong = [line.strip() for line in done.stdout.splitlines() if re.search(r"OUT OF SPEC|BAD INDEX|TRUNCATED|Wrong|Invalid", line)]
    return f"dmidecode does not say {missing} and says {wrong}" if missing or wrong else ""


CASES = [
    Case("linux-shell-128m", "the stock kernel reaches a shell with 128 MiB", options={"memory": 128 << 20, "expect": PROMPT}),
    Case("linux-shell-512m", "the stock kernel reaches a shell with 512 MiB", options={"expect": PROMPT}),
    Case("linux-shell-2g", "the stock kernel reaches a shell with 2 GiB", options={"memory": 2 << 30, "expect": PROMPT}),
    Case("linux-typing", "what is typed reaches the shell and its answer comes back",
         options={"expect_first": PROMPT, "send": "echo typed $((6 * 7)) times", "expect": "typed 42 times"}),
    Case("linux-poweroff", "poweroff ends the run in order, with statistics",
         options={"expect_first": PROMPT, "send": "poweroff"}, wanted=("Power down",), check=statistics_complete),
    Case("linux-reboot", "reboot restarts the guest clean",
         options={"expect_first": PROMPT, "send": "reboot", "expect": BANNER}, wanted=(BANNER, "machine restart", "Linux version", BANNER)),
    Case("linux-panic-reboot", "panic=1 reboots the guest",
         options={"append": "console=ttyS0 panic=1", "expect_first": PROMPT, "send": "echo c > /proc/sysrq-trigger", "expect": BANNER},
         wanted=(BANNER, "Kernel panic", "Linux version", BANNER)),
    Case("linux-messages", "the kernel warns of nothing that it does not warn of on a plain PC",
         script=MESSAGES_SCRIPT, wanted=("MESSAGES-END", "SCRIPT-ENDED 0"), check=same_warnings_as_plain(guests.kernel)),
    Case("linux-clock-sources", "tsc, hpet and acpi_pm are there as clock sources",
         script="cat /sys/devices/system/clocksource/clocksource0/available_clocksource | tr ' ' '\\n' | sort | sed 's/^/CLOCK /'\n",
         wanted=("CLOCK acpi_pm", "CLOCK hpet", "CLOCK tsc", "SCRIPT-ENDED 0")),
    Case("linux-interrupts", "timer and UART interrupts count up through LAPIC and IOAPIC",
         # The UART interrupts only while it is open for reading.
         script="exec 3</dev/ttyS0\nfor look in 1 2; do echo INTERRUPTS-LOOK; cat /proc/interrupts; sleep 1; done\n",
         wanted=("SCRIPT-ENDED 0",), check=interrupts_count_up),
    Case("linux-memory", "the guest sees the RAM it was given",
         script="awk '/MemTotal/ { print ($2 > 440000 && $2 < 512 * 1024) ? \"MEMORY RIGHT\" : \"MEMORY WRONG \" $2 }' /proc/meminfo\n",
         wanted=("MEMORY RIGHT", "SCRIPT-ENDED 0")),
    Case("linux-smbios", "the SMBIOS tables are right and say what machine it is", script=SMBIOS_SCRIPT, wanted=("TABLE-END", "SCRIPT-ENDED 0"),
         check=smbios_right),
    Case("linux-no-nesting", "the guest sees no virtualization of its own but knows that it is a guest",
         script="grep -qw svm /proc/cpuinfo && echo HAS SVM\ngrep -qw vmx /proc/cpuinfo && echo HAS VMX\ngrep -qw hypervisor /proc/cpuinfo && echo IS A GUEST\n",
         wanted=("IS A GUEST", "SCRIPT-ENDED 0"), unwanted=("HAS SVM", "HAS VMX")),
    Case("linux-sleep", f"sleep {SLEEP_SECONDS} takes {SLEEP_SECONDS} s by the host's clock", alone=True,
         script=f"sleep 3\necho UPTIME $(cat /proc/uptime)\necho SLEEP-BEGIN\nsleep {SLEEP_SECONDS}\necho SLEEP-END\necho UPTIME $(cat /proc/uptime)\n",
         wanted=("SLEEP-END", "SCRIPT-ENDED 0"), check=slept_right),
    Case("linux-time", "the RTC and the system time are right", alone=True,
         script="echo SYSTEM $(date -u +%s)\necho RTC $(cat /sys/class/rtc/rtc0/date) $(cat /sys/class/rtc/rtc0/time)\n",
         wanted=("SCRIPT-ENDED 0",), check=clock_right),
    Case("linux-instruction-count", "two counted runs take nearly the same exits and instructions", script="true\n", options=COUNTED,
         wanted=("SCRIPT-ENDED 0",), check=counted_alike),
]
