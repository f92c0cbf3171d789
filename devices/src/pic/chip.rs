//! One 8259A: inputs, priorities and its command words.

use super::spec::{ICW2_BASE, Ocw2, POLL_PENDING, icw1, icw4, ocw3};

/// What the next write to the data port is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// An ICW1 first; until then the chip is silent.
    Icw1,
    Icw2,
    Icw3,
    Icw4,
    /// OCW1; the chip works.
    Ocw1,
}

/// Whether a nested request of the level in service is let through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    FullyNested,
    /// The cascade input of a master passes although it is in service.
    Special,
}

/// What a read of a port gives.
pub(super) enum PortRead {
    /// A register; nothing changed.
    Register(u8),
    /// The answer to a poll command; [`Chip::poll`] has it.
    Poll,
}

pub(super) struct Chip {
    /// The input that another chip drives, as a bit.
    cascade: u8,
    elcr_writable: u8,
    expects: Expects,
    icw1: u8,
    base: u8,
    /// Input levels.
    lines: u8,
    /// Edges that were not acknowledged; gone when the input falls.
    latched: u8,
    /// Level-triggered inputs.
    elcr: u8,
    imr: u8,
    isr: u8,
    /// The input with the lowest priority; the one after it has the highest.
    lowest: u8,
    reads_isr: bool,
    polled: bool,
    special_mask: bool,
    auto_eoi: bool,
    rotates_on_aeoi: bool,
    nesting: Nesting,
}

impl Chip {
    pub(super) const fn new(cascade: u8, elcr_writable: u8) -> Chip {
        Chip {
            cascade,
            elcr_writable,
            expects: Expects::Icw1,
            icw1: 0,
            base: 0,
            lines: 0,
            latched: 0,
            elcr: 0,
            imr: 0,
            isr: 0,
            lowest: 7,
            reads_isr: false,
            polled: false,
            special_mask: false,
            auto_eoi: false,
            rotates_on_aeoi: false,
            nesting: Nesting::FullyNested,
        }
    }

    /// The inputs keep the levels that others drive.
    pub(super) fn reset(&mut self) {
        *self = Chip { lines: self.lines, ..Chip::new(self.cascade, self.elcr_writable) };
    }

    pub(super) fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1u8.wrapping_shl(input.into());
        if asserted {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.latched &= !bit;
            self.lines &= !bit;
        }
    }

    fn irr(&self) -> u8 {
        self.latched & !self.elcr | self.lines & self.elcr
    }

    /// The place in the order of priorities of the first of `inputs`, 0 being the highest; 8 for none.
    fn rank(&self, inputs: u8) -> u32 {
        inputs.rotate_right(u32::from(self.lowest) + 1).trailing_zeros()
    }

    /// The input of that rank.
    fn input(&self, rank: u32) -> u8 {
        (rank as u8).wrapping_add(self.lowest).wrapping_add(1) & 7
    }

    /// Levels that hold back others: all in service, in special mask mode only those that are not masked.
    fn holding(&self) -> u8 {
        if self.special_mask { self.isr & !self.imr } else { self.isr }
    }

    /// The input that INT is asserted for.
    pub(super) fn request(&self) -> Option<u8> {
        let requests = self.irr() & !self.imr;
        if requests == 0 || self.expects != Expects::Ocw1 {
            return None;
        }
        let (request, service) = (self.rank(requests), self.rank(self.holding()));
        let input = self.input(request);
        let passes =
            request < service || request == service && self.nesting == Nesting::Special && 1 << input == self.cascade;
        passes.then_some(input)
    }

    /// INTA for `input`, which [`Chip::request`] gave.
    pub(super) fn acknowledge(&mut self, input: u8) {
        let bit = 1u8.wrapping_shl(input.into());
        self.latched &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotates_on_aeoi {
            self.lowest = input;
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_writable;
    }

    /// Reads the command or the data port.
    #[inline]
    pub(super) fn read(&self, is_data: bool) -> PortRead {
        if self.polled {
            return PortRead::Poll;
        }
        PortRead::Register(match (is_data, self.reads_isr) {
            (true, _) => self.imr,
            (false, false) => self.irr(),
            (false, true) => self.isr,
        })
    }

    /// Answers a poll command, which is an acknowledge.
    pub(super) fn poll(&mut self) -> u8 {
        self.polled = false;
        match self.request() {
            Some(input) => {
                self.acknowledge(input);
                POLL_PENDING | input
            }
            None => 0,
        }
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & icw1::SELECT != 0 {
            self.write_icw1(value);
        } else if value & ocw3::SELECT != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// "Initialization Command Words 1 and 2": the edge sense circuits forget, IMR is cleared, IR7 has the lowest
    /// priority, special mask mode is off, reads give IRR. Level or edge is chosen by ELCR, not by LTIM.
    fn write_icw1(&mut self, value: u8) {
        *self = Chip {
            icw1: value,
            lines: self.lines,
            elcr: self.elcr,
            expects: Expects::Icw2,
            ..Chip::new(self.cascade, self.elcr_writable)
        };
    }

    pub(super) fn write_data(&mut self, value: u8) {
        match self.expects {
            Expects::Icw1 | Expects::Ocw1 => self.imr = value,
            Expects::Icw2 => {
                self.base = value & ICW2_BASE;
                self.expects = if self.icw1 & icw1::SNGL == 0 { Expects::Icw3 } else { self.after_icw3() };
            }
            // Which input is the cascade is fixed by the board.
            Expects::Icw3 => self.expects = self.after_icw3(),
            Expects::Icw4 => {
                self.auto_eoi = value & icw4::AEOI != 0;
                self.nesting = if value & icw4::SFNM != 0 { Nesting::Special } else { Nesting::FullyNested };
                self.expects = Expects::Ocw1;
            }
        }
    }

    fn after_icw3(&self) -> Expects {
        if self.icw1 & icw1::IC4 != 0 { Expects::Icw4 } else { Expects::Ocw1 }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match Ocw2::from_bits(value) {
            Ocw2::StopRotatingOnAeoi => self.rotates_on_aeoi = false,
            Ocw2::RotateOnAeoi => self.rotates_on_aeoi = true,
            Ocw2::NoOperation => {}
            Ocw2::NonSpecificEoi => {
                self.end_highest();
            }
            Ocw2::SpecificEoi => self.isr &= !(1 << level),
            Ocw2::SetPriority => self.lowest = level,
            Ocw2::RotateOnNonSpecificEoi => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            Ocw2::RotateOnSpecificEoi => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
        }
    }

    /// Non-specific EOI; masked levels are skipped in special mask mode.
    fn end_highest(&mut self) -> Option<u8> {
        let holding = self.holding();
        if holding == 0 {
            return None;
        }
        let input = self.input(self.rank(holding));
        self.isr &= !(1 << input);
        Some(input)
    }

    fn write_ocw3(&mut self, value: u8) {
        self.polled = value & ocw3::POLL != 0;
        if value & ocw3::RR != 0 {
            self.reads_isr = value & ocw3::RIS != 0;
        }
        if value & ocw3::ESMM != 0 {
            self.special_mask = value & ocw3::SMM != 0;
        }
    }
}
