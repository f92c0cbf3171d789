//! The virtual-machine control structure, and all access to it.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), chapter 25 "Virtual Machine Control Structures", 25.11.3 "Initializing a
//! VMCS". Key types: [`Vmcs`], which belongs to one vCPU; [`Current`], the proof that it is the current one of this CPU,
//! without which no field can be reached; [`Visit`], the same for a moment, for a vCPU that is not resident. Neighbours:
//! `field` names the fields, `entry` runs the guest, `lib` holds one of these in each vCPU.
//!
//! This file may be unsafe because a VMCS is reached only by instructions, and some of its fields decide what the guest
//! can reach. Fields of the area [`crate::field::Guest`] are safe to write: they concern the guest alone.
#![allow(unsafe_code)]

use crate::checks::{ControlState, EntryState, GuestState, HostState};
use crate::controls::{self, Controls, Entry, Primary, Secondary};
use crate::decode::Interruption;
use crate::entry::{self, Arrival, Context, Outcome};
use crate::field::{self, Area, Delicate, Field, FieldWidth, Guest, SEGMENTS};
use crate::instr;
use crate::region::{Frame, Region};
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ops::Deref;
use vcpu::{FrameSource, Hpa, OutOfFrames, Segment, SegmentAttributes, SegmentName};
use x86::msr::{
    IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_PAT, IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_SYSENTER_ESP,
};

/// Where a VMCS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Residency {
    /// In memory, clear: any CPU may take it.
    Away,
    /// Active and current on the CPU where its vCPU is resident; launched or not.
    Here { launched: bool },
}

/// What a VMCS points to. Fixed for its life.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The MSR bitmap.
    pub msr_bitmap: Hpa,
    /// The page of the local APIC's registers.
    pub virtual_apic: Hpa,
    /// The page whose accesses are virtualized, where that is switched on.
    pub apic_access: Hpa,
    /// The EPT pointer.
    pub ept_pointer: u64,
    /// The tag of translations; `None` where there are no tags.
    pub vpid: Option<u16>,
}

/// The VMCS of one vCPU.
pub struct Vmcs {
    region: Frame<Region>,
    residency: Residency,
    /// What HOST_RSP and the rest of the host-state area hold.
    host: Option<HostState>,
    addresses: Addresses,
    /// Where exits arrive.
    arrival: Arrival,
}

impl Vmcs {
    /// A clear one with its controls set.
    ///
    /// # Safety
    /// The calling CPU is in VMX operation. While the VMCS lives: `controls` keep the guest in, the pages of `addresses`
    /// stay what they are, and the tables behind its EPT pointer map only memory that the guest may touch.
    pub unsafe fn new(
        frames: &Arc<dyn FrameSource>,
        revision: u32,
        controls: &Controls,
        cr0_mask: u64,
        cr4_mask: u64,
        addresses: Addresses,
        arrival: Arrival,
    ) -> Result<Vmcs, OutOfFrames> {
        let mut region = Frame::<Region>::new(frames)?;
        region.revision = revision;
        // SAFETY: the caller answers for VMX operation; the region is new.
        unsafe { clear(region.physical()) };
        let vmcs = Vmcs { region, residency: Residency::Away, host: None, addresses, arrival };
        {
            let visit = vmcs.visit();
            let delicate = [
                (field::PIN_CONTROLS, controls.pin.bits()),
                (field::PRIMARY_CONTROLS, controls.primary.bits()),
                (field::SECONDARY_CONTROLS, vmcs.secondary(controls.secondary_for(false)).bits()),
                (field::EXIT_CONTROLS, controls.exit.bits()),
                (field::ENTRY_CONTROLS, controls.entry.bits()),
                (field::EXCEPTION_BITMAP, controls::EXCEPTIONS),
                (field::PAGE_FAULT_MASK, 0),
                (field::PAGE_FAULT_MATCH, 0),
                (field::CR3_TARGET_COUNT, 0),
                (field::EXIT_MSR_STORE_COUNT, 0),
                (field::EXIT_MSR_LOAD_COUNT, 0),
                (field::ENTRY_MSR_LOAD_COUNT, 0),
            ];
            for (field, value) in delicate {
                // SAFETY: by the caller's promise about `controls`.
                unsafe { visit.write_delicate(field, value) };
            }
            let secondary = controls.secondary;
            let mut wide = [
                (field::MSR_BITMAP, addresses.msr_bitmap.0, true),
                (field::VIRTUAL_APIC, addresses.virtual_apic.0, true),
                (field::EPT_POINTER, addresses.ept_pointer, true),
                (field::APIC_ACCESS, addresses.apic_access.0, secondary.contains(Secondary::APIC_ACCESSES)),
                (field::XSS_EXITING, !0, secondary.contains(Secondary::XSAVES)),
                (field::ENCLS_EXITING, !0, secondary.contains(Secondary::ENCLS_EXITING)),
            ]
            .into_iter()
            .filter(|(.., exists)| *exists);
            // SAFETY: by the caller's promise about `addresses`.
            wide.by_ref().for_each(|(field, value, _)| unsafe { visit.write_delicate(field, value) });
            for (field, value) in [(field::CR0_MASK, cr0_mask), (field::CR4_MASK, cr4_mask)] {
                // SAFETY: the bits outside the masks are those that `controls::Shared` gives to the guest.
                unsafe { visit.write_delicate(field, value) };
            }
            if let Some(vpid) = addresses.vpid {
                // SAFETY: a tag that the caller got for this vCPU alone.
                unsafe { visit.write_delicate(field::VPID, vpid) };
            }
            if secondary.contains(Secondary::PAUSE_LOOP_EXITING) {
                visit.write(field::PLE_GAP, controls::PAUSE_GAP);
                visit.write(field::PLE_WINDOW, controls::PAUSE_WINDOW);
            }
            visit.write(field::TPR_THRESHOLD, 0);
            visit.write(field::GUEST_LINK_POINTER, !0);
            visit.write(field::TSC_OFFSET, 0);
        }
        Ok(vmcs)
    }

    /// Without a VPID of its own a vCPU runs untagged.
    fn secondary(&self, wanted: Secondary) -> Secondary {
        if self.addresses.vpid.is_some() { wanted } else { wanted - Secondary::VPID }
    }

    /// Switches between the ways in which the guest reaches its APIC.
    ///
    /// # Safety
    /// `secondary` was settled for this processor, and the MSR bitmap fits it.
    pub unsafe fn set_secondary(&self, secondary: Secondary) {
        // SAFETY: by the caller's promise.
        unsafe { self.visit().write_delicate(field::SECONDARY_CONTROLS, self.secondary(secondary).bits()) };
    }

    /// What the VMCS points to.
    #[inline]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether the vCPU is resident on this CPU.
    #[inline]
    pub fn is_resident(&self) -> bool {
        self.residency != Residency::Away
    }

    /// Makes the VMCS current on this CPU and writes this CPU's host state into it. True if that is another CPU's than
    /// before: then nothing is known about what this one holds under the vCPU's tags.
    ///
    /// # Safety
    /// Ring 0 on a CPU in VMX operation, interrupts off; the vCPU is not resident elsewhere.
    pub unsafe fn load(&mut self) -> bool {
        assert!(self.residency == Residency::Away, "a vCPU is loaded once");
        // SAFETY: by the caller's promise; the region carries this CPU's revision.
        let loaded = unsafe { instr::vmptrld(self.region.physical()) };
        assert!(loaded.is_ok(), "a VMCS of this host can be made current");
        self.residency = Residency::Here { launched: false };
        let host = host_state(self.arrival);
        let moved = self.host.is_none_or(|known| known.tr_base != host.tr_base);
        if self.host != Some(host) {
            self.write_host(&host);
            self.host = Some(host);
        }
        moved
    }

    /// Takes the VMCS off this CPU.
    ///
    /// # Safety
    /// On the CPU where [`Vmcs::load`] was called, in ring 0, interrupts off.
    pub unsafe fn unload(&mut self) {
        assert!(self.is_resident(), "a vCPU is unloaded where it was loaded");
        // SAFETY: by the caller's promise this is where the VMCS is active.
        unsafe { clear(self.region.physical()) };
        self.residency = Residency::Away;
    }

    /// The fields of a resident vCPU.
    #[inline(always)]
    pub fn current(&self) -> Current<'_> {
        assert!(self.is_resident(), "the fields of a vCPU are reached where it is resident");
        Current(PhantomData)
    }

    /// Reads a field of any vCPU.
    #[inline(always)]
    pub fn read<W: FieldWidth, A: Area>(&self, field: Field<W, A>) -> W::Value {
        if self.is_resident() { Current(PhantomData).read(field) } else { self.read_away(field) }
    }

    #[cold]
    fn read_away<W: FieldWidth, A: Area>(&self, field: Field<W, A>) -> W::Value {
        self.visit().read(field)
    }

    /// Writes a field of any vCPU that concerns the guest alone.
    #[inline(always)]
    pub fn write<W: FieldWidth>(&self, field: Field<W, Guest>, value: W::Value) {
        if self.is_resident() { Current(PhantomData).write(field, value) } else { self.write_away(field, value) }
    }

    #[cold]
    fn write_away<W: FieldWidth>(&self, field: Field<W, Guest>, value: W::Value) {
        self.visit().write(field, value);
    }

    /// The fields of any vCPU. One that is not resident becomes current for as long as the answer lives.
    #[inline]
    pub fn visit(&self) -> Visit<'_> {
        if self.is_resident() {
            return Visit { current: Current(PhantomData), away: None };
        }
        // SAFETY: vCPUs are made and visited on CPUs in VMX operation only.
        let before = unsafe { instr::vmptrst() };
        // SAFETY: as above; the region is clear, so that no other CPU has it.
        let loaded = unsafe { instr::vmptrld(self.region.physical()) };
        assert!(loaded.is_ok(), "a VMCS of this host can be made current");
        Visit { current: Current(PhantomData), away: Some((self.region.physical(), before)) }
    }

    /// Enters the guest and comes back with its exit, or with the processor's refusal.
    #[inline(always)]
    pub fn enter(&mut self, context: &mut Context) -> Outcome {
        let Residency::Here { launched } = self.residency else { panic!("a vCPU runs where it is resident") };
        // SAFETY: the VMCS is current and its host state is this CPU's, by `load`; HOST_RIP is an [`Arrival`]. That the guest stays
        // in is the promise of whoever made the VMCS.
        unsafe { entry::enter(context, launched) }
    }

    /// The guest has run: from now on it is resumed.
    #[inline(always)]
    pub fn entered(&mut self) {
        self.residency = Residency::Here { launched: true };
    }

    fn write_host(&self, host: &HostState) {
        let current = self.current();
        for (field, value) in [
            (field::HOST_ES, host.es),
            (field::HOST_CS, host.cs),
            (field::HOST_SS, host.ss),
            (field::HOST_DS, host.ds),
            (field::HOST_FS, host.fs),
            (field::HOST_GS, host.gs),
            (field::HOST_TR, host.tr),
        ] {
            // SAFETY: what this CPU runs with now.
            unsafe { current.write_delicate(field, value) };
        }
        for (field, value) in [
            (field::HOST_CR0, host.cr0),
            (field::HOST_CR3, host.cr3),
            (field::HOST_CR4, host.cr4),
            (field::HOST_FS_BASE, host.fs_base),
            (field::HOST_GS_BASE, host.gs_base),
            (field::HOST_TR_BASE, host.tr_base),
            (field::HOST_GDTR_BASE, host.gdtr_base),
            (field::HOST_IDTR_BASE, host.idtr_base),
            (field::HOST_SYSENTER_ESP, host.sysenter_esp),
            (field::HOST_SYSENTER_EIP, host.sysenter_eip),
            (field::HOST_RIP, host.rip),
        ] {
            // SAFETY: what this CPU runs with now, and the entry stub's own exit point.
            unsafe { current.write_delicate(field, value) };
        }
        for (field, value) in [(field::HOST_PAT, host.pat), (field::HOST_EFER, host.efer)] {
            // SAFETY: what this CPU runs with now.
            unsafe { current.write_delicate(field, value) };
        }
        // SAFETY: what this CPU runs with now.
        unsafe { current.write_delicate(field::HOST_SYSENTER_CS, host.sysenter_cs) };
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        assert!(!self.is_resident(), "a vCPU is unloaded before it goes");
    }
}

/// VMCLEAR that must work.
///
/// # Safety
/// As for [`instr::vmclear`].
unsafe fn clear(region: Hpa) {
    // SAFETY: by the caller's promise.
    let cleared = unsafe { instr::vmclear(region) };
    assert!(cleared.is_ok(), "a VMCS region can be cleared");
}

/// A 64-bit TSS descriptor's base, SDM 3A figure 9-4 "Format of TSS and LDT Descriptors in 64-bit Mode".
const fn tss_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | high << 32
}

/// The base of this CPU's TSS.
pub fn tr_base() -> u64 {
    let (gdt, tr) = (instr::sgdt(), instr::tr());
    let descriptor = core::ptr::with_exposed_provenance::<[u64; 2]>(gdt.base as usize + usize::from(tr & !7));
    // SAFETY: the host runs with a TSS, whose 16-byte descriptor lies in its GDT at TR.
    let [low, high] = unsafe { descriptor.read_unaligned() };
    tss_base(low, high)
}

/// What this CPU runs with now. Addresses of sections and stacks that do not outlive a call are left out.
fn host_state(arrival: Arrival) -> HostState {
    let (base, tr) = (instr::sgdt().base, instr::tr());
    // SAFETY: these MSRs exist on every processor with VMX and long mode.
    let msr = |number| unsafe { instr::rdmsr(number) };
    HostState {
        cr0: instr::cr0(),
        cr3: instr::cr3(),
        cr4: instr::cr4(),
        efer: msr(IA32_EFER),
        pat: msr(IA32_PAT),
        // SDM 3C 27.2.3: RPL and TI must be clear. Data selectors mean nothing to a 64-bit host, so null will do.
        es: 0,
        cs: instr::cs() & !7,
        ss: instr::ss() & !7,
        ds: 0,
        fs: 0,
        gs: 0,
        tr: tr & !7,
        fs_base: msr(IA32_FS_BASE),
        gs_base: msr(IA32_GS_BASE),
        tr_base: tr_base(),
        gdtr_base: base,
        idtr_base: instr::sidt().base,
        sysenter_cs: msr(IA32_SYSENTER_CS) as u32,
        sysenter_esp: msr(IA32_SYSENTER_ESP),
        sysenter_eip: msr(IA32_SYSENTER_EIP),
        rip: arrival as *const () as u64,
    }
}

/// Proof that a VMCS is the current one of the CPU that holds it.
#[derive(Clone, Copy)]
pub struct Current<'a>(PhantomData<(&'a Vmcs, *const ())>);

impl Current<'_> {
    /// Reads a field.
    #[inline(always)]
    pub fn read<W: FieldWidth, A: Area>(self, field: Field<W, A>) -> W::Value {
        // SAFETY: `self` proves that a VMCS is current.
        W::from_register(unsafe { instr::vmread(field.encoding()) })
    }

    /// Writes a field that concerns the guest alone.
    #[inline(always)]
    pub fn write<W: FieldWidth>(self, field: Field<W, Guest>, value: W::Value) {
        // SAFETY: `self` proves that a VMCS is current; every value of such a field is harmless to the host.
        unsafe { instr::vmwrite(field.encoding(), W::to_register(value)) };
    }

    /// Writes a field that could let the guest out or break the host.
    ///
    /// # Safety
    /// The host can bear the value.
    #[inline(always)]
    pub unsafe fn write_delicate<W: FieldWidth, A: Delicate>(self, field: Field<W, A>, value: W::Value) {
        // SAFETY: `self` proves that a VMCS is current; the caller answers for the value.
        unsafe { instr::vmwrite(field.encoding(), W::to_register(value)) };
    }

    /// Switches the windows: of the primary controls, whether the guest exits when it could take an interrupt or an NMI.
    pub fn set_windows(self, settled: Primary, interrupt: bool, nmi: bool) {
        let mut primary = settled;
        primary.set(Primary::INTERRUPT_WINDOW_EXITING, interrupt);
        primary.set(Primary::NMI_WINDOW_EXITING, nmi);
        // SAFETY: the words that were settled, with two bits more that only cause exits.
        unsafe { self.write_delicate(field::PRIMARY_CONTROLS, primary.bits()) };
    }

    /// Switches between the guest's modes: of the entry controls, whether it is in IA-32e mode.
    pub fn set_long_mode(self, settled: Entry, long: bool) {
        let mut entry = settled;
        entry.set(Entry::LONG_MODE, long);
        // SAFETY: the words that were settled, with a bit more that concerns the guest.
        unsafe { self.write_delicate(field::ENTRY_CONTROLS, entry.bits()) };
    }

    /// A segment register.
    pub fn segment(self, name: SegmentName) -> Segment {
        let fields = &SEGMENTS[name as usize];
        Segment {
            selector: self.read(fields.selector),
            attributes: SegmentAttributes::from_bits(self.read(fields.rights)),
            limit: self.read(fields.limit),
            base: self.read(fields.base),
        }
    }

    /// Writes a segment register. One that is not present is unusable, but for TR, which the processor wants usable.
    pub fn set_segment(self, name: SegmentName, segment: &Segment) {
        let fields = &SEGMENTS[name as usize];
        let usable = segment.attributes.present() || name == SegmentName::Tr;
        let attributes = segment.attributes.with_unusable(segment.attributes.unusable() || !usable);
        self.write(fields.selector, segment.selector);
        self.write(fields.rights, attributes.into_bits());
        self.write(fields.limit, segment.limit);
        self.write(fields.base, segment.base);
    }

    /// All that the checks of an entry look at. `task_priority` is the TPR in the virtual-APIC page.
    pub fn entry_state(self, host: HostState, addresses: &Addresses, task_priority: u8) -> EntryState {
        let secondary = Secondary::from_bits_retain(self.read(field::SECONDARY_CONTROLS));
        EntryState {
            controls: ControlState {
                pin: controls::Pin::from_bits_retain(self.read(field::PIN_CONTROLS)),
                primary: Primary::from_bits_retain(self.read(field::PRIMARY_CONTROLS)),
                secondary,
                exit: controls::Exit::from_bits_retain(self.read(field::EXIT_CONTROLS)),
                entry: Entry::from_bits_retain(self.read(field::ENTRY_CONTROLS)),
                cr3_targets: self.read(field::CR3_TARGET_COUNT),
                msr_bitmap: self.read(field::MSR_BITMAP),
                virtual_apic: self.read(field::VIRTUAL_APIC),
                apic_access: addresses.apic_access.0,
                tpr_threshold: self.read(field::TPR_THRESHOLD),
                task_priority,
                ept_pointer: self.read(field::EPT_POINTER),
                vpid: addresses.vpid.unwrap_or(0),
                interruption: Interruption::from_bits(self.read(field::ENTRY_INTERRUPTION)),
                error_code: self.read(field::ENTRY_ERROR_CODE),
                instruction_length: self.read(field::ENTRY_INSTRUCTION_LENGTH),
            },
            host,
            guest: GuestState {
                cr0: self.read(field::GUEST_CR0),
                cr3: self.read(field::GUEST_CR3),
                cr4: self.read(field::GUEST_CR4),
                efer: self.read(field::GUEST_EFER),
                pat: self.read(field::GUEST_PAT),
                debugctl: self.read(field::GUEST_DEBUGCTL),
                dr7: self.read(field::GUEST_DR7),
                rip: self.read(field::GUEST_RIP),
                rflags: self.read(field::GUEST_RFLAGS),
                segments: SegmentName::ALL.map(|name| self.segment(name)),
                gdtr_base: self.read(field::GUEST_GDTR_BASE),
                gdtr_limit: self.read(field::GUEST_GDTR_LIMIT),
                idtr_base: self.read(field::GUEST_IDTR_BASE),
                idtr_limit: self.read(field::GUEST_IDTR_LIMIT),
                sysenter_esp: self.read(field::GUEST_SYSENTER_ESP),
                sysenter_eip: self.read(field::GUEST_SYSENTER_EIP),
                activity: self.read(field::GUEST_ACTIVITY),
                interruptibility: self.read(field::GUEST_INTERRUPTIBILITY),
                pending_debug: self.read(field::GUEST_PENDING_DEBUG),
                link_pointer: self.read(field::GUEST_LINK_POINTER),
                pdptes: field::PDPTES.map(|entry| self.read(entry)),
            },
        }
    }
}

/// A VMCS that is current for a moment.
pub struct Visit<'a> {
    current: Current<'a>,
    /// The region to clear and the one that was current before; `None` for a resident vCPU.
    away: Option<(Hpa, Hpa)>,
}

impl<'a> Deref for Visit<'a> {
    type Target = Current<'a>;
    fn deref(&self) -> &Current<'a> {
        &self.current
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let Some((visited, before)) = self.away else { return };
        // SAFETY: `visit` made it current here.
        unsafe { clear(visited) };
        if before.0 != u64::MAX {
            // SAFETY: it was the current one of this CPU until `visit`, and is still active here.
            let restored = unsafe { instr::vmptrld(before) };
            assert!(restored.is_ok(), "the VMCS that was current can be made so again");
        }
    }
}

impl Vmcs {
    /// What the last [`Vmcs::load`] wrote into the host-state area.
    pub fn host(&self) -> HostState {
        self.host.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_tss_is_put_together_from_four_pieces() {
        let (low, high) = (0x1200_8b34_5678_0067, 0xffff_8000);
        assert_eq!(tss_base(low, high), 0xffff_8000_1234_5678);
    }
}
