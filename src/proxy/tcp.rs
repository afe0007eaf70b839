//! One TCP session, top to bottom: pick a backend, connect, relay, record.
//!
//! Access rules were checked at the accept. Must not know how sessions are started or where records
//! go.

use std::{
    cell::RefCell, future::Future, future::poll_fn, net::IpAddr, pin::pin, sync::Arc, time::Instant,
};

use super::{reasons, relay_stop::RelayStop, waiting::wait_for_backend};
use crate::{
    base::{clock, hasher::address_hash, rng::Random},
    config::model::{BalancingPolicy, HashSource, PoolConfig},
    net::{
        connect,
        copy::{RelayMeter, relay_until},
        stream::Stream,
    },
    pool::{BackendLease, PickRequest, Pool},
    reason::Reason,
    telemetry::{
        metrics::{ListenerSlot, MetricCell},
        record::AccessRecord,
    },
};

/// Surroundings of a session.
#[derive(Clone, Copy)]
pub struct TcpContext<'a> {
    /// Name of the listener.
    pub listener: &'a Arc<str>,
    /// The listener's counters for this thread.
    pub counters: &'a ListenerSlot,
    /// The listener's pool, of the generation in force when the session began.
    pub pool: &'a Arc<Pool>,
    /// Finds the pool of that name in the generation in force; `None` if it left the configuration.
    pub newest: &'a dyn Fn() -> Option<Arc<Pool>>,
    /// The worker's random numbers.
    pub random: &'a RefCell<Random>,
    /// PROXY header that backends get first; `None` without `send_proxy`.
    pub proxy_header: Option<&'a [u8]>,
    /// Address of the client; `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// Start of the session.
    pub began: Instant,
}

/// Serves `client` until the session is over, and returns its record. `first` holds the bytes
/// already read of the client; `stop`, the drain timeout, cuts the session.
///
/// Where no backend can be reached the client gets a reset, not a FIN, which it could take for an
/// empty response.
pub async fn session(
    client: Stream,
    first: Vec<u8>,
    context: TcpContext<'_>,
    stop: impl Future<Output = ()>,
) -> AccessRecord {
    let mut record = AccessRecord::begin(context.began, context.listener, context.client);
    record.pool = Some(Arc::clone(&context.pool.name));
    record.tls = client.tls_version();
    let slot = context.pool.state.metrics.mine();
    let _active = ActiveGuard::new(&slot.sessions_active);
    let result = serve(&client, first, &context, &mut record, stop).await;
    record.reason = result.err();
    match record.reason {
        None => slot.sessions_ok.add(1),
        Some(reason) => slot.sessions_failed.add(reason),
    }
    slot.session_duration
        .observe(clock::now().saturating_duration_since(record.began));
    record
}

async fn serve(
    client: &Stream,
    first: Vec<u8>,
    context: &TcpContext<'_>,
    record: &mut AccessRecord,
    stop: impl Future<Output = ()>,
) -> Result<(), Reason> {
    let mut stop = pin!(stop);
    let connected = tokio::select! {
        biased;
        connected = connect_backend(client, context, record) => connected,
        () = &mut stop => Err(Reason::DrainTimeout),
        () = poll_fn(|cx| client.poll_disconnected(cx)) => Err(Reason::ClientDisconnected),
    };
    let (lease, backend) = connected.inspect_err(|reason| {
        client.set_reset_on_close();
        record.bytes_in = first.len() as u64;
        context.counters.received.add(record.bytes_in);
        if !matches!(reason, Reason::ClientDisconnected | Reason::DrainTimeout) {
            context.pool.state.metrics.mine().error(*reason, 0);
        }
    })?;
    let _active = ActiveGuard::new(&lease.state.metrics.mine().connections_active);
    let meter = RelayMeter {
        received: &context.counters.received,
        sent: &context.counters.sent,
    };
    let idle = context.pool.config.timeouts.tcp_idle;
    let relay_stop = RelayStop::default();
    let stop = relay_stop.wait(stop, &lease);
    let end = relay_until(stop, client, &backend, first, idle, meter).await;
    (record.bytes_in, record.bytes_out) = (end.bytes_in, end.bytes_out);
    end.end.map_err(|cut| {
        let reason = relay_stop.reason(cut);
        if reason == Reason::BackendReset {
            lease.state.metrics.mine().failures.add(reason);
        }
        reason
    })
}

/// Picks backends until one accepts. No backend has received a byte of the client so far, so
/// another attempt is always safe.
async fn connect_backend(
    client: &Stream,
    context: &TcpContext<'_>,
    record: &mut AccessRecord,
) -> Result<(BackendLease, Stream), Reason> {
    let mut pool = Arc::clone(context.pool);
    pool.state.budget.request();
    let mut tried = Vec::new();
    loop {
        let lease = claim_backend(client, context, &mut pool, &mut tried, record).await?;
        record.attempts += 1;
        record.backend = Some(Arc::clone(&lease.config.name));
        let began = clock::now();
        let deadline = began + pool.config.timeouts.connect;
        let tls = lease.tls(&pool.config);
        // In SMTP or MySQL the backend speaks first, so the header cannot wait for bytes of the
        // client to share their segment.
        let speaks_first = false;
        let header = context.proxy_header;
        let connect = connect::connect_backend(&lease.state, header, tls, speaks_first, deadline);
        let result = connect.await;
        let now = clock::now();
        record.connect = Some(now.saturating_duration_since(began));
        match result {
            Ok(stream) => {
                lease.state.metrics.mine().connections_ok.add(1);
                if let Some(transition) = pool.record_success(&lease, now) {
                    transition.log();
                }
                pool.record_response_time(&lease, now.saturating_duration_since(began), now);
                return Ok((lease, stream));
            }
            Err(error) => {
                let reason = reasons::of_connect(&error);
                record_failure(&pool, &lease, reason, now);
                record.reason = Some(reason);
                tried.push(lease.index);
            }
        }
        if let Some(reason) = record.reason
            && !may_retry(&pool, record.attempts, reason, now)
        {
            return Err(reason);
        }
        // A reload may have replaced the backends meanwhile.
        go_to_newest(context, &mut pool, &mut tried);
    }
}

/// Picks a backend, or waits for one in the queue. After a wait `pool` is the newest generation,
/// because a reload may have replaced the backends; `tried` are positions in it.
async fn claim_backend(
    client: &Stream,
    context: &TcpContext<'_>,
    pool: &mut Arc<Pool>,
    tried: &mut Vec<usize>,
    record: &mut AccessRecord,
) -> Result<BackendLease, Reason> {
    loop {
        let request = PickRequest {
            attempted: tried,
            key: hash_key(&pool.config, context.client),
            is_repeatable: pool.config.retries.is_some(),
            ..PickRequest::first(clock::now())
        };
        // After a failed attempt its reason says more than "no backend available".
        let failure = |none| match none {
            Reason::ClientDisconnected => none,
            _ => record.reason.unwrap_or(none),
        };
        match pool.pick(&request, &mut context.random.borrow_mut()) {
            Err(Reason::ConnectionLimitReached) => {}
            picked => return picked.map_err(failure),
        }
        let gone = poll_fn(|cx| client.poll_peer_ended(cx));
        let waited = wait_for_backend(pool, &request, gone, None, &mut record.queue);
        let lease = Box::pin(waited).await.map_err(failure)?;
        go_to_newest(context, pool, tried);
        if let Some(lease) = lease.moved_to(pool) {
            return Ok(lease);
        }
    }
}

/// Goes over to the newest generation of `pool`, with the positions of those tried.
fn go_to_newest(context: &TcpContext<'_>, pool: &mut Arc<Pool>, tried: &mut Vec<usize>) {
    if let Some(next) = (context.newest)().filter(|next| !Arc::ptr_eq(next, pool)) {
        *tried = next.positions_of(pool, tried);
        *pool = next;
    }
}

/// Hash of the client's address, if the pool goes by it: sessions have nothing else.
fn hash_key(pool: &PoolConfig, client: Option<IpAddr>) -> Option<u64> {
    let is_used = pool.policy == BalancingPolicy::Hash && pool.hash == HashSource::ClientIp;
    client.filter(|_| is_used).map(address_hash)
}

/// Counts a failed attempt, and tells the pool, which may eject the backend.
fn record_failure(pool: &Pool, lease: &BackendLease, reason: Reason, now: Instant) {
    reasons::count_connect_failure(&lease.state, reason);
    // A shortage of our own says nothing about the backend.
    if reason == Reason::Overload {
        return;
    }
    lease.state.metrics.mine().failures.add(reason);
    if let Some(transition) = pool.record_failure(lease, reason, now) {
        transition.log();
    }
}

/// True if the pool's `retries` allow another attempt, which is then charged to the budget.
fn may_retry(pool: &Pool, attempts: u32, reason: Reason, now: Instant) -> bool {
    let Some(retries) = &pool.config.retries else {
        return false;
    };
    if attempts > retries.attempts || !retries.conditions.connect {
        return false;
    }
    let slot = pool.state.metrics.mine();
    if !pool.state.budget.try_spend(retries.budget, now) {
        slot.budget_exhausted.add(1);
        return false;
    }
    slot.retries.add(reason);
    true
}

/// One in a gauge, until dropped.
struct ActiveGuard<'a>(&'a MetricCell);

impl<'a> ActiveGuard<'a> {
    fn new(count: &'a MetricCell) -> Self {
        count.add(1);
        Self(count)
    }
}

impl Drop for ActiveGuard<'_> {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        base::address::BackendAddress,
        net::fixture::{dead_address, pair},
        pool::fixture::pool_of,
    };

    async fn serve_one(
        pool: &Arc<Pool>,
        stream: Stream,
        stop: impl Future<Output = ()>,
    ) -> AccessRecord {
        serve_behind(b"", pool, stream, stop).await
    }

    async fn serve_behind(
        first: &[u8],
        pool: &Arc<Pool>,
        stream: Stream,
        stop: impl Future<Output = ()>,
    ) -> AccessRecord {
        let (counters, random) = (ListenerSlot::default(), RefCell::new(Random::seeded(1)));
        let context = TcpContext {
            listener: &"front".into(),
            counters: &counters,
            pool,
            newest: &|| None,
            random: &random,
            proxy_header: None,
            client: None,
            began: clock::now(),
        };
        let record = session(stream, first.to_vec(), context, stop).await;
        assert_eq!(
            (counters.received.get(), counters.sent.get()),
            (record.bytes_in, record.bytes_out)
        );
        record
    }

    #[tokio::test]
    async fn a_backend_that_refuses_is_passed_over_for_the_next_one() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = BackendAddress::Ip(echo.local_addr().unwrap());
        let pool = pool_of(&[dead_address().await, alive.clone()], None);
        for _ in 0..4 {
            let (mut peer, stream) = pair().await;
            let script = async {
                peer.write_all(b"ping").await.unwrap();
                let (mut backend, _) = echo.accept().await.unwrap();
                backend.read_exact(&mut [0; 4]).await.unwrap();
                backend.write_all(b"pong!").await.unwrap();
                drop(backend);
                let mut response = Vec::new();
                peer.read_to_end(&mut response).await.unwrap();
                drop(peer);
                response
            };
            let (record, response) = tokio::join!(serve_one(&pool, stream, pending()), script);
            assert_eq!(response, b"pong!");
            assert_eq!((record.bytes_in, record.bytes_out), (4, 5));
            assert_eq!(record.backend.as_deref(), Some(&*alive.to_string()));
            assert_eq!(record.reason, None);
            assert!(record.attempts <= 2);
        }
        let slot = pool.state.metrics.mine();
        assert_eq!((slot.sessions_ok.get(), slot.sessions_active.get()), (4, 0));
        // Each session that began with the dead backend was charged one retry.
        let dead = &pool.backends[0].state.metrics.mine().connections_failed;
        assert!(dead.get() > 0);
        assert_eq!(slot.retries.get(Reason::ConnectionRefused), dead.get());
        assert!(pool.backends.iter().all(|one| one.state.in_flight() == 0));
    }

    #[tokio::test]
    async fn bytes_read_before_the_session_go_to_the_backend_that_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = BackendAddress::Ip(listener.local_addr().unwrap());
        let pool = pool_of(&[dead_address().await, alive], None);
        for _ in 0..4 {
            let (mut peer, stream) = pair().await;
            let script = async {
                peer.write_all(b" and more").await.unwrap();
                peer.shutdown().await.unwrap();
                let (mut backend, _) = listener.accept().await.unwrap();
                let mut got = Vec::new();
                backend.read_to_end(&mut got).await.unwrap();
                got
            };
            let session = serve_behind(b"hello", &pool, stream, pending());
            let (record, got) = tokio::join!(session, script);
            assert_eq!(got, b"hello and more");
            assert_eq!((record.bytes_in, record.reason), (14, None));
        }
        let dead = &pool.backends[0].state.metrics.mine().connections_failed;
        assert!(dead.get() > 0);
        // It is also counted where no backend gets it.
        let pool = pool_of(&[dead_address().await], None);
        let (_peer, stream) = pair().await;
        let record = serve_behind(b"hello", &pool, stream, pending()).await;
        assert_eq!(record.bytes_in, 5);
    }

    #[tokio::test]
    async fn a_client_that_no_backend_accepts_is_reset() {
        let pool = pool_of(&[dead_address().await, dead_address().await], None);
        let (mut peer, stream) = pair().await;
        let record = serve_one(&pool, stream, pending()).await;
        assert_eq!(record.reason, Some(Reason::ConnectionRefused));
        assert_eq!(record.attempts, 3);
        let seen = peer.read(&mut [0; 1]).await.unwrap_err().kind();
        assert_eq!(seen, std::io::ErrorKind::ConnectionReset);
        let slot = pool.state.metrics.mine();
        assert_eq!(slot.sessions_failed.get(Reason::ConnectionRefused), 1);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_a_dns_error() {
        let name = BackendAddress::Name {
            host: "app.invalid".into(),
            port: 80,
        };
        let pool = pool_of(&[name], None);
        let (_peer, stream) = pair().await;
        let record = serve_one(&pool, stream, pending()).await;
        assert_eq!(record.reason, Some(Reason::DnsError));
    }

    #[tokio::test]
    async fn the_drain_deadline_cuts_a_session_and_says_so() {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = BackendAddress::Ip(backend.local_addr().unwrap());
        let pool = pool_of(&[address], None);
        let (mut peer, stream) = pair().await;
        let accepted = async {
            let accepted = backend.accept().await.unwrap();
            peer.write_all(b"x").await.unwrap();
            accepted
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let script = async {
            let (mut server, _) = accepted.await;
            server.read_exact(&mut [0; 1]).await.unwrap();
            stop.send(()).unwrap();
            server.read(&mut [0; 1]).await.unwrap_err().kind()
        };
        let stopped = async { drop(stopped.await) };
        let (record, seen) = tokio::join!(serve_one(&pool, stream, stopped), script);
        assert_eq!(record.reason, Some(Reason::DrainTimeout));
        assert_eq!(record.bytes_in, 1);
        assert_eq!(seen, std::io::ErrorKind::ConnectionReset);
    }
}
