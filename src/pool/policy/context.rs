//! The interface of a policy: what a picker gets for one pick, and how loads compare.

use std::{
    ops::Deref,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use crate::{base::rng::Random, pool::backend::Backend};

/// An eligible backend with the weight that it has now.
#[derive(Debug, Clone)]
pub(crate) struct EligibleBackend {
    pub(crate) backend: Arc<Backend>,
    /// Above 0. Only the ratios within one eligible set mean something.
    pub(crate) weight: u32,
    /// Share of its whole weight that this is: less than 100 in slow start.
    pub(crate) percent: u8,
}

impl Deref for EligibleBackend {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

/// Requests in flight on a backend, and its weight.
pub(super) type BackendLoad = (usize, u32);

/// Inputs of one pick.
pub(crate) struct PickContext<'a> {
    /// Eligible backends, never empty.
    pub(crate) candidates: &'a [EligibleBackend],
    /// `Backend::index` of those that may not be picked.
    pub(crate) attempted: &'a [usize],
    /// Number of picks of the pool; survives refreshes and reloads.
    pub(crate) cursor: &'a AtomicUsize,
    /// Hash of what the request is balanced by, for policies that use one.
    pub(crate) key: Option<u64>,
    /// Time of the pick.
    pub(crate) now: Instant,
    pub(crate) random: &'a mut Random,
}

/// A prepared policy.
pub(crate) trait PolicyPicker: Send + Sync {
    /// Returns the position of a candidate and claims it; `None` if all others are full.
    fn pick(&self, context: &mut PickContext<'_>) -> Option<usize>;
}

impl<'a> PickContext<'a> {
    /// The candidate at `position`, unless it was attempted already.
    #[inline]
    pub(super) fn candidate(&self, position: usize) -> Option<&'a EligibleBackend> {
        // The first attempt of a request, nearly every pick, skips the search.
        self.candidates
            .get(position)
            .filter(|one| self.attempted.is_empty() || !self.attempted.contains(&one.index))
    }

    /// Counts one more in flight on the candidate at `position`; false if it was attempted or is
    /// full.
    #[inline]
    pub(super) fn claim(&self, position: usize) -> bool {
        self.candidate(position)
            .is_some_and(|candidate| candidate.state.claim(candidate.limit))
    }

    /// Claims the first candidate from `start` on that has capacity, wrapping around.
    pub(super) fn claim_from(&self, start: usize) -> Option<usize> {
        let count = self.candidates.len();
        (start..count)
            .chain(0..start.min(count))
            .find(|position| self.claim(*position))
    }
}

/// True if a backend with one more would be less loaded for its weight than the other with one
/// more. Compared as fractions by cross-multiplication: no rounding, no division.
#[inline]
pub(super) fn is_less_loaded(
    (load, weight): BackendLoad,
    (other_load, other_weight): BackendLoad,
) -> bool {
    (load as u128 + 1) * u128::from(other_weight) < (other_load as u128 + 1) * u128::from(weight)
}

/// True if a backend has its full share: the other with one more would be no more loaded for its
/// weight than this one is now.
///
/// Two backends below their share differ by less than one request. Their weights must decide
/// between them: comparing loads alone would never pick the one of lower weight if both
/// are idle.
#[inline]
pub(super) fn has_full_share(
    (load, weight): BackendLoad,
    (other_load, other_weight): BackendLoad,
) -> bool {
    (other_load as u128 + 1) * u128::from(weight) <= load as u128 * u128::from(other_weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_compared_by_weight_after_the_pick() {
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
