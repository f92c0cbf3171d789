//! The command line of the hypervisor itself.
//!
//! Words `name=value`, separated by white space; `scripts/run` writes them, users of GRUB do by hand. Key types:
//! [`Options`], [`OptionError`]. A guest's own command line is no option but the module `vm.cmdline`.

use core::fmt;

/// Smallest guest RAM, in bytes.
pub const LEAST_MEMORY: u64 = 16 << 20;
/// Guest RAM where nothing is said, in bytes.
pub const USUAL_MEMORY: u64 = 512 << 20;
/// Name of the module that holds the guest's command line.
pub const COMMAND_LINE_MODULE: &str = "vm.cmdline";

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The module that is the guest's kernel.
    pub kernel: Option<&'a str>,
    /// The module that is its initial RAM disk.
    pub initrd: Option<&'a str>,
    /// Whether the guest has the Hyper-V interface.
    pub hyperv: bool,
    /// Whether the guest has QEMU's debug-exit port.
    pub debug_exit: bool,
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
    /// An option without a value.
    NoValue(&'a str),
    /// Not a number of bytes, or out of range.
    BadMemory(&'a str),
    /// Not a number of virtual CPUs that can be had.
    BadVcpus(&'a str),
    /// The named option is neither on nor off.
    NotASwitch(&'a str),
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(
                f,
                "unknown option '{word}' on the command line; known are vm.memory=, vm.vcpus=, vm.kernel=, vm.initrd=, vm.hyperv=, vm.debug-exit=, selftest"
            ),
            Self::NoValue(name) => write!(f, "option '{name}' needs a value: {name}=..."),
            Self::BadMemory(value) => write!(
                f,
                "vm.memory={value} is not a size; give a multiple of 2 MiB in bytes, or with K, M or G, of at least 16M"
            ),
            Self::NotASwitch(name) => write!(f, "option '{name}' is either on or off: {name}=on or {name}=off"),
            Self::BadVcpus(value) => write!(f, "vm.vcpus={value} cannot be had; only 1 virtual CPU is built so far"),
        }
    }
}

impl<'a> Options<'a> {
    /// Reads the command line.
    ///
    /// # Errors
    /// The first word that is wrong.
    pub fn parse(line: &'a str) -> Result<Self, OptionError<'a>> {
        let mut options = Self {
            memory: USUAL_MEMORY,
            vcpus: 1,
            kernel: None,
            initrd: None,
            hyperv: true,
            debug_exit: false,
            self_test: None,
        };
        for word in line.split_ascii_whitespace() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
                None => (word, None),
            };
            let value = value.ok_or(OptionError::NoValue(name));
            match name {
                "vm.memory" => options.memory = size(value?).ok_or(OptionError::BadMemory(value?))?,
                "vm.vcpus" => match value? {
                    "1" => options.vcpus = 1,
                    other => return Err(OptionError::BadVcpus(other)),
                },
                "vm.kernel" => options.kernel = Some(value?),
                "vm.initrd" => options.initrd = Some(value?),
                "vm.hyperv" => options.hyperv = switch(name, value?)?,
                "vm.debug-exit" => options.debug_exit = switch(name, value?)?,
                "selftest" => {
                    options.self_test = Some(match value.ok() {
                        None => SelfTest::All,
                        Some("console") => SelfTest::Console,
                        Some("panic") => SelfTest::Panic,
                        Some("stack") => SelfTest::Stack,
                        Some(_) => return Err(OptionError::Unknown(word)),
                    });
                }
                _ => return Err(OptionError::Unknown(word)),
            }
        }
        Ok(options)
    }
}

/// `on` or `off`.
fn switch<'a>(name: &'a str, value: &str) -> Result<bool, OptionError<'a>> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(OptionError::NotASwitch(name)),
    }
}

/// A size in bytes, or with a unit.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes >= LEAST_MEMORY && bytes.is_multiple_of(2 << 20)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scripts_run_writes_is_read() {
        let options = Options::parse("vm.memory=134217728 vm.vcpus=1 vm.kernel=vmlinuz  vm.initrd=initrd\n").unwrap();
        let wanted = Options {
            memory: 128 << 20,
            kernel: Some("vmlinuz"),
            initrd: Some("initrd"),
            ..Options::parse("").unwrap()
        };
        assert_eq!(options, wanted);
    }

    #[test]
    fn switches_are_on_or_off() {
        let options = Options::parse("vm.hyperv=off vm.debug-exit=on").unwrap();
        assert!(!options.hyperv && options.debug_exit);
        assert_eq!(Options::parse("vm.hyperv=yes"), Err(OptionError::NotASwitch("vm.hyperv")));
    }

    #[test]
    fn nothing_said_has_defaults() {
        let options = Options::parse("  ").unwrap();
        assert_eq!((options.memory, options.vcpus, options.kernel), (USUAL_MEMORY, 1, None));
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("2G", 2 << 30), ("64m", 64 << 20), ("32768K", 32 << 20)] {
            assert_eq!(size(text), Some(bytes));
        }
        for text in ["", "M", "-1", "1T", "15M", "16777217", "99999999999G", "17M", "0x1000000", "é"] {
            assert_eq!(size(text), None, "{text}");
        }
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
        assert_eq!(Options::parse("vm.kernel"), Err(OptionError::NoValue("vm.kernel")));
        assert_eq!(Options::parse("vm.kernel="), Err(OptionError::NoValue("vm.kernel")));
        assert_eq!(Options::parse("vm.memory=lots"), Err(OptionError::BadMemory("lots")));
        assert_eq!(Options::parse("vm.vcpus=2"), Err(OptionError::BadVcpus("2")));
        for error in [OptionError::Unknown("a"), OptionError::BadVcpus("b"), OptionError::BadMemory("c")] {
            assert!(!error.to_string().contains('\n'));
        }
    }
}
