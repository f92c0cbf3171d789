//! The memory that a vCPU's vector registers are saved in: its size and what it holds after reset.
//!
//! Manuals: Intel SDM 1 (December 2024, 253665-086), 13.4 "XSAVE Area" and table 10-2 "Format of an FXSAVE Area"; AMD APM 2
//! (24593, revision 3.42), 11.5. Key type: [`VectorArea`]. Neighbours: the backends' `capability` asks for it, their `region`
//! has the memory and executes the instructions.

/// What XSAVE or FXSAVE needs on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorArea {
    /// XCR0 bits that may be set; 1 (x87) without XSAVE.
    pub xcr0: u64,
    /// Bytes that hold all vector state: XSAVE's standard form with every bit of `xcr0`, or 512 for FXSAVE.
    pub bytes: u32,
}

/// Bytes that FXSAVE writes, which are also XSAVE's legacy region.
const LEGACY: u32 = 512;
/// The legacy region and XSAVE's header: the least that XSAVE writes.
const WITH_HEADER: u32 = LEGACY + 64;

impl VectorArea {
    /// On a processor without XSAVE.
    pub const LEGACY: VectorArea = VectorArea { xcr0: 1, bytes: LEGACY };

    /// On a processor with XSAVE whose CPUID leaf 0Dh, subleaf 0, has these words.
    pub fn of(eax: u32, ecx: u32, edx: u32) -> VectorArea {
        // The x87 bit cannot be cleared in XCR0, whatever the leaf says.
        VectorArea { xcr0: u64::from(edx) << 32 | u64::from(eax) | 1, bytes: ecx.max(WITH_HEADER) }
    }
}

/// How a zeroed area has to begin so that it holds the registers as after reset: FCW 37Fh, MXCSR 1F80h. With an empty XSAVE
/// header behind it XRSTOR gives everything else its initial value.
pub const RESET_IMAGE: [u8; 28] = {
    let mut image = [0; 28];
    let fcw = 0x37f_u16.to_le_bytes();
    (image[0], image[1]) = (fcw[0], fcw[1]);
    let mxcsr = 0x1f80_u32.to_le_bytes();
    (image[24], image[25], image[26], image[27]) = (mxcsr[0], mxcsr[1], mxcsr[2], mxcsr[3]);
    image
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_never_smaller_than_what_is_written() {
        assert_eq!(VectorArea::of(7, 0x340, 0), VectorArea { xcr0: 7, bytes: 0x340 });
        assert_eq!(VectorArea::of(2, 0, 0x4000_0000), VectorArea { xcr0: 0x4000_0000_0000_0003, bytes: 576 });
        assert_eq!(VectorArea::LEGACY, VectorArea { xcr0: 1, bytes: 512 });
    }

    #[test]
    fn control_words_stand_where_the_manual_has_them() {
        assert_eq!(RESET_IMAGE[..2], [0x7f, 0x03]);
        assert_eq!(RESET_IMAGE[24..], [0x80, 0x1f, 0, 0]);
        assert!(RESET_IMAGE[2..24].iter().all(|&byte| byte == 0));
    }
}
