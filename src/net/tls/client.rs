//! TLS to a backend: whose name its certificate must be for, by when, and the reason if it fails.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use rustls::pki_types::ServerName;
use tokio::time::timeout_at;

use super::handshake::{self, HandshakeError, HandshakeFailure};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::PoolTlsConfig,
    net::{
        connect::{self, ConnectError},
        stream::Stream,
    },
    pool::BackendState,
    reason::Reason,
};

/// The cause where a backend that HTTP/2 is to be spoken with has not chosen it: by silence, or by the alert of RFC 7301.
pub const H2_NOT_NEGOTIATED: &str = "the backend did not agree on HTTP/2 (ALPN)";

impl From<HandshakeError> for ConnectError {
    fn from(failed: HandshakeError) -> Self {
        Self {
            reason: match failed.fault {
                HandshakeFailure::Closed if failed.is_local => Reason::Overload,
                HandshakeFailure::Closed => Reason::ConnectionTerminated,
                HandshakeFailure::Timeout => Reason::ConnectionTimeout,
                HandshakeFailure::CertificateInvalid => Reason::TlsCertificateError,
                _ => Reason::TlsProtocolError,
            },
            source: match failed.fault {
                HandshakeFailure::Alpn => io::Error::other(H2_NOT_NEGOTIATED),
                _ => io::Error::other(failed.detail),
            },
        }
    }
}

fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into())
}

/// A new connection to the backend of `state`, ready for what the pool speaks: connected, introduced by `header` if there is
/// one, and under TLS if the pool wants that. `speaks_first`: something of ours follows at once; see
/// [`connect::send_proxy_header`].
pub async fn connect_backend(
    state: &BackendState,
    header: Option<&[u8]>,
    tls: Option<&PoolTlsConfig>,
    speaks_first: bool,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let stream = connect::connect(state, deadline).await?;
    let stream = connect::send_proxy_header(stream, header, speaks_first || tls.is_some())?;
    let secured = secure(stream, tls, &state.address, deadline).await;
    secured.inspect_err(|error| warn_refused(state, error))
}

/// Takes up TLS on a new connection to the backend at `address`, before `deadline`, if its pool wants that.
pub async fn secure(
    stream: Stream,
    tls: Option<&PoolTlsConfig>,
    address: &BackendAddress,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let Some(tls) = tls else { return Ok(stream) };
    // Only where nothing is verified can a backend be without a name.
    let name = tls.name_for(address).unwrap_or_else(no_name);
    match timeout_at(
        deadline.into(),
        handshake::connect(stream, &tls.config, name),
    )
    .await
    {
        Ok(connected) => Ok(connected?.into()),
        Err(_) => Err(HandshakeError::new(
            HandshakeFailure::Timeout,
            "TLS handshake not over in time",
        )
        .into()),
    }
}

/// Logs once in a while why the certificate of a backend is refused, where that is the `error`.
pub fn warn_refused(state: &BackendState, error: &ConnectError) {
    if error.reason != Reason::TlsCertificateError {
        return;
    }
    if let Some(suppressed) = state.certificate_log.admit(clock::now()) {
        tracing::warn!(target: "tls", pool = %state.pool, backend = %state.address,
            detail = %error.source, suppressed, "certificate of the backend refused");
    }
}
