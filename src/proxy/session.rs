//! From a connection that was let in to a TCP session and its line in the log: which pool, and what its backend is told first.
//!
//! On a listener with `sni` the client speaks first (`passthrough.rs`); the rules that hold then decide, as with a request.

use std::{rc::Rc, sync::Arc, time::Instant};

use super::{
    accept::{AcceptedConnection, listener_of},
    http,
    passthrough::{self, ClientHelloPrefix, PassthroughError},
    tcp::{self, TcpContext},
    worker::Worker,
};
use crate::{
    base::clock,
    net::proxy_protocol::{self, ConnectionEnds},
    reason::Reason,
    snapshot::{Listener, Snapshot},
    telemetry::{
        handshakes::HandshakeFailure,
        record::{AccessRecord, RequestText},
    },
};

/// Runs one TCP session and logs it.
pub(super) async fn session(worker: Rc<Worker>, connection: AcceptedConnection) {
    proxy(&worker, connection, None, clock::now()).await;
}

/// The same on a listener with `sni`. Small while it waits for the client: anybody can make it wait.
pub(super) async fn sni_session(worker: Rc<Worker>, connection: AcceptedConnection) {
    let began = clock::now();
    let time = {
        let generation = worker.generation();
        let listener = listener_of(&generation, &connection.bind);
        listener.and_then(|listener| listener.config.timeouts.tls)
    };
    let mut cut = worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    match passthrough::receive(&connection.stream, time, stop).await {
        Ok(prefix) => Box::pin(proxy(&worker, connection, Some(prefix), began)).await,
        Err(error) => Box::pin(refuse(&worker, connection, error, began)).await,
    }
}

/// The pool for a connection, an index into `Config::pools`; `None`: there is none for it.
fn pool_for(listener: &Listener, prefix: Option<&ClientHelloPrefix>) -> Option<usize> {
    let name = prefix.and_then(|prefix| prefix.server_name.as_deref());
    let named = name.and_then(|name| listener.names.as_ref()?.find(name));
    named.or(listener.config.pool)
}

/// Relays between the client and a backend of its pool.
async fn proxy(
    worker: &Rc<Worker>,
    connection: AcceptedConnection,
    prefix: Option<ClientHelloPrefix>,
    began: Instant,
) {
    let generation = worker.generation();
    // Nobody is passed on by rules that a reload has made for connections of another kind meanwhile.
    let listener = listener_of(&generation, &connection.bind)
        .filter(|listener| listener.names.is_some() == prefix.is_some());
    let Some(listener) = listener else {
        return connection.stream.set_reset_on_close();
    };
    let pool = pool_for(listener, prefix.as_ref());
    let (first, name) = prefix.map_or_else(Default::default, |prefix| {
        (prefix.bytes, prefix.server_name)
    });
    let Some(pool) = pool.and_then(|pool| generation.pools.get(pool)) else {
        let error = PassthroughError {
            fault: Some(HandshakeFailure::UnknownName),
            reason: Some(Reason::NoRoute),
            server_name: name,
            received: first.len() as u64,
            detail: "no pool for the server name",
        };
        drop(generation);
        return Box::pin(refuse(worker, connection, error, began)).await;
    };
    let stream = connection.stream;
    let sent_header = pool.config.send_proxy.map(|version| {
        let received = connection.proxy_header.as_deref();
        let ends = received.map_or_else(
            || ConnectionEnds::of(&stream),
            |header| header.ends(&stream),
        );
        proxy_protocol::encode(version, ends)
    });
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
        began,
    };
    let mut cut = worker.cut.clone();
    let stop = async move {
        let _ = cut.wait_for(|cut| *cut).await;
    };
    let record = tcp::session(stream, connection.peer, first, context, stop).await;
    log(worker, &generation, &record, name.as_deref());
}

/// Counts and logs a connection that leads to no pool, and ends it so that its client knows.
async fn refuse(
    worker: &Rc<Worker>,
    connection: AcceptedConnection,
    error: PassthroughError,
    began: Instant,
) {
    let alert = error.alert();
    let generation = worker.generation();
    if let Some(listener) = listener_of(&generation, &connection.bind) {
        let counters = listener.state.metrics.mine();
        if let Some(failure) = error.fault {
            counters.handshakes.failed(failure).add(1);
        }
        tracing::debug!(target: "tls", listener = %listener.config.name, client = ?connection.peer,
            detail = error.detail, "not passed on");
        let mut record = AccessRecord::begin(began, &listener.config.name, connection.peer);
        record.bytes_in = error.received;
        record.bytes_out = alert.map_or(0, |alert| alert.len() as u64);
        record.reason = error.reason;
        counters.received.add(record.bytes_in);
        counters.sent.add(record.bytes_out);
        if let Some(reason) = error.reason {
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
        // A client must not take the error for an empty answer.
        None => connection.stream.set_reset_on_close(),
    }
}

/// Writes the line of a session that is over, if the rules want it; `name` is the server that the client asked for.
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
