"""Cases of the report that a stopped VM leaves: what `--report` keeps of it, as text and as JSON."""

import json
from typing import Callable

from gearshift_host.session import Outcome

from .case import Case, folder_of

REGISTERS = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)), "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer",
             "dr6", "dr7", "lstar", "pat"}
SEGMENTS = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr"}
DEPTH = 256


def complete(report: dict) -> str:
    """What every report has to hold; what is missing in this one."""
    processor = report["processors"][report["vcpu"]]
    missing = (REGISTERS - set(processor["registers"])) | (SEGMENTS - set(processor["segments"]))
    if missing:
        return f"not in the report: {', '.join(sorted(missing))}"
    walks = {walk["what"]: walk for walk in processor["paging"]["walks"]}
    if set(walks) != {"rip", "rsp", "cr2", "idt"} or processor["paging"]["mode"] != "4-level":
        return f"another paging than the guest's: {processor['paging']}"
    if [entry["level"] for entry in walks["rip"]["entries"]][0] != "PML4E" or not walks["rip"]["end"].endswith(", RAM"):
        return f"the way of RIP is wrong: {walks['rip']}"
    exits = processor["exits"]
    if not 0 < len(exits) <= DEPTH or len(exits) != min(DEPTH, processor["total_exits"]):
        return f"{len(exits)} exits of {processor['total_exits']}"
    return ""


def stops(case: str, about: str, judge: Callable[[dict], str], **options) -> Case:
    """A case of the guest "unsupported" that stops, whose JSON report is judged."""
    name = f"report-{case}" + ("-intel" if options.get("cpu") == "intel" else "")

    def check(outcome: Outcome) -> str:
        text = (folder_of(made) / "report").read_text()
        reports = json.loads((folder_of(made) / "report.json").read_text())
        if len(reports) != 1:
            return f"{len(reports)} reports in JSON"
        if f"vCPU 0 stopped: {reports[0]['reason']}\n" not in text:
            return f"the text does not say {reports[0]['reason']!r}"
        return complete(reports[0]) or judge(reports[0])

    made = Case(name, about, guest="unsupported", options={"append": f"case={case}", **options}, status=1, timeout=60, wanted=(f"GOING {case}",),
                unwanted=(" FAIL ",), check=check)
    return made


def triple_fault(report: dict) -> str:
    """The guest has an empty interrupt descriptor table and executes UD2."""
    processor = report["processors"][0]
    last = processor["exits"][-1]
    if last["kind"] != "shutdown" or "triple fault" not in report["reason"]:
        return f"{last} is no triple fault: {report['reason']}"
    if (processor["instruction"], processor["bytes"]) != ("ud2", "0f 0b"):
        return f"the instruction is UD2, not {processor['instruction']}"
    return "" if processor["segments"]["idtr"]["limit"] == "0x0" else f"the table is empty: {processor['segments']['idtr']}"


def unsupported_instruction(report: dict) -> str:
    """The guest loads an integer for the x87 from a register of its local APIC."""
    processor = report["processors"][0]
    last = processor["exits"][-1]
    if {key: last.get(key) for key in ("kind", "gpa", "access")} != {"kind": "memory_access", "gpa": "0xfee00020", "access": "read"}:
        return f"the last exit is the access, not {last}"
    if not processor["instruction"].startswith("fild "):
        return f"the instruction is FILD, not {processor['instruction']}"
    return "" if "0xfee00020" in report["reason"] else f"the reason names no device: {report['reason']}"


CASES = [
    stops("triple-fault", "the report of a triple fault: instruction, registers, page tables, exits", triple_fault),
    stops("mmio-instruction", "the report of a device access that cannot be emulated", unsupported_instruction),
    stops("triple-fault", "the report of a triple fault on VT-x", triple_fault, cpu="intel"),
]
