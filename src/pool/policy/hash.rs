//! Hash: requests with the same key go to the same backend, by a table over all members of the
//! tier.
//!
//! The table depends on the members alone, not on their health: while a backend is out, its keys go
//! to the entries that further hashes of the key lead to, and all other keys stay where they are.
//! With `hash_balance`, a backend with more than its share in flight is treated like one that is
//! full. A request without a key takes turns.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    context::{EligibleBackend, PickContext, PolicyPicker},
    maglev::MaglevTable,
};

/// Further entries that are looked at before the scan over all candidates. With half of the members
/// out, one key in 65,536 needs more.
const MAX_PROBES: u64 = 16;
/// Distance of the hashes of one key: 2^64 divided by the golden ratio (Fibonacci hashing).
const PROBE_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) struct KeyHash {
    table: Arc<MaglevTable>,
    /// Positions of candidates by `Backend::index`; `u32::MAX` is none.
    positions: Box<[u32]>,
    /// `hash_balance` in percent.
    balance: Option<u32>,
    total_weight: u64,
    /// Some candidates have less than their whole weight, in slow start.
    is_ramping: bool,
}

impl KeyHash {
    pub(super) fn new(
        table: Arc<MaglevTable>,
        candidates: &[EligibleBackend],
        balance: Option<u32>,
    ) -> Self {
        let indexes = candidates.iter().map(|candidate| candidate.index);
        let mut positions = vec![u32::MAX; indexes.max().map_or(0, |last| last + 1)];
        for (position, candidate) in candidates.iter().enumerate() {
            if let Some(entry) = positions.get_mut(candidate.index) {
                *entry = position as u32;
            }
        }
        Self {
            table,
            positions: positions.into(),
            balance,
            total_weight: candidates.iter().map(|one| u64::from(one.weight)).sum(),
            is_ramping: candidates.iter().any(|one| one.percent < 100),
        }
    }

    /// The position of the candidate that `key` leads to, if it is one.
    fn position(&self, key: u64) -> Option<usize> {
        let index = self.table.member(key)?;
        let position = *self.positions.get(index)?;
        (position != u32::MAX).then_some(position as usize)
    }

    /// Exchanges and sessions in flight over all candidates, if loads are bounded.
    fn total_load(&self, context: &PickContext<'_>) -> Option<u64> {
        self.balance?;
        let loads = context
            .candidates
            .iter()
            .map(|one| one.state.in_flight() as u64);
        Some(loads.sum())
    }

    /// True if the candidate may take one more by `hash_balance`: it then has at most that
    /// percentage of its share of all that is in flight.
    fn is_within_balance(&self, candidate: &EligibleBackend, total_load: Option<u64>) -> bool {
        let (Some(balance), Some(total_load)) = (self.balance, total_load) else {
            return true;
        };
        let share = u128::from(total_load + 1) * u128::from(candidate.weight) * u128::from(balance);
        let bound = share.div_ceil(u128::from(self.total_weight.max(1)) * 100);
        (candidate.state.in_flight() as u128) < bound
    }

    /// Claims the candidate at `position` if it may take the key.
    fn claim(
        &self,
        context: &mut PickContext<'_>,
        position: usize,
        total_load: Option<u64>,
    ) -> bool {
        let Some(candidate) = context.candidate(position) else {
            return false;
        };
        // The table has the whole weights: in slow start a backend passes some requests on.
        let passes_on =
            self.is_ramping && context.random.below(100) >= usize::from(candidate.percent);
        !passes_on && self.is_within_balance(candidate, total_load) && context.claim(position)
    }
}

impl PolicyPicker for KeyHash {
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize> {
        let count = context.candidates.len().max(1);
        let Some(key) = context.key else {
            let turn = context.cursor.fetch_add(1, Relaxed);
            return context.claim_from(turn % count);
        };
        let total_load = self.total_load(context);
        for probe in 0..=MAX_PROBES {
            let hash = key.wrapping_add(probe.wrapping_mul(PROBE_STEP));
            if let Some(position) = self.position(hash)
                && self.claim(context, position, total_load)
            {
                return Some(position);
            }
        }
        let start = (key % count as u64) as usize;
        let mut positions = (start..count).chain(0..start);
        positions
            .find(|position| self.claim(context, *position, total_load))
            // All that have capacity have their share: any of them is better than none.
            .or_else(|| context.claim_from(start))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::{
        base::{clock, hasher::stable_hash, rng::Random},
        config::model::{BalancingPolicy, PoolConfig},
        pool::{BackendLease, PickRequest, Pool, fixture::unchecked},
    };

    fn pick(pool: &Pool, key: Option<u64>, attempted: &[usize]) -> BackendLease {
        let request = PickRequest {
            attempted,
            key,
            ..PickRequest::first(clock::now())
        };
        pool.pick(&request, &mut Random::seeded(1)).unwrap()
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..2_000_u64).map(|number| stable_hash(0, &number.to_le_bytes()))
    }

    fn map(pool: &Pool) -> HashMap<u64, usize> {
        keys()
            .map(|key| (key, pick(pool, Some(key), &[]).index))
            .collect()
    }

    #[test]
    fn a_key_stays_on_its_backend_and_keys_are_shared_by_weight() {
        let pool = Pool::new(
            &unchecked(&[1, 2, 1], BalancingPolicy::Hash),
            None,
            clock::now(),
        );
        let first = map(&pool);
        assert_eq!(map(&pool), first);
        let on_heavy = first.values().filter(|index| **index == 1).count();
        assert!((900..1_100).contains(&on_heavy), "{on_heavy} of 2000");
    }

    #[test]
    fn without_a_key_requests_take_turns() {
        let pool = Pool::new(
            &unchecked(&[1, 1, 1], BalancingPolicy::Hash),
            None,
            clock::now(),
        );
        let order: Vec<usize> = (0..4).map(|_| pick(&pool, None, &[]).index).collect();
        assert_eq!(order, [0, 1, 2, 0]);
    }

    #[test]
    fn while_a_backend_is_out_only_its_keys_move_and_they_spread() {
        let pool = Pool::new(
            &unchecked(&[1; 5], BalancingPolicy::Hash),
            None,
            clock::now(),
        );
        let before = map(&pool);
        let mut counts = [0; 5];
        for (key, index) in &before {
            let now = pick(&pool, Some(*key), &[2]).index;
            if *index == 2 {
                counts[now] += 1;
                assert_eq!(
                    pick(&pool, Some(*key), &[2]).index,
                    now,
                    "always the same one"
                );
            } else {
                assert_eq!(now, *index);
            }
        }
        assert_eq!(counts[2], 0);
        assert!([0, 1, 3, 4].iter().all(|at| counts[*at] > 50), "{counts:?}");
    }

    #[test]
    fn a_popular_key_is_spread_over_others_when_its_backend_has_its_share() {
        let config = PoolConfig {
            hash_balance: Some(150),
            ..unchecked(&[1; 4], BalancingPolicy::Hash)
        };
        let pool = Pool::new(&config, None, clock::now());
        let leases: Vec<_> = (0..40).map(|_| pick(&pool, Some(7), &[])).collect();
        let mut loads: Vec<_> = pool
            .backends
            .iter()
            .map(|one| one.state.in_flight())
            .collect();
        loads.sort_unstable();
        assert_eq!(loads[3], 15, "150 % of a quarter of 40: {loads:?}");
        assert_eq!(loads.iter().sum::<usize>(), 40);
        drop(leases);
        let home = pick(&pool, Some(7), &[]).index;
        assert_eq!(pick(&pool, Some(7), &[]).index, home);
    }
}
