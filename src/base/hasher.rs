//! A hasher for numbers that nobody outside can choose to collide: addresses of our own, and ids that follow each other.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds [`NumberHasher`]s.
pub type NumberBuild = BuildHasherDefault<NumberHasher>;

/// Spreads one number by the golden ratio; tables look at the upper bits and at the lower ones.
#[derive(Debug, Default)]
pub struct NumberHasher(u64);

impl NumberHasher {
    fn add(&mut self, number: u64) {
        self.0 = (self.0 ^ number)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.add(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }
}
