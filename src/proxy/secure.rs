//! TLS with a client, before anything else of it is read: handshake, counters, and what becomes of a failure.
//!
//! Failures are counted by cause and logged at debug level, since anybody can make as many of them as they like. Certificates of
//! clients that are refused are warnings, limited in number.

use std::{net::IpAddr, rc::Rc, time::Duration};

use tokio::time::timeout;

use super::{
    http::{self, ClientConnection},
    worker::Worker,
};
use crate::{
    base::{address::BindAddress, clock},
    config::model::ListenerProtocol,
    net::{
        stream::Stream,
        tls::{self, ServerTls},
    },
    reason::Reason,
    snapshot::Listener,
    telemetry::handshakes::HandshakeFailure,
};

/// Takes up TLS with `peer`, who came in at `bind`, if `listener` wants it. `None`: it failed, and the connection is over.
pub(super) async fn secure(
    worker: &Rc<Worker>,
    listener: &Listener,
    stream: Stream,
    peer: Option<IpAddr>,
    bind: &Rc<BindAddress>,
) -> Option<Stream> {
    let Some(tls) = &listener.tls else {
        return Some(stream);
    };
    let counters = listener.state.metrics.mine();
    match handshake(stream, tls, listener.config.timeouts.tls).await {
        Ok(tls) => {
            let negotiated = tls.negotiated();
            let handshakes = &counters.handshakes;
            handshakes
                .completed(negotiated.is_13, negotiated.resumed)
                .add(1);
            Some(tls.into())
        }
        Err((stream, failed)) => {
            counters.handshakes.failed(failed.failure).add(1);
            log(listener, peer, &failed);
            let is_http = failed.is_http && listener.config.protocol == ListenerProtocol::Http;
            if let (true, Some(stream)) = (is_http, stream) {
                let entry = worker.connections.enter(Rc::clone(bind));
                let client = ClientConnection::new(stream, peer, Rc::clone(bind), entry, None);
                Box::pin(http::refuse(Rc::clone(worker), client, Reason::TlsRequired)).await;
            }
            None
        }
    }
}

/// Logs a failure: at debug level, and once in a while as a warning if it is the client's certificate.
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
