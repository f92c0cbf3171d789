//! A queue of bytes with a fixed size. Pure.

/// Up to `N` bytes, first in, first out.
pub struct Queue<const N: usize> {
    bytes: [u8; N],
    start: usize,
    length: usize,
}

impl<const N: usize> Queue<N> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { bytes: [0; N], start: 0, length: 0 }
    }

    /// Appends `byte`; false when there is no room.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.length == N {
            return false;
        }
        let end = (self.start + self.length) % N;
        self.bytes[end] = byte;
        self.length += 1;
        true
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        if self.length == 0 {
            return None;
        }
        let byte = self.bytes[self.start];
        self.start = (self.start + 1) % N;
        self.length -= 1;
        Some(byte)
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<const N: usize> Default for Queue<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_whatever_the_wrap() {
        let mut queue = Queue::<3>::new();
        assert_eq!(queue.pop(), None);
        for round in 0..10 {
            assert!(queue.push(round) && queue.push(round + 100) && queue.push(round + 200));
            assert!(!queue.push(7), "full");
            assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(round), Some(round + 100), Some(round + 200)]);
            assert!(queue.is_empty());
            assert!(queue.push(1));
            assert_eq!(queue.pop(), Some(1));
        }
    }
}
