//! Least connections: the backend with the fewest in flight for its weight, exact over the whole process.
//!
//! The load is compared and taken in one step, so two threads never take the same slot; a thread that loses the race
//! looks again. Equal loads go round: the scan starts one further each time.

use std::sync::atomic::Ordering::Relaxed;

use super::{Candidate, Picker, Turn, lighter};

/// How often a thread that lost the race looks again; more losses than this need more than 64 threads at one instant.
const ATTEMPTS: usize = 64;

pub(super) struct LeastConnections {
    heaviest: u16,
}

impl LeastConnections {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        Self {
            heaviest: candidates
                .iter()
                .map(|candidate| candidate.config.weight)
                .max()
                .unwrap_or(1),
        }
    }

    /// The position and load of the lightest untried candidate that is not full.
    fn lightest(&self, turn: &Turn<'_>, start: usize) -> Option<(usize, usize)> {
        let count = turn.candidates.len();
        let mut best: Option<(usize, usize, u16)> = None;
        for position in (start..count).chain(0..start) {
            let Some(candidate) = turn.untried(position) else {
                continue;
            };
            let (load, weight) = (candidate.state.in_flight(), candidate.config.weight);
            if load >= candidate.limit {
                continue;
            }
            if load == 0 && weight == self.heaviest {
                // Nothing can be lighter.
                return Some((position, load));
            }
            if best.is_none_or(|(_, other, other_weight)| {
                lighter((load, weight), (other, other_weight))
            }) {
                best = Some((position, load, weight));
            }
        }
        best.map(|(position, load, _)| (position, load))
    }
}

impl Picker for LeastConnections {
    fn pick(&self, turn: &mut Turn<'_>) -> Option<usize> {
        let start = turn.cursor.fetch_add(1, Relaxed) % turn.candidates.len().max(1);
        for _ in 0..ATTEMPTS {
            let (position, load) = self.lightest(turn, start)?;
            if turn
                .candidates
                .get(position)
                .is_some_and(|candidate| candidate.state.claim_at(load))
            {
                return Some(position);
            }
        }
        turn.claim_from(start)
    }
}

#[cfg(test)]
mod tests {
    use crate::{base::rng::Random, config::model::Policy, pool::fixture::unchecked_pool};

    #[test]
    fn idle_backends_of_equal_weight_take_turns() {
        let pool = unchecked_pool(&[1, 1, 1], Policy::LeastConnections);
        let mut random = Random::seeded(1);
        let picks = (0..6).map(|_| pool.pick(&[], &mut random).unwrap().index);
        assert_eq!(picks.collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn held_connections_are_shared_out_by_weight() {
        let pool = unchecked_pool(&[4, 2, 1], Policy::LeastConnections);
        let mut random = Random::seeded(1);
        let leases: Vec<_> = (0..70)
            .map(|_| pool.pick(&[], &mut random).unwrap())
            .collect();
        let loads: Vec<_> = pool
            .backends
            .iter()
            .map(|one| one.state.in_flight())
            .collect();
        assert_eq!(loads, [40, 20, 10]);
        drop(leases);
    }

    #[test]
    fn the_one_that_got_free_is_next() {
        let pool = unchecked_pool(&[1; 5], Policy::LeastConnections);
        let mut random = Random::seeded(1);
        let mut leases: Vec<_> = (0..10)
            .map(|_| pool.pick(&[], &mut random).unwrap())
            .collect();
        let free = leases.remove(3).index;
        assert_eq!(pool.pick(&[], &mut random).unwrap().index, free);
    }
}
