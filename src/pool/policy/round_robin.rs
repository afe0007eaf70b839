//! Round robin, smooth by weight: a sequence worked out beforehand and one cursor for the whole process.
//!
//! Equal weights are the identity. A small pool gets the smooth order known from nginx (5, 1, 1 is `a a b a c a a`).
//! A large one would take n times the sum of weights for that, so its turns are laid out at even distances instead.
//! Weights are divided by their greatest common divisor, and scaled down where the sequence would exceed 65,536 turns.

use std::sync::atomic::Ordering::Relaxed;

use super::{EligibleBackend, PickContext, PolicyPicker};

/// Turns in a sequence at most, unless there are more backends than that.
const MAX_TURNS: usize = 65_536;
/// Steps the exact smooth order may cost: about a millisecond.
const MAX_STEPS: usize = 1 << 20;
/// Turns to go on from a tried or full backend before the scan over all backends.
const NEAR: usize = 8;

pub(super) struct RoundRobin {
    /// Positions of candidates; `None` is the identity.
    sequence: Option<Box<[u32]>>,
}

impl RoundRobin {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
        let weights: Vec<usize> = candidates
            .iter()
            .map(|candidate| usize::from(candidate.config.weight))
            .collect();
        Self {
            sequence: sequence(&weights),
        }
    }

    #[inline]
    fn at(&self, turn: usize, count: usize) -> Option<usize> {
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
    fn pick(&self, turn: &mut PickContext<'_>) -> Option<usize> {
        let count = turn.candidates.len();
        let first = turn.cursor.fetch_add(1, Relaxed);
        for step in 0..NEAR {
            let position = self.at(first.wrapping_add(step), count)?;
            if turn.claim(position) {
                return Some(position);
            }
        }
        turn.claim_from(first % count.max(1))
    }
}

/// The order of turns as positions, or `None` for the identity.
fn sequence(weights: &[usize]) -> Option<Box<[u32]>> {
    let weights = reduced(weights);
    if weights.iter().all(|weight| *weight == 1) {
        return None;
    }
    let total: usize = weights.iter().sum();
    Some(if weights.len() * total <= MAX_STEPS {
        smooth(&weights, total)
    } else {
        spread(&weights, total)
    })
}

/// The weights without their common divisor, and small enough to sum up to [`MAX_TURNS`]; all are at least 1.
fn reduced(weights: &[usize]) -> Vec<usize> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<usize> = weights.iter().map(|weight| weight / divisor).collect();
    let total: usize = weights.iter().sum();
    if total <= MAX_TURNS {
        return weights;
    }
    // What is below one turn is rounded up to one, which costs at most one turn per backend.
    let room = MAX_TURNS.saturating_sub(weights.len());
    weights
        .iter()
        .map(|weight| (weight * room / total).max(1))
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Every turn each backend gains its weight; the richest is taken and pays the sum of weights.
fn smooth(weights: &[usize], total: usize) -> Box<[u32]> {
    let mut credit = vec![0_isize; weights.len()];
    (0..total)
        .map(|_| {
            let mut best = (0_usize, isize::MIN);
            for (position, (credit, weight)) in credit.iter_mut().zip(weights).enumerate() {
                *credit += weight.cast_signed();
                if *credit > best.1 {
                    best = (position, *credit);
                }
            }
            if let Some(credit) = credit.get_mut(best.0) {
                *credit -= total.cast_signed();
            }
            best.0 as u32
        })
        .collect()
}

/// The k-th turn of a backend of weight w goes to the place (2k + 1) / 2w of the sequence: a counting sort by place.
fn spread(weights: &[usize], total: usize) -> Box<[u32]> {
    let place = |turn: usize, weight: usize| (2 * turn + 1) * total / (2 * weight);
    let mut starts = vec![0_u32; total + 1];
    for weight in weights {
        for turn in 0..*weight {
            if let Some(count) = starts.get_mut(place(turn, *weight) + 1) {
                *count += 1;
            }
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
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
        pool::{Pool, fixture::unchecked},
    };

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
    fn sequences_are_bounded_and_everyone_stays_in_them() {
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
            seen.push(pool.pick(&[], &mut random).unwrap().index);
            pool = Pool::new(&config, Some(&pool), now);
        }
        assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    }
}
