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
    http::{self, ClientConnection},
    proxy_header,
    secure::secure,
    session::{session, sni_session},
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
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// Longest wait: a descriptor that becomes free is used within this time.
const MAX_BACKOFF: Duration = Duration::from_millis(80);
/// Shortest time between two lines about connections that wait for a descriptor.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Connections refused in one loop before other tasks get their turn.
const MAX_SHED_PER_ROUND: usize = 16;

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
                    let is_known = reported.is_some_and(|at| now - at < REPORT_INTERVAL);
                    if !is_known {
                        reported = Some(now);
                    }
                    wait_for_descriptor(&worker, &bind, &stream, &stop, is_known.into()).await;
                }
                on_accept(&worker, stream, peer, &bind);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                shed_idle(&worker, &bind, failures, &error);
                sleep(backoff::doubled(FIRST_BACKOFF, failures, MAX_BACKOFF)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
    match acceptor.drain_queue() {
        Ok(queued) => {
            for (stream, peer) in queued {
                on_accept(&worker, stream, peer, &bind);
            }
        }
        Err(error) => {
            tracing::warn!(target: "listener", %bind, %error, "queued connections are lost");
        }
    }
}

/// Holds a connection that took a descriptor of the reserve until there is another one outside of it, or until the end. It is
/// logged where `first` is 0.
async fn wait_for_descriptor(
    worker: &Worker,
    bind: &BindAddress,
    stream: &Stream,
    stop: &watch::Receiver<bool>,
    first: u32,
) {
    let error = io::Error::from_raw_os_error(libc::EMFILE);
    for failures in first.. {
        shed_idle(worker, bind, failures, &error);
        sleep(backoff::doubled(FIRST_BACKOFF, failures, MAX_BACKOFF)).await;
        if *stop.borrow() || stream.fd().is_some_and(limits::can_open_descriptor) {
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
fn shed_idle(worker: &Worker, bind: &BindAddress, failures: u32, error: &io::Error) {
    if failures == 0 {
        tracing::warn!(target: "listener", bind = %bind, %error, "accept failed, idle connections are closed to make room");
    }
    let mut closed = worker.idle.borrow_mut().shed(MAX_SHED_PER_ROUND);
    closed += worker
        .h2_connections
        .borrow_mut()
        .shed(MAX_SHED_PER_ROUND - closed);
    for _ in closed..MAX_SHED_PER_ROUND {
        if !worker.connections.shed_one() {
            break;
        }
    }
}

/// A connection counted against every limit that applies to it; given back when dropped.
struct ConnectionPermit {
    daemon: Arc<Daemon>,
    state: Arc<ListenerState>,
    client: Option<IpAddr>,
}

impl Drop for ConnectionPermit {
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
pub(super) struct AcceptedConnection {
    pub(super) stream: Stream,
    /// The client's address, as far as it is known.
    pub(super) peer: Option<IpAddr>,
    pub(super) bind: Rc<BindAddress>,
    /// What its PROXY header said.
    pub(super) proxy_header: Option<Box<ProxyHeader>>,
    /// Time for the head of its first request.
    header: Option<Duration>,
}

fn on_accept(worker: &Rc<Worker>, stream: Stream, peer: Option<IpAddr>, bind: &Rc<BindAddress>) {
    let generation = worker.generation();
    let Some(listener) = listener_of(&generation, bind) else {
        return;
    };
    listener.state.metrics.mine().connections.add(1);
    let connection = AcceptedConnection {
        stream,
        peer,
        bind: Rc::clone(bind),
        proxy_header: None,
        header: listener.config.timeouts.header,
    };
    if let Some(rules) = &listener.config.accept_proxy {
        return expect_proxy_header(worker, &generation, listener, rules, connection);
    }
    let permit = if is_allowed(listener, peer) {
        acquire_permit(worker, listener, peer)
    } else {
        Err(Reason::RequestDenied)
    };
    start(worker, &generation, listener, connection, permit);
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
fn is_allowed(listener: &Listener, peer: Option<IpAddr>) -> bool {
    let config = &listener.config;
    config.protocol == ListenerProtocol::Http || http::is_allowed(peer, &config.allow, &config.deny)
}

/// Begins a connection that must tell who its client is before anything else. What comes from elsewhere is not read.
fn expect_proxy_header(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    rules: &AcceptProxyConfig,
    connection: AcceptedConnection,
) {
    if !http::is_allowed(connection.peer, &rules.from, &[]) {
        return reject(
            worker,
            generation,
            listener,
            &connection,
            Reason::RequestDenied,
        );
    }
    // Only the client's own limit has to wait.
    match acquire_permit(worker, listener, None) {
        Ok(permit) => {
            let version = rules.version;
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                if let Some(connection) = receive_proxy_header(&worker, connection, version).await {
                    on_proxy_header(&worker, connection, permit);
                }
            }));
        }
        Err(reason) => start(worker, generation, listener, connection, Err(reason)),
    }
}

/// Takes the header off the connection; `None` if it was refused for want of one, or ended.
async fn receive_proxy_header(
    worker: &Rc<Worker>,
    mut connection: AcceptedConnection,
    version: Option<ProxyVersion>,
) -> Option<AcceptedConnection> {
    let began = clock::now();
    let time = connection.header.unwrap_or(proxy_header::READ_TIMEOUT);
    let mut cut = worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    match proxy_header::read_proxy_header(&connection.stream, version, began + time, stop).await {
        Ok(header) => {
            connection.peer = header.client(connection.peer);
            connection.proxy_header = Some(Box::new(header));
            // One deadline from the accept to the head of the first request.
            let took = clock::now().saturating_duration_since(began);
            connection.header = connection.header.map(|time| time.saturating_sub(took));
            Some(connection)
        }
        Err(reason) => {
            let generation = worker.generation();
            let listener = listener_of(&generation, &connection.bind);
            if let (Some(listener), Some(reason)) = (listener, reason) {
                reject(worker, &generation, listener, &connection, reason);
            }
            None
        }
    }
}

/// Lets a connection in whose client is known now, by the rules in force now.
fn on_proxy_header(worker: &Rc<Worker>, connection: AcceptedConnection, permit: ConnectionPermit) {
    let generation = worker.generation();
    let Some(listener) = listener_of(&generation, &connection.bind) else {
        return connection.stream.set_reset_on_close();
    };
    let permit = if is_allowed(listener, connection.peer) {
        acquire_client_permit(permit, listener, connection.peer)
    } else {
        Err(Reason::RequestDenied)
    };
    start(worker, &generation, listener, connection, permit);
}

/// Starts what was let in, and refuses what was not.
fn start(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    connection: AcceptedConnection,
    permit: Result<ConnectionPermit, Reason>,
) {
    let is_http = listener.config.protocol == ListenerProtocol::Http;
    match permit {
        Ok(permit) if listener.tls.is_some() => {
            start_tls(Rc::clone(worker), Arc::clone(listener), connection, permit);
        }
        Ok(permit) if is_http => {
            let client = connection.into_client(worker);
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = permit;
                http::serve(worker, client).await;
            }));
        }
        Ok(permit) if listener.names.is_some() => {
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = permit;
                sni_session(worker, connection).await;
            }));
        }
        Ok(permit) => {
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                let _admission = permit;
                session(worker, connection).await;
            }));
        }
        Err(reason)
            if is_http
                && listener.tls.is_none()
                && worker.connections.count() < worker.max_answered_connections() =>
        {
            listener.state.metrics.mine().rejected.add(reason);
            let status = http::overload_status(generation);
            log_refusal(
                worker,
                generation,
                listener,
                connection.peer,
                status,
                reason,
            );
            let client = connection.into_client(worker);
            drop(spawn_local(http::refuse(
                Rc::clone(worker),
                client,
                Reason::Overload,
            )));
        }
        Err(reason) => reject(worker, generation, listener, &connection, reason),
    }
}

/// Starts what was let in on a listener with TLS.
fn start_tls(
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    connection: AcceptedConnection,
    permit: ConnectionPermit,
) {
    let is_http = listener.config.protocol == ListenerProtocol::Http;
    drop(spawn_local(async move {
        let _admission = permit;
        let secured = connection.secured(&worker, &listener).await;
        drop(listener);
        let Some(connection) = secured else { return };
        if is_http {
            let client = connection.into_client(&worker);
            http::serve(worker, client).await;
        } else {
            Box::pin(session(worker, connection)).await;
        }
    }));
}

impl AcceptedConnection {
    /// The same behind its TLS handshake, where the listener has TLS.
    async fn secured(mut self, worker: &Rc<Worker>, listener: &Listener) -> Option<Self> {
        let secured = secure(worker, listener, self.stream, self.peer, &self.bind);
        self.stream = Box::pin(secured).await?;
        Some(self)
    }

    /// The same as a connection that is counted among those of the worker.
    pub(super) fn into_client(self, worker: &Worker) -> ClientConnection {
        let entry = worker.connections.enter(Rc::clone(&self.bind));
        let mut client =
            ClientConnection::new(self.stream, self.peer, self.bind, entry, self.header);
        client.proxy_header = self.proxy_header;
        client
    }
}

/// Turns a connection away without a word.
fn reject(
    worker: &Worker,
    generation: &Snapshot,
    listener: &Listener,
    connection: &AcceptedConnection,
    reason: Reason,
) {
    listener.state.metrics.mine().rejected.add(reason);
    // A client must not take the refusal for an empty answer.
    connection.stream.set_reset_on_close();
    log_refusal(worker, generation, listener, connection.peer, 0, reason);
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
fn acquire_permit(
    worker: &Worker,
    listener: &Listener,
    peer: Option<IpAddr>,
) -> Result<ConnectionPermit, Reason> {
    let daemon = &worker.daemon;
    let limits = &listener.config.limits;
    let all = daemon.connections.fetch_add(1, Relaxed);
    let own = listener.state.active.fetch_add(1, Relaxed);
    listener.state.metrics.mine().active.add(1);
    let permit = ConnectionPermit {
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
    acquire_client_permit(permit, listener, peer)
}

/// Counts the connection against the limit of its client, or says that it is over it.
fn acquire_client_permit(
    mut permit: ConnectionPermit,
    listener: &Listener,
    peer: Option<IpAddr>,
) -> Result<ConnectionPermit, Reason> {
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
        permit.client = Some(peer);
        if over {
            return Err(Reason::Overload);
        }
    }
    Ok(permit)
}
