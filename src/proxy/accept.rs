//! Takes connections from one listening socket: limits, then an HTTP connection or a TCP session of its own task.
//!
//! An accept error never ends the loop and never makes it spin: it waits, sheds idle connections, and goes on.

use std::{
    collections::hash_map::Entry as MapEntry,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{select, sync::watch, task::spawn_local, time::sleep};

use super::{
    http::{self, Client},
    secure::{Arrival, secure},
    tcp::{self, TcpContext},
    worker::Worker,
};
use crate::{
    base::{address::BindAddress, backoff, clock},
    config::model::ListenerProtocol,
    net::{listen::Acceptor, stream::Stream},
    reason::Reason,
    snapshot::{Daemon, Listener, ListenerState, Snapshot},
    telemetry::record::{Record, RequestText},
};

/// First wait after an accept error; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// Longest wait: a descriptor that becomes free is used within this time.
const LONGEST_WAIT: Duration = Duration::from_millis(80);
/// Connections refused in one loop before other tasks get their turn.
const SHED_AT_ONCE: usize = 16;

/// Accepts until `stop` says so; then takes what is still queued, so that no connection is lost, and ends.
pub async fn run(
    worker: Rc<Worker>,
    acceptor: Acceptor,
    bind: Rc<BindAddress>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        let accepted = select! {
            accepted = acceptor.accept() => accepted,
            // The sender is gone only when the worker ends.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                admit(&worker, stream, peer, &bind);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                make_room(&worker, &bind, failures, &error);
                sleep(backoff::doubled(FIRST_WAIT, failures, LONGEST_WAIT)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
    match acceptor.take_queued() {
        Ok(queued) => {
            for (stream, peer) in queued {
                admit(&worker, stream, peer, &bind);
            }
        }
        Err(error) => {
            tracing::warn!(target: "listener", %bind, %error, "queued connections are lost");
        }
    }
}

/// Errors of a connection that was gone before it was accepted: the next one is not concerned.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

/// No descriptor or memory is left: close idle connections. Those to backends go first, as nobody notices. Logged when it
/// begins, not for every try.
fn make_room(worker: &Worker, bind: &BindAddress, failures: u32, error: &io::Error) {
    if failures == 0 {
        tracing::warn!(target: "listener", bind = %bind, %error, "accept failed, idle connections are closed to make room");
    }
    let closed = worker.idle.borrow_mut().shed(SHED_AT_ONCE);
    for _ in closed..SHED_AT_ONCE {
        if !worker.connections.shed_one() {
            break;
        }
    }
}

/// A connection counted against every limit that applies to it; given back when dropped.
struct Admission {
    daemon: Arc<Daemon>,
    state: Arc<ListenerState>,
    client: Option<IpAddr>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.daemon.connections.fetch_sub(1, Relaxed);
        self.state.active.fetch_sub(1, Relaxed);
        self.state.metrics.mine().active.sub(1);
        let Some(client) = self.client else { return };
        let mut clients = self
            .state
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let MapEntry::Occupied(mut entry) = clients.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

fn admit(worker: &Rc<Worker>, stream: Stream, peer: Option<IpAddr>, bind: &Rc<BindAddress>) {
    let generation = worker.generation();
    let listener = generation.binds.get(&**bind).copied();
    let Some(listener) = listener.and_then(|index| generation.listeners.get(index)) else {
        return;
    };
    let is_http = listener.config.protocol == ListenerProtocol::Http;
    listener.state.metrics.mine().connections.add(1);
    let denied = !is_http && !http::is_allowed(peer, &listener.config.allow, &listener.config.deny);
    let admission = if denied {
        Err(Reason::RequestDenied)
    } else {
        count(worker, listener, peer)
    };
    let header = listener.config.timeouts.header;
    match admission {
        Ok(admission) if listener.tls.is_some() => {
            let worker = Rc::clone(worker);
            let listener = Arc::clone(listener);
            let bind = Rc::clone(bind);
            drop(spawn_local(async move {
                let _admission = admission;
                let arrival = Arrival { peer, bind };
                let secured = Box::pin(secure(&worker, &listener, stream, &arrival)).await;
                drop(listener);
                let Some(stream) = secured else { return };
                let Arrival { peer, bind } = arrival;
                if is_http {
                    let entry = worker.connections.enter(Rc::clone(&bind));
                    let client = Client::new(stream, peer, bind, entry, header);
                    http::serve(worker, client).await;
                } else {
                    Box::pin(session(worker, stream, peer, bind)).await;
                }
            }));
        }
        Ok(admission) if is_http => {
            let entry = worker.connections.enter(Rc::clone(bind));
            let client = Client::new(stream, peer, Rc::clone(bind), entry, header);
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = admission;
                http::serve(worker, client).await;
            }));
        }
        Ok(admission) => {
            let worker = Rc::clone(worker);
            let bind = Rc::clone(bind);
            drop(spawn_local(async move {
                let _admission = admission;
                session(worker, stream, peer, bind).await;
            }));
        }
        Err(reason) => {
            listener.state.metrics.mine().rejected.add(reason);
            let mut status = 0;
            if is_http
                && listener.tls.is_none()
                && worker.connections.count() < worker.refusals_below()
            {
                let entry = worker.connections.enter(Rc::clone(bind));
                let client = Client::new(stream, peer, Rc::clone(bind), entry, header);
                status = http::overload_status(&generation);
                drop(spawn_local(http::refuse(
                    Rc::clone(worker),
                    client,
                    Reason::Overload,
                )));
            } else {
                // A client must not take the refusal for an empty answer.
                stream.set_reset_on_close();
            }
            log_refusal(worker, &generation, listener, peer, status, reason);
        }
    }
}

/// One line for a connection that was not let in; `status` is 0 where it was reset.
fn log_refusal(
    worker: &Worker,
    generation: &Snapshot,
    listener: &Listener,
    peer: Option<IpAddr>,
    status: u16,
    reason: Reason,
) {
    let log = &generation.access_log;
    let took = Duration::ZERO;
    if log.wants(status, Some(reason), took, &mut worker.random.borrow_mut()) {
        let mut record = Record::begin(clock::now(), &listener.config.name, peer);
        record.status = status;
        record.reason = Some(reason);
        log.write(&record, &RequestText::default(), &[], took);
    }
}

/// Counts the connection, or says which limit it is over. Idle connections make room for new ones.
fn count(worker: &Worker, listener: &Listener, peer: Option<IpAddr>) -> Result<Admission, Reason> {
    let daemon = &worker.daemon;
    let limits = &listener.config.limits;
    let all = daemon.connections.fetch_add(1, Relaxed);
    let own = listener.state.active.fetch_add(1, Relaxed);
    listener.state.metrics.mine().active.add(1);
    let mut admission = Admission {
        daemon: Arc::clone(daemon),
        state: Arc::clone(&listener.state),
        client: None,
    };
    let limit = daemon.connection_limit.load(Relaxed);
    // An idle connection that closes now leaves its place to this one.
    if all >= limit && !worker.connections.shed_one() {
        return Err(Reason::Overload);
    }
    // Idle connections go first when the limit is near, so that there is room before it is reached.
    if all < limit && all >= limit - limit / 16 {
        worker.connections.shed_one();
    }
    let is_full = own >= limits.connections.unwrap_or(usize::MAX);
    if is_full && !worker.connections.shed_one_on(&listener.config.binds) {
        return Err(Reason::Overload);
    }
    if let (Some(limit), Some(peer)) = (limits.connections_per_client, peer) {
        let mut clients = listener
            .state
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(peer).or_default();
        *count += 1;
        let over = *count > limit;
        drop(clients);
        admission.client = Some(peer);
        if over {
            return Err(Reason::Overload);
        }
    }
    Ok(admission)
}

/// Runs one TCP session and logs it.
async fn session(worker: Rc<Worker>, stream: Stream, peer: Option<IpAddr>, bind: Rc<BindAddress>) {
    let generation = worker.generation();
    let listener = generation.binds.get(&*bind).copied();
    let listener = listener.and_then(|index| generation.listeners.get(index));
    let pool = listener.and_then(|listener| generation.pools.get(listener.config.pool?));
    let (Some(listener), Some(pool)) = (listener, pool) else {
        return stream.set_reset_on_close();
    };
    let context = TcpContext {
        listener: &listener.config.name,
        counters: listener.state.metrics.mine(),
        pool,
        random: &worker.random,
    };
    let mut cut = worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    let record = tcp::session(stream, peer, context, stop).await;
    let took = clock::now().saturating_duration_since(record.began);
    let log = &generation.access_log;
    if log.wants(
        record.status,
        record.reason,
        took,
        &mut worker.random.borrow_mut(),
    ) {
        log.write(&record, &RequestText::default(), &[], took);
    }
}
