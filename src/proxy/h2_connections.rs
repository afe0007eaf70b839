//! HTTP/2 connections to backends, shared by the exchanges of one worker: who gets a stream on which, when another connection
//! is made, and when one has to go.
//!
//! A connection is made by a task of its own, for everybody who waits for it: a client that leaves does not take it along.

use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::spawn_local, time::timeout_at};

use super::{idle::key, reasons, worker::Worker};
use crate::{
    base::{clock, hasher::NumberBuild},
    net::{
        connect::{ConnectError, connect_backend},
        h2::backend::{H2Connection, H2HandshakeError, OutgoingStream, StreamLimit},
    },
    pool::{BackendLease, BackendState, Pool},
    reason::Reason,
};

/// What an exchange needs a stream for.
#[derive(Clone, Copy)]
pub(super) struct StreamRequest<'a> {
    pub pool: &'a Arc<Pool>,
    pub lease: &'a BackendLease,
    /// The PROXY header that the connection must have begun with; `None`: it must not have had one.
    pub proxy_header: Option<&'a [u8]>,
    /// By when there must be one.
    pub deadline: Instant,
    /// How long a connection may take to be made; others may wait for it longer than this exchange can.
    pub connect_timeout: Duration,
}

impl StreamRequest<'_> {
    /// How many exchanges a connection is good for.
    fn uses(&self) -> usize {
        let rules = &self.pool.config.keepalive;
        match rules.max_requests {
            _ if rules.idle_per_backend == 0 => 1,
            Some(most) => usize::try_from(most).unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }
}

/// A stream, and whether its connection has carried others before.
pub(super) type StreamLease = (OutgoingStream, bool);

/// Why a connection could not be made, told to everybody who waited for it.
#[derive(Debug, Clone)]
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

/// What a connection was made with: nobody gets a stream on one that he would have made otherwise.
#[derive(Debug, PartialEq)]
struct ConnectionKey {
    transport_epoch: u64,
    proxy_header: Option<Box<[u8]>>,
}

impl ConnectionKey {
    fn of(request: StreamRequest<'_>) -> Self {
        Self {
            transport_epoch: request.pool.transport_epoch,
            proxy_header: request.proxy_header.map(Box::from),
        }
    }

    fn fits(&self, request: StreamRequest<'_>) -> bool {
        self.transport_epoch == request.pool.transport_epoch
            && self.proxy_header.as_deref() == request.proxy_header
    }
}

#[derive(Debug)]
struct SharedConnection {
    link: Rc<H2Connection>,
    key: ConnectionKey,
    /// Of a backend given by name.
    peer: Option<SocketAddr>,
    idle_timeout: Duration,
}

/// A connection that is being made.
#[derive(Debug)]
struct PendingConnect {
    id: u64,
    key: ConnectionKey,
    waiting: usize,
    outcome: watch::Receiver<Option<Result<(), H2ConnectError>>>,
}

#[derive(Debug)]
struct BackendEntry {
    state: Arc<BackendState>,
    shared: Vec<SharedConnection>,
    pending: Vec<PendingConnect>,
    /// Streams at a time that the backend allowed on the last connection; `usize::MAX` before there was one.
    allowed: usize,
    /// The same, as its refusals have shown.
    limit: Rc<StreamLimit>,
}

impl BackendEntry {
    /// Exchanges at a time on one connection: the least of what the configuration, the backend and its refusals say.
    fn streams(&self, request: StreamRequest<'_>, now: Instant) -> usize {
        let configured = request.pool.config.streams_per_connection;
        configured.min(self.limit.current(now))
    }
}

/// The connections of one worker, by backend.
#[derive(Debug, Default)]
pub struct H2Connections {
    backends: HashMap<usize, BackendEntry, NumberBuild>,
    ids: u64,
}

/// A stream for an exchange: on a connection that is there, or on one that is made for it and others.
pub(super) async fn acquire_stream(
    worker: &Rc<Worker>,
    request: StreamRequest<'_>,
) -> Result<StreamLease, H2ConnectError> {
    loop {
        let found = worker
            .h2_connections
            .borrow_mut()
            .take(request, clock::now());
        if let Some(found) = found {
            return Ok(found);
        }
        // Others may have been faster, and there may be no room again.
        if clock::now() >= request.deadline {
            return Err(H2ConnectError::new(
                Reason::ConnectionTimeout,
                "no stream in time",
            ));
        }
        let mut outcome = join_pending(worker, request);
        let told =
            match timeout_at(request.deadline.into(), outcome.wait_for(Option::is_some)).await {
                Ok(Ok(told)) => told.clone(),
                // Whoever made it is no more: the worker is ending.
                Ok(Err(_)) => Some(Err(H2ConnectError::new(
                    Reason::ConnectionTerminated,
                    "shutting down",
                ))),
                Err(_) => None,
            };
        if let Some(Err(unmade)) = told {
            return Err(unmade);
        }
    }
}

/// Waits with others for a connection that is being made, or has one made.
fn join_pending(
    worker: &Rc<Worker>,
    request: StreamRequest<'_>,
) -> watch::Receiver<Option<Result<(), H2ConnectError>>> {
    let links = &mut *worker.h2_connections.borrow_mut();
    let entry = links.entry(&request.lease.state);
    let streams = entry.streams(request, clock::now()).min(entry.allowed);
    let room = streams.min(request.uses());
    let mut pending = entry.pending.iter_mut();
    if let Some(pending) = pending.find(|one| one.waiting < room && one.key.fits(request)) {
        pending.waiting += 1;
        return pending.outcome.clone();
    }
    links.ids += 1;
    let id = links.ids;
    let (tell, outcome) = watch::channel(None);
    links
        .entry(&request.lease.state)
        .pending
        .push(PendingConnect {
            id,
            key: ConnectionKey::of(request),
            waiting: 1,
            outcome: outcome.clone(),
        });
    let task = connect(
        Rc::clone(worker),
        Arc::clone(request.pool),
        Arc::clone(&request.lease.state),
        ConnectionKey::of(request),
        clock::now() + request.connect_timeout,
    );
    let worker = Rc::clone(worker);
    let state = Arc::clone(&request.lease.state);
    drop(spawn_local(async move {
        let outcome = Box::pin(task).await;
        let links = &mut *worker.h2_connections.borrow_mut();
        links
            .entry(&state)
            .pending
            .retain(|pending| pending.id != id);
        // Nobody may be waiting any more.
        let _ = tell.send(Some(outcome));
    }));
    outcome
}

/// Makes a connection and lets others use it.
async fn connect(
    worker: Rc<Worker>,
    pool: Arc<Pool>,
    state: Arc<BackendState>,
    key: ConnectionKey,
    deadline: Instant,
) -> Result<(), H2ConnectError> {
    let limit = Rc::clone(&worker.h2_connections.borrow_mut().entry(&state).limit);
    let header = key.proxy_header.as_deref();
    let reached = open_connection(&pool, &state, header, limit, deadline).await;
    let metrics = state.metrics.mine();
    let (link, peer) = match reached {
        Ok((link, driver, peer)) => {
            drop(spawn_local(driver));
            (link, peer)
        }
        Err(error) => {
            reasons::count_connect_failure(&state, error.reason);
            return Err(error);
        }
    };
    metrics.connections_ok.add(1);
    let links = &mut *worker.h2_connections.borrow_mut();
    let entry = links.entry(&state);
    entry.allowed = link.max_allowed_streams().max(1);
    entry.shared.push(SharedConnection {
        link,
        key,
        peer,
        idle_timeout: pool.config.keepalive.idle_timeout,
    });
    Ok(())
}

/// A connection with its driver, and for a backend given by name the address it goes to.
async fn open_connection(
    pool: &Pool,
    state: &Arc<BackendState>,
    proxy_header: Option<&[u8]>,
    limit: Rc<StreamLimit>,
    deadline: Instant,
) -> Result<
    (
        Rc<H2Connection>,
        impl Future<Output = ()> + use<>,
        Option<SocketAddr>,
    ),
    H2ConnectError,
> {
    let tls = pool.config.tls.as_ref();
    // The preface follows at once.
    let stream = connect_backend(state, proxy_header, tls, true, deadline).await?;
    let peer = state.is_name().then(|| stream.peer_addr()).flatten();
    let streams = pool.config.streams_per_connection;
    let (link, driver) = H2Connection::open(stream, Some(state), streams, limit, deadline).await?;
    Ok((link, driver, peer))
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

    /// A stream on the first connection that has room: later ones become idle, and end.
    fn take(&mut self, request: StreamRequest<'_>, now: Instant) -> Option<StreamLease> {
        let rules = &request.pool.config.keepalive;
        let entry = self.backends.get_mut(&key(&request.lease.state))?;
        let streams = entry.streams(request, now);
        for shared in &mut entry.shared {
            let link = &shared.link;
            if !shared.key.fits(request) || is_expired(link, rules.max_age, now) {
                continue;
            }
            if !entry.state.resolves_to(shared.peer) {
                link.retire();
                continue;
            }
            let Some(stream) = link.open_stream(streams) else {
                continue;
            };
            shared.idle_timeout = rules.idle_timeout;
            let begun = link.streams_opened();
            let is_last = rules.max_requests.is_some_and(|most| begun >= most);
            if is_last || rules.idle_per_backend == 0 {
                link.retire();
            }
            return Some((stream, begun > 1));
        }
        None
    }

    /// Ends what is over its time, was ended by the backend, goes to an address that the backend's name lacks by now, or
    /// belongs to a backend that left or is down; what is in use comes to its end first.
    pub fn sweep(&mut self, now: Instant) {
        self.backends.retain(|_, entry| {
            let keeps = entry.state.keeps_idle();
            entry.shared.retain(|shared| {
                let idle = shared.link.idle_since();
                let is_late = idle.is_some_and(|since| now >= since + shared.idle_timeout);
                if !keeps || is_late || !entry.state.resolves_to(shared.peer) {
                    shared.link.retire();
                }
                !shared.link.is_retired()
            });
            let has_learned = !entry.state.is_removed() && entry.limit.current(now) != usize::MAX;
            has_learned || !entry.shared.is_empty() || !entry.pending.is_empty()
        });
    }

    /// Ends up to `most` that are idle; says how many.
    pub fn shed(&mut self, most: usize) -> usize {
        let links = self.backends.values().flat_map(|entry| &entry.shared);
        let idle = links.filter(|shared| shared.link.idle_since().is_some());
        let ended = idle.take(most).map(|shared| shared.link.retire()).count();
        self.sweep(clock::now());
        ended
    }

    /// Ends everything, at the end of the worker.
    pub fn clear(&mut self) {
        for (_, entry) in self.backends.drain() {
            entry.shared.iter().for_each(|shared| shared.link.retire());
        }
    }
}

/// Too old for another exchange: another connection spreads them anew. Ends when nothing is on it any more.
fn is_expired(link: &H2Connection, max_age: Option<Duration>, now: Instant) -> bool {
    let age = now.saturating_duration_since(link.opened_at());
    let is_expired = max_age.is_some_and(|limit| age >= limit);
    if is_expired {
        link.retire();
    }
    is_expired
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, task::LocalSet};

    use super::*;
    use crate::{
        base::{address::BackendAddress, rng::Random},
        pool::{ResolvedAddresses, fixture::pool_of},
    };

    #[tokio::test]
    async fn a_connection_to_an_address_that_left_the_answer_gets_no_further_stream() {
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
                let lease = pool.pick(&[], &mut Random::seeded(1)).unwrap();
                let answer = |address| {
                    let resolved = ResolvedAddresses::new(vec![address], None);
                    lease.state.resolved.store(Arc::new(resolved));
                };
                answer(own);
                let deadline = clock::now() + Duration::from_secs(10);
                let (link, driver, peer) =
                    open_connection(&pool, &lease.state, None, Rc::default(), deadline)
                        .await
                        .unwrap();
                drop(spawn_local(driver));
                assert_eq!(peer, Some(own));
                let request = StreamRequest {
                    pool: &pool,
                    lease: &lease,
                    proxy_header: None,
                    deadline,
                    connect_timeout: Duration::from_secs(10),
                };
                let mut links = H2Connections::default();
                links.entry(&lease.state).shared.push(SharedConnection {
                    link: Rc::clone(&link),
                    key: ConnectionKey::of(request),
                    peer,
                    idle_timeout: Duration::from_secs(10),
                });
                let first = links.take(request, clock::now()).unwrap();
                answer(SocketAddr::from(([127, 0, 0, 1], 1)));
                assert!(links.take(request, clock::now()).is_none());
                assert!(
                    link.is_retired() && !link.is_closed(),
                    "what is on it goes on"
                );
                drop(first);
                links.sweep(clock::now());
                assert!(links.backends.is_empty());
            })
            .await;
    }
}
