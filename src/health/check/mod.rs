//! One probe of one backend: the request, and the judgement of the response. A new type of check is
//! one arm in [`run`] and one file.
//!
//! `http.rs` judges responses that `exchange.rs` reads, on a connection or on an HTTP/2 stream made
//! by `http2.rs`. `grpc.rs` always uses a stream. `error.rs` maps every failure to its cause.

mod deadline;
mod error;
mod exchange;
mod grpc;
mod http;
mod http2;

use std::{net::SocketAddr, time::Instant};

use self::deadline::ProbeDeadline;
pub(super) use self::error::CheckError;
use self::exchange::CheckStream;
use crate::{
    base::{address::BackendAddress, clock},
    config::model::{CheckKind, HealthCheckConfig, PoolConfig},
    net::{
        connect::{connect, connect_port, secure, send_proxy_header, warn_refused},
        proxy_protocol,
        stream::Stream,
    },
    pool::BackendState,
};

/// Probes the backend once, within the check's timeout, with the protocol and TLS of `pool`.
///
/// With `send_proxy` the PROXY header declares the connection as local. Another port is another
/// service, so a check of one sends no header.
pub(super) async fn run(
    backend: &BackendState,
    check: &HealthCheckConfig,
    pool: &PoolConfig,
) -> Result<(), CheckError> {
    let deadline = ProbeDeadline {
        at: clock::now() + check.timeout,
        timeout: check.timeout,
    };
    let header = pool.send_proxy.filter(|_| check.port.is_none());
    let header = header.map(proxy_protocol::encode_local);
    let stream = open(backend, check, pool, header.as_deref(), deadline.at).await?;
    let authority = |host: &Option<String>| {
        let host = host.clone();
        host.unwrap_or_else(|| default_host(backend, check.port))
    };
    match &check.kind {
        // Closes in order, so that the header arrives: without one the backend would log an error.
        CheckKind::Tcp if header.is_some() => Ok(()),
        CheckKind::Tcp => {
            // Closes by reset: no TIME_WAIT socket here for each check of each backend, and the
            // server need not prepare for a request.
            stream.set_reset_on_close();
            Ok(())
        }
        CheckKind::Http {
            path,
            method,
            host,
            expect,
            body,
        } => {
            let probe = http::HttpProbe {
                path,
                method,
                authority: authority(host),
                expect,
                body: body.as_deref(),
            };
            if pool.protocol.is_h2() {
                let exchange = async |stream| probe.run(stream).await;
                Box::pin(http2::on_stream(stream, exchange, deadline)).await
            } else {
                deadline.run(probe.run(CheckStream::H1(stream))).await
            }
        }
        CheckKind::Grpc { service, host } => {
            let authority = authority(host);
            let timeout = check.timeout;
            let exchange = async |stream| grpc::probe(stream, service, &authority, timeout).await;
            Box::pin(http2::on_stream(stream, exchange, deadline)).await
        }
    }
}

/// Opens the connection for a probe: PROXY header sent, TLS established.
async fn open(
    backend: &BackendState,
    check: &HealthCheckConfig,
    pool: &PoolConfig,
    header: Option<&[u8]>,
    deadline: Instant,
) -> Result<Stream, CheckError> {
    let tls = pool.tls.as_ref();
    let connected = match check.port {
        None => connect(backend, deadline).await,
        Some(port) => connect_port(backend, port, deadline).await,
    };
    let more_follows = tls.is_some() || !matches!(check.kind, CheckKind::Tcp);
    let with_header = connected.and_then(|stream| send_proxy_header(stream, header, more_follows));
    let secured = match with_header {
        Ok(stream) => secure(stream, tls, &backend.address, deadline)
            .await
            .inspect_err(|error| warn_refused(backend, error)),
        Err(error) => Err(error),
    };
    secured.map_err(|error| CheckError::from_connect(error, check.timeout))
}

/// `Host` or `:authority` of a check that configures none: the address that is asked.
fn default_host(backend: &BackendState, port: Option<u16>) -> String {
    match (&backend.address, port) {
        (BackendAddress::Unix(_), _) => "localhost".to_owned(),
        (BackendAddress::Ip(address), Some(port)) => {
            SocketAddr::new(address.ip(), port).to_string()
        }
        (BackendAddress::Name { host, .. }, Some(port)) => format!("{host}:{port}"),
        (address, None) => address.to_string(),
    }
}

#[cfg(test)]
mod tests;
