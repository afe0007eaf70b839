//! Balancing policies: one file each, and this table.
//!
//! A picker is prepared when the eligible set changes. Every worker then calls it once per request:
//! `pick` takes no lock and allocates nothing. The picker also claims the backend (counts it in
//! flight), because a load must be compared and taken in one step. A policy knows nothing of
//! health.

mod context;
mod least_connections;
mod random_two;
mod round_robin;

pub(crate) use self::context::{EligibleBackend, PickContext, PolicyPicker};
use crate::config::model::BalancingPolicy;

/// Prepares `policy` for these candidates.
pub(crate) fn prepare(
    policy: BalancingPolicy,
    candidates: &[EligibleBackend],
) -> Box<dyn PolicyPicker> {
    match policy {
        BalancingPolicy::RoundRobin => Box::new(round_robin::RoundRobin::new(candidates)),
        BalancingPolicy::LeastConnections => {
            Box::new(least_connections::LeastConnections::new(candidates))
        }
        BalancingPolicy::RandomTwo => Box::new(random_two::RandomTwo::new(candidates)),
    }
}
