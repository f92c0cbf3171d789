//! Events: exceptions, interrupts and NMIs on their way into a guest.
//!
//! Manual: SDM 3A chapter 7 "Interrupt and Exception Handling".

/// A processor exception that is to be raised in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    vector: u8,
    error_code: Option<u32>,
    /// CR2 for a page fault, the DR6 bits to set for a debug exception, else 0.
    payload: u64,
}

#[allow(missing_docs)]
impl Exception {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

impl Exception {
    /// #UD, invalid opcode.
    pub const fn undefined() -> Exception {
        Exception { vector: Self::UD, error_code: None, payload: 0 }
    }

    /// #NM, device not available.
    pub const fn device_not_available() -> Exception {
        Exception { vector: Self::NM, error_code: None, payload: 0 }
    }

    /// #GP with `error_code`: 0 or a selector.
    pub const fn general_protection(error_code: u32) -> Exception {
        Exception { vector: Self::GP, error_code: Some(error_code), payload: 0 }
    }

    /// #SS with `error_code`: 0 or a selector.
    pub const fn stack(error_code: u32) -> Exception {
        Exception { vector: Self::SS, error_code: Some(error_code), payload: 0 }
    }

    /// #PF on linear `address`.
    pub const fn page_fault(error_code: u32, address: u64) -> Exception {
        Exception { vector: Self::PF, error_code: Some(error_code), payload: address }
    }

    /// #AC, error code 0.
    pub const fn alignment() -> Exception {
        Exception { vector: Self::AC, error_code: Some(0), payload: 0 }
    }

    /// #DB; `dr6` are the bits that the backend sets in DR6.
    pub const fn debug(dr6: u64) -> Exception {
        Exception { vector: Self::DB, error_code: None, payload: dr6 }
    }

    /// #DE, divide error.
    pub const fn divide() -> Exception {
        Exception { vector: Self::DE, error_code: None, payload: 0 }
    }

    /// #XM, SIMD floating-point exception.
    pub const fn simd() -> Exception {
        Exception { vector: Self::XM, error_code: None, payload: 0 }
    }

    /// #MF, x87 floating-point error.
    pub const fn x87() -> Exception {
        Exception { vector: Self::MF, error_code: None, payload: 0 }
    }

    /// #DF, error code 0.
    pub const fn double_fault() -> Exception {
        Exception { vector: Self::DF, error_code: Some(0), payload: 0 }
    }

    /// An exception by vector, as an exit reported it: `None` for vectors above 31 and for 2, which is NMI.
    pub const fn from_vector(vector: u8, error_code: Option<u32>, payload: u64) -> Option<Exception> {
        if vector > 31 || vector == Self::NMI {
            return None;
        }
        Some(Exception { vector, error_code, payload })
    }

    /// Vector, 0 to 31.
    pub const fn vector(&self) -> u8 {
        self.vector
    }

    /// The error code that is pushed, if this exception has one.
    pub const fn error_code(&self) -> Option<u32> {
        self.error_code
    }

    /// The linear address for a page fault, the DR6 bits for a debug exception, else 0.
    pub const fn payload(&self) -> u64 {
        self.payload
    }

    /// SDM 3A table 7-4 "Interrupt and Exception Classes".
    const fn class(&self) -> Class {
        match self.vector {
            Self::DE | Self::TS | Self::NP | Self::SS | Self::GP => Class::Contributory,
            Self::PF => Class::PageFault,
            Self::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// An event that is delivered through the guest's IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// External interrupt with this vector.
    Interrupt(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// Hardware exception.
    Exception(Exception),
    /// INT n (also INT3 and INTO) with the instruction's length in bytes.
    Software {
        /// The vector.
        vector: u8,
        /// How long the instruction is; the pushed RIP lies behind it.
        length: u8,
        /// How it was raised.
        kind: SoftwareKind,
    },
}

/// The instruction behind a software event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftwareKind {
    /// INT n.
    Interrupt,
    /// INT3 or INTO.
    Exception,
    /// INT1 (ICEBP).
    Privileged,
}

/// What becomes of an exception that is raised while another event was being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Deliver this one; the first event is raised again by its cause, or lost with a benign first exception handled.
    Deliver(Exception),
    /// A fault while delivering a double fault: shutdown.
    TripleFault,
}

/// SDM 3A table 7-5 "Conditions for Generating a Double Fault". `first` is the event whose delivery `second` interrupted.
pub const fn merge(first: Option<&Event>, second: Exception) -> Merged {
    let Some(Event::Exception(first)) = first else { return Merged::Deliver(second) };
    match (first.class(), second.class()) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => Merged::TripleFault,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Merged::Deliver(Exception::double_fault())
        }
        _ => Merged::Deliver(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GP: Exception = Exception::general_protection(0);
    const PF: Exception = Exception::page_fault(2, 0x1000);
    const UD: Exception = Exception::undefined();
    const DF: Exception = Exception::double_fault();

    #[test]
    fn double_fault_table() {
        let delivered = Merged::Deliver;
        for (first, second, expected) in [
            (UD, GP, delivered(GP)),
            (UD, PF, delivered(PF)),
            (GP, UD, delivered(UD)),
            (GP, GP, delivered(DF)),
            (GP, PF, delivered(PF)),
            (PF, UD, delivered(UD)),
            (PF, GP, delivered(DF)),
            (PF, PF, delivered(DF)),
            (DF, UD, delivered(UD)),
            (DF, GP, Merged::TripleFault),
            (DF, PF, Merged::TripleFault),
        ] {
            assert_eq!(merge(Some(&Event::Exception(first)), second), expected, "{first:?} then {second:?}");
        }
        assert_eq!(merge(None, GP), delivered(GP));
        assert_eq!(merge(Some(&Event::Interrupt(32)), PF), delivered(PF));
    }

    #[test]
    fn nmi_is_no_exception() {
        assert_eq!(Exception::from_vector(2, None, 0), None);
        assert_eq!(Exception::from_vector(32, None, 0), None);
        assert_eq!(Exception::from_vector(13, Some(8), 0), Some(Exception::general_protection(8)));
    }
}
