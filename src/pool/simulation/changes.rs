//! Changes of the pool in the simulation: reloads, other members, and overrides of the operator.

use std::{sync::Arc, time::Duration};

use super::{counts::SeenEvent, model::BackendModel, world::SimulatedWorld};
use crate::{
    base::address::BackendAddress,
    config::model,
    pool::{
        BackendOverrides, OperatorOverride, OperatorState, OverrideKey, Pool, fixture::backend,
    },
};

/// An override until the operator ends it.
fn set_by_operator<T>(value: T) -> OperatorOverride<T> {
    OperatorOverride {
        value,
        by: "root".to_owned(),
        since_unix: Duration::ZERO,
        end: None,
        note: None,
    }
}

impl SimulatedWorld<'_> {
    /// Puts another configuration in force. Members stay those of discovery, once it has said some.
    pub(super) fn reload(&mut self, config: &model::PoolConfig) -> Result<(), String> {
        let members = self.discovered.clone();
        let members = members.unwrap_or_else(|| config.backends.clone());
        self.replace_pool(config, &members)
    }

    /// Puts other members in force, as `runtime/membership.rs` does.
    pub(super) fn change_members(
        &mut self,
        members: &[model::BackendConfig],
    ) -> Result<(), String> {
        self.seen.note(SeenEvent::MembersChanged);
        if members.is_empty() {
            self.seen.note(SeenEvent::NoMembers);
        }
        let config = self.pool.config.clone();
        self.discovered = Some(members.to_vec());
        self.replace_pool(&config, members)
    }

    fn replace_pool(
        &mut self,
        config: &model::PoolConfig,
        members: &[model::BackendConfig],
    ) -> Result<(), String> {
        let old = Arc::clone(&self.pool);
        let next = Arc::new(Pool::of_members(config, members, Some(&old), self.now));
        let known: Vec<_> = members.iter().map(|one| &one.address).collect();
        self.forget_departed(config.health_check.is_some(), &known);
        next.apply_overrides(&self.overrides);
        self.settle(&old)?;
        next.restore();
        self.settle(&old)?;
        old.retire(Some(&next));
        self.pool = next;
        self.follow_replacement(&known);
        self.settle(&Arc::clone(&self.pool))
    }

    /// Begins the models of backends that have no state to adopt.
    fn forget_departed(&mut self, checks: bool, known: &[&BackendAddress]) {
        let is_busy = |address: &BackendAddress| {
            let mut leases = self.exchanges.iter().filter_map(|one| one.lease.as_ref());
            leases.any(|lease| lease.state.address == *address)
        };
        for address in known {
            let old = self.models.get(*address);
            if old.is_none_or(|model| !model.is_present && !is_busy(address)) {
                let model = BackendModel::new(checks);
                self.models.insert((*address).clone(), model);
            }
        }
    }

    fn follow_replacement(&mut self, known: &[&BackendAddress]) {
        let pool = Arc::clone(&self.pool);
        let ejects = pool.config.ejection.as_ref();
        let ejects = ejects.is_some_and(|ejection| ejection.max_ejected > 0.0);
        for backend in &pool.backends {
            let key = OverrideKey::new(&pool.name, &backend.state.address);
            let overrides = self.overrides.get(&key);
            let operator = overrides.state.map(|one| one.value);
            let model = self.model(backend);
            model.weight = overrides.weight.map(|one| one.value);
            let is_back = !model.is_present;
            if is_back && operator.is_some() {
                self.seen.note(SeenEvent::OverrideAtReturn);
            }
            if is_back {
                self.seen.note(SeenEvent::BackendReturned);
            }
            self.change(backend, |model| {
                model.operator = operator;
                if is_back {
                    model.return_to_service();
                }
            });
            if pool.config.health_check.is_none() {
                self.change(backend, BackendModel::end_checks);
            }
            if !ejects {
                self.change(backend, |model| model.ejection = None);
            }
        }
        let left = self.models.iter_mut();
        for (_, model) in left.filter(|(address, _)| !known.contains(address)) {
            model.leave();
        }
    }

    /// Sets or ends overrides of a backend, which may be away.
    pub(super) fn set_override(
        &mut self,
        number: u8,
        state: Option<OperatorState>,
        weight: Option<u16>,
    ) -> Result<(), String> {
        let number = usize::from(number) % self.plan.settings.backend_count;
        let address = backend(number, 1).address;
        let overrides = BackendOverrides {
            state: state.map(set_by_operator),
            weight: weight.map(set_by_operator),
        };
        let pool = Arc::clone(&self.pool);
        let key = OverrideKey::new(&pool.name, &address);
        self.overrides.set(key, overrides.clone());
        let mut members = pool.backends.iter();
        let Some(backend) = members.find(|one| one.state.address == address) else {
            return Ok(());
        };
        let settings = &self.plan.settings;
        let before = self.model(backend).state(settings.rise, settings.fall);
        self.model(backend).weight = weight;
        self.change(backend, |model| model.operator = state);
        let after = self.model(backend).state(settings.rise, settings.fall);
        if state.is_some() {
            self.seen.note(SeenEvent::StateSet);
        }
        if weight.is_some() {
            self.seen.note(SeenEvent::WeightSet);
        }
        let transition = pool.set_overrides(backend, overrides, "ready again", self.now);
        if transition.as_ref().map(|one| one.to) != (before != after).then_some(after) {
            return Err(format!("{before} to {after}, but {transition:?}"));
        }
        self.settle(&pool)
    }
}
