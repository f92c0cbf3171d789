use super::{ApicBus, ApicFeatures, ApicMode, ApicPort, ApicWires, GeneralProtection, LocalApic, Role, TscTime};
use crate::fakes::ManualClock;
use crate::{CpuSignals, DeliveryMode, DestinationMode, EoiSink, InterruptMessage, MessageSink, Nanos, TriggerMode};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use memory::RegisterPage;
use proptest::prelude::*;
use spin::Mutex;

const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TPR: usize = 0x80;
const PPR: usize = 0xa0;
const EOI: usize = 0xb0;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR: usize = 0x300;
const ICR2: usize = 0x310;
const LVTT: usize = 0x320;
const LVT0: usize = 0x350;
const LVT1: usize = 0x360;
const LVTERR: usize = 0x370;
const TICR: usize = 0x380;
const TCCR: usize = 0x390;
const TDCR: usize = 0x3e0;

const BASE_XAPIC: u64 = 0xfee0_0800;
const BASE_X2APIC: u64 = 0xfee0_0c00;
const BASE_BSP: u64 = 0x100;
const DIVIDE_BY_1: u32 = 0b1011;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Pending,
    Nmi,
    Init,
    StartUp(u8),
}

#[derive(Default)]
struct Signals(Mutex<Vec<Signal>>);

impl Signals {
    fn taken(&self) -> Vec<Signal> {
        core::mem::take(&mut self.0.lock())
    }
}

impl CpuSignals for Signals {
    fn interrupt_pending(&self) {
        self.0.lock().push(Signal::Pending);
    }
    fn nmi(&self) {
        self.0.lock().push(Signal::Nmi);
    }
    fn init(&self) {
        self.0.lock().push(Signal::Init);
    }
    fn start_up(&self, page: u8) {
        self.0.lock().push(Signal::StartUp(page));
    }
}

#[derive(Default)]
struct Ended(Mutex<Vec<u8>>);

impl EoiSink for Ended {
    fn eoi(&self, vector: u8) {
        self.0.lock().push(vector);
    }
}

/// A guest TSC of 2 GHz that began `0` nanoseconds after the machine.
struct TwoGigahertz;

impl TscTime for TwoGigahertz {
    fn moment(&self, tsc: u64) -> Nanos {
        Nanos(tsc.div_ceil(2))
    }
}

const FEATURES: ApicFeatures =
    ApicFeatures { x2apic: true, tsc_deadline: true, eoi_suppression: true, physical_bits: 40 };

struct Machine {
    cpus: Vec<LocalApic>,
    signals: Vec<Arc<Signals>>,
    bus: Arc<ApicBus>,
    clock: Arc<ManualClock>,
    ended: Arc<Ended>,
}

impl Machine {
    fn with_features(ids: &[u32], features: ApicFeatures) -> Machine {
        let signals: Vec<Arc<Signals>> = ids.iter().map(|_| Arc::default()).collect();
        let ports: Vec<_> = ids
            .iter()
            .zip(&signals)
            .map(|(&id, signals)| ApicPort::new(id, Arc::new(RegisterPage::new()), signals.clone()))
            .collect();
        let bus = ApicBus::new(ports.clone());
        let (clock, ended) = (ManualClock::at(0), Arc::new(Ended::default()));
        let wires =
            ApicWires { bus: bus.clone(), eoi: ended.clone(), clock: clock.clone(), tsc: Arc::new(TwoGigahertz) };
        let cpus = ports
            .into_iter()
            .enumerate()
            .map(|(index, port)| {
                let role = if index == 0 { Role::Bootstrap } else { Role::Application };
                LocalApic::new(port, wires.clone(), features, role)
            })
            .collect();
        Machine { cpus, signals, bus, clock, ended }
    }

    /// All of them enabled by software.
    fn enabled(ids: &[u32]) -> Machine {
        let mut machine = Machine::with_features(ids, FEATURES);
        for cpu in &mut machine.cpus {
            cpu.write32(SVR, 0x1ff);
        }
        machine
    }

    fn x2apic(ids: &[u32]) -> Machine {
        let mut machine = Machine::enabled(ids);
        for cpu in &mut machine.cpus {
            cpu.set_apic_base(BASE_X2APIC).unwrap();
        }
        machine
    }

    /// Who has `vector` in IRR.
    fn requested(&self, vector: u8) -> Vec<usize> {
        let word = IRR + usize::from(vector >> 5) * 0x10;
        let has = |cpu: &LocalApic| cpu.port().page().load(word) >> (vector & 31) & 1 != 0;
        (0..self.cpus.len()).filter(|&index| has(&self.cpus[index])).collect()
    }

    fn advance(&mut self, nanos: u64) {
        self.clock.advance(nanos);
        let now = crate::Clock::now(&*self.clock);
        for cpu in &mut self.cpus {
            if cpu.deadline().is_some_and(|at| at <= now) {
                cpu.expire(now);
            }
        }
    }
}

fn fixed(destination: u32, destination_mode: DestinationMode, vector: u8) -> InterruptMessage {
    let (delivery, trigger) = (DeliveryMode::Fixed, TriggerMode::Edge);
    InterruptMessage { destination, destination_mode, delivery, vector, trigger }
}

fn level(vector: u8) -> InterruptMessage {
    InterruptMessage { trigger: TriggerMode::Level, ..fixed(0, DestinationMode::Physical, vector) }
}

/// Takes what is deliverable as the processor would.
fn take(cpu: &mut LocalApic) -> Option<u8> {
    let vector = cpu.highest_pending()?;
    cpu.acknowledge(vector);
    Some(vector)
}

#[test]
fn reset_state_is_the_manuals() {
    let mut machine = Machine::with_features(&[0, 5], FEATURES);
    let cpu = &mut machine.cpus[1];
    assert_eq!(cpu.apic_base(), BASE_XAPIC);
    assert_eq!(cpu.mmio_base(), Some(0xfee0_0000));
    assert_eq!(cpu.read32(ID), 0x0500_0000);
    assert_eq!(cpu.read32(VERSION), 0x0105_0014);
    assert_eq!(cpu.read32(DFR), 0xffff_ffff);
    assert_eq!(cpu.read32(SVR), 0xff);
    for lvt in (LVTT..=LVTERR).step_by(0x10) {
        assert_eq!(cpu.read32(lvt), MASKED, "{lvt:#x}");
    }
    for zero in [TPR, PPR, LDR, ESR, ICR, ICR2, TICR, TCCR, TDCR, ISR, TMR, IRR] {
        assert_eq!(cpu.read32(zero), 0, "{zero:#x}");
    }
    assert_eq!(machine.cpus[0].apic_base(), BASE_XAPIC | BASE_BSP);
}

#[test]
fn requests_are_taken_highest_first_and_only_above_the_processor_priority() {
    let mut machine = Machine::enabled(&[0]);
    for vector in [0x31, 0x52, 0x57, 0xef] {
        assert!(machine.bus.deliver(&fixed(0, DestinationMode::Physical, vector)));
    }
    let cpu = &mut machine.cpus[0];
    assert_eq!(take(cpu), Some(0xef));
    assert_eq!(take(cpu), None);
    assert_eq!(cpu.read32(PPR), 0xe0);
    cpu.write32(EOI, 0);
    assert_eq!(take(cpu), Some(0x57));
    assert_eq!(take(cpu), None, "0x52 is of the same class");
    assert_eq!(cpu.held_by_task_priority(), None, "it waits for an end of interrupt");
    assert_eq!(cpu.read32(ISR + 0x20), 1 << 0x17);
    cpu.write32(EOI, 0);
    cpu.write32(TPR, 0x52);
    assert_eq!(take(cpu), None);
    assert_eq!(cpu.read32(PPR), 0x52);
    assert_eq!(cpu.held_by_task_priority(), Some(0x52));
    cpu.write32(TPR, 0x4f);
    assert_eq!(cpu.held_by_task_priority(), None, "nothing holds it back now");
    assert_eq!(take(cpu), Some(0x52));
    assert_eq!(cpu.read32(PPR), 0x50);
    cpu.write32(EOI, 0);
    assert_eq!(take(cpu), None);
    cpu.set_task_priority(0x20);
    assert_eq!(take(cpu), Some(0x31));
    cpu.write32(EOI, 0);
    cpu.write32(EOI, 0);
    assert_eq!(take(cpu), None);
    assert_eq!(cpu.read32(PPR), 0x20);
}

#[test]
fn nested_interrupts_end_in_reverse_order() {
    let mut machine = Machine::enabled(&[0]);
    let vectors = [0x21, 0x35, 0x3f, 0x41, 0x5f, 0x60, 0x9a, 0xff];
    let mut nested = Vec::new();
    for vector in vectors {
        machine.bus.deliver(&fixed(0, DestinationMode::Physical, vector));
        if let Some(taken) = take(&mut machine.cpus[0]) {
            nested.push(taken);
        }
    }
    assert_eq!(nested, [0x21, 0x35, 0x41, 0x5f, 0x60, 0x9a, 0xff], "0x3f waits for its class");
    while let Some(vector) = nested.pop() {
        assert_eq!(machine.cpus[0].read32(PPR), u32::from(vector & 0xf0));
        machine.cpus[0].eoi();
        if vector == 0x35 {
            assert_eq!(take(&mut machine.cpus[0]), Some(0x3f));
            machine.cpus[0].eoi();
        }
    }
    assert_eq!(machine.cpus[0].read32(PPR), 0);
}

#[test]
fn the_processor_is_told_once_per_new_request_and_when_priority_falls() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(TPR, 0xff);
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x40));
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x40));
    assert_eq!(machine.signals[0].taken(), [Signal::Pending]);
    machine.cpus[0].write32(TPR, 0x40);
    assert_eq!(machine.signals[0].taken(), []);
    machine.cpus[0].write32(TPR, 0x30);
    assert_eq!(machine.signals[0].taken(), [Signal::Pending]);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x41));
    machine.signals[0].taken();
    machine.cpus[0].eoi();
    assert_eq!(machine.signals[0].taken(), [Signal::Pending]);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x41));
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x42));
    machine.cpus[0].write32(TPR, 0x40);
    machine.signals[0].taken();
    machine.cpus[0].eoi();
    assert_eq!(
        machine.signals[0].taken(),
        [Signal::Pending],
        "only the task priority holds it back now, and CR8 may fall unseen"
    );
}

#[test]
fn software_disable_masks_the_lvt_refuses_vectors_and_keeps_what_waits() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVT0, 0x700);
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x40));
    machine.cpus[0].write32(SVR, 0x0ff);
    assert_eq!(machine.cpus[0].read32(LVT0), MASKED | 0x700);
    machine.cpus[0].write32(LVT0, 0x700);
    assert_eq!(machine.cpus[0].read32(LVT0), MASKED | 0x700, "the mask cannot be cleared");
    assert!(!machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x50)));
    let nmi = InterruptMessage { delivery: DeliveryMode::Nmi, ..fixed(0, DestinationMode::Physical, 0) };
    machine.signals[0].taken();
    assert!(machine.bus.deliver(&nmi));
    assert_eq!(machine.signals[0].taken(), [Signal::Nmi]);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
}

#[test]
fn level_interrupts_broadcast_their_end_and_edge_ones_do_not() {
    let mut machine = Machine::enabled(&[0]);
    machine.bus.deliver(&level(0x61));
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x72));
    let cpu = &mut machine.cpus[0];
    assert_eq!(cpu.read32(TMR + 0x30), 2);
    assert_eq!(cpu.level_vectors(), [0, 1 << 0x21, 0, 0]);
    assert_eq!(take(cpu), Some(0x72));
    cpu.eoi();
    assert_eq!(take(cpu), Some(0x61));
    cpu.eoi();
    assert_eq!(*machine.ended.0.lock(), [0x61]);
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x61));
    assert_eq!(machine.cpus[0].read32(TMR + 0x30), 0, "TMR follows the last request");
}

#[test]
fn end_broadcasts_can_be_suppressed_where_that_is_offered() {
    for offered in [false, true] {
        let mut machine = Machine::with_features(&[0], ApicFeatures { eoi_suppression: offered, ..FEATURES });
        machine.cpus[0].write32(SVR, 0x11ff);
        assert_eq!(machine.cpus[0].read32(VERSION) >> 24, offered.into());
        assert_eq!(machine.cpus[0].read32(SVR), if offered { 0x11ff } else { 0x1ff });
        machine.bus.deliver(&level(0x61));
        take(&mut machine.cpus[0]);
        machine.cpus[0].eoi();
        assert_eq!(machine.ended.0.lock().is_empty(), offered);
    }
}

#[test]
fn physical_destinations_name_one_apic_or_all() {
    let machine = Machine::enabled(&[0, 1, 4]);
    assert!(machine.bus.deliver(&fixed(4, DestinationMode::Physical, 0x40)));
    assert_eq!(machine.requested(0x40), [2]);
    assert!(!machine.bus.deliver(&fixed(2, DestinationMode::Physical, 0x41)));
    assert!(!machine.bus.deliver(&fixed(0x1234_5678, DestinationMode::Physical, 0x41)));
    assert!(machine.bus.deliver(&fixed(0xff, DestinationMode::Physical, 0x42)));
    assert_eq!(machine.requested(0x42), [0, 1, 2]);
}

#[test]
fn logical_destinations_follow_the_flat_and_the_cluster_model() {
    let mut machine = Machine::enabled(&[0, 1, 2]);
    for (cpu, ldr) in machine.cpus.iter_mut().zip([0x0100_0000, 0x0200_0000, 0x0400_0000]) {
        cpu.write32(LDR, ldr | 0xff_ffff);
        assert_eq!(cpu.read32(LDR), ldr);
    }
    machine.bus.deliver(&fixed(0x05, DestinationMode::Logical, 0x40));
    assert_eq!(machine.requested(0x40), [0, 2]);
    assert!(!machine.bus.deliver(&fixed(0x08, DestinationMode::Logical, 0x41)));
    for (cpu, ldr) in machine.cpus.iter_mut().zip([0x1100_0000, 0x1200_0000, 0x2100_0000]) {
        cpu.write32(DFR, 0);
        assert_eq!(cpu.read32(DFR), 0x0fff_ffff);
        cpu.write32(LDR, ldr);
    }
    machine.bus.deliver(&fixed(0x13, DestinationMode::Logical, 0x42));
    assert_eq!(machine.requested(0x42), [0, 1]);
    machine.bus.deliver(&fixed(0x21, DestinationMode::Logical, 0x43));
    assert_eq!(machine.requested(0x43), [2]);
    machine.bus.deliver(&fixed(0xff, DestinationMode::Logical, 0x44));
    assert_eq!(machine.requested(0x44), [0, 1, 2]);
}

#[test]
fn lowest_priority_goes_to_the_least_busy_enabled_apic() {
    let mut machine = Machine::enabled(&[0, 1, 2, 3]);
    for (cpu, tpr) in machine.cpus.iter_mut().zip([0x30, 0x20, 0x10, 0x00]) {
        cpu.write32(TPR, tpr);
    }
    machine.cpus[3].write32(SVR, 0xff);
    let lowest = |vector| InterruptMessage {
        delivery: DeliveryMode::LowestPriority,
        ..fixed(0xff, DestinationMode::Physical, vector)
    };
    assert!(machine.bus.deliver(&lowest(0x80)));
    assert_eq!(machine.requested(0x80), [2]);
    take(&mut machine.cpus[2]);
    machine.bus.deliver(&lowest(0x90));
    assert_eq!(machine.requested(0x90), [1], "what is in service counts too");
    for cpu in &mut machine.cpus {
        cpu.write32(SVR, 0x1ff);
        cpu.write32(TPR, 0x80);
    }
    for (vector, winner) in [(0xa0, 0), (0xa1, 1), (0xa2, 2), (0xa3, 3), (0xa4, 0)] {
        machine.bus.deliver(&lowest(vector));
        assert_eq!(machine.requested(vector), [winner], "among equals the vector chooses");
    }
}

#[test]
fn interrupt_commands_reach_whom_they_name() {
    let mut machine = Machine::enabled(&[0, 1, 2]);
    let mut send = |destination: u32, low: u32| {
        machine.cpus[1].write32(ICR2, destination << 24);
        machine.cpus[1].write32(ICR, low);
    };
    send(2, 0x0004_4041);
    send(2, 0x0008_4042);
    send(2, 0x000c_4043);
    send(2, 0x0000_4044);
    send(0xff, 0x0000_4045);
    send(3, 0x0000_4046);
    assert_eq!(machine.requested(0x41), [1]);
    assert_eq!(machine.requested(0x42), [0, 1, 2]);
    assert_eq!(machine.requested(0x43), [0, 2]);
    assert_eq!(machine.requested(0x44), [2]);
    assert_eq!(machine.requested(0x45), [0, 1, 2]);
    assert_eq!(machine.requested(0x46), []);
    assert_eq!(machine.cpus[1].read32(ICR), 0x4046);
    assert_eq!(machine.cpus[1].read32(ICR2), 0x0300_0000);
}

#[test]
fn init_start_up_and_nmi_are_signals() {
    let mut machine = Machine::enabled(&[0, 1]);
    let sender = &mut machine.cpus[0];
    sender.write32(ICR2, 1 << 24);
    sender.write32(ICR, 0x0000_c500);
    sender.write32(ICR, 0x0000_8500);
    sender.write32(ICR, 0x0000_469a);
    sender.write32(ICR, 0x000c_4400);
    sender.write32(ICR, 0x0004_4500);
    assert_eq!(machine.signals[1].taken(), [Signal::Init, Signal::StartUp(0x9a), Signal::Nmi]);
    assert_eq!(machine.signals[0].taken(), [], "level de-assert means nothing, INIT to oneself is invalid");
}

#[test]
fn illegal_vectors_are_errors_and_interrupt_once() {
    let mut machine = Machine::enabled(&[0]);
    let cpu = &mut machine.cpus[0];
    cpu.write32(LVTERR, 0xfe);
    cpu.write32(ICR, 0x0004_4005);
    assert_eq!(take(cpu), Some(0xfe));
    cpu.eoi();
    cpu.write32(ICR, 0x0004_4006);
    assert_eq!(take(cpu), None, "not armed before ESR is written");
    assert_eq!(cpu.read32(ESR), 0);
    cpu.write32(ESR, 0);
    assert_eq!(cpu.read32(ESR), 0x20);
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 3));
    let cpu = &mut machine.cpus[0];
    assert_eq!(take(cpu), Some(0xfe));
    cpu.write32(ESR, 0);
    assert_eq!(cpu.read32(ESR), 0x40);
    cpu.eoi();
    cpu.read32(0x40);
    cpu.write32(0x3f0, 0x55);
    cpu.write32(ESR, 0);
    assert_eq!(cpu.read32(ESR), 0x80);
    cpu.write32(ESR, 0);
    assert_eq!(cpu.read32(ESR), 0);
}

#[test]
fn an_error_entry_with_an_illegal_vector_ends() {
    let mut machine = Machine::enabled(&[0]);
    let cpu = &mut machine.cpus[0];
    cpu.write32(LVTERR, 0x03);
    cpu.write32(ICR, 0x0004_4005);
    cpu.write32(ESR, 0);
    assert_eq!(cpu.read32(ESR), 0x60);
}

#[test]
fn partial_and_wide_accesses_see_registers_and_nothing_between() {
    let mut machine = Machine::enabled(&[0x5a]);
    let cpu = &mut machine.cpus[0];
    let mut read = |offset, len| {
        let mut data = vec![0xee; len];
        cpu.read(offset, &mut data);
        data
    };
    assert_eq!(read(VERSION, 4), [0x14, 0, 5, 1]);
    assert_eq!(read(VERSION + 2, 1), [5]);
    assert_eq!(read(VERSION + 2, 4), [5, 1, 0, 0]);
    assert_eq!(read(VERSION, 8), [0x14, 0, 5, 1, 0, 0, 0, 0]);
    assert_eq!(read(VERSION + 4, 4), [0; 4]);
    cpu.write(TPR, &[0x20]);
    cpu.write(TPR + 4, &[0x20, 0, 0, 0]);
    assert_eq!(cpu.read32(TPR), 0);
    cpu.write(TPR, &[0x20, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(cpu.read32(TPR), 0x20);
}

// IA32_APIC_BASE

#[test]
fn mode_changes_follow_the_state_diagram() {
    let cases = [
        (ApicMode::XApic, BASE_X2APIC, Ok(ApicMode::X2Apic)),
        (ApicMode::XApic, 0xfee0_0000, Ok(ApicMode::Disabled)),
        (ApicMode::XApic, 0xfee0_0400, Err(GeneralProtection)),
        (ApicMode::X2Apic, BASE_XAPIC, Err(GeneralProtection)),
        (ApicMode::X2Apic, 0xfee0_0400, Err(GeneralProtection)),
        (ApicMode::X2Apic, 0xfee0_0000, Ok(ApicMode::Disabled)),
        (ApicMode::Disabled, BASE_X2APIC, Err(GeneralProtection)),
        (ApicMode::Disabled, BASE_XAPIC, Ok(ApicMode::XApic)),
        (ApicMode::XApic, BASE_XAPIC | 1, Err(GeneralProtection)),
        (ApicMode::XApic, BASE_XAPIC | 1 << 9, Err(GeneralProtection)),
        (ApicMode::XApic, BASE_XAPIC | 1 << 40, Err(GeneralProtection)),
        (ApicMode::XApic, BASE_XAPIC | 1 << 39, Ok(ApicMode::XApic)),
    ];
    for (from, value, expected) in cases {
        let mut machine = Machine::enabled(&[3]);
        let cpu = &mut machine.cpus[0];
        match from {
            ApicMode::XApic => {}
            ApicMode::X2Apic => cpu.set_apic_base(BASE_X2APIC).unwrap(),
            ApicMode::Disabled => cpu.set_apic_base(0xfee0_0000).unwrap(),
        }
        let before = cpu.apic_base();
        let result = cpu.set_apic_base(value);
        assert_eq!(result.map(|()| cpu.port().mode()), expected, "{from:?} {value:#x}");
        assert_eq!(cpu.apic_base(), if result.is_ok() { value } else { before });
    }
}

#[test]
fn without_the_feature_x2apic_mode_is_a_reserved_bit() {
    let mut machine = Machine::with_features(&[0], ApicFeatures { x2apic: false, ..FEATURES });
    assert_eq!(machine.cpus[0].set_apic_base(BASE_X2APIC), Err(GeneralProtection));
    assert_eq!(machine.cpus[0].mmio_base(), Some(0xfee0_0000));
}

#[test]
fn the_page_moves_and_goes_with_the_mode() {
    let mut machine = Machine::enabled(&[0]);
    let cpu = &mut machine.cpus[0];
    cpu.set_apic_base(0x1_2345_6800).unwrap();
    assert_eq!(cpu.mmio_base(), Some(0x1_2345_6000));
    cpu.set_apic_base(0x1_2345_6c00).unwrap();
    assert_eq!(cpu.mmio_base(), None);
}

#[test]
fn x2apic_mode_keeps_state_and_shows_wide_ids() {
    let mut machine = Machine::enabled(&[0x23]);
    machine.bus.deliver(&fixed(0x23, DestinationMode::Physical, 0x40));
    let cpu = &mut machine.cpus[0];
    cpu.write32(TPR, 0x10);
    cpu.set_apic_base(BASE_X2APIC).unwrap();
    assert_eq!(cpu.read_msr(0x802), Ok(0x23));
    assert_eq!(cpu.read_msr(0x80d), Ok(0x0002_0008));
    assert_eq!(cpu.read_msr(0x808), Ok(0x10));
    assert_eq!(cpu.read_msr(0x822), Ok(1));
    assert_eq!(take(cpu), Some(0x40));
    cpu.init();
    assert_eq!(cpu.port().mode(), ApicMode::X2Apic);
    assert_eq!(cpu.read_msr(0x802), Ok(0x23));
    assert_eq!(cpu.read_msr(0x80d), Ok(0x0002_0008));
    assert_eq!(cpu.read_msr(0x812), Ok(0));
    cpu.reset();
    assert_eq!(cpu.port().mode(), ApicMode::XApic);
    assert_eq!(cpu.read32(ID), 0x2300_0000);
}

#[test]
fn a_disabled_apic_takes_nothing_and_comes_back_reset() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVTT, 0x40);
    machine.cpus[0].write32(TICR, 1000);
    machine.bus.deliver(&fixed(0, DestinationMode::Physical, 0x50));
    machine.cpus[0].set_apic_base(0xfee0_0000).unwrap();
    assert_eq!(machine.cpus[0].highest_pending(), None);
    assert_eq!(machine.cpus[0].deadline(), None);
    assert!(machine.cpus[0].accepts_ext_int(), "INTR is the processor's own pin now");
    for delivery in [DeliveryMode::Fixed, DeliveryMode::Nmi, DeliveryMode::Init, DeliveryMode::ExtInt] {
        let message = InterruptMessage { delivery, ..fixed(0xff, DestinationMode::Physical, 0x60) };
        assert!(!machine.bus.deliver(&message), "{delivery:?}");
    }
    machine.cpus[0].set_apic_base(BASE_XAPIC).unwrap();
    assert_eq!(machine.cpus[0].read32(SVR), 0xff);
    assert_eq!(machine.cpus[0].read32(LVTT), MASKED);
    assert_eq!(machine.cpus[0].read32(TICR), 0);
}

// x2APIC

#[test]
fn x2apic_registers_fault_as_the_manual_says() {
    let mut machine = Machine::x2apic(&[0]);
    let cpu = &mut machine.cpus[0];
    let readable: Vec<u32> = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f]
        .into_iter()
        .chain(0x810..=0x828)
        .chain([0x830])
        .chain(0x832..=0x839)
        .chain([0x83e])
        .collect();
    let writable = [0x808, 0x80b, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e];
    for msr in 0x7ff..=0x900 {
        assert_eq!(cpu.read_msr(msr).is_ok(), readable.contains(&msr), "read {msr:#x}");
        if msr != 0x83f {
            assert_eq!(cpu.write_msr(msr, 0).is_ok(), writable.contains(&msr), "write {msr:#x}");
        }
        if msr != 0x830 {
            assert_eq!(cpu.write_msr(msr, 1 << 32), Err(GeneralProtection), "{msr:#x}");
        }
    }
    for (msr, reserved) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x828, 1),
        (0x830, 0x0000_2000),
        (0x830, 0x0001_0000),
        (0x830, 0x0010_0000),
        (0x832, 0x0008_0000),
        (0x832, 0x100),
        (0x835, 0x800),
        (0x837, 0x0002_0000),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(cpu.write_msr(msr, reserved), Err(GeneralProtection), "{msr:#x} {reserved:#x}");
    }
    assert_eq!(cpu.write_msr(0x83f, 0x40), Ok(()));
}

#[test]
fn x2apic_registers_fault_outside_x2apic_mode() {
    let mut machine = Machine::enabled(&[0]);
    assert_eq!(machine.cpus[0].read_msr(0x802), Err(GeneralProtection));
    assert_eq!(machine.cpus[0].write_msr(0x80b, 0), Err(GeneralProtection));
}

#[test]
fn x2apic_commands_take_wide_and_cluster_destinations() {
    let mut machine = Machine::x2apic(&[0, 1, 0xff, 0x100, 0x112]);
    let mut send = |destination: u64, low: u64| {
        machine.cpus[0].write_msr(0x830, destination << 32 | low).unwrap();
    };
    send(0xff, 0x4040);
    send(0x112, 0x4041);
    send(0xffff_ffff, 0x4042);
    send(0x0000_00ff, 0x4843);
    send(0x0010_0001, 0x4844);
    send(0x0011_0004, 0x4845);
    send(0xffff_ffff, 0x4846);
    assert_eq!(machine.requested(0x40), [2], "8 ones are an id here");
    assert_eq!(machine.requested(0x41), [4]);
    assert_eq!(machine.requested(0x42), [0, 1, 2, 3, 4]);
    assert_eq!(machine.requested(0x43), [0, 1], "cluster 0, members 0 to 7");
    assert_eq!(machine.requested(0x44), [3]);
    assert_eq!(machine.requested(0x45), [4]);
    assert_eq!(machine.requested(0x46), [0, 1, 2, 3, 4]);
    assert_eq!(machine.cpus[0].read_msr(0x830), Ok(0xffff_ffff_0000_4846));
}

#[test]
fn self_ipi_requests_its_vector() {
    let mut machine = Machine::x2apic(&[0, 1]);
    machine.cpus[1].write_msr(0x83f, 0x77).unwrap();
    assert_eq!(machine.requested(0x77), [1]);
    machine.cpus[1].write_msr(0x83f, 0x07).unwrap();
    machine.cpus[1].write_msr(0x828, 0).unwrap();
    assert_eq!(machine.cpus[1].read_msr(0x828), Ok(0x20));
}

// LINT pins and ExtINT

#[test]
fn lint0_passes_the_8259_pair_as_ext_int() {
    let mut machine = Machine::enabled(&[0, 1]);
    assert!(!machine.cpus[0].accepts_ext_int());
    machine.bus.lint0().set(true);
    assert_eq!(machine.signals[0].taken(), []);
    machine.cpus[0].write32(LVT0, 0x700);
    assert!(machine.cpus[0].accepts_ext_int());
    assert_eq!(machine.signals[0].taken(), [Signal::Pending], "the pin was asserted already");
    machine.bus.lint0().set(false);
    machine.bus.lint0().set(true);
    assert_eq!(machine.signals[0].taken(), [Signal::Pending]);
    assert_eq!(machine.signals[1].taken(), []);
    machine.cpus[0].write32(LVT0, MASKED | 0x700);
    assert!(!machine.cpus[0].accepts_ext_int());
}

#[test]
fn lint0_can_be_a_fixed_edge_or_an_nmi() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVT0, 0x31);
    for expected in [Some(0x31), None] {
        machine.bus.lint0().set(true);
        assert_eq!(take(&mut machine.cpus[0]), expected);
    }
    machine.cpus[0].eoi();
    machine.bus.lint0().set(false);
    machine.signals[0].taken();
    machine.cpus[0].write32(LVT0, 0x400);
    machine.bus.lint0().set(true);
    assert_eq!(machine.signals[0].taken(), [Signal::Nmi]);
}

#[test]
fn a_level_triggered_lint0_repeats_after_its_end() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVT0, 0x8031);
    machine.bus.lint0().set(true);
    assert_eq!(machine.cpus[0].read32(LVT0), 0xc031, "remote IRR");
    assert_eq!(take(&mut machine.cpus[0]), Some(0x31));
    machine.cpus[0].eoi();
    assert_eq!(take(&mut machine.cpus[0]), Some(0x31));
    machine.bus.lint0().set(false);
    machine.cpus[0].eoi();
    assert_eq!(take(&mut machine.cpus[0]), None);
    assert_eq!(machine.cpus[0].read32(LVT0), 0x8031);
}

#[test]
fn lint1_is_nmi_where_it_is_told_so() {
    let mut machine = Machine::enabled(&[0, 1]);
    machine.cpus[0].write32(LVT1, 0x400);
    machine.bus.pulse_lint1();
    assert_eq!(machine.signals[0].taken(), [Signal::Nmi]);
    assert_eq!(machine.signals[1].taken(), []);
}

#[test]
fn an_ext_int_message_waits_until_the_8259_pair_was_asked() {
    let mut machine = Machine::enabled(&[0]);
    let message = InterruptMessage { delivery: DeliveryMode::ExtInt, ..fixed(0, DestinationMode::Physical, 0) };
    assert!(machine.bus.deliver(&message));
    assert_eq!(machine.signals[0].taken(), [Signal::Pending]);
    assert!(machine.cpus[0].accepts_ext_int());
    machine.cpus[0].ext_int_acknowledged();
    assert!(!machine.cpus[0].accepts_ext_int());
}

#[test]
fn virtual_wire_mode_is_what_firmware_leaves() {
    let mut machine = Machine::with_features(&[0, 1], FEATURES);
    for cpu in &mut machine.cpus {
        cpu.set_virtual_wire();
    }
    assert!(machine.cpus[0].accepts_ext_int());
    assert!(!machine.cpus[1].accepts_ext_int());
    assert_eq!(machine.cpus[1].read32(SVR), 0x1ff);
    assert_eq!(machine.cpus[1].read32(LVT1), 0x400);
}

// Timer

#[test]
fn one_shot_counts_down_once() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(TDCR, DIVIDE_BY_1);
    machine.cpus[0].write32(LVTT, 0x40);
    machine.cpus[0].write32(TICR, 1000);
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(1000)));
    machine.advance(400);
    assert_eq!(machine.cpus[0].read32(TCCR), 600);
    assert_eq!(take(&mut machine.cpus[0]), None);
    machine.advance(600);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
    assert_eq!(machine.cpus[0].read32(TCCR), 0);
    assert_eq!(machine.cpus[0].deadline(), None);
}

#[test]
fn every_divisor_divides() {
    for (register, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut machine = Machine::enabled(&[0]);
        machine.cpus[0].write32(TDCR, register);
        machine.cpus[0].write32(LVTT, 0x40);
        machine.cpus[0].write32(TICR, 0xffff_ffff);
        assert_eq!(machine.cpus[0].deadline(), Some(Nanos(0xffff_ffff * divisor)));
        machine.advance(divisor * 1000);
        assert_eq!(machine.cpus[0].read32(TCCR), 0xffff_ffff - 1000);
    }
}

#[test]
fn a_new_divisor_goes_on_from_the_current_count() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVTT, 0x40);
    machine.cpus[0].write32(TDCR, DIVIDE_BY_1);
    machine.cpus[0].write32(TICR, 1000);
    machine.advance(400);
    machine.cpus[0].write32(TDCR, 0);
    assert_eq!(machine.cpus[0].read32(TCCR), 600);
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(400 + 1200)));
}

#[test]
fn periodic_repeats_without_drift_and_coalesces_what_was_missed() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(TDCR, DIVIDE_BY_1);
    machine.cpus[0].write32(LVTT, PERIODIC | 0x40);
    machine.cpus[0].write32(TICR, 20_000);
    machine.advance(20_500);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
    machine.cpus[0].eoi();
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(40_000)));
    assert_eq!(machine.cpus[0].read32(TCCR), 19_500);
    machine.advance(100_000);
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(140_000)));
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
    machine.cpus[0].eoi();
    assert_eq!(take(&mut machine.cpus[0]), None);
    machine.cpus[0].write32(TICR, 0);
    assert_eq!(machine.cpus[0].deadline(), None);
}

#[test]
fn very_short_periods_are_delivered_together() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(TDCR, DIVIDE_BY_1);
    machine.cpus[0].write32(LVTT, PERIODIC | 0x40);
    machine.cpus[0].write32(TICR, 7);
    machine.advance(7);
    let next = machine.cpus[0].deadline().unwrap();
    assert!(next.0 >= 10_000 && next.0.is_multiple_of(7), "{next:?}");
    machine.advance(1);
    assert_eq!(machine.cpus[0].read32(TCCR), 6);
}

#[test]
fn a_masked_timer_counts_without_alarm_or_interrupt() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(TDCR, DIVIDE_BY_1);
    machine.cpus[0].write32(LVTT, MASKED | PERIODIC | 0x40);
    machine.cpus[0].write32(TICR, 20_000);
    assert_eq!(machine.cpus[0].deadline(), None);
    machine.clock.advance(65_000);
    assert_eq!(machine.cpus[0].read32(TCCR), 15_000);
    machine.cpus[0].write32(LVTT, PERIODIC | 0x40);
    assert_eq!(take(&mut machine.cpus[0]), None, "what ran out under the mask is gone");
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(80_000)));
}

#[test]
fn tsc_deadline_fires_once_at_its_time() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].set_tsc_deadline(4000);
    assert_eq!(machine.cpus[0].tsc_deadline(), 0, "ignored in another mode");
    machine.cpus[0].write32(LVTT, DEADLINE | 0x40);
    machine.cpus[0].write32(TICR, 500);
    assert_eq!(machine.cpus[0].read32(TICR), 0);
    machine.cpus[0].set_tsc_deadline(4000);
    assert_eq!(machine.cpus[0].deadline(), Some(Nanos(2000)));
    assert_eq!(machine.cpus[0].tsc_deadline(), 4000);
    assert_eq!(machine.cpus[0].read32(TCCR), 0);
    machine.advance(2000);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40));
    machine.cpus[0].eoi();
    assert_eq!(machine.cpus[0].tsc_deadline(), 0);
    machine.cpus[0].set_tsc_deadline(100);
    assert_eq!(take(&mut machine.cpus[0]), Some(0x40), "a deadline in the past is due");
    machine.cpus[0].eoi();
    machine.cpus[0].set_tsc_deadline(8000);
    machine.cpus[0].set_tsc_deadline(0);
    machine.advance(8000);
    assert_eq!(take(&mut machine.cpus[0]), None);
}

#[test]
fn leaving_deadline_mode_disarms() {
    let mut machine = Machine::enabled(&[0]);
    machine.cpus[0].write32(LVTT, DEADLINE | 0x40);
    machine.cpus[0].set_tsc_deadline(4000);
    machine.cpus[0].write32(LVTT, 0x40);
    assert_eq!(machine.cpus[0].deadline(), None);
    machine.cpus[0].write32(TICR, 500);
    machine.cpus[0].write32(LVTT, DEADLINE | 0x40);
    assert_eq!(machine.cpus[0].deadline(), None);
    assert_eq!(machine.cpus[0].read32(TICR), 0);
}

#[test]
fn without_the_feature_the_deadline_mode_bit_is_reserved() {
    let mut machine = Machine::with_features(&[0], ApicFeatures { tsc_deadline: false, ..FEATURES });
    machine.cpus[0].write32(SVR, 0x1ff);
    machine.cpus[0].write32(LVTT, DEADLINE | 0x40);
    assert_eq!(machine.cpus[0].read32(LVTT), 0x40);
    machine.cpus[0].set_apic_base(BASE_X2APIC).unwrap();
    assert_eq!(machine.cpus[0].write_msr(0x832, u64::from(DEADLINE | 0x40)), Err(GeneralProtection));
}

#[derive(Clone, Debug)]
enum Act {
    Mmio(usize, Vec<u8>),
    ReadMmio(usize, usize),
    Msr(u32, u64),
    ReadMsr(u32),
    Base(u64),
    Deadline(u64),
    Message(InterruptMessage),
    Lint0(bool),
    Advance(u64),
    Take,
    Init,
}

fn acts() -> impl Strategy<Value = Act> {
    let register = prop_oneof![(0usize..0x40).prop_map(|r| r * 0x10), 0usize..0x400, any::<usize>()];
    let bytes = proptest::collection::vec(any::<u8>(), 0..9);
    let delivery = (0u32..8).prop_filter_map("reserved", DeliveryMode::from_bits);
    let message = (any::<u32>(), any::<bool>(), delivery, any::<u8>(), any::<bool>()).prop_map(
        |(destination, logical, delivery, vector, is_level)| InterruptMessage {
            destination: if destination & 1 == 0 { destination } else { destination & 0xff },
            destination_mode: if logical { DestinationMode::Logical } else { DestinationMode::Physical },
            delivery,
            vector,
            trigger: if is_level { TriggerMode::Level } else { TriggerMode::Edge },
        },
    );
    prop_oneof![
        4 => (register.clone(), bytes).prop_map(|(r, b)| Act::Mmio(r, b)),
        2 => (register, 0usize..9).prop_map(|(r, n)| Act::ReadMmio(r, n)),
        4 => (prop_oneof![0x800u32..0x840, any::<u32>()], prop_oneof![0u64..0x1000, any::<u64>()])
            .prop_map(|(m, v)| Act::Msr(m, v)),
        1 => (prop_oneof![0x800u32..0x840, any::<u32>()]).prop_map(Act::ReadMsr),
        1 => prop_oneof![Just(BASE_XAPIC), Just(BASE_X2APIC), Just(0), any::<u64>()].prop_map(Act::Base),
        1 => any::<u64>().prop_map(Act::Deadline),
        2 => message.prop_map(Act::Message),
        1 => any::<bool>().prop_map(Act::Lint0),
        2 => prop_oneof![0u64..100_000, any::<u64>()].prop_map(Act::Advance),
        3 => Just(Act::Take),
        1 => Just(Act::Init),
    ]
}

proptest! {
    /// Whatever a guest does: no panic, the next deadline lies ahead after expiry, and hints agree with the registers.
    #[test]
    fn hostile_accesses_do_no_harm(acts in proptest::collection::vec(acts(), 0..200)) {
        let mut machine = Machine::enabled(&[0, 0x21]);
        let mut now = 0u64;
        for act in acts {
            let cpu = &mut machine.cpus[0];
            match act {
                Act::Mmio(register, data) => cpu.write(register, &data),
                Act::ReadMmio(register, len) => cpu.read(register, &mut vec![0; len]),
                Act::Msr(msr, value) => drop(cpu.write_msr(msr, value)),
                Act::ReadMsr(msr) => drop(cpu.read_msr(msr)),
                Act::Base(value) => drop(cpu.set_apic_base(value)),
                Act::Deadline(tsc) => cpu.set_tsc_deadline(tsc),
                Act::Message(message) => drop(machine.bus.deliver(&message)),
                Act::Lint0(asserted) => machine.bus.lint0().set(asserted),
                Act::Advance(nanos) => {
                    now = now.saturating_add(nanos);
                    machine.clock.set(Nanos(now));
                    if cpu.deadline().is_some_and(|at| at.0 <= now) {
                        cpu.expire(Nanos(now));
                        prop_assert!(cpu.deadline().is_none_or(|at| at.0 > now || now == u64::MAX));
                    }
                }
                Act::Take => drop(take(cpu)),
                Act::Init => cpu.init(),
            }
            let page = machine.cpus[0].port().page();
            let highest = |first: usize| (0..256usize).rev()
                .find(|v| page.load(first + (v >> 5) * 0x10) >> (v & 31) & 1 != 0).unwrap_or(0);
            let (request, service) = (highest(IRR), highest(ISR));
            let tpr = page.load(TPR) as usize;
            let expected = (request >> 4 > (tpr >> 4).max(service >> 4)).then_some(request as u8);
            prop_assert_eq!(machine.cpus[0].highest_pending(), expected);
        }
    }
}
