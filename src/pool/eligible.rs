//! The eligible backends of one generation, with the prepared policy over them.
//!
//! Only backends with a weight above 0 are considered. They fall into groups, and the first group
//! with a member is picked from:
//! - backends that are up, by their tier (`backup`);
//! - backends not checked yet, by their tier;
//! - ejected ones, by their tier: the guard of the ejection holds, also where checks have taken the
//!   others down since;
//! - with `when_all_down: fail_open` all that are not draining, in maintenance or removed.
//!
//! So a checked backup is preferred to a primary that has never passed a check.
//!
//! Beside the group stand the backends that wait for their trial (`trial.rs`), each of a tier that
//! is the serving one or goes before it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    backend::Backend,
    health::{EjectionPhase, HealthState, StateChange},
    policy::{self, EligibleBackend, MaglevTable, PolicyPicker, PolicySettings, TableMember},
    slow_start,
    trial::TrialPhase,
};
use crate::config::model::{BalancingPolicy, WhenAllDown};

/// The first group of backends not checked yet: higher than any tier.
const UNCHECKED_GROUP: u8 = 10;
/// The first group of ejected backends: no other is left.
const EJECTED_GROUP: u8 = 20;
/// The group of `when_all_down: fail_open`.
const FAIL_OPEN_GROUP: u8 = 30;
/// The group that is never picked from.
const INELIGIBLE_GROUP: u8 = 31;
/// Time for which a trial waits for a request that could be sent again if it fails.
const REPEATABLE_TRIAL_WAIT: Duration = Duration::from_secs(1);

/// Settings that decide about eligibility besides the states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EligibilityRules {
    pub(crate) policy: BalancingPolicy,
    /// `hash_balance` in percent.
    pub(crate) hash_balance: Option<u32>,
    /// `slow_start`.
    pub(crate) slow_start: Option<Duration>,
    /// The pool has a health check. Without one, a verdict left over from before is ignored.
    pub(crate) checks: bool,
    pub(crate) when_all_down: WhenAllDown,
    /// The pool has left the configuration: exchanges that have begun can only use its removed
    /// backends.
    pub(crate) is_orphaned: bool,
    /// A client whose own backend is full waits for it (`limits.queue`); otherwise it gets another.
    pub(crate) queues: bool,
}

impl EligibilityRules {
    /// True if a backend in `state` goes on serving the clients that it has, whether or not it gets
    /// new ones.
    pub(crate) fn keeps_clients(self, state: HealthState) -> bool {
        match state {
            HealthState::Up | HealthState::Checking | HealthState::Draining => true,
            HealthState::Down => !self.checks,
            HealthState::Ejected | HealthState::Maintenance | HealthState::Removed => false,
        }
    }
}

/// The eligible backends and the picker over them. Immutable and replaced as a whole, so that a
/// pick never sees half of a change.
pub(crate) struct EligibleSet {
    pub(crate) candidates: Box<[EligibleBackend]>,
    pub(crate) picker: Box<dyn PolicyPicker>,
    /// Backends whose trial may be due, while others serve.
    pub(crate) trials: Box<[BackendOnTrial]>,
    /// The group of the candidates.
    group: u8,
    /// Time at which the weights of ramping candidates change.
    pub(crate) next_ramp: Option<Instant>,
}

/// The members of a pool, among which eligible ones are looked for, and their table for `hash`.
#[derive(Debug)]
pub(crate) struct PoolMembers {
    pub(crate) backends: Vec<Arc<Backend>>,
    /// The table that was made last, with its members.
    table: Mutex<Option<(Vec<TableMember>, Arc<MaglevTable>)>>,
}

impl PoolMembers {
    pub(crate) fn new(backends: Vec<Arc<Backend>>) -> Self {
        Self {
            backends,
            table: Mutex::default(),
        }
    }

    /// The table over the members of `group`, in any state.
    fn table(&self, group: u8) -> Arc<MaglevTable> {
        let tier = (group < FAIL_OPEN_GROUP).then_some(group % UNCHECKED_GROUP);
        let is_member = |backend: &&Arc<Backend>| {
            backend.weight() > 0 && tier.is_none_or(|tier| tier_of(backend) == tier)
        };
        let members: Vec<TableMember> = self
            .backends
            .iter()
            .filter(is_member)
            .map(|backend| TableMember {
                address: backend.state.address.to_string(),
                weight: backend.weight(),
                index: backend.index as u32,
            })
            .collect();
        let mut last = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, table)) = &*last
            && *known == members
        {
            return Arc::clone(table);
        }
        let table = Arc::new(MaglevTable::new(&members));
        *last = Some((members, Arc::clone(&table)));
        table
    }
}

/// A backend that waits for its trial.
pub(crate) struct BackendOnTrial {
    pub(crate) backend: Arc<Backend>,
    /// From then on any request may be the trial.
    pub(crate) any_from: Instant,
}

impl fmt::Debug for EligibleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.candidates.iter().map(|one| &one.config.name);
        f.debug_list().entries(names).finish()
    }
}

impl EligibleSet {
    /// Selects the first group with a member and prepares the policy for it.
    pub(crate) fn new(members: &PoolMembers, rules: EligibilityRules, now: Instant) -> Self {
        Self::among(&members.backends, members, rules, now)
    }

    /// The same among some of the members.
    pub(crate) fn among(
        backends: &[Arc<Backend>],
        members: &PoolMembers,
        rules: EligibilityRules,
        now: Instant,
    ) -> Self {
        // Each state is read once: a change in between must not split a group.
        let groups: Vec<u8> = backends
            .iter()
            .map(|backend| group_of(backend, backend.state.state(), rules))
            .collect();
        let first = groups.iter().copied().min().unwrap_or(INELIGIBLE_GROUP);
        let eligible: Vec<&Arc<Backend>> = backends
            .iter()
            .zip(&groups)
            .filter(|(_, group)| **group != INELIGIBLE_GROUP && **group == first)
            .map(|(backend, _)| backend)
            .collect();
        let weighted = slow_start::weighted(&eligible, rules.slow_start, now);
        let settings = PolicySettings {
            policy: rules.policy,
            hash_balance: rules.hash_balance,
            table: &|| members.table(first),
        };
        let picker = policy::prepare(&settings, &weighted.candidates);
        let trials = backends
            .iter()
            .filter_map(|backend| on_trial(backend, first))
            .collect();
        Self {
            candidates: weighted.candidates,
            picker,
            trials,
            group: first,
            next_ramp: weighted.next_ramp,
        }
    }

    /// The candidate that is at `index` of its generation.
    pub(crate) fn candidate(&self, index: usize) -> Option<&EligibleBackend> {
        let position = self
            .candidates
            .binary_search_by_key(&index, |one| one.index);
        self.candidates.get(position.ok()?)
    }

    /// True if the candidates are ejected, because no other backend is left.
    #[inline]
    pub(crate) fn is_of_ejected(&self) -> bool {
        self.group >= EJECTED_GROUP
    }

    /// True if retries may move on to this set when all of `first` were attempted. Backends that
    /// are ejected or serve by `fail_open` are excluded: they are known to be bad.
    pub(crate) fn is_tier_behind(&self, first: &Self) -> bool {
        self.group > first.group && self.group < EJECTED_GROUP
    }

    /// True if a change of state makes the backend one more candidate.
    pub(crate) fn is_joined_by(
        &self,
        backend: &Backend,
        change: &StateChange,
        rules: EligibilityRules,
    ) -> bool {
        group_of(backend, change.from, rules) > self.group
            && group_of(backend, change.to, rules) == self.group
    }

    /// True if the backend was and stays in a group behind the one picked from, and waits for no
    /// trial.
    pub(crate) fn is_unaffected_by(
        &self,
        backend: &Backend,
        change: &StateChange,
        rules: EligibilityRules,
    ) -> bool {
        let may_be_on_trial =
            change.from == HealthState::Ejected || change.to == HealthState::Ejected;
        !may_be_on_trial
            && group_of(backend, change.from, rules) > self.group
            && group_of(backend, change.to, rules) > self.group
    }
}

/// True if the backend may take traffic by these rules.
pub(crate) fn is_available(backend: &Backend, rules: EligibilityRules) -> bool {
    group_of(backend, backend.state.state(), rules) < EJECTED_GROUP
}

/// The trial of an ejected backend that waits for one, unless the group that serves goes before its
/// tier.
fn on_trial(backend: &Arc<Backend>, serving: u8) -> Option<BackendOnTrial> {
    let waits = backend.weight() > 0
        && backend.state.state() == HealthState::Ejected
        && backend.state.trial.phase() != TrialPhase::None;
    if !waits || serving >= EJECTED_GROUP || tier_of(backend) > serving {
        return None;
    }
    let EjectionPhase::Trial { since } = backend.state.ejection() else {
        return None;
    };
    Some(BackendOnTrial {
        backend: Arc::clone(backend),
        any_from: since + REPEATABLE_TRIAL_WAIT,
    })
}

/// Returns the tier of a backend, 0..=9.
fn tier_of(backend: &Backend) -> u8 {
    backend.config.backup.min(UNCHECKED_GROUP - 1)
}

/// Returns the group of a backend in `state`.
fn group_of(backend: &Backend, state: HealthState, rules: EligibilityRules) -> u8 {
    use HealthState::{Checking, Down, Draining, Ejected, Maintenance, Removed, Up};
    if backend.weight() == 0 {
        return INELIGIBLE_GROUP;
    }
    let tier = tier_of(backend);
    match state {
        Up => tier,
        Checking | Down if !rules.checks => tier,
        Checking => UNCHECKED_GROUP + tier,
        Removed if rules.is_orphaned && !backend.state.is_taken_out() => FAIL_OPEN_GROUP,
        Down | Ejected if rules.when_all_down == WhenAllDown::FailOpen => FAIL_OPEN_GROUP,
        Ejected => EJECTED_GROUP + tier,
        Down | Draining | Maintenance | Removed => INELIGIBLE_GROUP,
    }
}
