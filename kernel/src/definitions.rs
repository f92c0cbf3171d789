//! What the virtual machines of this host are: the boot module `vms.toml`, or the short form for one on the command line.
//!
//! Key types: [`Definition`], one machine; [`DefinitionError`], a line of the file and what is wrong there. Pure: files are
//! names here, and `start` turns them into the loader's modules.
//!
//! Pins TOML 1.1 as the `toml` crate reads it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The module with the definitions.
pub const MODULE: &str = "vms.toml";
/// The module with the guest's command line, for the one machine that the hypervisor's command line describes.
pub const COMMAND_LINE_MODULE: &str = "vm.cmdline";
/// What that machine is called.
pub const ONLY_NAME: &str = "guest";

/// Smallest RAM, in bytes.
pub const LEAST_MEMORY: u64 = 16 << 20;
/// RAM where nothing is said, in bytes.
pub const USUAL_MEMORY: u64 = 512 << 20;
/// RAM comes in multiples of this, in bytes.
pub const MEMORY_STEP: u64 = 2 << 20;
/// Most virtual CPUs of one machine.
pub const MOST_VCPUS: u32 = 64;
/// Most machines.
pub const MOST_MACHINES: usize = 32;
/// The share of a CPU that a machine gets where nothing is said, against others' weights; and the largest.
pub const USUAL_WEIGHT: u32 = 256;
/// See [`USUAL_WEIGHT`].
pub const MOST_WEIGHT: u32 = 65_536;
/// Longest name, in bytes.
const LONGEST_NAME: usize = 24;

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name, different from all others'.
    pub name: String,
    /// RAM in bytes, a multiple of [`MEMORY_STEP`].
    pub memory: u64,
    /// Virtual CPUs, 1 to [`MOST_VCPUS`].
    pub vcpus: u32,
    /// The module that is its kernel.
    pub kernel: String,
    /// The module that is its initial RAM disk.
    pub initrd: Option<String>,
    /// Its kernel's command line.
    pub append: CommandLine,
    /// Whether its first serial port is shown and typed to.
    pub console: bool,
    /// Its share of a CPU against others' weights, 1 to [`MOST_WEIGHT`].
    pub weight: u32,
    /// Whether it is started with the host.
    pub autostart: bool,
    /// Whether it has the Hyper-V interface.
    pub hyperv: bool,
    /// Whether it has QEMU's debug-exit port.
    pub debug_exit: bool,
    /// Whether its exits are logged in order when it has ended, for comparisons. Not in the file: only tests want it.
    pub trace: bool,
}

/// A guest kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// As it stands in the definition.
    Text(String),
    /// The contents of the module [`COMMAND_LINE_MODULE`], if it is there.
    Module,
}

impl Definition {
    /// A machine with the usual properties.
    pub fn new(name: &str, kernel: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory: USUAL_MEMORY,
            vcpus: 1,
            kernel: kernel.to_owned(),
            initrd: None,
            append: CommandLine::Text(String::new()),
            console: true,
            weight: USUAL_WEIGHT,
            autostart: true,
            hyperv: true,
            debug_exit: false,
            trace: false,
        }
    }
}

/// What is wrong in the file, and where; one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MODULE} line {}: {}", self.line, self.problem)
    }
}

/// A size in bytes, or with K, M or G; `None` unless it is a multiple of [`MEMORY_STEP`] from [`LEAST_MEMORY`] on.
pub fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes >= LEAST_MEMORY && bytes.is_multiple_of(MEMORY_STEP)).then_some(bytes)
}

/// Reads the file.
///
/// # Errors
/// The first thing that is wrong, by its place in the file.
pub fn parse(bytes: &[u8]) -> Result<Vec<Definition>, DefinitionError> {
    let text = core::str::from_utf8(bytes).map_err(|error| DefinitionError {
        line: line_of(bytes, error.valid_up_to()),
        problem: "a byte that is not UTF-8 text".to_owned(),
    })?;
    let file = File(text);
    let document = DeTable::parse(text).map_err(|error| {
        // The parser explains over several lines; the first says it.
        let said = error.message().lines().next().unwrap_or("this is not TOML");
        file.wrong(error.span().map_or(0, |span| span.start), said.to_owned())
    })?;
    let mut machines: Vec<Definition> = Vec::new();
    for (key, value) in in_order(document.get_ref()) {
        let name = key.get_ref();
        let tables = match value.get_ref() {
            DeValue::Array(tables) if name == "vm" => tables,
            _ if name == "vm" => {
                return Err(file.wrong(
                    value.span().start,
                    "'vm' is a list of machines: write [[vm]], with two brackets".to_owned(),
                ));
            }
            _ => {
                return Err(
                    file.wrong(key.span().start, format!("'{name}' is unknown here; each machine begins with [[vm]]"))
                );
            }
        };
        for table in tables {
            let DeValue::Table(fields) = table.get_ref() else {
                return Err(file.wrong(
                    table.span().start,
                    "'vm' is a list of machines: write [[vm]] and its fields below".to_owned(),
                ));
            };
            let machine = file.machine(table.span().start, fields)?;
            if machines.iter().any(|other| other.name == machine.name.as_str()) {
                let at = fields.get("name").map_or(0, |value| value.span().start);
                return Err(file.wrong(at, format!("field 'name': there is another machine named '{}'", machine.name)));
            }
            if machines.len() == MOST_MACHINES {
                return Err(file.wrong(table.span().start, format!("more than {MOST_MACHINES} machines")));
            }
            machines.push(machine);
        }
    }
    if machines.is_empty() {
        return Err(file.wrong(0, "no machine is defined; each begins with [[vm]]".to_owned()));
    }
    Ok(machines)
}

type Field<'a, 'i> = (&'a Spanned<toml::de::DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// A table's fields as they stand in the file.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Field<'a, 'i>> {
    let mut fields: Vec<_> = table.iter().collect();
    fields.sort_by_key(|(key, _)| key.span().start);
    fields
}

/// The line, counted from 1, that has the byte at `offset`.
fn line_of(text: &[u8], offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The file's text, to tell lines.
struct File<'a>(&'a str);

impl File<'_> {
    fn wrong(&self, offset: usize, problem: String) -> DefinitionError {
        DefinitionError { line: line_of(self.0.as_bytes(), offset), problem }
    }

    /// One machine; `start` is where its table begins.
    fn machine(&self, start: usize, fields: &DeTable<'_>) -> Result<Definition, DefinitionError> {
        let mut machine = Definition::new("", "");
        for (key, value) in in_order(fields) {
            let name: &str = key.get_ref();
            let wrong = |wanted: &str| {
                let problem = format!("field '{name}': {} is not {wanted}", Shown(self.0, value));
                self.wrong(value.span().start, problem)
            };
            let set = match name {
                "name" => text(value).filter(|text| is_name(text)).map(|text| machine.name = text),
                "memory" => memory(value).map(|bytes| machine.memory = bytes),
                "vcpus" => number(value, MOST_VCPUS).map(|count| machine.vcpus = count),
                "kernel" => text(value).filter(|text| !text.is_empty()).map(|text| machine.kernel = text),
                "initrd" => text(value).filter(|text| !text.is_empty()).map(|text| machine.initrd = Some(text)),
                "append" => text(value).map(|text| machine.append = CommandLine::Text(text)),
                "console" => switch(value).map(|on| machine.console = on),
                "weight" => number(value, MOST_WEIGHT).map(|weight| machine.weight = weight),
                "autostart" => switch(value).map(|on| machine.autostart = on),
                "hyperv" => switch(value).map(|on| machine.hyperv = on),
                "debug_exit" => switch(value).map(|on| machine.debug_exit = on),
                _ => {
                    let problem = format!("unknown field '{name}'; known are {}", KNOWN.join(", "));
                    return Err(self.wrong(key.span().start, problem));
                }
            };
            set.ok_or_else(|| match name {
                "name" => wrong("a name: up to 24 letters, digits, '-', '_' and '.'"),
                "memory" => wrong("a size; write a multiple of 2 MiB of at least 16M, such as \"128M\" or \"2G\""),
                "vcpus" => wrong(&format!("a number of virtual CPUs that can be had; 1 to {MOST_VCPUS} can")),
                "weight" => wrong(&format!(
                    "a weight; write a number from 1 to {MOST_WEIGHT} ({USUAL_WEIGHT} is the usual one)"
                )),
                "kernel" | "initrd" => wrong("a module's name in quotes"),
                "append" => wrong("a text in quotes"),
                _ => wrong("true or false"),
            })?;
        }
        for (name, missing) in [("name", machine.name.is_empty()), ("kernel", machine.kernel.is_empty())] {
            if missing {
                return Err(self.wrong(start, format!("this machine has no field '{name}'")));
            }
        }
        Ok(machine)
    }
}

const KNOWN: [&str; 11] =
    ["name", "memory", "vcpus", "kernel", "initrd", "append", "console", "weight", "autostart", "hyperv", "debug_exit"];

/// A value as it stands in the file, cut where it is long or ends its line.
struct Shown<'a>(&'a str, &'a Spanned<DeValue<'a>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(self.1.span()).and_then(|text| text.lines().next()).unwrap_or("");
        let mut cut = shown.chars();
        cut.by_ref().take(40).try_for_each(|character| write!(f, "{character}"))?;
        f.write_str(if cut.next().is_some() { "..." } else { "" })
    }
}

fn text(value: &Spanned<DeValue<'_>>) -> Option<String> {
    value.get_ref().as_str().map(ToOwned::to_owned)
}

/// Whether a machine can be called so: what can be typed at the monitor as one word.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

fn memory(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(bytes) if bytes.radix() == 10 => size(bytes.as_str()),
        DeValue::String(text) => size(text),
        _ => None,
    }
}

/// A number from 1 to `most`.
fn number(value: &Spanned<DeValue<'_>>, most: u32) -> Option<u32> {
    let number = value.get_ref().as_integer()?;
    u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| (1..=most).contains(number))
}

/// `true` or `false`; `"on"` or `"off"`, as on the command line, will do.
fn switch(value: &Spanned<DeValue<'_>>) -> Option<bool> {
    match value.get_ref() {
        DeValue::Boolean(on) => Some(*on),
        DeValue::String(text) if text == "on" => Some(true),
        DeValue::String(text) if text == "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
# Two machines.
[[vm]]
name = "web"
memory = "128M"
kernel = "vmlinuz"
initrd = "web.cpio.gz"
append = "console=ttyS0 quiet"
weight = 512

[[vm]]
name = "test-1"
memory = 33554432
vcpus = 1
kernel = "bench"
console = "off"
autostart = false
hyperv = false
debug_exit = true
"#;

    fn problem(text: &str) -> String {
        let said = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(!said.contains('\n'), "{said}");
        said
    }

    #[test]
    fn machines_are_read() {
        let machines = parse(TWO.as_bytes()).unwrap();
        let web = Definition {
            memory: 128 << 20,
            initrd: Some("web.cpio.gz".to_owned()),
            append: CommandLine::Text("console=ttyS0 quiet".to_owned()),
            weight: 512,
            ..Definition::new("web", "vmlinuz")
        };
        let test = Definition {
            memory: 32 << 20,
            console: false,
            autostart: false,
            hyperv: false,
            debug_exit: true,
            ..Definition::new("test-1", "bench")
        };
        assert_eq!(machines, [web, test]);
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let machines = parse(b"[[vm]]\nname='a'\nkernel='k'\n").unwrap();
        assert_eq!(machines, [Definition::new("a", "k")]);
        assert_eq!((machines[0].memory, machines[0].vcpus, machines[0].console), (USUAL_MEMORY, 1, true));
    }

    #[test]
    fn mistakes_name_line_and_field() {
        let wrong = |field: &str| problem(&format!("[[vm]]\nname = \"a\"\n{field}\nkernel = \"k\"\n"));
        for (field, words) in [
            ("memory = \"12X\"", "field 'memory': \"12X\" is not a size"),
            ("memory = \"8M\"", "field 'memory'"),
            ("memory = \"17M\"", "a multiple of 2 MiB"),
            ("memory = 128", "field 'memory': 128"),
            ("memory = true", "field 'memory': true"),
            ("vcpus = 0", "field 'vcpus': 0"),
            ("vcpus = \"1\"", "field 'vcpus'"),
            ("vcpus = 1000", "field 'vcpus': 1000"),
            ("weight = 0", "field 'weight': 0"),
            ("weight = -5", "field 'weight': -5"),
            ("weight = 1.5", "field 'weight': 1.5"),
            ("weight = 99999999999999999999", "field 'weight'"),
            ("console = \"yes\"", "field 'console': \"yes\" is not true or false"),
            ("autostart = 1", "field 'autostart': 1"),
            ("initrd = []", "field 'initrd': [] is not a module's name"),
            ("initrd = \"\"", "field 'initrd'"),
            ("append = 5", "field 'append': 5 is not a text"),
            ("memroy = \"1G\"", "unknown field 'memroy'; known are name, memory"),
            ("memory", "line 3"),
            ("name = \"b\"", "line 3: duplicate key"),
            ("memory = \"1G", "line 3"),
            ("append = \"\"\"\nlong\"\"\"\nvcpus = 700", "line 5: field 'vcpus'"),
        ] {
            let said = wrong(field);
            assert!(said.starts_with("vms.toml line ") && said.contains(words), "{field}: {said}");
            assert!(said.contains("line 3: ") || words.starts_with("line 5"), "{said}");
        }
    }

    #[test]
    fn machines_need_a_name_of_their_own_and_a_kernel() {
        assert_eq!(problem("\n[[vm]]\nkernel = \"k\"\n"), "vms.toml line 2: this machine has no field 'name'");
        assert_eq!(problem("[[vm]]\nname = \"a\"\n"), "vms.toml line 1: this machine has no field 'kernel'");
        let twice = "[[vm]]\nname='a'\nkernel='k'\n[[vm]]\nname='a'\nkernel='k'\n";
        assert_eq!(problem(twice), "vms.toml line 5: field 'name': there is another machine named 'a'");
        for name in ["", "two words", "ä", "a/b", "abcdefghijklmnopqrstuvwxy"] {
            assert!(
                problem(&format!("[[vm]]\nname = \"{name}\"\nkernel='k'")).contains("line 2: field 'name'"),
                "{name}"
            );
        }
    }

    #[test]
    fn only_machines_are_expected() {
        assert!(problem("").contains("no machine is defined"));
        assert!(problem("x = 1\n").contains("line 1: 'x' is unknown here"));
        assert!(problem("\n[vm]\nname='a'\n").contains("line 2: 'vm' is a list of machines"));
        assert!(problem("vm = [1]\n").contains("line 1"));
        assert!(problem("[[vm]]\nname='a'\nkernel='k'\n[network]\n").contains("line 4: 'network'"));
        let many: String = (0..=MOST_MACHINES).map(|number| format!("[[vm]]\nname='{number}'\nkernel='k'\n")).collect();
        assert!(problem(&many).contains("line 97: more than 32 machines"));
        assert_eq!(parse(b"[[vm]]\n# \xff").unwrap_err().line, 2);
    }

    #[test]
    fn long_values_are_cut() {
        let said = problem(&format!("[[vm]]\nmemory = \"{}\"\n", "é".repeat(200)));
        assert!(said.chars().count() < 200 && said.contains("é..."), "{said}");
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
}
