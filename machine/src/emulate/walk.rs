//! The walk of a guest's own page tables: from a linear to a guest-physical address.
//!
//! Key types: [`PagingLimits`], [`Privilege`], and the function [`translate`]. All paging modes: none, 32-bit with 4 MiB
//! pages, PAE, 4-level and 5-level. Access rights are those of SDM 3A 5.6 "Access Rights", error codes those of 5.7
//! "Page-Fault Exceptions", accessed and dirty flags (5.8) are set by compare-exchange. PAE directory-pointer entries are
//! read from memory at each walk, as AMD does, not cached at MOV to CR3. Nothing is remembered between walks.
//!
//! Manual: SDM 3A chapter 5 "Paging".

use super::{Context, Reason, Stop};
use memory::{Gpa, GuestMemory, Width};
use vcpu::{AccessKind, Exception, Vcpu, cr0, cr4, efer, rflags};

/// What CPUID tells the guest about page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingLimits {
    /// MAXPHYADDR, 32 to 52; CPUID 8000_0008h EAX bits 7:0.
    pub physical_address_bits: u8,
    /// 1 GiB pages; CPUID 8000_0001h EDX bit 26.
    pub gigabyte_pages: bool,
}

impl PagingLimits {
    /// The bits that no entry's address may have.
    #[inline]
    fn reserved(self) -> u64 {
        entry::ADDRESS & u64::MAX << self.physical_address_bits.clamp(32, 52)
    }
}

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// By an instruction at CPL 3.
    User,
    /// By an instruction at CPL 0 to 2.
    Supervisor,
    /// By the processor itself, for descriptor tables and task state; EFLAGS.AC does not count.
    Implicit,
}

impl Privilege {
    /// That of the instruction at RIP.
    #[inline]
    pub fn of(cpl: u8) -> Privilege {
        if cpl == 3 { Privilege::User } else { Privilege::Supervisor }
    }
}

/// Bits of page-table entries, SDM 3A 5.5 "4-Level Paging and 5-Level Paging".
mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Where an entry with 8 bytes may have an address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits 62:52: ignored with 4 and 5 levels, reserved in PAE paging.
    pub const HIGH: u64 = 0x7ff0_0000_0000_0000;
    pub const KEY: u64 = 0xf << 59;
}

/// Bits of a page fault's error code, SDM 3A 5.7.
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// How often a walk starts again because another CPU changed an entry in the middle of it.
const ATTEMPTS: u32 = 4;

/// The guest-physical address of `linear`, which is canonical, for one byte or the rest of its page.
///
/// # Errors
/// A page fault; [`Reason::PageTable`] for tables outside RAM; [`Stop::Again`] when other CPUs keep changing the tables.
#[inline]
pub fn translate<C: Context>(context: &C, linear: u64, kind: AccessKind, privilege: Privilege) -> Result<Gpa, Stop> {
    match translate_plain(context, linear, kind, privilege) {
        Some(gpa) => Ok(gpa),
        None => translate_any(context, linear, kind, privilege),
    }
}

/// As [`translate`] without paging, and where [`plain`] knows the answer.
#[inline(always)]
pub(super) fn translate_plain<C: Context>(
    context: &C,
    linear: u64,
    kind: AccessKind,
    privilege: Privilege,
) -> Option<Gpa> {
    if context.cpu().cr0() & cr0::PG == 0 {
        return Some(Gpa(linear & 0xffff_ffff));
    }
    plain(context.cpu(), context.memory(), context.paging_limits(), linear, kind, privilege)
}

/// The plain case of 4-level paging, which each exit of a 64-bit guest meets: every entry is present, valid and marked, the
/// rights are there and no key takes part. `None` leaves the rest, faults included, to the whole walk.
#[inline(never)]
fn plain(
    cpu: &impl Vcpu,
    memory: &(impl GuestMemory + ?Sized),
    limits: PagingLimits,
    linear: u64,
    kind: AccessKind,
    privilege: Privilege,
) -> Option<Gpa> {
    let (cr4, efer) = (cpu.cr4(), cpu.efer());
    if efer & efer::LMA == 0 || cr4 & cr4::LA57 != 0 {
        return None;
    }
    // An entry that is not present leads nowhere or to other RAM; either is found out in the end.
    let entry = |table: u64, shift: u32| {
        let at = table & entry::ADDRESS | linear >> (shift - 3) & 0xff8;
        memory.load(Gpa(at), Width::Qword).ok()
    };
    let top = entry(cpu.cr3(), 39)?;
    let upper = entry(top, 30)?;
    let (mut any, mut all) = (top | upper, top & upper);
    let (leaf, offset, reserved_in_leaf) = if upper & entry::LARGE != 0 {
        (upper, 0x3fff_ffff, if limits.gigabyte_pages { 0x3fff_e000 } else { entry::LARGE })
    } else {
        let lower = entry(upper, 21)?;
        (any, all) = (any | lower, all & lower);
        if lower & entry::LARGE != 0 {
            (lower, 0x1f_ffff, 0x1f_e000)
        } else {
            let last = entry(lower, 12)?;
            (any, all) = (any | last, all & last);
            (last, 0xfff, 0)
        }
    };
    let mut forbidden = limits.reserved();
    let mut needed = entry::PRESENT | entry::ACCESSED;
    let mut needed_in_leaf = 0;
    match kind {
        AccessKind::Read => {}
        AccessKind::Write => {
            needed |= entry::WRITABLE;
            needed_in_leaf = entry::DIRTY;
        }
        AccessKind::Fetch => forbidden |= entry::NO_EXECUTE,
    }
    if efer & efer::NXE == 0 {
        forbidden |= entry::NO_EXECUTE;
    }
    if privilege == Privilege::User {
        needed |= entry::USER;
    } else if all & entry::USER != 0 && cr4 & (cr4::SMEP | cr4::SMAP) != 0 {
        return None;
    }
    let keyed = cr4 & (cr4::PKE | cr4::PKS) != 0 && leaf & entry::KEY != 0;
    if any & forbidden | top & entry::LARGE | leaf & reserved_in_leaf != 0
        || needed & !all | needed_in_leaf & !leaf != 0
        || keyed
    {
        return None;
    }
    Some(Gpa(leaf & entry::ADDRESS & !offset | linear & offset))
}

/// The whole walk, in every mode.
#[cold]
#[inline(never)]
fn translate_any<C: Context>(context: &C, linear: u64, kind: AccessKind, privilege: Privilege) -> Result<Gpa, Stop> {
    let cpu = context.cpu();
    let walk = Walk { context, linear, kind, privilege, cr0: cpu.cr0(), cr4: cpu.cr4(), efer: cpu.efer() };
    let root = cpu.cr3();
    for _ in 0..ATTEMPTS {
        let found = if walk.efer & efer::LMA != 0 {
            let levels = if walk.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
            walk.wide(root & entry::ADDRESS, levels)?
        } else if walk.cr4 & cr4::PAE != 0 {
            walk.wide(root & 0xffff_ffe0, PAE_LEVELS)?
        } else {
            walk.narrow(root & 0xffff_f000)?
        };
        if let Some(gpa) = found {
            return Ok(gpa);
        }
    }
    Err(Stop::Again)
}

const PAE_LEVELS: usize = 3;
const MOST_LEVELS: usize = 5;

/// One walk, with the registers that rule it.
struct Walk<'a, C: Context> {
    context: &'a C,
    linear: u64,
    kind: AccessKind,
    privilege: Privilege,
    cr0: u64,
    cr4: u64,
    efer: u64,
}

/// An entry that a walk went through.
#[derive(Clone, Copy, Default)]
struct Step {
    at: u64,
    value: u64,
}

impl<C: Context> Walk<'_, C> {
    /// Entries of 8 bytes: PAE (3 levels), 4 or 5 levels. `None`: an entry changed meanwhile.
    fn wide(&self, root: u64, levels: usize) -> Result<Option<Gpa>, Stop> {
        let limits = self.context.paging_limits();
        let mut always_reserved = limits.reserved();
        if levels == PAE_LEVELS {
            always_reserved |= entry::HIGH;
        }
        if self.efer & efer::NXE == 0 {
            always_reserved |= entry::NO_EXECUTE;
        }
        let mut steps = [Step::default(); MOST_LEVELS];
        let mut table = root;
        let mut level = levels;
        let mut rights = entry::WRITABLE | entry::USER | entry::ACCESSED;
        let mut no_execute = 0;
        loop {
            let shift = 3 + 9 * level as u32;
            let mut index = self.linear >> shift & 0x1ff;
            if levels == PAE_LEVELS && level == PAE_LEVELS {
                index &= 3;
            }
            let at = table | index << 3;
            let value = self.load(at, Width::Qword)?;
            if value & entry::PRESENT == 0 {
                return Err(self.fault(0));
            }
            let large = level == 1 || value & entry::LARGE != 0;
            let reserved = always_reserved
                | match level {
                    1 => 0,
                    2 if large => 0x1f_e000,
                    // Bit 5 is reserved here too, but QEMU sets it as if it were an accessed flag.
                    3 if levels == PAE_LEVELS => 0x1c6 | entry::NO_EXECUTE,
                    3 if large && limits.gigabyte_pages => 0x3fff_e000,
                    2 => 0,
                    _ => entry::LARGE,
                };
            if value & reserved != 0 {
                return Err(self.fault(code::PRESENT | code::RESERVED));
            }
            // A PAE directory pointer has neither rights nor an accessed flag.
            if !(levels == PAE_LEVELS && level == PAE_LEVELS) {
                rights &= value;
                no_execute |= value;
                if let Some(step) = steps.get_mut(level - 1) {
                    *step = Step { at, value };
                }
            }
            if large {
                self.permit(rights, no_execute, value)?;
                if !self.mark(&steps, level, rights, Width::Qword)? {
                    return Ok(None);
                }
                let offset = (1u64 << shift) - 1;
                return Ok(Some(Gpa(value & entry::ADDRESS & !offset | self.linear & offset)));
            }
            table = value & entry::ADDRESS;
            level -= 1;
        }
    }

    /// 32-bit paging, entries of 4 bytes. `None`: an entry changed meanwhile.
    fn narrow(&self, root: u64) -> Result<Option<Gpa>, Stop> {
        let directory_at = root | self.linear >> 20 & 0xffc;
        let directory = self.load(directory_at, Width::Dword)?;
        if directory & entry::PRESENT == 0 {
            return Err(self.fault(0));
        }
        let mut steps = [Step::default(); MOST_LEVELS];
        steps[1] = Step { at: directory_at, value: directory };
        if directory & entry::LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            // Bits 20:13 hold bits 39:32 of the address (PSE-36), bit 21 is reserved.
            let bits = self.context.paging_limits().physical_address_bits.clamp(32, 40);
            let high = directory >> 13 & 0xff;
            if directory & 1 << 21 != 0 || high >> (bits - 32) != 0 {
                return Err(self.fault(code::PRESENT | code::RESERVED));
            }
            self.permit(directory, 0, 0)?;
            if !self.mark(&steps, 2, directory, Width::Dword)? {
                return Ok(None);
            }
            return Ok(Some(Gpa(high << 32 | directory & 0xffc0_0000 | self.linear & 0x3f_ffff)));
        }
        let page_at = directory & 0xffff_f000 | self.linear >> 10 & 0xffc;
        let page = self.load(page_at, Width::Dword)?;
        if page & entry::PRESENT == 0 {
            return Err(self.fault(0));
        }
        steps[0] = Step { at: page_at, value: page };
        let rights = directory & page;
        self.permit(rights, 0, 0)?;
        if !self.mark(&steps, 1, rights, Width::Dword)? {
            return Ok(None);
        }
        Ok(Some(Gpa(page & 0xffff_f000 | self.linear & 0xfff)))
    }

    fn load(&self, at: u64, width: Width) -> Result<u64, Stop> {
        self.context.memory().load(Gpa(at), width).map_err(|_| Stop::Refused(Reason::PageTable(Gpa(at))))
    }

    /// SDM 3A 5.6.1 "Determination of Access Rights". `rights` has WRITABLE and USER where all levels have them, `no_execute`
    /// NO_EXECUTE where any has it, `leaf` is the entry with the protection key.
    fn permit(&self, rights: u64, no_execute: u64, leaf: u64) -> Result<(), Stop> {
        let user_page = rights & entry::USER != 0;
        let writable = rights & entry::WRITABLE != 0;
        let allowed = match (self.privilege, self.kind) {
            (Privilege::User, AccessKind::Read) => user_page,
            (Privilege::User, AccessKind::Write) => user_page && writable,
            (Privilege::User, AccessKind::Fetch) => user_page && no_execute & entry::NO_EXECUTE == 0,
            (_, AccessKind::Fetch) => no_execute & entry::NO_EXECUTE == 0 && !(user_page && self.cr4 & cr4::SMEP != 0),
            (_, AccessKind::Read) => !user_page || self.may_touch_user_pages(),
            (_, AccessKind::Write) => {
                (writable || self.cr0 & cr0::WP == 0) && (!user_page || self.may_touch_user_pages())
            }
        };
        if !allowed {
            return Err(self.fault(code::PRESENT));
        }
        let keys = if user_page { cr4::PKE } else { cr4::PKS };
        if self.cr4 & keys != 0 && leaf & entry::KEY != 0 && self.kind != AccessKind::Fetch {
            return Err(Stop::Refused(Reason::ProtectionKey));
        }
        Ok(())
    }

    /// Supervisor-mode access prevention.
    fn may_touch_user_pages(&self) -> bool {
        self.cr4 & cr4::SMAP == 0
            || (self.privilege == Privilege::Supervisor && self.context.cpu().rflags() & rflags::AC != 0)
    }

    /// Sets accessed flags in all steps from `leaf` up, and the dirty flag in the leaf of a write. `rights` has ACCESSED where
    /// all steps have it. False: an entry changed meanwhile.
    fn mark(&self, steps: &[Step; MOST_LEVELS], leaf: usize, rights: u64, width: Width) -> Result<bool, Stop> {
        let leaf_index = leaf - 1;
        let dirty = if self.kind == AccessKind::Write { entry::DIRTY } else { 0 };
        let leaf_value = steps.get(leaf_index).map_or(0, |step| step.value);
        if rights & entry::ACCESSED != 0 && leaf_value & dirty == dirty {
            return Ok(true);
        }
        for (index, step) in steps.iter().enumerate().skip(leaf_index).rev() {
            let wanted = step.value | entry::ACCESSED | if index == leaf_index { dirty } else { 0 };
            if step.value & entry::PRESENT == 0 || wanted == step.value {
                continue;
            }
            let swapped = self.context.memory().compare_exchange(Gpa(step.at), width, step.value, wanted);
            match swapped {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Ok(false),
                Err(_) => return Err(Stop::Refused(Reason::PageTable(Gpa(step.at)))),
            }
        }
        Ok(true)
    }

    #[cold]
    fn fault(&self, why: u32) -> Stop {
        let mut error = why;
        if self.kind == AccessKind::Write {
            error |= code::WRITE;
        }
        if self.privilege == Privilege::User {
            error |= code::USER;
        }
        let execute_disable = self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0;
        if self.kind == AccessKind::Fetch && (execute_disable || self.cr4 & cr4::SMEP != 0) {
            error |= code::FETCH;
        }
        Stop::Fault(Exception::page_fault(error, self.linear))
    }
}
