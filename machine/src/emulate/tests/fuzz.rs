//! Random bytes, registers and tables: the emulator never panics and always ends.

use super::*;

/// A small generator; the seed is fixed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }

    /// An address that something interesting is at, or any number.
    fn value(&mut self) -> u64 {
        let near = self.below(64);
        match self.below(8) {
            0 => self.next(),
            1 => near,
            2 => DEVICE + near,
            3 => DATA + 0xff0 + near,
            4 => u64::MAX - near,
            5 => (1 << 47) - 32 + near,
            6 => RAM - 32 + near,
            _ => DATA + near,
        }
    }
}

const ROUNDS: u64 = 20_000;
/// Openings of forms that the emulator has; random bytes hit few of them.
const OPENINGS: [&[u8]; 28] = [
    &[0x8b],
    &[0x89],
    &[0xf0, 0x01],
    &[0xf3, 0xa4],
    &[0xf3, 0xa5],
    &[0xf2, 0xae],
    &[0x0f, 0xb1],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0xff],
    &[0xfe],
    &[0xf7],
    &[0xf6],
    &[0xd3],
    &[0xc1],
    &[0x0f, 0xa5],
    &[0x0f, 0xab],
    &[0x0f, 0xba],
    &[0x0f, 0x28],
    &[0xc5],
    &[0xc4],
    &[0x66, 0x0f],
    &[0xf3, 0x0f],
    &[0x0f, 0x38],
    &[0x6d],
    &[0xf3, 0x6f],
    &[0x8f],
    &[0x67],
];

fn scramble(bench: &mut Bench, random: &mut Random) {
    for register in Gpr::ALL {
        let value = random.value();
        bench.set(register, value);
    }
    bench.vcpu.state.rflags = random.next() & 0x3f_7fd5 | 2;
    bench.answer = random.next();
    bench.patience.set(64);
    let mut code = [0; 16];
    for byte in &mut code {
        *byte = random.next() as u8;
    }
    if random.below(4) != 0 {
        let opening = OPENINGS[random.below(OPENINGS.len() as u64) as usize];
        code[..opening.len()].copy_from_slice(opening);
    }
    bench.vcpu.state.rip = if random.below(8) == 0 { CODE + 0xff0 + random.below(16) } else { CODE };
    bench.code(&code);
    if random.below(8) == 0 {
        let name = random.below(6) as usize;
        let attributes = random.next() as u32 & 0x1_f0ff;
        // The code segment keeps its size, or most rounds would fetch nothing.
        if name != SegmentName::Cs as usize {
            bench.vcpu.state.segments[name] = segment(attributes, random.value(), random.next() as u32);
        }
    }
}

fn fuzz(make: impl Fn() -> Bench, seed: u64) -> [u64; 5] {
    let mut random = Random(seed);
    let mut bench = make();
    let mut outcomes = [0; 5];
    for round in 0..ROUNDS {
        if round % 128 == 0 {
            let emulator = bench.emulator.take();
            bench = make();
            bench.emulator = emulator;
        }
        scramble(&mut bench, &mut random);
        if round % 16 == 0 {
            // A table entry, or whatever else lies among them.
            let at = TABLES + random.below(0x9000) / 8 * 8;
            let value = random.value() << 12 | random.below(0x1000);
            bench.poke64(at, value);
        }
        let (reads, writes) = (bench.reads.len(), bench.writes.len());
        let outcome = match random.below(4) {
            0 => bench.access(DEVICE + random.below(64), AccessKind::Write),
            1 => bench.access(DEVICE + random.below(64), AccessKind::Read),
            _ => bench.run(),
        };
        // 64 elements of a compare that crosses a page everywhere: 8 pieces for each operand.
        assert!(bench.reads.len() - reads <= 64 * 16 && bench.writes.len() - writes <= 64 * 16);
        outcomes[match outcome {
            Outcome::Complete(_) => 0,
            Outcome::Again => 1,
            Outcome::Jump(_) => 2,
            Outcome::Fault(_) => 3,
            Outcome::Unsupported(_) => 4,
        }] += 1;
        for expected in [Exiting::Cpuid, Exiting::ControlWrite, Exiting::Hypercall] {
            if let Ok(length) = bench.length(expected) {
                assert!(length.bytes() <= 15);
            }
        }
    }
    outcomes
}

#[test]
fn nothing_a_guest_can_write_stops_the_emulator() {
    let makers: [(fn() -> Bench, u64); 5] = [
        (Bench::long, 0x1111_2222_3333_4444),
        (Bench::long_small, 0x2222_3333_4444_5555),
        (Bench::paged32, 0x3333_4444_5555_6666),
        (Bench::pae, 0x4444_5555_6666_7777),
        (Bench::real, 0x5555_6666_7777_8888),
    ];
    for (make, seed) in makers {
        let outcomes = fuzz(make, seed);
        // Every kind of ending comes up, or the inputs are not worth their time.
        for (name, index) in [("complete", 0), ("again", 1), ("fault", 3), ("unsupported", 4)] {
            assert!(outcomes[index] > 100, "{name} came up {} times: {outcomes:?}", outcomes[index]);
        }
    }
}
