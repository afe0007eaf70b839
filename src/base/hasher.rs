//! Hashes. A fast one for numbers that no peer can choose to collide: our own addresses, and
//! consecutive ids. For such keys the protection of SipHash costs time and gives nothing. And one
//! that is the same in every process, for policies that lead a key to a backend.

use std::{
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
};

use siphasher::sip::SipHasher13;

/// First half of the key of [`stable_hash`]: any fixed number.
const STABLE_KEY: u64 = 0x6261_6c61_6e63_6572;

/// Hashes `bytes` to the same value in every process and version. `purpose` separates kinds of
/// hashes.
pub fn stable_hash(purpose: u64, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(STABLE_KEY, purpose);
    hasher.write(bytes);
    hasher.finish()
}

/// Hashes a client's address by [`stable_hash`]; IPv4 in either form is the same.
pub fn address_hash(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => stable_hash(0, &v4.octets()),
        IpAddr::V6(v6) => stable_hash(0, &v6.octets()),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_in_every_process_and_version() {
        assert_eq!(stable_hash(0, b"balancer"), 5_264_508_524_908_222_795);
        assert_ne!(stable_hash(0, b"balancer"), stable_hash(1, b"balancer"));
    }
}
