//! The last part of a text that never ends: the log as a crash dump prints it.
//!
//! Key type: [`Ring`]. Pure; `log` owns the one instance.

/// The last `N` bytes that were pushed.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Bytes pushed since the start.
    pushed: u64,
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    pub const fn new() -> Self {
        assert!(N > 0, "a ring has room");
        Self { bytes: [0; N], pushed: 0 }
    }

    /// Appends, over the oldest bytes when full.
    pub fn push(&mut self, text: &[u8]) {
        for &byte in text {
            let at = (self.pushed % N as u64) as usize;
            self.bytes[at] = byte;
            self.pushed += 1;
        }
    }

    /// The last `lines` whole lines, oldest first, in two pieces that follow each other.
    pub fn last_lines(&self, lines: usize) -> (&[u8], &[u8]) {
        let held = self.pushed.min(N as u64) as usize;
        let byte = |back: usize| self.bytes[((self.pushed - back as u64) % N as u64) as usize];
        // Counted back from the end: how many bytes are taken.
        let mut taken = 0;
        let mut found = 0;
        for back in 1..=held {
            if byte(back) == b'\n' && back > 1 {
                found += 1;
                if found == lines {
                    break;
                }
            }
            taken = back;
        }
        let lost_its_start = taken == held && self.pushed > N as u64;
        if lost_its_start {
            // The oldest line was partly written over.
            while taken > 0 && byte(taken) != b'\n' {
                taken -= 1;
            }
            taken = taken.saturating_sub(1);
        }
        let end = (self.pushed % N as u64) as usize;
        if taken <= end {
            (&self.bytes[end - taken..end], &[])
        } else {
            (&self.bytes[N - (taken - end)..], &self.bytes[..end])
        }
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines<const N: usize>(ring: &Ring<N>, count: usize) -> String {
        let (first, second) = ring.last_lines(count);
        String::from_utf8([first, second].concat()).unwrap()
    }

    #[test]
    fn the_last_lines_are_whole() {
        let mut ring = Ring::<64>::new();
        assert_eq!(lines(&ring, 3), "");
        ring.push(b"one\ntwo\nthree\n");
        assert_eq!(lines(&ring, 1), "three\n");
        assert_eq!(lines(&ring, 2), "two\nthree\n");
        assert_eq!(lines(&ring, 3), "one\ntwo\nthree\n");
        assert_eq!(lines(&ring, 99), "one\ntwo\nthree\n");
    }

    #[test]
    fn an_unfinished_line_counts() {
        let mut ring = Ring::<64>::new();
        ring.push(b"one\ntwo");
        assert_eq!(lines(&ring, 1), "two");
    }

    #[test]
    fn what_was_written_over_is_left_out() {
        let mut ring = Ring::<16>::new();
        for number in 0..100 {
            ring.push(format!("{number:03}\n").as_bytes());
        }
        assert_eq!(lines(&ring, 2), "098\n099\n");
        assert_eq!(lines(&ring, 3), "097\n098\n099\n");
        ring.push(b"x");
        assert_eq!(lines(&ring, 99), "097\n098\n099\nx");
        ring.push(b"yz");
        assert_eq!(lines(&ring, 99), "097\n098\n099\nxyz");
        ring.push(b"w");
        assert_eq!(lines(&ring, 99), "098\n099\nxyzw", "whether 097 was a whole line is lost with what was before it");
        ring.push(&[b'a'; 40]);
        assert_eq!(lines(&ring, 99), "", "no line is whole");
    }
}
