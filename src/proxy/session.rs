//! A TCP session from its start to its log line: which pool, and what its backend is told first.
//!
//! On a listener with `sni` the client speaks first (`passthrough.rs`); the rules in force then
//! decide, as with a request. What happens between client and backend is in `tcp.rs`.

use std::{rc::Rc, sync::Arc, time::Instant};

use super::{
    accepted::AcceptedConnection,
    http,
    passthrough::{self, ClientHelloPrefix, PassthroughError},
    tcp::{self, TcpContext},
    worker::Worker,
};
use crate::{
    base::clock,
    net::proxy_protocol::{self, ConnectionEnds},
    reason::Reason,
    snapshot::{Listener, ListenerService, Snapshot},
    telemetry::record::{AccessRecord, RequestText},
};

/// Runs one TCP session and logs it.
pub(super) async fn session(worker: Rc<Worker>, connection: AcceptedConnection) {
    proxy(&worker, connection, None, clock::now()).await;
}

/// The same on a listener with `sni`. The two long steps are boxed, so that the task is small while
/// it waits for the ClientHello: anybody can make it wait.
pub(super) async fn sni_session(worker: Rc<Worker>, connection: AcceptedConnection) {
    let began = clock::now();
    let time = {
        let generation = worker.generation();
        let listener = generation.listener_at(&connection.socket);
        listener.and_then(|listener| listener.config.timeouts.tls)
    };
    match passthrough::receive(&connection.stream, time, worker.until_cut()).await {
        Ok(prefix) => Box::pin(proxy(&worker, connection, Some(prefix), began)).await,
        Err(error) => Box::pin(refuse(&worker, connection, error, began)).await,
    }
}

/// A session's pool by the rules of its listener.
enum PoolChoice {
    /// Index into `Snapshot::pools`.
    Pool(usize),
    /// No rule lists the server name, and the listener has no pool for other names.
    NoPool,
    /// A reload made another service of the listener: its rules say nothing of this connection.
    ServiceChanged,
}

/// Applies the rules in force: those of the accept may have been replaced while the ClientHello or
/// the TLS handshake took its time.
fn choose_pool(listener: &Listener, prefix: Option<&ClientHelloPrefix>) -> PoolChoice {
    let fallback = listener.config.pool;
    let pool = match (&listener.service, prefix) {
        (ListenerService::Tcp, None) => fallback,
        (ListenerService::SniPassthrough(names), Some(prefix)) => {
            let name = prefix.server_name.as_deref();
            name.and_then(|name| names.find(name)).or(fallback)
        }
        (ListenerService::Http, _)
        | (ListenerService::Tcp, Some(_))
        | (ListenerService::SniPassthrough(_), None) => return PoolChoice::ServiceChanged,
    };
    pool.map_or(PoolChoice::NoPool, PoolChoice::Pool)
}

/// Relays between the client and a backend of its pool, and logs the session.
async fn proxy(
    worker: &Rc<Worker>,
    connection: AcceptedConnection,
    prefix: Option<ClientHelloPrefix>,
    began: Instant,
) {
    let generation = worker.generation();
    let Some(listener) = generation.listener_at(&connection.socket) else {
        return connection.stream.set_reset_on_close();
    };
    let pool = match choose_pool(listener, prefix.as_ref()) {
        PoolChoice::ServiceChanged => return connection.stream.set_reset_on_close(),
        PoolChoice::NoPool => None,
        PoolChoice::Pool(index) => {
            let pool = generation.pools.get(index);
            debug_assert!(pool.is_some(), "an index beyond the pools");
            pool
        }
    };
    let (first, name) = prefix.map_or_else(Default::default, |prefix| {
        (prefix.bytes, prefix.server_name)
    });
    let Some(pool) = pool else {
        let error = PassthroughError::unknown_name(name, first.len() as u64);
        drop(generation);
        return Box::pin(refuse(worker, connection, error, began)).await;
    };
    let stream = connection.stream;
    let sent_header = pool.config.send_proxy.map(|version| {
        let received = connection.proxy_header.as_deref();
        let ends = received.map_or_else(
            || ConnectionEnds::of(&stream),
            |header| header.ends(|| ConnectionEnds::of(&stream)),
        );
        proxy_protocol::encode(version, ends)
    });
    // Asked after each failed attempt: a reload may have replaced the backends meanwhile.
    let newest = || {
        let generation = worker.generation();
        let mut pools = generation.pools.iter();
        pools.find(|one| one.name == pool.name).map(Arc::clone)
    };
    let context = TcpContext {
        listener: &listener.config.name,
        counters: listener.state.metrics.mine(),
        pool,
        newest: &newest,
        random: &worker.random,
        proxy_header: sent_header.as_deref(),
        client: connection.peer,
        began,
    };
    let stop = worker.until_cut();
    let record = tcp::session(stream, first, context, stop).await;
    log(worker, &generation, &record, name.as_deref());
}

/// Counts and logs a connection without a pool, and ends it: with an alert where the client speaks
/// TLS, else with a reset.
async fn refuse(
    worker: &Rc<Worker>,
    connection: AcceptedConnection,
    error: PassthroughError,
    began: Instant,
) {
    let alert = error.alert();
    let generation = worker.generation();
    if let Some(listener) = generation.listener_at(&connection.socket) {
        let counters = listener.state.metrics.mine();
        if let Some(failure) = error.fault {
            counters.handshakes.failed(failure).add(1);
        }
        tracing::debug!(target: "tls", listener = %listener.config.name, client = ?connection.peer,
            detail = error.detail, "SNI passthrough refused");
        let mut record = AccessRecord::begin(began, &listener.config.name, connection.peer);
        record.bytes_in = error.received;
        record.bytes_out = alert.map_or(0, |alert| alert.len() as u64);
        record.reason = error.reason;
        counters.received.add(record.bytes_in);
        counters.sent.add(record.bytes_out);
        if let Some(reason) = error.reason {
            // Neither is an error: one is the client's wish, the other the operator's.
            if reason != Reason::ClientDisconnected && reason != Reason::DrainTimeout {
                generation.unrouted.mine().error(reason, 0);
            }
            log(worker, &generation, &record, error.server_name.as_deref());
        }
    }
    drop(generation);
    match alert {
        Some(alert) => {
            let client = connection.into_client(worker);
            http::write_and_close(worker, client, &alert).await;
        }
        // After a FIN a client could take the refusal for an empty response.
        None => connection.stream.set_reset_on_close(),
    }
}

/// Writes the line of a finished session, if the rules want it; `name` is the server that the
/// client asked for.
fn log(worker: &Worker, generation: &Arc<Snapshot>, record: &AccessRecord, name: Option<&str>) {
    let took = clock::now().saturating_duration_since(record.began);
    let log = &generation.access_log;
    let mut random = worker.random.borrow_mut();
    if log.wants(record.status, record.reason, took, &mut random) {
        let text = RequestText {
            host: name.unwrap_or_default().as_bytes(),
            ..RequestText::default()
        };
        log.write(record, &text, &[], took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a task: what a connection costs beside its stream and what the runtime keeps.
    fn size_of_task<F: Future>(_: fn(Rc<Worker>, AcceptedConnection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_for_its_hello_is_small() {
        let size = size_of_task(sni_session);
        assert!(size <= 1_024, "{size} bytes");
    }
}
