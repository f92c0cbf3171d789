//! A byte queue of fixed size.

/// At most `N` bytes, first in, first out.
pub(super) struct Queue<const N: usize> {
    bytes: [u8; N],
    first: usize,
    len: usize,
}

impl<const N: usize> Queue<N> {
    pub(super) const fn new() -> Queue<N> {
        Queue { bytes: [0; N], first: 0, len: 0 }
    }

    /// Appends all of `bytes` or, if there is no room for them, none. True if they went in.
    pub(super) fn push_all(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > N - self.len {
            return false;
        }
        for byte in bytes {
            let at = (self.first + self.len) % N;
            if let Some(cell) = self.bytes.get_mut(at) {
                *cell = *byte;
            }
            self.len += 1;
        }
        true
    }

    pub(super) fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.first = (self.first + 1) % N;
        byte
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}
