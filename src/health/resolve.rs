//! Name resolution of backends, by the system's resolver on helper threads.
//!
//! A name is resolved at the start, at every reload and every 30 s. A failure keeps the last good
//! addresses: a broken DNS server must not take down backends that work. It is logged when it
//! begins and when it ends, and the lookup is repeated after 1 s, then after twice as long each
//! time, up to 30 s.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore},
    task::{AbortHandle, spawn_blocking, spawn_local},
    time::timeout,
};

use crate::{
    base::{address::BackendAddress, backoff, rng::Random},
    net::local_error,
    pool::{BackendState, ResolvedAddresses},
};

/// Time from one good lookup to the next, and the maximum after a failure; jittered by 10 %.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Time from the first failure to the next lookup, jittered by 10 %; doubled by each further one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time of one lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Lookups that run at the same time. Each occupies a thread, because getaddrinfo blocks.
const MAX_LOOKUPS: usize = 8;

/// Addresses kept of one name: the first in ascending order.
const MAX_ADDRESSES: usize = 16;

/// The lookup function: the system's resolver, except in tests. It may block.
type LookupFn = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Starts the resolution of names; shared by all backends.
pub(super) struct NameResolver {
    lookups: Arc<Semaphore>,
    lookup: Arc<LookupFn>,
}

/// The task that resolves one backend's name; ends when this is dropped.
#[derive(Debug)]
pub(super) struct ResolveTask {
    task: AbortHandle,
    /// Notified after every lookup, good or bad.
    pub(super) resolved: Rc<Notify>,
    refresh: Rc<Notify>,
}

impl ResolveTask {
    /// Starts a lookup at once.
    pub(super) fn refresh(&self) {
        self.refresh.notify_one();
    }
}

impl Drop for ResolveTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for NameResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameResolver").finish_non_exhaustive()
    }
}

impl Default for NameResolver {
    fn default() -> Self {
        Self::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }
}

impl NameResolver {
    /// A resolver that calls `lookup` on helper threads.
    pub(super) fn new(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            lookup: Arc::new(lookup),
        }
    }

    /// Starts a task that keeps `backend.resolved` fresh. `None` for a backend without a name.
    pub(super) fn start(&self, backend: &Arc<BackendState>) -> Option<ResolveTask> {
        let BackendAddress::Name { host, port } = &backend.address else {
            return None;
        };
        let (resolved, refresh) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let lookup = NameLookup {
            host: host.clone(),
            port: *port,
            lookup: Arc::clone(&self.lookup),
            permits: Arc::clone(&self.lookups),
        };
        let task = keep_fresh(
            Arc::clone(backend),
            lookup,
            Rc::clone(&resolved),
            Rc::clone(&refresh),
        );
        Some(ResolveTask {
            task: spawn_local(task).abort_handle(),
            resolved,
            refresh,
        })
    }
}

/// Resolves the name again and again.
async fn keep_fresh(
    backend: Arc<BackendState>,
    lookup: NameLookup,
    resolved: Rc<Notify>,
    refresh: Rc<Notify>,
) {
    let mut random = Random::from_system();
    let mut failures = 0_u32;
    loop {
        let result = lookup.run().await;
        log_result(&backend, &result, failures > 0);
        let pause = if let Ok(addresses) = result {
            failures = 0;
            store(&backend, addresses);
            REFRESH_INTERVAL
        } else {
            failures = failures.saturating_add(1);
            backoff::doubled(RETRY_INTERVAL, failures - 1, REFRESH_INTERVAL)
        };
        resolved.notify_one();
        // Jitter keeps thousands of names from hitting the DNS server together.
        let pause = pause.mul_f64(0.9 + 0.2 * random.unit());
        // The end of the pause and a reload have the same effect.
        let _ = timeout(pause, refresh.notified()).await;
    }
}

/// Publishes the addresses, if they changed.
fn store(backend: &BackendState, mut addresses: Vec<SocketAddr>) {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    let old = backend.resolved.load_full();
    if old.addresses() != addresses {
        let new = ResolvedAddresses::new(addresses, Some(&old));
        backend.resolved.store(Arc::new(new));
    }
}

/// The lookup of one name.
struct NameLookup {
    host: String,
    port: u16,
    lookup: Arc<LookupFn>,
    permits: Arc<Semaphore>,
}

impl NameLookup {
    /// Performs one lookup. The permit moves to the thread: a lookup that hangs beyond the timeout
    /// still occupies its thread, and must count until it ends.
    async fn run(&self) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        debug_assert!(permit.is_some(), "the semaphore is never closed");
        let (lookup, host, port) = (Arc::clone(&self.lookup), self.host.clone(), self.port);
        let running = spawn_blocking(move || {
            let _permit = permit;
            lookup(&host, port)
        });
        match timeout(LOOKUP_TIMEOUT, running).await {
            Ok(Ok(Ok(addresses))) if addresses.is_empty() => Err(io::Error::other("no address")),
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(io::Error::other(panic)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Logs when a name stops resolving and when it resolves again; `failed`: the last lookup failed.
fn log_result(backend: &BackendState, result: &io::Result<Vec<SocketAddr>>, failed: bool) {
    let (pool, address) = (&backend.pool, &backend.address);
    match result {
        Err(error) if local_error::is_local(error) => local_error::log(error),
        Err(error) if !failed => {
            let kept = backend.resolved.load().addresses().len();
            tracing::warn!(target: "health", %pool, backend = %address, %error, kept, "name does not resolve");
        }
        Ok(addresses) if failed => {
            let count = addresses.len();
            tracing::info!(target: "health", %pool, backend = %address, count, "name resolves again");
        }
        Ok(_) | Err(_) => {}
    }
}
