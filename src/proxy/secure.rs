//! The TLS handshake with a client, before anything else of it is read: counters, and the log of
//! failures.
//!
//! Failures are counted by cause and logged at debug level, since anybody can cause as many of them
//! as they like. A client certificate that is refused is a warning, limited in number: it is more
//! often a mistake of an operator.

use std::{net::IpAddr, rc::Rc, time::Duration};

use tokio::time::timeout;

use super::{accepted::AcceptedConnection, http, worker::Worker};
use crate::{
    base::clock,
    net::{
        stream::Stream,
        tls::{self, ServerTls},
    },
    reason::Reason,
    snapshot::Listener,
    telemetry::handshakes::HandshakeFailure,
};

/// Performs the TLS handshake of a connection to a listener with TLS. `None`: it failed, and the
/// connection is over.
pub(super) async fn secure(
    worker: &Rc<Worker>,
    listener: &Listener,
    mut connection: AcceptedConnection,
) -> Option<AcceptedConnection> {
    debug_assert!(listener.tls.is_some(), "a listener with TLS");
    let Some(tls) = &listener.tls else {
        return Some(connection);
    };
    let counters = listener.state.metrics.mine();
    match handshake(connection.stream, tls, listener.config.timeouts.tls).await {
        Ok(tls) => {
            let negotiated = tls.negotiated();
            let handshakes = &counters.handshakes;
            handshakes
                .completed(negotiated.is_13, negotiated.resumed)
                .add(1);
            connection.stream = tls.into();
            Some(connection)
        }
        Err((stream, failed)) => {
            counters.handshakes.failed(failed.failure).add(1);
            log(listener, connection.peer, &failed);
            // A client that spoke plain HTTP is told in plain HTTP what is wrong.
            let is_told = failed.is_http && listener.service.has_requests();
            if let (true, Some(stream)) = (is_told, stream) {
                connection.stream = stream;
                let client = connection.into_client(worker);
                Box::pin(http::refuse(Rc::clone(worker), client, Reason::TlsRequired)).await;
            }
            None
        }
    }
}

/// Logs a failure: at debug level, and once in a while as a warning if it is the client's
/// certificate.
fn log(listener: &Listener, client: Option<IpAddr>, failed: &tls::HandshakeError) {
    let (name, detail) = (&listener.config.name, &failed.detail);
    let client = client.map(tracing::field::display);
    let is_certificate = failed.failure == HandshakeFailure::CertificateInvalid;
    let limit = is_certificate.then_some(&listener.state.certificate_log);
    match limit.and_then(|limit| limit.admit(clock::now())) {
        Some(suppressed) => {
            tracing::warn!(target: "tls", listener = %name, client, detail, suppressed,
                "certificate of a client refused");
        }
        None => {
            tracing::debug!(target: "tls", listener = %name, client, detail, "handshake failed");
        }
    }
}

/// Performs the handshake within `time`. On failure the stream comes back where it can still carry
/// a response in plain HTTP.
async fn handshake(
    stream: Stream,
    tls: &ServerTls,
    time: Option<Duration>,
) -> Result<tls::TlsStream, (Option<Stream>, tls::HandshakeError)> {
    let handshake = tls::accept(stream, tls);
    let done = match time {
        Some(time) => timeout(time, handshake).await,
        None => Ok(handshake.await),
    };
    let Ok(done) = done else {
        return Err((
            None,
            tls::HandshakeError::new(HandshakeFailure::Timeout, "not over in time"),
        ));
    };
    done.map_err(|(stream, failed)| (Some(stream), failed))
}
