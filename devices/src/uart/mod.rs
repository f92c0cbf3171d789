//! 16550A UART, a PC's serial port.
//!
//! Manual: National Semiconductor PC16550D, "Universal Asynchronous Receiver/Transmitter with FIFOs", June 1995.
//!
//! [`Uart`] decodes eight byte registers. Output leaves at once, whatever the divisor says, so the transmitter is always
//! empty; input is pulled from a [`ByteSource`] as the FIFO runs empty, so nothing overflows and what the guest does
//! not fetch stays with the source. Its owner calls [`Device::expire`] (through [`crate::Attached::expire`]) after it gave
//! the source new bytes. The interrupt line is gated by OUT2, as PC boards wire it.
//!
//! Not here: baud rates, parity, the DMA pins, and who listens at the far end.

mod spec;
#[cfg(test)]
mod tests;

use crate::{ByteSink, ByteSource, Device, IrqLine, Nanos};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use spec::{FIFO_DEPTH, Fcr, IIR_FIFOS_ENABLED, Ier, Iid, Lcr, Lsr, Mcr, Msr, offset, trigger_level};

/// One character in the receive FIFO with the line status that belongs to it (parity, framing, break).
#[derive(Clone, Copy)]
struct Received {
    byte: u8,
    errors: Lsr,
}

/// A 16550A.
pub struct Uart {
    line: Arc<dyn IrqLine>,
    output: Arc<dyn ByteSink>,
    input: Arc<dyn ByteSource>,
    line_is_high: bool,
    ier: Ier,
    lcr: Lcr,
    mcr: Mcr,
    scratch: u8,
    divisor: [u8; 2],
    fifos_enabled: bool,
    trigger: usize,
    received: ArrayVec<Received, FIFO_DEPTH>,
    /// Error bits that the next LSR read shows and clears.
    line_errors: Lsr,
    /// Modem inputs, upper half of the MSR, and their deltas, lower half.
    modem: Msr,
    /// The THRE interrupt is pending: set when the transmitter runs empty or ETBEI rises, cleared by an IIR read that
    /// reports it or by a write to the THR.
    thre_pending: bool,
}

/// What a terminal that is always there drives outside loopback.
const TERMINAL: Msr = Msr::CTS.union(Msr::DSR).union(Msr::DCD);
const ERRORS: Lsr = Lsr::OE.union(Lsr::PE).union(Lsr::FE).union(Lsr::BI);
const DELTAS: Msr = Msr::DCTS.union(Msr::DDSR).union(Msr::TERI).union(Msr::DDCD);

impl Uart {
    /// Registers that the device decodes, one byte each.
    pub const PORTS: u64 = 8;

    /// A UART after reset that interrupts by `line`, sends to `output` and receives from `input`.
    pub fn new(line: Arc<dyn IrqLine>, output: Arc<dyn ByteSink>, input: Arc<dyn ByteSource>) -> Uart {
        Uart {
            line,
            output,
            input,
            line_is_high: false,
            ier: Ier::empty(),
            lcr: Lcr::empty(),
            mcr: Mcr::empty(),
            scratch: 0,
            divisor: [12, 0],
            fifos_enabled: false,
            trigger: 1,
            received: ArrayVec::new(),
            line_errors: Lsr::empty(),
            modem: TERMINAL,
            thre_pending: false,
        }
    }

    /// The far end sends a break: a zero character with BI and FE, which Linux takes as SysRq. Lost if the FIFO is full.
    pub fn receive_break(&mut self) {
        self.receive(Received { byte: 0, errors: Lsr::BI | Lsr::FE });
        self.update_line();
    }

    fn depth(&self) -> usize {
        if self.fifos_enabled { FIFO_DEPTH } else { 1 }
    }

    /// Puts one character into the receiver, with the overrun rules of 8.4 bit 1.
    fn receive(&mut self, character: Received) {
        if self.received.len() < self.depth() {
            if self.received.is_empty() {
                self.line_errors |= character.errors;
            }
            self.received.push(character);
            return;
        }
        self.line_errors |= Lsr::OE;
        if !self.fifos_enabled {
            // Without FIFOs the new character replaces the old one; with them it is lost in the shift register.
            self.received.clear();
            self.received.push(character);
        }
    }

    /// Takes what the source has, as far as there is room. In loopback the receiver is cut off from the line.
    fn pull(&mut self) {
        if self.mcr.contains(Mcr::LOOP) {
            return;
        }
        while self.received.len() < self.depth() {
            match self.input.take() {
                Some(byte) => self.receive(Received { byte, errors: Lsr::empty() }),
                None => break,
            }
        }
    }

    fn read_receiver(&mut self) -> u8 {
        let byte = self.received.pop_at(0).map_or(0, |character| character.byte);
        if self.received.is_empty() {
            self.pull();
        }
        if let Some(next) = self.received.first() {
            self.line_errors |= next.errors;
        }
        self.update_line();
        byte
    }

    fn transmit(&mut self, byte: u8) {
        if self.mcr.contains(Mcr::LOOP) {
            self.receive(Received { byte, errors: Lsr::empty() });
        } else {
            self.output.put(byte);
        }
        // The write clears the interrupt and the empty transmitter raises it again, at once.
        self.thre_pending = true;
        self.update_line();
    }

    fn line_status(&self) -> Lsr {
        let mut status = Lsr::THRE | Lsr::TEMT | self.line_errors;
        if !self.received.is_empty() {
            status |= Lsr::DR;
            if self.fifos_enabled && self.received.iter().any(|character| !character.errors.is_empty()) {
                status |= Lsr::ERROR_IN_FIFO;
            }
        }
        status
    }

    fn interrupt(&self) -> Iid {
        if self.ier.contains(Ier::ELSI) && !self.line_errors.is_empty() {
            Iid::ReceiverLineStatus
        } else if self.ier.contains(Ier::ERBFI) && self.received.len() >= self.trigger {
            Iid::ReceivedDataAvailable
        } else if self.ier.contains(Ier::ERBFI) && !self.received.is_empty() {
            // Four character times without access have passed: here a character takes no time.
            Iid::CharacterTimeout
        } else if self.ier.contains(Ier::ETBEI) && self.thre_pending {
            Iid::TransmitterHoldingRegisterEmpty
        } else if self.ier.contains(Ier::EDSSI) && self.modem.intersects(DELTAS) {
            Iid::ModemStatus
        } else {
            Iid::None
        }
    }

    fn update_line(&mut self) {
        // Loopback forces the OUT2 pin inactive whatever the bit says (8.8 bit 4).
        let gate = self.mcr.intersection(Mcr::OUT2 | Mcr::LOOP) == Mcr::OUT2;
        let high = gate && self.interrupt() != Iid::None;
        if high != self.line_is_high {
            self.line_is_high = high;
            self.line.set(high);
        }
    }

    fn set_fifo_control(&mut self, value: u8) {
        let control = Fcr::from_bits_truncate(value);
        let enable = control.contains(Fcr::FIFO_ENABLE);
        if enable != self.fifos_enabled || control.contains(Fcr::RCVR_FIFO_RESET) {
            // 8.5: a change of bit 0 clears both FIFOs.
            self.received.clear();
        }
        if enable != self.fifos_enabled || control.contains(Fcr::XMIT_FIFO_RESET) {
            self.thre_pending = true;
        }
        self.fifos_enabled = enable;
        self.trigger = if enable { trigger_level(value) } else { 1 };
        self.pull();
        self.update_line();
    }

    fn set_interrupt_enable(&mut self, value: u8) {
        let enable = Ier::from_bits_truncate(value);
        if enable.contains(Ier::ETBEI) && !self.ier.contains(Ier::ETBEI) {
            self.thre_pending = true;
        }
        self.ier = enable;
        self.update_line();
    }

    fn set_modem_control(&mut self, value: u8) {
        let was_looped = self.mcr.contains(Mcr::LOOP);
        self.mcr = Mcr::from_bits_truncate(value);
        if was_looped && !self.mcr.contains(Mcr::LOOP) {
            self.pull();
        }
        self.update_modem();
        self.update_line();
    }

    /// Takes over the modem inputs and notes what changed.
    fn update_modem(&mut self) {
        let inputs = if self.mcr.contains(Mcr::LOOP) {
            let pairs = [(Mcr::RTS, Msr::CTS), (Mcr::DTR, Msr::DSR), (Mcr::OUT1, Msr::RI), (Mcr::OUT2, Msr::DCD)];
            pairs.iter().filter(|(output, _)| self.mcr.contains(*output)).map(|(_, input)| *input).collect()
        } else {
            TERMINAL
        };
        let before = self.modem;
        let mut deltas = before & DELTAS;
        let changed = before.symmetric_difference(inputs);
        deltas.set(Msr::DCTS, deltas.contains(Msr::DCTS) || changed.contains(Msr::CTS));
        deltas.set(Msr::DDSR, deltas.contains(Msr::DDSR) || changed.contains(Msr::DSR));
        deltas.set(Msr::DDCD, deltas.contains(Msr::DDCD) || changed.contains(Msr::DCD));
        // TERI is the trailing edge only.
        let ring_ended = before.contains(Msr::RI) && !inputs.contains(Msr::RI);
        deltas.set(Msr::TERI, deltas.contains(Msr::TERI) || ring_ended);
        self.modem = inputs | deltas;
    }

    #[inline]
    fn read_line_status(&mut self) -> u8 {
        let status = self.line_status();
        if !self.line_errors.is_empty() {
            self.show_errors();
        }
        status.bits()
    }

    /// The errors of the character at the top have been shown; they do not come back.
    #[cold]
    #[inline(never)]
    fn show_errors(&mut self) {
        self.line_errors -= ERRORS;
        if let Some(top) = self.received.first_mut() {
            top.errors = Lsr::empty();
        }
        self.update_line();
    }

    #[inline(never)]
    fn read_register(&mut self, register: u64) -> u8 {
        let latch = self.lcr.contains(Lcr::DLAB);
        match register {
            offset::RBR_THR_DLL if latch => self.divisor[0],
            offset::RBR_THR_DLL => self.read_receiver(),
            offset::IER_DLM if latch => self.divisor[1],
            offset::IER_DLM => self.ier.bits(),
            offset::IIR_FCR => {
                let id = self.interrupt();
                if id == Iid::TransmitterHoldingRegisterEmpty {
                    self.thre_pending = false;
                    self.update_line();
                }
                id as u8 | if self.fifos_enabled { IIR_FIFOS_ENABLED } else { 0 }
            }
            offset::LCR => self.lcr.bits(),
            offset::MCR => self.mcr.bits(),
            offset::LSR => self.read_line_status(),
            offset::MSR => {
                let status = self.modem;
                if status.intersects(DELTAS) {
                    self.modem -= DELTAS;
                    self.update_line();
                }
                status.bits()
            }
            offset::SCR => self.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let latch = self.lcr.contains(Lcr::DLAB);
        match register {
            offset::RBR_THR_DLL if latch => self.divisor[0] = value,
            offset::RBR_THR_DLL => self.transmit(value),
            offset::IER_DLM if latch => self.divisor[1] = value,
            offset::IER_DLM => self.set_interrupt_enable(value),
            offset::IIR_FCR => self.set_fifo_control(value),
            offset::LCR => self.lcr = Lcr::from_bits_truncate(value),
            offset::MCR => self.set_modem_control(value),
            // 8.4: LSR writes are for factory tests; the MSR is not written in practice.
            offset::SCR => self.scratch = value,
            _ => {}
        }
    }
}

impl Device for Uart {
    #[inline]
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // What a driver reads before each byte.
        if let ([byte], offset::LSR) = (&mut *data, offset) {
            *byte = self.read_line_status();
            return;
        }
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.read_register(offset.wrapping_add(index as u64));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            self.write_register(offset.wrapping_add(index as u64), *byte);
        }
    }

    /// Fetches input that came since.
    fn expire(&mut self, _now: Nanos) {
        self.pull();
        self.update_line();
    }

    /// The MR pin, Table III "Reset Functions": the scratch register and the divisor stay.
    fn reset(&mut self) {
        self.ier = Ier::empty();
        self.lcr = Lcr::empty();
        self.mcr = Mcr::empty();
        self.fifos_enabled = false;
        self.trigger = 1;
        self.received.clear();
        self.line_errors = Lsr::empty();
        self.modem = TERMINAL;
        self.thre_pending = false;
        self.update_line();
    }
}
