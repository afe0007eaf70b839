//! TLS handshakes, with a client or with a backend, and the causes by which they fail.
//!
//! Has no deadline: the caller drops the future when its time is over.

use std::{
    error,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, PeerIncompatible,
    client::UnbufferedClientConnection,
    pki_types::{ServerName, UnixTime},
    server::UnbufferedServerConnection,
};
use tokio::io::ReadBuf;

use super::{
    records::{self, PlaintextBuf, RustlsConnection},
    server::{ServerTls, set_offers_13, take_requested_name},
    session::{MAX_PARTIAL_BYTES, ReadState, TlsSession},
    stream::{NegotiatedTls, TlsStream},
};
use crate::{
    base::certificate,
    net::{client_hello::ClientHelloParser, local_error, stream::Stream},
    telemetry::handshakes::HandshakeFailure,
};

/// Most names of a certificate that are logged.
const MAX_LOGGED_NAMES: usize = 5;
/// Bytes read at a time: a ClientHello or a chain of certificates is a few KiB.
const READ_BYTES: usize = 4 << 10;

/// A failed handshake.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct HandshakeError {
    /// Cause from the closed list, for metrics and reasons.
    pub failure: HandshakeFailure,
    /// The same in words, for the log.
    pub detail: String,
    /// The first bytes look like a request in plain HTTP, so a response in plain HTTP is
    /// understood.
    pub is_http: bool,
    /// A local resource is exhausted, see `net/local_error.rs`: no fault of the peer.
    pub is_local: bool,
    /// Error of the socket or of rustls, where one ended the handshake.
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl HandshakeError {
    /// A failure without an error of the socket or of rustls.
    pub fn new(failure: HandshakeFailure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
            is_http: false,
            is_local: false,
            source: None,
        }
    }

    fn caused_by(self, source: impl error::Error + Send + Sync + 'static) -> Self {
        Self {
            source: Some(Box::new(source)),
            ..self
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self {
            is_local: local_error::is_local(&error),
            ..Self::new(HandshakeFailure::Closed, error.to_string())
        }
        .caused_by(error)
    }
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        let detail = match &error {
            Error::InvalidCertificate(cause) => describe(cause),
            error => error.to_string(),
        };
        Self::new(failure_of(&error), detail).caused_by(error)
    }
}

/// Classifies an error of rustls.
fn failure_of(error: &Error) -> HandshakeFailure {
    match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => HandshakeFailure::NotTls,
        Error::PeerIncompatible(incompatible) => failure_of_incompatible(incompatible),
        Error::NoCertificatesPresented => HandshakeFailure::CertificateMissing,
        Error::InvalidCertificate(_) => HandshakeFailure::CertificateInvalid,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | Error::NoApplicationProtocol => HandshakeFailure::Alpn,
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        _ => HandshakeFailure::Protocol,
    }
}

fn failure_of_incompatible(incompatible: &PeerIncompatible) -> HandshakeFailure {
    match incompatible {
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon
        | PeerIncompatible::NoEcPointFormatsInCommon => HandshakeFailure::Cipher,
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // Every client of TLS 1.2 sends this extension: without it the hello is of an older
        // version.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => HandshakeFailure::Version,
        _ => HandshakeFailure::Protocol,
    }
}

/// Performs the handshake with a client. After a failure the socket comes back, as a client that
/// speaks plain HTTP can still be answered.
pub async fn accept(
    mut socket: Stream,
    tls: &ServerTls,
) -> Result<TlsStream, (Stream, HandshakeError)> {
    let connection = match UnbufferedServerConnection::new(Arc::clone(tls.config())) {
        Ok(connection) => connection,
        Err(error) => return Err((socket, error.into())),
    };
    let mut session = TlsSession::new(RustlsConnection::Server(connection));
    let mut name = None;
    let mut parser = tls.has_choice().then(ClientHelloParser::default);
    let mut offers_13 = None;
    loop {
        // The choice among several certificates of a name needs to know what rustls does not say.
        if let Some(parser) = parser.as_mut().filter(|_| offers_13.is_none()) {
            let hello = parser.parse(&session.incoming).ok().flatten();
            offers_13 = hello.map(|hello| hello.offers_13);
        }
        set_offers_13(offers_13);
        let is_over = process(&socket, &mut session);
        // Before the next await: other handshakes of this thread set the name meanwhile.
        name = take_requested_name().or(name);
        let step = match is_over {
            Ok(true) => break,
            Ok(false) => flush_and_read(&mut socket, &mut session).await,
            Err(error) => Err(error),
        };
        if let Err(error) = step {
            return Err((socket, error));
        }
    }
    let negotiated = negotiated(&session.connection, name);
    // The last message of TLS 1.3 is the client's: our tickets can wait for the first response.
    // The last message of 1.2 is ours, and the client waits for it.
    if !negotiated.is_13
        && let Err(error) = flush(&mut socket, &mut session).await
    {
        return Err((socket, error.into()));
    }
    Ok(TlsStream::new(socket, session, negotiated))
}

/// Performs the handshake with a backend, as a client that asks for `name`.
pub(in crate::net) async fn connect(
    mut socket: Stream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream, HandshakeError> {
    let connection = UnbufferedClientConnection::new(Arc::clone(config), name)?;
    let mut session = TlsSession::new(RustlsConnection::Client(connection));
    while !process(&socket, &mut session)? {
        flush_and_read(&mut socket, &mut session).await?;
    }
    flush(&mut socket, &mut session).await?;
    let negotiated = negotiated(&session.connection, None);
    Ok(TlsStream::new(socket, session, negotiated))
}

/// Returns the fault of the peer's certificate in words. rustls' own texts name no dates and names.
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
            let names: Vec<_> = presented.iter().take(MAX_LOGGED_NAMES).map(bare).collect();
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

/// Classifies an error of rustls, and more exactly where the client's first bytes tell more.
///
/// `incoming` begins with the first byte of the connection as long as nothing was sent.
fn handshake_error(error: Error, session: &TlsSession, incoming: &[u8]) -> HandshakeError {
    let mut error = HandshakeError::from(error);
    let is_client = matches!(session.connection, RustlsConnection::Client(_));
    if error.failure != HandshakeFailure::NotTls || is_client {
        return error;
    }
    match incoming {
        _ if session.wire_written > 0 => error.failure = HandshakeFailure::Protocol,
        // A handshake record, followed by something else.
        [0x16, ..] => error.failure = HandshakeFailure::Protocol,
        // A ClientHello of SSL 2, RFC 5246 appendix E.2.
        [0x80..=0xff, _, 1, ..] => error.failure = HandshakeFailure::Version,
        [first, ..] => error.is_http = first.is_ascii_uppercase(),
        [] => {}
    }
    error
}

fn negotiated(connection: &RustlsConnection, server_name: Option<Box<str>>) -> NegotiatedTls {
    NegotiatedTls {
        is_13: connection.is_13(),
        resumed: connection.is_resumed(),
        h2: connection.alpn() == Some(b"h2"),
        server_name,
        client_subject: match connection {
            RustlsConnection::Server(_) => {
                connection.peer_certificate().and_then(certificate::subject)
            }
            RustlsConnection::Client(_) => None,
        },
    }
}

/// Processes what was received; true if the handshake is over.
fn process(socket: &Stream, session: &mut TlsSession) -> Result<bool, HandshakeError> {
    let mut incoming = std::mem::take(&mut session.incoming);
    let mut plaintext = PlaintextBuf {
        target: &mut ReadBuf::new(&mut []),
        overflow: &mut session.plaintext,
    };
    let processed = records::process(
        &mut session.connection,
        &mut incoming,
        &mut plaintext,
        &mut session.outgoing,
    );
    match processed {
        Err(error) => {
            let error = handshake_error(error, session, &incoming);
            // Best effort: the handshake has failed, whether the alert arrives or not. A peer that
            // does not speak TLS would not understand it.
            if error.failure != HandshakeFailure::NotTls {
                let _ = session.flush(socket);
            }
            return Err(error);
        }
        Ok(processed) => {
            incoming.drain(..processed.used);
            session.incoming = incoming;
            if processed.ended {
                session.read_state = ReadState::Ended;
            }
        }
    }
    if session.connection.is_handshaking() {
        return Ok(false);
    }
    // Give the buffer back: from here on an idle connection holds none.
    if session.incoming.is_empty() || session.read_state == ReadState::Ended {
        session.incoming = Vec::new();
    }
    Ok(true)
}

/// Sends what waits to be sent, and reads more.
async fn flush_and_read(
    socket: &mut Stream,
    session: &mut TlsSession,
) -> Result<(), HandshakeError> {
    flush(socket, session).await?;
    read(socket, session).await
}

async fn flush(socket: &mut Stream, session: &mut TlsSession) -> io::Result<()> {
    poll_fn(|cx| {
        loop {
            match session.flush(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(socket.poll_write_ready(cx))?;
                }
                flushed => return Poll::Ready(flushed),
            }
        }
    })
    .await
}

/// Reads once.
async fn read(socket: &mut Stream, session: &mut TlsSession) -> Result<(), HandshakeError> {
    let before = session.incoming.len();
    if before > MAX_PARTIAL_BYTES {
        return Err(HandshakeError::new(
            HandshakeFailure::Protocol,
            "handshake message too long",
        ));
    }
    session.incoming.resize(before + READ_BYTES, 0);
    let space = session.incoming.get_mut(before..).unwrap_or_default();
    let read = poll_fn(|cx| socket.poll_read_buf(cx, space)).await;
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
