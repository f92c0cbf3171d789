//! Instruction bytes as text, for reports. Allocates; never on the exit path.

use alloc::string::String;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use vcpu::CodeSize;

/// The instruction at the start of `bytes`, which stood at `rip`, in Intel syntax, and its length; `(bad)` and all bytes
/// for bytes that are none.
pub fn disassemble(code_size: CodeSize, rip: u64, bytes: &[u8]) -> (String, usize) {
    let mut decoder = Decoder::with_ip(code_size.bits(), bytes, rip, DecoderOptions::NONE);
    let mut text = String::new();
    let instruction = decoder.decode();
    IntelFormatter::new().format(&instruction, &mut text);
    (text, if instruction.is_invalid() { bytes.len() } else { instruction.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_instructions_in_the_guests_code_size() {
        assert_eq!(disassemble(CodeSize::Bits64, 0, &[0x48, 0x8b, 0x07, 0x90]), ("mov rax,[rdi]".into(), 3));
        assert_eq!(disassemble(CodeSize::Bits16, 0x7c00, &[0xeb, 0xfe]), ("jmp short 7C00h".into(), 2));
        assert_eq!(disassemble(CodeSize::Bits64, 0, &[0x06, 0x90]), ("(bad)".into(), 2));
    }
}
