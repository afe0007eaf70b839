//! One probe of one backend: what is asked, and what counts as a good answer. A new type of check is one arm in [`run`] and
//! one file. The error of a probe is the cause that logs and the status page show.
//!
//! `http.rs` judges answers of HTTP, which `http1.rs` reads: on a connection, or on a stream of one that `http2.rs` makes.
//! `grpc.rs` is always on a stream.

mod grpc;

mod http;
mod http1;
mod http2;

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use crate::{
    base::{address::BackendAddress, clock},
    config::model::{CheckKind, HealthCheckConfig, PoolConfig},
    net::{
        connect::{ConnectError, connect, connect_port, secure, send_proxy_header, warn_refused},
        proxy_protocol,
        stream::Stream,
    },
    pool::BackendState,
};

/// The `User-Agent` of all checks.
const USER_AGENT: &str = "balancer-check";

/// Why a check did not pass; `Display` is the cause for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    /// Nothing listens at the address.
    #[error("connection refused")]
    Refused,
    /// The connection ended in order before the whole response.
    #[error("connection closed before the whole answer")]
    Closed,
    /// The same, by a reset or without the end of TLS.
    #[error("connection closed before the whole answer")]
    Cut,
    /// Anything else that is held against the backend.
    #[error("{0}")]
    Failed(String),
    /// A lack of our own: descriptors, ports, buffers, memory. It says nothing of the backend.
    #[error("{0}")]
    Local(String),
}

impl From<String> for CheckError {
    fn from(cause: String) -> Self {
        Self::Failed(cause)
    }
}

/// By when a probe must be over.
#[derive(Clone, Copy)]
struct ProbeDeadline {
    deadline: Instant,
    /// As configured, for whoever reads the cause.
    timeout: Duration,
}

impl ProbeDeadline {
    async fn keep(
        self,
        probe: impl Future<Output = Result<(), CheckError>>,
    ) -> Result<(), CheckError> {
        timeout_at(self.deadline.into(), probe)
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    fn late(self) -> CheckError {
        CheckError::Failed(format!("no answer within {:?}", self.timeout))
    }
}

/// Probes once, within the definition's timeout, as `pool` speaks with its backends. With its `send_proxy`, which says that
/// the connection is our own, unless another port is asked: what is there is another service.
pub(super) async fn run(
    backend: &BackendState,
    check: &HealthCheckConfig,
    pool: &PoolConfig,
) -> Result<(), CheckError> {
    let limit = ProbeDeadline {
        deadline: clock::now() + check.timeout,
        timeout: check.timeout,
    };
    let header = pool.send_proxy.filter(|_| check.port.is_none());
    let header = header.map(proxy_protocol::encode_local);
    let stream = open(backend, check, pool, header.as_deref(), limit.deadline).await?;
    let authority = |host: &Option<String>| {
        let host = host.clone();
        host.unwrap_or_else(|| default_host(backend, check.port))
    };
    match &check.kind {
        // In order, so that the header arrives: a connection that ends without one looks like a fault there.
        CheckKind::Tcp if header.is_some() => Ok(()),
        CheckKind::Tcp => {
            // A reset instead of an end: no TIME_WAIT here, and the server is not asked to serve anybody.
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
                Box::pin(http2::on_stream(stream, exchange, limit)).await
            } else {
                limit.keep(probe.run(stream)).await
            }
        }
        CheckKind::Grpc { service, host } => {
            let authority = authority(host);
            let timeout = check.timeout;
            let exchange = async |stream| grpc::ask(stream, service, &authority, timeout).await;
            Box::pin(http2::on_stream(stream, exchange, limit)).await
        }
    }
}

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
    let introduced = connected.and_then(|stream| send_proxy_header(stream, header, more_follows));
    let secured = match introduced {
        Ok(stream) => secure(stream, tls, &backend.address, deadline)
            .await
            .inspect_err(|error| warn_refused(backend, error)),
        Err(error) => Err(error),
    };
    secured.map_err(|error| match &error {
        _ if error.is_timeout() => format!("no connection within {:?}", check.timeout).into(),
        _ if error.is_local() => CheckError::Local(error.to_string()),
        ConnectError::Io(source) if source.kind() == ErrorKind::ConnectionRefused => {
            CheckError::Refused
        }
        _ => CheckError::Failed(error.to_string()),
    })
}

fn default_host(backend: &BackendState, port: Option<u16>) -> String {
    match (&backend.address, port) {
        (BackendAddress::Unix(_), _) => "localhost".to_owned(),
        (BackendAddress::Ip(address), Some(port)) => {
            std::net::SocketAddr::new(address.ip(), port).to_string()
        }
        (BackendAddress::Name { host, .. }, Some(port)) => format!("{host}:{port}"),
        (address, None) => address.to_string(),
    }
}

#[cfg(test)]
mod tests;
