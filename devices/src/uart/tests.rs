use super::Uart;
use crate::fakes::{RecordedBytes, RecordedLine, TypedBytes};
use crate::{Device, Nanos};
use alloc::sync::Arc;
use alloc::vec::Vec;
use proptest::prelude::*;

const RBR: u64 = 0;
const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const RX: u8 = 0x01;
const TX: u8 = 0x02;
const LINE: u8 = 0x04;
const MODEM: u8 = 0x08;
const NO_INTERRUPT: u8 = 0x01;
const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;

struct Port {
    uart: Uart,
    line: Arc<RecordedLine>,
    sent: Arc<RecordedBytes>,
    typed: Arc<TypedBytes>,
}

impl Port {
    fn new() -> Port {
        let (line, sent, typed) = (RecordedLine::new(), RecordedBytes::new(), TypedBytes::new());
        let uart = Uart::new(line.clone(), sent.clone(), typed.clone());
        Port { uart, line, sent, typed }
    }
    /// FIFOs on with trigger level 14, OUT2 set.
    fn opened() -> Port {
        let mut port = Port::new();
        port.out(FCR, 0xc7);
        port.out(MCR, 0x0b);
        port
    }
    fn read(&mut self, register: u64) -> u8 {
        let mut byte = [0];
        self.uart.read(register, &mut byte);
        byte[0]
    }
    fn out(&mut self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }
    fn type_in(&mut self, bytes: &[u8]) {
        self.typed.type_in(bytes);
        self.uart.expire(Nanos(0));
    }
}

#[test]
fn after_reset_the_transmitter_is_empty_and_nothing_interrupts() {
    let mut port = Port::new();
    assert_eq!(port.read(LSR), 0x60);
    assert_eq!(port.read(IIR), NO_INTERRUPT);
    assert_eq!(port.read(IER), 0);
    assert_eq!(port.read(MSR), 0xb0, "a terminal is there: CTS, DSR, DCD");
    assert!(!port.line.is_high());
}

#[test]
fn sent_bytes_reach_the_sink_and_the_transmitter_stays_empty() {
    let mut port = Port::opened();
    for byte in *b"gear" {
        port.out(THR, byte);
        assert_eq!(port.read(LSR) & 0x60, 0x60);
    }
    assert_eq!(port.sent.bytes(), b"gear");
}

#[test]
fn a_wide_write_is_one_byte_per_register() {
    let mut port = Port::new();
    port.uart.write(LCR, &[0x03, 0x0b]);
    assert_eq!((port.read(LCR), port.read(MCR)), (0x03, 0x0b));
    let mut wide = [0; 4];
    port.uart.read(LSR, &mut wide);
    assert_eq!(wide, [0x60, 0xb0, 0x00, 0xff], "past the last register is open bus");
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let mut port = Port::new();
    port.out(IER, RX);
    port.out(LCR, 0x83);
    port.out(0, 0x34);
    port.out(1, 0x12);
    assert_eq!((port.read(0), port.read(1)), (0x34, 0x12));
    port.out(LCR, 0x03);
    assert_eq!(port.read(IER), RX);
    assert!(port.sent.bytes().is_empty());
}

#[test]
fn scratch_keeps_its_byte_and_reserved_bits_read_zero() {
    let mut port = Port::new();
    port.out(SCR, 0xa5);
    port.out(IER, 0xf0);
    port.out(MCR, 0xe0);
    assert_eq!((port.read(SCR), port.read(IER), port.read(MCR)), (0xa5, 0, 0));
}

#[test]
fn fifos_show_in_the_identification_register_only_when_enabled() {
    let mut port = Port::new();
    assert_eq!(port.read(IIR) >> 6, 0);
    port.out(FCR, 0x01);
    assert_eq!(port.read(IIR) >> 6, 3);
    port.out(FCR, 0x00);
    assert_eq!(port.read(IIR) >> 6, 0);
}

#[test]
fn thre_interrupts_when_enabled_and_again_after_every_write() {
    let mut port = Port::opened();
    port.out(IER, TX);
    assert!(port.line.is_high(), "enabling ETBEI with an empty transmitter interrupts");
    assert_eq!(port.read(IIR), 0xc2);
    assert!(!port.line.is_high(), "reading the IIR clears the THRE interrupt");
    assert_eq!(port.read(IIR), 0xc1);
    port.out(THR, b'x');
    assert!(port.line.is_high());
    assert_eq!(port.read(IIR), 0xc2);
    // Linux's test for UARTs that do not raise it anew.
    port.out(IER, 0);
    port.out(IER, TX);
    assert_eq!(port.read(IIR), 0xc2);
    port.out(IER, TX);
    assert_eq!(port.read(IIR), 0xc1, "ETBEI that was set already is no edge");
}

#[test]
fn received_data_interrupts_at_the_trigger_level_and_times_out_below_it() {
    let mut port = Port::opened();
    port.out(IER, RX);
    port.type_in(b"a");
    assert_eq!(port.read(IIR), 0xcc);
    assert!(port.line.is_high());
    port.type_in(&[b'b'; 13]);
    assert_eq!(port.read(IIR), 0xc4);
    for _ in 0..14 {
        assert_eq!(port.read(LSR) & 1, 1);
        port.read(RBR);
    }
    assert_eq!(port.read(LSR) & 1, 0);
    assert_eq!(port.read(IIR), 0xc1);
    assert!(!port.line.is_high());
}

#[test]
fn input_beyond_the_fifo_waits_at_the_source_and_none_is_lost() {
    let mut port = Port::opened();
    let text: Vec<u8> = (0..100).collect();
    port.type_in(&text);
    assert_eq!(port.typed.left(), 84);
    let mut got = Vec::new();
    while port.read(LSR) & 1 != 0 {
        got.push(port.read(RBR));
    }
    assert_eq!(got, text);
    assert_eq!(port.read(LSR) & 0x02, 0, "no overrun");
}

#[test]
fn without_fifos_one_character_is_held() {
    let mut port = Port::new();
    port.type_in(b"xyz");
    assert_eq!(port.typed.left(), 2);
    assert_eq!([port.read(RBR), port.read(RBR), port.read(RBR)], *b"xyz");
}

#[test]
fn interrupts_are_identified_in_priority_order() {
    let mut port = Port::opened();
    port.out(IER, RX | TX | LINE | MODEM);
    port.out(MCR, 0x0b | LOOP);
    port.read(MSR);
    port.out(MCR, OUT2 | LOOP);
    port.out(MCR, 0x0b);
    port.uart.receive_break();
    assert_eq!(port.read(IIR), 0xc6, "line status first");
    assert_eq!(port.read(LSR) & 0x9f, 0x99, "break, framing error, data ready, error in FIFO");
    assert_eq!(port.read(IIR), 0xcc, "then the character");
    assert_eq!(port.read(RBR), 0);
    assert_eq!(port.read(IIR), 0xc2, "then the transmitter");
    assert_eq!(port.read(IIR), 0xc0, "then the modem");
    port.read(MSR);
    assert_eq!(port.read(IIR), 0xc1);
}

#[test]
fn the_line_is_gated_by_out2() {
    let mut port = Port::opened();
    port.out(MCR, 0x03);
    port.out(IER, RX);
    port.type_in(b"k");
    assert!(!port.line.is_high());
    assert_eq!(port.read(IIR), 0xcc, "identified all the same");
    port.out(MCR, 0x0b);
    assert!(port.line.is_high());
}

#[test]
fn loopback_returns_bytes_and_modem_outputs_and_disconnects_the_line() {
    let mut port = Port::opened();
    port.out(MCR, LOOP | 0x0a);
    assert_eq!(port.read(MSR) & 0xf0, 0x90, "RTS to CTS, OUT2 to DCD, as Linux probes");
    port.out(THR, 0x42);
    port.type_in(b"outside");
    assert_eq!(port.read(RBR), 0x42);
    assert_eq!(port.read(LSR) & 1, 0, "the outside is cut off");
    assert!(port.sent.bytes().is_empty());
    port.out(IER, TX);
    assert!(!port.line.is_high(), "OUT2 is inactive in loopback");
    port.out(MCR, 0x0b);
    assert_eq!(port.read(RBR), b'o');
}

#[test]
fn loopback_overrun_keeps_the_fifo_and_sets_oe_once() {
    let mut port = Port::opened();
    port.out(MCR, LOOP);
    for byte in 0..17 {
        port.out(THR, byte);
    }
    assert_eq!(port.read(LSR) & 0x02, 0x02);
    assert_eq!(port.read(LSR) & 0x02, 0);
    for byte in 0..16 {
        assert_eq!(port.read(RBR), byte);
    }
}

#[test]
fn modem_deltas_are_kept_until_read_and_teri_is_the_trailing_edge() {
    let mut port = Port::new();
    port.out(MCR, LOOP);
    assert_eq!(port.read(MSR), 0x0b, "CTS, DSR, DCD fell");
    assert_eq!(port.read(MSR), 0);
    port.out(MCR, LOOP | 0x04);
    assert_eq!(port.read(MSR), 0x40, "RI rising is no TERI");
    port.out(MCR, LOOP);
    assert_eq!(port.read(MSR), 0x04);
}

#[test]
fn resetting_the_receive_fifo_drops_its_bytes() {
    let mut port = Port::opened();
    port.type_in(b"stale");
    port.out(FCR, 0x03);
    assert_eq!(port.read(LSR) & 1, 0);
}

#[test]
fn reset_lowers_the_line() {
    let mut port = Port::opened();
    port.out(IER, TX);
    assert!(port.line.is_high());
    port.uart.reset();
    assert!(!port.line.is_high());
    assert_eq!((port.read(IER), port.read(MCR), port.read(IIR)), (0, 0, NO_INTERRUPT));
}

proptest! {
    #[test]
    fn any_access_is_harmless(
        accesses in proptest::collection::vec((any::<bool>(), prop_oneof![0u64..10, any::<u64>()],
            proptest::collection::vec(any::<u8>(), 1..9)), 0..200),
        typed in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut port = Port::new();
        port.typed.type_in(&typed);
        for (write, offset, mut bytes) in accesses {
            if write {
                port.uart.write(offset, &bytes);
            } else {
                port.uart.read(offset, &mut bytes);
            }
            prop_assert_eq!(port.uart.deadline(), None);
        }
        // A driver that serves every interrupt gets to the end.
        port.out(LCR, 0);
        port.out(MCR, OUT2);
        port.out(IER, 0x0f);
        for _ in 0..100 {
            match port.read(IIR) & 0x0f {
                0x6 => { port.read(LSR); }
                0x4 | 0xc => { port.read(RBR); }
                0x2 => {}
                0x0 => { port.read(MSR); }
                _ => break,
            }
        }
        prop_assert!(!port.line.is_high());
    }
}
