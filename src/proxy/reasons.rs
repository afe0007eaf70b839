//! Reasons by cause: the one place where an error of a socket, TLS, HTTP/2 or a body becomes a
//! [`Reason`].
//!
//! The layers below return causes and know no reasons. Only what depends on more than an error is
//! decided elsewhere: deadlines, the client that left, the side that stalls.

use std::io;

use super::http::relay::BodyRelayError;
use crate::{
    h2::{StreamError, backend::H2HandshakeError},
    http::rules::HeadFault,
    http1::body::BodyError,
    net::{
        client_hello::ClientHelloError, connect::ConnectError, copy::RelayError, local_error,
        proxy_protocol::ReceiveHeaderError, tls::HandshakeError,
    },
    pool::BackendState,
    reason::Reason,
    telemetry::handshakes::HandshakeFailure,
};

/// Reason of a connection to a backend that could not be made.
pub(super) fn of_connect(error: &ConnectError) -> Reason {
    match error {
        _ if error.is_local() => Reason::Overload,
        _ if error.is_timeout() => Reason::ConnectionTimeout,
        ConnectError::Timeout => Reason::ConnectionTimeout,
        ConnectError::Unresolved => Reason::DnsError,
        ConnectError::ProxyHeader(_) => Reason::ConnectionTerminated,
        ConnectError::Tls(error) => of_handshake(error),
        ConnectError::Io(_) => Reason::ConnectionRefused,
    }
}

fn of_handshake(error: &HandshakeError) -> Reason {
    match error.failure {
        HandshakeFailure::Closed => Reason::ConnectionTerminated,
        HandshakeFailure::CertificateInvalid => Reason::TlsCertificateError,
        _ => Reason::TlsProtocolError,
    }
}

/// Reason of a new connection to a backend on which HTTP/2 could not begin.
pub(super) const fn of_h2_handshake(error: &H2HandshakeError) -> Reason {
    match error {
        H2HandshakeError::NotNegotiated => Reason::TlsProtocolError,
        H2HandshakeError::NoSettings | H2HandshakeError::NoStreams => Reason::ConnectionTimeout,
        H2HandshakeError::Ended(ended) => of_h2_end(*ended),
    }
}

/// Reason of an HTTP/2 stream to a backend, or of its connection, that ended too early.
pub(super) const fn of_h2_end(ended: StreamError) -> Reason {
    match ended {
        // Violations that we have found, as opposed to ends that the backend has announced.
        StreamError::Invalid(_)
        | StreamError::Malformed(_)
        | StreamError::Failed(_)
        | StreamError::Http1 => Reason::ProxyProtocolError,
        StreamError::TooLarge(_) => Reason::ResponseHeaderSectionSize,
        StreamError::Reset(_) | StreamError::NotProcessed(_) | StreamError::Lost => {
            Reason::ConnectionTerminated
        }
    }
}

/// Reason of a request head that is refused.
pub(super) const fn of_request_head(fault: HeadFault) -> Reason {
    match fault {
        HeadFault::Malformed => Reason::RequestError,
        HeadFault::TargetTooLong => Reason::RequestUriTooLong,
        HeadFault::TooLarge => Reason::RequestHeaderSectionSize,
        HeadFault::MethodNotAllowed => Reason::MethodNotAllowed,
        HeadFault::ExpectationFailed => Reason::ExpectationFailed,
        HeadFault::CodingUnsupported => Reason::TransferCodingUnsupported,
        HeadFault::VersionUnsupported => Reason::VersionNotSupported,
    }
}

/// Reason of a response head that is not valid, or larger than is taken.
pub(super) const fn of_response_head(fault: HeadFault) -> Reason {
    match fault {
        HeadFault::TooLarge => Reason::ResponseHeaderSectionSize,
        _ => Reason::ProxyProtocolError,
    }
}

/// Reason of an error on an established connection to a backend. Logs a local shortage.
pub(super) fn of_broken_connection(error: &io::Error) -> Reason {
    if local_error::is_local(error) {
        local_error::log(error);
        return Reason::Overload;
    }
    Reason::ConnectionTerminated
}

/// Reason of a relay that was cut.
pub(super) const fn of_relay(error: RelayError) -> Reason {
    match error {
        RelayError::Idle => Reason::IdleTimeout,
        RelayError::Stopped => Reason::DrainTimeout,
        RelayError::Client(_) => Reason::ClientDisconnected,
        RelayError::Backend(_) => Reason::BackendReset,
    }
}

/// Reason of a request body that could not be moved: the client's fault.
pub(super) fn of_request_body(error: &BodyRelayError) -> Reason {
    match error {
        _ if is_oversized(error) => Reason::RequestHeaderSectionSize,
        BodyRelayError::Malformed(_) => Reason::RequestIncomplete,
        BodyRelayError::TooLarge => Reason::RequestBodySize,
        BodyRelayError::Read(_) | BodyRelayError::Cut | BodyRelayError::Write(_) => {
            Reason::ClientDisconnected
        }
    }
}

/// Reason of a response that is cut because its body cannot be read any further.
pub(super) fn of_response_body(error: &BodyRelayError) -> Reason {
    if is_oversized(error) {
        Reason::ResponseHeaderSectionSize
    } else {
        Reason::ResponseIncomplete
    }
}

/// True if trailers, or an HTTP/2 field block, exceed our limits.
fn is_oversized(error: &BodyRelayError) -> bool {
    match error {
        BodyRelayError::Malformed(error) => matches!(error, BodyError::TrailersTooLarge),
        BodyRelayError::Read(error) => {
            matches!(StreamError::of(error), Some(StreamError::TooLarge(_)))
        }
        _ => false,
    }
}

/// Reason of a response whose body is malformed from its first chunk on.
pub(super) const fn of_first_chunk(error: &BodyError) -> Reason {
    match error {
        BodyError::TrailersTooLarge => Reason::ResponseHeaderSectionSize,
        _ => Reason::ProxyProtocolError,
    }
}

/// Reason of a connection without the PROXY header that it must begin with; `None` if it ended
/// without a byte, as connections do that only test if we accept.
pub(super) const fn of_proxy_header(error: &ReceiveHeaderError) -> Option<Reason> {
    match error {
        ReceiveHeaderError::Silent => None,
        ReceiveHeaderError::Cut | ReceiveHeaderError::Io(_) => Some(Reason::ClientDisconnected),
        ReceiveHeaderError::Invalid(_) => Some(Reason::RequestError),
    }
}

/// Reason and handshake counter of a connection that does not begin with a ClientHello.
pub(super) const fn of_client_hello(error: &ClientHelloError) -> (HandshakeFailure, Reason) {
    match error {
        ClientHelloError::NotTls => (HandshakeFailure::NotTls, Reason::TlsRequired),
        ClientHelloError::TooLarge | ClientHelloError::Malformed(_) => {
            (HandshakeFailure::Protocol, Reason::RequestError)
        }
    }
}

/// Counts a connection that could not be made for `reason`: as a local shortage, or as the
/// backend's.
pub(super) fn count_connect_failure(state: &BackendState, reason: Reason) {
    let metrics = state.metrics.mine();
    match reason {
        Reason::Overload => metrics.connections_local_error.add(1),
        _ => metrics.connections_failed.add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::frame::ErrorCode;

    fn os(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn a_connect_error_has_the_reason_of_its_cause() {
        let tls = |failure| ConnectError::Tls(HandshakeError::new(failure, ""));
        let table = [
            (ConnectError::Unresolved, Reason::DnsError),
            (ConnectError::Timeout, Reason::ConnectionTimeout),
            (os(libc::ETIMEDOUT).into(), Reason::ConnectionTimeout),
            (os(libc::ECONNREFUSED).into(), Reason::ConnectionRefused),
            (os(libc::EHOSTUNREACH).into(), Reason::ConnectionRefused),
            (os(libc::ENOENT).into(), Reason::ConnectionRefused),
            (os(libc::EMFILE).into(), Reason::Overload),
            (os(libc::EADDRNOTAVAIL).into(), Reason::Overload),
            (os(libc::EAGAIN).into(), Reason::Overload),
            (
                ConnectError::ProxyHeader(os(libc::EPIPE)),
                Reason::ConnectionTerminated,
            ),
            (
                ConnectError::ProxyHeader(os(libc::ENOBUFS)),
                Reason::Overload,
            ),
            (tls(HandshakeFailure::Timeout), Reason::ConnectionTimeout),
            (tls(HandshakeFailure::Closed), Reason::ConnectionTerminated),
            (
                tls(HandshakeFailure::CertificateInvalid),
                Reason::TlsCertificateError,
            ),
            (
                tls(HandshakeFailure::CertificateMissing),
                Reason::TlsProtocolError,
            ),
            (tls(HandshakeFailure::Alert), Reason::TlsProtocolError),
            (tls(HandshakeFailure::Alpn), Reason::TlsProtocolError),
            (tls(HandshakeFailure::NotTls), Reason::TlsProtocolError),
            (
                HandshakeError::from(os(libc::ECONNRESET)).into(),
                Reason::ConnectionTerminated,
            ),
            (
                HandshakeError::from(os(libc::ENOBUFS)).into(),
                Reason::Overload,
            ),
        ];
        for (error, reason) in table {
            assert_eq!(of_connect(&error), reason, "{error:?}");
        }
    }

    #[test]
    fn the_end_of_an_http2_stream_is_a_violation_a_limit_or_a_lost_connection() {
        let code = ErrorCode::PROTOCOL_ERROR;
        let table = [
            (StreamError::Invalid(code), Reason::ProxyProtocolError),
            (StreamError::Malformed(""), Reason::ProxyProtocolError),
            (StreamError::Failed(code), Reason::ProxyProtocolError),
            (StreamError::Http1, Reason::ProxyProtocolError),
            (StreamError::TooLarge(""), Reason::ResponseHeaderSectionSize),
            (StreamError::Reset(code), Reason::ConnectionTerminated),
            (
                StreamError::NotProcessed(code),
                Reason::ConnectionTerminated,
            ),
            (StreamError::Lost, Reason::ConnectionTerminated),
        ];
        for (ended, reason) in table {
            assert_eq!(of_h2_end(ended), reason, "{ended:?}");
            assert_eq!(
                of_h2_handshake(&H2HandshakeError::Ended(ended)),
                reason,
                "{ended:?}"
            );
        }
        let reset = os(libc::ECONNRESET);
        assert_eq!(of_broken_connection(&reset), Reason::ConnectionTerminated);
        let shortage = os(libc::ENOBUFS);
        assert_eq!(of_broken_connection(&shortage), Reason::Overload);
        for (error, reason) in [
            (H2HandshakeError::NotNegotiated, Reason::TlsProtocolError),
            (H2HandshakeError::NoSettings, Reason::ConnectionTimeout),
            (H2HandshakeError::NoStreams, Reason::ConnectionTimeout),
        ] {
            assert_eq!(of_h2_handshake(&error), reason, "{error:?}");
        }
    }

    #[test]
    fn a_head_that_was_refused_has_the_reason_of_its_fault() {
        use HeadFault as Fault;

        let invalid = Reason::ProxyProtocolError;
        for (fault, of_request, of_response) in [
            (Fault::Malformed, Reason::RequestError, invalid),
            (Fault::TargetTooLong, Reason::RequestUriTooLong, invalid),
            (
                Fault::TooLarge,
                Reason::RequestHeaderSectionSize,
                Reason::ResponseHeaderSectionSize,
            ),
            (Fault::MethodNotAllowed, Reason::MethodNotAllowed, invalid),
            (Fault::ExpectationFailed, Reason::ExpectationFailed, invalid),
            (
                Fault::CodingUnsupported,
                Reason::TransferCodingUnsupported,
                invalid,
            ),
            (
                Fault::VersionUnsupported,
                Reason::VersionNotSupported,
                invalid,
            ),
        ] {
            assert_eq!(of_request_head(fault), of_request, "{fault:?}");
            assert_eq!(of_response_head(fault), of_response, "{fault:?}");
        }
    }

    #[test]
    fn a_body_that_fails_is_the_fault_of_its_sender_and_trailers_over_a_limit_are_named() {
        use Reason::{
            ClientDisconnected, RequestBodySize, RequestHeaderSectionSize, RequestIncomplete,
            ResponseHeaderSectionSize, ResponseIncomplete,
        };

        let too_large = || io::Error::other(StreamError::TooLarge(""));
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let trailers = BodyRelayError::Malformed(BodyError::TrailersTooLarge);
        let table = [
            (
                trailers,
                RequestHeaderSectionSize,
                ResponseHeaderSectionSize,
            ),
            (
                BodyRelayError::Read(too_large()),
                RequestHeaderSectionSize,
                ResponseHeaderSectionSize,
            ),
            (
                BodyRelayError::Malformed(BodyError::Malformed("")),
                RequestIncomplete,
                ResponseIncomplete,
            ),
            (
                BodyRelayError::TooLarge,
                RequestBodySize,
                ResponseIncomplete,
            ),
            (
                BodyRelayError::Read(reset()),
                ClientDisconnected,
                ResponseIncomplete,
            ),
            (
                BodyRelayError::Write(reset()),
                ClientDisconnected,
                ResponseIncomplete,
            ),
            (BodyRelayError::Cut, ClientDisconnected, ResponseIncomplete),
        ];
        for (error, of_request, of_response) in table {
            assert_eq!(of_request_body(&error), of_request, "{error:?}");
            assert_eq!(of_response_body(&error), of_response, "{error:?}");
        }
        let trailers = BodyError::TrailersTooLarge;
        assert_eq!(of_first_chunk(&trailers), ResponseHeaderSectionSize);
        assert_eq!(
            of_first_chunk(&BodyError::Malformed("")),
            Reason::ProxyProtocolError
        );
    }

    #[test]
    fn the_beginning_and_the_end_of_a_session_have_their_reasons() {
        let kind = io::ErrorKind::ConnectionReset;
        for (error, reason) in [
            (RelayError::Idle, Reason::IdleTimeout),
            (RelayError::Stopped, Reason::DrainTimeout),
            (RelayError::Client(kind), Reason::ClientDisconnected),
            (RelayError::Backend(kind), Reason::BackendReset),
        ] {
            assert_eq!(of_relay(error), reason);
        }
        assert_eq!(of_proxy_header(&ReceiveHeaderError::Silent), None);
        for (error, reason) in [
            (ReceiveHeaderError::Cut, Reason::ClientDisconnected),
            (kind_error(kind).into(), Reason::ClientDisconnected),
        ] {
            assert_eq!(of_proxy_header(&error), Some(reason), "{error:?}");
        }
        for (error, failure, reason) in [
            (
                ClientHelloError::NotTls,
                HandshakeFailure::NotTls,
                Reason::TlsRequired,
            ),
            (
                ClientHelloError::TooLarge,
                HandshakeFailure::Protocol,
                Reason::RequestError,
            ),
            (
                ClientHelloError::Malformed(""),
                HandshakeFailure::Protocol,
                Reason::RequestError,
            ),
        ] {
            assert_eq!(of_client_hello(&error), (failure, reason), "{error:?}");
        }
    }

    fn kind_error(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }
}
