//! The pick of a backend for one request or session. Hot: no lock, and no allocation in the common
//! case.
//!
//! The policy picks among the eligible backends (`eligible.rs`). This file adds what retries need:
//! backends to avoid, and the next tier. Read next: `policy/mod.rs`.

use std::{sync::Arc, time::Instant};

use super::{
    Pool,
    backend::Backend,
    eligible::EligibleSet,
    lease::BackendLease,
    policy::{EligibleBackend, PickContext},
};
use crate::{base::rng::Random, reason::Reason};

/// One request for a backend. The positions are `Backend::index`es of the pool that is asked.
#[derive(Debug, Clone, Copy)]
pub struct PickRequest<'a> {
    /// Backends on which an attempt failed. None of them is picked while another eligible backend
    /// has capacity. When all of a tier were attempted, the next tier is asked; if there is none,
    /// they may be picked again.
    pub attempted: &'a [usize],
    /// Healthy backends that could not take this request. Another one of their tier is picked, or
    /// one of them again. They never make the pick move on to the next tier, because a full tier
    /// does not spill over.
    pub busy: &'a [usize],
    /// Hash of the part of the request that `hash` balances by. `None`: the request has no such
    /// part, or the policy needs none.
    pub key: Option<u64>,
    /// Time of the pick.
    pub now: Instant,
}

impl PickRequest<'_> {
    /// The first attempt of a request.
    pub const fn first(now: Instant) -> Self {
        Self {
            attempted: &[],
            busy: &[],
            key: None,
            now,
        }
    }
}

impl Pool {
    /// Picks a backend and counts it in flight.
    ///
    /// # Errors
    /// [`Reason::DestinationUnavailable`], [`Reason::ConnectionLimitReached`].
    #[inline]
    pub fn pick(
        &self,
        request: &PickRequest<'_>,
        random: &mut Random,
    ) -> Result<BackendLease, Reason> {
        let eligible = self.generation.eligible.load();
        if eligible.candidates.is_empty() {
            return Err(Reason::DestinationUnavailable);
        }
        let mut context = PickContext {
            candidates: &eligible.candidates,
            attempted: request.attempted,
            cursor: &self.state.cursor,
            key: request.key,
            now: request.now,
            random,
        };
        let picked = if request.attempted.is_empty() && request.busy.is_empty() {
            eligible.picker.pick(&mut context)
        } else {
            return self.pick_again(request, &eligible, &mut context);
        };
        picked
            .and_then(|position| candidate_at(&eligible, position))
            .ok_or(Reason::ConnectionLimitReached)
    }

    /// Picks after the first attempt: avoids backends, and may move on to the next tier.
    #[cold]
    fn pick_again(
        &self,
        request: &PickRequest<'_>,
        eligible: &EligibleSet,
        context: &mut PickContext<'_>,
    ) -> Result<BackendLease, Reason> {
        let mut pick = |avoided: &[usize]| {
            let mut context = PickContext {
                candidates: &eligible.candidates,
                attempted: avoided,
                cursor: context.cursor,
                key: context.key,
                now: context.now,
                random: context.random,
            };
            let picked = eligible.picker.pick(&mut context);
            picked.and_then(|position| candidate_at(eligible, position))
        };
        if !request.busy.is_empty()
            && let Some(lease) = pick(&[request.busy, request.attempted].concat())
        {
            return Ok(lease);
        }
        if let Some(lease) = pick(request.attempted) {
            return Ok(lease);
        }
        if !request.attempted.is_empty()
            && let Some(lease) = self.pick_of_next_tier(eligible, context)
        {
            return Ok(lease);
        }
        // A second attempt on the same backend is better than none.
        context.attempted = &[];
        let picked = eligible.picker.pick(context);
        picked
            .and_then(|position| candidate_at(eligible, position))
            .ok_or(Reason::ConnectionLimitReached)
    }

    /// Picks a backend of the tier behind `eligible`. `None` while one of `eligible` was not
    /// attempted: it is full, and a full tier does not spill over.
    ///
    /// It builds the next tier's set for this one pick, which only retries need.
    fn pick_of_next_tier(
        &self,
        eligible: &EligibleSet,
        context: &mut PickContext<'_>,
    ) -> Option<BackendLease> {
        let is_attempted = |backend: &Backend| context.attempted.contains(&backend.index);
        if !eligible.candidates.iter().all(|one| is_attempted(one)) {
            return None;
        }
        let generation = &self.generation;
        let others: Vec<_> = generation
            .backends()
            .iter()
            .filter(|backend| !is_attempted(backend))
            .map(Arc::clone)
            .collect();
        let members = &generation.members;
        let next = EligibleSet::among(&others, members, generation.rules, context.now);
        if !next.is_tier_behind(eligible) {
            return None;
        }
        let picked = next.picker.pick(&mut PickContext {
            candidates: &next.candidates,
            attempted: &[],
            cursor: context.cursor,
            key: context.key,
            now: context.now,
            random: context.random,
        });
        picked.and_then(|position| candidate_at(&next, position))
    }
}

/// A lease on the candidate at `position`, on which the picker has claimed one in flight.
#[inline]
fn candidate_at(eligible: &EligibleSet, position: usize) -> Option<BackendLease> {
    let candidate: Option<&EligibleBackend> = eligible.candidates.get(position);
    debug_assert!(candidate.is_some(), "no candidate {position}");
    candidate.map(|one| BackendLease::claimed(Arc::clone(&one.backend)))
}
