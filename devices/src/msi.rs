//! Message-signalled interrupts: what a write to the processors' message window means.
//!
//! Manual: Intel SDM volume 3A, 11.11 "Message Signalled Interrupts". Used by PCI devices and by the HPET's FSB routes.

use crate::{DeliveryMode, DestinationMode, InterruptMessage, TriggerMode};

/// Bits 31:20 of a message address.
const WINDOW: u64 = 0xfee;
const DESTINATION_LOGICAL: u64 = 1 << 2;
const LEVEL_ASSERT: u32 = 1 << 14;
const TRIGGER_LEVEL: u32 = 1 << 15;

impl InterruptMessage {
    /// The message that a write of `data` to `address` sends. `None` if the address lies outside the window
    /// (0xfee0_0000 to 0xfeef_ffff), the delivery mode is reserved, or the message releases a level.
    ///
    /// The redirection hint adds nothing to the delivery mode here; the destination mode counts with and without it.
    pub fn from_msi(address: u64, data: u32) -> Option<InterruptMessage> {
        if address >> 20 != WINDOW {
            return None;
        }
        let trigger = match (data & TRIGGER_LEVEL != 0, data & LEVEL_ASSERT != 0) {
            (false, _) => TriggerMode::Edge,
            (true, true) => TriggerMode::Level,
            (true, false) => return None,
        };
        let is_logical = address & DESTINATION_LOGICAL != 0;
        Some(InterruptMessage {
            destination: (address >> 12) as u32 & 0xff,
            destination_mode: if is_logical { DestinationMode::Logical } else { DestinationMode::Physical },
            delivery: DeliveryMode::from_bits(data >> 8)?,
            vector: data as u8,
            trigger,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_data_name_destination_and_vector() {
        let expected = InterruptMessage {
            destination: 0x5a,
            destination_mode: DestinationMode::Physical,
            delivery: DeliveryMode::Fixed,
            vector: 0x31,
            trigger: TriggerMode::Edge,
        };
        assert_eq!(InterruptMessage::from_msi(0xfee5_a000, 0x0031), Some(expected));
        let logical = InterruptMessage {
            destination_mode: DestinationMode::Logical,
            delivery: DeliveryMode::LowestPriority,
            trigger: TriggerMode::Level,
            ..expected
        };
        assert_eq!(InterruptMessage::from_msi(0xfee5_a00c, 0xc131), Some(logical));
    }

    #[test]
    fn what_is_no_message_is_none() {
        assert_eq!(InterruptMessage::from_msi(0xfed0_0000, 0x31), None, "outside the window");
        assert_eq!(InterruptMessage::from_msi(0x1_fee0_0000, 0x31), None, "above 4 GiB");
        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x331), None, "reserved delivery mode");
        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x8031), None, "level de-assert");
    }
}
