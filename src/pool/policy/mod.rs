//! How a pool picks one of its eligible backends: one file per policy, and this table.
//!
//! A picker is prepared when the set of eligible backends changes and asked once per request by every worker at once:
//! `pick` takes no lock and allocates nothing. The picker claims the backend it names (counts it in flight), because
//! only so can a load be compared and taken in one step. A policy knows nothing of health.

mod least_connections;
mod random_two;
mod round_robin;

use std::sync::{Arc, atomic::AtomicUsize};

use super::backend::Backend;
use crate::{base::rng::Random, config::model::BalancingPolicy};

/// An eligible backend.
pub(crate) type EligibleBackend = Arc<Backend>;

/// One request's view of the pool.
pub(crate) struct PickContext<'a> {
    /// Eligible backends, never empty.
    pub(crate) candidates: &'a [EligibleBackend],
    /// `Backend::index` of those that may not be picked.
    pub(crate) tried: &'a [usize],
    /// Counts the picks of the pool; survives refreshes and reloads.
    pub(crate) cursor: &'a AtomicUsize,
    pub(crate) random: &'a mut Random,
}

impl<'a> PickContext<'a> {
    /// The candidate at `position`, unless it was tried already.
    #[inline]
    fn untried(&self, position: usize) -> Option<&'a EligibleBackend> {
        self.candidates
            .get(position)
            .filter(|candidate| self.tried.is_empty() || !self.tried.contains(&candidate.index))
    }

    /// Takes one in flight of the candidate at `position`; false if it was tried or is full.
    #[inline]
    fn claim(&self, position: usize) -> bool {
        self.untried(position)
            .is_some_and(|candidate| candidate.state.claim(candidate.limit))
    }

    /// Takes the first that can be taken from `start` on, all round.
    fn claim_from(&self, start: usize) -> Option<usize> {
        let count = self.candidates.len();
        (start..count)
            .chain(0..start.min(count))
            .find(|position| self.claim(*position))
    }
}

/// A prepared policy.
pub(crate) trait PolicyPicker: Send + Sync {
    /// The position of a candidate, claimed; `None` if every untried one is full.
    fn pick(&self, turn: &mut PickContext<'_>) -> Option<usize>;
}

/// Prepares `policy` for these candidates.
pub(crate) fn prepare(
    policy: BalancingPolicy,
    candidates: &[EligibleBackend],
) -> Box<dyn PolicyPicker> {
    match policy {
        BalancingPolicy::RoundRobin => Box::new(round_robin::RoundRobin::new(candidates)),
        BalancingPolicy::LeastConnections => {
            Box::new(least_connections::LeastConnections::new(candidates))
        }
        BalancingPolicy::RandomTwo => Box::new(random_two::RandomTwo::new(candidates)),
    }
}

/// A backend's requests in flight and its weight.
type BackendLoad = (usize, u16);

/// True if a backend would be less loaded for its weight than the other, with one more each.
/// Compared as fractions by cross-multiplication: no rounding.
#[inline]
fn is_less_loaded((load, weight): BackendLoad, (other_load, other_weight): BackendLoad) -> bool {
    (load as u128 + 1) * u128::from(other_weight) < (other_load as u128 + 1) * u128::from(weight)
}

/// True if a backend has its share already: the other, with one more, would be no more loaded for its weight than this one
/// is now. Two that both have less than their share differ by less than one request: which of them is next is for their
/// weights to say, or the lighter one of two idle backends would never be.
#[inline]
fn has_full_share((load, weight): BackendLoad, (other_load, other_weight): BackendLoad) -> bool {
    (other_load as u128 + 1) * u128::from(weight) <= load as u128 * u128::from(other_weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lighter_compares_the_load_after_the_pick_by_weight() {
        for (one, other, expected) in [
            ((0, 1), (1, 1), true),
            ((1, 1), (0, 1), false),
            ((1, 1), (1, 1), false),
            ((1, 2), (0, 1), false),
            ((1, 3), (0, 1), true),
            ((2, 3), (1, 2), false),
            ((9, 10), (9, 9), true),
            ((usize::MAX - 1, 256), (usize::MAX - 1, 255), true),
        ] {
            assert_eq!(is_less_loaded(one, other), expected, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_backend_has_its_share_when_another_is_no_more_loaded_with_one_more() {
        for (one, other, expected) in [
            ((0, 1), (0, 256), false),
            ((0, 1), (255, 256), false),
            ((1, 1), (254, 256), true),
            ((1, 1), (0, 1), true),
            ((1, 1), (1, 1), false),
            ((1, 255), (1, 256), false),
            ((2, 256), (0, 255), true),
            ((2, 2), (1, 1), false),
            ((usize::MAX - 1, 256), (usize::MAX - 1, 256), false),
        ] {
            assert_eq!(has_full_share(one, other), expected, "{one:?} {other:?}");
        }
    }
}
