//! Random two: two different backends drawn by weight, and of these the one with fewer in flight for its weight.
//!
//! Two draws cost the same for 3 and for 10,000 backends, and spread bursts well without looking at everyone.

use super::{Candidate, Picker, Turn, lighter};
use crate::base::rng::Random;

/// Draws until an untried, different backend is found; then the scan over all takes over.
const DRAWS: usize = 16;

pub(super) struct RandomTwo {
    /// Sums of weights up to and with each position; `None` where all weights are equal.
    sums: Option<Box<[u32]>>,
}

impl RandomTwo {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let mut weights = candidates.iter().map(|candidate| candidate.config.weight);
        let first = weights.next();
        if weights.all(|weight| Some(weight) == first) {
            return Self { sums: None };
        }
        let sums = candidates.iter().scan(0_u32, |sum, candidate| {
            *sum += u32::from(candidate.config.weight);
            Some(*sum)
        });
        Self {
            sums: Some(sums.collect()),
        }
    }

    /// A position drawn by weight.
    fn draw(&self, random: &mut Random, count: usize) -> usize {
        match &self.sums {
            None => random.below(count),
            Some(sums) => {
                let ticket = random.below(sums.last().map_or(0, |sum| *sum as usize)) as u32;
                sums.partition_point(|sum| *sum <= ticket)
            }
        }
    }

    /// An untried position other than `other`.
    fn draw_untried(&self, turn: &mut Turn<'_>, other: Option<usize>) -> Option<usize> {
        let count = turn.candidates.len();
        for _ in 0..DRAWS {
            let position = self.draw(turn.random, count);
            if Some(position) != other && turn.untried(position).is_some() {
                return Some(position);
            }
        }
        let start = turn.random.below(count);
        (start..count)
            .chain(0..start)
            .find(|position| Some(*position) != other && turn.untried(*position).is_some())
    }
}

impl Picker for RandomTwo {
    fn pick(&self, turn: &mut Turn<'_>) -> Option<usize> {
        let first = self.draw_untried(turn, None)?;
        let (better, worse) = match self.draw_untried(turn, Some(first)) {
            Some(second) if weighs(turn, second, first) => (second, Some(first)),
            second => (first, second),
        };
        if turn.claim(better) {
            return Some(better);
        }
        match worse {
            Some(worse) if turn.claim(worse) => Some(worse),
            _ => {
                let start = turn.random.below(turn.candidates.len());
                turn.claim_from(start)
            }
        }
    }
}

/// True if the candidate at `one` is lighter than the one at `other`.
fn weighs(turn: &Turn<'_>, one: usize, other: usize) -> bool {
    let load = |position: usize| {
        turn.candidates
            .get(position)
            .map(|candidate| (candidate.state.in_flight(), candidate.config.weight))
    };
    matches!((load(one), load(other)), (Some(one), Some(other)) if lighter(one, other))
}
