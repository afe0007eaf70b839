//! Takes connections from one listening socket: limits, a PROXY header where the listener asks for one, then an HTTP
//! connection or a TCP session of its own task.
//!
//! An accept error never ends the loop and never makes it spin: it waits, sheds idle connections, and goes on.

use std::{
    collections::hash_map::Entry as MapEntry,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{select, sync::watch, task::spawn_local, time::sleep};

use super::{
    http::{self, Client},
    introduction,
    secure::secure,
    session::{session, session_by_name},
    worker::Worker,
};
use crate::{
    base::{address::BindAddress, backoff, clock},
    config::model::{AcceptProxyConfig, ListenerProtocol, ProxyVersion},
    net::{limits, listen::Acceptor, proxy_protocol::ProxyHeader, stream::Stream},
    reason::Reason,
    snapshot::{Daemon, Listener, ListenerState, Snapshot},
    telemetry::record::{AccessRecord, RequestText},
};

/// First wait after an accept error; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// Longest wait: a descriptor that becomes free is used within this time.
const LONGEST_WAIT: Duration = Duration::from_millis(80);
/// Shortest time between two lines about connections that wait for a descriptor.
const REPORT_EVERY: Duration = Duration::from_secs(10);
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
    let mut reported: Option<Instant> = None;
    loop {
        let accepted = select! {
            accepted = acceptor.accept() => accepted,
            // The sender is gone only when the worker ends.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                if stream.fd().is_some_and(limits::is_reserved) {
                    let now = clock::now();
                    let is_known = reported.is_some_and(|at| now - at < REPORT_EVERY);
                    if !is_known {
                        reported = Some(now);
                    }
                    wait_for_room(&worker, &bind, &stream, &stop, is_known.into()).await;
                }
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
    match acceptor.drain_queue() {
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

/// Holds a connection that took a descriptor of the reserve until there is another one outside of it, or until the end. It is
/// logged where `first` is 0.
async fn wait_for_room(
    worker: &Worker,
    bind: &BindAddress,
    stream: &Stream,
    stop: &watch::Receiver<bool>,
    first: u32,
) {
    let error = io::Error::from_raw_os_error(libc::EMFILE);
    for failures in first.. {
        make_room(worker, bind, failures, &error);
        sleep(backoff::doubled(FIRST_WAIT, failures, LONGEST_WAIT)).await;
        if *stop.borrow() || stream.fd().is_some_and(limits::has_room) {
            return;
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
    let mut closed = worker.idle.borrow_mut().shed(SHED_AT_ONCE);
    closed += worker.links.borrow_mut().shed(SHED_AT_ONCE - closed);
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

/// A connection on its way in.
pub(super) struct Arrival {
    pub(super) stream: Stream,
    /// The client's address, as far as it is known.
    pub(super) peer: Option<IpAddr>,
    pub(super) bind: Rc<BindAddress>,
    /// What its PROXY header said.
    pub(super) introduced: Option<Box<ProxyHeader>>,
    /// Time for the head of its first request.
    header: Option<Duration>,
}

fn admit(worker: &Rc<Worker>, stream: Stream, peer: Option<IpAddr>, bind: &Rc<BindAddress>) {
    let generation = worker.generation();
    let Some(listener) = listener_of(&generation, bind) else {
        return;
    };
    listener.state.metrics.mine().connections.add(1);
    let arrival = Arrival {
        stream,
        peer,
        bind: Rc::clone(bind),
        introduced: None,
        header: listener.config.timeouts.header,
    };
    if let Some(rules) = &listener.config.accept_proxy {
        return admit_introduced(worker, &generation, listener, rules, arrival);
    }
    let admission = if may_enter(listener, peer) {
        count(worker, listener, peer)
    } else {
        Err(Reason::RequestDenied)
    };
    enter(worker, &generation, listener, arrival, admission);
}

/// The listener that an address belongs to in a generation.
pub(super) fn listener_of<'a>(
    generation: &'a Snapshot,
    bind: &BindAddress,
) -> Option<&'a Arc<Listener>> {
    let listener = generation.binds.get(bind).copied()?;
    generation.listeners.get(listener)
}

/// Whether a tcp listener's rules let the client in; an http listener answers whom it denies.
fn may_enter(listener: &Listener, peer: Option<IpAddr>) -> bool {
    let config = &listener.config;
    config.protocol == ListenerProtocol::Http || http::is_allowed(peer, &config.allow, &config.deny)
}

/// Begins a connection that must tell who its client is before anything else. What comes from elsewhere is not read.
fn admit_introduced(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    rules: &AcceptProxyConfig,
    arrival: Arrival,
) {
    if !http::is_allowed(arrival.peer, &rules.from, &[]) {
        return reject(
            worker,
            generation,
            listener,
            &arrival,
            Reason::RequestDenied,
        );
    }
    // Only the client's own limit has to wait.
    match count(worker, listener, None) {
        Ok(admission) => {
            let version = rules.version;
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                if let Some(arrival) = introduce(&worker, arrival, version).await {
                    enter_introduced(&worker, arrival, admission);
                }
            }));
        }
        Err(reason) => enter(worker, generation, listener, arrival, Err(reason)),
    }
}

/// Takes the header off the connection; `None` if it was refused for want of one, or ended.
async fn introduce(
    worker: &Rc<Worker>,
    mut arrival: Arrival,
    version: Option<ProxyVersion>,
) -> Option<Arrival> {
    let began = clock::now();
    let time = arrival.header.unwrap_or(introduction::TIME);
    let mut cut = worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    match introduction::take(&arrival.stream, version, began + time, stop).await {
        Ok(header) => {
            arrival.peer = header.client(arrival.peer);
            arrival.introduced = Some(Box::new(header));
            // One deadline from the accept to the head of the first request.
            let took = clock::now().saturating_duration_since(began);
            arrival.header = arrival.header.map(|time| time.saturating_sub(took));
            Some(arrival)
        }
        Err(reason) => {
            let generation = worker.generation();
            let listener = listener_of(&generation, &arrival.bind);
            if let (Some(listener), Some(reason)) = (listener, reason) {
                reject(worker, &generation, listener, &arrival, reason);
            }
            None
        }
    }
}

/// Lets a connection in whose client is known now, by the rules in force now.
fn enter_introduced(worker: &Rc<Worker>, arrival: Arrival, admission: Admission) {
    let generation = worker.generation();
    let Some(listener) = listener_of(&generation, &arrival.bind) else {
        return arrival.stream.set_reset_on_close();
    };
    let admission = if may_enter(listener, arrival.peer) {
        count_client(admission, listener, arrival.peer)
    } else {
        Err(Reason::RequestDenied)
    };
    enter(worker, &generation, listener, arrival, admission);
}

/// Starts what was let in, and refuses what was not.
fn enter(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    arrival: Arrival,
    admission: Result<Admission, Reason>,
) {
    let is_http = listener.config.protocol == ListenerProtocol::Http;
    match admission {
        Ok(admission) if listener.tls.is_some() => {
            enter_secured(Rc::clone(worker), Arc::clone(listener), arrival, admission);
        }
        Ok(admission) if is_http => {
            let client = arrival.into_client(worker);
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = admission;
                http::serve(worker, client).await;
            }));
        }
        Ok(admission) if listener.names.is_some() => {
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = admission;
                session_by_name(worker, arrival).await;
            }));
        }
        Ok(admission) => {
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = admission;
                session(worker, arrival).await;
            }));
        }
        Err(reason)
            if is_http
                && listener.tls.is_none()
                && worker.connections.count() < worker.refusals_below() =>
        {
            listener.state.metrics.mine().rejected.add(reason);
            let status = http::overload_status(generation);
            log_refusal(worker, generation, listener, arrival.peer, status, reason);
            let client = arrival.into_client(worker);
            drop(spawn_local(http::refuse(
                Rc::clone(worker),
                client,
                Reason::Overload,
            )));
        }
        Err(reason) => reject(worker, generation, listener, &arrival, reason),
    }
}

/// Starts what was let in on a listener with TLS.
fn enter_secured(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    arrival: Arrival,
    admission: Admission,
) {
    let is_http = listener.config.protocol == ListenerProtocol::Http;
    drop(spawn_local(async move {
        let _admission = admission;
        let secured = arrival.secured(&worker, &listener).await;
        drop(listener);
        let Some(arrival) = secured else { return };
        if is_http {
            let client = arrival.into_client(&worker);
            http::serve(worker, client).await;
        } else {
            Box::pin(session(worker, arrival)).await;
        }
    }));
}

impl Arrival {
    /// The same behind its TLS handshake, where the listener has TLS.
    async fn secured(mut self, worker: &Rc<Worker>, listener: &Listener) -> Option<Self> {
        let secured = secure(worker, listener, self.stream, self.peer, &self.bind);
        self.stream = Box::pin(secured).await?;
        Some(self)
    }

    /// The same as a connection that is counted among those of the worker.
    pub(super) fn into_client(self, worker: &Worker) -> Client {
        let entry = worker.connections.enter(Rc::clone(&self.bind));
        let mut client = Client::new(self.stream, self.peer, self.bind, entry, self.header);
        client.introduced = self.introduced;
        client
    }
}

/// Turns a connection away without a word.
fn reject(
    worker: &Worker,
    generation: &Snapshot,
    listener: &Listener,
    arrival: &Arrival,
    reason: Reason,
) {
    listener.state.metrics.mine().rejected.add(reason);
    // A client must not take the refusal for an empty answer.
    arrival.stream.set_reset_on_close();
    log_refusal(worker, generation, listener, arrival.peer, 0, reason);
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
        let mut record = AccessRecord::begin(clock::now(), &listener.config.name, peer);
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
    let admission = Admission {
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
    count_client(admission, listener, peer)
}

/// Counts the connection against the limit of its client, or says that it is over it.
fn count_client(
    mut admission: Admission,
    listener: &Listener,
    peer: Option<IpAddr>,
) -> Result<Admission, Reason> {
    let limits = &listener.config.limits;
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
