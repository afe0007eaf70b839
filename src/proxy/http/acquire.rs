//! Acquires the backend connection of one attempt: an idle one, a new one, or a stream on a
//! shared HTTP/2 connection.
//!
//! Does not know what is sent on it (`await_response.rs`). `proxy/h2_connections.rs` hands out the
//! streams of shared connections.

use std::{future::poll_fn, time::Instant};

use tokio::select;

use super::{
    attempt::Attempt,
    backend_side::BackendSide,
    deadline::Deadline,
    exchange::{Exchange, ForwardSettings},
    outcome::{AttemptError, AttemptPhase},
};
use crate::{
    net::{connect::connect_backend, copy::RelaySide as _},
    proxy::{
        h2_connections::{self, StreamLease, StreamRequest},
        idle::BackendConnection,
        reasons,
    },
    reason::Reason,
};

/// The reason why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcquireError {
    /// The backend is to blame.
    #[error("{0}")]
    Backend(#[source] AttemptError),
    /// The client disconnected or requested something impossible, or the total timeout passed.
    #[error("{0}")]
    Client(Reason),
}

/// Acquires the connection of an attempt.
pub(super) async fn acquire_connection(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
) -> Result<BackendSide, AcquireError> {
    let started = exchange.context.worker.now();
    exchange.record.reused = false;
    let connected = if attempt.pool.config.protocol.is_h2() {
        let request = stream_request(attempt, started);
        let connections = &exchange.context.worker.h2_connections;
        let found = connections.borrow_mut().take(request, started);
        let found = match found {
            Some(found) => found,
            None => Box::pin(await_h2_stream(exchange, attempt, started)).await?,
        };
        use_h2_stream(exchange, found, started)?
    } else {
        if let Some(idle) = take_idle(exchange, attempt, started) {
            exchange.record.reused = true;
            return Ok(BackendSide::H1(idle));
        }
        Box::pin(connect(exchange, attempt, started)).await?
    };
    // Client disconnected while connecting: the backend need not see the request.
    if exchange.client.is_disconnected().await {
        return Err(AcquireError::Client(Reason::ClientDisconnected));
    }
    Ok(connected)
}

/// An idle connection that fits the attempt, unless the attempt must have a new one.
fn take_idle(
    exchange: &Exchange<'_>,
    attempt: Attempt<'_>,
    now: Instant,
) -> Option<BackendConnection> {
    if attempt.fresh {
        return None;
    }
    let mut idle = exchange.context.worker.idle.borrow_mut();
    let transport_epoch = attempt.lease.transport_epoch;
    idle.take(attempt.lease, attempt.proxy_header, transport_epoch, now)
}

/// The deadline for a connection that is begun at `started`.
fn connect_deadline(settings: &ForwardSettings<'_>, started: Instant) -> Instant {
    let own = Deadline {
        at: started + settings.timeouts.connect,
        reason: Reason::ConnectionTimeout,
    };
    Deadline::earliest(Some(own), settings.deadline).map_or(own.at, |deadline| deadline.at)
}

/// The error of a failed connect.
fn acquire_error(settings: &ForwardSettings<'_>, reason: Reason, detail: String) -> AcquireError {
    // The total timeout covers all attempts: no backend is to blame for its end.
    if let Some(total) = settings.deadline.filter(Deadline::has_passed) {
        return AcquireError::Client(total.reason);
    }
    let phase = AttemptPhase::Connect;
    AcquireError::Backend(AttemptError::new(phase, reason, detail))
}

/// The request for a stream to the backend of an attempt.
fn stream_request(attempt: Attempt<'_>, started: Instant) -> StreamRequest<'_> {
    StreamRequest {
        pool: attempt.pool,
        lease: attempt.lease,
        proxy_header: attempt.proxy_header,
        deadline: connect_deadline(attempt.settings, started),
        connect_timeout: (attempt.settings.timeouts.connect)
            .max(attempt.pool.config.timeouts.connect),
    }
}

/// Waits for a stream on an HTTP/2 connection, while the client stays connected.
async fn await_h2_stream(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<StreamLease, AcquireError> {
    let request = stream_request(attempt, started);
    let found = select! {
        biased;
        found = h2_connections::acquire_stream(&exchange.context.worker.h2_connections, request) => found,
        () = poll_fn(|cx| exchange.client.side.poll_disconnected(cx)) => {
            return Err(AcquireError::Client(Reason::ClientDisconnected));
        }
    };
    found.map_err(|unmade| {
        exchange.record.connect = Some(exchange.context.worker.elapsed_since(started));
        acquire_error(attempt.settings, unmade.reason, unmade.detail.to_string())
    })
}

/// Uses an assigned stream for the exchange.
fn use_h2_stream(
    exchange: &mut Exchange<'_>,
    found: StreamLease,
    started: Instant,
) -> Result<BackendSide, AcquireError> {
    let StreamLease { stream, is_reused } = found;
    exchange.record.reused = is_reused;
    if !is_reused {
        exchange.record.connect = Some(exchange.context.worker.elapsed_since(started));
    }
    if exchange.head().is_websocket() && !stream.connection().supports_extended_connect() {
        return Err(AcquireError::Client(Reason::UpgradeFailed));
    }
    Ok(BackendSide::H2(stream))
}

/// Connects, while the client stays connected.
async fn connect(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    started: Instant,
) -> Result<BackendSide, AcquireError> {
    let metrics = attempt.lease.state.metrics.mine();
    let deadline = connect_deadline(attempt.settings, started);
    let header = attempt.proxy_header;
    let tls = attempt.lease.tls(&attempt.pool.config);
    // The request follows at once, so the PROXY header need not be sent alone.
    let connecting = connect_backend(&attempt.lease.state, header, tls, true, deadline);
    let connected = select! {
        biased;
        connected = connecting => connected,
        () = poll_fn(|cx| exchange.client.side.poll_disconnected(cx)) => {
            return Err(AcquireError::Client(Reason::ClientDisconnected));
        }
    };
    let now = exchange.context.worker.now();
    exchange.record.connect = Some(now.saturating_duration_since(started));
    match connected {
        Ok(stream) => {
            metrics.connections_ok.add(1);
            let epoch = attempt.lease.transport_epoch;
            let connection = BackendConnection::new(stream, header, epoch, now);
            Ok(BackendSide::H1(connection))
        }
        Err(error) => {
            let reason = reasons::of_connect(&error);
            reasons::count_connect_failure(&attempt.lease.state, reason);
            Err(acquire_error(attempt.settings, reason, error.to_string()))
        }
    }
}
