//! Failures of a check and their texts. The only place in `health` where errors of connections
//! become the result of a check.
//!
//! The text is the cause that logs and the status page show. A local error (no descriptor, port or
//! memory left) stands apart: it says nothing about the backend and must not take it down.

use std::{error::Error, io, time::Duration};

use crate::{
    h2::{StreamError, backend::H2HandshakeError},
    health::grpc_message::GrpcMessageError,
    net::{connect::ConnectError, local_error},
};

/// Failure of a check; `Display` is the cause for people.
#[derive(Debug, thiserror::Error)]
pub(in crate::health) enum CheckError {
    /// Nothing listens at the address.
    #[error("connection refused")]
    Refused,
    /// There was no connection within the check's timeout.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection could not be made for another cause.
    #[error(transparent)]
    Connect(ConnectError),
    /// HTTP/2 could not begin on the connection.
    #[error(transparent)]
    Handshake(H2HandshakeError),
    /// There was no whole response within the check's timeout.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection ended in order before the whole response.
    #[error("connection closed before the whole answer")]
    Closed,
    /// The same by a reset, or without the end of TLS.
    #[error("connection closed before the whole answer")]
    Truncated,
    /// The stream of HTTP/2 failed.
    #[error(transparent)]
    Stream(StreamError),
    /// The connection failed otherwise.
    #[error(transparent)]
    Io(io::Error),
    /// The response is not valid HTTP.
    #[error("answer is not valid HTTP: {0}")]
    InvalidHttp(String),
    /// The response of a grpc check is not valid.
    #[error("answer is not a HealthCheckResponse: {0}")]
    InvalidMessage(#[source] GrpcMessageError),
    /// The response is valid and not the expected one.
    #[error("{0}")]
    Unexpected(String),
    /// A local error. It says nothing about the backend.
    #[error(transparent)]
    Local(Box<dyn Error>),
}

impl CheckError {
    /// Maps the failure of a connection attempt, in a check with `timeout`.
    pub(super) fn from_connect(error: ConnectError, timeout: Duration) -> Self {
        match error {
            _ if error.is_timeout() => Self::ConnectTimeout(timeout),
            _ if error.is_local() => Self::Local(Box::new(error)),
            ConnectError::Io(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
                Self::Refused
            }
            _ => Self::Connect(error),
        }
    }

    /// Maps the failure of an HTTP/2 handshake, in a check with `timeout`.
    pub(super) fn from_handshake(error: H2HandshakeError, timeout: Duration) -> Self {
        match error {
            H2HandshakeError::NoSettings | H2HandshakeError::NoStreams => Self::Timeout(timeout),
            _ => Self::Handshake(error),
        }
    }

    /// Maps an error of an established connection.
    pub(super) fn from_io(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            _ if local_error::is_local(&error) => {
                local_error::log(&error);
                Self::Local(Box::new(error))
            }
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }

    /// Maps the end of an HTTP/2 stream.
    pub(super) const fn from_stream(ended: StreamError) -> Self {
        match ended {
            StreamError::Lost => Self::Truncated,
            _ => Self::Stream(ended),
        }
    }

    /// A response that is valid and not the expected one.
    pub(super) fn unexpected(cause: impl Into<String>) -> Self {
        Self::Unexpected(cause.into())
    }
}
