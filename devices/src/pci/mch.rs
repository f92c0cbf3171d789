//! Host bridge: the 82G33 memory controller hub of q35, device 00:00.0.
//!
//! Manual: Intel 3 Series Express Chipset Family Datasheet, 316966-002, 5.1 "DRAM Controller Registers (D0:F0)".

use super::spec::{header, mch};
use super::{AddressSpace, ConfigSize, ConfigSpace, Function, Identity, SetUp, Window};

/// The host bridge.
pub struct Mch {
    config: ConfigSpace,
}

/// Where the enhanced configuration window (ECAM) lies on q35 unless firmware moves it.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// 256 MiB: all 256 buses.
pub const ECAM_SIZE: u64 = 0x1000_0000;

impl Mch {
    /// The bridge as after reset. With [`SetUp::Done`] the ECAM window is on at [`ECAM_BASE`].
    pub fn new(set_up: SetUp) -> Mch {
        let mut config = ConfigSpace::new(
            ConfigSize::Conventional,
            Identity {
                vendor: super::INTEL,
                device: mch::DEVICE_ID,
                class: 0x06_0000,
                revision: 0x02,
                subsystem: super::SUBSYSTEM,
            },
        );
        // 5.1.3: memory decode and bus master are hardwired on.
        config.preset16(header::COMMAND, header::COMMAND_MEMORY | header::COMMAND_MASTER);
        config.allow_write(header::COMMAND, &header::COMMAND_SERR.to_le_bytes());
        let enable = if set_up == SetUp::Done { mch::PCIEXBAR_ENABLE } else { 0 };
        config.preset64(mch::PCIEXBAR, ECAM_BASE | enable);
        config.allow_write(mch::PCIEXBAR, &mch::PCIEXBAR_MASK.to_le_bytes());
        config.allow_write(mch::PAM0, &[mch::PAM0_MASK]);
        config.allow_write(mch::PAM0 + 1, &[mch::PAM_MASK; 6]);
        config.preset8(mch::SMRAM, mch::SMRAM_C_BASE_SEG);
        config.allow_write(mch::SMRAM, &[mch::SMRAM_MASK]);
        config.preset8(mch::ESMRAMC, mch::ESMRAMC_DEFAULT);
        Mch { config }
    }

    /// Whether reads and writes of the 16 or 64 KiB segment that holds `address` (0xc0000 to 0xfffff) go to RAM, by the
    /// PAM registers: `(reads, writes)`. `None` outside.
    pub fn shadow(&self, address: u64) -> Option<(bool, bool)> {
        let (register, shift) = match address {
            0xf0000..=0xfffff => (mch::PAM0, 4),
            // PAM1 to PAM6 hold two segments of 16 KiB each, from 0xc0000 up, the lower one in the lower half.
            0xc0000..=0xeffff => {
                let segment = ((address - 0xc0000) >> 14) as u16;
                (mch::PAM0 + 1 + segment / 2, (segment % 2) * 4)
            }
            _ => return None,
        };
        let bits = self.config.get8(register) >> shift;
        Some((bits & 1 != 0, bits & 2 != 0))
    }
}

impl Function for Mch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let smram = self.config.get8(mch::SMRAM);
        self.config.write(offset, data);
        if smram & mch::SMRAM_D_LCK != 0 {
            self.config.store8(mch::SMRAM, smram);
        }
    }

    /// Window 0 is the ECAM.
    fn chipset_window(&self, number: usize) -> Option<Window> {
        let register = self.config.get64(mch::PCIEXBAR);
        if number != 0 || register & mch::PCIEXBAR_ENABLE == 0 {
            return None;
        }
        // 5.1.15: bits 2:1 choose 256, 128 or 64 MiB; the base is aligned to that.
        let size = match register >> 1 & 3 {
            0 => ECAM_SIZE,
            1 => ECAM_SIZE / 2,
            2 => ECAM_SIZE / 4,
            _ => return None,
        };
        let base = register & mch::PCIEXBAR_MASK & !(size - 1);
        (base != 0).then_some(Window { space: AddressSpace::Memory, base, size })
    }
}
