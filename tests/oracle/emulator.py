#!/usr/bin/env python3
"""Writes machine/tests/emulator.golden: what the Unicorn emulator makes of instructions that reach memory.

    python3 tests/oracle/emulator.py > machine/tests/emulator.golden

Needs the `unicorn` package (2.1). The inputs of a case come from a seed by splitmix64, which the test repeats, so that a
line holds only what was set on purpose and what changed. Each case runs in a fresh Unicorn, for it keeps translated
code. Undefined flags are named per case; faults are no business of this table (Unicorn is weak there).

A line: mode, code, seed, what was set, the undefined flags, a bar, what changed. Registers are `r<number>`, `fl` the
status flags and DF, `m<offset>` bytes of the window, `x<number>` an XMM register, `ip` the RIP where it is not behind
the instruction.
"""

import random
import sys

from unicorn import UC_ARCH_X86, UC_MODE_16, UC_MODE_32, UC_MODE_64, Uc, UcError
from unicorn import x86_const as x86

CODE = 0x1000
WINDOW = 0x4000
WINDOW_BYTES = 256
MASK64 = (1 << 64) - 1
CF, PF, AF, ZF, SF, DF, OF = 1, 4, 0x10, 0x40, 0x80, 0x400, 0x800
STATUS = CF | PF | AF | ZF | SF | OF

GPRS = [getattr(x86, "UC_X86_REG_" + name) for name in
        "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15".split()]
GPRS32 = [getattr(x86, "UC_X86_REG_" + name) for name in "EAX ECX EDX EBX ESP EBP ESI EDI".split()]
XMMS = [getattr(x86, f"UC_X86_REG_XMM{n}") for n in range(16)]
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)


class SplitMix:
    """The generator of the inputs; the test has the same."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
        return z ^ (z >> 31)


class Case:
    """One instruction with its inputs, being put together."""

    def __init__(self, mode, rng):
        self.mode = mode
        self.rng = rng
        self.seed = rng.getrandbits(48)
        self.set = {}
        self.undefined = 0
        self.relative = False
        mix = SplitMix(self.seed)
        limit = MASK64 if mode == 64 else 0xFFFFFFFF
        count = 16 if mode == 64 else 8
        values = [mix.next() for _ in range(16)]
        self.gprs = [value & limit for value in values[:count]]
        self.flags = mix.next() & (STATUS | DF)
        self.window = bytearray(b"".join(mix.next().to_bytes(8, "little") for _ in range(WINDOW_BYTES // 8)))
        self.xmms = []
        for _ in range(16):
            low = mix.next()
            self.xmms.append(low | mix.next() << 64)
        self.xmms = self.xmms[:count]

    def gpr(self, number, value):
        value &= MASK64 if self.mode == 64 else 0xFFFFFFFF
        self.gprs[number] = value
        self.set[f"r{number}"] = f"{value:x}"

    def flag(self, bits, value):
        self.flags = self.flags & ~bits | value
        self.set["fl"] = f"{self.flags:x}"

    def poke(self, offset, data):
        self.window[offset:offset + len(data)] = data
        self.set[f"m{offset:x}"] = data.hex()


def disp(value, size):
    return (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")


def modrm(mod, reg, rm):
    return bytes([mod << 6 | (reg & 7) << 3 | rm & 7])


def address(case, reg, target):
    """Prefixes, REX bits and ModRM bytes of an operand at `target`; relative displacements are patched in later."""
    rng = case.rng
    if case.mode == 16 and rng.random() < 0.8:
        rm = rng.randrange(8)
        mod = rng.randrange(3)
        if mod == 0 and rm == 6:
            return b"", 0, modrm(0, reg, 6) + disp(target, 2), False
        offset = 0 if mod == 0 else rng.randrange(-128, 128) if mod == 1 else rng.randrange(-0x3000, 0x3000)
        base, index = [(RBX, RSI), (RBX, RDI), (RBP, RSI), (RBP, RDI), (RSI, None), (RDI, None), (RBP, None),
                       (RBX, None)][rm]
        part = rng.randrange(0x1000) if index is not None else 0
        garbage = rng.getrandbits(16) << 16
        case.gpr(base, (target - offset - part) & 0xFFFF | garbage)
        if index is not None:
            case.gpr(index, part | garbage)
        return b"", 0, modrm(mod, reg, rm) + (b"" if mod == 0 else disp(offset, mod)), False
    prefix = b"\x67" if case.mode == 16 else b""
    high = 0
    if case.mode == 64 and rng.random() < 0.15:
        prefix = b"\x67"
        high = rng.getrandbits(32) << 32
    form = rng.randrange(7)
    extended = 8 if case.mode == 64 and rng.random() < 0.4 else 0
    if rng.random() < 0.1:
        prefix += b"\x64"
    if form == 0:
        base = RBX + extended
        case.gpr(base, target | high)
        return prefix, extended >> 3, modrm(0, reg, base), False
    if form == 1:
        base = rng.choice([RBX, RSI, RDI, RBP, RAX, RCX, RDX]) + extended
        offset = rng.randrange(-128, 128)
        case.gpr(base, target - offset & 0xFFFFFFFF | high)
        return prefix, extended >> 3, modrm(1, reg, base) + disp(offset, 1), False
    if form == 2:
        base = rng.choice([RBX, RSI, RDI, RBP]) + extended
        offset = rng.randrange(-0x3000, 0x7FFFF000)
        case.gpr(base, (target - offset & (0xFFFFFFFF if prefix or case.mode != 64 else MASK64)) | high)
        return prefix, extended >> 3, modrm(2, reg, base) + disp(offset, 4), False
    if form in (3, 4):
        base, index, scale = RBX, RSI + extended, rng.randrange(4)
        offset = rng.randrange(-128, 128)
        part = rng.randrange(0x200)
        case.gpr(index, part | high)
        case.gpr(base, target - offset - (part << scale) & 0xFFFFFFFF | high)
        sib = bytes([scale << 6 | (index & 7) << 3 | base])
        return prefix, extended >> 2, modrm(1, reg, 4) + sib + disp(offset, 1), False
    if form == 5:
        return prefix, 0, modrm(0, reg, 4) + b"\x25" + disp(target, 4), False
    case.relative = case.mode == 64
    return prefix, 0, modrm(0, reg, 5) + disp(target, 4), case.relative


def encode(case, opcode, size, target, *, digit=None, imm=b"", mandatory=b"", lock=False, fixed=False, registers=None,
           rex_w=None):
    """An instruction with a memory operand at `target`. Returns the code and the number of its register operand."""
    rng = case.rng
    reg = digit
    if reg is None:
        reg = rng.randrange(registers or (16 if case.mode == 64 else 8))
    prefix, rex, operand, relative = address(case, reg, target)
    if lock:
        prefix = b"\xf0" + prefix
    if not fixed and size in (16, 32) and (size == 16) != (case.mode == 16):
        prefix += b"\x66"
    if reg >= 8:
        rex |= 4
    if rex_w if rex_w is not None else size == 64:
        rex |= 8
    code = prefix + mandatory
    if rex or (case.mode == 64 and rng.random() < 0.1):
        code += bytes([0x40 | rex])
    code += opcode + operand + imm
    if relative:
        # The displacement stands before the immediate and counts from the instruction's end.
        value = target - (CODE + len(code))
        at = len(code) - len(imm) - 4
        code = code[:at] + disp(value, 4) + code[at + 4:]
    return code, reg


def run(case, code, *, jumps=False):
    """Executes in Unicorn and prints the line; cases that Unicorn refuses are left out."""
    mode = {16: UC_MODE_16, 32: UC_MODE_32, 64: UC_MODE_64}[case.mode]
    uc = Uc(UC_ARCH_X86, mode)
    uc.ctl_set_cpu_model(x86.UC_CPU_X86_EPYC)
    uc.mem_map(0, 0x100000)
    uc.mem_write(CODE, code + b"\x90" * 8)
    uc.mem_write(WINDOW, bytes(case.window))
    names = GPRS if case.mode == 64 else GPRS32
    for name, value in zip(names, case.gprs):
        uc.reg_write(name, value)
    for name, value in zip(XMMS, case.xmms):
        uc.reg_write(name, value)
    uc.reg_write(x86.UC_X86_REG_EFLAGS, case.flags | 2)
    try:
        if jumps:
            uc.emu_start(CODE, 0xFFFF, count=1)
        else:
            uc.emu_start(CODE, CODE + len(code), timeout=1_000_000)
    except UcError:
        return False
    changed = []
    for number, (name, before) in enumerate(zip(names, case.gprs)):
        after = uc.reg_read(name)
        if after != before:
            changed.append(f"r{number}={after:x}")
    flags = uc.reg_read(x86.UC_X86_REG_EFLAGS) & (STATUS | DF)
    if (flags ^ case.flags) & ~case.undefined:
        changed.append(f"fl={flags & ~case.undefined:x}")
    window = uc.mem_read(WINDOW, WINDOW_BYTES)
    at = 0
    while at < WINDOW_BYTES:
        if window[at] == case.window[at]:
            at += 1
            continue
        end = at
        while end < WINDOW_BYTES and window[end] != case.window[end]:
            end += 1
        changed.append(f"m{at:x}={window[at:end].hex()}")
        at = end
    for number, (name, before) in enumerate(zip(XMMS, case.xmms)):
        after = uc.reg_read(name)
        if after != before:
            changed.append(f"x{number}={after:x}")
    rip = uc.reg_read(x86.UC_X86_REG_RIP if case.mode == 64 else x86.UC_X86_REG_EIP)
    if rip != CODE + len(code):
        changed.append(f"ip={rip:x}")
    inputs = ",".join(f"{key}={value}" for key, value in case.set.items()) or "-"
    print(case.mode, code.hex(), f"{case.seed:x}", inputs, f"{case.undefined:x}", "|", ",".join(changed) or "-")
    return True


def sizes(mode, *choices):
    return [size for size in choices if size != 64 or mode == 64]


def target_of(rng, size=8, aligned=False):
    offset = rng.randrange(0x40, 0x80)
    if aligned:
        offset &= ~(size - 1)
    return WINDOW + offset


def immediate(case, size, short=False):
    width = 1 if short or size == 8 else 2 if size == 16 else 4
    return case.rng.choice([b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff"])[:1] * width if case.rng.random() < 0.3 \
        else case.rng.randbytes(width)


class Table:
    """Emits every form in every mode."""

    def __init__(self, repeats):
        self.rng = random.Random(20241122)
        self.repeats = repeats

    def cases(self, mode):
        for _ in range(self.repeats):
            yield Case(mode, self.rng)

    def simple(self, mode, opcode, size, *, undefined=0, imm=None, lock=False, aligned=False, prepare=None,
               **options):
        for case in self.cases(mode):
            case.undefined = undefined
            locked = lock and self.rng.random() < 0.3
            # A locked operation that crosses 8 bytes of RAM is refused on purpose.
            where = target_of(self.rng, max(size // 8, 1), locked or aligned)
            code, reg = encode(case, opcode, size, where, lock=locked,
                               imm=immediate(case, size, imm == "b") if imm else b"", **options)
            if prepare:
                prepare(case, reg)
            run(case, code)

    def arithmetic(self, mode):
        for number in range(8):
            undefined = AF if number in (1, 4, 6) else 0
            lock = number != 7
            for size in sizes(mode, 8, 16, 32, 64):
                wide = 0 if size == 8 else 1
                base = number * 8
                self.simple(mode, bytes([base + wide]), size, undefined=undefined, lock=lock)
                self.simple(mode, bytes([base + 2 + wide]), size, undefined=undefined)
                self.simple(mode, bytes([0x80 + wide]), size, digit=number, imm="z", undefined=undefined, lock=lock)
                if wide:
                    self.simple(mode, b"\x83", size, digit=number, imm="b", undefined=undefined, lock=lock)
        for size in sizes(mode, 8, 16, 32, 64):
            wide = 0 if size == 8 else 1
            self.simple(mode, bytes([0x84 + wide]), size, undefined=AF)
            self.simple(mode, bytes([0xF6 + wide]), size, digit=0, imm="z", undefined=AF)
            self.simple(mode, bytes([0xF6 + wide]), size, digit=2, lock=True)
            # Unicorn computes the flags of a locked NEG from the wrong value.
            self.simple(mode, bytes([0xF6 + wide]), size, digit=3)
            self.simple(mode, bytes([0xFE + wide]), size, digit=0, lock=True)
            self.simple(mode, bytes([0xFE + wide]), size, digit=1, lock=True)
            for digit in (4, 5):
                self.simple(mode, bytes([0xF6 + wide]), size, digit=digit, undefined=SF | ZF | AF | PF)
            for digit in (6, 7):
                self.simple(mode, bytes([0xF6 + wide]), size, digit=digit, undefined=STATUS,
                            prepare=lambda case, _: self.small_dividend(case, size))
        for size in sizes(mode, 16, 32, 64):
            undefined = SF | ZF | AF | PF
            self.simple(mode, b"\x0f\xaf", size, undefined=undefined)
            self.simple(mode, b"\x69", size, imm="z", undefined=undefined)
            self.simple(mode, b"\x6b", size, imm="b", undefined=undefined)
            self.simple(mode, b"\x0f\xbc", size, undefined=STATUS & ~ZF)
            self.simple(mode, b"\x0f\xbd", size, undefined=STATUS & ~ZF)
            if mode == 16:
                # Unicorn takes the operand size of these, and of MOVBE, the wrong way round in 16-bit code.
                continue
            self.simple(mode, b"\x0f\xb8", size, mandatory=b"\xf3")
            self.simple(mode, b"\x0f\xbc", size, mandatory=b"\xf3", undefined=OF | SF | PF | AF)
            self.simple(mode, b"\x0f\xbd", size, mandatory=b"\xf3", undefined=OF | SF | PF | AF)

    def small_dividend(self, case, size):
        used = case.set
        if size == 8:
            if "r0" not in used:
                case.gpr(RAX, self.rng.randrange(0x400))
        elif "r2" not in used:
            case.gpr(RDX, 0)

    def moves(self, mode):
        for size in sizes(mode, 8, 16, 32, 64):
            wide = 0 if size == 8 else 1
            for opcode in (0x88, 0x8A):
                self.simple(mode, bytes([opcode + wide]), size)
            self.simple(mode, bytes([0xC6 + wide]), size, digit=0, imm="z")
            self.simple(mode, bytes([0x86 + wide]), size, aligned=True)
            self.simple(mode, bytes([0x0F, 0xC0 + wide]), size, lock=True)
            self.simple(mode, bytes([0x0F, 0xB0 + wide]), size, lock=True)
            self.simple(mode, bytes([0x0F, 0xB0 + wide]), size, lock=True,
                            prepare=lambda case, _, size=size: self.equal_accumulator(case, size))
        for size in sizes(mode, 16, 32, 64):
            for opcode in (0xB6, 0xB7, 0xBE, 0xBF):
                self.simple(mode, bytes([0x0F, opcode]), size)
            if mode != 16:
                self.simple(mode, b"\x0f\x38\xf0", size)
                self.simple(mode, b"\x0f\x38\xf1", size)
            if mode == 64:
                self.simple(mode, b"\x63", size)
        for size in sizes(mode, 32, 64):
            self.simple(mode, b"\x0f\xc3", size, fixed=True)
        for condition in range(16):
            for size in sizes(mode, 16, 32, 64):
                self.simple(mode, bytes([0x0F, 0x40 + condition]), size)
            self.simple(mode, bytes([0x0F, 0x90 + condition]), 8, digit=0)
        for size in sizes(mode, 32, 64):
            for equal in (False, True):
                for case in self.cases(mode):
                    bytes_ = 8 if size == 32 else 16
                    where = target_of(self.rng, bytes_, True)
                    code, _ = encode(case, b"\x0f\xc7", size, where, digit=1, fixed=True,
                                     lock=size == 32 and self.rng.random() < 0.3)
                    if equal:
                        half = bytes_ // 2
                        mask = (1 << (8 * half)) - 1
                        case.poke(where - WINDOW, (case.gprs[RAX] & mask).to_bytes(half, "little")
                                  + (case.gprs[RDX] & mask).to_bytes(half, "little"))
                    run(case, code)
        if mode != 16:
            for case in self.cases(mode):
                size = 8 if mode == 64 else 4
                for opcode in (0xA0, 0xA1, 0xA2, 0xA3):
                    run(Case(mode, self.rng), bytes([opcode]) + disp(target_of(self.rng), size))

    def equal_accumulator(self, case, size):
        # All that can be the destination holds one repeated byte, and the accumulator does too.
        if "r0" not in case.set:
            # Silicon leaves RAX alone when it equals a doubleword; Unicorn clears its upper half.
            case.gpr(RAX, 0x5A5A5A5A5A5A5A5A if size != 32 else 0x5A5A5A5A)
            case.poke(0x40, b"\x5a" * 0x50)

    def bits(self, mode):
        undefined = OF | SF | AF | PF
        for size in sizes(mode, 16, 32, 64):
            for opcode in (0xA3, 0xAB, 0xB3, 0xBB):
                for case in self.cases(mode):
                    case.undefined = undefined
                    for _ in range(20):
                        case.set.clear()
                        lock = opcode != 0xA3 and self.rng.random() < 0.3
                        code, reg = encode(case, bytes([0x0F, opcode]), size,
                                           target_of(self.rng, size // 8, lock), lock=lock)
                        if f"r{reg}" not in case.set:
                            break
                    else:
                        continue
                    case.gpr(reg, self.rng.randrange(-0x200, 0x200) & ((1 << size) - 1))
                    run(case, code)
            for digit in range(4, 8):
                self.simple(mode, b"\x0f\xba", size, digit=digit, imm="b", undefined=undefined, lock=digit > 4)

    def shifts(self, mode):
        for digit in range(8):
            for size in sizes(mode, 8, 16, 32, 64):
                wide = 0 if size == 8 else 1
                for opcode in (0xC0, 0xD0, 0xD2):
                    for case in self.cases(mode):
                        imm = bytes([self.rng.choice([0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 255])])
                        code, _ = encode(case, bytes([opcode + wide]), size, target_of(self.rng), digit=digit,
                                         imm=imm if opcode == 0xC0 else b"")
                        if opcode == 0xD2 and "r1" not in case.set:
                            case.gpr(RCX, case.gprs[RCX] & ~0xFF | imm[0])
                        count = {0xC0: imm[0], 0xD0: 1, 0xD2: case.gprs[RCX] & 0xFF}[opcode]
                        count &= 63 if size == 64 else 31
                        case.undefined = self.shift_undefined(digit, size, count)
                        run(case, code)
        for opcode in (0xA4, 0xA5, 0xAC, 0xAD):
            for size in sizes(mode, 16, 32, 64):
                for case in self.cases(mode):
                    imm = bytes([self.rng.randrange(256)])
                    code, _ = encode(case, bytes([0x0F, opcode]), size, target_of(self.rng),
                                     imm=b"" if opcode & 1 else imm)
                    count = (case.gprs[RCX] if opcode & 1 else imm[0]) & (63 if size == 64 else 31)
                    # Undefined; and Unicorn forgets the immediate in RIP-relative addresses.
                    if count > size or (case.relative and not opcode & 1):
                        continue
                    case.undefined = 0 if count == 0 else AF | (0 if count == 1 else OF)
                    run(case, code)

    @staticmethod
    def shift_undefined(digit, size, count):
        if count == 0:
            return 0
        undefined = 0 if count == 1 else OF
        if digit >= 4:
            undefined |= AF
            if count >= size and digit != 7:
                undefined |= CF
        return undefined

    def bmi(self, mode):
        if mode == 16:
            return
        for case_size in sizes(mode, 32, 64):
            for case in self.cases(mode):
                for map_, prefix, opcode in ((3, 3, 0xF0), (2, 1, 0xF7), (2, 2, 0xF7), (2, 3, 0xF7)):
                    case = Case(mode, self.rng)
                    where = target_of(self.rng)
                    case.gpr(RBX, where)
                    reg, count = self.rng.randrange(8), self.rng.randrange(8)
                    vvvv = 15 if map_ == 3 else 15 - count
                    byte2 = (0x80 if case_size == 64 else 0) | vvvv << 3 | prefix
                    code = bytes([0xC4, 0xE0 | map_, byte2, opcode]) + modrm(0, reg, 3)
                    run(case, code + (self.rng.randbytes(1) if map_ == 3 else b""))

    def stack(self, mode):
        word = {16: (16, 32), 32: (32, 16), 64: (64, 16)}[mode]
        for size in word:
            prefix = b"\x66" if size == 16 and mode != 16 or size == 32 and mode == 16 else b""
            for opcode, digit, jumps in ((0xFF, 6, False), (0x8F, 0, False), (0xFF, 2, True), (0xFF, 4, True)):
                if jumps and size != word[0]:
                    continue
                for case in self.cases(mode):
                    where = target_of(self.rng)
                    code, _ = encode(case, bytes([opcode]), size, where, digit=digit, rex_w=False)
                    if f"r{RSP}" in case.set:
                        continue
                    case.gpr(RSP, WINDOW + 0xC0)
                    if jumps:
                        case.poke(where - WINDOW, (0x800).to_bytes(size // 8, "little"))
                    run(case, code, jumps=jumps)
            for opcode in (0x50, 0x58):
                for number in range(8):
                    for case in self.cases(mode):
                        case.gpr(RSP, WINDOW + 0xC0)
                        run(case, prefix + bytes([opcode + number]))
            for case in self.cases(mode):
                case.gpr(RSP, WINDOW + 0xC0)
                width = 2 if size == 16 else 4
                run(case, prefix + b"\x68" + self.rng.randbytes(width))
                run(case, prefix + b"\x6a" + self.rng.randbytes(1))

    def strings(self, mode):
        for opcode in (0xA4, 0xAA, 0xAC, 0xA6, 0xAE):
            for size in sizes(mode, 8, 16, 32, 64):
                for repeat in (b"", b"\xf3", b"\xf2"):
                    for case in self.cases(mode):
                        code = repeat
                        if size in (16, 32) and (size == 16) != (mode == 16):
                            code += b"\x66"
                        if self.rng.random() < 0.15 and mode != 64:
                            code += b"\x67"
                        if size == 64:
                            code += b"\x48"
                        code += bytes([opcode + (size != 8)])
                        count = self.rng.choice([0, 1, 2, 3, 5])
                        high = self.rng.getrandbits(16) << 16 if mode == 16 and b"\x67" not in code else 0
                        case.gpr(RSI, target_of(self.rng) | high)
                        case.gpr(RDI, target_of(self.rng) | high)
                        case.gpr(RCX, count | high)
                        if opcode in (0xA6, 0xAE) and self.rng.random() < 0.6:
                            case.poke(0x18, b"\x33" * 0x90)
                            if opcode == 0xAE:
                                case.gpr(RAX, 0x3333333333333333)
                            case.poke(self.rng.randrange(0x30, 0x90), b"\x44")
                        run(case, code)
        for case in self.cases(mode):
            case.gpr(RBX, WINDOW)
            case.gpr(RAX, case.gprs[RAX] & ~0xFF | self.rng.randrange(0x40, 0x80))
            run(case, b"\xd7")

    def vectors(self, mode):
        forms = [
            (b"", b"\x0f\x10"), (b"", b"\x0f\x11"), (b"\x66", b"\x0f\x10"), (b"\x66", b"\x0f\x11"),
            (b"\xf3", b"\x0f\x10"), (b"\xf3", b"\x0f\x11"), (b"\xf2", b"\x0f\x10"), (b"\xf2", b"\x0f\x11"),
            (b"", b"\x0f\x28"), (b"", b"\x0f\x29"), (b"\x66", b"\x0f\x28"), (b"\x66", b"\x0f\x29"),
            (b"\x66", b"\x0f\x6f"), (b"\x66", b"\x0f\x7f"), (b"\xf3", b"\x0f\x6f"), (b"\xf3", b"\x0f\x7f"),
            (b"\xf3", b"\x0f\x7e"), (b"\x66", b"\x0f\xd6"), (b"\x66", b"\x0f\x6e"), (b"\x66", b"\x0f\x7e"),
            (b"", b"\x0f\x12"), (b"", b"\x0f\x13"), (b"", b"\x0f\x16"), (b"", b"\x0f\x17"),
            (b"\x66", b"\x0f\x12"), (b"\x66", b"\x0f\x13"), (b"\x66", b"\x0f\x16"), (b"\x66", b"\x0f\x17"),
            (b"", b"\x0f\x2b"), (b"\x66", b"\x0f\x2b"), (b"\x66", b"\x0f\xe7"), (b"\x66", b"\x0f\x38\x2a"),
            (b"\xf2", b"\x0f\xf0"), (b"\xf2", b"\x0f\x12"),
        ]
        aligned = {b"\x0f\x28", b"\x0f\x29", b"\x0f\x2b", b"\x0f\xe7", b"\x0f\x38\x2a"}
        for mandatory, opcode in forms:
            for wide in (False, True) if mode == 64 and opcode in (b"\x0f\x6e", b"\x0f\x7e") else (False,):
                for case in self.cases(mode):
                    must = opcode in aligned or (mandatory == b"\x66" and opcode in (b"\x0f\x6f", b"\x0f\x7f"))
                    code, _ = encode(case, opcode, 0, target_of(self.rng, 16, must), mandatory=mandatory,
                                     fixed=True, rex_w=wide)
                    run(case, code)
        for case in self.cases(mode):
            case.gpr(RDI, target_of(self.rng))
            run(case, b"\x66\x0f\xf7" + modrm(3, self.rng.randrange(8), self.rng.randrange(8)))


def main():
    table = Table(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    for mode in (64, 32, 16):
        for part in (table.arithmetic, table.moves, table.bits, table.shifts, table.bmi, table.stack, table.strings,
                     table.vectors):
            part(mode)


if __name__ == "__main__":
    main()
