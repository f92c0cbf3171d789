//! The report that a stopped machine leaves: why in one sentence, the instruction, registers, and the last exits.
//!
//! Made after the machine has stopped, so it may allocate and format. As text ([`fmt::Display`]) and as JSON.

use crate::emulate;
use crate::processor::Processor;
use crate::recorder::Entry;
use crate::stop::Stop;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use memory::GuestMemory;
use vcpu::{ArchState, CodeSize, Gpr, SegmentName, SystemMsr, Vcpu};

/// What is known about one vCPU of a stopped machine.
#[derive(Clone, Debug)]
pub struct Report {
    /// Why, in one sentence.
    pub reason: String,
    /// Which vCPU.
    pub vcpu: u32,
    /// The instruction at RIP, disassembled; empty if it cannot be read.
    pub instruction: String,
    /// All registers.
    pub state: ArchState,
    /// The last exits, oldest first.
    pub exits: Vec<Entry>,
}

impl Report {
    /// Gathers the report of the vCPU that stopped.
    pub fn new<V: Vcpu, M: GuestMemory>(stop: &Stop, processor: &mut Processor<V, M>) -> Report {
        let instruction = match stop {
            Stop::Instruction { unsupported, .. } => {
                let code_size = processor.vcpu.code_size();
                let count = usize::from(unsupported.count);
                unsupported
                    .bytes
                    .get(..count)
                    .map_or_else(String::new, |bytes| emulate::disassemble(code_size, processor.vcpu.rip(), bytes))
            }
            _ => processor.disassemble_current(),
        };
        Report {
            reason: stop.to_string(),
            vcpu: processor.core.number,
            instruction,
            state: processor.vcpu.state(),
            exits: processor.core.recorder.last().copied().collect(),
        }
    }

    /// The report as one JSON object.
    pub fn json(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_json(&mut out);
        out
    }

    fn write_json(&self, out: &mut String) -> fmt::Result {
        let state = &self.state;
        write!(out, "{{\"reason\":\"{}\",\"vcpu\":{},", escape(&self.reason), self.vcpu)?;
        write!(out, "\"instruction\":\"{}\",\"registers\":{{", escape(&self.instruction))?;
        for register in Gpr::ALL {
            write!(out, "\"{}\":\"{:#x}\",", name(register), state.gprs.get(register))?;
        }
        write!(out, "\"rip\":\"{:#x}\",\"rflags\":\"{:#x}\",", state.rip, state.rflags)?;
        for (name, value) in control(state) {
            write!(out, "\"{name}\":\"{value:#x}\",")?;
        }
        out.push_str("\"segments\":{");
        for (at, segment) in SegmentName::ALL.into_iter().enumerate() {
            let value = state.segment(segment);
            let comma = if at == 0 { "" } else { "," };
            write!(
                out,
                "{comma}\"{}\":{{\"selector\":\"{:#x}\",\"base\":\"{:#x}\",\"limit\":\"{:#x}\",\"attributes\":\"{:#x}\"}}",
                segment_name(segment),
                value.selector,
                value.base,
                value.limit,
                value.attributes.into_bits()
            )?;
        }
        out.push_str("}},\"exits\":[");
        for (at, exit) in self.exits.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(
                out,
                "{comma}{{\"kind\":\"{}\",\"rip\":\"{:#x}\",\"what\":\"{:#x}\",\"value\":\"{:#x}\"}}",
                exit.kind.name(),
                exit.rip,
                exit.what,
                exit.value
            )?;
        }
        out.push_str("]}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        writeln!(f, "vCPU {} stopped: {}", self.vcpu, self.reason)?;
        if !self.instruction.is_empty() {
            writeln!(f, "  instruction: {}", self.instruction)?;
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
        writeln!(f, "  GDTR base {:016x} limit {:04x}", state.gdtr.base, state.gdtr.limit)?;
        writeln!(f, "  IDTR base {:016x} limit {:04x}", state.idtr.base, state.idtr.limit)?;
        writeln!(f, "  last {} exits, oldest first:", self.exits.len())?;
        for exit in &self.exits {
            writeln!(f, "    {:<18} rip {:016x}  {:#x} {:#x}", exit.kind.name(), exit.rip, exit.what, exit.value)?;
        }
        Ok(())
    }
}

fn control(state: &ArchState) -> [(&'static str, u64); 15] {
    let msr = |register| state.msrs.get(register);
    [
        ("cr0", state.cr0),
        ("cr2", state.cr2),
        ("cr3", state.cr3),
        ("cr4", state.cr4),
        ("efer", state.efer),
        ("xcr0", state.xcr0),
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

/// JSON's two characters that need an escape in what we write; there are no control characters in it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// The instruction at RIP, read through the guest's page tables; empty if it cannot be.
    fn disassemble_current(&mut self) -> String {
        let (bytes, count) = self.current_instruction();
        let code_size: CodeSize = self.vcpu.code_size();
        match bytes.get(..usize::from(count)) {
            Some(bytes) if !bytes.is_empty() => emulate::disassemble(code_size, self.vcpu.rip(), bytes),
            _ => String::new(),
        }
    }
}
