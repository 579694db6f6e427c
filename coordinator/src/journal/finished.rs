//! Which chunks are finished, small enough for a million of them.

use tropa_proto::id::ChunkIndex;

/// Which chunks have a result or a failure, at two bits each.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    done: Bits,
    failed: Bits,
}

#[derive(Clone, Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: u32,
}

impl Finished {
    /// Says whether the chunk has a result or a failure.
    #[must_use]
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.done.contains(chunk.0) || self.failed.contains(chunk.0)
    }

    /// Says whether the chunk has a failure.
    #[must_use]
    pub fn is_failed(&self, chunk: ChunkIndex) -> bool {
        self.failed.contains(chunk.0)
    }

    /// How many chunks have a result.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done.count
    }

    /// How many chunks have a failure.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.failed.count
    }

    /// Notes that the chunk has a result, or else a failure.
    pub fn insert(&mut self, chunk: ChunkIndex, done: bool) {
        if done { self.done.insert(chunk.0) } else { self.failed.insert(chunk.0) }
    }
}

impl Bits {
    fn contains(&self, bit: u32) -> bool {
        self.words.get(bit as usize / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn insert(&mut self, bit: u32) {
        let place = bit as usize / 64;
        if place >= self.words.len() {
            self.words.resize(place + 1, 0);
        }
        let mask = 1 << (bit % 64);
        self.count += u32::from(self.words[place] & mask == 0);
        self.words[place] |= mask;
    }
}
