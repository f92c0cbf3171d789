"""Cases of the tiny guests: programs of tests/guests that test the machine from within and say so on the console.

What the emulator below gets wrong, so that no hypervisor on it could do better, is excused check by check, with the reason.
"""

from gearshift_host.session import Outcome

from .case import Case

MSR_WRITES = "QEMU takes any value for an MSR that a hypervisor leaves to the guest, and does not look whether an address is canonical"
CONTROL_REGISTERS = "QEMU takes, or ends the guest over, values of CR0, CR4 and CR8 that a processor refuses before any exit"
VMX_ENCODINGS = "QEMU decodes the memory forms of VMX's group 9 as nothing at all"

# What QEMU's processor with SVM gets wrong, by guest and check.
QEMU_EXCUSES = {
    "msr": {
        "lstar-not-canonical": MSR_WRITES,
        "kernel-gs-base-not-canonical": MSR_WRITES,
        "fs-base-not-canonical": MSR_WRITES,
    },
    "exceptions": {
        "vmxon": VMX_ENCODINGS,
        "vmptrld": VMX_ENCODINGS,
        "vmptrst": VMX_ENCODINGS,
        "vmclear": VMX_ENCODINGS,
        "stack-not-canonical": "QEMU raises #GP for a stack address that is not canonical, where #SS is due",
        "null-stack-selector-at-user-level": "QEMU does not compare a null SS selector's RPL with CPL",
        "cr0-paging-without-protection": CONTROL_REGISTERS,
        "cr0-high-bit": CONTROL_REGISTERS,
        "cr0-nw-without-cd": CONTROL_REGISTERS,
        "cr4-pae-off-in-long-mode": CONTROL_REGISTERS,
        "cr4-reserved-bit": CONTROL_REGISTERS,
        "cr4-high-bit": CONTROL_REGISTERS,
        "cr4-vmxe-refused": CONTROL_REGISTERS,
        "cr8-reserved-bit": CONTROL_REGISTERS,
        "reserved-bit": "QEMU leaves P clear in the error code of a fault over a reserved bit",
        "user-wbinvd": "QEMU exits for WBINVD before it looks at CPL",
        "sse-divide": "QEMU never raises #XM",
        "alignment-check": "QEMU never raises #AC",
    },
    "hostile": {"control-register-values": CONTROL_REGISTERS},
    "fpu": {"mxcsr-reserved-bit": "QEMU takes reserved bits of MXCSR"},
}


def excused(guest: str) -> str:
    """The word of the command line that excuses what the emulator gets wrong; empty if that is nothing."""
    names = QEMU_EXCUSES.get(guest, {})
    return f"without={','.join(names)}" if names else ""


def every_excuse_needed(outcome: Outcome, guest: str) -> str:
    """Excuses are for failures: one whose check passes by now has to go. Control-register values that kill are not tried."""
    text = outcome.text()
    stale = [name for name in QEMU_EXCUSES.get(guest, {}) if f"CHECK {name} ok" in text]
    return f"these checks pass and need no excuse: {', '.join(stale)}" if stale else ""


def program(guest: str, about: str, *words: str, name: str = "", timeout: float = 60, **options) -> Case:
    """A guest that has to pass all its checks and to power off."""
    append = " ".join(word for word in (excused(guest), *words) if word)
    return Case(f"guest-{name or guest}", about, guest=guest, options={"append": append, **options}, timeout=timeout,
                wanted=(f"GUEST {guest} start", f"RESULT {guest} pass"), unwanted=(" FAIL ",),
                check=lambda outcome: every_excuse_needed(outcome, guest))


def stopped(case: str, about: str, *said: str) -> Case:
    """A case of the guest "unsupported" whose machine has to stop with a report that says these things."""

    def reported(outcome: Outcome) -> str:
        report = outcome.journal.report()
        missing = [text for text in said if text not in report]
        return f"{missing} not in the report: {report[:300]!r}" if missing else ""

    return Case(f"stop-{case}", about, guest="unsupported", options={"append": f"case={case}"}, status=1, timeout=30,
                wanted=(f"GOING {case}",), unwanted=(" FAIL ",), check=reported)


CASES = [
    program("ports", "port I/O of all widths, string I/O, ports of nobody"),
    program("cpuid", "leaves agree with each other, and each advertised feature works"),
    program("msr", "MSRs that software relies on, and #GP for the others"),
    program("exceptions", "exceptions with the right error codes, single steps, breakpoints, no VMX and SVM"),
    program("interrupts", "PIC, IOAPIC, local APIC, NMI, shadows, priorities and CR8"),
    program("timers", "PIT, local APIC timer, HPET and PM timer run and agree within a percent", icount=True, timeout=180),
    program("rtc", "the clock's update cycle and interrupts", icount=True, timeout=240),
    program("fpu", "x87, SSE and AVX state over exits and interrupts; XSETBV's rules"),
    program("mmio", "every instruction form that reaches device registers"),
    program("hlt", "waking from HLT by timer, waiting request and NMI", icount=True, timeout=120),
    program("modes", "exits from real mode to 64-bit mode, under every kind of paging"),
    program("tsc", "the time-stamp counter, its MSRs and TSC_ADJUST"),
    program("hyperv", "leaves, hypercall page, reference time and frequencies of the Hyper-V interface"),
    program("reset", "resets by port 0xCF9 and by the keyboard controller"),
    program("bench", "round trips are measured in both modes", icount=True),
    program("unsupported", "unknown MSR, port, memory, hypercall and counter have the answer that the manual names"),
    stopped("mmio-instruction", "a device access by an instruction that is not emulated stops the VM with the instruction", "fild", "0xfee00020"),
    stopped("mmio-fetch", "code in a device's registers stops the VM", "0xfee00000"),
    stopped("nowhere-fetch", "code where nothing is stops the VM", "0xfe000000"),
    stopped("page-tables-nowhere", "page tables where nothing is stop the VM", "0xfe000000"),
    stopped("page-tables-in-device", "page tables in a device's registers stop the VM", "0xfee00000"),
    stopped("triple-fault", "a triple fault stops the VM with the faulting instruction", "triple fault", "ud2"),
]
