//! The beginning of a TLS connection, on either side, and why it failed, by a closed list of causes.
//!
//! Knows no deadline: who calls drops it when its time is over.

use std::{future::poll_fn, io, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, PeerIncompatible,
    client::UnbufferedClientConnection,
    pki_types::{ServerName, UnixTime},
    server::UnbufferedServerConnection,
};
use tokio::io::ReadBuf;

use super::{
    End, MAX_WAITING, NegotiatedTls, Session, TlsStream, is_13,
    server::{ServerTls, asked, set_offers_13},
    session::{self, Plain},
};
use crate::{
    base::certificate,
    net::{client_hello::ClientHelloParser, local_error, stream::Stream},
};

/// Most names of a certificate that are logged.
const MAX_NAMES: usize = 5;

/// Why a handshake failed; the `reason` of `balancer_tls_handshake_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// Not over within `timeouts.tls`.
    Timeout,
    /// The peer closed or reset the connection.
    Closed,
    /// What came is no TLS, such as plain HTTP.
    NotTls,
    /// No version in common.
    Version,
    /// No cipher suite, group or signature scheme in common.
    Cipher,
    /// No application protocol in common (ALPN).
    Alpn,
    /// The client has no certificate, and it is required.
    CertificateMissing,
    /// The peer's certificate is not good: unknown issuer, expired, another name.
    CertificateInvalid,
    /// The peer ended the handshake with an alert; it may not like our certificate.
    Alert,
    /// Anything else that is against the protocol.
    Protocol,
    /// The client asks for no name that `sni` has, and there is no pool for all others.
    UnknownName,
}

/// All of them with their names, in the order of the enum.
pub const FAULTS: [(HandshakeFailure, &str); 11] = [
    (HandshakeFailure::Timeout, "timeout"),
    (HandshakeFailure::Closed, "closed"),
    (HandshakeFailure::NotTls, "not_tls"),
    (HandshakeFailure::Version, "version"),
    (HandshakeFailure::Cipher, "cipher"),
    (HandshakeFailure::Alpn, "alpn"),
    (HandshakeFailure::CertificateMissing, "certificate_missing"),
    (HandshakeFailure::CertificateInvalid, "certificate_invalid"),
    (HandshakeFailure::Alert, "alert"),
    (HandshakeFailure::Protocol, "protocol"),
    (HandshakeFailure::UnknownName, "unknown_name"),
];

impl From<&Error> for HandshakeFailure {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            Error::PeerIncompatible(incompatible) => Self::from(incompatible),
            Error::NoCertificatesPresented => Self::CertificateMissing,
            Error::InvalidCertificate(_) => Self::CertificateInvalid,
            Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | Error::NoApplicationProtocol => Self::Alpn,
            Error::AlertReceived(_) => Self::Alert,
            _ => Self::Protocol,
        }
    }
}

impl From<&PeerIncompatible> for HandshakeFailure {
    fn from(incompatible: &PeerIncompatible) -> Self {
        match incompatible {
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon
            | PeerIncompatible::NoEcPointFormatsInCommon => Self::Cipher,
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // An extension of TLS 1.2, which all clients of it send.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Self::Version,
            _ => Self::Protocol,
        }
    }
}

/// A handshake that failed, and how, for the log.
#[derive(Debug)]
pub struct HandshakeError {
    /// The cause.
    pub fault: HandshakeFailure,
    /// In words.
    pub detail: String,
    /// What came begins like a request in plain HTTP, and would understand such an answer.
    pub is_http: bool,
    /// A lack of our own ended the connection, no peer; see `net/local_error.rs`.
    pub is_local: bool,
}

impl HandshakeError {
    /// A failure by `fault`, `detail` in words.
    pub fn new(fault: HandshakeFailure, detail: impl Into<String>) -> Self {
        Self {
            fault,
            detail: detail.into(),
            is_http: false,
            is_local: false,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self {
            is_local: local_error::is_local(&error),
            ..Self::new(HandshakeFailure::Closed, error.to_string())
        }
    }
}

/// Takes up TLS with a client that has connected.
pub async fn accept(
    mut socket: Stream,
    tls: &ServerTls,
) -> Result<TlsStream, (Stream, HandshakeError)> {
    let connection = match UnbufferedServerConnection::new(Arc::clone(tls.config())) {
        Ok(connection) => connection,
        Err(error) => return Err((socket, protocol(&error))),
    };
    let mut session = Session::new(End::Server(connection));
    let mut name = None;
    let mut parser = tls.has_choice().then(ClientHelloParser::default);
    let mut offers_13 = None;
    loop {
        if let Some(parser) = parser.as_mut().filter(|_| offers_13.is_none()) {
            let hello = parser.parse(&session.incoming).ok().flatten();
            offers_13 = hello.map(|hello| hello.offers_13);
        }
        set_offers_13(offers_13);
        let is_over = digest(&socket, &mut session);
        // Before anything is waited for: other handshakes of this thread go on meanwhile.
        name = asked().or(name);
        let step = match is_over {
            Ok(true) => break,
            Ok(false) => exchange(&mut socket, &mut session).await,
            Err(failed) => Err(failed),
        };
        if let Err(failed) = step {
            return Err((socket, failed));
        }
    }
    let agreed = agreed(&session.end, name);
    // The last message of TLS 1.3 is the client's: tickets can wait for the first answer. That of 1.2 is ours.
    if !agreed.is_13
        && let Err(error) = flush(&mut socket, &mut session).await
    {
        return Err((socket, error.into()));
    }
    Ok(TlsStream::new(socket, session, agreed))
}

/// Takes up TLS with a backend, as `name`.
pub(super) async fn connect(
    mut socket: Stream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream, HandshakeError> {
    let connection = UnbufferedClientConnection::new(Arc::clone(config), name);
    let connection = connection.map_err(|error| protocol(&error))?;
    let mut session = Session::new(End::Client(connection));
    while !digest(&socket, &mut session)? {
        exchange(&mut socket, &mut session).await?;
    }
    flush(&mut socket, &mut session).await?;
    let agreed = agreed(&session.end, None);
    Ok(TlsStream::new(socket, session, agreed))
}

fn protocol(error: &Error) -> HandshakeError {
    let detail = match error {
        Error::InvalidCertificate(cause) => describe(cause),
        error => error.to_string(),
    };
    HandshakeError::new(HandshakeFailure::from(error), detail)
}

/// What is wrong with the certificate of the peer.
fn describe(cause: &CertificateError) -> String {
    let date = |time: &UnixTime| {
        let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
        time.map_or_else(|| "a distant time".to_owned(), httpdate::fmt_http_date)
    };
    match cause {
        CertificateError::UnknownIssuer => {
            "unknown issuer: no trusted authority has signed the certificate".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate has expired on {}", date(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is not valid yet: it is from {}", date(not_before))
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            // `DnsName("a.test")`, `IpAddress(192.0.2.1)`.
            let bare = |name: &String| {
                let inside = name.split_once('(').map_or(&**name, |(_, inside)| inside);
                inside.trim_end_matches(')').trim_matches('"').to_owned()
            };
            let names: Vec<_> = presented.iter().take(MAX_NAMES).map(bare).collect();
            let names = match names.as_slice() {
                [] => "no name at all (subjectAltName)".to_owned(),
                names => names.join(", "),
            };
            let expected = expected.to_str();
            format!("the certificate is not valid for name {expected}, but for {names}")
        }
        // The verifier's own error is not public.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the certificate is that of an authority (CA:TRUE), which is trusted as itself only if it is listed".to_owned()
        }
        cause => cause.to_string(),
    }
}

/// The cause, where the bytes say more than rustls does. `incoming` begins with the first byte of all while nothing was
/// answered.
fn failed(error: &Error, session: &Session, incoming: &[u8]) -> HandshakeError {
    let mut failed = protocol(error);
    if failed.fault != HandshakeFailure::NotTls || matches!(session.end, End::Client(_)) {
        return failed;
    }
    match incoming {
        _ if session.wire > 0 => failed.fault = HandshakeFailure::Protocol,
        // A record of a handshake, and then something else.
        [0x16, ..] => failed.fault = HandshakeFailure::Protocol,
        // The ClientHello of SSL 2, RFC 5246 appendix E.2.
        [0x80..=0xff, _, 1, ..] => failed.fault = HandshakeFailure::Version,
        [first, ..] => failed.is_http = first.is_ascii_uppercase(),
        [] => {}
    }
    failed
}

fn agreed(end: &End, server_name: Option<Box<str>>) -> NegotiatedTls {
    NegotiatedTls {
        is_13: is_13(end.version()),
        resumed: end.is_resumed(),
        h2: end.alpn() == Some(b"h2"),
        server_name,
        client_subject: match end {
            End::Server(_) => end.peer_certificate().and_then(certificate::subject),
            End::Client(_) => None,
        },
    }
}

/// Works off what is there; true if the handshake is over.
fn digest(socket: &Stream, session: &mut Session) -> Result<bool, HandshakeError> {
    let mut incoming = std::mem::take(&mut session.incoming);
    let mut plain = Plain {
        target: &mut ReadBuf::new(&mut []),
        rest: &mut session.plain,
    };
    let digested = session::digest(
        &mut session.end,
        &mut incoming,
        &mut plain,
        &mut session.outgoing,
    );
    match digested {
        Err(error) => {
            let failed = failed(&error, session, &incoming);
            // The alert is a courtesy: the handshake has failed whether it arrives or not. Who speaks no TLS would not
            // understand it.
            if failed.fault != HandshakeFailure::NotTls {
                let _ = session.flush(socket);
            }
            return Err(failed);
        }
        Ok(digested) => {
            incoming.drain(..digested.used);
            session.incoming = incoming;
            if digested.ended {
                session.reading = super::Reading::Ended;
            }
        }
    }
    if session.end.is_handshaking() {
        return Ok(false);
    }
    if session.incoming.is_empty() || session.reading == super::Reading::Ended {
        session.incoming = Vec::new();
    }
    Ok(true)
}

/// Sends what waits to be sent, and reads more.
async fn exchange(socket: &mut Stream, session: &mut Session) -> Result<(), HandshakeError> {
    flush(socket, session).await?;
    read(socket, session).await
}

async fn flush(socket: &mut Stream, session: &mut Session) -> io::Result<()> {
    poll_fn(|cx| {
        loop {
            match session.flush(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(socket.poll_write_ready(cx))?;
                }
                flushed => return std::task::Poll::Ready(flushed),
            }
        }
    })
    .await
}

/// Reads once. A ClientHello or a chain of certificates is a few KiB.
async fn read(socket: &mut Stream, session: &mut Session) -> Result<(), HandshakeError> {
    const PIECE: usize = 4 << 10;
    let before = session.incoming.len();
    if before > MAX_WAITING {
        return Err(HandshakeError::new(
            HandshakeFailure::Protocol,
            "handshake message too long",
        ));
    }
    session.incoming.resize(before + PIECE, 0);
    let room = session.incoming.get_mut(before..).unwrap_or_default();
    let read = poll_fn(|cx| socket.poll_read_buf(cx, room)).await;
    session
        .incoming
        .truncate(before + *read.as_ref().unwrap_or(&0));
    match read? {
        0 => Err(HandshakeError::new(
            HandshakeFailure::Closed,
            "closed in the handshake",
        )),
        _ => Ok(()),
    }
}
