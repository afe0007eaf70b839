//! The backend connection of one attempt: an idle one, a new one, or a stream on a shared HTTP/2 connection.
//!
//! Does not know what is sent on it (`attempt.rs`). Shared connections are handed out by `proxy/h2_connections.rs`.

use std::time::Instant;

use tokio::select;

use super::{
    attempt::{Attempt, is_gone},
    exchange::{Exchange, ForwardSettings},
    forward,
    retry::{AttemptError, AttemptPhase},
};
use crate::{
    base::clock,
    net::connect::connect_backend,
    proxy::{
        h2_connections::{self, StreamLease, StreamRequest},
        idle::BackendConnection,
        reasons,
    },
    reason::Reason,
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcquireError {
    #[error("{0}")]
    Backend(#[source] AttemptError),
    /// The client is gone, or the time for the whole exchange is over.
    #[error("{0}")]
    Client(Reason),
}

/// Acquires the connection of an attempt: an idle one, a new one, or a stream on a shared one.
pub(super) async fn acquire_connection(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
) -> Result<BackendConnection, AcquireError> {
    let started = clock::now();
    exchange.record.reused = false;
    let transport_epoch = attempt.pool.transport_epoch;
    let made = if attempt.pool.config.protocol.is_h2() {
        Box::pin(acquire_h2_stream(exchange, attempt, started)).await?
    } else {
        let idle = &exchange.context.worker.idle;
        let take = || {
            let mut idle = idle.borrow_mut();
            idle.take(
                attempt.lease,
                attempt.proxy_header,
                transport_epoch,
                started,
            )
        };
        if let Some(kept) = (!attempt.fresh).then(take).flatten() {
            exchange.record.reused = true;
            return Ok(kept);
        }
        Box::pin(connect(exchange, attempt, started)).await?
    };
    // A client that left meanwhile wants nothing done.
    if is_gone(&exchange.client.stream).await {
        return Err(AcquireError::Client(Reason::ClientDisconnected));
    }
    Ok(made)
}

/// By when there must be a connection.
fn connect_deadline(settings: &ForwardSettings<'_>, started: Instant) -> Instant {
    let own = started + settings.timeouts.connect;
    settings.end.map_or(own, |end| end.min(own))
}

/// Why there is no connection, where that is not the client's fault.
fn acquire_error(settings: &ForwardSettings<'_>, reason: Reason, detail: String) -> AcquireError {
    // What ended is the time for all tries together: no backend is to blame.
    if settings.end.is_some_and(|end| clock::now() >= end) {
        return AcquireError::Client(Reason::TotalTimeout);
    }
    AcquireError::Backend(AttemptError {
        phase: AttemptPhase::Connect,
        reason,
        stale: false,
        refusal: None,
        not_processed: true,
        own_limit: false,
        detail,
    })
}

/// A stream on an HTTP/2 connection, for as long as the client is there.
async fn acquire_h2_stream(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<BackendConnection, AcquireError> {
    let request = StreamRequest {
        pool: attempt.pool,
        lease: attempt.lease,
        proxy_header: attempt.proxy_header,
        deadline: connect_deadline(attempt.settings, started),
        connect_timeout: (attempt.settings.timeouts.connect)
            .max(attempt.pool.config.timeouts.connect),
    };
    let found = select! {
        biased;
        found = h2_connections::acquire_stream(&exchange.context.worker.h2_connections, request) => found,
        () = exchange.client.stream.disconnected() => {
            return Err(AcquireError::Client(Reason::ClientDisconnected));
        }
    };
    let now = clock::now();
    let StreamLease { stream, is_reused } = found.map_err(|unmade| {
        exchange.record.connect = Some(now.saturating_duration_since(started));
        acquire_error(attempt.settings, unmade.reason, unmade.detail.to_string())
    })?;
    exchange.record.reused = is_reused;
    if !is_reused {
        exchange.record.connect = Some(now.saturating_duration_since(started));
    }
    if forward::is_websocket(exchange.head) && !stream.connection().supports_websockets() {
        return Err(AcquireError::Client(Reason::UpgradeFailed));
    }
    let transport_epoch = attempt.pool.transport_epoch;
    Ok(BackendConnection::new(
        stream.into(),
        attempt.proxy_header,
        transport_epoch,
        now,
    ))
}

/// Connects, for as long as the client is there.
async fn connect(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<BackendConnection, AcquireError> {
    let metrics = attempt.lease.state.metrics.mine();
    let deadline = connect_deadline(attempt.settings, started);
    let header = attempt.proxy_header;
    let tls = attempt.pool.config.tls.as_ref();
    // The request follows at once.
    let reach = connect_backend(&attempt.lease.state, header, tls, true, deadline);
    let connected = select! {
        biased;
        connected = reach => connected,
        () = exchange.client.stream.disconnected() => {
            return Err(AcquireError::Client(Reason::ClientDisconnected));
        }
    };
    let now = clock::now();
    exchange.record.connect = Some(now.saturating_duration_since(started));
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
            let reason = reasons::of_connect(&error);
            reasons::count_connect_failure(&attempt.lease.state, reason);
            Err(acquire_error(attempt.settings, reason, error.to_string()))
        }
    }
}
