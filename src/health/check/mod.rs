//! One probe of one backend: the request, and the judgement of the response. A new type of check is
//! one arm in [`CheckProbe::judge`] and one file.
//!
//! `http.rs` judges responses that `exchange.rs` reads, on a connection or on an HTTP/2 stream made
//! by `http2.rs`. `grpc.rs` always uses a stream. The others have a `conversation.rs`. `error.rs`
//! maps every failure to its cause, `phases.rs` takes the times.

mod conversation;
mod deadline;
mod error;
mod exchange;
mod grpc;
mod http;
mod http2;
mod mysql;
mod phases;
mod postgres;
mod redis;
mod scram;
mod smtp;
mod steps;

use std::net::SocketAddr;

pub(super) use self::error::CheckError;
use self::{
    conversation::ProbeConversation, deadline::ProbeDeadline, exchange::CheckStream,
    phases::PhaseClock,
};
use crate::{
    base::address::BackendAddress,
    config::model::{
        CheckKind, HealthCheckConfig, HttpCheckConfig, PoolConfig, PoolTlsConfig,
        PostgresCheckConfig,
    },
    net::{
        connect::{connect, connect_port, secure, send_proxy_header, warn_refused},
        proxy_protocol,
        stream::Stream,
    },
    pool::{Backend, BackendState, CheckTiming},
};

/// Result of a probe, and its times.
pub(super) struct ProbeOutcome {
    pub(super) result: Result<(), CheckError>,
    pub(super) timing: CheckTiming,
}

/// The port of the checks of `backend`, if it is not that of its traffic.
pub(super) fn own_port(check: &HealthCheckConfig, backend: &Backend) -> Option<u16> {
    backend.config.check_port.or(check.port)
}

/// TLS of the checks of `backend`.
pub(super) fn own_tls<'a>(
    check: &'a HealthCheckConfig,
    pool: &'a PoolConfig,
    backend: &'a Backend,
) -> Option<&'a PoolTlsConfig> {
    check.tls.resolve(backend.tls(pool))
}

/// Probes the backend once, within the check's timeout, with the protocol and TLS of `pool` unless
/// the check or the backend has its own.
pub(super) async fn run(
    check: &HealthCheckConfig,
    pool: &PoolConfig,
    backend: &Backend,
) -> ProbeOutcome {
    let phases = PhaseClock::start();
    let probe = CheckProbe {
        check,
        pool,
        backend: &backend.state,
        port: own_port(check, backend),
        tls: own_tls(check, pool, backend),
        deadline: ProbeDeadline {
            at: phases.began() + check.timeout,
            timeout: check.timeout,
        },
        phases: &phases,
    };
    let result = probe.judge().await;
    ProbeOutcome {
        result,
        timing: phases.timing(),
    }
}

/// One probe under way.
#[derive(Clone, Copy)]
struct CheckProbe<'a> {
    check: &'a HealthCheckConfig,
    pool: &'a PoolConfig,
    backend: &'a BackendState,
    port: Option<u16>,
    tls: Option<&'a PoolTlsConfig>,
    deadline: ProbeDeadline,
    phases: &'a PhaseClock,
}

impl<'a> CheckProbe<'a> {
    async fn judge(self) -> Result<(), CheckError> {
        let deadline = self.deadline;
        match &self.check.kind {
            CheckKind::Tcp => self.tcp().await,
            CheckKind::Http(check) => Box::pin(self.http(check)).await,
            CheckKind::Grpc { service, host } => {
                let stream = self.open(true).await?;
                let authority = self.authority(host.as_deref());
                let timeout = self.check.timeout;
                let call = grpc::GrpcProbe {
                    service,
                    authority: &authority,
                    timeout,
                    phases: self.phases,
                };
                let exchange = async |stream| call.run(stream).await;
                Box::pin(http2::on_stream(stream, exchange, deadline)).await
            }
            CheckKind::Steps(steps) => {
                let sends_first = steps.first().is_some_and(|step| step.send.is_some());
                let server = self.converse(sends_first).await?;
                Box::pin(steps::probe(server, steps, deadline)).await
            }
            CheckKind::Redis(check) => {
                let server = self.converse(true).await?;
                deadline.run(Box::pin(redis::probe(server, check))).await
            }
            CheckKind::Smtp { host } => {
                let server = self.converse(false).await?;
                let probing = Box::pin(smtp::probe(server, host.as_deref()));
                deadline.run(probing).await
            }
            CheckKind::Mysql { user } => deadline.run(Box::pin(self.mysql(user))).await,
            CheckKind::Postgres(check) => deadline.run(Box::pin(self.postgres(check))).await,
        }
    }

    /// A connection that is accepted is all that is wanted.
    async fn tcp(self) -> Result<(), CheckError> {
        let stream = self.open(false).await?;
        // With a PROXY header it closes in order, so that the header arrives: without one the
        // backend would log an error. Else it closes by reset: no TIME_WAIT socket here for each
        // check of each backend, and the server need not prepare for a request.
        if self.proxy_header().is_none() {
            stream.set_reset_on_close();
        }
        Ok(())
    }

    async fn http(self, check: &HttpCheckConfig) -> Result<(), CheckError> {
        let probe = http::HttpProbe {
            check,
            authority: self.authority(check.host.as_deref()),
            phases: self.phases,
        };
        let stream = self.open(true).await?;
        if self.pool.protocol.is_h2() {
            let exchange = async |stream| probe.run(stream).await;
            http2::on_stream(stream, exchange, self.deadline).await
        } else {
            self.deadline.run(probe.run(CheckStream::H1(stream))).await
        }
    }

    /// MySQL begins TLS within its own handshake.
    async fn mysql(self, user: &str) -> Result<(), CheckError> {
        let stream = self.open_plain(false).await?;
        let mut server = ProbeConversation::new(stream, self.phases);
        let greeting = mysql::MysqlGreeting::read(&mut server).await?;
        if self.tls.is_none() {
            return mysql::finish(server, &greeting, user, 1).await;
        }
        if !greeting.offers_tls() {
            // In order all the same: a handshake that is broken off counts against this machine.
            let _ = mysql::finish(server, &greeting, user, 1).await;
            return Err(CheckError::unexpected("the server does not offer TLS"));
        }
        server.send(&mysql::tls_request()).await;
        let stream = self.secure(server.into_plain_stream()?).await?;
        let server = ProbeConversation::new(stream, self.phases);
        mysql::finish(server, &greeting, user, 2).await
    }

    /// PostgreSQL begins TLS when it was asked for it.
    async fn postgres(self, check: &PostgresCheckConfig) -> Result<(), CheckError> {
        let stream = self.open_plain(true).await?;
        let mut server = ProbeConversation::new(stream, self.phases);
        if self.tls.is_some() {
            postgres::request_tls(&mut server).await?;
            let stream = self.secure(server.into_plain_stream()?).await?;
            server = ProbeConversation::new(stream, self.phases);
        }
        postgres::probe(server, check).await
    }

    /// Opens a connection for a conversation.
    async fn converse(self, sends_first: bool) -> Result<ProbeConversation<'a>, CheckError> {
        let stream = self.open(sends_first).await?;
        Ok(ProbeConversation::new(stream, self.phases))
    }

    /// Opens the connection: PROXY header sent, TLS established. `sends_first`: bytes of ours
    /// follow at once.
    async fn open(self, sends_first: bool) -> Result<Stream, CheckError> {
        let stream = self.open_plain(sends_first || self.tls.is_some()).await?;
        self.secure(stream).await
    }

    /// Opens the connection without TLS.
    async fn open_plain(self, sends_first: bool) -> Result<Stream, CheckError> {
        let connected = match self.port {
            None => connect(self.backend, self.deadline.at).await,
            Some(port) => connect_port(self.backend, port, self.deadline.at).await,
        };
        let header = self.proxy_header();
        connected
            .inspect(|_| self.phases.connected())
            .and_then(|stream| send_proxy_header(stream, header.as_deref(), sends_first))
            .map_err(|error| CheckError::from_connect(error, self.check.timeout))
    }

    /// Establishes TLS, if the check has it.
    async fn secure(self, stream: Stream) -> Result<Stream, CheckError> {
        let deadline = self.deadline.at;
        let secured = secure(stream, self.tls, &self.backend.address, deadline).await;
        if self.tls.is_some() && secured.is_ok() {
            self.phases.secured();
        }
        secured
            .inspect_err(|error| warn_refused(self.backend, error))
            .map_err(|error| CheckError::from_connect(error, self.check.timeout))
    }

    /// PROXY header with `send_proxy`: it declares the connection as local. Another port is another
    /// service, so a check of one sends no header.
    fn proxy_header(self) -> Option<Box<[u8]>> {
        let version = self.pool.send_proxy.filter(|_| self.port.is_none());
        version.map(proxy_protocol::encode_local)
    }

    /// `Host` or `:authority`: the configured one, else the address that is asked.
    fn authority(self, host: Option<&str>) -> String {
        if let Some(host) = host {
            return host.to_owned();
        }
        match (&self.backend.address, self.port) {
            (BackendAddress::Unix(_), _) => "localhost".to_owned(),
            (BackendAddress::Ip(address), Some(port)) => {
                SocketAddr::new(address.ip(), port).to_string()
            }
            (
                BackendAddress::Name { host, .. } | BackendAddress::Resolved { host, .. },
                Some(port),
            ) => format!("{host}:{port}"),
            (BackendAddress::Resolved { host, address }, None) => {
                format!("{host}:{}", address.port())
            }
            (BackendAddress::Service(name), _) => name.clone(),
            (address, None) => address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
