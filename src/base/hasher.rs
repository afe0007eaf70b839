//! A fast hasher for numbers that no peer can choose to collide: our own addresses, and consecutive
//! ids. For such keys the protection of SipHash costs time and gives nothing.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds [`NumberHasher`]s.
pub type NumberBuild = BuildHasherDefault<NumberHasher>;

/// Multiplies by 2^64 divided by the golden ratio, which spreads consecutive numbers evenly
/// (Fibonacci hashing). The rotation moves good bits down: tables use the lowest and the highest
/// ones.
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
