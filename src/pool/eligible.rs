//! Who may be picked: the eligible backends of one generation, with the prepared policy over them.
//!
//! Only backends with a weight above 0 are considered. The first of these groups that has a member is picked from: those that
//! are up, by their tier (`backup`), then those not checked yet, by their tier; and with `when_all_down: fail_open`
//! everyone who is not draining, in maintenance or removed. So a checked backup is preferred to a primary nobody has seen
//! good yet.

use std::{fmt, sync::Arc};

use super::{
    backend::Backend,
    health::{HealthState, StateChange},
    policy::{self, EligibleBackend, PolicyPicker},
};
use crate::config::model::{BalancingPolicy, WhenAllDown};

/// What decides about eligibility besides the states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EligibilityRules {
    pub(crate) policy: BalancingPolicy,
    /// The pool has a health check. Without one no verdict counts: one left over from before is ignored.
    pub(crate) checks: bool,
    pub(crate) when_all_down: WhenAllDown,
    /// The pool has left the configuration: its removed backends are all that exchanges of before can use.
    pub(crate) is_orphaned: bool,
}

/// The eligible backends and the picker over them; replaced as a whole.
pub(crate) struct EligibleSet {
    pub(crate) candidates: Box<[EligibleBackend]>,
    pub(crate) picker: Box<dyn PolicyPicker>,
    /// The group the candidates come from.
    group: u8,
}

impl fmt::Debug for EligibleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.candidates.iter().map(|one| &one.config.name);
        f.debug_list().entries(names).finish()
    }
}

impl EligibleSet {
    pub(crate) fn new(backends: &[Arc<Backend>], rules: EligibilityRules) -> Self {
        let ranks: Vec<u8> = backends
            .iter()
            .map(|backend| rank(backend, backend.state.state(), rules))
            .collect();
        let best = ranks.iter().copied().min().unwrap_or(NEVER);
        let candidates: Box<[EligibleBackend]> = backends
            .iter()
            .zip(&ranks)
            .filter(|(_, rank)| **rank != NEVER && (**rank == best))
            .map(|(backend, _)| Arc::clone(backend))
            .collect();
        let picker = policy::prepare(rules.policy, &candidates);
        Self {
            candidates,
            picker,
            group: best,
        }
    }

    /// True if retries may go on here when all of `first` were tried: with backends that may take traffic anyway, not
    /// with those of `fail_open`.
    pub(crate) fn is_tier_behind(&self, first: &Self) -> bool {
        self.group > first.group && self.group < FAIL_OPEN
    }

    /// True if a backend's change of state makes it one more of the candidates.
    pub(crate) fn is_joined_by(
        &self,
        backend: &Backend,
        change: &StateChange,
        rules: EligibilityRules,
    ) -> bool {
        rank(backend, change.from, rules) > self.group
            && rank(backend, change.to, rules) == self.group
    }

    /// True if a backend's change of state makes no difference: it was and is in a group that is not picked from.
    pub(crate) fn is_indifferent(
        &self,
        backend: &Backend,
        change: &StateChange,
        rules: EligibilityRules,
    ) -> bool {
        rank(backend, change.from, rules) > self.group
            && rank(backend, change.to, rules) > self.group
    }
}

/// The first group of backends not checked yet: higher than any tier.
const UNCHECKED: u8 = 10;
const FAIL_OPEN: u8 = 20;
const NEVER: u8 = 21;

/// The group of a backend: the lowest group that has a member is picked from.
fn rank(backend: &Backend, state: HealthState, rules: EligibilityRules) -> u8 {
    if backend.config.weight == 0 {
        return NEVER;
    }
    let tier = backend.config.backup.min(UNCHECKED - 1);
    match state {
        HealthState::Up => tier,
        HealthState::Checking | HealthState::Down if !rules.checks => tier,
        HealthState::Checking => UNCHECKED + tier,
        HealthState::Removed if rules.is_orphaned => FAIL_OPEN,
        HealthState::Down | HealthState::Ejected
            if rules.when_all_down == WhenAllDown::FailOpen =>
        {
            FAIL_OPEN
        }
        HealthState::Down
        | HealthState::Ejected
        | HealthState::Draining
        | HealthState::Maintenance
        | HealthState::Removed => NEVER,
    }
}
