//! What is known of an exit, by name.
//!
//! The flight recorder keeps two numbers of each exit; this says what they are. Key function: [`of`].

use crate::recorder::Entry;
use core::fmt;
use vcpu::{AccessKind, ControlRegister, Exception, ExitKind};

/// One named value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name: lower case, words joined by underscores.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
}

/// A number or a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Shown in hexadecimal.
    Number(u64),
    /// Shown as it is.
    Word(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number:#x}"),
            Value::Word(word) => f.write_str(word),
        }
    }
}

const fn number(name: &'static str, value: u64) -> Option<Field> {
    Some(Field { name, value: Value::Number(value) })
}

const fn word(name: &'static str, word: &'static str) -> Option<Field> {
    Some(Field { name, value: Value::Word(word) })
}

/// The fields of a remembered exit.
pub fn of(entry: &Entry) -> impl Iterator<Item = Field> {
    let Entry { what, value, .. } = *entry;
    let fields = match entry.kind {
        ExitKind::PortRead | ExitKind::PortString => [number("port", what), number("bytes", value)],
        ExitKind::PortWrite => [number("port", what), number("value", value)],
        ExitKind::MemoryAccess => [number("gpa", what), word("access", access(value))],
        ExitKind::Cpuid => [number("leaf", what), number("subleaf", value)],
        ExitKind::MsrRead => [number("msr", what), None],
        ExitKind::MsrWrite => [number("msr", what), number("value", value)],
        ExitKind::Xsetbv => [number("xcr", what), number("value", value)],
        ExitKind::ControlWrite => [word("register", register(what)), number("value", value)],
        ExitKind::NestedInstruction => [number("code", what), None],
        ExitKind::Exception => [word("exception", exception(what)), number("error_code", value)],
        ExitKind::ApicWrite => [number("offset", what), None],
        ExitKind::EoiInduced => [number("vector", what), None],
        ExitKind::TaskSwitch | ExitKind::HostSignal | ExitKind::Unsupported => {
            [number("code", what), number("info", value)]
        }
        ExitKind::Hlt
        | ExitKind::Pause
        | ExitKind::Invd
        | ExitKind::Wbinvd
        | ExitKind::Rdpmc
        | ExitKind::Rdtscp
        | ExitKind::Monitor
        | ExitKind::Mwait
        | ExitKind::Invpcid
        | ExitKind::Rsm
        | ExitKind::Hypercall
        | ExitKind::InterruptWindow
        | ExitKind::NmiWindow
        | ExitKind::HostInterrupt
        | ExitKind::HostNmi
        | ExitKind::RunLimit
        | ExitKind::Shutdown => [None, None],
    };
    fields.into_iter().flatten()
}

fn access(value: u64) -> &'static str {
    [(AccessKind::Read, "read"), (AccessKind::Write, "write"), (AccessKind::Fetch, "fetch")]
        .into_iter()
        .find(|(kind, _)| *kind as u64 == value)
        .map_or("unknown", |(_, name)| name)
}

fn register(value: u64) -> &'static str {
    [
        (ControlRegister::Cr0, "cr0"),
        (ControlRegister::Cr3, "cr3"),
        (ControlRegister::Cr4, "cr4"),
        (ControlRegister::Cr8, "cr8"),
    ]
    .into_iter()
    .find(|(register, _)| *register as u64 == value)
    .map_or("unknown", |(_, name)| name)
}

/// SDM 3A table 7-1 "Protected-Mode Exceptions and Interrupts".
fn exception(vector: u64) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF", "15",
        "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    const _: () = assert!(Exception::PF == 14 && Exception::AC == 17);
    usize::try_from(vector).ok().and_then(|vector| NAMES.get(vector)).copied().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn shown(kind: ExitKind, what: u64, value: u64) -> String {
        let entry = Entry { kind, rip: 0, what, value };
        let fields: Vec<_> = of(&entry).map(|field| format!("{}={}", field.name, field.value)).collect();
        fields.join(" ")
    }

    #[test]
    fn the_two_numbers_have_names() {
        assert_eq!(shown(ExitKind::PortWrite, 0x3f8, 0x41), "port=0x3f8 value=0x41");
        assert_eq!(shown(ExitKind::MemoryAccess, 0xfee0_0000, AccessKind::Write as u64), "gpa=0xfee00000 access=write");
        assert_eq!(shown(ExitKind::ControlWrite, ControlRegister::Cr4 as u64, 0x20), "register=cr4 value=0x20");
        assert_eq!(shown(ExitKind::Exception, 17, 0), "exception=#AC error_code=0x0");
        assert_eq!(shown(ExitKind::Exception, 99, 0), "exception=unknown error_code=0x0");
        assert_eq!(shown(ExitKind::Hlt, 0, 0), "");
    }

    #[test]
    fn names_say_what_the_recorder_noted() {
        use crate::recorder::Recorder;
        use memory::Gpa;
        use vcpu::{Exit, MemoryAccess};
        let mut recorder = Recorder::default();
        let access = MemoryAccess {
            gpa: Gpa(0x1000),
            kind: AccessKind::Fetch,
            in_page_walk: false,
            during_event_delivery: false,
            bytes: ([0; 15], 0),
        };
        recorder.note(&Exit::MemoryAccess(access), 7);
        let entry = recorder.last().next().unwrap();
        assert_eq!(shown(entry.kind, entry.what, entry.value), "gpa=0x1000 access=fetch");
    }
}
