//! What other CPUs and devices may touch of a local APIC.

use super::spec::{DFR_FLAT, FIRST_VECTOR, Lvt, esr, offset, svr};
use crate::{CpuSignals, DeliveryMode, DestinationMode, TriggerMode};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use memory::RegisterPage;

/// How software reaches the APIC, SDM 3A 11.12.1 "Detecting and Enabling x2APIC Mode".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ApicMode {
    /// Not at all: IA32_APIC_BASE.EN is clear.
    Disabled,
    /// By its page of registers.
    XApic,
    /// By MSRs.
    X2Apic,
}

/// The shared half of a local APIC: anybody may call it from any CPU.
///
/// It works on the register page's atomics, without a lock. IRR may gain bits here and loses them only by the owner,
/// [`super::LocalApic`].
pub struct ApicPort {
    page: Arc<RegisterPage>,
    signals: Arc<dyn CpuSignals>,
    id: u32,
    mode: AtomicU8,
    /// Bit n is set if word n of IRR may be non-zero; it is set after the word and cleared only by the owner.
    request_words: AtomicU8,
    /// The highest vector in service, 0 for none; written by the owner.
    in_service: AtomicU8,
    /// Errors since the last write to ESR.
    errors: AtomicU32,
    lint0_asserted: AtomicBool,
    /// An ExtINT message arrived and the 8259 pair was not asked yet.
    ext_int_latched: AtomicBool,
}

/// The word of a 256-bit register that holds `vector`, as an offset from its first word, and the bit in it.
#[inline]
pub(super) const fn place(vector: u8) -> (usize, u32) {
    ((vector as usize >> 5) * offset::STRIDE, 1 << (vector & 31))
}

/// A processor priority, SDM 3A 11.8.3.1 "Task and Processor Priorities".
#[inline]
pub(super) const fn processor_priority(task_priority: u8, in_service: u8) -> u8 {
    if task_priority >> 4 >= in_service >> 4 { task_priority } else { in_service & 0xf0 }
}

impl ApicPort {
    /// The port of the APIC with this id over `page`, which the APIC owns from now on. It takes no message before its
    /// [`super::LocalApic`] exists.
    pub fn new(id: u32, page: Arc<RegisterPage>, signals: Arc<dyn CpuSignals>) -> Arc<ApicPort> {
        Arc::new(ApicPort {
            page,
            signals,
            id,
            mode: AtomicU8::new(ApicMode::Disabled as u8),
            request_words: AtomicU8::new(0),
            in_service: AtomicU8::new(0),
            errors: AtomicU32::new(0),
            lint0_asserted: AtomicBool::new(false),
            ext_int_latched: AtomicBool::new(false),
        })
    }

    /// The APIC id: all 32 bits in x2APIC mode, the low 8 in xAPIC mode. Software cannot change it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The register page, for APICv and AVIC.
    pub fn page(&self) -> &Arc<RegisterPage> {
        &self.page
    }

    /// The mode that IA32_APIC_BASE chose last.
    #[inline]
    pub fn mode(&self) -> ApicMode {
        match self.mode.load(Ordering::Acquire) {
            0 => ApicMode::Disabled,
            1 => ApicMode::XApic,
            _ => ApicMode::X2Apic,
        }
    }

    pub(super) fn set_mode(&self, mode: ApicMode) {
        self.mode.store(mode as u8, Ordering::Release);
    }

    pub(super) fn signals(&self) -> &dyn CpuSignals {
        &*self.signals
    }

    /// Takes an interrupt that was addressed to this APIC. True if it did: a vector needs an APIC that is enabled by
    /// software, everything else one that is there. SMI is taken and dropped, for these processors have no SMM.
    #[inline]
    pub fn accept(&self, delivery: DeliveryMode, vector: u8, trigger: TriggerMode) -> bool {
        if matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            let takes = self.takes_vectors();
            if takes {
                self.request(vector, trigger);
            }
            return takes;
        }
        if self.mode() == ApicMode::Disabled {
            return false;
        }
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Smi => {}
            DeliveryMode::Nmi => self.signals.nmi(),
            DeliveryMode::Init => self.signals.init(),
            DeliveryMode::StartUp => self.signals.start_up(vector),
            DeliveryMode::ExtInt => {
                self.ext_int_latched.store(true, Ordering::SeqCst);
                self.signals.interrupt_pending();
            }
        }
        true
    }

    /// Whether fixed and lowest-priority messages reach it.
    #[inline]
    pub(super) fn takes_vectors(&self) -> bool {
        self.mode() != ApicMode::Disabled && self.page.load(offset::SVR) & svr::ENABLE != 0
    }

    /// Whether a message for `destination` means this APIC. `broadcast`: the sender's all-ones destination.
    #[inline]
    pub(super) fn is_addressed(&self, destination: u32, mode: DestinationMode, broadcast: bool) -> bool {
        match (self.mode(), mode) {
            (ApicMode::Disabled, _) => false,
            _ if broadcast => true,
            (ApicMode::XApic, DestinationMode::Physical) => destination == self.id & 0xff,
            (ApicMode::X2Apic, DestinationMode::Physical) => destination == self.id,
            (ApicMode::XApic, DestinationMode::Logical) => self.is_in_xapic_set(destination),
            (ApicMode::X2Apic, DestinationMode::Logical) => {
                let own = self.page.load(offset::LDR);
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
        }
    }

    /// SDM 3A 11.6.2.2 "Logical Destination Mode": flat model, and cluster model for any other value of DFR.
    fn is_in_xapic_set(&self, destination: u32) -> bool {
        let own = self.page.load(offset::LDR) >> 24;
        if destination > 0xff {
            false
        } else if self.page.load(offset::DFR) >> 28 == DFR_FLAT {
            own & destination != 0
        } else {
            own >> 4 == destination >> 4 && own & destination & 0xf != 0
        }
    }

    /// What lowest-priority arbitration compares: the processor priority.
    #[inline]
    pub(super) fn priority(&self) -> u8 {
        processor_priority(self.page.load(offset::TPR) as u8, self.in_service())
    }

    #[inline]
    pub(super) fn in_service(&self) -> u8 {
        self.in_service.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn set_in_service(&self, vector: u8) {
        self.in_service.store(vector, Ordering::Relaxed);
    }

    /// Sets the vector's IRR bit and tells the processor if it was clear.
    pub(super) fn request(&self, vector: u8, trigger: TriggerMode) {
        if vector < FIRST_VECTOR {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        let (word, bit) = place(vector);
        let modes = self.page.register(offset::TMR + word);
        let is_level = modes.load(Ordering::Relaxed) & bit != 0;
        match trigger {
            TriggerMode::Level if !is_level => {
                modes.fetch_or(bit, Ordering::SeqCst);
            }
            TriggerMode::Edge if is_level => {
                modes.fetch_and(!bit, Ordering::SeqCst);
            }
            _ => {}
        }
        if self.page.register(offset::IRR + word).fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.request_words.fetch_or(1 << (vector >> 5), Ordering::SeqCst);
            self.signals.interrupt_pending();
        }
    }

    /// The highest vector in IRR.
    #[inline]
    pub(super) fn highest_request(&self) -> Option<u8> {
        let mut words = self.request_words.load(Ordering::Acquire);
        while words != 0 {
            let index = words.ilog2();
            let word = self.page.load(offset::IRR + index as usize * offset::STRIDE);
            if word != 0 {
                return Some((index << 5 | word.ilog2()) as u8);
            }
            words &= !(1 << index);
        }
        None
    }

    /// Clears the vector's IRR bit. The owner's alone.
    #[inline]
    pub(super) fn withdraw(&self, vector: u8) {
        let (word, bit) = place(vector);
        let requests = self.page.register(offset::IRR + word);
        if requests.fetch_and(!bit, Ordering::SeqCst) & !bit == 0 {
            let hint = 1 << (vector >> 5);
            self.request_words.fetch_and(!hint, Ordering::SeqCst);
            // Somebody may have set another bit of the word before the hint was cleared and told nobody since.
            if requests.load(Ordering::SeqCst) != 0 {
                self.request_words.fetch_or(hint, Ordering::SeqCst);
            }
        }
    }

    /// Forgets what the page does not hold, before the owner resets the page. The hint goes first, so that a request
    /// that comes meanwhile either is cleared with the page or sets the hint again.
    pub(super) fn forget(&self) {
        self.request_words.store(0, Ordering::SeqCst);
        self.set_in_service(0);
        self.errors.store(0, Ordering::SeqCst);
        self.ext_int_latched.store(false, Ordering::SeqCst);
    }

    /// Logs an error; the first one after a write to ESR interrupts by the error entry.
    pub(super) fn error(&self, bit: u32) {
        if self.errors.fetch_or(bit, Ordering::SeqCst) == 0 {
            let entry = self.lvt(offset::LVT_ERROR);
            if !entry.masked() {
                // A bad vector in the entry itself logs one more error and ends there, for this one is pending.
                self.request(entry.vector(), TriggerMode::Edge);
            }
        }
    }

    /// Takes the errors that were logged and arms the error interrupt again.
    pub(super) fn take_errors(&self) -> u32 {
        self.errors.swap(0, Ordering::SeqCst)
    }

    #[inline]
    pub(super) fn lvt(&self, entry: usize) -> Lvt {
        Lvt::from_bits(self.page.load(entry))
    }

    /// Drives LINT0, the pin that PCs connect to the 8259 pair's INTR.
    pub fn set_lint0(&self, asserted: bool) {
        let was = self.lint0_asserted.swap(asserted, Ordering::SeqCst);
        if !asserted || was {
            return;
        }
        if self.mode() == ApicMode::Disabled {
            self.signals.interrupt_pending();
            return;
        }
        let entry = self.lvt(offset::LVT_LINT0);
        if entry.masked() {
            return;
        }
        match DeliveryMode::from_bits(entry.delivery()) {
            Some(DeliveryMode::Fixed) if entry.level() => self.lint0_level_request(),
            Some(DeliveryMode::Fixed) => self.request(entry.vector(), TriggerMode::Edge),
            Some(DeliveryMode::ExtInt) => self.signals.interrupt_pending(),
            Some(other) => self.local(other),
            None => {}
        }
    }

    /// What follows a new LINT0 entry while the pin is asserted; an edge that came before is gone.
    pub(super) fn lint0_entry_written(&self) {
        let entry = self.lvt(offset::LVT_LINT0);
        if !self.lint0_asserted.load(Ordering::SeqCst) || entry.masked() {
            return;
        }
        match DeliveryMode::from_bits(entry.delivery()) {
            Some(DeliveryMode::Fixed) if entry.level() => self.lint0_level_request(),
            Some(DeliveryMode::ExtInt) => self.signals.interrupt_pending(),
            _ => {}
        }
    }

    /// A level-triggered LINT0: one request until its EOI.
    fn lint0_level_request(&self) {
        let entry = self.page.register(offset::LVT_LINT0);
        let before = entry.fetch_or(Lvt::REMOTE_IRR, Ordering::SeqCst);
        if before & Lvt::REMOTE_IRR == 0 {
            self.request(Lvt::from_bits(before).vector(), TriggerMode::Level);
        }
    }

    /// The level-triggered `vector` was ended: if it was LINT0's, the pin counts again.
    pub(super) fn lint0_end_of(&self, vector: u8) {
        let entry = self.lvt(offset::LVT_LINT0);
        if entry.remote_irr() && entry.vector() == vector {
            self.page.register(offset::LVT_LINT0).fetch_and(!Lvt::REMOTE_IRR, Ordering::SeqCst);
            self.lint0_entry_written();
        }
    }

    /// One pulse on LINT1, the pin that PCs connect to NMI.
    pub fn pulse_lint1(&self) {
        if self.mode() == ApicMode::Disabled {
            self.signals.nmi();
            return;
        }
        let entry = self.lvt(offset::LVT_LINT1);
        if entry.masked() {
            return;
        }
        match DeliveryMode::from_bits(entry.delivery()) {
            Some(DeliveryMode::Fixed) => self.request(entry.vector(), TriggerMode::Edge),
            Some(other) => self.local(other),
            None => {}
        }
    }

    /// Delivery modes of the LVT other than fixed and LINT0's ExtINT, SDM 3A 11.5.1 "Local Vector Table".
    fn local(&self, delivery: DeliveryMode) {
        match delivery {
            DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::ExtInt => {
                self.accept(delivery, 0, TriggerMode::Edge);
            }
            DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Smi | DeliveryMode::StartUp => {}
        }
    }

    /// Whether the 8259 pair's INTR reaches this processor: by an APIC that is not there, by LINT0 as ExtINT, or by an
    /// ExtINT message that waits.
    #[inline]
    pub fn accepts_ext_int(&self) -> bool {
        if self.mode() == ApicMode::Disabled {
            return true;
        }
        let entry = self.lvt(offset::LVT_LINT0);
        !entry.masked() && entry.delivery() == DeliveryMode::ExtInt as u32
            || self.ext_int_latched.load(Ordering::Relaxed)
    }

    pub(super) fn ext_int_taken(&self) {
        self.ext_int_latched.store(false, Ordering::SeqCst);
    }
}
