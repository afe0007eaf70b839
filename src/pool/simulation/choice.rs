//! The backends that a pick may give: the rule of `eligible.rs`, `pick.rs` and `trial.rs`, written
//! as one search over all backends.

use std::sync::Arc;

use crate::{
    base::address::BackendAddress,
    config::model::WhenAllDown,
    pool::{Backend, BackendLease, HealthState, PickRequest, Pool, TrialPhase},
    reason::Reason,
};

/// Rank of a backend: the lowest one serves. The first number is its kind, the second its tier.
type ServiceRank = (u8, u8);

/// Kind of ejected backends.
const EJECTED: u8 = 2;

/// The rank of a backend, if it may serve at all.
fn rank(pool: &Pool, backend: &Backend) -> Option<ServiceRank> {
    if backend.weight() == 0 {
        return None;
    }
    let (tier, has_checks) = (backend.config.backup, pool.config.health_check.is_some());
    let fails_open = pool.config.when_all_down == WhenAllDown::FailOpen;
    match backend.state.state() {
        HealthState::Up => Some((0, tier)),
        HealthState::Checking | HealthState::Down if !has_checks => Some((0, tier)),
        HealthState::Checking => Some((1, tier)),
        HealthState::Ejected | HealthState::Down if fails_open => Some((3, 0)),
        HealthState::Ejected => Some((EJECTED, tier)),
        _ => None,
    }
}

/// The lowest rank of the pool.
fn best_rank(pool: &Pool) -> Option<ServiceRank> {
    pool.backends.iter().filter_map(|one| rank(pool, one)).min()
}

/// True if no backend may serve a request without a backend of its own.
pub(super) fn is_unavailable(pool: &Pool) -> bool {
    best_rank(pool).is_none()
}

/// True if the backend is one of those that serve all requests.
pub(super) fn is_candidate(pool: &Pool, backend: &Backend) -> bool {
    let rank = rank(pool, backend);
    rank.is_some() && rank == best_rank(pool)
}

/// The backend at `address`, if it serves the clients that it has.
pub(super) fn own_at<'a>(pool: &'a Pool, address: &BackendAddress) -> Option<&'a Arc<Backend>> {
    use HealthState::{Checking, Down, Draining, Up};
    let mut all = pool.backends.iter();
    let own = all.find(|one| one.state.address == *address)?;
    let state = own.state.state();
    let keeps = matches!(state, Up | Checking | Draining)
        || state == Down && pool.config.health_check.is_none();
    (keeps || is_candidate(pool, own)).then_some(own)
}

/// The client's own backend, if the request may use it.
pub(super) fn own_of<'a>(pool: &'a Pool, request: &PickRequest<'_>) -> Option<&'a Arc<Backend>> {
    let own = request.sticky?;
    let was_busy = request.busy.iter().filter(|one| **one == own).count() > 1;
    if was_busy || request.attempted.contains(&own) {
        return None;
    }
    own_at(pool, &pool.backends[own].state.address)
}

/// The rank of the tier that a retry may go on to: it has attempted all of those before it.
fn next_rank(pool: &Pool, attempted: &[usize]) -> Option<ServiceRank> {
    let is_attempted = |one: &&Arc<Backend>| attempted.contains(&one.index);
    let mut candidates = pool.backends.iter().filter(|one| is_candidate(pool, one));
    if attempted.is_empty() || !candidates.all(|one| is_attempted(&one)) {
        return None;
    }
    let others = pool.backends.iter().filter(|one| !is_attempted(one));
    let next = others.filter_map(|one| rank(pool, one)).min();
    next.filter(|rank| rank.0 < EJECTED)
}

/// True if the backend may serve a request that has attempted these.
pub(super) fn may_serve(pool: &Pool, backend: &Backend, attempted: &[usize]) -> bool {
    let rank = rank(pool, backend);
    let is_next = || rank == next_rank(pool, attempted) && !attempted.contains(&backend.index);
    rank.is_some() && (rank == best_rank(pool) || is_next())
}

/// Backends of the next tier with a free slot.
pub(super) fn beyond(pool: &Pool, attempted: &[usize]) -> Vec<usize> {
    next_rank(pool, attempted).map_or_else(Vec::new, |next| of_rank(pool, next, &[attempted]))
}

/// Backends of a rank with a free slot, without some.
fn of_rank(pool: &Pool, wanted: ServiceRank, avoided: &[&[usize]]) -> Vec<usize> {
    let may = |one: &&Arc<Backend>| {
        rank(pool, one) == Some(wanted)
            && has_slot(one)
            && !avoided.iter().any(|list| list.contains(&one.index))
    };
    let all = pool.backends.iter().filter(may);
    all.map(|one| one.index).collect()
}

/// True if the backend is below its limit.
pub(super) fn has_slot(backend: &Backend) -> bool {
    backend.state.in_flight() < backend.limit
}

/// The backends that a pick may give, and if it must be a trial.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AllowedPicks {
    /// One of these, or this reason if there is none.
    Backends(Vec<usize>, Reason),
    /// The trial of one of these.
    Trial(Vec<usize>),
}

/// Finds them. `is_trial_old(index)` is true if any request may be the trial.
pub(super) fn allowed_picks(
    pool: &Pool,
    request: &PickRequest<'_>,
    is_trial_old: impl Fn(usize) -> bool,
) -> AllowedPicks {
    if let Some(own) = own_of(pool, request) {
        if has_slot(own) {
            return AllowedPicks::Backends(vec![own.index], Reason::ConnectionLimitReached);
        }
        if pool.config.queue > 0 {
            return AllowedPicks::Backends(Vec::new(), Reason::ConnectionLimitReached);
        }
    }
    let Some(best) = best_rank(pool) else {
        return AllowedPicks::Backends(Vec::new(), Reason::DestinationUnavailable);
    };
    if best.0 < EJECTED && request.attempted.is_empty() && request.busy.is_empty() {
        let is_due = |one: &&Arc<Backend>| {
            one.weight() > 0
                && one.state.view().trial == TrialPhase::Due
                && (best.0 == 1 || one.config.backup <= best.1)
                && (request.is_repeatable || is_trial_old(one.index))
                && has_slot(one)
        };
        let due = pool.backends.iter().filter(is_due);
        let due: Vec<_> = due.map(|one| one.index).collect();
        if !due.is_empty() {
            return AllowedPicks::Trial(due);
        }
    }
    let choices = [
        of_rank(pool, best, &[request.attempted, request.busy]),
        of_rank(pool, best, &[request.attempted]),
        beyond(pool, request.attempted),
        of_rank(pool, best, &[]),
    ];
    let first = choices.into_iter().find(|choice| !choice.is_empty());
    AllowedPicks::Backends(first.unwrap_or_default(), Reason::ConnectionLimitReached)
}

impl AllowedPicks {
    /// Compares with what a pick has given.
    pub(super) fn check(&self, picked: &Result<BackendLease, Reason>) -> Result<(), String> {
        let index = picked
            .as_ref()
            .map(|lease| lease.index)
            .map_err(|reason| *reason);
        let is_right = match (self, index) {
            (Self::Trial(all), Ok(index)) => {
                let phase = picked.as_ref().map(|lease| lease.state.view().trial);
                all.contains(&index) && phase == Ok(TrialPhase::Running)
            }
            (Self::Backends(all, _), Ok(index)) => {
                let is_trial = picked.as_ref().is_ok_and(BackendLease::is_trial);
                all.contains(&index) && !is_trial
            }
            (Self::Backends(all, reason), Err(got)) => all.is_empty() && *reason == got,
            (Self::Trial(_), Err(_)) => false,
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("the pick gave {index:?}, allowed are {self:?}"))
        }
    }
}
