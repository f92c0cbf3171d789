//! The local APIC of one processor: xAPIC and x2APIC.
//!
//! Manual: Intel SDM volume 3A, order 325384-083 (March 2024), chapter 11 "Advanced Programmable Interrupt Controller
//! (APIC)"; AMD APM volume 2, order 24593 rev. 3.42, chapter 16 agrees where both speak.
//!
//! Key types: [`LocalApic`] belongs to its vCPU (`&mut`); [`ApicPort`] is the half that devices and other CPUs use, over the
//! atomics of a [`RegisterPage`](memory::RegisterPage) in SDM layout; [`ApicBus`] routes
//! [`crate::InterruptMessage`]s to ports. `machine` decides when to inject: before each entry it asks
//! [`LocalApic::highest_pending`] and [`LocalApic::accepts_ext_int`], and calls [`LocalApic::acknowledge`] for what it
//! injects. The timer runs at [`TIMER_HERTZ`].
//!
//! Not here: SMM, performance and thermal interrupts (their LVT entries are kept, nothing raises them), CMCI, changing the
//! APIC id, and who translates exits to accesses.

mod bus;
mod port;
mod spec;
#[cfg(test)]
mod tests;
mod timer;

pub use bus::ApicBus;
pub use port::{ApicMode, ApicPort};

use crate::{Clock, EoiSink, Nanos, TriggerMode};
use alloc::sync::Arc;
use port::{place, processor_priority};
use spec::{
    DFR_ONES, DIVIDE_BITS, Icr, LDR_XAPIC, LVT_ENTRIES, Lvt, TimerMode, VERSION, VERSION_EOI_SUPPRESSION,
    X2APIC_MSR_FIRST, X2APIC_READABLE, XAPIC_DECODED, apic_base, divide_shift, esr, offset, svr, x2apic_logical_id,
};
use timer::{Lapse, Timer};

/// What the timer counts, before the divider. CPUID 15h and the Hyper-V frequency MSR tell guests.
pub const TIMER_HERTZ: u64 = Nanos::PER_SECOND;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// When the guest's time-stamp counter reaches a value.
pub trait TscTime: Send + Sync {
    /// The moment at which the guest's TSC is or was `tsc`; [`Nanos`]`(u64::MAX)` if that is out of reach.
    fn moment(&self, tsc: u64) -> Nanos;
}

/// What the processor's APIC can do; the CPUID policy says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicFeatures {
    /// x2APIC mode, CPUID 1 ECX\[21\].
    pub x2apic: bool,
    /// TSC-deadline timer mode, CPUID 1 ECX\[24\].
    pub tsc_deadline: bool,
    /// Suppression of EOI broadcasts, version register bit 24. Wants IOAPICs with an EOI register.
    pub eoi_suppression: bool,
    /// Width of physical addresses, CPUID 8000_0008h EAX\[7:0\].
    pub physical_bits: u8,
}

/// What a local APIC is connected to, beside its port.
#[derive(Clone)]
pub struct ApicWires {
    /// Where its interrupt commands go.
    pub bus: Arc<ApicBus>,
    /// Who learns of the EOI of a level-triggered interrupt.
    pub eoi: Arc<dyn EoiSink>,
    /// What its timer counts.
    pub clock: Arc<dyn Clock>,
    /// What TSC deadlines mean.
    pub tsc: Arc<dyn TscTime>,
}

/// A processor's place in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The bootstrap processor.
    Bootstrap,
    /// Any other one.
    Application,
}

/// The owner's half of a local APIC.
///
/// Whatever makes an interrupt deliverable calls [`crate::CpuSignals::interrupt_pending`], the owner's own EOI and TPR
/// writes too.
pub struct LocalApic {
    port: Arc<ApicPort>,
    wires: ApicWires,
    features: ApicFeatures,
    role: Role,
    /// IA32_APIC_BASE.
    base: u64,
    /// Bit n is set if word n of ISR is non-zero.
    service_words: u8,
    timer: Timer,
}

impl LocalApic {
    /// The APIC behind `port`, reset. There must be one of them for each port.
    pub fn new(port: Arc<ApicPort>, wires: ApicWires, features: ApicFeatures, role: Role) -> LocalApic {
        let mut apic = LocalApic { port, wires, features, role, base: 0, service_words: 0, timer: Timer::new() };
        apic.reset();
        apic
    }

    /// The half that others use.
    pub fn port(&self) -> &Arc<ApicPort> {
        &self.port
    }

    /// SDM 3A 11.4.7.1 "Local APIC State After Power-Up or Reset": xAPIC mode, disabled by software.
    pub fn reset(&mut self) {
        self.base = apic_base::DEFAULT_ADDRESS | apic_base::EN;
        if self.role == Role::Bootstrap {
            self.base |= apic_base::BSP;
        }
        self.port.set_mode(ApicMode::XApic);
        self.reset_registers();
    }

    /// SDM 3A 11.4.7.3 "Local APIC State After an INIT Reset": all but the id, the base and the mode.
    pub fn init(&mut self) {
        self.reset_registers();
    }

    fn reset_registers(&mut self) {
        let page = self.port.page();
        self.port.forget();
        for register in (0..offset::END).step_by(offset::STRIDE) {
            page.store(register, 0);
        }
        let suppression = if self.features.eoi_suppression { VERSION_EOI_SUPPRESSION } else { 0 };
        page.store(offset::VERSION, VERSION | suppression);
        page.store(offset::DFR, u32::MAX);
        page.store(offset::SVR, svr::RESET);
        for entry in LVT_ENTRIES {
            page.store(entry, Lvt::MASKED);
        }
        self.service_words = 0;
        self.timer = Timer::new();
        self.show_id();
    }

    /// Id and, in x2APIC mode, logical id as the mode has them.
    fn show_id(&self) {
        let id = self.port.id();
        let page = self.port.page();
        if self.port.mode() == ApicMode::X2Apic {
            page.store(offset::ID, id);
            page.store(offset::LDR, x2apic_logical_id(id));
        } else {
            page.store(offset::ID, id << 24);
            page.store(offset::LDR, 0);
        }
    }

    /// What firmware leaves behind, for a guest that is started without one: enabled, LINT0 as ExtINT on the bootstrap
    /// processor, LINT1 as NMI. MultiProcessor Specification 1.4, 3.6.2.2 "Virtual Wire Mode".
    pub fn set_virtual_wire(&mut self) {
        const EXT_INT: u32 = 7 << 8;
        const NMI: u32 = 4 << 8;
        let page = self.port.page();
        page.store(offset::SVR, svr::RESET | svr::ENABLE);
        if self.role == Role::Bootstrap {
            page.store(offset::LVT_LINT0, EXT_INT);
            self.port.lint0_entry_written();
        }
        page.store(offset::LVT_LINT1, NMI);
    }

    // IA32_APIC_BASE

    /// IA32_APIC_BASE.
    #[inline]
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. SDM 3A 11.12.5 "x2APIC State Transitions".
    ///
    /// # Errors
    /// A reserved bit is set, or the mode cannot be entered from the present one.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let above_address = u64::MAX.checked_shl(self.features.physical_bits.into()).unwrap_or(0);
        let address = !above_address & u64::MAX << apic_base::ADDRESS_SHIFT;
        let mode_bits = if self.features.x2apic { apic_base::EN | apic_base::EXTD } else { apic_base::EN };
        if value & !(address | mode_bits | apic_base::BSP) != 0 {
            return Err(GeneralProtection);
        }
        let to = match (value & apic_base::EN != 0, value & apic_base::EXTD != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        let from = self.port.mode();
        match (from, to) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (ApicMode::XApic, ApicMode::X2Apic) => {
                self.port.set_mode(to);
                self.show_id();
                self.port.page().store(offset::ICR_HIGH, 0);
            }
            (ApicMode::Disabled, ApicMode::XApic) | (_, ApicMode::Disabled) if from != to => {
                self.port.set_mode(to);
                self.reset_registers();
            }
            _ => {}
        }
        self.base = value;
        Ok(())
    }

    /// Where the register page is mapped: in xAPIC mode only.
    #[inline]
    pub fn mmio_base(&self) -> Option<u64> {
        (self.port.mode() == ApicMode::XApic).then_some(self.base & u64::MAX << apic_base::ADDRESS_SHIFT)
    }

    // Interrupts to the processor

    /// The vector to inject: the highest request above the processor priority.
    #[inline]
    pub fn highest_pending(&self) -> Option<u8> {
        let vector = self.port.highest_request()?;
        (vector >> 4 > self.port.priority() >> 4).then_some(vector)
    }

    /// The highest request that nothing but the task priority holds back. The guest lets it through by a write to CR8, which
    /// need not exit: the processor has to be asked to say so.
    #[inline]
    pub fn held_by_task_priority(&self) -> Option<u8> {
        let vector = self.port.highest_request()?;
        let class = vector >> 4;
        (class > self.port.in_service() >> 4 && class <= self.port.priority() >> 4).then_some(vector)
    }

    /// The processor takes `vector`, which [`LocalApic::highest_pending`] gave: from IRR to ISR.
    #[inline]
    pub fn acknowledge(&mut self, vector: u8) {
        self.port.withdraw(vector);
        let (word, bit) = place(vector);
        let page = self.port.page();
        page.store(offset::ISR + word, page.load(offset::ISR + word) | bit);
        self.service_words |= 1 << (vector >> 5);
        self.port.set_in_service(vector.max(self.port.in_service()));
    }

    /// The vector of a processor that was promised an interrupt which is gone by now; nothing is in service after it.
    pub fn spurious_vector(&self) -> u8 {
        (self.port.page().load(offset::SVR) & svr::VECTOR) as u8
    }

    /// See [`ApicPort::accepts_ext_int`].
    #[inline]
    pub fn accepts_ext_int(&self) -> bool {
        self.port.accepts_ext_int()
    }

    /// The 8259 pair was asked for a vector: an ExtINT message that waited is done.
    pub fn ext_int_acknowledged(&mut self) {
        self.port.ext_int_taken();
    }

    /// End of interrupt.
    #[inline]
    pub fn eoi(&mut self) {
        let vector = self.port.in_service();
        if vector == 0 {
            return;
        }
        let (word, bit) = place(vector);
        let page = self.port.page();
        let left = page.load(offset::ISR + word) & !bit;
        page.store(offset::ISR + word, left);
        let next = if left != 0 {
            vector & !31 | left.ilog2() as u8
        } else {
            self.service_words &= !(1 << (vector >> 5));
            self.highest_in_service()
        };
        self.port.set_in_service(next);
        if page.load(offset::TMR + word) & bit != 0 {
            self.end_of_level(vector);
        }
        self.signal_pending();
    }

    fn highest_in_service(&self) -> u8 {
        match self.service_words.checked_ilog2() {
            Some(index) => {
                let word = self.port.page().load(offset::ISR + index as usize * offset::STRIDE);
                (index << 5 | word.checked_ilog2().unwrap_or(0)) as u8
            }
            None => 0,
        }
    }

    /// SDM 3A 11.8.5 "Signaling Interrupt Servicing Completion": the IOAPICs learn of it unless software suppressed that.
    /// With virtual-interrupt delivery the processor does the rest and exits for this.
    pub fn end_of_level(&mut self, vector: u8) {
        self.port.lint0_end_of(vector);
        if self.port.page().load(offset::SVR) & svr::EOI_SUPPRESSION == 0 {
            self.wires.eoi.eoi(vector);
        }
    }

    /// The vectors whose EOI has to come to [`LocalApic::end_of_level`], one bit each.
    pub fn level_vectors(&self) -> [u64; 4] {
        let word = |index: usize| u64::from(self.port.page().load(offset::TMR + index * offset::STRIDE));
        [0, 2, 4, 6].map(|index| word(index) | word(index + 1) << 32)
    }

    /// Signals a request that no interrupt in service holds back. One that the task priority holds back counts: see
    /// [`LocalApic::held_by_task_priority`].
    #[inline]
    fn signal_pending(&self) {
        if self.port.highest_request().is_some_and(|vector| vector >> 4 > self.port.in_service() >> 4) {
            self.port.signals().interrupt_pending();
        }
    }

    /// TPR; CR8 is its upper half.
    #[inline]
    pub fn task_priority(&self) -> u8 {
        self.port.page().load(offset::TPR) as u8
    }

    /// Writes TPR.
    #[inline]
    pub fn set_task_priority(&mut self, value: u8) {
        let page = self.port.page();
        let before = page.load(offset::TPR) as u8;
        page.store(offset::TPR, value.into());
        // A request that stays held back has been signalled when it came, or when what was in service ended.
        if value < before && self.highest_pending().is_some() {
            self.port.signals().interrupt_pending();
        }
    }

    // Registers

    /// Reads the register at `register` of the page, for xAPIC mode's naturally aligned 32-bit access.
    #[inline]
    pub fn read32(&mut self, register: usize) -> u32 {
        match register {
            offset::PPR | offset::TIMER_CURRENT => self.read_computed(register),
            _ if register < offset::END
                && register.is_multiple_of(offset::STRIDE)
                && XAPIC_DECODED >> (register / offset::STRIDE) & 1 != 0 =>
            {
                self.port.page().load(register)
            }
            _ => {
                self.illegal_register(register);
                0
            }
        }
    }

    /// The registers that nobody stores.
    fn read_computed(&self, register: usize) -> u32 {
        match register {
            offset::PPR => processor_priority(self.task_priority(), self.port.in_service()).into(),
            _ => self.timer.current(self.timer_mode(), self.timer_initial(), self.wires.clock.now()),
        }
    }

    /// Reads `data.len()` bytes at `register` in xAPIC mode. The SDM leaves all but aligned 32-bit accesses undefined: here
    /// parts of a register read as such, and the 12 bytes between two registers read as zero.
    #[inline]
    pub fn read(&mut self, register: usize, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(dword) if register.is_multiple_of(offset::STRIDE) => *dword = self.read32(register).to_le_bytes(),
            _ => self.read_other(register, data),
        }
    }

    fn read_other(&mut self, register: usize, data: &mut [u8]) {
        data.fill(0);
        let within = register % offset::STRIDE;
        let value = if within < 4 { self.read32(register - within).to_le_bytes() } else { [0; 4] };
        for (byte, from) in data.iter_mut().zip(value.into_iter().skip(within)) {
            *byte = from;
        }
    }

    /// Writes `data` at `register` in xAPIC mode. Only what covers a whole aligned register counts.
    pub fn write(&mut self, register: usize, data: &[u8]) {
        if let Some(&value) = data.first_chunk() {
            self.write32(register, u32::from_le_bytes(value));
        }
    }

    /// Writes the register at `register` of the page, for xAPIC mode's naturally aligned 32-bit access.
    #[inline]
    pub fn write32(&mut self, register: usize, value: u32) {
        let page = self.port.page();
        match register {
            offset::EOI => self.eoi(),
            offset::TPR => self.set_task_priority(value as u8),
            offset::ICR_LOW => {
                let destination = page.load(offset::ICR_HIGH) >> 24;
                self.command(value, destination, false);
            }
            offset::ICR_HIGH => page.store(offset::ICR_HIGH, value & 0xff00_0000),
            offset::LDR => page.store(offset::LDR, value & LDR_XAPIC),
            offset::DFR => page.store(offset::DFR, value | DFR_ONES),
            _ => self.write_in_both(register, value),
        }
    }

    /// Registers that both modes write alike, but for the hot ones.
    fn write_in_both(&mut self, register: usize, value: u32) {
        match register {
            offset::SVR => self.write_svr(value),
            offset::ESR => {
                let errors = self.port.take_errors();
                self.port.page().store(offset::ESR, errors);
            }
            offset::LVT_TIMER => self.write_lvt_timer(value),
            offset::LVT_THERMAL
            | offset::LVT_PERFORMANCE
            | offset::LVT_LINT0
            | offset::LVT_LINT1
            | offset::LVT_ERROR => self.write_lvt(register, value),
            offset::TIMER_INITIAL => self.write_initial_count(value),
            offset::TIMER_DIVIDE => self.write_divide(value),
            offset::ID | offset::VERSION => {}
            _ if register < offset::END
                && register.is_multiple_of(offset::STRIDE)
                && XAPIC_DECODED >> (register / offset::STRIDE) & 1 != 0 => {}
            _ => self.illegal_register(register),
        }
    }

    /// SDM 3A 11.5.3: the error is for accesses to registers that are reserved; bytes between registers are undefined.
    #[cold]
    fn illegal_register(&mut self, register: usize) {
        if register < offset::END && register.is_multiple_of(offset::STRIDE) {
            self.port.error(esr::ILLEGAL_REGISTER_ADDRESS);
        }
    }

    #[inline]
    fn command(&mut self, low: u32, destination: u32, is_x2apic: bool) {
        let icr = Icr::from_bits(low & Icr::WRITABLE);
        self.port.page().store(offset::ICR_LOW, icr.into_bits());
        self.wires.bus.command(&self.port, icr, destination, is_x2apic);
    }

    fn svr_writable(&self) -> u32 {
        let suppression = if self.features.eoi_suppression { svr::EOI_SUPPRESSION } else { 0 };
        svr::VECTOR | svr::ENABLE | svr::FOCUS | suppression
    }

    /// SDM 3A 11.4.7.2 "Local APIC State After It Has Been Software Disabled": all LVT entries are masked and stay so; what
    /// is in IRR and ISR stays and is delivered.
    fn write_svr(&mut self, value: u32) {
        self.port.page().store(offset::SVR, value & self.svr_writable());
        if value & svr::ENABLE == 0 {
            self.settle_timer();
            for entry in LVT_ENTRIES {
                self.port.page().register(entry).fetch_or(Lvt::MASKED, core::sync::atomic::Ordering::SeqCst);
            }
        }
    }

    /// What a write of `value` to the LVT entry stores: a disabled APIC's entries are masked.
    fn lvt_value(&self, entry: usize, value: u32) -> u32 {
        let page = self.port.page();
        let disabled = if page.load(offset::SVR) & svr::ENABLE == 0 { Lvt::MASKED } else { 0 };
        value & Lvt::writable(entry, self.features.tsc_deadline) | disabled
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let mut new = Lvt::from_bits(self.lvt_value(entry, value));
        let before = self.port.lvt(entry);
        if entry == offset::LVT_LINT0 {
            // Remote IRR means something only while the entry is a level-triggered one.
            new.set_remote_irr(before.remote_irr() && new.level());
        }
        self.port.page().store(entry, new.into_bits());
        if entry == offset::LVT_LINT0 {
            self.port.lint0_entry_written();
        }
    }

    // x2APIC

    /// RDMSR of 800h to 8ffh. SDM 3A 11.12.1.2 "x2APIC Register Address Space".
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, or the register is not there or write-only.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        let number = msr.wrapping_sub(X2APIC_MSR_FIRST);
        if self.port.mode() != ApicMode::X2Apic || X2APIC_READABLE.checked_shr(number).unwrap_or(0) & 1 == 0 {
            return Err(GeneralProtection);
        }
        let register = number as usize * offset::STRIDE;
        let page = self.port.page();
        Ok(match register {
            offset::PPR | offset::TIMER_CURRENT => self.read_computed(register).into(),
            offset::ICR_LOW => u64::from(page.load(offset::ICR_HIGH)) << 32 | u64::from(page.load(offset::ICR_LOW)),
            _ => page.load(register).into(),
        })
    }

    /// WRMSR of 800h to 8ffh.
    ///
    /// # Errors
    /// The APIC is not in x2APIC mode, the register is not there or read-only, or a reserved bit is set.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        if self.port.mode() != ApicMode::X2Apic {
            return Err(GeneralProtection);
        }
        let register = msr.wrapping_sub(X2APIC_MSR_FIRST) as usize;
        let register = register.checked_mul(offset::STRIDE).ok_or(GeneralProtection)?;
        let low = value as u32;
        let only = |bits: u32| if value & !u64::from(bits) == 0 { Ok(()) } else { Err(GeneralProtection) };
        match register {
            offset::EOI => {
                only(0)?;
                self.eoi();
            }
            offset::TPR => {
                only(0xff)?;
                self.set_task_priority(low as u8);
            }
            offset::ICR_LOW => {
                if low & !(Icr::WRITABLE | Icr::DELIVERY_STATUS) != 0 {
                    return Err(GeneralProtection);
                }
                let destination = (value >> 32) as u32;
                self.port.page().store(offset::ICR_HIGH, destination);
                self.command(low, destination, true);
            }
            offset::SELF_IPI => {
                only(0xff)?;
                self.self_ipi(low as u8);
            }
            offset::SVR => {
                only(self.svr_writable())?;
                self.write_svr(low);
            }
            offset::ESR => {
                only(0)?;
                self.write_in_both(register, 0);
            }
            offset::TIMER_INITIAL => {
                only(u32::MAX)?;
                self.write_in_both(register, low);
            }
            offset::TIMER_DIVIDE => {
                only(DIVIDE_BITS)?;
                self.write_in_both(register, low);
            }
            entry if LVT_ENTRIES.contains(&entry) => {
                only(Lvt::writable(entry, self.features.tsc_deadline) | Lvt::READ_ONLY)?;
                self.write_in_both(entry, low);
            }
            _ => return Err(GeneralProtection),
        }
        Ok(())
    }

    /// SDM 3A 11.12.11 "SELF IPI Register": a fixed, edge-triggered interrupt to itself.
    #[inline]
    fn self_ipi(&mut self, vector: u8) {
        if vector < spec::FIRST_VECTOR {
            self.port.error(esr::SEND_ILLEGAL_VECTOR);
        } else if self.port.takes_vectors() {
            self.port.request(vector, TriggerMode::Edge);
        }
    }

    // Timer

    fn timer_mode(&self) -> TimerMode {
        self.port.lvt(offset::LVT_TIMER).timer_mode()
    }

    fn timer_initial(&self) -> u32 {
        self.port.page().load(offset::TIMER_INITIAL)
    }

    /// When [`LocalApic::expire`] has to be called next. A masked timer counts without an alarm.
    #[inline]
    pub fn deadline(&self) -> Option<Nanos> {
        let end = self.timer.end?;
        (!self.port.lvt(offset::LVT_TIMER).masked()).then_some(end)
    }

    /// Delivers the timer's interrupt if it is due at `now`. Any number of missed periods is one interrupt.
    pub fn expire(&mut self, now: Nanos) {
        if self.timer.settle(self.timer_mode(), self.timer_initial(), now) == Lapse::RanOut {
            let entry = self.port.lvt(offset::LVT_TIMER);
            if !entry.masked() {
                self.port.request(entry.vector(), TriggerMode::Edge);
            }
        }
    }

    /// What was due under the registers as they are happens before they change.
    fn settle_timer(&mut self) -> Nanos {
        let now = self.wires.clock.now();
        self.expire(now);
        now
    }

    /// SDM 3A 11.5.4.1 "TSC-Deadline Mode": going to or from that mode disarms the timer.
    fn write_lvt_timer(&mut self, value: u32) {
        self.settle_timer();
        let was_deadline = self.timer_mode() == TimerMode::TscDeadline;
        let value = self.lvt_value(offset::LVT_TIMER, value);
        self.port.page().store(offset::LVT_TIMER, value);
        if was_deadline != (self.timer_mode() == TimerMode::TscDeadline) {
            self.port.page().store(offset::TIMER_INITIAL, 0);
            self.timer.stop();
        }
    }

    /// In TSC-deadline mode writes to the initial count are ignored.
    fn write_initial_count(&mut self, value: u32) {
        if self.timer_mode() != TimerMode::TscDeadline {
            let now = self.settle_timer();
            self.port.page().store(offset::TIMER_INITIAL, value);
            self.timer.start(value, now);
        }
    }

    fn write_divide(&mut self, value: u32) {
        let now = self.settle_timer();
        let (mode, initial) = (self.timer_mode(), self.timer_initial());
        self.port.page().store(offset::TIMER_DIVIDE, value & DIVIDE_BITS);
        self.timer.set_shift(divide_shift(value), mode, initial, now);
    }

    /// IA32_TSC_DEADLINE: 0 while it is not armed. The machine raises #GP itself where the feature is not there.
    pub fn tsc_deadline(&self) -> u64 {
        match self.timer.end {
            Some(end) if self.timer_mode() == TimerMode::TscDeadline && end > self.wires.clock.now() => {
                self.timer.tsc_deadline
            }
            _ => 0,
        }
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms; a value that the TSC has reached fires at once; ignored in the other modes.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() != TimerMode::TscDeadline {
            return;
        }
        let now = self.settle_timer();
        self.timer.tsc_deadline = value;
        self.timer.end = (value != 0).then(|| self.wires.tsc.moment(value));
        self.expire(now);
    }

    /// The guest's TSC was set or scaled: an armed deadline lies at another moment now.
    pub fn tsc_changed(&mut self) {
        if self.timer_mode() == TimerMode::TscDeadline && self.timer.end.is_some() {
            self.timer.end = Some(self.wires.tsc.moment(self.timer.tsc_deadline));
            self.settle_timer();
        }
    }
}
