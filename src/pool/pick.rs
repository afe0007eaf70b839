//! The pick of a backend for one request or session. Hot: no lock, and no allocation in the common
//! case.
//!
//! The policy picks among the eligible backends (`eligible.rs`). This file adds what retries need:
//! backends to avoid, and the next tier. A request that finds all of them full may wait in the
//! queue (`queue.rs`). Read next: `policy/mod.rs`.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use super::{
    Pool,
    backend::Backend,
    eligible::EligibleSet,
    generation::PoolGeneration,
    lease::BackendLease,
    policy::{EligibleBackend, PickContext},
};
use crate::{base::rng::Random, reason::Reason};

/// Failed connections of a client's own backend after which another one is picked.
const MAX_OWN_BUSY: usize = 2;

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
    /// The client's own backend, by its cookie. It is picked before all others, also when it is
    /// draining or has weight 0, unless it was attempted or must not be used. While it is full, the
    /// client waits for it; where nothing waits, it gets another one.
    pub sticky: Option<usize>,
    /// The request can be sent again if its attempt fails: only such a one is the trial of an
    /// ejected backend, unless none comes for a while.
    pub is_repeatable: bool,
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
            sticky: None,
            is_repeatable: true,
            now,
        }
    }
}

impl Pool {
    /// Picks a backend and counts it in flight.
    ///
    /// # Errors
    /// [`Reason::DestinationUnavailable`]; [`Reason::ConnectionLimitReached`] if all are full, or
    /// if others wait already: they are not overtaken. [`Pool::enqueue`] is next then.
    #[inline]
    pub fn pick(
        &self,
        request: &PickRequest<'_>,
        random: &mut Random,
    ) -> Result<BackendLease, Reason> {
        if self.state.waiting.get() > 0 {
            return Err(Reason::ConnectionLimitReached);
        }
        self.generation.pick(request, &self.state.cursor, random)
    }
}

impl PoolGeneration {
    /// Picks for `request`, also while others wait.
    #[inline]
    pub(super) fn pick(
        &self,
        request: &PickRequest<'_>,
        cursor: &AtomicUsize,
        random: &mut Random,
    ) -> Result<BackendLease, Reason> {
        let eligible = self.eligible.load();
        if let Some(own) = self.own_backend(request, &eligible) {
            if own.state.claim(own.limit) {
                return Ok(claimed(own, &eligible));
            }
            if self.rules.queues {
                return Err(Reason::ConnectionLimitReached);
            }
        }
        if eligible.candidates.is_empty() {
            return Err(Reason::DestinationUnavailable);
        }
        if !eligible.trials.is_empty()
            && let Some(lease) = pick_trial(request, &eligible)
        {
            return Ok(lease);
        }
        let picked = if request.attempted.is_empty() && request.busy.is_empty() {
            pick_by_policy(&eligible, request, &[], cursor, random)
        } else {
            self.pick_again(request, &eligible, cursor, random)
        };
        picked.ok_or(Reason::ConnectionLimitReached)
    }

    /// The client's own backend, if it may be used for `request`.
    #[inline]
    pub(super) fn own_backend(
        &self,
        request: &PickRequest<'_>,
        eligible: &EligibleSet,
    ) -> Option<&Arc<Backend>> {
        let own = request.sticky?;
        // A connection that was closed while idle says nothing about the backend: once more.
        let was_busy = request.busy.iter().filter(|index| **index == own).count();
        if request.attempted.contains(&own) || was_busy >= MAX_OWN_BUSY {
            return None;
        }
        let backend = self.backends().get(own)?;
        self.serves_clients_of(backend, eligible).then_some(backend)
    }

    /// True if `backend` serves the clients that it has: it is a candidate, or only drains.
    pub(super) fn serves_clients_of(&self, backend: &Backend, eligible: &EligibleSet) -> bool {
        self.rules.keeps_clients(backend.state.state())
            || eligible.candidate(backend.index).is_some()
    }

    /// Picks of the next tier for a request that has attempted all backends of this one: it takes
    /// nothing from those who wait.
    pub(super) fn pick_beyond(
        &self,
        request: &PickRequest<'_>,
        cursor: &AtomicUsize,
        random: &mut Random,
    ) -> Option<BackendLease> {
        if request.attempted.is_empty() {
            return None;
        }
        self.pick_of_next_tier(request, &self.eligible.load(), cursor, random)
    }

    /// Picks after the first attempt: avoids backends, and may move on to the next tier.
    #[cold]
    fn pick_again(
        &self,
        request: &PickRequest<'_>,
        eligible: &EligibleSet,
        cursor: &AtomicUsize,
        random: &mut Random,
    ) -> Option<BackendLease> {
        let mut pick =
            |avoided: &[usize]| pick_by_policy(eligible, request, avoided, cursor, random);
        if !request.busy.is_empty()
            && let Some(lease) = pick(&[request.busy, request.attempted].concat())
        {
            return Some(lease);
        }
        if let Some(lease) = pick(request.attempted) {
            return Some(lease);
        }
        if !request.attempted.is_empty()
            && let Some(lease) = self.pick_of_next_tier(request, eligible, cursor, random)
        {
            return Some(lease);
        }
        // A second attempt on the same backend is better than none.
        pick_by_policy(eligible, request, &[], cursor, random)
    }

    /// Picks a backend of the tier behind `eligible`. `None` while one of `eligible` was not
    /// attempted: it is full, and a full tier does not spill over.
    ///
    /// It builds the next tier's set for this one pick, which only retries need.
    fn pick_of_next_tier(
        &self,
        request: &PickRequest<'_>,
        eligible: &EligibleSet,
        cursor: &AtomicUsize,
        random: &mut Random,
    ) -> Option<BackendLease> {
        let is_attempted = |backend: &Backend| request.attempted.contains(&backend.index);
        if !eligible.candidates.iter().all(|one| is_attempted(one)) {
            return None;
        }
        let others: Vec<_> = self
            .backends()
            .iter()
            .filter(|backend| !is_attempted(backend))
            .map(Arc::clone)
            .collect();
        let next = EligibleSet::among(&others, &self.members, self.rules, request.now);
        if !next.is_tier_behind(eligible) {
            return None;
        }
        pick_by_policy(&next, request, &[], cursor, random)
    }
}

/// Picks a backend whose trial is due, for the first attempt of a request.
#[cold]
fn pick_trial(request: &PickRequest<'_>, eligible: &EligibleSet) -> Option<BackendLease> {
    if !request.attempted.is_empty() || !request.busy.is_empty() {
        return None;
    }
    eligible.trials.iter().find_map(|trial| {
        let backend = &trial.backend;
        if !request.is_repeatable && request.now < trial.any_from {
            return None;
        }
        let ticket = backend.state.trial.claim()?;
        if backend.state.claim(backend.limit) {
            return Some(BackendLease::on_trial(Arc::clone(backend), ticket));
        }
        backend.state.trial.give_back(ticket);
        None
    })
}

/// Picks by the policy among the candidates that are not at one of `avoided`. `None`: all are full.
#[inline]
fn pick_by_policy(
    eligible: &EligibleSet,
    request: &PickRequest<'_>,
    avoided: &[usize],
    cursor: &AtomicUsize,
    random: &mut Random,
) -> Option<BackendLease> {
    let position = eligible.picker.pick(&mut PickContext {
        candidates: &eligible.candidates,
        attempted: avoided,
        cursor,
        key: request.key,
        now: request.now,
        random,
    })?;
    let candidate: Option<&EligibleBackend> = eligible.candidates.get(position);
    debug_assert!(candidate.is_some(), "no candidate {position}");
    candidate.map(|one| claimed(&one.backend, eligible))
}

/// A lease on a backend on which one in flight is claimed.
#[inline]
pub(super) fn claimed(backend: &Arc<Backend>, eligible: &EligibleSet) -> BackendLease {
    let lease = BackendLease::claimed(Arc::clone(backend));
    if eligible.is_of_ejected() {
        return lease.join_trial();
    }
    lease
}
