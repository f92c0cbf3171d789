//! Vector loads and stores: availability, VEX, masks. SSE values are in the table from Unicorn.

use super::*;

fn with_avx() -> Bench {
    let mut bench = Bench::long();
    bench.vcpu.state.cr4 |= cr4::OSXSAVE;
    bench.vcpu.state.xcr0 = 7;
    bench.vcpu.vectors[3] = core::array::from_fn(|index| index as u8);
    bench.set(Gpr::Rbx, DEVICE);
    bench
}

const UD: Outcome = Outcome::Fault(Exception::undefined());
const NM: Outcome = Outcome::Fault(Exception::device_not_available());

#[test]
fn vectors_need_their_control_bits() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE).code(&[0x0f, 0x28, 0x1b]);
    assert_eq!(bench.run(), complete(3));
    bench.vcpu.state.cr0 |= cr0::TS;
    assert_eq!(bench.run(), NM);
    bench.vcpu.state.cr0 = bench.vcpu.state.cr0 & !cr0::TS | cr0::EM;
    assert_eq!(bench.run(), UD);
    bench.vcpu.state.cr0 &= !cr0::EM;
    bench.vcpu.state.cr4 &= !cr4::OSFXSR;
    assert_eq!(bench.run(), UD);
    let mut avx = with_avx();
    avx.code(&[0xc5, 0xfc, 0x10, 0x1b]);
    assert_eq!(avx.run(), complete(4));
    avx.vcpu.state.xcr0 = 3;
    assert_eq!(avx.run(), UD);
    avx.vcpu.state.xcr0 = 7;
    avx.vcpu.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(avx.run(), UD);
}

#[test]
fn aligned_forms_fault_on_misaligned_operands_and_others_do_not() {
    let mut bench = with_avx();
    bench.set(Gpr::Rbx, DEVICE + 16);
    assert_eq!(bench.code(&[0x0f, 0x29, 0x1b]).run(), complete(3), "movaps [rbx],xmm3");
    assert_eq!(bench.code(&[0xc5, 0xfc, 0x29, 0x1b]).run(), GP, "vmovaps [rbx],ymm3");
    bench.set(Gpr::Rbx, DEVICE + 8);
    assert_eq!(bench.code(&[0x0f, 0x29, 0x1b]).run(), GP);
    assert_eq!(bench.code(&[0x0f, 0x11, 0x1b]).run(), complete(3), "movups [rbx],xmm3");
}

#[test]
fn wide_accesses_reach_a_device_in_pieces_of_eight() {
    let mut bench = with_avx();
    assert_eq!(bench.code(&[0xc5, 0xfe, 0x7f, 0x1b]).run(), complete(4), "vmovdqu [rbx],ymm3");
    let written: Vec<_> = bench.writes.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(written, [(DEVICE, 8), (DEVICE + 8, 8), (DEVICE + 16, 8), (DEVICE + 24, 8)]);
    assert_eq!(bench.writes[3].1, [24, 25, 26, 27, 28, 29, 30, 31]);
}

#[test]
fn vex_loads_clear_the_rest_and_legacy_loads_keep_the_upper_half() {
    let low = 0x8877_6655_4433_2211u64.to_le_bytes();
    let mut bench = with_avx();
    assert_eq!(bench.code(&[0xf3, 0x0f, 0x7e, 0x1b]).run(), complete(4), "movq xmm3,[rbx]");
    assert_eq!(bench.vcpu.vectors[3][..8], low);
    assert_eq!(bench.vcpu.vectors[3][8..16], [0; 8]);
    assert_eq!(bench.vcpu.vectors[3][16], 16);
    assert_eq!(bench.code(&[0xc5, 0xfa, 0x7e, 0x1b]).run(), complete(4), "vmovq xmm3,[rbx]");
    assert_eq!(bench.vcpu.vectors[3][8..], [0; 24]);
    let mut bench = with_avx();
    assert_eq!(bench.code(&[0xc5, 0xe0, 0x16, 0x2b]).run(), complete(4), "vmovhps xmm5,xmm3,[rbx]");
    assert_eq!(bench.vcpu.vectors[5][..8], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(bench.vcpu.vectors[5][8..16], low);
    assert_eq!(bench.vcpu.vectors[5][16..], [0; 16]);
    assert_eq!(bench.code(&[0xc4, 0xe2, 0x7d, 0x18, 0x2b]).run(), complete(5), "vbroadcastss ymm5,[rbx]");
    assert_eq!(bench.vcpu.vectors[5], core::array::from_fn(|index| low[index % 4]));
    assert_eq!(bench.code(&[0xc4, 0xe3, 0x7d, 0x19, 0x1b, 0x01]).run(), complete(6), "vextractf128 [rbx],ymm3,1");
    assert_eq!(bench.writes[0].1, [16, 17, 18, 19, 20, 21, 22, 23]);
}

#[test]
fn masked_stores_write_the_chosen_bytes_alone() {
    let mut bench = with_avx();
    bench.vcpu.vectors[4] = [0; 32];
    for index in [1, 2, 15] {
        bench.vcpu.vectors[4][index] = 0x80;
    }
    bench.set(Gpr::Rdi, DEVICE);
    assert_eq!(bench.code(&[0x66, 0x0f, 0xf7, 0xdc]).run(), complete(4), "maskmovdqu xmm3,xmm4");
    let written: Vec<_> = bench.writes.iter().map(|(at, bytes)| (*at - DEVICE, bytes[0])).collect();
    assert_eq!(written, [(1, 1), (2, 2), (15, 15)]);
}

#[test]
fn mmx_and_masked_avx_moves_are_refused() {
    let mut bench = with_avx();
    for code in [&[0x0f, 0x6f, 0x03][..], &[0xc4, 0xe2, 0x65, 0x2c, 0x2b]] {
        let outcome = bench.code(code).run();
        let refused = Reason::NotImplemented;
        assert!(matches!(outcome, Outcome::Unsupported(Unsupported { reason, .. }) if reason == refused), "{code:x?}");
    }
}
