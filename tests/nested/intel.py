"""Cases on Intel VT-x, in Bochs: the stock kernel on the other backend. Few, because Bochs is slow."""

from .case import Case
from .linux import BANNER, PROMPT
from .programs import program
from .roads import image_file
from .several import each_ended

MIB = 1 << 20
QUIET = "console=ttyS0 quiet"


def linux(name: str, about: str, model: str = "", **fields) -> Case:
    """The stock kernel."""
    options = {"cpu": "intel", "append": QUIET, "memory": 128 * MIB, "cpu_model": model, **fields.pop("options", {})}
    return Case(f"intel-linux-{name}", f"VT-x: {about}", options=options, timeout=420, **fields)


CASES = [
    program("bench", "VT-x: round trips are measured in both modes, the command line empty", name="bench-intel", timeout=120, cpu="intel"),
    image_file("intel-image", "VT-x: the very image that boots on QEMU with AMD-V boots on Bochs", timeout=420, cpu="intel", memory=128 * MIB),
    linux("poweroff", "the stock kernel reaches a shell, and poweroff ends the run in order", options={"expect_first": PROMPT, "send": "poweroff"},
          check=each_ended("powered_off")),
    linux("reboot", "reboot restarts the guest clean", options={"expect_first": PROMPT, "send": "reboot", "expect": BANNER},
          wanted=(BANNER, "Gearshift guest")),
    linux("arrandale", "the stock kernel reaches a shell on a processor without APIC virtualization and x2APIC", "corei5_arrandale_m520",
          options={"expect": PROMPT}),
    linux("skylake", "the stock kernel reaches a shell on a processor with posted interrupts", "corei7_skylake_x", options={"expect": PROMPT}),
]
