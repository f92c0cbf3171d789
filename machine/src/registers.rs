//! MSRs and control registers: carries out what [`crate::msr`] and [`crate::control`] decide.

use crate::control::{self, Current};
use crate::cpuid::Vendor;
use crate::hyperv::Moment;
use crate::msr::{self, Place, Refused};
use crate::processor::Processor;
use crate::run::Handled;
use devices::lapic::ApicMode;
use memory::GuestMemory;
use vcpu::speculation::IBPB;
use vcpu::{
    ControlRegister, ControlWrite, Exception, Length, MsrRead, MsrWrite, SegmentName, SystemMsr, Vcpu, Xsetbv, cr4,
    efer,
};

/// VMCALL.
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
/// VMMCALL.
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    pub(crate) fn msr_read(&mut self, request: MsrRead, length: Length) -> Handled {
        Ok(match self.read_msr(request.msr) {
            Ok(value) => request.complete(length, value),
            Err(Refused) => request.inject(Exception::general_protection(0)),
        })
    }

    pub(crate) fn msr_write(&mut self, request: MsrWrite, length: Length) -> Handled {
        Ok(match self.write_msr(request.msr, request.value) {
            Ok(()) => request.complete(length),
            Err(Refused) => request.inject(Exception::general_protection(0)),
        })
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, Refused> {
        let core = &mut self.core;
        Ok(match msr::place(number, core.cpuid.vendor())? {
            Place::Constant(value) | Place::Ignored(value) => value,
            Place::WriteOnly => return Err(Refused),
            Place::Stored(slot) => core.msrs.read(slot, number)?,
            Place::System(SystemMsr::TscAux) if !core.has_rdtscp() => return Err(Refused),
            Place::System(register) => self.vcpu.system_msr(register),
            Place::Tsc => self.vcpu.tsc(),
            Place::TscAdjust => core.tsc_adjust,
            Place::SpecCtrl if core.cpuid.speculation().spec_ctrl != 0 => self.vcpu.system_msr(SystemMsr::SpecCtrl),
            Place::ArchCapabilities => core.cpuid.speculation().arch_capabilities.ok_or(Refused)?,
            Place::SpecCtrl | Place::PredCmd => return Err(Refused),
            Place::Efer => self.vcpu.efer(),
            Place::ApicBase => core.apic.apic_base(),
            Place::TscDeadline => core.apic.tsc_deadline(),
            Place::Apic => core.apic.read_msr(number).map_err(|_| Refused)?,
            Place::Hyperv => {
                let now = Moment { tsc: self.vcpu.tsc() };
                core.machine.hyperv_read(number, &core.virtual_processor, now)?
            }
        })
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Refused> {
        let core = &mut self.core;
        match msr::place(number, core.cpuid.vendor())? {
            Place::Constant(_) | Place::ArchCapabilities => return Err(Refused),
            Place::Ignored(_) | Place::WriteOnly => {}
            Place::Stored(slot) => core.msrs.write(slot, number, value)?,
            Place::System(SystemMsr::TscAux) if !core.has_rdtscp() => return Err(Refused),
            Place::System(register) if msr::is_valid_system(register, value) => {
                self.vcpu.set_system_msr(register, value);
            }
            Place::System(_) => return Err(Refused),
            // SDM 3B 18.17.3 "Time-Stamp Counter Adjustment": both registers move together.
            Place::Tsc => {
                let host = self.host_tsc();
                let adjust = self.core.machine.tsc.write(self.core.number, value, host);
                self.set_tsc_adjust(adjust);
            }
            Place::TscAdjust => self.set_tsc_adjust(value),
            Place::SpecCtrl => {
                let allowed = core.cpuid.speculation().spec_ctrl;
                if allowed == 0 || value & !allowed != 0 {
                    return Err(Refused);
                }
                self.vcpu.set_system_msr(SystemMsr::SpecCtrl, value);
            }
            // Backends let a guest that has the register write it without an exit; nothing is left to do.
            Place::PredCmd if core.cpuid.speculation().barrier && value & !IBPB == 0 => {}
            Place::PredCmd => return Err(Refused),
            Place::Efer => {
                let current = self.current();
                let value = self.core.machine.policy.efer(value, &current).map_err(|_| Refused)?;
                self.vcpu.set_efer(value);
            }
            Place::ApicBase => {
                core.apic.set_apic_base(value).map_err(|_| Refused)?;
                let x2apic = core.apic.port().mode() == ApicMode::X2Apic;
                self.vcpu.set_x2apic(x2apic);
                core.attention = true;
            }
            Place::TscDeadline => {
                core.apic.set_tsc_deadline(value);
                core.attention = true;
            }
            Place::Apic => {
                let before = core.apic.deadline();
                core.apic.write_msr(number, value).map_err(|_| Refused)?;
                core.attention |= core.apic.deadline() != before;
            }
            Place::Hyperv => {
                let call = if core.cpuid.vendor() == Vendor::Intel { VMCALL } else { VMMCALL };
                core.machine.hyperv_write(number, value, &mut core.virtual_processor, call)?;
            }
        }
        Ok(())
    }

    /// The host's time-stamp counter.
    fn host_tsc(&self) -> u64 {
        self.vcpu.tsc().wrapping_sub(self.vcpu.tsc_offset())
    }

    pub(crate) fn set_tsc_adjust(&mut self, value: u64) {
        let offset = self.core.machine.tsc.offset(value, self.host_tsc());
        self.core.tsc_adjust = value;
        self.vcpu.set_tsc_offset(offset);
        self.core.tsc.set_offset(offset);
        self.core.apic.tsc_changed();
        self.core.attention = true;
    }

    pub(crate) fn xsetbv(&mut self, request: Xsetbv, length: Length) -> Handled {
        if self.vcpu.cr4() & cr4::OSXSAVE == 0 {
            return Ok(request.inject(Exception::undefined()));
        }
        if self.vcpu.cpl() != 0 {
            return Ok(request.inject(Exception::general_protection(0)));
        }
        Ok(match self.core.machine.policy.xcr(request.register, request.value) {
            Ok(value) => {
                self.vcpu.set_xcr0(value);
                request.complete(length)
            }
            Err(_) => request.inject(Exception::general_protection(0)),
        })
    }

    pub(crate) fn control_write(&mut self, request: ControlWrite, length: Length) -> Handled {
        let current = self.current();
        let policy = self.core.machine.policy;
        let written = match request.register {
            ControlRegister::Cr0 => policy.cr0(request.value, &current).map(|value| self.vcpu.set_cr0(value)),
            ControlRegister::Cr3 => policy.cr3(request.value, &current).map(|value| self.vcpu.set_cr3(value)),
            ControlRegister::Cr4 => policy.cr4(request.value, &current).map(|value| self.vcpu.set_cr4(value)),
            ControlRegister::Cr8 if request.value >> 4 == 0 => {
                self.core.apic.set_task_priority((request.value as u8) << 4);
                Ok(())
            }
            ControlRegister::Cr8 => Err(control::Refused),
        };
        self.core.attention |= request.register == ControlRegister::Cr8;
        Ok(match written {
            Ok(()) => request.complete(length),
            Err(_) => request.inject(Exception::general_protection(0)),
        })
    }

    /// What the rules for control registers look at.
    fn current(&self) -> Current {
        let efer = self.vcpu.efer();
        Current {
            cr0: self.vcpu.cr0(),
            cr3: self.vcpu.cr3(),
            cr4: self.vcpu.cr4(),
            efer,
            code_is_long: efer & efer::LMA != 0 && self.vcpu.segment(SegmentName::Cs).attributes.long(),
        }
    }
}

impl<M: GuestMemory> crate::processor::Core<M> {
    /// Whether CPUID advertises RDTSCP, and with it TSC_AUX.
    fn has_rdtscp(&self) -> bool {
        self.cpuid.has(0x8000_0001, |answer| answer.edx, 1 << 27)
    }
}
