//! What boot loaders and users hand to the host: boot information, the archive of modules, options.

use boot::{BootError, BootInfo, PhysicalMemory, PhysicalRange, cpio, multiboot2, pvh};
use kernel::definitions;
use kernel::options::Options;

/// Where the fuzzer's bytes lie in physical memory.
const BASE: u64 = 0x1000;
const IMAGE: PhysicalRange = PhysicalRange { start: 0x10_0000, end: 0x20_0000 };

/// Physical memory that holds the bytes at [`BASE`] and nothing else.
struct Physical<'a>(&'a [u8]);

impl<'a> PhysicalMemory<'a> for Physical<'a> {
    fn bytes(&self, address: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.0.get(start..end)
    }
}

fn check(bytes: &[u8], parsed: Result<BootInfo<'_>, BootError>) {
    match parsed {
        Ok(info) => {
            assert!(!info.memory.is_empty(), "a host without a memory map cannot start");
            for module in &info.modules {
                assert!(module.bytes.len() <= bytes.len());
                assert_eq!(info.module(module.name).map(|found| found.name), Some(module.name));
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line"),
    }
}

/// PVH's start information.
pub fn pvh(bytes: &[u8]) {
    check(bytes, pvh::parse(&Physical(bytes), BASE, IMAGE));
}

/// Multiboot2's tags.
pub fn multiboot2(bytes: &[u8]) {
    check(bytes, multiboot2::parse(&Physical(bytes), BASE, IMAGE));
}

/// A newc archive.
pub fn archive(bytes: &[u8]) {
    let mut total = 0;
    for entry in cpio::Entries::new(bytes) {
        let Ok(entry) = entry else { break };
        total += entry.bytes.len() + 110;
        assert!(total <= bytes.len(), "files do not overlap");
        let at = entry.offset as usize;
        assert_eq!(bytes.get(at..at + entry.bytes.len()), Some(entry.bytes));
    }
}

/// The hypervisor's command line.
pub fn options(bytes: &[u8]) {
    let Ok(line) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = Options::parse(line) {
        assert!(!error.to_string().contains('\n'), "an error is one line");
    }
}

/// The definitions of the virtual machines.
pub fn vms_toml(bytes: &[u8]) {
    match definitions::parse(bytes) {
        Ok(machines) => {
            for (index, machine) in machines.iter().enumerate() {
                assert!(machine.memory.is_multiple_of(2 << 20) && machine.memory > 0 && machine.vcpus >= 1);
                assert!(machines[..index].iter().all(|other| other.name != machine.name), "names are unique");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line"),
    }
}
