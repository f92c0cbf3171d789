//! Each CPU's GDT and TSS: flat segments, and a stack of its own for NMI, double fault and machine check.
//!
//! Pins Intel SDM Volume 3A, 3.5.1 "Segment Descriptor Tables", 9.7 "Task Management in 64-bit Mode" (325384-083).

#![allow(unsafe_code)] // Segment registers.

use crate::layout::FAULT_STACK_SIZE;
use crate::paging::MapError;
use crate::stacks;
use alloc::boxed::Box;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// Selector of the code segment, here and in the GDT of `boot::entry`.
pub const CODE_SELECTOR: u16 = 0x08;

/// Which entry of the TSS's interrupt stack table a vector uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultStack {
    /// NMI.
    Nmi = 1,
    /// Double fault.
    DoubleFault = 2,
    /// Machine check.
    MachineCheck = 3,
}

/// Makes and loads this CPU's tables. They stay for good. GS base stays as it is.
///
/// # Errors
/// When memory for the stacks is used up.
pub fn init() -> Result<(), MapError> {
    let mut tss = TaskStateSegment::new();
    for stack in [FaultStack::Nmi, FaultStack::DoubleFault, FaultStack::MachineCheck] {
        tss.interrupt_stack_table[stack as usize - 1] = VirtAddr::new(stacks::allocate(FAULT_STACK_SIZE)?);
    }
    let tss: &'static TaskStateSegment = Box::leak(Box::new(tss));
    let mut gdt = GlobalDescriptorTable::<8>::empty();
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    assert_eq!(code.0, CODE_SELECTOR, "the IDT names this selector");
    let gdt: &'static GlobalDescriptorTable<8> = Box::leak(Box::new(gdt));
    gdt.load();
    // SAFETY: the selector is that of a flat 64-bit code segment.
    unsafe { CS::set_reg(code) };
    // SAFETY: a flat writable data segment.
    unsafe { SS::set_reg(data) };
    // SAFETY: in 64-bit mode the base and limit of DS are not used.
    unsafe { DS::set_reg(data) };
    // SAFETY: as DS.
    unsafe { ES::set_reg(data) };
    // SAFETY: FS is not used.
    unsafe { FS::set_reg(x86_64::structures::gdt::SegmentSelector::NULL) };
    let per_cpu = GsBase::read();
    // SAFETY: nothing is reached by GS before its base is put back: on Intel, loading the selector clears it.
    unsafe { GS::set_reg(x86_64::structures::gdt::SegmentSelector::NULL) };
    GsBase::write(per_cpu);
    // SAFETY: the selector is that of an available TSS that lives for good.
    unsafe { load_tss(task) };
    Ok(())
}
