//! Least connections: the backend with the fewest in flight for its weight, exact over the whole process.
//!
//! The least loaded is the one that would have the fewest for its weight with one more. Beside it stand all that differ from it
//! by less than one request (`has_full_share`), such as all idle ones: these take turns by weight. Where all weights are
//! equal these are the ones with as few in flight, and the scan starts one further each time.
//!
//! The load is compared and taken in one step, so two threads never take the same slot; a thread that loses the race looks
//! again.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    BackendLoad, EligibleBackend, PickContext, PolicyPicker, has_full_share, is_less_loaded,
};

/// How often a thread that lost the race looks again; more losses than this need more than 64 threads at one instant.
const ATTEMPTS: usize = 64;
/// 2^64 divided by the golden ratio: its multiples lie evenly spread between 0 and 2^64, however many there are.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) struct LeastConnections {
    max_weight: u16,
    has_equal_weights: bool,
}

impl LeastConnections {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
        let weights = || candidates.iter().map(|candidate| candidate.config.weight);
        let max_weight = weights().max().unwrap_or(1);
        Self {
            max_weight,
            has_equal_weights: weights().all(|weight| weight == max_weight),
        }
    }

    /// The position and load of the next candidate; `turn_number` counts the picks of the pool.
    fn next(&self, turn: &PickContext<'_>, turn_number: usize) -> Option<(usize, usize)> {
        let start = turn_number % turn.candidates.len().max(1);
        let (position, load) = self.least_loaded(turn, start)?;
        if self.has_equal_weights {
            return Some((position, load.0));
        }
        by_weight(turn, load, turn_number).or(Some((position, load.0)))
    }

    /// The lightest untried candidate that is not full.
    fn least_loaded(&self, turn: &PickContext<'_>, start: usize) -> Option<(usize, BackendLoad)> {
        let count = turn.candidates.len();
        let mut best: Option<(usize, BackendLoad)> = None;
        for (position, load) in open(turn, (start..count).chain(0..start)) {
            if load == (0, self.max_weight) {
                // Nothing can be lighter.
                return Some((position, load));
            }
            if best.is_none_or(|(_, other)| is_less_loaded(load, other)) {
                best = Some((position, load));
            }
        }
        best
    }
}

/// One of the candidates that have less than their share beside the lightest, by weight and in turn.
fn by_weight(
    turn: &PickContext<'_>,
    lightest: BackendLoad,
    turn_number: usize,
) -> Option<(usize, usize)> {
    let eligible = || {
        let all = open(turn, 0..turn.candidates.len());
        all.filter(|(_, load)| !has_full_share(*load, lightest))
    };
    let total: u64 = eligible().map(|(_, (_, weight))| u64::from(weight)).sum();
    let place = (turn_number as u64).wrapping_mul(GOLDEN);
    let mut ticket = ((u128::from(place) * u128::from(total)) >> 64) as u64;
    eligible().find_map(|(position, (load, weight))| {
        let left = ticket.checked_sub(u64::from(weight));
        ticket = left.unwrap_or(ticket);
        left.is_none().then_some((position, load))
    })
}

/// The untried candidates at `positions` that are not full.
fn open<'t>(
    turn: &'t PickContext<'_>,
    positions: impl Iterator<Item = usize> + 't,
) -> impl Iterator<Item = (usize, BackendLoad)> + 't {
    positions.filter_map(|position| {
        let candidate = turn.untried(position)?;
        let load = candidate.state.in_flight();
        (load < candidate.limit).then_some((position, (load, candidate.config.weight)))
    })
}

impl PolicyPicker for LeastConnections {
    fn pick(&self, turn: &mut PickContext<'_>) -> Option<usize> {
        let turn_number = turn.cursor.fetch_add(1, Relaxed);
        for _ in 0..ATTEMPTS {
            let (position, load) = self.next(turn, turn_number)?;
            if turn
                .candidates
                .get(position)
                .is_some_and(|candidate| candidate.state.claim_at(load))
            {
                return Some(position);
            }
        }
        turn.claim_from(turn_number % turn.candidates.len().max(1))
    }
}

#[cfg(test)]
mod tests {
    use crate::{base::rng::Random, config::model::BalancingPolicy, pool::fixture::unchecked_pool};

    #[test]
    fn idle_backends_of_equal_weight_take_turns() {
        let pool = unchecked_pool(&[1, 1, 1], BalancingPolicy::LeastConnections);
        let mut random = Random::seeded(1);
        let picks = (0..6).map(|_| pool.pick(&[], &mut random).unwrap().index);
        assert_eq!(picks.collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn held_connections_are_shared_out_by_weight() {
        for (weights, count, expected) in [
            ([4, 2, 1], 70, [40, 20, 10]),
            ([4, 2, 1], 7, [4, 2, 1]),
            ([256, 255, 1], 512, [256, 255, 1]),
            ([30, 20, 10], 6, [3, 2, 1]),
        ] {
            let pool = unchecked_pool(&weights, BalancingPolicy::LeastConnections);
            let mut random = Random::seeded(1);
            let leases: Vec<_> = (0..count)
                .map(|_| pool.pick(&[], &mut random).unwrap())
                .collect();
            let loads = pool.backends.iter().map(|one| one.state.in_flight());
            assert_eq!(loads.collect::<Vec<_>>(), expected, "{weights:?}");
            drop(leases);
        }
    }

    #[test]
    fn backends_of_unequal_weight_take_their_turns_when_idle_and_when_equally_busy() {
        for (weights, held) in [
            (&[255, 256][..], 0),
            (&[255, 256], 511),
            (&[1, 2, 3], 0),
            (&[1, 2, 3], 6),
            (&[2, 1], 3),
            (&[1, 256], 0),
            (&[1, 256], 257),
            (&[7, 200, 3, 90, 90], 0),
        ] {
            let pool = unchecked_pool(weights, BalancingPolicy::LeastConnections);
            let mut random = Random::seeded(1);
            let mut pick = || pool.pick(&[], &mut random).unwrap();
            let leases: Vec<_> = (0..held).map(|_| pick()).collect();
            let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
            let mut counts = vec![0_usize; weights.len()];
            (0..10 * total).for_each(|_| counts[pick().index] += 1);
            for (count, weight) in counts.iter().zip(weights) {
                let off = count.abs_diff(10 * usize::from(*weight));
                assert!(off <= 3, "{weights:?}, {held} held: {counts:?}");
            }
            drop(leases);
        }
    }

    #[test]
    fn the_one_that_got_free_is_next() {
        let pool = unchecked_pool(&[1; 5], BalancingPolicy::LeastConnections);
        let mut random = Random::seeded(1);
        let mut leases: Vec<_> = (0..10)
            .map(|_| pool.pick(&[], &mut random).unwrap())
            .collect();
        let free = leases.remove(3).index;
        assert_eq!(pool.pick(&[], &mut random).unwrap().index, free);
    }
}
