//! The part of a pool that changes of state must reach.
//!
//! After a reload, old and new generations live side by side while requests of the old one finish.
//! They share backends, so a change that either of them sees refreshes both.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Acquire},
    },
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{
    backend::Backend,
    ejection::{self, PoolCounts},
    eligible::{self, EligibilityRules, EligibleSet, PoolMembers},
    health::StateChange,
    waiting::WaitingCount,
};
use crate::config::model;

/// The backends of one generation and the set that is picked from.
#[derive(Debug)]
pub(super) struct PoolGeneration {
    pub(super) members: PoolMembers,
    pub(super) rules: EligibilityRules,
    /// Passive ejection; `None` is off.
    ejection: Option<model::EjectionConfig>,
    /// A newer generation is in force.
    pub(super) retired: AtomicBool,
    /// The pool has left the configuration: exchanges that have begun may still use its backends.
    pub(super) orphaned: AtomicBool,
    pub(super) eligible: ArcSwap<EligibleSet>,
    /// Requests that wait for one of the backends.
    waiting: Arc<WaitingCount>,
}

impl PoolGeneration {
    pub(super) fn new(
        backends: Vec<Arc<Backend>>,
        rules: EligibilityRules,
        ejection: Option<model::EjectionConfig>,
        now: Instant,
        waiting: Arc<WaitingCount>,
    ) -> Self {
        let members = PoolMembers::new(backends);
        Self {
            eligible: ArcSwap::from_pointee(EligibleSet::new(&members, rules, now)),
            members,
            rules,
            ejection,
            retired: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            waiting,
        }
    }

    /// The members in the order of the file.
    pub(super) fn backends(&self) -> &[Arc<Backend>] {
        &self.members.backends
    }

    /// True if the weights of ramping backends change by `now`.
    pub(super) fn is_ramp_due(&self, now: Instant) -> bool {
        self.eligible.load().next_ramp.is_some_and(|at| at <= now)
    }

    /// Rebuilds the eligible set from the states at `now`. Those who wait must be served then.
    pub(super) fn refresh(&self, now: Instant) {
        let rules = EligibilityRules {
            is_orphaned: self.orphaned.load(Acquire),
            ..self.rules
        };
        let eligible = EligibleSet::new(&self.members, rules, now);
        self.eligible.store(Arc::new(eligible));
    }

    /// Serves those who wait, by the generation in force.
    pub(super) fn serve_waiting(&self) {
        self.waiting.serve_refreshed();
    }

    /// True if the change leaves the eligible set as it is.
    pub(super) fn is_unaffected_by(&self, backend: &Backend, change: &StateChange) -> bool {
        let eligible = self.eligible.load();
        eligible.is_unaffected_by(backend, change, self.rules)
    }

    /// True if the backend only joins others that are up already: a late refresh harms no request.
    pub(super) fn is_joined_by(&self, backend: &Backend, change: &StateChange) -> bool {
        let eligible = self.eligible.load();
        eligible.is_joined_by(backend, change, self.rules)
    }

    fn contains(&self, backend: &Backend) -> bool {
        let mut members = self.backends().iter();
        members.any(|member| Arc::ptr_eq(&member.state, &backend.state))
    }

    fn may_eject(&self, backend: &Backend) -> bool {
        let is_member =
            |one: &&Arc<Backend>| Arc::ptr_eq(&one.state, &backend.state) && one.weight() > 0;
        let ejection = self.ejection.as_ref();
        // One without a weight gets no new work: there is nothing to take from it.
        self.backends().iter().any(|one| is_member(&one))
            && ejection.is_some_and(|ejection| ejection::may_eject(self.counts(), ejection))
    }

    fn counts(&self) -> PoolCounts {
        let (mut total, mut available) = (0, 0);
        for backend in self.backends() {
            let has_weight = backend.weight() > 0;
            // One that the operator took out, by a state or by weight 0, is out like any other.
            total += usize::from(has_weight || backend.config.weight > 0);
            available += usize::from(has_weight && eligible::is_available(backend, self.rules));
        }
        PoolCounts { total, available }
    }
}

/// The generations that are still referenced.
pub(super) fn living(
    generations: &[Weak<PoolGeneration>],
) -> impl Iterator<Item = Arc<PoolGeneration>> {
    generations.iter().filter_map(Weak::upgrade)
}

/// Rebuilds the eligible set of every living generation, and then serves those who wait.
pub(super) fn refresh_all(generations: &[Weak<PoolGeneration>], now: Instant) {
    living(generations).for_each(|generation| generation.refresh(now));
    // One queue is that of all generations.
    if let Some(any) = living(generations).next() {
        any.serve_waiting();
    }
}

/// True if every generation in force that has the backend allows its ejection by its own rules.
pub(super) fn may_eject(generations: &[Weak<PoolGeneration>], backend: &Backend) -> bool {
    all_in_force(generations, backend, |generation| {
        generation.may_eject(backend)
    })
}

/// True if an ejected backend that failed its trial may stay out: others can take the traffic.
pub(super) fn may_stay_ejected(generations: &[Weak<PoolGeneration>], backend: &Backend) -> bool {
    all_in_force(generations, backend, |generation| {
        generation.ejection.is_some() && generation.counts().available > 0
    })
}

/// True if there is a generation in force that has the backend, and `allows` holds for each.
///
/// A retired generation has no vote: its backends may have left, and it would guard a pool that no
/// longer exists.
fn all_in_force(
    generations: &[Weak<PoolGeneration>],
    backend: &Backend,
    allows: impl Fn(&PoolGeneration) -> bool,
) -> bool {
    let mut in_force = living(generations)
        .filter(|generation| !generation.retired.load(Acquire) && generation.contains(backend))
        .peekable();
    in_force.peek().is_some() && in_force.all(|generation| allows(&generation))
}
