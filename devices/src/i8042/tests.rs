use super::*;
use crate::fakes::{RecordedLine, RecordedPower};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const DATA: u64 = 0;
const COMMAND: u64 = 4;
const OBF: u8 = 0x01;
const AUX_OBF: u8 = 0x20;
const ACK: u8 = 0xfa;

struct Board {
    controller: I8042,
    keyboard: Arc<RecordedLine>,
    aux: Arc<RecordedLine>,
    power: Arc<RecordedPower>,
}

impl Board {
    fn new() -> Board {
        let (keyboard, aux, power) = (RecordedLine::new(), RecordedLine::new(), RecordedPower::new());
        let controller = I8042::new(keyboard.clone(), aux.clone(), power.clone());
        Board { controller, keyboard, aux, power }
    }
    /// Both interrupts on, no translation.
    fn untranslated() -> Board {
        let mut board = Board::new();
        board.set_command_byte(0x07);
        board
    }
    fn status(&mut self) -> u8 {
        let mut byte = [0];
        self.controller.read(COMMAND, &mut byte);
        byte[0]
    }
    fn data(&mut self) -> u8 {
        let mut byte = [0];
        self.controller.read(DATA, &mut byte);
        byte[0]
    }
    fn command(&mut self, command: u8) {
        self.controller.write(COMMAND, &[command]);
    }
    fn write(&mut self, value: u8) {
        self.controller.write(DATA, &[value]);
    }
    fn set_command_byte(&mut self, value: u8) {
        self.command(0x60);
        self.write(value);
    }
    /// Everything that comes, in order.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = vec![];
        while self.status() & OBF != 0 {
            bytes.push(self.data());
            assert!(bytes.len() < 1000, "never empty");
        }
        bytes
    }
    fn ask_keyboard(&mut self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.write(*byte);
        }
        self.drain()
    }
    fn ask_mouse(&mut self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.command(0xd4);
            self.write(*byte);
        }
        self.drain()
    }
}

fn moved(right: i32, up: i32) -> MouseReport {
    MouseReport { right, up, wheel: 0, buttons: MouseButtons::empty() }
}

#[test]
fn the_controller_passes_its_self_tests() {
    let mut board = Board::new();
    for (command, answer) in [(0xaa, 0x55), (0xab, 0x00), (0xa9, 0x00)] {
        board.command(command);
        assert_eq!(board.status() & (OBF | AUX_OBF), OBF);
        assert_eq!(board.data(), answer);
    }
    assert_eq!(board.status() & 0x04, 0x04, "system flag");
}

#[test]
fn the_command_byte_is_kept_and_device_disables_show_in_it() {
    let mut board = Board::new();
    board.set_command_byte(0x47);
    board.command(0xa7);
    board.command(0xad);
    board.command(0x20);
    assert_eq!(board.data(), 0x77);
    board.command(0xa8);
    board.command(0xae);
    board.command(0x20);
    assert_eq!(board.data(), 0x47);
    board.command(0x65);
    board.write(0x99);
    board.command(0x25);
    assert_eq!(board.data(), 0x99, "controller RAM");
}

#[test]
fn a_key_raises_irq1_and_is_translated_to_set_1() {
    let mut board = Board::new();
    board.controller.key(KeyCode::A, KeyState::Pressed);
    assert!(board.keyboard.is_high());
    assert_eq!(board.status() & (OBF | AUX_OBF), OBF);
    assert_eq!(board.data(), 0x1e);
    assert!(!board.keyboard.is_high());
    board.controller.key(KeyCode::A, KeyState::Released);
    board.controller.key(KeyCode::ArrowUp, KeyState::Pressed);
    board.controller.key(KeyCode::ArrowUp, KeyState::Released);
    board.controller.key(KeyCode::F7, KeyState::Pressed);
    assert_eq!(board.drain(), [0x9e, 0xe0, 0x48, 0xe0, 0xc8, 0x41]);
    assert_eq!(board.keyboard.rising_edges(), 7, "an edge for each byte");
}

#[test]
fn set_2_comes_through_without_translation() {
    let mut board = Board::untranslated();
    board.controller.key(KeyCode::A, KeyState::Pressed);
    board.controller.key(KeyCode::A, KeyState::Released);
    board.controller.key(KeyCode::Delete, KeyState::Released);
    assert_eq!(board.drain(), [0x1c, 0xf0, 0x1c, 0xe0, 0xf0, 0x71]);
}

#[test]
fn pause_and_print_screen_have_their_sequences() {
    let mut board = Board::new();
    board.controller.key(KeyCode::Pause, KeyState::Pressed);
    board.controller.key(KeyCode::Pause, KeyState::Released);
    assert_eq!(board.drain(), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    board.controller.key(KeyCode::PrintScreen, KeyState::Pressed);
    board.controller.key(KeyCode::PrintScreen, KeyState::Released);
    assert_eq!(board.drain(), [0xe0, 0x2a, 0xe0, 0x37, 0xe0, 0xb7, 0xe0, 0xaa]);
}

#[test]
fn the_keyboard_can_send_set_1_by_itself() {
    let mut board = Board::untranslated();
    assert_eq!(board.ask_keyboard(&[0xf0, 0x00]), [ACK, ACK, 2]);
    assert_eq!(board.ask_keyboard(&[0xf0, 0x01]), [ACK, ACK]);
    board.controller.key(KeyCode::ControlRight, KeyState::Released);
    assert_eq!(board.drain(), [0xe0, 0x9d]);
    assert_eq!(board.ask_keyboard(&[0xf0, 0x03]), [ACK, 0xfe], "set 3 is refused");
}

#[test]
fn keyboard_commands_are_answered() {
    let mut board = Board::untranslated();
    assert_eq!(board.ask_keyboard(&[0xff]), [ACK, 0xaa]);
    assert_eq!(board.ask_keyboard(&[0xf2]), [ACK, 0xab, 0x83]);
    assert_eq!(board.ask_keyboard(&[0xee]), [0xee]);
    assert_eq!(board.ask_keyboard(&[0xed, 0x06]), [ACK, ACK]);
    assert_eq!(board.controller.leds(), Leds::NUM_LOCK | Leds::CAPS_LOCK);
    assert_eq!(board.ask_keyboard(&[0xf3, 0x20]), [ACK, ACK]);
    assert_eq!(board.ask_keyboard(&[0xfe]), [ACK], "the last byte again");
    assert_eq!(board.ask_keyboard(&[0x05]), [0xfe], "unknown");
    assert_eq!(board.ask_keyboard(&[0xed, 0xf4]), [ACK, ACK], "a command instead of the parameter");
}

#[test]
fn translation_spares_answers_but_not_the_identity() {
    let mut board = Board::new();
    assert_eq!(board.ask_keyboard(&[0xf2]), [ACK, 0xab, 0x41]);
}

#[test]
fn a_keyboard_that_does_not_scan_loses_its_keys() {
    let mut board = Board::untranslated();
    board.ask_keyboard(&[0xf5]);
    assert!(!board.controller.key(KeyCode::Q, KeyState::Pressed));
    assert_eq!(board.drain(), []);
    board.ask_keyboard(&[0xf4]);
    assert!(board.controller.key(KeyCode::Q, KeyState::Pressed));
    assert_eq!(board.drain(), [0x15]);
}

#[test]
fn a_disabled_interface_holds_its_bytes_back_and_writing_enables_it() {
    let mut board = Board::untranslated();
    board.command(0xad);
    board.controller.key(KeyCode::Q, KeyState::Pressed);
    assert_eq!(board.drain(), []);
    board.command(0xae);
    assert_eq!(board.drain(), [0x15]);
    board.command(0xad);
    assert_eq!(board.ask_keyboard(&[0xee]), [0xee]);
}

#[test]
fn a_full_queue_loses_whole_events() {
    let mut board = Board::untranslated();
    let mut taken = 0;
    while board.controller.key(KeyCode::Home, KeyState::Released) {
        taken += 1;
        assert!(taken < 1000, "the queue has no end");
    }
    let bytes = board.drain();
    assert_eq!(bytes, [0xe0, 0xf0, 0x6c].repeat(taken));
    assert!(!board.controller.scan_codes(&[0; 9]), "no key has nine bytes");
}

#[test]
fn interrupts_that_are_off_raise_no_line_until_they_are_on() {
    let mut board = Board::new();
    board.set_command_byte(0x40);
    board.controller.key(KeyCode::Q, KeyState::Pressed);
    assert!(!board.keyboard.is_high());
    board.set_command_byte(0x41);
    assert!(board.keyboard.is_high());
}

#[test]
fn buffers_loop_back_as_linux_tests_the_aux_port() {
    let mut board = Board::untranslated();
    board.command(0xd3);
    board.write(0xa5);
    assert_eq!(board.status() & (OBF | AUX_OBF), OBF | AUX_OBF);
    assert!(board.aux.is_high() && !board.keyboard.is_high());
    assert_eq!(board.data(), 0xa5);
    board.command(0xd2);
    board.write(0x5a);
    assert_eq!(board.status() & (OBF | AUX_OBF), OBF);
    assert_eq!(board.data(), 0x5a);
}

#[test]
fn mouse_commands_are_answered_on_irq12() {
    let mut board = Board::untranslated();
    board.command(0xd4);
    board.write(0xff);
    assert!(board.aux.is_high());
    assert_eq!(board.status() & AUX_OBF, AUX_OBF);
    assert_eq!(board.drain(), [ACK, 0xaa, 0x00]);
    assert_eq!(board.ask_mouse(&[0xf2]), [ACK, 0x00]);
    assert_eq!(board.ask_mouse(&[0xe8, 0x03, 0xf3, 0x50, 0xe7]), [ACK; 5]);
    assert_eq!(board.ask_mouse(&[0xe9]), [ACK, 0x10, 0x03, 0x50]);
    assert_eq!(board.ask_mouse(&[0xe1]), [0xfe], "unknown");
    assert_eq!(board.ask_mouse(&[0xee, 0x12, 0xec]), [ACK, 0x12, ACK], "wrap mode");
}

#[test]
fn movement_is_reported_in_packets_once_enabled() {
    let mut board = Board::untranslated();
    board.controller.mouse(moved(5, 5));
    assert_eq!(board.drain(), []);
    board.ask_mouse(&[0xf4]);
    board.controller.mouse(MouseReport { right: 3, up: -2, wheel: 9, buttons: MouseButtons::LEFT });
    assert_eq!(board.drain(), [0x29, 3, 0xfe]);
    board.controller.mouse(MouseReport { buttons: MouseButtons::RIGHT | MouseButtons::MIDDLE, ..moved(0, 0) });
    assert_eq!(board.drain(), [0x0e, 0, 0]);
}

#[test]
fn long_movements_are_split_and_none_is_lost_while_the_queue_is_full() {
    let mut board = Board::untranslated();
    board.ask_mouse(&[0xf4]);
    for _ in 0..20 {
        board.controller.mouse(moved(-100, 50));
    }
    let (mut right, mut up) = (0, 0);
    for packet in board.drain().chunks(3) {
        right += i32::from(packet[1]) - if packet[0] & 0x10 != 0 { 256 } else { 0 };
        up += i32::from(packet[2]) - if packet[0] & 0x20 != 0 { 256 } else { 0 };
    }
    assert_eq!((right, up), (-2000, 1000));
}

#[test]
fn the_knocks_turn_wheel_and_buttons_on() {
    let mut board = Board::untranslated();
    board.ask_mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80]);
    assert_eq!(board.ask_mouse(&[0xf2]), [ACK, 3]);
    board.ask_mouse(&[0xf4]);
    board.controller.mouse(MouseReport { right: 0, up: 0, wheel: -1, buttons: MouseButtons::empty() });
    assert_eq!(board.drain(), [0x08, 0, 0, 0xff]);
    board.ask_mouse(&[0xf3, 200, 0xf3, 200, 0xf3, 80]);
    assert_eq!(board.ask_mouse(&[0xf2]), [ACK, 4]);
    board.controller.mouse(MouseReport { right: 0, up: 0, wheel: 1, buttons: MouseButtons::FOURTH });
    assert_eq!(board.drain(), [0x08, 0, 0, 0x11]);
}

#[test]
fn remote_mode_reports_when_asked() {
    let mut board = Board::untranslated();
    board.ask_mouse(&[0xf0, 0xf4]);
    board.controller.mouse(moved(7, 0));
    assert_eq!(board.drain(), []);
    assert_eq!(board.ask_mouse(&[0xeb]), [ACK, 0x08, 7, 0]);
    assert_eq!(board.ask_mouse(&[0xeb]), [ACK, 0x08, 0, 0]);
}

#[test]
fn the_ways_to_reset_all_reset() {
    let mut board = Board::new();
    board.command(0xfe);
    assert_eq!(board.power.events(), [PowerEvent::Reset]);
    board.command(0xf0);
    board.command(0xd1);
    board.write(0x02);
    assert_eq!(board.power.events().len(), 3);
    board.command(0xff);
    board.command(0xd1);
    board.write(0x03);
    assert_eq!(board.power.events().len(), 3, "reset line high");
    board.command(0xd0);
    assert_eq!(board.data() & 0x03, 0x03);
}

#[test]
fn port_92_resets_on_its_rising_bit_and_keeps_a20() {
    let power = RecordedPower::new();
    let mut port = SystemControl::new(power.clone());
    let mut byte = [0];
    port.read(0, &mut byte);
    assert_eq!(byte, [0x02]);
    port.write(0, &[0x00]);
    port.read(0, &mut byte);
    assert_eq!(byte, [0x00]);
    port.write(0, &[0x03]);
    port.write(0, &[0x03]);
    assert_eq!(power.events(), [PowerEvent::Reset]);
}

#[test]
fn reset_empties_everything() {
    let mut board = Board::untranslated();
    board.ask_mouse(&[0xf4]);
    board.controller.key(KeyCode::Q, KeyState::Pressed);
    board.controller.mouse(moved(1, 1));
    board.controller.reset();
    assert!(!board.keyboard.is_high() && !board.aux.is_high());
    assert_eq!(board.drain(), []);
    board.command(0x20);
    assert_eq!(board.data(), 0x45);
}

proptest! {
    #[test]
    fn any_access_is_harmless_and_the_output_runs_dry(
        events in proptest::collection::vec((0..5u8, any::<u8>(), prop_oneof![Just(0u64), Just(4), any::<u64>()]), 0..300),
    ) {
        let mut board = Board::new();
        let mut port = SystemControl::new(board.power.clone());
        for (kind, value, offset) in events {
            match kind {
                0 => board.controller.write(offset, &[value]),
                1 => board.controller.read(offset, &mut [value, 0]),
                2 => { board.controller.scan_codes(&[value; 3]); }
                3 => board.controller.mouse(MouseReport {
                    right: i32::from(value) << 20, up: -i32::from(value), wheel: i32::from(value) - 128,
                    buttons: MouseButtons::from_bits_truncate(value),
                }),
                _ => port.write(offset, &[value]),
            }
        }
        board.drain();
        prop_assert!(!board.keyboard.is_high() && !board.aux.is_high());
    }
}
