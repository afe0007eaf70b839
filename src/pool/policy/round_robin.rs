//! Smooth weighted round robin: a precomputed sequence and one cursor for the whole process.
//!
//! Equal weights need no sequence. A small pool gets the smooth order known from nginx: weights 5,
//! 1, 1 give `a a b a c a a`. That costs n times the sum of weights to compute, so a large pool
//! gets its turns at even distances instead. Weights are divided by their greatest common divisor,
//! and scaled down where the sequence would exceed 65,536 turns.

use std::sync::atomic::Ordering::Relaxed;

use super::context::{EligibleBackend, PickContext, PolicyPicker};

/// Maximum length of a sequence, unless there are more backends: 256 KiB of memory.
const MAX_TURNS: usize = 65_536;
/// Maximum number of steps to compute the exact smooth order: about a millisecond.
const MAX_SMOOTH_STEPS: usize = 1 << 20;
/// Turns looked at after an attempted or full backend, before the scan over all backends. Following
/// the sequence a few turns keeps the weights; following it on could revisit one full backend for
/// thousands of turns.
const MAX_SKIPPED_TURNS: usize = 8;

pub(super) struct RoundRobin {
    /// Positions of candidates by turn; `None` is the identity.
    sequence: Option<Box<[u32]>>,
}

impl RoundRobin {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
        let weights: Vec<usize> = candidates
            .iter()
            .map(|candidate| candidate.weight as usize)
            .collect();
        Self {
            sequence: sequence(&weights),
        }
    }

    /// The position that has turn `turn`, of `count` candidates.
    #[inline]
    fn position_at(&self, turn: usize, count: usize) -> Option<usize> {
        match &self.sequence {
            None => Some(turn % count.max(1)),
            Some(sequence) => sequence
                .get(turn % sequence.len().max(1))
                .map(|position| *position as usize),
        }
    }
}

impl PolicyPicker for RoundRobin {
    #[inline]
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        let count = context.candidates.len();
        let first = context.cursor.fetch_add(1, Relaxed);
        for step in 0..MAX_SKIPPED_TURNS {
            let position = self.position_at(first.wrapping_add(step), count)?;
            if context.claim(position) {
                return Some(position);
            }
        }
        context.claim_from(first % count.max(1))
    }
}

/// The order of turns as positions, or `None` for the identity.
fn sequence(weights: &[usize]) -> Option<Box<[u32]>> {
    let weights = reduced(weights);
    if weights.iter().all(|weight| *weight == 1) {
        return None;
    }
    let total: usize = weights.iter().sum();
    Some(if weights.len() * total <= MAX_SMOOTH_STEPS {
        smooth_sequence(&weights, total)
    } else {
        even_sequence(&weights, total)
    })
}

/// The weights without their common divisor, scaled to a sum of at most [`MAX_TURNS`]; all are at
/// least 1.
fn reduced(weights: &[usize]) -> Vec<usize> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<usize> = weights.iter().map(|weight| weight / divisor).collect();
    let total: usize = weights.iter().sum();
    if total <= MAX_TURNS {
        return weights;
    }
    // One turn per backend is set aside, because a share below one turn is rounded up to one.
    let shared = MAX_TURNS.saturating_sub(weights.len());
    weights
        .iter()
        .map(|weight| (weight * shared / total).max(1))
        .collect()
}

/// The greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Smooth weighted round robin: in every turn each current weight grows by the weight; the highest
/// is chosen and reduced by the total. Turns of one backend come out as far apart as they can.
fn smooth_sequence(weights: &[usize], total: usize) -> Box<[u32]> {
    let mut current = vec![0_isize; weights.len()];
    (0..total)
        .map(|_| {
            let mut highest = (0_usize, isize::MIN);
            for (position, (current, weight)) in current.iter_mut().zip(weights).enumerate() {
                *current += weight.cast_signed();
                // The first of equal ones, so that the order of the file decides.
                if *current > highest.1 {
                    highest = (position, *current);
                }
            }
            debug_assert!(highest.0 < current.len(), "a pool without backends");
            if let Some(current) = current.get_mut(highest.0) {
                *current -= total.cast_signed();
            }
            highest.0 as u32
        })
        .collect()
}

/// Turns at even distances: the k-th turn of a backend of weight w goes to (2k + 1) / 2w of the
/// sequence. A counting sort by that place, so its cost is linear in the total.
fn even_sequence(weights: &[usize], total: usize) -> Box<[u32]> {
    let place = |turn: usize, weight: usize| (2 * turn + 1) * total / (2 * weight);
    // Counts the turns of each place, shifted by one for the sums below.
    let mut starts = vec![0_u32; total + 1];
    for weight in weights {
        for turn in 0..*weight {
            if let Some(count) = starts.get_mut(place(turn, *weight) + 1) {
                *count += 1;
            }
        }
    }
    // Running sums: where the turns of each place begin in the sequence.
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    debug_assert_eq!(sum as usize, total, "a turn without a place");
    // Puts each turn at the next free entry of its place.
    let mut sequence = vec![0_u32; total];
    for (position, weight) in weights.iter().enumerate() {
        for turn in 0..*weight {
            if let Some(start) = starts.get_mut(place(turn, *weight)) {
                if let Some(entry) = sequence.get_mut(*start as usize) {
                    *entry = position as u32;
                }
                *start += 1;
            }
        }
    }
    sequence.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{clock, rng::Random},
        config::model::BalancingPolicy,
        pool::{
            Pool,
            fixture::{pick, unchecked},
        },
    };

    /// The sequence with a letter per backend.
    fn letters(weights: &[usize]) -> String {
        let sequence = sequence(weights).unwrap();
        sequence
            .iter()
            .map(|at| char::from(b'a' + *at as u8))
            .collect()
    }

    #[test]
    fn small_pools_are_exactly_smooth() {
        assert_eq!(letters(&[5, 1, 1]), "aabacaa");
        assert_eq!(letters(&[3, 2]), "ababa");
        assert_eq!(letters(&[20, 10]), "aba");
    }

    #[test]
    fn equal_weights_need_no_sequence() {
        assert_eq!(sequence(&vec![1; 10_000]), None);
        assert_eq!(sequence(&[256, 256]), None);
    }

    #[test]
    fn large_pools_get_their_share_at_even_distances() {
        let weights: Vec<usize> = (0..2_000).map(|position| 1 + position % 7).collect();
        let sequence = sequence(&weights).unwrap();
        assert_eq!(sequence.len(), weights.iter().sum::<usize>());
        let mut turns = vec![Vec::new(); weights.len()];
        for (at, position) in sequence.iter().enumerate() {
            turns[*position as usize].push(at);
        }
        for (turns, weight) in turns.iter().zip(&weights) {
            assert_eq!(turns.len(), *weight);
            let even = sequence.len() / weight;
            for pair in turns.windows(2) {
                let distance = pair[1] - pair[0];
                assert!(
                    distance.abs_diff(even) <= weights.len(),
                    "{distance} for {even}"
                );
            }
        }
    }

    #[test]
    fn sequences_are_bounded_and_every_backend_stays_in_them() {
        for count in [1_000, 10_000, 40_000, 70_000] {
            let weights: Vec<usize> = (0..count)
                .map(|at| if at % 2 == 0 { 1 } else { 256 })
                .collect();
            if let Some(sequence) = sequence(&weights) {
                assert!(sequence.len() <= MAX_TURNS, "{count}");
                let mut seen = vec![false; count];
                sequence.iter().for_each(|at| seen[*at as usize] = true);
                assert!(seen.iter().all(|seen| *seen), "{count}");
            }
        }
    }

    #[test]
    fn the_cursor_goes_on_over_a_reload() {
        let (config, now) = (
            unchecked(&[1, 1, 1], BalancingPolicy::RoundRobin),
            clock::now(),
        );
        let mut pool = Pool::new(&config, None, now);
        let mut random = Random::seeded(1);
        let mut seen = Vec::new();
        for _ in 0..6 {
            seen.push(pick(&pool, &[], &mut random).unwrap().index);
            pool = Pool::new(&config, Some(&pool), now);
        }
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }
}
