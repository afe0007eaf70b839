//! The backend connection of one attempt: an idle one, a new one, or a stream on a shared HTTP/2 connection.
//!
//! Does not know what is sent on it (`attempt.rs`). Shared connections are handed out by `proxy/h2_connections.rs`.

use std::time::Instant;

use tokio::select;

use super::{
    attempt::{Attempt, is_gone},
    exchange::{Exchange, Rules},
    forward,
    retry::{Failure, Stage},
};
use crate::{
    base::clock,
    net::{connect::count_failed, tls},
    proxy::{
        h2_connections::{self, StreamRequest},
        idle::BackendConnection,
    },
    reason::Reason,
};

/// Why there is no connection.
pub(super) enum Unconnected {
    Backend(Failure),
    /// The client is gone, or the time for the whole exchange is over.
    Client(Reason),
}

/// Acquires the connection of an attempt: an idle one, a new one, or a stream on a shared one.
pub(super) async fn connection(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
) -> Result<BackendConnection, Unconnected> {
    let started = clock::now();
    exchange.facts.reused = false;
    let transport_epoch = attempt.pool.transport_epoch;
    let made = if attempt.pool.config.protocol.is_h2() {
        Box::pin(share(exchange, attempt, started)).await?
    } else {
        let idle = &exchange.place.worker.idle;
        let take = || {
            let mut idle = idle.borrow_mut();
            idle.take(
                attempt.lease,
                attempt.introduction,
                transport_epoch,
                started,
            )
        };
        if let Some(kept) = (!attempt.fresh).then(take).flatten() {
            exchange.facts.reused = true;
            return Ok(kept);
        }
        Box::pin(connect(exchange, attempt, started)).await?
    };
    // A client that left meanwhile wants nothing done.
    if is_gone(&exchange.client.stream).await {
        return Err(Unconnected::Client(Reason::ClientDisconnected));
    }
    Ok(made)
}

/// By when there must be a connection.
fn connect_deadline(rules: &Rules<'_>, started: Instant) -> Instant {
    let own = started + rules.timeouts.connect;
    rules.end.map_or(own, |end| end.min(own))
}

/// Why there is no connection, where that is not the client's fault.
fn unconnected(rules: &Rules<'_>, reason: Reason, detail: String) -> Unconnected {
    // What ended is the time for all tries together: no backend is to blame.
    if rules.end.is_some_and(|end| clock::now() >= end) {
        return Unconnected::Client(Reason::TotalTimeout);
    }
    Unconnected::Backend(Failure {
        stage: Stage::Connect,
        reason,
        stale: false,
        refusal: None,
        unseen: true,
        own_limit: false,
        detail,
    })
}

/// A stream on an HTTP/2 connection, for as long as the client is there.
async fn share(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<BackendConnection, Unconnected> {
    let want = StreamRequest {
        pool: attempt.pool,
        lease: attempt.lease,
        proxy_header: attempt.introduction,
        deadline: connect_deadline(attempt.rules, started),
        connect_timeout: (attempt.rules.timeouts.connect).max(attempt.pool.config.timeouts.connect),
    };
    let found = select! {
        biased;
        found = h2_connections::acquire_stream(exchange.place.worker, want) => found,
        () = exchange.client.stream.disconnected() => {
            return Err(Unconnected::Client(Reason::ClientDisconnected));
        }
    };
    let now = clock::now();
    let (stream, is_used) = found.map_err(|unmade| {
        exchange.facts.connect = Some(now.saturating_duration_since(started));
        unconnected(attempt.rules, unmade.reason, unmade.detail.to_string())
    })?;
    exchange.facts.reused = is_used;
    if !is_used {
        exchange.facts.connect = Some(now.saturating_duration_since(started));
    }
    if forward::is_websocket(exchange.head) && !stream.link().takes_websockets() {
        return Err(Unconnected::Client(Reason::UpgradeFailed));
    }
    let transport_epoch = attempt.pool.transport_epoch;
    Ok(BackendConnection::new(
        stream.into(),
        attempt.introduction,
        transport_epoch,
        now,
    ))
}

/// Connects, for as long as the client is there.
async fn connect(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<BackendConnection, Unconnected> {
    let metrics = attempt.lease.state.metrics.mine();
    let deadline = connect_deadline(attempt.rules, started);
    let header = attempt.introduction;
    let tls = attempt.pool.config.tls.as_ref();
    // The request follows at once.
    let reach = tls::connect_backend(&attempt.lease.state, header, tls, true, deadline);
    let connected = select! {
        biased;
        connected = reach => connected,
        () = exchange.client.stream.disconnected() => {
            return Err(Unconnected::Client(Reason::ClientDisconnected));
        }
    };
    let now = clock::now();
    exchange.facts.connect = Some(now.saturating_duration_since(started));
    match connected {
        Ok(stream) => {
            metrics.connections_ok.add(1);
            Ok(BackendConnection::new(
                stream,
                header,
                attempt.pool.transport_epoch,
                now,
            ))
        }
        Err(error) => {
            count_failed(&attempt.lease.state, error.reason);
            Err(unconnected(attempt.rules, error.reason, error.to_string()))
        }
    }
}
