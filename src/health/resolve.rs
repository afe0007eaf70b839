//! Addresses of backends that are given by name: asked for at the start, then every 30 s, by the system's resolver on a
//! helper thread. A failure keeps the last good answer; it is logged when it begins and when it ends.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore},
    task::{AbortHandle, spawn_blocking, spawn_local},
    time::{sleep, timeout},
};

use crate::{
    base::{address::BackendAddress, rng::Random},
    pool::BackendState,
};

/// From one answer to the next question, jittered by 10 %.
const REFRESH: Duration = Duration::from_secs(30);

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Questions at a time; each holds a thread.
const QUESTIONS: usize = 8;

/// Addresses kept of one name.
const ADDRESSES: usize = 16;

/// Starts resolving; shared by all backends.
#[derive(Debug)]
pub(super) struct Resolver {
    questions: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            questions: Arc::new(Semaphore::new(QUESTIONS)),
        }
    }
}

impl Resolver {
    /// A task that keeps `backend.resolved` fresh, and a signal for its first answer, good or bad. `None` for a backend that
    /// is not given by name.
    pub(super) fn start(&self, backend: &Arc<BackendState>) -> Option<(AbortHandle, Rc<Notify>)> {
        let BackendAddress::Name { host, port } = &backend.address else {
            return None;
        };
        let answered = Rc::new(Notify::new());
        let task = keep_fresh(
            Arc::clone(backend),
            (host.clone(), *port),
            Arc::clone(&self.questions),
            Rc::clone(&answered),
        );
        Some((spawn_local(task).abort_handle(), answered))
    }
}

async fn keep_fresh(
    backend: Arc<BackendState>,
    name: (String, u16),
    questions: Arc<Semaphore>,
    answered: Rc<Notify>,
) {
    let mut random = Random::from_system();
    let mut failed = false;
    loop {
        let answer = ask(name.clone(), Arc::clone(&questions)).await;
        tell(&backend, &answer, &mut failed);
        if let Ok(addresses) = answer
            && **backend.resolved.load() != addresses
        {
            backend.resolved.store(Arc::new(addresses));
        }
        answered.notify_one();
        sleep(REFRESH.mul_f64(0.9 + 0.2 * random.unit())).await;
    }
}

/// Asks the system's resolver. The permit goes with the thread: one that hangs beyond the timeout still counts.
async fn ask(name: (String, u16), questions: Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    let permit = questions.acquire_owned().await.ok();
    let question = spawn_blocking(move || {
        let _permit = permit;
        let mut addresses: Vec<_> = name.to_socket_addrs()?.collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES);
        Ok(addresses)
    });
    match timeout(TIMEOUT, question).await {
        Ok(Ok(Ok(addresses))) if addresses.is_empty() => Err(io::Error::other("no address")),
        Ok(Ok(answer)) => answer,
        Ok(Err(fault)) => Err(io::Error::other(fault)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One line when a name stops resolving, one when it resolves again.
fn tell(backend: &BackendState, answer: &io::Result<Vec<SocketAddr>>, failed: &mut bool) {
    let (pool, address) = (&backend.pool, &backend.address);
    match answer {
        Err(error) if !*failed => {
            let kept = backend.resolved.load().len();
            tracing::warn!(target: "health", %pool, backend = %address, %error, kept, "name does not resolve");
        }
        Ok(addresses) if *failed => {
            let count = addresses.len();
            tracing::info!(target: "health", %pool, backend = %address, count, "name resolves again");
        }
        Ok(_) | Err(_) => {}
    }
    *failed = answer.is_err();
}
