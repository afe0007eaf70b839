//! Least time: the backend whose next response is expected first: average time to the first byte ×
//! what would be in flight ÷ weight.
//!
//! Up to 16 backends all are compared; of more, two are drawn. A backend without a response so far
//! counts as being as fast as the fastest: it gets requests, and with each in flight fewer.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use super::context::{EligibleBackend, PickContext, PolicyPicker};

/// Pools with more candidates draw two instead of comparing all.
const MAX_COMPARED: usize = 16;
/// Draws until two different backends are found that were not attempted.
const MAX_DRAWS: usize = 16;

pub(super) struct LeastTime;

impl LeastTime {
    /// The best of the candidates at `positions` that have capacity.
    fn best(
        context: &PickContext<'_>,
        positions: impl Iterator<Item = usize> + Clone,
    ) -> Option<usize> {
        let open = positions.filter(|position| {
            let candidate = context.candidate(*position);
            candidate.is_some_and(|one| one.state.in_flight() < one.limit)
        });
        let average = |position: usize| {
            let candidate = context.candidates.get(position)?;
            candidate.state.response_time.nanos_at(context.now)
        };
        let fastest = open
            .clone()
            .filter_map(average)
            .fold(f64::INFINITY, f64::min);
        // Before the first response of all: the loads alone decide.
        let unknown = if fastest.is_finite() { fastest } else { 1.0 };
        let score = |position: usize| {
            let candidate = context.candidates.get(position)?;
            Some(expected_nanos(candidate, context.now, unknown))
        };
        let scored = open.filter_map(|position| Some((position, score(position)?)));
        // The first of equal ones: scans begin at another position each time.
        let better =
            |one: (usize, f64), other: (usize, f64)| if other.1 < one.1 { other } else { one };
        scored.reduce(better).map(|(position, _)| position)
    }

    /// Two different candidates, drawn at random.
    fn draw_two(context: &mut PickContext<'_>) -> [Option<usize>; 2] {
        let count = context.candidates.len();
        let mut drawn = [None; 2];
        for _ in 0..MAX_DRAWS {
            let position = context.random.below(count);
            if context.candidate(position).is_none() || drawn[0] == Some(position) {
                continue;
            }
            if drawn[0].is_none() {
                drawn[0] = Some(position);
            } else {
                drawn[1] = Some(position);
                break;
            }
        }
        drawn
    }
}

impl PolicyPicker for LeastTime {
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        let count = context.candidates.len();
        let start = context.cursor.fetch_add(1, Relaxed) % count.max(1);
        let best = if count <= MAX_COMPARED {
            Self::best(context, (start..count).chain(0..start))
        } else {
            let drawn = Self::draw_two(context);
            Self::best(context, drawn.into_iter().flatten())
        };
        best.filter(|position| context.claim(*position))
            .or_else(|| context.claim_from(start))
    }
}

/// Expected time to the response of one more request; `unknown` stands for the average of a backend
/// without a response so far.
fn expected_nanos(candidate: &EligibleBackend, now: Instant, unknown: f64) -> f64 {
    let average = candidate
        .state
        .response_time
        .nanos_at(now)
        .unwrap_or(unknown);
    average * (candidate.state.in_flight() + 1) as f64 / f64::from(candidate.weight.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{
        base::{clock, rng::Random},
        config::model::BalancingPolicy,
        pool::{BackendLease, PickRequest, Pool, fixture::unchecked_pool},
    };

    /// The times of the backends, in ms; 0 is none.
    fn pool(weights: &[u16], times: &[u64]) -> Pool {
        let pool = unchecked_pool(weights, BalancingPolicy::LeastTime);
        for (backend, millis) in pool.backends.iter().zip(times).filter(|(_, one)| **one > 0) {
            let took = Duration::from_millis(*millis);
            backend.state.response_time.record(took, clock::now());
        }
        pool
    }

    fn picks(pool: &Pool, count: usize) -> Vec<BackendLease> {
        let mut random = Random::seeded(1);
        let request = PickRequest::first(clock::now());
        (0..count)
            .map(|_| pool.pick(&request, &mut random).unwrap())
            .collect()
    }

    fn loads(pool: &Pool) -> Vec<usize> {
        pool.backends
            .iter()
            .map(|one| one.state.in_flight())
            .collect()
    }

    #[test]
    fn load_is_shared_in_inverse_ratio_to_the_response_times() {
        let pool = pool(&[1, 1, 1], &[10, 20, 40]);
        let held = picks(&pool, 70);
        let loads = loads(&pool);
        for (load, expected) in loads.iter().zip([40, 20, 10]) {
            assert!(load.abs_diff(expected) <= 1, "{loads:?}");
        }
        drop(held);
    }

    #[test]
    fn equal_ones_take_turns_and_weights_count() {
        let pool_of_equals = pool(&[1, 1, 1], &[0, 0, 0]);
        let held = picks(&pool_of_equals, 6);
        assert_eq!(loads(&pool_of_equals), [2, 2, 2]);
        drop(held);
        let order: Vec<_> = (0..4).map(|_| picks(&pool_of_equals, 1)[0].index).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        let weighted = pool(&[3, 1], &[10, 10]);
        let held = picks(&weighted, 8);
        assert_eq!(loads(&weighted), [6, 2]);
        drop(held);
    }

    #[test]
    fn a_new_backend_gets_requests_but_not_all() {
        let pool = pool(&[1, 1, 1], &[10, 10, 0]);
        let held = picks(&pool, 9);
        assert_eq!(loads(&pool), [3, 3, 3]);
        drop(held);
    }

    #[test]
    fn in_a_large_pool_the_slow_ones_get_little() {
        let times: Vec<u64> = (0..100)
            .map(|at| if at % 10 == 0 { 1_000 } else { 10 })
            .collect();
        let pool = pool(&[1; 100], &times);
        let held = picks(&pool, 500);
        let slow: usize = loads(&pool).iter().step_by(10).sum();
        assert!(slow <= 10, "{slow} of 500 on the ten slow ones");
        drop(held);
    }
}
