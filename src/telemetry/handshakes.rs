//! Counters of TLS handshakes with clients, and the closed list of causes by which one fails.
//!
//! The list is here, below `net`, so that the counters, the metrics page and the TLS code index by
//! one enum: no length and no order is kept in step by hand.

macro_rules! handshake_failures {
    ($( $(#[doc = $doc:literal])* $variant:ident, $name:ident; )*) => {
        /// Cause of a failed handshake; the `reason` of `balancer_tls_handshake_failures_total`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum HandshakeFailure { $( $(#[doc = $doc])* $variant, )* }

        impl HandshakeFailure {
            /// Every cause, in the order of the docs.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// Word for logs and metric labels.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => stringify!($name), )* }
            }
        }

        /// Failed handshakes by cause.
        #[derive(Debug, Default)]
        struct FailureCounts<T> { $( $name: T, )* }

        impl<T> FailureCounts<T> {
            const fn of(&self, failure: HandshakeFailure) -> &T {
                match failure { $( HandshakeFailure::$variant => &self.$name, )* }
            }
        }
    };
}

handshake_failures! {
    /// Not complete within `timeouts.tls`.
    Timeout, timeout;
    /// The peer closed or reset the connection.
    Closed, closed;
    /// The first bytes are not TLS, such as plain HTTP.
    NotTls, not_tls;
    /// No version in common.
    Version, version;
    /// No cipher suite, group or signature scheme in common.
    Cipher, cipher;
    /// No application protocol in common (ALPN).
    Alpn, alpn;
    /// The client sent no certificate, and one is required.
    CertificateMissing, certificate_missing;
    /// The peer's certificate is not valid: unknown issuer, expired, another name.
    CertificateInvalid, certificate_invalid;
    /// The peer ended the handshake with an alert, for example because it does not trust our
    /// certificate.
    Alert, alert;
    /// Any other violation of the protocol.
    Protocol, protocol;
    /// The client asks for a name that `sni` does not list, and the listener has no `pool` for all
    /// others.
    UnknownName, unknown_name;
}

/// Completed handshakes of one version of TLS.
#[derive(Debug, Default)]
struct VersionCounts<T> {
    full: T,
    resumed: T,
}

/// Handshakes of one listener by version, resumption and failure; `T` is a counter.
#[derive(Debug, Default)]
pub struct HandshakeCounts<T> {
    tls12: VersionCounts<T>,
    tls13: VersionCounts<T>,
    failed: FailureCounts<T>,
}

impl<T> HandshakeCounts<T> {
    /// Count of completed handshakes of TLS 1.3 (otherwise 1.2) that resumed a session (otherwise
    /// full ones).
    pub const fn completed(&self, is_tls13: bool, resumed: bool) -> &T {
        let version = if is_tls13 { &self.tls13 } else { &self.tls12 };
        if resumed {
            &version.resumed
        } else {
            &version.full
        }
    }

    /// Count of handshakes that failed by `failure`.
    pub const fn failed(&self, failure: HandshakeFailure) -> &T {
        self.failed.of(failure)
    }
}
