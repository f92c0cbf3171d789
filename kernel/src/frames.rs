//! The allocator of physical memory, in frames of 4 KiB.
//!
//! Key type: [`Frames`], one bit per frame and one count per 2 MiB. Single frames come from the bottom of memory, larger
//! and contiguous ranges from the top, so that the two do not fragment each other. Neighbours: `memory_setup` feeds it
//! the firmware's map; `paging`, the heap and guest RAM take from it. It touches none of the memory it gives away:
//! whoever takes a frame clears it.

use boot::PhysicalRange;

/// Bytes in a frame.
pub const FRAME_SIZE: u64 = 4096;

/// Frames in the 2 MiB that share one count.
const CHUNK_FRAMES: u64 = 512;
/// Words of the bitmap for one chunk.
const CHUNK_WORDS: u64 = CHUNK_FRAMES / 64;
const CHUNK_SIZE: u64 = CHUNK_FRAMES * FRAME_SIZE;

/// The sizes that paging has a page for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl FrameSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => FRAME_SIZE,
            Self::Large => 2 << 20,
            Self::Huge => 1 << 30,
        }
    }
}

/// How much bookkeeping memory up to a top address needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bookkeeping {
    /// Words of the bitmap.
    pub words: usize,
    /// Counts.
    pub counts: usize,
}

impl Bookkeeping {
    /// For physical memory below `top`.
    pub const fn for_memory_below(top: u64) -> Self {
        let chunks = top.div_ceil(CHUNK_SIZE);
        Self { words: (chunks * CHUNK_WORDS) as usize, counts: chunks as usize }
    }

    /// Bytes of both together.
    pub const fn bytes(self) -> u64 {
        (self.words * 8 + self.counts * 2) as u64
    }
}

/// The frames of physical memory and which of them are free. The bookkeeping is in slices or vectors.
pub struct Frames<B, C> {
    /// One bit per frame, set where it is not free.
    bitmap: B,
    /// Free frames in each chunk.
    free_in_chunk: C,
    /// Free frames in all.
    free: u64,
    /// The most that were ever free: what there is to give.
    total: u64,
    /// No chunk below this one has a free frame.
    lowest_chunk: usize,
}

impl<B, C> Frames<B, C>
where
    B: AsRef<[u64]> + AsMut<[u64]>,
    C: AsRef<[u16]> + AsMut<[u16]>,
{
    /// An allocator over memory that `bitmap` and `counts` suffice for (see [`Bookkeeping`]), with nothing free yet.
    ///
    /// # Panics
    /// If the two do not fit each other.
    pub fn new(mut bitmap: B, mut counts: C) -> Self {
        let lowest_chunk = counts.as_ref().len();
        let words = lowest_chunk as u64 * CHUNK_WORDS;
        assert_eq!(bitmap.as_ref().len() as u64, words, "one count for each eight words");
        bitmap.as_mut().fill(u64::MAX);
        counts.as_mut().fill(0);
        Self { bitmap, free_in_chunk: counts, free: 0, total: 0, lowest_chunk }
    }

    /// Gives the allocator the whole frames within `range`. Frames that it has already are not counted twice; what lies
    /// past the bookkeeping's end is left out.
    pub fn add(&mut self, range: PhysicalRange) {
        let first = range.start.div_ceil(FRAME_SIZE);
        let end = (range.end / FRAME_SIZE).min(self.frames());
        self.set_free(first, end);
        self.total = self.total.max(self.free);
    }

    /// Takes every frame that `range` touches out for good, before anything was allocated.
    pub fn reserve(&mut self, range: PhysicalRange) {
        if range.is_empty() {
            return;
        }
        let end = range.end.div_ceil(FRAME_SIZE).min(self.frames());
        self.set_taken(range.start / FRAME_SIZE, end);
        self.total = self.free;
    }

    /// The lowest free frame that lies wholly below `limit`: its physical address.
    pub fn allocate_below(&mut self, limit: u64) -> Option<u64> {
        let counts = self.free_in_chunk.as_ref();
        let chunk = (self.lowest_chunk..counts.len()).find(|&chunk| counts[chunk] != 0)?;
        self.lowest_chunk = chunk;
        let first_word = chunk * CHUNK_WORDS as usize;
        let words = &self.bitmap.as_ref()[first_word..first_word + CHUNK_WORDS as usize];
        let (index, word) = words.iter().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let frame = (first_word + index) as u64 * 64 + u64::from(word.trailing_ones());
        if (frame + 1) * FRAME_SIZE > limit {
            return None;
        }
        self.set_taken(frame, frame + 1);
        Some(frame * FRAME_SIZE)
    }

    /// One naturally aligned frame of `size`: its physical address.
    pub fn allocate(&mut self, size: FrameSize) -> Option<u64> {
        match size {
            FrameSize::Small => self.allocate_below(u64::MAX),
            _ => self.allocate_contiguous(size.bytes(), size.bytes()).map(|range| range.start),
        }
    }

    /// The highest free range of `bytes` (rounded up to frames) whose start is a multiple of `alignment`, a power of
    /// two of at least a frame.
    pub fn allocate_contiguous(&mut self, bytes: u64, alignment: u64) -> Option<PhysicalRange> {
        assert!(alignment.is_power_of_two() && alignment >= FRAME_SIZE, "alignment is a power of two of frames");
        let count = bytes.div_ceil(FRAME_SIZE);
        if count == 0 || count > self.free {
            return None;
        }
        let align = alignment / FRAME_SIZE;
        let mut end = self.frames();
        loop {
            let start = end.checked_sub(count)? & !(align - 1);
            match self.last_taken(start, start + count) {
                None => {
                    self.set_taken(start, start + count);
                    return Some(PhysicalRange { start: start * FRAME_SIZE, end: (start + count) * FRAME_SIZE });
                }
                // Nothing that holds this frame will do.
                Some(taken) => end = taken,
            }
        }
    }

    /// Gives back what was allocated.
    ///
    /// # Panics
    /// If the range is not made of whole frames, or some frame of it is free already.
    pub fn free(&mut self, range: PhysicalRange) {
        assert!(
            range.start.is_multiple_of(FRAME_SIZE) && range.end.is_multiple_of(FRAME_SIZE),
            "whole frames are freed"
        );
        let (first, end) = (range.start / FRAME_SIZE, range.end / FRAME_SIZE);
        assert!(end <= self.frames(), "only what was allocated is freed");
        let before = self.free;
        self.set_free(first, end);
        assert_eq!(self.free - before, end - first, "a frame is freed once");
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free * FRAME_SIZE
    }

    /// Bytes that there were to give.
    pub fn total_bytes(&self) -> u64 {
        self.total * FRAME_SIZE
    }

    /// Frames that the bookkeeping covers.
    fn frames(&self) -> u64 {
        self.bitmap.as_ref().len() as u64 * 64
    }

    /// The highest frame of `first..end` that is not free.
    fn last_taken(&self, first: u64, end: u64) -> Option<u64> {
        let mut frame = end;
        while frame > first {
            let chunk = (frame - 1) / CHUNK_FRAMES;
            let chunk_start = chunk * CHUNK_FRAMES;
            if u64::from(self.free_in_chunk.as_ref()[chunk as usize]) == CHUNK_FRAMES {
                frame = chunk_start;
                continue;
            }
            let index = (frame - 1) / 64;
            // The word's bits below `frame`.
            let upto = (frame - 1) % 64 + 1;
            let taken = self.bitmap.as_ref()[index as usize] & ones(0, upto);
            if taken != 0 {
                let highest = index * 64 + 63 - u64::from(taken.leading_zeros());
                return (highest >= first).then_some(highest);
            }
            frame = index * 64;
        }
        None
    }

    fn set_free(&mut self, first: u64, end: u64) {
        self.change(first, end, |word, mask| {
            let freed = (*word & mask).count_ones();
            *word &= !mask;
            i32::try_from(freed).unwrap_or(0)
        });
        if first < end {
            self.lowest_chunk = self.lowest_chunk.min((first / CHUNK_FRAMES) as usize);
        }
    }

    fn set_taken(&mut self, first: u64, end: u64) {
        self.change(first, end, |word, mask| {
            let taken = (!*word & mask).count_ones();
            *word |= mask;
            -i32::try_from(taken).unwrap_or(0)
        });
    }

    /// Applies `change` to the bits of `first..end`, word by word; it returns how many more frames are free.
    fn change(&mut self, first: u64, end: u64, change: impl Fn(&mut u64, u64) -> i32) {
        let mut frame = first;
        while frame < end {
            let word_end = (frame / 64 + 1) * 64;
            let upto = end.min(word_end);
            let mask = ones(frame % 64, upto - frame / 64 * 64);
            let gained = change(&mut self.bitmap.as_mut()[(frame / 64) as usize], mask);
            let count = &mut self.free_in_chunk.as_mut()[(frame / CHUNK_FRAMES) as usize];
            *count = count.wrapping_add_signed(gained as i16);
            self.free = self.free.wrapping_add_signed(i64::from(gained));
            frame = upto;
        }
    }
}

/// A word with the bits `from..to` set; `0 <= from < to <= 64`.
const fn ones(from: u64, to: u64) -> u64 {
    (u64::MAX >> (64 - (to - from))) << from
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn range(start: u64, end: u64) -> PhysicalRange {
        PhysicalRange { start, end }
    }

    /// An allocator over memory below `top`, with nothing in it.
    fn empty(top: u64) -> Frames<Vec<u64>, Vec<u16>> {
        let need = Bookkeeping::for_memory_below(top);
        Frames::new(vec![0; need.words], vec![0; need.counts])
    }

    #[test]
    fn bookkeeping_is_small_and_enough() {
        let need = Bookkeeping::for_memory_below(GIB);
        assert_eq!(need, Bookkeeping { words: 4096, counts: 512 });
        assert_eq!(Bookkeeping::for_memory_below(GIB + 1).counts, 513);
        assert!(Bookkeeping::for_memory_below(64 * GIB).bytes() < 3 * MIB);
    }

    #[test]
    fn single_frames_come_from_the_bottom_and_run_out() {
        let mut frames = empty(4 * MIB);
        frames.add(range(0x1800, 0x4fff));
        assert_eq!(frames.free_bytes(), 2 * FRAME_SIZE, "only whole frames");
        assert_eq!(frames.allocate(FrameSize::Small), Some(0x2000));
        assert_eq!(frames.allocate_below(0x3fff), None, "not wholly below the limit");
        assert_eq!(frames.allocate_below(0x4000), Some(0x3000));
        assert_eq!(frames.allocate(FrameSize::Small), None);
        frames.free(range(0x2000, 0x3000));
        assert_eq!(frames.allocate(FrameSize::Small), Some(0x2000));
    }

    #[test]
    fn overlapping_regions_count_once_and_reserved_wins() {
        let mut frames = empty(8 * MIB);
        frames.add(range(0, 4 * MIB));
        frames.add(range(2 * MIB, 6 * MIB));
        assert_eq!(frames.free_bytes(), 6 * MIB);
        frames.reserve(range(0, MIB));
        frames.reserve(range(3 * MIB + 1, 3 * MIB + 2));
        frames.reserve(range(7 * MIB, u64::MAX));
        assert_eq!(frames.free_bytes(), 5 * MIB - FRAME_SIZE);
        assert_eq!(frames.total_bytes(), frames.free_bytes());
        assert_eq!(frames.allocate(FrameSize::Small), Some(MIB));
    }

    #[test]
    fn large_frames_are_aligned_and_come_from_the_top() {
        let mut frames = empty(4 * GIB);
        frames.add(range(MIB, 3 * GIB + 5 * MIB));
        assert_eq!(frames.allocate(FrameSize::Huge), Some(2 * GIB));
        assert_eq!(frames.allocate(FrameSize::Large), Some(3 * GIB + 2 * MIB));
        assert_eq!(frames.allocate(FrameSize::Large), Some(3 * GIB));
        assert_eq!(frames.allocate(FrameSize::Large), Some(2 * GIB - 2 * MIB));
        assert_eq!(frames.allocate(FrameSize::Huge), None, "the second GiB is not whole any more");
        assert_eq!(frames.allocate(FrameSize::Small), Some(MIB));
    }

    #[test]
    fn contiguous_ranges_go_around_what_is_taken() {
        let mut frames = empty(16 * MIB);
        frames.add(range(0, 16 * MIB));
        frames.reserve(range(9 * MIB + 0x3000, 9 * MIB + 0x4000));
        let seven = frames.allocate_contiguous(6 * MIB, FRAME_SIZE).unwrap();
        assert_eq!(seven, range(10 * MIB, 16 * MIB));
        let next = frames.allocate_contiguous(MIB, FRAME_SIZE).unwrap();
        assert_eq!(next, range(8 * MIB + 0x3000, 9 * MIB + 0x3000));
        let aligned = frames.allocate_contiguous(5 * FRAME_SIZE - 7, 2 * MIB).unwrap();
        assert_eq!(aligned, range(6 * MIB, 6 * MIB + 5 * FRAME_SIZE));
        assert_eq!(frames.allocate_contiguous(9 * MIB, FRAME_SIZE), None);
        assert_eq!(frames.allocate_contiguous(0, FRAME_SIZE), None);
    }

    #[test]
    fn all_comes_back_to_the_byte() {
        let mut frames = empty(64 * MIB);
        frames.add(range(0, 64 * MIB));
        let before = frames.free_bytes();
        for round in 1..50u64 {
            let mut taken = Vec::new();
            for step in 0..40u64 {
                let bytes = 1 + (round * 7919 + step * 104_729) % (700 * FRAME_SIZE);
                taken.extend(frames.allocate_contiguous(bytes, FRAME_SIZE << (step % 4)));
                let one = frames.allocate(FrameSize::Small).unwrap();
                taken.push(range(one, one + FRAME_SIZE));
            }
            for (index, a) in taken.iter().enumerate() {
                assert!(taken[..index].iter().all(|b| !a.overlaps(*b)), "nothing is given twice");
            }
            taken.into_iter().for_each(|range| frames.free(range));
            assert_eq!(frames.free_bytes(), before);
        }
        assert_eq!(frames.allocate_contiguous(64 * MIB, FRAME_SIZE), Some(range(0, 64 * MIB)));
    }

    #[test]
    #[should_panic(expected = "freed once")]
    fn a_double_free_is_a_broken_invariant() {
        let mut frames = empty(2 * MIB);
        frames.add(range(0, MIB));
        frames.free(range(0, FRAME_SIZE));
    }
}
