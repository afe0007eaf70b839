//! The ClientHello of a TLS connection that is passed on as it is: read for the server name in it,
//! and kept for the backend.
//!
//! - Bytes that are not TLS: the connection is reset. It reaches no pool, also not the listener's
//!   `pool`: a backend that expects TLS must not get bytes that no rule has seen.
//! - A name that no rule lists: the listener's `pool`, or an alert where it has none.
//! - A malformed ClientHello: an alert. It would be a way round every rule about names.
//!
//! Must not know listeners and pools.

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

/// Fatal alert: no server of that name, RFC 6066 section 3.
const UNRECOGNIZED_NAME: u8 = 112;
/// Fatal alert: the ClientHello cannot be decoded, RFC 8446 section 6.2.
const DECODE_ERROR: u8 = 50;

/// Bytes of a client up to the end of its ClientHello, and somewhat beyond it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientHelloPrefix {
    /// All that was read; starts with the whole ClientHello.
    pub(super) bytes: Vec<u8>,
    /// Server name that the client asks for.
    pub(super) server_name: Option<Box<str>>,
}

/// Refusal of a connection that was to be passed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(super) struct PassthroughError {
    /// Cause in the metrics; `None` if the client did nothing wrong.
    pub(super) fault: Option<HandshakeFailure>,
    /// `None` for a connection that ended without a byte, as TCP health checks of us do.
    pub(super) reason: Option<Reason>,
    /// Server name that the client asked for.
    pub(super) server_name: Option<Box<str>>,
    /// Bytes read.
    pub(super) received: u64,
    /// Text for the log.
    pub(super) detail: &'static str,
}

impl PassthroughError {
    /// Refusal of a name without a pool, for which `received` bytes were read.
    pub(super) fn unknown_name(server_name: Option<Box<str>>, received: u64) -> Self {
        Self {
            fault: Some(HandshakeFailure::UnknownName),
            reason: Some(Reason::NoRoute),
            server_name,
            received,
            detail: "no pool for the server name",
        }
    }

    /// Alert record for the client; `None` for clients that do not speak TLS, and for those that
    /// are gone or late.
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

/// Reads the ClientHello, for at most `time`. `stop` is the end of all connections.
///
/// Holds no buffer until the first byte, and later the bytes received, up to [`MAX_HELLO_BYTES`],
/// in a buffer of at most twice that: clients that connect and wait must not cost memory.
pub(super) async fn receive(
    stream: &Stream,
    time: Option<Duration>,
    stop: impl Future<Output = ()>,
) -> Result<ClientHelloPrefix, PassthroughError> {
    let mut bytes = Vec::new();
    let mut stop = pin!(stop);
    let hello = async {
        let hello = read_hello(stream, &mut bytes);
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
        Err(error) => Err(error.into_passthrough_error(bytes.len() as u64)),
    }
}

/// Failure to read a ClientHello.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    /// Its time is over.
    #[error("the ClientHello is late")]
    Late,
    /// The drain is over.
    #[error("the drain is over")]
    Stopped,
    /// The client closed or reset the connection.
    #[error("the client closed the connection")]
    Gone,
    /// The bytes are not a ClientHello that we accept.
    #[error("not an acceptable ClientHello")]
    Refused(#[source] ClientHelloError),
}

impl HelloError {
    fn into_passthrough_error(self, received: u64) -> PassthroughError {
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
                let (failure, reason) = reasons::of_client_hello(&error);
                (Some(failure), reason, error.detail())
            }
        };
        let is_probe = received == 0 && fault == Some(HandshakeFailure::Closed);
        PassthroughError {
            fault,
            reason: (!is_probe).then_some(reason),
            server_name: None,
            received,
            detail,
        }
    }
}

/// Reads a ClientHello to the end of `bytes`; returns the server name in it.
async fn read_hello(stream: &Stream, bytes: &mut Vec<u8>) -> Result<Option<Box<str>>, HelloError> {
    let mut parser = ClientHelloParser::default();
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx))
            .await
            .map_err(|_| HelloError::Gone)?;
        match read_available(stream, bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) | Ok(0) => return Err(HelloError::Gone),
            Ok(_) => {}
        }
        if let Some(hello) = parser.parse(bytes).map_err(HelloError::Refused)? {
            return Ok(hello.server_name);
        }
    }
}

/// Appends the bytes available now to `bytes`. They are read into a buffer of the thread, so that a
/// connection holds no more than it has received.
fn read_available(stream: &Stream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = PooledBuffer::take(BufferSize::Small);
    // Not 0, which would look like an end: the parser refuses MAX_HELLO_BYTES without a hello.
    let most = MAX_HELLO_BYTES
        .saturating_sub(bytes.len())
        .min(buffer.len());
    debug_assert!(most > 0, "the parser has refused what is longer");
    let count = stream.try_read(buffer.get_mut(..most).unwrap_or_default())?;
    let read = buffer.get(..count);
    debug_assert!(read.is_some(), "more bytes than the buffer has");
    bytes.extend_from_slice(read.unwrap_or_default());
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{
        base::clock,
        net::fixture::{pair, paused},
    };

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

    #[test]
    fn a_hello_that_does_not_come_is_refused_when_its_time_is_over() {
        paused(async {
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
        });
    }

    #[tokio::test]
    async fn an_end_within_the_hello_has_a_reason_and_one_before_the_first_byte_has_none() {
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
    async fn bytes_that_are_no_hello_are_refused_with_an_alert_only_if_they_are_tls() {
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
            // Fails once the reader has refused.
            let _ = peer.write_all(&sent).await;
        };
        let (refused, ()) = tokio::join!(receive(&stream, None, pending()), script);
        let error = refused.unwrap_err();
        assert_eq!(error.fault, Some(HandshakeFailure::Protocol));
        assert_eq!(error.received, MAX_HELLO_BYTES as u64);
    }
}
