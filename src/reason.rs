//! The closed list of reasons for a local reply, a cut connection or a failure of a backend.
//!
//! One entry here gives the log's `reason`, the metric label, the `Proxy-Status` token (RFC 9209),
//! the status in both profiles, the detail in the JSON body and the entry in docs/reasons.md. No
//! other module defines one, so that logs, metrics and responses always agree.

use std::fmt;

/// Mapping of reasons to statuses: `errors.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusProfile {
    /// Every backend failure is 502.
    #[default]
    Unified,
    /// Timeouts are 504 and an empty pool is 503.
    Split,
}

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])* $variant:ident, $name:literal, $token:literal, $unified:literal, $split:literal, $retry_after:literal, $detail:literal; )*) => {
        /// Reason for a local reply, a cut connection or a failure of a backend. See
        /// docs/reasons.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $( $(#[doc = $doc])* $variant, )* }

        impl Reason {
            /// Every reason, in the order of the docs.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The name used in logs, metric labels and `errors.override`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// The error token of the `Proxy-Status` field, RFC 9209 section 2.3.
            pub const fn token(self) -> &'static str {
                match self { $( Self::$variant => $token, )* }
            }

            /// The status sent to the client; 0 if the connection is cut without a response.
            pub const fn status(self, profile: StatusProfile) -> u16 {
                match (self, profile) {
                    $( (Self::$variant, StatusProfile::Unified) => $unified, (Self::$variant, StatusProfile::Split) => $split, )*
                }
            }

            /// Seconds for `Retry-After`, or 0 for none.
            pub const fn retry_after(self) -> u32 {
                match self { $( Self::$variant => $retry_after, )* }
            }

            /// Fixed detail for the client, safe to show: no addresses, no error numbers.
            pub const fn detail(self) -> &'static str {
                match self { $( Self::$variant => $detail, )* }
            }

            /// The condition, for docs/reasons.md.
            pub const fn when(self) -> &'static str {
                match self { $( Self::$variant => concat!($($doc,)*), )* }
            }
        }
    };
}

reasons! {
    /// No backend of the pool is available.
    DestinationUnavailable, "destination_unavailable", "destination_unavailable", 502, 503, 1, "No healthy upstream server is available to fulfill the request.";
    /// The name of the backend cannot be resolved.
    DnsError, "dns_error", "dns_error", 502, 502, 0, "The name of the upstream server could not be resolved.";
    /// The backend refused the connection or is unreachable.
    ConnectionRefused, "connection_refused", "connection_refused", 502, 502, 0, "The upstream server refused the connection.";
    /// The backend did not accept the connection within `timeouts.connect`.
    ConnectionTimeout, "connection_timeout", "connection_timeout", 502, 504, 0, "The upstream server did not accept the connection in time.";
    /// The backend closed or reset the connection before it sent a complete response head.
    ConnectionTerminated, "connection_terminated", "connection_terminated", 502, 502, 0, "The upstream server closed the connection before it sent a complete response.";
    /// The backend did not send a complete response head within `timeouts.response`.
    ConnectionReadTimeout, "connection_read_timeout", "http_response_timeout", 502, 504, 0, "The upstream server did not respond in time.";
    /// The whole exchange took longer than `timeouts.total`.
    TotalTimeout, "total_timeout", "http_response_timeout", 502, 504, 0, "The request was not fulfilled in the time allowed for it.";
    /// The TLS handshake with the backend failed: no TLS, no common version or cipher suite, or an
    /// alert.
    TlsProtocolError, "tls_protocol_error", "tls_protocol_error", 502, 502, 0, "A secure connection to the upstream server could not be established.";
    /// The backend's certificate was refused: unknown issuer, expired, or for another name.
    TlsCertificateError, "tls_certificate_error", "tls_certificate_error", 502, 502, 0, "The upstream server could not prove its identity.";
    /// The backend's response is not valid HTTP: bad status line, bad header, conflicting lengths,
    /// bad first chunk, or a 101 that was not requested.
    ProxyProtocolError, "proxy_protocol_error", "http_protocol_error", 502, 502, 0, "The server received an invalid response from the upstream server while trying to fulfill the request.";
    /// The backend did not switch to WebSocket, and client or backend use HTTP/2.
    UpgradeFailed, "http_upgrade_failed", "http_upgrade_failed", 502, 502, 0, "The upstream server did not accept the change of protocol.";
    /// The backend's response head or trailers are larger than 64 KiB or have more than 256 fields.
    /// This does not count for its ejection.
    ResponseHeaderSectionSize, "http_response_header_section_size", "http_response_header_section_size", 502, 502, 0, "The upstream server sent a response head that is too large.";
    /// The backend responded with a status of `ejection.status`. The client gets the response as it
    /// is; the reason appears only in the metrics of the backend and in the cause of its ejection.
    ResponseStatus, "http_response_status", "destination_unavailable", 0, 0, 0, "The upstream server reported an error.";
    /// The backend cut the response inside its body, so the client's connection is cut too.
    ResponseIncomplete, "http_response_incomplete", "http_response_incomplete", 0, 0, 0, "The upstream server cut the response.";
    /// The response was cut inside its body, because the backend sent nothing for `timeouts.idle`.
    ResponseIdleTimeout, "http_response_idle_timeout", "http_response_incomplete", 0, 0, 0, "The upstream server stopped sending the response.";
    /// All available backends are at their `max_connections` or `limits.connections_per_backend`,
    /// and the queue of the pool is full (`limits.queue`), or `limits.queue_timeout` has passed.
    ConnectionLimitReached, "connection_limit_reached", "connection_limit_reached", 503, 503, 1, "The server is at its connection limit for this service.";
    /// A limit of balancer was reached: `max_connections`, `limits.connections`,
    /// `limits.connections_per_client`, or no descriptor or port is left.
    Overload, "overload", "connection_limit_reached", 503, 503, 1, "The server is overloaded.";
    /// `allow` or `deny` refused the client, or the connection does not come from
    /// `accept_proxy.from`.
    RequestDenied, "http_request_denied", "http_request_denied", 403, 403, 0, "The request is not allowed from this address.";
    /// The client is over the `rate_limit` of the listener or route. `Retry-After` has the seconds
    /// until one more request is allowed.
    RateLimited, "rate_limited", "http_request_denied", 429, 429, 1, "Too many requests from this address.";
    /// The request is malformed or ambiguous, or the connection does not start with the PROXY
    /// header of `accept_proxy` or with a valid ClientHello for `sni`.
    RequestError, "http_request_error", "http_request_error", 400, 400, 0, "The request is malformed.";
    /// The request head is larger than `http.max_header_size` or has more fields than
    /// `http.max_headers`.
    RequestHeaderSectionSize, "http_request_header_section_size", "http_request_error", 431, 431, 0, "The request header fields are too large.";
    /// The request target is longer than half of `http.max_header_size`.
    RequestUriTooLong, "http_request_uri_too_long", "http_request_error", 414, 414, 0, "The request target is too long.";
    /// The request body is larger than `limits.request_body`.
    RequestBodySize, "http_request_body_size", "http_request_error", 413, 413, 0, "The request body is too large.";
    /// The client did not send its request head within `timeouts.header`, or its body at the rate
    /// of `timeouts.body_idle`. Or balancer waited for the client for `timeouts.idle`, in a gRPC
    /// call or after the response had started. Or the PROXY header or ClientHello did not come in
    /// time.
    RequestTimeout, "http_request_timeout", "http_request_error", 408, 408, 0, "The request was not received in time.";
    /// The client sent plain HTTP to a listener with `tls`, or anything except TLS to one with
    /// `sni`.
    TlsRequired, "tls_required", "http_request_error", 400, 400, 0, "This port speaks HTTPS, and the request came in plain HTTP.";
    /// The host of the request has another certificate than the name that the client asked for
    /// (SNI).
    MisdirectedRequest, "misdirected_request", "http_request_error", 421, 421, 0, "This connection is for another host.";
    /// No route or server name of `sni` matches, and the listener has no `pool`.
    NoRoute, "no_route", "destination_not_found", 404, 404, 0, "No route matches the request.";
    /// The method is not supported: CONNECT.
    MethodNotAllowed, "method_not_allowed", "http_request_error", 405, 405, 0, "The request method is not allowed.";
    /// The request has an `Expect` other than `100-continue`.
    ExpectationFailed, "expectation_failed", "http_request_error", 417, 417, 0, "The expectation of the request cannot be met.";
    /// The request has a transfer coding other than `chunked`.
    TransferCodingUnsupported, "transfer_coding_unsupported", "http_request_error", 501, 501, 0, "The transfer coding of the request is not supported.";
    /// The request has a protocol version other than HTTP/1.0 or HTTP/1.1.
    VersionNotSupported, "version_not_supported", "http_request_error", 505, 505, 0, "The protocol version of the request is not supported.";
    /// The client's body ended early or is malformed, after the request was forwarded.
    RequestIncomplete, "http_request_incomplete", "http_request_error", 400, 400, 0, "The request body is malformed or incomplete.";
    /// The client closed or reset its connection before the exchange or session ended.
    ClientDisconnected, "client_disconnected", "http_request_error", 0, 0, 0, "The client closed the connection.";
    /// The client read nothing of its response for `timeouts.idle`, or for `timeouts.body_idle` if
    /// it is balancer's own response.
    ClientWriteTimeout, "client_write_timeout", "connection_write_timeout", 0, 0, 0, "The client did not read the response in time.";
    /// A TCP session or tunnel moved no byte for `timeouts.idle`, and neither peer read one.
    IdleTimeout, "idle_timeout", "connection_read_timeout", 0, 0, 0, "The session was idle for too long.";
    /// The backend reset a TCP session or tunnel.
    BackendReset, "backend_reset", "connection_terminated", 0, 0, 0, "The upstream server reset the connection.";
    /// The checks of the backend of a TCP session or tunnel failed, with `health_check.on_down:
    /// close`.
    BackendDown, "backend_down", "connection_terminated", 0, 0, 0, "The upstream server is down.";
    /// The request or session was still open when `drain.timeout` passed, and was cut.
    DrainTimeout, "drain_timeout", "proxy_internal_response", 0, 0, 0, "The server is shutting down.";
    /// An internal error in balancer.
    InternalError, "proxy_internal_error", "proxy_internal_error", 500, 500, 0, "The server failed to handle the request.";
}

impl Reason {
    /// Number of reasons: the length of arrays indexed by [`Reason::index`].
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Reason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns the reason called `name`, as written in `errors.override`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.name() == name)
    }

    /// True if the backend is at fault, so that passive ejection counts it. A message that may be
    /// valid and exceeds only our own limits is no fault, or one large response could eject every
    /// backend.
    pub const fn is_backend_fault(self) -> bool {
        matches!(
            self,
            Self::DnsError
                | Self::ConnectionRefused
                | Self::ConnectionTimeout
                | Self::ConnectionTerminated
                | Self::ConnectionReadTimeout
                | Self::TlsProtocolError
                | Self::TlsCertificateError
                | Self::ProxyProtocolError
                | Self::ResponseStatus
                | Self::ResponseIncomplete
                | Self::ResponseIdleTimeout
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::from_name(reason.name()), Some(*reason));
            assert_eq!(reason.index(), position);
        }
        assert_eq!(Reason::from_name("nonsense"), None);
    }

    #[test]
    fn the_detail_of_the_contract_belongs_to_the_invalid_response() {
        let promised = "The server received an invalid response from the upstream server while trying to fulfill the request.";
        assert_eq!(Reason::ProxyProtocolError.detail(), promised);
    }

    #[test]
    fn details_are_safe_in_json_and_headers() {
        for reason in Reason::ALL {
            assert!(
                reason
                    .detail()
                    .bytes()
                    .all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\')
            );
        }
    }
}
