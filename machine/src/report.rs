//! The report that a stopped machine leaves: why in one sentence, the exit by its fields, and of each vCPU the instruction,
//! registers, segments, page tables and the last exits.
//!
//! Key types: [`Report`] and [`ProcessorReport`]. As text ([`fmt::Display`]) and as JSON. Made after the machine has stopped,
//! so it may allocate and format; it needs no resident vCPU. Neighbours: [`fields`] names what the flight recorder kept,
//! [`paging`] follows the guest's page tables.

pub mod fields;
pub mod paging;

use crate::emulate;
use crate::processor::{Activity, Processor};
use crate::recorder::Entry;
use crate::stop::Stop;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use fields::Field;
use memory::GuestMemory;
use paging::{Mode, Walk};
use vcpu::{ArchState, Gpr, RawExit, SegmentName, SystemMsr, Vcpu};

/// What is known about a stopped machine.
#[derive(Clone, Debug)]
pub struct Report {
    /// Why, in one sentence.
    pub reason: String,
    /// Which vCPU could not go on.
    pub vcpu: u32,
    /// The check that the guest's state violated, where the processor refused to enter it.
    pub violated: Option<&'static str>,
    /// What the processor said, uninterpreted, where nothing else is known of the exit.
    pub raw: Option<RawExit>,
    /// The vCPUs by number, as far as they were added.
    pub processors: Vec<ProcessorReport>,
}

/// What is known about one vCPU.
#[derive(Clone, Debug)]
pub struct ProcessorReport {
    /// Its number.
    pub number: u32,
    /// Running, halted or waiting for its start.
    pub activity: Activity,
    /// The bytes of the instruction at RIP; none if they cannot be read.
    pub bytes: Vec<u8>,
    /// The instruction, disassembled; empty if it cannot be read.
    pub instruction: String,
    /// All registers.
    pub state: ArchState,
    /// The way of the addresses of interest through the page tables.
    pub walks: Vec<Walk>,
    /// Exits in all.
    pub total: u64,
    /// The last exits, oldest first.
    pub exits: Vec<Entry>,
}

impl ProcessorReport {
    /// Gathers what is known. `bytes` is the instruction at RIP, where that is known better than by reading it again.
    fn new<V: Vcpu, M: GuestMemory>(processor: &Processor<V, M>, bytes: Option<&[u8]>) -> ProcessorReport {
        let core = &processor.core;
        let memory = core.machine.ram();
        let state = processor.vcpu.state();
        let mut bytes = bytes.map_or_else(|| paging::instruction(&state, memory), Vec::from);
        let (instruction, length) = match bytes.as_slice() {
            [] => (String::new(), 0),
            bytes => emulate::disassemble(paging::code_size(&state), state.rip, bytes),
        };
        bytes.truncate(length);
        ProcessorReport {
            number: core.number,
            activity: core.activity,
            walks: Walk::of_interest(&state, memory),
            bytes,
            instruction,
            state,
            total: core.recorder.total(),
            exits: core.recorder.last().copied().collect(),
        }
    }

    fn activity(&self) -> &'static str {
        match self.activity {
            Activity::Running => "running",
            Activity::Halted => "halted",
            Activity::WaitForStartUp => "waiting for a start-up IPI",
        }
    }

    fn bytes(&self) -> String {
        let bytes: Vec<_> = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    }
}

impl Report {
    /// The report of the vCPU that stopped. The others can be [added](Report::add).
    pub fn new<V: Vcpu, M: GuestMemory>(stop: &Stop, processor: &Processor<V, M>) -> Report {
        let mut report = Report {
            reason: stop.to_string(),
            vcpu: processor.core.number,
            violated: None,
            raw: None,
            processors: Vec::new(),
        };
        let mut bytes = None;
        match stop {
            Stop::EntryRefused(failure) => (report.violated, report.raw) = (failure.violated, Some(failure.raw)),
            Stop::UnsupportedExit(raw) => report.raw = Some(*raw),
            Stop::Instruction { unsupported, .. } => bytes = unsupported.bytes.get(..usize::from(unsupported.count)),
            _ => {}
        }
        // No bytes were fetched, so there is nothing that is known better.
        report.processors.push(ProcessorReport::new(processor, bytes.filter(|bytes| !bytes.is_empty())));
        report
    }

    /// Adds another vCPU of the same machine.
    pub fn add<V: Vcpu, M: GuestMemory>(&mut self, processor: &Processor<V, M>) {
        let number = processor.core.number;
        if let Err(at) = self.processors.binary_search_by_key(&number, |known| known.number) {
            self.processors.insert(at, ProcessorReport::new(processor, None));
        }
    }

    /// The report of the machine called `machine` as one JSON object on one line.
    pub fn json<'a>(&'a self, machine: &'a str) -> Json<'a> {
        Json { report: self, machine }
    }

    fn write_json(&self, machine: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{{\"machine\":\"{}\",\"reason\":\"{}\",", Escaped(machine), Escaped(&self.reason))?;
        write!(out, "\"vcpu\":{},", self.vcpu)?;
        if let Some(violated) = self.violated {
            write!(out, "\"violated\":\"{}\",", Escaped(violated))?;
        }
        if let Some(raw) = self.raw {
            write!(out, "\"raw\":{{\"code\":\"{:#x}\",", raw.code)?;
            write!(out, "\"info1\":\"{:#x}\",\"info2\":\"{:#x}\"}},", raw.info1, raw.info2)?;
        }
        out.write_str("\"processors\":")?;
        list(out, &self.processors, |out, processor| processor.write_json(out))?;
        out.write_str("}")
    }
}

impl ProcessorReport {
    fn write_json(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        write!(out, "{{\"number\":{},\"activity\":\"{}\",", self.number, self.activity())?;
        write!(out, "\"instruction\":\"{}\",\"bytes\":\"{}\",", Escaped(&self.instruction), self.bytes())?;
        out.write_str("\"registers\":{")?;
        for register in Gpr::ALL {
            write!(out, "\"{}\":\"{:#x}\",", name(register), state.gprs.get(register))?;
        }
        for (name, value) in control(state) {
            write!(out, "\"{name}\":\"{value:#x}\",")?;
        }
        write!(out, "\"rip\":\"{:#x}\",\"rflags\":\"{:#x}\"}},\"segments\":{{", state.rip, state.rflags)?;
        for segment in SegmentName::ALL {
            let value = state.segment(segment);
            write!(out, "\"{}\":{{\"selector\":\"{:#x}\",", segment_name(segment), value.selector)?;
            write!(out, "\"base\":\"{:#x}\",\"limit\":\"{:#x}\",", value.base, value.limit)?;
            write!(out, "\"attributes\":\"{:#x}\"}},", value.attributes.into_bits())?;
        }
        write!(out, "\"gdtr\":{{\"base\":\"{:#x}\",\"limit\":\"{:#x}\"}},", state.gdtr.base, state.gdtr.limit)?;
        write!(out, "\"idtr\":{{\"base\":\"{:#x}\",\"limit\":\"{:#x}\"}}}},", state.idtr.base, state.idtr.limit)?;
        write!(out, "\"paging\":{{\"mode\":\"{}\",\"walks\":", Mode::of(state).name())?;
        list(out, &self.walks, |out, walk| {
            write!(out, "{{\"what\":\"{}\",\"linear\":\"{:#x}\",\"entries\":", walk.what, walk.linear)?;
            list(out, &walk.steps, |out, step| {
                write!(out, "{{\"level\":\"{}\",\"at\":\"{:#x}\",", step.level, step.at)?;
                write!(out, "\"value\":\"{:#x}\",\"flags\":\"{}\"}}", step.value, step.flags())
            })?;
            write!(out, ",\"end\":\"{}\"}}", walk.end)
        })?;
        write!(out, "}},\"total_exits\":{},\"exits\":", self.total)?;
        list(out, &self.exits, |out, exit| {
            write!(out, "{{\"kind\":\"{}\",\"rip\":\"{:#x}\"", exit.kind.name(), exit.rip)?;
            for Field { name, value } in fields::of(exit) {
                write!(out, ",\"{name}\":\"{value}\"")?;
            }
            out.write_str("}")
        })?;
        out.write_str("}")
    }
}

/// A report as JSON. Written piece by piece: it can be longer than what the heap should have to give in one.
pub struct Json<'a> {
    report: &'a Report,
    machine: &'a str,
}

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.write_json(self.machine, f)
    }
}

/// Writes a JSON array.
fn list<T>(
    out: &mut fmt::Formatter<'_>,
    items: &[T],
    mut write: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    out.write_str("[")?;
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.write_str(",")?;
        }
        write(out, item)?;
    }
    out.write_str("]")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {} stopped: {}", self.vcpu, self.reason)?;
        if let Some(violated) = self.violated {
            writeln!(f, "violated check: {violated}")?;
        }
        if let Some(raw) = self.raw {
            writeln!(f, "exit: code {:#x}  info1 {:#x}  info2 {:#x}", raw.code, raw.info1, raw.info2)?;
        }
        let stopped = self.processors.iter().find(|processor| processor.number == self.vcpu);
        if let Some(last) = stopped.and_then(|processor| processor.exits.last()) {
            writeln!(f, "last exit: {}", Line(last))?;
        }
        self.processors.iter().try_for_each(|processor| processor.fmt(f))
    }
}

impl fmt::Display for ProcessorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        writeln!(f, "vCPU {}, {}", self.number, self.activity())?;
        match self.instruction.as_str() {
            "" => writeln!(f, "  instruction: cannot be read")?,
            text => writeln!(f, "  instruction: {text}  ({})", self.bytes())?,
        }
        writeln!(f, "  RIP {:016x}  RFLAGS {:08x}", state.rip, state.rflags)?;
        for row in Gpr::ALL.chunks(4) {
            f.write_str(" ")?;
            for register in row {
                write!(f, " {:>3} {:016x}", name(*register), state.gprs.get(*register))?;
            }
            writeln!(f)?;
        }
        for (name, value) in control(state) {
            writeln!(f, "  {name:<14} {value:016x}")?;
        }
        for segment in SegmentName::ALL {
            let value = state.segment(segment);
            writeln!(
                f,
                "  {:<4} {:04x}  base {:016x}  limit {:08x}  attributes {:05x}",
                segment_name(segment),
                value.selector,
                value.base,
                value.limit,
                value.attributes.into_bits()
            )?;
        }
        writeln!(f, "  gdtr base {:016x}  limit {:04x}", state.gdtr.base, state.gdtr.limit)?;
        writeln!(f, "  idtr base {:016x}  limit {:04x}", state.idtr.base, state.idtr.limit)?;
        writeln!(f, "  paging: {}", Mode::of(state).name())?;
        for walk in &self.walks {
            writeln!(f, "    {} {:016x}: {}", walk.what, walk.linear, walk.end)?;
            for step in &walk.steps {
                writeln!(f, "      {:<5} at {:010x} = {:016x} {}", step.level, step.at, step.value, step.flags())?;
            }
        }
        writeln!(f, "  the last {} of {} exits, oldest first:", self.exits.len(), self.total)?;
        self.exits.iter().try_for_each(|exit| writeln!(f, "    {}", Line(exit)))
    }
}

/// An exit on one line.
struct Line<'a>(&'a Entry);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18} rip {:016x}", self.0.kind.name(), self.0.rip)?;
        fields::of(self.0).try_for_each(|Field { name, value }| write!(f, "  {name} {value}"))
    }
}

fn control(state: &ArchState) -> [(&'static str, u64); 19] {
    let msr = |register| state.msrs.get(register);
    let [dr0, dr1, dr2, dr3] = state.dr;
    [
        ("cr0", state.cr0),
        ("cr2", state.cr2),
        ("cr3", state.cr3),
        ("cr4", state.cr4),
        ("efer", state.efer),
        ("xcr0", state.xcr0),
        ("dr0", dr0),
        ("dr1", dr1),
        ("dr2", dr2),
        ("dr3", dr3),
        ("dr6", state.dr6),
        ("dr7", state.dr7),
        ("star", msr(SystemMsr::Star)),
        ("lstar", msr(SystemMsr::Lstar)),
        ("kernel_gs_base", msr(SystemMsr::KernelGsBase)),
        ("sysenter_cs", msr(SystemMsr::SysenterCs)),
        ("sysenter_esp", msr(SystemMsr::SysenterEsp)),
        ("sysenter_eip", msr(SystemMsr::SysenterEip)),
        ("pat", msr(SystemMsr::Pat)),
    ]
}

fn name(register: Gpr) -> &'static str {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    NAMES[register as usize]
}

fn segment_name(segment: SegmentName) -> &'static str {
    const NAMES: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];
    NAMES[segment as usize]
}

/// Text inside a JSON string: RFC 8259, 7 "Strings".
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\\' => write!(f, "\\{character}"),
            '\0'..' ' => write!(f, "\\u{:04x}", u32::from(character)),
            _ => f.write_char(character),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(Escaped("a\"b\\c\n").to_string(), "a\\\"b\\\\c\\u000a");
    }
}
