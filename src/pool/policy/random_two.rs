//! Random two: two different backends drawn by weight, and of these the less loaded for its weight.
//!
//! The first is taken unless it has its full share already compared with the second
//! (`has_full_share`). So between two idle backends the draw decides, and the draw is by weight.
//!
//! Two draws cost the same for 3 and for 10,000 backends. They keep bursts from all hitting the one
//! that looks idle, and bound the load of the fullest far better than one draw does ("power of two
//! choices").

use super::context::{EligibleBackend, PickContext, PolicyPicker, has_full_share};
use crate::base::rng::Random;

/// Draws until a different backend is found that was not attempted; a scan over all follows. Only
/// many attempts, or one weight far above all others, need more.
const MAX_DRAWS: usize = 16;

pub(super) struct RandomTwo {
    /// Running sums of the weights by position; `None` if all weights are equal.
    sums: Option<Box<[u32]>>,
}

impl RandomTwo {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
        let mut weights = candidates.iter().map(|candidate| candidate.weight);
        let first = weights.next();
        if weights.all(|weight| Some(weight) == first) {
            return Self { sums: None };
        }
        let sums = candidates.iter().scan(0_u32, |sum, candidate| {
            *sum += candidate.weight;
            Some(*sum)
        });
        Self {
            sums: Some(sums.collect()),
        }
    }

    /// Draws a position by weight.
    fn draw(&self, random: &mut Random, count: usize) -> usize {
        match &self.sums {
            None => random.below(count),
            Some(sums) => {
                debug_assert!(!sums.is_empty(), "unequal weights of no backends");
                let ticket = random.below(sums.last().map_or(0, |sum| *sum as usize)) as u32;
                sums.partition_point(|sum| *sum <= ticket)
            }
        }
    }

    /// Draws a position other than `other` that was not attempted.
    fn draw_other(&self, context: &mut PickContext<'_>, other: Option<usize>) -> Option<usize> {
        let count = context.candidates.len();
        for _ in 0..MAX_DRAWS {
            let position = self.draw(context.random, count);
            if Some(position) != other && context.candidate(position).is_some() {
                return Some(position);
            }
        }
        let start = context.random.below(count);
        (start..count)
            .chain(0..start)
            .find(|position| Some(*position) != other && context.candidate(*position).is_some())
    }
}

impl PolicyPicker for RandomTwo {
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        let first = self.draw_other(context, None)?;
        let (better, worse) = match self.draw_other(context, Some(first)) {
            Some(second) if is_busier(context, first, second) => (second, Some(first)),
            second => (first, second),
        };
        if context.claim(better) {
            return Some(better);
        }
        match worse {
            Some(worse) if context.claim(worse) => Some(worse),
            // Both are full: take any that is not.
            _ => {
                let start = context.random.below(context.candidates.len());
                context.claim_from(start)
            }
        }
    }
}

/// True if the candidate at `one` has its full share compared with the one at `other`.
fn is_busier(context: &PickContext<'_>, one: usize, other: usize) -> bool {
    let load = |position: usize| {
        let candidate = context.candidates.get(position)?;
        Some((candidate.state.in_flight(), candidate.weight))
    };
    matches!((load(one), load(other)), (Some(one), Some(other)) if has_full_share(one, other))
}

#[cfg(test)]
mod tests {
    use crate::{
        base::rng::Random,
        config::model::BalancingPolicy,
        pool::{
            Pool,
            fixture::{pick, unchecked_pool},
        },
    };

    /// Puts `loads` in flight for the life of the pool.
    fn load(pool: &Pool, loads: &[usize]) {
        for (backend, load) in pool.backends.iter().zip(loads) {
            (0..*load).for_each(|_| assert!(backend.state.claim(usize::MAX)));
        }
    }

    #[test]
    fn of_two_the_less_loaded_is_chosen() {
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
                let picked = pick(&pool, &[], &mut Random::seeded(seed)).unwrap().index;
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
        assert!((0..2_000).all(|_| pick(&pool, &[], &mut random).unwrap().index != 4));
    }

    #[test]
    fn backends_of_unequal_weight_get_their_share_when_idle_and_when_equally_busy() {
        const PICK_COUNT: usize = 20_000;
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
            for _ in 0..PICK_COUNT {
                counts[pick(&pool, &[], &mut random).unwrap().index] += 1;
            }
            for (count, weight) in counts.iter().zip(weights) {
                let share = f64::from(*weight) / total;
                let expected = share * PICK_COUNT as f64;
                // Five standard deviations; the seed is fixed, so the test is stable.
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
        assert_eq!(pick(&pool, &[], &mut random).unwrap().index, 0);
    }
}
