//! Randomness for balancing, jitter and request ids: fast and seedable, not for secrets.

use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};

/// A random number generator. Every worker owns one, so that a draw takes no lock.
#[derive(Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// Makes a generator seeded by the operating system.
    pub fn from_system() -> Self {
        // Without getrandom (an old kernel, a sandbox) the time must do: balancing needs no
        // secrets.
        let mut seed = <Xoshiro256PlusPlus as SeedableRng>::Seed::default();
        if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).is_err() {
            let nanos = super::clock::unix_now().as_nanos();
            seed.iter_mut()
                .zip(nanos.to_le_bytes().into_iter().cycle())
                .for_each(|(to, from)| *to = from);
        }
        Self(Xoshiro256PlusPlus::from_seed(seed))
    }

    /// Makes a generator with the same numbers for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// Draws 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a number in `0..bound`; 0 if `bound` is 0.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        // Multiply-shift, without the division of a modulo. The bias is below 2^-32 for any bound
        // that fits a pool.
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Draws a number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_stays_below_and_reaches_every_number() {
        let mut random = Random::seeded(7);
        let mut seen = [0_u32; 5];
        for _ in 0..5_000 {
            seen[random.below(5)] += 1;
        }
        assert!(
            seen.iter().all(|count| (800..1_200).contains(count)),
            "{seen:?}"
        );
        assert_eq!(random.below(0), 0);
    }
}
