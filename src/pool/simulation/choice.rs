//! The backends that a pick may give: the rule of `eligible.rs`, `pick.rs` and `trial.rs`, written
//! as one search over all backends.

use std::sync::Arc;

use crate::{
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
    let all = || pool.backends.iter();
    let Some(best) = all().filter_map(|one| rank(pool, one)).min() else {
        return AllowedPicks::Backends(Vec::new(), Reason::DestinationUnavailable);
    };
    let has_capacity = |one: &Backend| one.state.in_flight() < one.limit;
    if best.0 < EJECTED && request.attempted.is_empty() && request.busy.is_empty() {
        let is_due = |one: &&Arc<Backend>| {
            one.weight() > 0
                && one.state.view().trial == TrialPhase::Due
                && (best.0 == 1 || one.config.backup <= best.1)
                && (request.is_repeatable || is_trial_old(one.index))
                && has_capacity(one)
        };
        let due: Vec<_> = all().filter(is_due).map(|one| one.index).collect();
        if !due.is_empty() {
            return AllowedPicks::Trial(due);
        }
    }
    let of_rank = |wanted: ServiceRank, avoided: &[&[usize]]| -> Vec<usize> {
        let may = |one: &&Arc<Backend>| {
            rank(pool, one) == Some(wanted)
                && has_capacity(one)
                && !avoided.iter().any(|list| list.contains(&one.index))
        };
        all().filter(may).map(|one| one.index).collect()
    };
    let is_attempted = |one: &Arc<Backend>| request.attempted.contains(&one.index);
    let mut members = all().filter(|one| rank(pool, one) == Some(best));
    let are_all_attempted = members.all(is_attempted);
    let next = all()
        .filter(|one| !is_attempted(one))
        .filter_map(|one| rank(pool, one))
        .filter(|rank| rank.0 < EJECTED)
        .min();
    let next = next.filter(|_| are_all_attempted && !request.attempted.is_empty());
    let choices = [
        of_rank(best, &[request.attempted, request.busy]),
        of_rank(best, &[request.attempted]),
        next.map_or_else(Vec::new, |next| of_rank(next, &[request.attempted])),
        of_rank(best, &[]),
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
            (Self::Backends(all, _), Ok(index)) => all.contains(&index),
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
