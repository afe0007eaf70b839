//! The beginning of a TLS connection that is passed on as it is: the ClientHello is read, for the name in it, and kept for the
//! backend.
//!
//! What does not begin with one goes nowhere, also not to the listener's `pool`: that is for clients whose hello was read and
//! has no name on the list. A backend that expects TLS would get what nobody has looked at, a rule about names would be got
//! round with a malformed one, and a client that waits for the server to speak would wait for ever. Must not know listeners
//! and pools.

use std::{future::Future, future::poll_fn, io, pin::pin, time::Duration};

use tokio::time::timeout;

use super::reasons;
use crate::{
    net::{
        buffer::{BufferSize, PooledBuffer},
        client_hello::{ClientHelloError, ClientHelloParser, MAX_HELLO_BYTES},
        stream::Stream,
    },
    reason::Reason,
    telemetry::handshakes::HandshakeFailure,
};

/// A fatal alert that no such server is here, RFC 6066 section 3.
const UNRECOGNIZED_NAME: u8 = 112;
/// A fatal alert that the hello cannot be read, RFC 8446 section 6.2.
const DECODE_ERROR: u8 = 50;

/// How a client has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientHelloPrefix {
    /// All that was read; begins with the whole ClientHello.
    pub(super) bytes: Vec<u8>,
    /// Whom it asks for.
    pub(super) server_name: Option<Box<str>>,
}

/// Why a connection leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PassthroughError {
    /// What it is counted as; `None` if the client did nothing wrong.
    pub(super) fault: Option<HandshakeFailure>,
    /// `None` for a connection that ended without a byte, as when somebody only looks whether we accept.
    pub(super) reason: Option<Reason>,
    /// Whom it asked for.
    pub(super) server_name: Option<Box<str>>,
    /// Bytes that were read.
    pub(super) received: u64,
    /// In words, for the log.
    pub(super) detail: &'static str,
}

impl PassthroughError {
    /// A name that no pool takes; `received` bytes were read to know it.
    pub(super) fn unknown_name(server_name: Option<Box<str>>, received: u64) -> Self {
        Self {
            fault: Some(HandshakeFailure::UnknownName),
            reason: Some(Reason::NoRoute),
            server_name,
            received,
            detail: "no pool for the server name",
        }
    }

    /// The record that tells a client which speaks TLS; all others would not understand it.
    pub(super) fn alert(&self) -> Option<[u8; 7]> {
        let description = match self.fault? {
            HandshakeFailure::UnknownName => UNRECOGNIZED_NAME,
            HandshakeFailure::Protocol => DECODE_ERROR,
            _ => return None,
        };
        // A record of TLS 1.2, as all versions write it: an alert of two bytes, fatal.
        Some([21, 3, 3, 0, 2, 2, description])
    }
}

/// Reads until the ClientHello is there, for at most `time`. `stop` is the end of all connections.
///
/// While nothing has come nothing is held; after that what has come, up to [`MAX_HELLO_BYTES`], in room of at most twice that.
pub(super) async fn receive(
    stream: &Stream,
    time: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Result<ClientHelloPrefix, PassthroughError> {
    let mut bytes = Vec::new();
    let mut stop = pin!(stop);
    let hello = async {
        let hello = hello(stream, &mut bytes);
        match time {
            Some(time) => timeout(time, hello).await.unwrap_or(Err(HelloError::Late)),
            None => hello.await,
        }
    };
    let hello = tokio::select! {
        biased;
        hello = hello => hello,
        () = &mut stop => Err(HelloError::Stopped),
    };
    match hello {
        Ok(server_name) => Ok(ClientHelloPrefix { bytes, server_name }),
        Err(error) => Err(error.error(bytes.len() as u64)),
    }
}

/// Why there is no hello.
enum HelloError {
    Late,
    Stopped,
    /// The client has ended or reset the connection.
    Gone,
    Refused(ClientHelloError),
}

impl HelloError {
    fn error(&self, received: u64) -> PassthroughError {
        let (fault, reason, detail) = match self {
            Self::Late => (
                Some(HandshakeFailure::Timeout),
                Reason::RequestTimeout,
                "not over in time",
            ),
            Self::Stopped => (None, Reason::DrainTimeout, "cut by the drain"),
            Self::Gone => (
                Some(HandshakeFailure::Closed),
                Reason::ClientDisconnected,
                "closed",
            ),
            Self::Refused(error) => {
                let (failure, reason) = reasons::of_client_hello(error);
                (Some(failure), reason, error.detail())
            }
        };
        let is_a_look = received == 0 && matches!(self, Self::Gone);
        PassthroughError {
            fault,
            reason: (!is_a_look).then_some(reason),
            server_name: None,
            received,
            detail,
        }
    }
}

async fn hello(stream: &Stream, bytes: &mut Vec<u8>) -> Result<Option<Box<str>>, HelloError> {
    let mut parser = ClientHelloParser::default();
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx))
            .await
            .map_err(|_| HelloError::Gone)?;
        match read(stream, bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) | Ok(0) => return Err(HelloError::Gone),
            Ok(_) => {}
        }
        if let Some(hello) = parser.parse(bytes).map_err(HelloError::Refused)? {
            return Ok(hello.server_name);
        }
    }
}

/// Adds what is there to `bytes`. They are read to a buffer that others use a moment later, so that a connection holds no
/// more than what has come.
fn read(stream: &Stream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = PooledBuffer::take(BufferSize::Small);
    // Never none: without a hello in so many bytes the parser has refused them.
    let most = MAX_HELLO_BYTES
        .saturating_sub(bytes.len())
        .min(buffer.len());
    let count = stream.try_read(buffer.get_mut(..most).unwrap_or_default())?;
    bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{base::clock, net::fixture::pair};

    /// From `openssl s_client`.
    const CLIENT_HELLO: &[u8] = include_bytes!("../../tests/fixtures/client_hello/openssl-tls13");
    const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn all_that_was_read_is_kept_with_the_name() {
        let (mut peer, stream) = pair().await;
        let (first, second) = CLIENT_HELLO.split_at(100);
        let rest = [second, b"early data"].concat();
        let script = async {
            peer.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            peer.write_all(&rest).await.unwrap();
        };
        let (prefix, ()) = tokio::join!(receive(&stream, Some(HELLO_TIMEOUT), pending()), script);
        let prefix = prefix.unwrap();
        assert_eq!(prefix.server_name.as_deref(), Some("app.example.com"));
        assert_eq!(prefix.bytes, [CLIENT_HELLO, b"early data"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_that_does_not_come_is_refused_when_its_time_is_over() {
        for begun in [0, 1, 5, 100, CLIENT_HELLO.len() - 1] {
            let (mut peer, stream) = pair().await;
            peer.write_all(&CLIENT_HELLO[..begun]).await.unwrap();
            let began = clock::now();
            let error = receive(&stream, Some(HELLO_TIMEOUT), pending())
                .await
                .unwrap_err();
            assert_eq!(error.fault, Some(HandshakeFailure::Timeout), "{begun}");
            assert_eq!(error.reason, Some(Reason::RequestTimeout));
            assert_eq!((error.received, error.alert()), (begun as u64, None));
            let took = clock::now().saturating_duration_since(began);
            assert!(
                took >= HELLO_TIMEOUT && took < HELLO_TIMEOUT * 2,
                "{took:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_end_in_the_middle_is_an_end_and_one_without_a_byte_only_a_look() {
        for (begun, reason) in [(0, None), (100, Some(Reason::ClientDisconnected))] {
            let (mut peer, stream) = pair().await;
            peer.write_all(&CLIENT_HELLO[..begun]).await.unwrap();
            drop(peer);
            let error = receive(&stream, None, pending()).await.unwrap_err();
            assert_eq!(
                (error.fault, error.reason),
                (Some(HandshakeFailure::Closed), reason)
            );
        }
    }

    #[tokio::test]
    async fn the_end_of_all_connections_ends_the_wait() {
        let (_peer, stream) = pair().await;
        let error = receive(&stream, Some(HELLO_TIMEOUT), ready(()))
            .await
            .unwrap_err();
        assert_eq!(
            (error.fault, error.reason),
            (None, Some(Reason::DrainTimeout))
        );
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused_with_an_alert_only_for_who_speaks_tls() {
        let malformed = b"\x16\x03\x01\x00\x05\x02";
        let too_large = b"\x16\x03\x01\x20\x00\x01\xff\xff\xff";
        for (sent, fault, reason, alert) in [
            (
                &b"GET / HTTP/1.1\r\n"[..],
                HandshakeFailure::NotTls,
                Reason::TlsRequired,
                None,
            ),
            (
                malformed,
                HandshakeFailure::Protocol,
                Reason::RequestError,
                Some(DECODE_ERROR),
            ),
            (
                too_large,
                HandshakeFailure::Protocol,
                Reason::RequestError,
                Some(DECODE_ERROR),
            ),
        ] {
            let (mut peer, stream) = pair().await;
            peer.write_all(sent).await.unwrap();
            let error = receive(&stream, None, pending()).await.unwrap_err();
            assert_eq!((error.fault, error.reason), (Some(fault), Some(reason)));
            assert_eq!(error.alert().map(|alert| alert[6]), alert);
        }
    }

    #[tokio::test]
    async fn small_records_without_end_are_refused_in_time() {
        let (mut peer, stream) = pair().await;
        let script = async {
            let mut sent = b"\x16\x03\x01\x00\x04\x01\x00\x3f\x00".to_vec();
            while sent.len() < MAX_HELLO_BYTES * 2 {
                sent.extend(b"\x16\x03\x01\x00\x01\x00");
            }
            // The reader may have gone already.
            let _ = peer.write_all(&sent).await;
        };
        let (refused, ()) = tokio::join!(receive(&stream, None, pending()), script);
        let error = refused.unwrap_err();
        assert_eq!(error.fault, Some(HandshakeFailure::Protocol));
        assert_eq!(error.received, MAX_HELLO_BYTES as u64);
    }
}
