//! Checks of a configuration that is not in force: `balancer check --probe` asks every backend
//! once.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    task::{LocalSet, spawn_blocking},
    time::timeout_at,
};

use super::{MAX_CHECKS, check};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::PoolConfig,
    discovery::members_once,
    pool::{Backend, CheckTiming, Pool, ResolvedAddresses},
};

/// Addresses of a name that are attempted.
const MAX_ADDRESSES: usize = 16;

/// Result of asking one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendProbe {
    /// Its name.
    pub name: Arc<str>,
    /// Its address as configured.
    pub address: String,
    /// It may get work when it is up: its weight is above 0.
    pub takes_work: bool,
    /// `Err` is the cause of the failure.
    pub result: Result<(), String>,
    /// The times of its check, which begin with the look-up of its name.
    pub timing: CheckTiming,
}

/// Result of asking the backends of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolProbe {
    /// The key in the file.
    pub name: Arc<str>,
    /// In the order of the file. `None`: the pool has `health_check: none`.
    pub backends: Option<Vec<BackendProbe>>,
}

impl PoolProbe {
    /// True if a backend that takes work has passed, or if there is none to ask.
    pub fn is_good(&self) -> bool {
        self.backends.as_ref().is_none_or(|backends| {
            let passed = |backend: &BackendProbe| backend.takes_work && backend.result.is_ok();
            backends.is_empty() || backends.iter().any(passed)
        })
    }
}

/// Asks each backend of `pools` once, [`MAX_CHECKS`] at a time. Those that have not answered after
/// `limit` have failed. Names are resolved by `resolvers`; none: by the system's.
pub async fn probe_pools(
    pools: &[PoolConfig],
    resolvers: &[SocketAddr],
    limit: Duration,
) -> Vec<PoolProbe> {
    let deadline = clock::now() + limit;
    let permits = Rc::new(Semaphore::new(MAX_CHECKS));
    let tasks = LocalSet::new();
    let members = members_once(pools, resolvers, deadline);
    let members = tasks.run_until(members).await;
    let started: Vec<_> = pools
        .iter()
        .zip(&members)
        .map(|(config, members)| {
            let pool = Arc::new(Pool::of_members(config, members, None, clock::now()));
            let is_checked = config.health_check.is_some();
            let backends = pool.backends.iter().filter(|_| is_checked);
            let asking: Vec<_> = backends
                .map(|backend| {
                    let (pool, backend) = (Arc::clone(&pool), Arc::clone(backend));
                    let permits = Rc::clone(&permits);
                    tasks.spawn_local(async move {
                        let asking = Box::pin(ask(&pool, &backend, &permits));
                        let late = || (Err(not_in_time(limit)), limit.into());
                        let (result, timing) = timeout_at(deadline.into(), asking)
                            .await
                            .unwrap_or_else(|_| late());
                        described(&backend, result, timing)
                    })
                })
                .collect();
            (Arc::clone(&config.name), is_checked, asking)
        })
        .collect();
    tasks
        .run_until(async {
            let mut found = Vec::with_capacity(started.len());
            for (name, is_checked, asking) in started {
                let mut backends = Vec::with_capacity(asking.len());
                for task in asking {
                    // Fails if the task has panicked, which the panic has reported.
                    backends.extend(task.await);
                }
                let backends = is_checked.then_some(backends);
                found.push(PoolProbe { name, backends });
            }
            found
        })
        .await
}

fn not_in_time(limit: Duration) -> String {
    format!("not asked to the end within {limit:?} for all backends")
}

fn described(backend: &Backend, result: Result<(), String>, timing: CheckTiming) -> BackendProbe {
    BackendProbe {
        name: Arc::clone(&backend.config.name),
        address: backend.config.address.to_string(),
        takes_work: backend.config.weight > 0,
        result,
        timing,
    }
}

/// Resolves the name of a backend, if it has one, and checks it.
async fn ask(
    pool: &Pool,
    backend: &Backend,
    permits: &Semaphore,
) -> (Result<(), String>, CheckTiming) {
    let _permit = permits.acquire().await;
    let began = clock::now();
    let mut resolved = None;
    if let BackendAddress::Name { host, port } = &backend.config.address {
        match look_up(host.clone(), *port).await {
            Ok(addresses) => {
                let addresses = ResolvedAddresses::new(addresses, None);
                backend.state.resolved.store(Arc::new(addresses));
            }
            Err(error) => {
                let cause = format!("name does not resolve: {error}");
                return (Err(cause), began_at(began));
            }
        }
        resolved = Some(clock::now().saturating_duration_since(began));
    }
    let Some(config) = &pool.config.health_check else {
        return (Ok(()), began_at(began));
    };
    let outcome = check::run(config, &pool.config, backend).await;
    let result = outcome.result.map_err(|error| error.to_string());
    (result, after_lookup(outcome.timing, resolved))
}

/// The addresses of a name, by the system's resolver on a helper thread.
async fn look_up(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let looking = spawn_blocking(move || (host, port).to_socket_addrs());
    let mut addresses: Vec<SocketAddr> = looking.await.map_err(io::Error::other)??.collect();
    addresses.truncate(MAX_ADDRESSES);
    Ok(addresses)
}

fn began_at(began: Instant) -> CheckTiming {
    clock::now().saturating_duration_since(began).into()
}

/// The times of a check that began after the look-up of a name, from the start of that.
fn after_lookup(timing: CheckTiming, resolved: Option<Duration>) -> CheckTiming {
    let mut timing = timing;
    let offset = resolved.unwrap_or_default();
    timing.took += offset;
    timing.phases.resolved = resolved;
    let phases = &mut timing.phases;
    for phase in [
        &mut phases.connected,
        &mut phases.secured,
        &mut phases.first_byte,
    ] {
        *phase = phase.map(|time| time + offset);
    }
    timing
}
