//! Balancing policies: one file each, and this table.
//!
//! A picker is prepared when the eligible set changes. Every worker then calls it once per request:
//! `pick` takes no lock and allocates nothing. The picker also claims the backend (counts it in
//! flight), because a load must be compared and taken in one step. A policy knows nothing of
//! health.

mod context;
mod first;
mod hash;
mod least_connections;
mod least_time;
mod maglev;
mod random_two;
mod round_robin;

use std::sync::Arc;

pub(crate) use self::{
    context::{EligibleBackend, PickContext, PolicyPicker},
    maglev::{MaglevTable, TableMember},
};
use crate::config::model::BalancingPolicy;

/// Settings of a policy besides its candidates.
pub(crate) struct PolicySettings<'a> {
    pub(crate) policy: BalancingPolicy,
    /// `hash_balance` in percent.
    pub(crate) hash_balance: Option<u32>,
    /// Makes the table of the candidates' tier, for `hash`.
    pub(crate) table: &'a dyn Fn() -> Arc<MaglevTable>,
}

/// Prepares the policy for these candidates.
pub(crate) fn prepare(
    settings: &PolicySettings<'_>,
    candidates: &[EligibleBackend],
) -> Box<dyn PolicyPicker> {
    match settings.policy {
        BalancingPolicy::RoundRobin => Box::new(round_robin::RoundRobin::new(candidates)),
        BalancingPolicy::LeastConnections => {
            Box::new(least_connections::LeastConnections::new(candidates))
        }
        BalancingPolicy::RandomTwo => Box::new(random_two::RandomTwo::new(candidates)),
        BalancingPolicy::LeastTime => Box::new(least_time::LeastTime),
        BalancingPolicy::First => Box::new(first::FirstInOrder),
        BalancingPolicy::Hash => Box::new(hash::KeyHash::new(
            (settings.table)(),
            candidates,
            settings.hash_balance,
        )),
    }
}
