//! One function's configuration space: values, and as data which bits can be written and which are cleared by ones.

use super::spec::header;
use alloc::boxed::Box;
use alloc::vec;

/// How much configuration space a function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSize {
    /// 256 bytes, conventional PCI.
    Conventional = 256,
    /// 4096 bytes, PCI Express.
    Extended = 4096,
}

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
    /// Prefetchable memory anywhere; takes two registers.
    Memory64Prefetchable,
}

/// The bus that a window lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// Ports.
    Io,
    /// Memory.
    Memory,
}

/// A range of addresses that a function decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The bus.
    pub space: AddressSpace,
    /// The first address.
    pub base: u64,
    /// Bytes or ports.
    pub size: u64,
}

#[derive(Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// Base address registers in a type 0 header.
const BARS: usize = 6;
/// The number of the expansion ROM among a function's windows.
pub(super) const ROM_WINDOW: usize = BARS;

/// A function's configuration space.
///
/// Built once with the `preset` and `add` methods, which also fix what [`ConfigSpace::reset`] goes back to; they are
/// for the machine's maker and assert that their arguments make sense. Guest accesses go through [`ConfigSpace::read`]
/// and [`ConfigSpace::write`], which take anything.
pub struct ConfigSpace {
    bytes: Box<[u8]>,
    at_reset: Box<[u8]>,
    writable: Box<[u8]>,
    cleared_by_one: Box<[u8]>,
    bars: [Option<Bar>; BARS],
    rom_size: Option<u64>,
    next_capability: u16,
    last_capability: Option<u16>,
    last_extended: Option<u16>,
    next_extended: u16,
}

impl ConfigSpace {
    /// A type 0 header with `identity`, no BARs and no capabilities.
    pub fn new(size: ConfigSize, identity: Identity) -> ConfigSpace {
        let empty = || vec![0u8; size as usize].into_boxed_slice();
        let mut space = ConfigSpace {
            bytes: empty(),
            at_reset: empty(),
            writable: empty(),
            cleared_by_one: empty(),
            bars: [None; BARS],
            rom_size: None,
            next_capability: header::END,
            last_capability: None,
            last_extended: None,
            next_extended: 0x100,
        };
        space.preset16(header::VENDOR_ID, identity.vendor);
        space.preset16(header::DEVICE_ID, identity.device);
        space.preset8(header::REVISION_ID, identity.revision);
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        space.preset(header::CLASS_CODE, &[interface, subclass, class]);
        space.preset16(header::SUBSYSTEM_VENDOR_ID, identity.subsystem.0);
        space.preset16(header::SUBSYSTEM_ID, identity.subsystem.1);
        let command = header::COMMAND_IO
            | header::COMMAND_MEMORY
            | header::COMMAND_MASTER
            | header::COMMAND_PARITY
            | header::COMMAND_SERR
            | header::COMMAND_INTX_DISABLE;
        space.allow_write(header::COMMAND, &command.to_le_bytes());
        space.clear_by_one(header::STATUS, &header::STATUS_ERRORS.to_le_bytes());
        space.allow_write(header::CACHE_LINE_SIZE, &[0xff]);
        space.allow_write(header::LATENCY_TIMER, &[0xff]);
        space.allow_write(header::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets bytes, now and at every reset.
    pub fn preset(&mut self, offset: u16, value: &[u8]) {
        place(&mut self.bytes, offset, value);
        place(&mut self.at_reset, offset, value);
    }

    /// Sets 8 bits, now and at every reset.
    pub fn preset8(&mut self, offset: u16, value: u8) {
        self.preset(offset, &[value]);
    }

    /// Sets 16 bits, now and at every reset.
    pub fn preset16(&mut self, offset: u16, value: u16) {
        self.preset(offset, &value.to_le_bytes());
    }

    /// Sets 32 bits, now and at every reset.
    pub fn preset32(&mut self, offset: u16, value: u32) {
        self.preset(offset, &value.to_le_bytes());
    }

    /// Sets 64 bits, now and at every reset.
    pub fn preset64(&mut self, offset: u16, value: u64) {
        self.preset(offset, &value.to_le_bytes());
    }

    /// Lets the guest write the bits that are set in `mask`, and only those, of the bytes from `offset`.
    pub fn allow_write(&mut self, offset: u16, mask: &[u8]) {
        place(&mut self.writable, offset, mask);
    }

    /// Lets a written one clear the bits that are set in `mask`.
    pub fn clear_by_one(&mut self, offset: u16, mask: &[u8]) {
        place(&mut self.cleared_by_one, offset, mask);
    }

    /// Says which INTx pin the function uses: 1 for INTA# to 4 for INTD#.
    pub fn preset_interrupt_pin(&mut self, pin: u8) {
        assert!((1..=4).contains(&pin), "an INTx pin is 1 to 4");
        self.preset8(header::INTERRUPT_PIN, pin);
    }

    /// Gives the function base address register `index`: `size` is a power of two, at least 4 for ports (at most 256)
    /// and 16 for memory. 64-bit kinds take `index + 1` too.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        assert!(index < BARS && self.bars[index].is_none(), "BAR {index} is taken");
        let least = if kind == BarKind::Io { 4 } else { 16 };
        assert!(size.is_power_of_two() && size >= least, "a BAR's size is a power of two, at least {least}");
        let offset = header::BASE_ADDRESS + 4 * index as u16;
        let mask = !(size - 1);
        match kind {
            BarKind::Io => {
                assert!(size <= 256, "PCI 3.0 6.2.5.1: at most 256 ports");
                self.preset32(offset, header::BAR_IO);
                self.allow_write(offset, &(mask as u32).to_le_bytes());
            }
            BarKind::Memory32 => {
                assert!(size <= 1 << 31, "a 32-bit BAR decodes at most 2 GiB");
                self.allow_write(offset, &(mask as u32).to_le_bytes());
            }
            BarKind::Memory64 | BarKind::Memory64Prefetchable => {
                assert!(index + 1 < BARS && self.bars[index + 1].is_none(), "BAR {index} needs the next one too");
                let prefetchable = if kind == BarKind::Memory64Prefetchable { header::BAR_PREFETCHABLE } else { 0 };
                self.preset32(offset, header::BAR_MEMORY_64 | prefetchable);
                self.allow_write(offset, &mask.to_le_bytes());
            }
        }
        self.bars[index] = Some(Bar { kind, size });
    }

    /// Gives the function an expansion ROM of `size` bytes, a power of two of at least 2 KiB.
    pub fn add_rom(&mut self, size: u64) {
        assert!(size.is_power_of_two() && (2048..=1 << 24).contains(&size), "PCI 3.0 6.2.5.2: 2 KiB to 16 MiB");
        let mask = (!(size - 1)) as u32 | header::ROM_ENABLE;
        self.allow_write(header::EXPANSION_ROM, &mask.to_le_bytes());
        self.rom_size = Some(size);
    }

    /// Appends a capability: `body` is what follows the two bytes of id and next pointer, `writable` its write mask
    /// (shorter is padded with zeros). Returns the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.next_capability;
        let end = usize::from(offset) + 2 + body.len();
        assert!(end <= ConfigSize::Conventional as usize, "no room for capability {id:#x}");
        self.preset(offset, &[id, 0]);
        self.preset(offset + 2, body);
        self.allow_write(offset + 2, writable);
        match self.last_capability {
            Some(last) => self.preset8(last + 1, offset as u8),
            None => {
                self.preset8(header::CAPABILITIES_POINTER, offset as u8);
                self.preset16(header::STATUS, self.get16(header::STATUS) | header::STATUS_CAPABILITIES);
            }
        }
        self.last_capability = Some(offset);
        self.next_capability = (end as u16).next_multiple_of(4);
        offset
    }

    /// Appends a PCI Express extended capability: `body` is what follows the four bytes of its header.
    pub fn add_extended_capability(&mut self, id: u16, version: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.next_extended;
        let end = usize::from(offset) + 4 + body.len();
        assert!(end <= self.bytes.len(), "no room for extended capability {id:#x}");
        self.preset32(offset, u32::from(id) | u32::from(version & 0xf) << 16);
        self.preset(offset + 4, body);
        self.allow_write(offset + 4, writable);
        if let Some(last) = self.last_extended {
            self.preset16(last + 2, self.get16(last + 2) & 0xf | offset << 4);
        }
        self.last_extended = Some(offset);
        self.next_extended = (end as u16).next_multiple_of(4);
        offset
    }

    /// 8 bits; all ones past the end.
    pub fn get8(&self, offset: u16) -> u8 {
        self.get(offset).map_or(!0, u8::from_le_bytes)
    }

    /// 16 bits; all ones past the end.
    pub fn get16(&self, offset: u16) -> u16 {
        self.get(offset).map_or(!0, u16::from_le_bytes)
    }

    /// 32 bits; all ones past the end.
    pub fn get32(&self, offset: u16) -> u32 {
        self.get(offset).map_or(!0, u32::from_le_bytes)
    }

    /// 64 bits; all ones past the end.
    pub fn get64(&self, offset: u16) -> u64 {
        self.get(offset).map_or(!0, u64::from_le_bytes)
    }

    fn get<const N: usize>(&self, offset: u16) -> Option<[u8; N]> {
        let start = usize::from(offset);
        self.bytes.get(start..start + N)?.try_into().ok()
    }

    /// Changes a byte that the device itself drives, such as a status bit; lost at reset, nothing past the end.
    pub fn store8(&mut self, offset: u16, value: u8) {
        if let Some(byte) = self.bytes.get_mut(usize::from(offset)) {
            *byte = value;
        }
    }

    /// A guest's read. Past the end it sees all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(start + index).copied().unwrap_or(0xff);
        }
    }

    /// A guest's write, as far as the masks let it through.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        let cells = self.bytes.iter_mut().zip(self.writable.iter()).zip(self.cleared_by_one.iter());
        for (((cell, writable), cleared), value) in cells.skip(start).zip(data) {
            *cell = *cell & !writable | value & writable;
            *cell &= !(value & cleared);
        }
    }

    /// Back to the preset values.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.at_reset);
    }

    /// Whether the function may read and write memory by itself.
    pub fn is_bus_master(&self) -> bool {
        self.get16(header::COMMAND) & header::COMMAND_MASTER != 0
    }

    /// Whether the command register forbids INTx.
    pub fn is_intx_disabled(&self) -> bool {
        self.get16(header::COMMAND) & header::COMMAND_INTX_DISABLE != 0
    }

    /// What base address register `index` (6 for the expansion ROM) decodes now: nothing if it does not exist, if the
    /// command register or the ROM's enable bit is off, if its address is 0, or if it would end at or past the end of
    /// its space, as it does while it is sized.
    pub fn window(&self, index: usize) -> Option<Window> {
        let command = self.get16(header::COMMAND);
        let memory_on = command & header::COMMAND_MEMORY != 0;
        if index == ROM_WINDOW {
            let size = self.rom_size?;
            let register = self.get32(header::EXPANSION_ROM);
            let on = memory_on && register & header::ROM_ENABLE != 0;
            let base = u64::from(register) & !(size - 1);
            return on.then_some(()).and(checked_window(AddressSpace::Memory, base, size, u64::from(u32::MAX)));
        }
        let bar = (*self.bars.get(index)?)?;
        let offset = header::BASE_ADDRESS + 4 * index as u16;
        let mask = !(bar.size - 1);
        match bar.kind {
            BarKind::Io if command & header::COMMAND_IO != 0 => {
                checked_window(AddressSpace::Io, u64::from(self.get32(offset)) & mask, bar.size, 0xffff)
            }
            BarKind::Memory32 if memory_on => {
                let base = u64::from(self.get32(offset)) & mask;
                checked_window(AddressSpace::Memory, base, bar.size, u64::from(u32::MAX))
            }
            BarKind::Memory64 | BarKind::Memory64Prefetchable if memory_on => {
                checked_window(AddressSpace::Memory, self.get64(offset) & mask, bar.size, u64::MAX)
            }
            _ => None,
        }
    }
}

/// A window that lies between 0 and `end`, both excluded.
fn checked_window(space: AddressSpace, base: u64, size: u64, end: u64) -> Option<Window> {
    let last = base.checked_add(size - 1)?;
    (base != 0 && last < end).then_some(Window { space, base, size })
}

/// Copies the machine maker's bytes.
fn place(cells: &mut [u8], offset: u16, value: &[u8]) {
    let start = usize::from(offset);
    cells[start..start + value.len()].copy_from_slice(value);
}
