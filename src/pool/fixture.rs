//! Pools for the tests of this folder.

use std::{sync::Arc, time::Duration};

use crate::config::model::{
    self, CheckKind, Ejection, HealthCheck, Keepalive, Policy, PoolTimeouts, WhenAllDown,
};

/// One backend on 10.0.0.0/8; `number` gives the address, so that the same number is the same backend.
pub(crate) fn backend(number: usize, weight: u16) -> model::Backend {
    let address = format!("10.0.{}.{}:80", number / 256, number % 256);
    model::Backend {
        address: address.parse().unwrap(),
        name: format!("b{number}").into(),
        weight,
        backup: false,
        max_connections: None,
    }
}

/// A pool called `app` with backends 0.. of these weights, and the default check and ejection.
pub(crate) fn config(weights: &[u16]) -> model::Pool {
    model::Pool {
        name: Arc::from("app"),
        policy: Policy::RoundRobin,
        backends: weights
            .iter()
            .enumerate()
            .map(|(number, weight)| backend(number, *weight))
            .collect(),
        health_check: Some(HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }),
        ejection: Some(Ejection {
            failures: 5,
            eject_for: Duration::from_secs(10),
            max_eject_for: Duration::from_mins(5),
            max_ejected: 0.5,
        }),
        retries: None,
        timeouts: PoolTimeouts {
            connect: Duration::from_secs(3),
            response: None,
            idle: None,
            tcp_idle: None,
            total: None,
        },
        keepalive: Keepalive {
            idle_per_backend: 64,
            idle_timeout: Duration::from_secs(4),
            max_age: None,
            max_requests: None,
        },
        connections_per_backend: None,
        when_all_down: WhenAllDown::Reject,
    }
}

/// The same without a health check, so that every backend is up at once.
pub(crate) fn unchecked(weights: &[u16], policy: Policy) -> model::Pool {
    model::Pool {
        policy,
        health_check: None,
        ..config(weights)
    }
}
