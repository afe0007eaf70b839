//! Random two: two different backends drawn by weight, and of these the one with fewer in flight for its weight.
//!
//! The first is taken unless it has its share already compared with the second (`has_full_share`): of two that are idle the
//! weights decide, by which they were drawn.
//!
//! Two draws cost the same for 3 and for 10,000 backends, and spread bursts well without looking at everyone.

use super::{EligibleBackend, PickContext, PolicyPicker, has_full_share};
use crate::base::rng::Random;

/// Draws until an untried, different backend is found; then the scan over all takes over.
const DRAWS: usize = 16;

pub(super) struct RandomTwo {
    /// Sums of weights up to and with each position; `None` where all weights are equal.
    sums: Option<Box<[u32]>>,
}

impl RandomTwo {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
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
    fn draw_untried(&self, turn: &mut PickContext<'_>, other: Option<usize>) -> Option<usize> {
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

impl PolicyPicker for RandomTwo {
    fn pick(&self, turn: &mut PickContext<'_>) -> Option<usize> {
        let first = self.draw_untried(turn, None)?;
        let (better, worse) = match self.draw_untried(turn, Some(first)) {
            Some(second) if is_busier(turn, first, second) => (second, Some(first)),
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

/// True if the candidate at `one` has its share already, compared with the one at `other`.
fn is_busier(turn: &PickContext<'_>, one: usize, other: usize) -> bool {
    let load = |position: usize| {
        turn.candidates
            .get(position)
            .map(|candidate| (candidate.state.in_flight(), candidate.config.weight))
    };
    matches!((load(one), load(other)), (Some(one), Some(other)) if has_full_share(one, other))
}

#[cfg(test)]
mod tests {
    use crate::{
        base::rng::Random,
        config::model::BalancingPolicy,
        pool::{Pool, fixture::unchecked_pool},
    };

    /// Puts `loads` in flight, and gives them back with the returned counts at the end of the pool's life.
    fn load(pool: &Pool, loads: &[usize]) {
        for (backend, load) in pool.backends.iter().zip(loads) {
            (0..*load).for_each(|_| assert!(backend.state.claim(usize::MAX)));
        }
    }

    #[test]
    fn of_two_the_lighter_is_chosen() {
        for (weights, loads, is_less_loaded) in [
            ([1, 1], [0, 1], 0),
            ([1, 1], [1, 0], 1),
            ([1, 1], [90, 80], 1),
            ([1, 4], [3, 8], 1),
            ([4, 1], [6, 2], 0),
            ([1, 256], [1, 254], 1),
        ] {
            let pool = unchecked_pool(&weights, BalancingPolicy::RandomTwo);
            load(&pool, &loads);
            for seed in 0..40 {
                let picked = pool.pick(&[], &mut Random::seeded(seed)).unwrap().index;
                assert_eq!(
                    picked, is_less_loaded,
                    "weights {weights:?}, in flight {loads:?}"
                );
            }
        }
    }

    #[test]
    fn the_heaviest_loaded_of_many_is_never_chosen() {
        let pool = unchecked_pool(&[1; 10], BalancingPolicy::RandomTwo);
        load(&pool, &[3, 3, 3, 3, 9, 3, 3, 3, 3, 3]);
        let mut random = Random::seeded(5);
        assert!((0..2_000).all(|_| pool.pick(&[], &mut random).unwrap().index != 4));
    }

    #[test]
    fn backends_of_unequal_weight_get_their_share_when_idle_and_when_equally_busy() {
        const PICKS: usize = 20_000;
        for (weights, loads) in [
            (&[255, 256][..], &[0, 0][..]),
            (&[255, 256], &[1, 1]),
            (&[1, 1, 8], &[0, 0, 0]),
            (&[1, 2, 3], &[2, 4, 6]),
            (&[1, 256], &[0, 0]),
            (&[1, 256], &[1, 256]),
        ] {
            let pool = unchecked_pool(weights, BalancingPolicy::RandomTwo);
            load(&pool, loads);
            let mut random = Random::seeded(9);
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let mut counts = vec![0_usize; weights.len()];
            for _ in 0..PICKS {
                counts[pool.pick(&[], &mut random).unwrap().index] += 1;
            }
            for (count, weight) in counts.iter().zip(weights) {
                let share = f64::from(*weight) / total;
                let expected = share * PICKS as f64;
                // Five standard deviations: the seed is fixed, so this is no gamble.
                let spread = 5.0 * (expected * (1.0 - share)).sqrt();
                let off = (*count as f64 - expected).abs();
                assert!(off <= spread, "{weights:?} {loads:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn one_backend_is_picked_by_itself() {
        let pool = unchecked_pool(&[3], BalancingPolicy::RandomTwo);
        let mut random = Random::seeded(9);
        assert_eq!(pool.pick(&[], &mut random).unwrap().index, 0);
    }
}
