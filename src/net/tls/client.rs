//! TLS to a backend: whose name its certificate must be for, by when, and the reason if it fails.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use rustls::pki_types::ServerName;
use tokio::time::timeout_at;

use super::handshake::{self, Failed, Fault};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::PoolTls,
    net::{
        connect::{self, ConnectError},
        stream::Stream,
    },
    pool::BackendState,
    reason::Reason,
};

/// The cause where a backend that HTTP/2 is to be spoken with has not chosen it: by silence, or by the alert of RFC 7301.
pub const NOT_H2: &str = "the backend did not agree on HTTP/2 (ALPN)";

impl From<Failed> for ConnectError {
    fn from(failed: Failed) -> Self {
        Self {
            reason: match failed.fault {
                Fault::Closed if failed.is_local => Reason::Overload,
                Fault::Closed => Reason::ConnectionTerminated,
                Fault::Timeout => Reason::ConnectionTimeout,
                Fault::CertificateInvalid => Reason::TlsCertificateError,
                _ => Reason::TlsProtocolError,
            },
            source: match failed.fault {
                Fault::Alpn => io::Error::other(NOT_H2),
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
/// [`connect::introduce`].
pub async fn reach(
    state: &BackendState,
    header: Option<&[u8]>,
    tls: Option<&PoolTls>,
    speaks_first: bool,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let stream = connect::connect(state, deadline).await?;
    let stream = connect::introduce(stream, header, speaks_first || tls.is_some())?;
    let secured = secure(stream, tls, &state.address, deadline).await;
    secured.inspect_err(|error| warn_refused(state, error))
}

/// Takes up TLS on a new connection to the backend at `address`, before `deadline`, if its pool wants that.
pub async fn secure(
    stream: Stream,
    tls: Option<&PoolTls>,
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
        Err(_) => Err(Failed::new(Fault::Timeout, "TLS handshake not over in time").into()),
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
