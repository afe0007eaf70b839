//! Least connections: the backend with the fewest in flight for its weight, exact over the process.
//!
//! The least loaded backend is the one that would have the fewest for its weight with one more. All
//! that differ from it by less than one request (`has_full_share`) are as good, such as all idle
//! ones: these take turns by weight. With equal weights they are the ones with as few in flight,
//! and each scan starts one position further.
//!
//! The load is compared and taken in one step, so two threads never take the same slot. A thread
//! that loses the race scans again.

use std::sync::atomic::Ordering::Relaxed;

use super::context::{
    BackendLoad, EligibleBackend, PickContext, PolicyPicker, has_full_share, is_less_loaded,
};

/// Scans by a thread that keeps losing the race. More losses need more than 64 threads at one
/// instant.
const MAX_SCANS: usize = 64;
/// 2^64 divided by the golden ratio. Its multiples modulo 2^64 are evenly spread, however many
/// there are (Fibonacci hashing), so consecutive picks interleave the backends smoothly.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) struct LeastConnections {
    max_weight: u32,
    has_equal_weights: bool,
}

impl LeastConnections {
    pub(super) fn new(candidates: &[EligibleBackend]) -> Self {
        let weights = || candidates.iter().map(|candidate| candidate.weight);
        let max_weight = weights().max().unwrap_or(1);
        Self {
            max_weight,
            has_equal_weights: weights().all(|weight| weight == max_weight),
        }
    }

    /// Position and load of the next candidate; `pick_number` counts the picks of the pool.
    fn next(&self, context: &PickContext<'_>, pick_number: usize) -> Option<(usize, usize)> {
        let start = pick_number % context.candidates.len().max(1);
        let (position, load) = self.least_loaded(context, start)?;
        // The second scan below is only needed to share idle backends by weight.
        if self.has_equal_weights {
            return Some((position, load.0));
        }
        pick_by_weight(context, load, pick_number).or(Some((position, load.0)))
    }

    /// The least loaded candidate that has capacity, scanning from `start`.
    fn least_loaded(
        &self,
        context: &PickContext<'_>,
        start: usize,
    ) -> Option<(usize, BackendLoad)> {
        let count = context.candidates.len();
        let mut best: Option<(usize, BackendLoad)> = None;
        for (position, load) in with_capacity(context, (start..count).chain(0..start)) {
            // An idle one of the highest weight cannot be beaten: an idle pool scans one entry.
            if load == (0, self.max_weight) {
                return Some((position, load));
            }
            if best.is_none_or(|(_, other)| is_less_loaded(load, other)) {
                best = Some((position, load));
            }
        }
        best
    }
}

/// One of the candidates below their share compared with `least`: in turn, by weight.
fn pick_by_weight(
    context: &PickContext<'_>,
    least: BackendLoad,
    pick_number: usize,
) -> Option<(usize, usize)> {
    let below_share = || {
        let all = with_capacity(context, 0..context.candidates.len());
        all.filter(|(_, load)| !has_full_share(*load, least))
    };
    let total: u64 = below_share()
        .map(|(_, (_, weight))| u64::from(weight))
        .sum();
    // A point of the golden-ratio sequence, scaled to the sum of weights, selects one of them.
    let point = (pick_number as u64).wrapping_mul(GOLDEN_RATIO);
    let mut ticket = ((u128::from(point) * u128::from(total)) >> 64) as u64;
    below_share().find_map(|(position, (load, weight))| {
        let left = ticket.checked_sub(u64::from(weight));
        ticket = left.unwrap_or(ticket);
        left.is_none().then_some((position, load))
    })
}

/// The candidates at `positions` that have capacity and were not attempted, with their loads.
fn with_capacity<'t>(
    context: &'t PickContext<'_>,
    positions: impl Iterator<Item = usize> + 't,
) -> impl Iterator<Item = (usize, BackendLoad)> + 't {
    positions.filter_map(|position| {
        let candidate = context.candidate(position)?;
        let load = candidate.state.in_flight();
        (load < candidate.limit).then_some((position, (load, candidate.weight)))
    })
}

impl PolicyPicker for LeastConnections {
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        let pick_number = context.cursor.fetch_add(1, Relaxed);
        for _ in 0..MAX_SCANS {
            let (position, load) = self.next(context, pick_number)?;
            let candidate = context.candidates.get(position);
            if candidate.is_some_and(|candidate| candidate.state.claim_at(load)) {
                return Some(position);
            }
        }
        // Any backend with capacity is better than spinning on.
        context.claim_from(pick_number % context.candidates.len().max(1))
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        base::rng::Random,
        config::model::BalancingPolicy,
        pool::fixture::{pick, unchecked_pool},
    };

    #[test]
    fn idle_backends_of_equal_weight_take_turns() {
        let pool = unchecked_pool(&[1, 1, 1], BalancingPolicy::LeastConnections);
        let mut random = Random::seeded(1);
        let picks = (0..6).map(|_| pick(&pool, &[], &mut random).unwrap().index);
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
                .map(|_| pick(&pool, &[], &mut random).unwrap())
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
            let mut pick = || pick(&pool, &[], &mut random).unwrap();
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
            .map(|_| pick(&pool, &[], &mut random).unwrap())
            .collect();
        let free = leases.remove(3).index;
        assert_eq!(pick(&pool, &[], &mut random).unwrap().index, free);
    }
}
