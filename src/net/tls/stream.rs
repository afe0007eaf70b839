//! A connected stream under TLS, and what its handshake negotiated.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use tokio::io::ReadBuf;

use super::session::{ReadState, TlsSession};
use crate::net::stream::Stream;

/// Parts of a vectored write that are copied together, in bytes.
const MAX_JOINED_BYTES: usize = 64 << 10;

/// Parameters that a handshake negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegotiatedTls {
    /// TLS 1.3, as opposed to 1.2.
    pub is_13: bool,
    /// The handshake resumed an earlier session.
    pub resumed: bool,
    /// ALPN chose HTTP/2.
    pub h2: bool,
    /// Name in the ClientHello (SNI), in lower case; `None` without one, and to a backend.
    pub server_name: Option<Box<str>>,
    /// Subject of the client's certificate, as RFC 4514 writes it.
    pub client_subject: Option<Box<str>>,
}

impl NegotiatedTls {
    /// `TLSv1.3` or `TLSv1.2`, as the log writes it.
    pub const fn version(&self) -> &'static str {
        if self.is_13 { "TLSv1.3" } else { "TLSv1.2" }
    }
}

/// A connected stream under TLS. Used from its own thread only.
#[derive(Debug)]
pub struct TlsStream {
    pub(super) socket: Stream,
    pub(super) session: RefCell<TlsSession>,
    negotiated: NegotiatedTls,
}

impl TlsStream {
    pub(super) fn new(socket: Stream, session: TlsSession, negotiated: NegotiatedTls) -> Self {
        Self {
            socket,
            session: RefCell::new(session),
            negotiated,
        }
    }

    /// The stream below.
    pub(in crate::net) fn socket(&self) -> &Stream {
        &self.socket
    }

    /// Parameters that the handshake negotiated.
    pub const fn negotiated(&self) -> &NegotiatedTls {
        &self.negotiated
    }

    /// As [`Stream::try_read`].
    pub(in crate::net) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(buffer);
        self.session.borrow_mut().read(&self.socket, &mut target)?;
        Ok(target.filled().len())
    }

    /// As [`Stream::try_write`], and with `last` as [`Stream::try_write_last`].
    pub(in crate::net) fn try_write(&self, bytes: &[u8], last: bool) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.session.borrow_mut().write(&self.socket, bytes, last)
    }

    /// As [`Stream::is_idle_and_open`]. Records without data, such as session tickets, are
    /// processed: they may arrive at any time and are no reason to drop the connection.
    pub(in crate::net) fn is_idle_and_open(&self) -> bool {
        let mut session = self.session.borrow_mut();
        if session.has_plaintext() || session.read_state != ReadState::Open {
            return false;
        }
        loop {
            match session.fill(&self.socket, &mut ReadBuf::new(&mut [])) {
                Ok(()) if session.has_plaintext() || session.read_state != ReadState::Open => {
                    return false;
                }
                Ok(()) => {}
                // With part of a record received, data may be on its way.
                Err(error) => {
                    return error.kind() == io::ErrorKind::WouldBlock
                        && session.incoming.is_empty();
                }
            }
        }
    }

    /// As [`Stream::has_no_pending_input`].
    pub(in crate::net) fn has_no_pending_input(&self) -> bool {
        let session = self.session.borrow();
        let is_idle = !session.has_plaintext()
            && session.incoming.is_empty()
            && session.read_state == ReadState::Open;
        is_idle && self.socket.has_no_pending_input()
    }

    /// True if the peer has ended its direction of the socket below, so that nothing more can be
    /// acknowledged. Only after the end of TLS: it reads from the socket.
    pub fn peer_closed_socket(&self) -> bool {
        self.session.borrow().read_state == ReadState::Truncated
            || matches!(self.socket.try_read(&mut [0; 32]), Ok(0))
    }

    /// Ends our direction in order; `WouldBlock` until the socket has taken all earlier bytes.
    pub(in crate::net) fn shutdown_write(&self) -> io::Result<()> {
        match self.session.borrow_mut().close(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Any other error means that session or socket have failed: the FIN is all that is
            // left.
            _ => self.socket.shutdown_write(),
        }
    }

    /// Bytes of ciphertext written to the socket.
    pub fn wire_written(&self) -> u64 {
        self.session.borrow().wire_written
    }

    pub(in crate::net) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let session = self.session.borrow();
        if session.has_plaintext() || session.read_state != ReadState::Open {
            return Poll::Ready(Ok(()));
        }
        drop(session);
        self.socket.poll_read_ready(cx)
    }

    pub(in crate::net) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let read = self.session.borrow_mut().read(&self.socket, target);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_read_ready(cx))?;
                }
                read => return Poll::Ready(read),
            }
        }
    }

    pub(in crate::net) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// Writes the first two parts, head and body of a message, as one record if they are small:
    /// a record costs the peer a decryption and both of us its overhead.
    pub(in crate::net) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut full = parts.iter().filter(|part| !part.is_empty());
        let (Some(first), second) = (full.next(), full.next()) else {
            return Poll::Ready(Ok(0));
        };
        let Some(second) = second else {
            return self.poll_write(cx, first);
        };
        let mut joined = Vec::with_capacity(MAX_JOINED_BYTES.min(first.len() + second.len()));
        for part in [first, second] {
            let space = MAX_JOINED_BYTES - joined.len();
            joined.extend_from_slice(part.get(..space).unwrap_or(part));
        }
        self.poll_write(cx, &joined)
    }
}
