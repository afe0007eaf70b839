//! HTTP/2 connections to backends, shared by the exchanges of one worker: assigns streams to them,
//! opens further ones, and retires them.
//!
//! A connection is opened in a task of its own, for all exchanges that wait for it, so that it
//! outlives a client that disconnects meanwhile. Frames and windows are in `h2/`.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_local, time::timeout_at};

use super::{idle::key, reasons};
use crate::{
    base::{clock, hasher::NumberBuild},
    h2::{
        FIELD_TABLE_IDLE, StreamError,
        backend::{ConnectionUse, H2Connection, H2HandshakeError, OutgoingStream, StreamLimit},
    },
    net::connect::{ConnectError, connect_backend},
    pool::{Backend, BackendLease, BackendState, Pool},
    reason::Reason,
};

/// The connections of a worker, as its tasks share them.
pub(super) type SharedH2Connections = Rc<RefCell<H2Connections>>;

/// A request for a stream to the backend of an exchange.
#[derive(Clone, Copy)]
pub(super) struct StreamRequest<'a> {
    pub pool: &'a Arc<Pool>,
    pub lease: &'a BackendLease,
    /// The PROXY header that the connection must have begun with; `None`: it must not have one.
    pub proxy_header: Option<&'a [u8]>,
    /// The end of the exchange's own wait.
    pub deadline: Instant,
    /// Time to open a connection: others may wait for it longer than this exchange can.
    pub connect_timeout: Duration,
}

impl StreamRequest<'_> {
    /// Exchanges that one connection may carry in its life.
    fn max_exchanges(&self) -> usize {
        let rules = &self.pool.config.keepalive;
        match rules.max_requests {
            _ if rules.idle_per_backend == 0 => 1,
            Some(most) => usize::try_from(most).unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }
}

/// A stream assigned to an exchange.
pub(super) struct StreamLease {
    pub stream: OutgoingStream,
    /// Its connection has carried other exchanges before, so that it may be stale.
    pub is_reused: bool,
}

/// Failure to open a connection; each exchange that waited for it gets a copy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub(super) struct H2ConnectError {
    pub reason: Reason,
    pub detail: Rc<str>,
}

impl H2ConnectError {
    fn new(reason: Reason, detail: &str) -> Self {
        let detail = detail.into();
        Self { reason, detail }
    }
}

impl From<ConnectError> for H2ConnectError {
    fn from(error: ConnectError) -> Self {
        Self::new(reasons::of_connect(&error), &error.to_string())
    }
}

impl From<H2HandshakeError> for H2ConnectError {
    fn from(error: H2HandshakeError) -> Self {
        Self::new(reasons::of_h2_handshake(&error), &error.to_string())
    }
}

/// Outcome of opening a connection; `None` until it is known.
type ConnectOutcome = Option<Result<(), H2ConnectError>>;

/// Properties that a connection was opened with. Exchanges share a connection only if each of them
/// would have opened the same one.
#[derive(Debug, PartialEq)]
struct ConnectionKey {
    transport_epoch: u64,
    proxy_header: Option<Box<[u8]>>,
}

impl ConnectionKey {
    fn of(request: StreamRequest<'_>) -> Self {
        Self {
            transport_epoch: request.lease.transport_epoch,
            proxy_header: request.proxy_header.map(Box::from),
        }
    }

    fn fits(&self, request: StreamRequest<'_>) -> bool {
        self.transport_epoch == request.lease.transport_epoch
            && self.proxy_header.as_deref() == request.proxy_header
    }
}

/// An open connection.
#[derive(Debug)]
struct SharedConnection {
    connection: Rc<H2Connection>,
    key: ConnectionKey,
    /// The address connected to; only for a backend given by name.
    peer: Option<SocketAddr>,
    idle_timeout: Duration,
}

/// A connection that is being opened.
#[derive(Debug)]
struct PendingConnect {
    id: u64,
    key: ConnectionKey,
    /// Exchanges that wait for it.
    waiting: usize,
    outcome: watch::Receiver<ConnectOutcome>,
}

/// The connections to one backend.
#[derive(Debug)]
struct BackendEntry {
    state: Arc<BackendState>,
    shared: Vec<SharedConnection>,
    pending: Vec<PendingConnect>,
    /// Concurrent streams that the backend allowed on the last connection; `usize::MAX` before the
    /// first one.
    allowed: usize,
    /// Concurrent streams that the backend takes, as its refusals have shown.
    limit: Rc<StreamLimit>,
}

impl BackendEntry {
    /// Concurrent exchanges on one connection: the least of the configured number and the one that
    /// refusals have shown. A connection applies the backend's own announcement itself.
    fn max_streams(&self, request: StreamRequest<'_>, now: Instant) -> usize {
        let configured = request.pool.config.streams_per_connection;
        configured.min(self.limit.current(now))
    }
}

/// The connections of one worker, by backend.
#[derive(Debug, Default)]
pub struct H2Connections {
    backends: HashMap<usize, BackendEntry, NumberBuild>,
    next_id: u64,
}

/// Assigns a stream: on an open connection, or on one that is opened for this exchange and others.
pub(super) async fn acquire_stream(
    connections: &SharedH2Connections,
    request: StreamRequest<'_>,
) -> Result<StreamLease, H2ConnectError> {
    loop {
        let found = connections.borrow_mut().take(request, clock::now());
        if let Some(found) = found {
            return Ok(found);
        }
        // Other exchanges may have taken all streams of the connection that this one waited for.
        if clock::now() >= request.deadline {
            let late = Reason::ConnectionTimeout;
            return Err(H2ConnectError::new(late, "no stream in time"));
        }
        let mut outcome = join_pending(connections, request);
        let known = outcome.wait_for(Option::is_some);
        match timeout_at(request.deadline.into(), known).await {
            Ok(Ok(outcome)) => {
                if let Some(Err(error)) = &*outcome {
                    return Err(error.clone());
                }
            }
            // The task that opened it was dropped: the worker is ending.
            Ok(Err(_)) => {
                let ending = Reason::ConnectionTerminated;
                return Err(H2ConnectError::new(ending, "shutting down"));
            }
            // One last look before the deadline is reported.
            Err(_) => {}
        }
    }
}

/// Joins the exchanges that wait for a connection, or has another one opened.
fn join_pending(
    connections: &SharedH2Connections,
    request: StreamRequest<'_>,
) -> watch::Receiver<ConnectOutcome> {
    let mut table = connections.borrow_mut();
    let id = table.next_id;
    let entry = table.entry(&request.lease.state);
    let streams = entry.max_streams(request, clock::now()).min(entry.allowed);
    let capacity = streams.min(request.max_exchanges());
    let mut pending = entry.pending.iter_mut();
    if let Some(pending) = pending.find(|one| one.waiting < capacity && one.key.fits(request)) {
        pending.waiting += 1;
        return pending.outcome.clone();
    }
    let (report, outcome) = watch::channel(None);
    entry.pending.push(PendingConnect {
        id,
        key: ConnectionKey::of(request),
        waiting: 1,
        outcome: outcome.clone(),
    });
    table.next_id += 1;
    drop(table);
    let task = connect(
        Rc::clone(connections),
        Arc::clone(request.pool),
        Arc::clone(request.lease.backend()),
        ConnectionKey::of(request),
        clock::now() + request.connect_timeout,
    );
    let connections = Rc::clone(connections);
    let state = Arc::clone(&request.lease.state);
    drop(spawn_local(async move {
        let outcome = Box::pin(task).await;
        let mut table = connections.borrow_mut();
        table.entry(&state).pending.retain(|one| one.id != id);
        // Fails if all exchanges that waited have ended.
        let _ = report.send(Some(outcome));
    }));
    outcome
}

/// Opens a connection and adds it to those that exchanges share.
async fn connect(
    connections: SharedH2Connections,
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    key: ConnectionKey,
    deadline: Instant,
) -> Result<(), H2ConnectError> {
    let state = &backend.state;
    let limit = Rc::clone(&connections.borrow_mut().entry(state).limit);
    let header = key.proxy_header.as_deref();
    let opened = open_connection(&pool, &backend, header, limit, deadline).await;
    let (connection, peer) = match opened {
        Ok((connection, driver, peer)) => {
            let backend = Arc::clone(state);
            drop(spawn_local(async move {
                if let Some(ended @ StreamError::Failed(_)) = driver.await {
                    let backend = &backend.address;
                    tracing::debug!(target: "http", ?backend, %ended, "http/2 connection failed");
                }
            }));
            (connection, peer)
        }
        Err(error) => {
            reasons::count_connect_failure(state, error.reason);
            return Err(error);
        }
    };
    state.metrics.mine().connections_ok.add(1);
    let mut table = connections.borrow_mut();
    let entry = table.entry(state);
    entry.allowed = connection.max_allowed_streams().max(1);
    entry.shared.push(SharedConnection {
        connection,
        key,
        peer,
        idle_timeout: pool.config.keepalive.idle_timeout,
    });
    Ok(())
}

/// Opens a connection; returns it with its driver and, for a backend given by name, the address it
/// goes to.
async fn open_connection(
    pool: &Pool,
    backend: &Backend,
    proxy_header: Option<&[u8]>,
    limit: Rc<StreamLimit>,
    deadline: Instant,
) -> Result<
    (
        Rc<H2Connection>,
        impl Future<Output = Option<StreamError>> + use<>,
        Option<SocketAddr>,
    ),
    H2ConnectError,
> {
    let (state, tls) = (&backend.state, backend.tls(&pool.config));
    // We speak first, RFC 9113 section 3.4, so that the PROXY header can share a segment with the
    // preface.
    let speaks_first = true;
    let stream = connect_backend(state, proxy_header, tls, speaks_first, deadline).await?;
    let peer = state.is_name().then(|| stream.peer_addr()).flatten();
    let streams = pool.config.streams_per_connection;
    let backend = Arc::clone(state);
    let on_use_change = Box::new(move |from, to| count_use(&backend, from, to));
    let (connection, driver) =
        H2Connection::open(stream, on_use_change, streams, limit, deadline).await?;
    Ok((connection, driver, peer))
}

/// Counts a connection among the idle or the active ones.
fn count_use(state: &BackendState, from: Option<ConnectionUse>, to: Option<ConnectionUse>) {
    let metrics = state.metrics.mine();
    let cell = |it| match it {
        ConnectionUse::Idle => &metrics.connections_idle,
        ConnectionUse::Active => &metrics.connections_active,
    };
    if let Some(from) = from {
        cell(from).sub(1);
    }
    if let Some(to) = to {
        cell(to).add(1);
    }
}

impl H2Connections {
    fn entry(&mut self, state: &Arc<BackendState>) -> &mut BackendEntry {
        self.backends
            .entry(key(state))
            .or_insert_with(|| BackendEntry {
                state: Arc::clone(state),
                shared: Vec::new(),
                pending: Vec::new(),
                allowed: usize::MAX,
                limit: Rc::default(),
            })
    }

    /// Takes a stream of the first connection that has one free, so that later ones become idle and
    /// close when load falls.
    pub(super) fn take(&mut self, request: StreamRequest<'_>, now: Instant) -> Option<StreamLease> {
        let rules = &request.pool.config.keepalive;
        let entry = self.backends.get_mut(&key(&request.lease.state))?;
        let streams = entry.max_streams(request, now);
        for shared in &mut entry.shared {
            let connection = &shared.connection;
            if !shared.key.fits(request) || is_expired(connection, rules.max_age, now) {
                continue;
            }
            // The backend's name leads elsewhere by now.
            if !entry.state.resolves_to(shared.peer) {
                connection.retire();
                continue;
            }
            let Some(stream) = connection.open_stream(streams) else {
                continue;
            };
            shared.idle_timeout = rules.idle_timeout;
            let begun = connection.streams_opened();
            let is_last = rules.max_requests.is_some_and(|most| begun >= most);
            if is_last || rules.idle_per_backend == 0 {
                connection.retire();
            }
            return Some(StreamLease {
                stream,
                is_reused: begun > 1,
            });
        }
        None
    }

    /// Retires connections that were idle for too long, go to an address that the backend's name
    /// lacks by now, or belong to a backend that was removed or is down; forgets those that are
    /// retired. Exchanges on them run to their end. Frees memory of those that are idle.
    pub fn sweep(&mut self, now: Instant) {
        self.backends.retain(|_, entry| {
            let keeps = entry.state.keeps_idle();
            entry.shared.retain(|shared| {
                let idle = shared.connection.idle_since();
                let is_late = idle.is_some_and(|since| now >= since + shared.idle_timeout);
                if idle.is_some_and(|since| now >= since + FIELD_TABLE_IDLE) {
                    shared.connection.release_field_table();
                }
                if !keeps || is_late || !entry.state.resolves_to(shared.peer) {
                    shared.connection.retire();
                }
                !shared.connection.is_retired()
            });
            // A limit learned by refusals would have to be learned again, at the cost of requests.
            let has_learned = !entry.state.is_removed() && entry.limit.current(now) != usize::MAX;
            has_learned || !entry.shared.is_empty() || !entry.pending.is_empty()
        });
    }

    /// Retires up to `most` idle connections; returns how many.
    pub fn shed(&mut self, most: usize) -> usize {
        let all = self.backends.values().flat_map(|entry| &entry.shared);
        let idle = all.filter(|shared| shared.connection.idle_since().is_some());
        let retired = idle.take(most).map(|shared| shared.connection.retire());
        let count = retired.count();
        self.sweep(clock::now());
        count
    }

    /// Retires all connections, at the end of the worker.
    pub fn clear(&mut self) {
        for shared in self.backends.drain().flat_map(|(_, entry)| entry.shared) {
            shared.connection.retire();
        }
    }
}

/// True for a connection that is too old for another exchange, which is retired by that: the next
/// connection may reach another instance behind the same address.
fn is_expired(connection: &H2Connection, max_age: Option<Duration>, now: Instant) -> bool {
    let age = now.saturating_duration_since(connection.opened_at());
    let is_expired = max_age.is_some_and(|limit| age >= limit);
    if is_expired {
        connection.retire();
    }
    is_expired
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, task::LocalSet};

    use super::*;
    use crate::{
        base::{address::BackendAddress, rng::Random},
        pool::{
            ResolvedAddresses,
            fixture::{pick, pool_of},
        },
    };

    #[tokio::test]
    async fn a_connection_to_an_address_that_its_name_has_lost_gets_no_further_stream() {
        LocalSet::new()
            .run_until(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let own = listener.local_addr().unwrap();
                drop(spawn_local(async move {
                    let (socket, _) = listener.accept().await.unwrap();
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while connection.accept().await.is_some() {}
                }));
                let name = BackendAddress::Name {
                    host: "app.test".into(),
                    port: own.port(),
                };
                let pool = pool_of(&[name], None);
                let lease = pick(&pool, &[], &mut Random::seeded(1)).unwrap();
                let resolve_to = |address| {
                    let resolved = ResolvedAddresses::new(vec![address], None);
                    lease.state.resolved.store(Arc::new(resolved));
                };
                resolve_to(own);
                let deadline = clock::now() + Duration::from_secs(10);
                let opened = open_connection(&pool, &lease, None, Rc::default(), deadline);
                let (connection, driver, peer) = opened.await.unwrap();
                drop(spawn_local(driver));
                assert_eq!(peer, Some(own));
                let request = StreamRequest {
                    pool: &pool,
                    lease: &lease,
                    proxy_header: None,
                    deadline,
                    connect_timeout: Duration::from_secs(10),
                };
                let mut table = H2Connections::default();
                table.entry(&lease.state).shared.push(SharedConnection {
                    connection: Rc::clone(&connection),
                    key: ConnectionKey::of(request),
                    peer,
                    idle_timeout: Duration::from_secs(10),
                });
                let first = table.take(request, clock::now()).unwrap();
                resolve_to(SocketAddr::from(([127, 0, 0, 1], 1)));
                assert!(table.take(request, clock::now()).is_none());
                assert!(
                    connection.is_retired() && !connection.is_closed(),
                    "its stream goes on"
                );
                drop(first);
                table.sweep(clock::now());
                assert!(table.backends.is_empty());
            })
            .await;
    }
}
