//! Overrides by the operator, applied to the backends of a pool. Read next: `overrides.rs`.

use std::{sync::Arc, time::Instant};

use super::{
    Pool,
    backend::Backend,
    health::HealthState,
    overrides::{BackendOverrides, OverrideTable},
    transition::StateTransition,
};
use crate::{base::clock, config::model::OnDown};

impl Pool {
    /// Finds a backend by its name, or else by its address.
    pub fn find_backend(&self, word: &str) -> Option<&Arc<Backend>> {
        let by_name = self.backends.iter().find(|one| *one.config.name == *word);
        by_name.or_else(|| {
            let mut backends = self.backends.iter();
            backends.find(|one| one.config.address.to_string() == word)
        })
    }

    /// Replaces the overrides of a backend. They are in force for the next pick. `cause` is the
    /// cause of the state that the backend returns to; a state that is set says its own.
    pub fn set_overrides(
        &self,
        backend: &Backend,
        overrides: BackendOverrides,
        cause: &str,
        now: Instant,
    ) -> Option<StateTransition> {
        let generations = self.state.lock();
        let change = backend.state.set_overrides(overrides, cause, now);
        // Also without a change of state: the weight may be another.
        self.state.refresh_all(&generations, now);
        let change = change?;
        let check = self.config.health_check.as_ref();
        if change.to == HealthState::Down && check.is_some_and(|one| one.on_down == OnDown::Close) {
            backend.state.down.raise();
        }
        Some(self.transition(backend, change))
    }

    /// Gives every backend the overrides that `table` has for it. Called right before this
    /// generation comes into force, for backends that are new or return.
    pub fn apply_overrides(&self, table: &OverrideTable) {
        let wanted = |backend: &Arc<Backend>| table.find(&self.name, &backend.config.address);
        let differs = |backend: &&Arc<Backend>| !backend.state.has_overrides(&wanted(backend));
        let differing: Vec<_> = self.backends.iter().filter(differs).collect();
        if differing.is_empty() {
            return;
        }
        let now = clock::now();
        let generations = self.state.lock();
        for backend in differing {
            let state = &backend.state;
            drop(state.set_overrides(wanted(backend), "the override has ended", now));
        }
        self.state.refresh_all(&generations, now);
    }
}
