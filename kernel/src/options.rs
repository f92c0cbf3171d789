//! The command line of the hypervisor itself.
//!
//! Words `name=value`, separated by white space; `scripts/run` writes them, users of GRUB do by hand. The words `vm.*` are
//! the short form of a definition for a host with one machine. Key types: [`Options`], [`OptionError`]. A guest's own
//! command line is no option but the module `vm.cmdline`.

use crate::definitions::{self, CommandLine, Definition, MOST_VCPUS};
use alloc::borrow::ToOwned;
use core::fmt;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The machine that the words `vm.*` describe, if there are any. Its kernel is empty if none was named.
    pub machine: Option<Definition>,
    /// Whether, and which of, the host's own parts are tried instead of starting a guest.
    pub self_test: Option<SelfTest>,
}

/// What a self-test tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// All that should work: `selftest`.
    All,
    /// The console, echoed until Ctrl-A q: `selftest=console`.
    Console,
    /// The host's panic: `selftest=panic`.
    Panic,
    /// A stack that overflows into its guard page: `selftest=stack`.
    Stack,
}

/// Why the command line was refused. One line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// No such option.
    Unknown(&'a str),
    /// An option `vm.*` without a value, by its name behind the dot.
    NoValue(&'a str),
    /// Not a number of bytes, or out of range.
    BadMemory(&'a str),
    /// Not a number of virtual CPUs that can be had.
    BadVcpus(&'a str),
    /// The option `vm.*` of this name is neither on nor off.
    NotASwitch(&'a str),
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(
                f,
                "unknown option '{word}' on the command line; known are vm.memory=, vm.vcpus=, vm.kernel=, vm.initrd=, vm.hyperv=, vm.debug-exit=, vm.trace=, selftest"
            ),
            Self::NoValue(name) => write!(f, "option 'vm.{name}' needs a value: vm.{name}=..."),
            Self::BadMemory(value) => write!(
                f,
                "vm.memory={value} is not a size; give a multiple of 2 MiB in bytes, or with K, M or G, of at least 16M"
            ),
            Self::NotASwitch(name) => {
                write!(f, "option 'vm.{name}' is either on or off: vm.{name}=on or vm.{name}=off")
            }
            Self::BadVcpus(value) => write!(f, "vm.vcpus={value} cannot be had; 1 to {MOST_VCPUS} can"),
        }
    }
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// The first word that is wrong.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut options = Self { machine: None, self_test: None };
        for word in line.split_ascii_whitespace() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
                None => (word, None),
            };
            if let Some(field) = name.strip_prefix("vm.") {
                let machine = options.machine.get_or_insert_with(|| Definition {
                    append: CommandLine::Module,
                    ..Definition::new(definitions::ONLY_NAME, "")
                });
                set(machine, field, value).unwrap_or(Err(OptionError::Unknown(word)))?;
            } else if name == "selftest" {
                options.self_test = Some(match value {
                    None => SelfTest::All,
                    Some("console") => SelfTest::Console,
                    Some("panic") => SelfTest::Panic,
                    Some("stack") => SelfTest::Stack,
                    Some(_) => return Err(OptionError::Unknown(word)),
                });
            } else {
                return Err(OptionError::Unknown(word));
            }
        }
        Ok(options)
    }
}

/// Sets a machine's field; `None` if there is no such one.
fn set<'a>(machine: &mut Definition, field: &'a str, value: Option<&'a str>) -> Option<Result<(), OptionError<'a>>> {
    let value = match value {
        None if KNOWN.contains(&field) => return Some(Err(OptionError::NoValue(field))),
        None => return None,
        Some(value) => value,
    };
    let switched = |place: &mut bool| {
        *place = switch(value).ok_or(OptionError::NotASwitch(field))?;
        Ok(())
    };
    Some(match field {
        "memory" => definitions::size(value).ok_or(OptionError::BadMemory(value)).map(|bytes| machine.memory = bytes),
        "vcpus" => vcpus(value).ok_or(OptionError::BadVcpus(value)).map(|count| machine.vcpus = count),
        "kernel" => {
            machine.kernel = value.to_owned();
            Ok(())
        }
        "initrd" => {
            machine.initrd = Some(value.to_owned());
            Ok(())
        }
        "hyperv" => switched(&mut machine.hyperv),
        "debug-exit" => switched(&mut machine.debug_exit),
        "trace" => switched(&mut machine.trace),
        _ => return None,
    })
}

/// The fields that can be set here.
const KNOWN: [&str; 7] = ["memory", "vcpus", "kernel", "initrd", "hyperv", "debug-exit", "trace"];

/// A number of virtual CPUs that can be had.
fn vcpus(text: &str) -> Option<u32> {
    text.parse().ok().filter(|count| (1..=MOST_VCPUS).contains(count))
}

/// `on` or `off`.
fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use definitions::USUAL_MEMORY;

    /// The machine of a command line.
    fn machine(line: &str) -> Definition {
        Options::parse(line).unwrap().machine.unwrap()
    }

    #[test]
    fn what_scripts_run_writes_is_read() {
        let wanted = Definition {
            memory: 128 << 20,
            initrd: Some("initrd".to_owned()),
            append: CommandLine::Module,
            ..Definition::new("guest", "vmlinuz")
        };
        assert_eq!(machine("vm.memory=134217728 vm.vcpus=1 vm.kernel=vmlinuz  vm.initrd=initrd\n"), wanted);
    }

    #[test]
    fn switches_are_on_or_off() {
        let machine = machine("vm.hyperv=off vm.debug-exit=on vm.trace=on");
        assert!(!machine.hyperv && machine.debug_exit && machine.trace);
        assert_eq!(Options::parse("vm.hyperv=yes"), Err(OptionError::NotASwitch("hyperv")));
    }

    #[test]
    fn nothing_said_describes_no_machine() {
        assert_eq!(Options::parse("  "), Ok(Options { machine: None, self_test: None }));
        let machine = machine("vm.vcpus=1");
        assert_eq!((machine.memory, machine.vcpus, machine.kernel.as_str()), (USUAL_MEMORY, 1, ""));
    }

    #[test]
    fn self_tests_are_chosen() {
        for (text, wanted) in [
            ("selftest", SelfTest::All),
            ("selftest=console", SelfTest::Console),
            ("selftest=panic", SelfTest::Panic),
            ("selftest=stack", SelfTest::Stack),
        ] {
            assert_eq!(Options::parse(text).unwrap().self_test, Some(wanted));
        }
        assert_eq!(Options::parse("selftest=x"), Err(OptionError::Unknown("selftest=x")));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(Options::parse("vm.memroy=1"), Err(OptionError::Unknown("vm.memroy=1")));
        assert_eq!(Options::parse("kernel=1"), Err(OptionError::Unknown("kernel=1")));
        assert_eq!(Options::parse("vm.kernel"), Err(OptionError::NoValue("kernel")));
        assert_eq!(Options::parse("vm.kernel="), Err(OptionError::NoValue("kernel")));
        assert_eq!(Options::parse("vm.memory=lots"), Err(OptionError::BadMemory("lots")));
        assert_eq!(Options::parse("vm.vcpus=0"), Err(OptionError::BadVcpus("0")));
        for error in [OptionError::Unknown("a"), OptionError::BadVcpus("b"), OptionError::BadMemory("c")] {
            assert!(!error.to_string().contains('\n'));
        }
    }
}
