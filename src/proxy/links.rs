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

use super::{idle::key, worker::Worker};
use crate::{
    base::{clock, hasher::NumberBuild},
    net::{
        connect::{ConnectError, count_failed},
        h2::backend::{Link, Outgoing, StreamLimit},
        tls,
    },
    pool::{BackendLease, BackendState, Pool},
    reason::Reason,
};

/// What an exchange needs a stream for.
#[derive(Clone, Copy)]
pub(super) struct Want<'a> {
    pub pool: &'a Arc<Pool>,
    pub lease: &'a BackendLease,
    /// The PROXY header that the connection must have begun with; `None`: it must not have had one.
    pub introduction: Option<&'a [u8]>,
    /// By when there must be one.
    pub deadline: Instant,
    /// How long a connection may take to be made; others may wait for it longer than this exchange can.
    pub patience: Duration,
}

impl Want<'_> {
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
pub(super) type Found = (Outgoing, bool);

/// Why a connection could not be made, told to everybody who waited for it.
#[derive(Debug, Clone)]
pub(super) struct Unmade {
    pub reason: Reason,
    pub detail: Rc<str>,
}

impl Unmade {
    fn new(reason: Reason, detail: &str) -> Self {
        let detail = detail.into();
        Self { reason, detail }
    }
}

impl From<ConnectError> for Unmade {
    fn from(error: ConnectError) -> Self {
        Self::new(error.reason, &error.to_string())
    }
}

/// What a connection was made with: nobody gets a stream on one that he would have made otherwise.
#[derive(Debug, PartialEq)]
struct Made {
    transport_epoch: u64,
    introduction: Option<Box<[u8]>>,
}

impl Made {
    fn of(want: Want<'_>) -> Self {
        Self {
            transport_epoch: want.pool.transport_epoch,
            introduction: want.introduction.map(Box::from),
        }
    }

    fn fits(&self, want: Want<'_>) -> bool {
        self.transport_epoch == want.pool.transport_epoch
            && self.introduction.as_deref() == want.introduction
    }
}

#[derive(Debug)]
struct Shared {
    link: Rc<Link>,
    made: Made,
    /// Of a backend given by name.
    peer: Option<SocketAddr>,
    idle_timeout: Duration,
}

/// A connection that is being made.
#[derive(Debug)]
struct Making {
    id: u64,
    made: Made,
    waiting: usize,
    outcome: watch::Receiver<Option<Result<(), Unmade>>>,
}

#[derive(Debug)]
struct Line {
    state: Arc<BackendState>,
    shared: Vec<Shared>,
    making: Vec<Making>,
    /// Streams at a time that the backend allowed on the last connection; `usize::MAX` before there was one.
    allowed: usize,
    /// The same, as its refusals have shown.
    limit: Rc<StreamLimit>,
}

impl Line {
    /// Exchanges at a time on one connection: the least of what the configuration, the backend and its refusals say.
    fn streams(&self, want: Want<'_>, now: Instant) -> usize {
        let configured = want.pool.config.streams_per_connection;
        configured.min(self.limit.current(now))
    }
}

/// The connections of one worker, by backend.
#[derive(Debug, Default)]
pub struct Links {
    lines: HashMap<usize, Line, NumberBuild>,
    ids: u64,
}

/// A stream for an exchange: on a connection that is there, or on one that is made for it and others.
pub(super) async fn stream(worker: &Rc<Worker>, want: Want<'_>) -> Result<Found, Unmade> {
    loop {
        let found = worker.links.borrow_mut().take(want, clock::now());
        if let Some(found) = found {
            return Ok(found);
        }
        // Others may have been faster, and there may be no room again.
        if clock::now() >= want.deadline {
            return Err(Unmade::new(Reason::ConnectionTimeout, "no stream in time"));
        }
        let mut outcome = join(worker, want);
        let told = match timeout_at(want.deadline.into(), outcome.wait_for(Option::is_some)).await {
            Ok(Ok(told)) => told.clone(),
            // Whoever made it is no more: the worker is ending.
            Ok(Err(_)) => Some(Err(Unmade::new(
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
fn join(worker: &Rc<Worker>, want: Want<'_>) -> watch::Receiver<Option<Result<(), Unmade>>> {
    let links = &mut *worker.links.borrow_mut();
    let line = links.line(&want.lease.state);
    let streams = line.streams(want, clock::now()).min(line.allowed);
    let room = streams.min(want.uses());
    let mut making = line.making.iter_mut();
    if let Some(making) = making.find(|one| one.waiting < room && one.made.fits(want)) {
        making.waiting += 1;
        return making.outcome.clone();
    }
    links.ids += 1;
    let id = links.ids;
    let (tell, outcome) = watch::channel(None);
    links.line(&want.lease.state).making.push(Making {
        id,
        made: Made::of(want),
        waiting: 1,
        outcome: outcome.clone(),
    });
    let task = make(
        Rc::clone(worker),
        Arc::clone(want.pool),
        Arc::clone(&want.lease.state),
        Made::of(want),
        clock::now() + want.patience,
    );
    let worker = Rc::clone(worker);
    let state = Arc::clone(&want.lease.state);
    drop(spawn_local(async move {
        let outcome = Box::pin(task).await;
        let links = &mut *worker.links.borrow_mut();
        links.line(&state).making.retain(|making| making.id != id);
        // Nobody may be waiting any more.
        let _ = tell.send(Some(outcome));
    }));
    outcome
}

/// Makes a connection and lets others use it.
async fn make(
    worker: Rc<Worker>,
    pool: Arc<Pool>,
    state: Arc<BackendState>,
    made: Made,
    deadline: Instant,
) -> Result<(), Unmade> {
    let limit = Rc::clone(&worker.links.borrow_mut().line(&state).limit);
    let header = made.introduction.as_deref();
    let reached = reach(&pool, &state, header, limit, deadline).await;
    let metrics = state.metrics.mine();
    let (link, peer) = match reached {
        Ok((link, driver, peer)) => {
            drop(spawn_local(driver));
            (link, peer)
        }
        Err(error) => {
            count_failed(&state, error.reason);
            return Err(error.into());
        }
    };
    metrics.connections_ok.add(1);
    let links = &mut *worker.links.borrow_mut();
    let line = links.line(&state);
    line.allowed = link.allowed().max(1);
    line.shared.push(Shared {
        link,
        made,
        peer,
        idle_timeout: pool.config.keepalive.idle_timeout,
    });
    Ok(())
}

/// A connection with its driver, and for a backend given by name the address it goes to.
async fn reach(
    pool: &Pool,
    state: &Arc<BackendState>,
    introduction: Option<&[u8]>,
    limit: Rc<StreamLimit>,
    deadline: Instant,
) -> Result<
    (
        Rc<Link>,
        impl Future<Output = ()> + use<>,
        Option<SocketAddr>,
    ),
    ConnectError,
> {
    let tls = pool.config.tls.as_ref();
    // The preface follows at once.
    let stream = tls::connect_backend(state, introduction, tls, true, deadline).await?;
    let peer = state.is_name().then(|| stream.peer_addr()).flatten();
    let streams = pool.config.streams_per_connection;
    let (link, driver) = Link::open(stream, Some(state), streams, limit, deadline).await?;
    Ok((link, driver, peer))
}

impl Links {
    fn line(&mut self, state: &Arc<BackendState>) -> &mut Line {
        self.lines.entry(key(state)).or_insert_with(|| Line {
            state: Arc::clone(state),
            shared: Vec::new(),
            making: Vec::new(),
            allowed: usize::MAX,
            limit: Rc::default(),
        })
    }

    /// A stream on the first connection that has room: later ones become idle, and end.
    fn take(&mut self, want: Want<'_>, now: Instant) -> Option<Found> {
        let rules = &want.pool.config.keepalive;
        let line = self.lines.get_mut(&key(&want.lease.state))?;
        let streams = line.streams(want, now);
        for shared in &mut line.shared {
            let link = &shared.link;
            if !shared.made.fits(want) || is_worn(link, rules.max_age, now) {
                continue;
            }
            if !line.state.resolves_to(shared.peer) {
                link.retire();
                continue;
            }
            let Some(stream) = link.stream(streams) else {
                continue;
            };
            shared.idle_timeout = rules.idle_timeout;
            let begun = link.begun();
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
        self.lines.retain(|_, line| {
            let keeps = line.state.keeps_idle();
            line.shared.retain(|shared| {
                let idle = shared.link.idle_since();
                let is_late = idle.is_some_and(|since| now >= since + shared.idle_timeout);
                if !keeps || is_late || !line.state.resolves_to(shared.peer) {
                    shared.link.retire();
                }
                !shared.link.is_retired()
            });
            let has_learned = !line.state.is_removed() && line.limit.current(now) != usize::MAX;
            has_learned || !line.shared.is_empty() || !line.making.is_empty()
        });
    }

    /// Ends up to `most` that are idle; says how many.
    pub fn shed(&mut self, most: usize) -> usize {
        let links = self.lines.values().flat_map(|line| &line.shared);
        let idle = links.filter(|shared| shared.link.idle_since().is_some());
        let ended = idle.take(most).map(|shared| shared.link.retire()).count();
        self.sweep(clock::now());
        ended
    }

    /// Ends everything, at the end of the worker.
    pub fn clear(&mut self) {
        for (_, line) in self.lines.drain() {
            line.shared.iter().for_each(|shared| shared.link.retire());
        }
    }
}

/// Too old for another exchange: another connection spreads them anew. Ends when nothing is on it any more.
fn is_worn(link: &Link, max_age: Option<Duration>, now: Instant) -> bool {
    let age = now.saturating_duration_since(link.born());
    let is_worn = max_age.is_some_and(|limit| age >= limit);
    if is_worn {
        link.retire();
    }
    is_worn
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
                    reach(&pool, &lease.state, None, Rc::default(), deadline)
                        .await
                        .unwrap();
                drop(spawn_local(driver));
                assert_eq!(peer, Some(own));
                let want = Want {
                    pool: &pool,
                    lease: &lease,
                    introduction: None,
                    deadline,
                    patience: Duration::from_secs(10),
                };
                let mut links = Links::default();
                links.line(&lease.state).shared.push(Shared {
                    link: Rc::clone(&link),
                    made: Made::of(want),
                    peer,
                    idle_timeout: Duration::from_secs(10),
                });
                let first = links.take(want, clock::now()).unwrap();
                answer(SocketAddr::from(([127, 0, 0, 1], 1)));
                assert!(links.take(want, clock::now()).is_none());
                assert!(
                    link.is_retired() && !link.is_over(),
                    "what is on it goes on"
                );
                drop(first);
                links.sweep(clock::now());
                assert!(links.lines.is_empty());
            })
            .await;
    }
}
