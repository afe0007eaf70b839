//! Addresses of backends that are given by name: asked for at the start, at every reload, and every 30 s, by the system's
//! resolver on a helper thread. A failure keeps the last good answer, is logged when it begins and when it ends, and is
//! tried again after 1 s, then after twice as long each time, up to 30 s.

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

/// From one good answer to the next question, jittered by 10 %. Also the longest wait after a failure.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// From the first failure to the next question, jittered by 10 %; doubled by each further one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Questions at a time; each holds a thread.
const MAX_LOOKUPS: usize = 8;

/// Addresses kept of one name: the first in ascending order.
const MAX_ADDRESSES: usize = 16;

/// What answers: the system's resolver. It may block.
type LookupFn = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Starts resolving; shared by all backends.
pub(super) struct NameResolver {
    questions: Arc<Semaphore>,
    lookup: Arc<LookupFn>,
}

/// The resolving of one backend's name; ends when this is dropped.
#[derive(Debug)]
pub(super) struct ResolveTask {
    task: AbortHandle,
    /// Signalled by every answer, good or bad.
    pub(super) answered: Rc<Notify>,
    ask: Rc<Notify>,
}

impl ResolveTask {
    /// Asks again at once.
    pub(super) fn refresh(&self) {
        self.ask.notify_one();
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
    /// Asks `lookup`, on a helper thread.
    pub(super) fn new(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            questions: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            lookup: Arc::new(lookup),
        }
    }

    /// A task that keeps `backend.resolved` fresh. `None` for a backend that is not given by name.
    pub(super) fn start(&self, backend: &Arc<BackendState>) -> Option<ResolveTask> {
        let BackendAddress::Name { host, port } = &backend.address else {
            return None;
        };
        let (answered, ask) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let question = NameLookup {
            host: host.clone(),
            port: *port,
            lookup: Arc::clone(&self.lookup),
            permits: Arc::clone(&self.questions),
        };
        let task = keep_fresh(
            Arc::clone(backend),
            question,
            Rc::clone(&answered),
            Rc::clone(&ask),
        );
        Some(ResolveTask {
            task: spawn_local(task).abort_handle(),
            answered,
            ask,
        })
    }
}

async fn keep_fresh(
    backend: Arc<BackendState>,
    question: NameLookup,
    answered: Rc<Notify>,
    ask: Rc<Notify>,
) {
    let mut random = Random::from_system();
    let mut failures = 0_u32;
    loop {
        let answer = question.ask().await;
        log(&backend, &answer, failures > 0);
        let pause = if let Ok(addresses) = answer {
            failures = 0;
            store(&backend, addresses);
            REFRESH_INTERVAL
        } else {
            failures = failures.saturating_add(1);
            backoff::doubled(RETRY_INTERVAL, failures - 1, REFRESH_INTERVAL)
        };
        answered.notify_one();
        let pause = pause.mul_f64(0.9 + 0.2 * random.unit());
        // The end of the time and a reload are the same here.
        let _ = timeout(pause, ask.notified()).await;
    }
}

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

/// What is asked, and of whom.
struct NameLookup {
    host: String,
    port: u16,
    lookup: Arc<LookupFn>,
    permits: Arc<Semaphore>,
}

impl NameLookup {
    /// Asks once. The permit goes with the thread: one that hangs beyond the timeout still counts.
    async fn ask(&self) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (lookup, host, port) = (Arc::clone(&self.lookup), self.host.clone(), self.port);
        let question = spawn_blocking(move || {
            let _permit = permit;
            lookup(&host, port)
        });
        match timeout(TIMEOUT, question).await {
            Ok(Ok(Ok(addresses))) if addresses.is_empty() => Err(io::Error::other("no address")),
            Ok(Ok(answer)) => answer,
            Ok(Err(fault)) => Err(io::Error::other(fault)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// One line when a name stops resolving, one when it resolves again; `failed`: the last answer was a failure.
fn log(backend: &BackendState, answer: &io::Result<Vec<SocketAddr>>, failed: bool) {
    let (pool, address) = (&backend.pool, &backend.address);
    match answer {
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
