//! Pools for the tests of this module and of the layers above.

use std::sync::Arc;

use super::{BackendLease, PickRequest, Pool};
use crate::{
    base::{address::BackendAddress, clock, rng::Random},
    config::model::{self, BalancingPolicy, HealthCheckConfig},
    reason::Reason,
};

/// A backend on 10.0.0.0/8; `number` gives the address, so that the same number is the same
/// backend.
pub(crate) fn backend(number: usize, weight: u16) -> model::BackendConfig {
    let address = format!("10.0.{}.{}:80", number / 256, number % 256);
    model::BackendConfig {
        name: format!("b{number}").into(),
        weight,
        ..model::BackendConfig::at(address.parse().unwrap())
    }
}

/// A pool called `app` with backends 0.. of these weights, and the default check and ejection.
pub(crate) fn config(weights: &[u16]) -> model::PoolConfig {
    model::PoolConfig {
        backends: weights
            .iter()
            .enumerate()
            .map(|(number, weight)| backend(number, *weight))
            .collect(),
        ..model::PoolConfig::named("app")
    }
}

/// The same without a health check, so that every backend is up at once.
pub(crate) fn unchecked(weights: &[u16], policy: BalancingPolicy) -> model::PoolConfig {
    model::PoolConfig {
        policy,
        health_check: None,
        ..config(weights)
    }
}

/// [`unchecked`], ready to pick.
pub(crate) fn unchecked_pool(weights: &[u16], policy: BalancingPolicy) -> Pool {
    Pool::new(&unchecked(weights, policy), None, clock::now())
}

/// A pool of real addresses that never ejects, so that only the check decides.
pub(crate) fn pool_of(
    addresses: &[BackendAddress],
    health_check: Option<HealthCheckConfig>,
) -> Arc<Pool> {
    let config = model::PoolConfig {
        backends: addresses
            .iter()
            .cloned()
            .map(model::BackendConfig::at)
            .collect(),
        health_check,
        ejection: None,
        ..model::PoolConfig::named("app")
    };
    Arc::new(Pool::new(&config, None, clock::now()))
}

/// One request in flight on the backend at `index`, as if it had been picked.
pub(crate) fn lease(pool: &Pool, index: usize) -> BackendLease {
    assert!(pool.backends[index].state.claim(usize::MAX));
    BackendLease::claimed(Arc::clone(&pool.backends[index]))
}

/// Picks after attempts on the backends at `attempted`.
pub(crate) fn pick(
    pool: &Pool,
    attempted: &[usize],
    random: &mut Random,
) -> Result<BackendLease, Reason> {
    let request = PickRequest {
        attempted,
        ..PickRequest::first(clock::now())
    };
    pool.pick(&request, random)
}
