//! A stream under TLS (rustls), either end of it. While nothing is on its way a connection holds no buffer.
//!
//! `session.rs` turns records into bytes and back, `handshake.rs` begins a connection, `server.rs` and `client.rs` hold what
//! the two sides are configured with. Must not know who is at the other end.

mod client;
#[cfg(test)]
mod fixture;
mod handshake;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use self::{
    client::{H2_NOT_NEGOTIATED, connect_backend, secure, warn_refused},
    handshake::{FAULTS, HandshakeError, HandshakeFailure, accept},
    server::ServerTls,
};

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use rustls::{Error, ProtocolVersion};
use session::{Digested, End, Plain};
use tokio::io::ReadBuf;

use super::stream::Stream;

/// Most bytes taken from the socket at a time.
const MAX_READ: usize = 256 << 10;
/// What is read beside the room of the reader: the frames of a few records.
const SPARE: usize = 1 << 10;
/// Most bytes that may wait for the rest of their record or handshake message, RFC 8446 section 5.1 and a long chain.
const MAX_WAITING: usize = 64 << 10;
/// Most plaintext that is encrypted at a time.
const MAX_WRITE: usize = 256 << 10;
/// Most ciphertext in a row that brings nothing to read, such as tickets and key updates: more is a flood.
const MAX_BARREN: usize = 48 << 10;

thread_local! {
    /// Where ciphertext is read to and decrypted in place.
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Where plaintext is encrypted to.
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a handshake agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegotiatedTls {
    /// TLS 1.3, as opposed to 1.2.
    pub is_13: bool,
    /// An earlier session was taken up.
    pub resumed: bool,
    /// HTTP/2 was chosen by ALPN.
    pub h2: bool,
    /// The name in the ClientHello (SNI), in lower case; `None` without one, and to a backend.
    pub server_name: Option<Box<str>>,
    /// The subject of the certificate that the client has shown, as RFC 4514 writes it.
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
    socket: Stream,
    session: RefCell<Session>,
    agreed: NegotiatedTls,
}

#[derive(Debug)]
struct Session {
    end: End,
    /// Ciphertext of a record that is not whole.
    incoming: Vec<u8>,
    /// Plaintext that nobody has taken, from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    /// Ciphertext that does not fit into the socket, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Plaintext in `outgoing` whose writer waits to be told that it went out.
    accepted: usize,
    reading: Reading,
    /// Our direction has been ended.
    closed: bool,
    /// Ciphertext read since there was plaintext in it.
    barren: usize,
    /// Ciphertext bytes written to the socket.
    wire: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Reading {
    Open,
    /// The peer ended its direction in order.
    Ended,
    /// Nothing more can be read.
    HandshakeError(Error),
    /// The peer closed its direction without a word: what was sent may be cut.
    RelayError,
}

fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

impl Session {
    fn new(end: End) -> Self {
        Self {
            end,
            incoming: Vec::new(),
            plain: Vec::new(),
            taken: 0,
            outgoing: Vec::new(),
            sent: 0,
            accepted: 0,
            reading: Reading::Open,
            closed: false,
            barren: 0,
            wire: 0,
        }
    }

    /// Moves plaintext that is there to `target`.
    fn take_plain(&mut self, target: &mut ReadBuf<'_>) {
        let rest = self.plain.get(self.taken..).unwrap_or_default();
        let fits = rest.get(..target.remaining()).unwrap_or(rest);
        target.put_slice(fits);
        self.taken += fits.len();
        if self.taken == self.plain.len() {
            self.plain = Vec::new();
            self.taken = 0;
        }
    }

    fn has_plain(&self) -> bool {
        self.taken < self.plain.len()
    }

    /// Reads from `socket` and decrypts, until there is plaintext; without waiting. Nothing in `target` is the end.
    fn read(&mut self, socket: &Stream, target: &mut ReadBuf<'_>) -> io::Result<()> {
        let before = target.filled().len();
        loop {
            if self.has_plain() || target.remaining() == 0 {
                self.take_plain(target);
                return Ok(());
            }
            match &self.reading {
                Reading::Open => {}
                Reading::Ended => return Ok(()),
                Reading::RelayError => return Err(io::ErrorKind::UnexpectedEof.into()),
                Reading::HandshakeError(error) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error.clone()));
                }
            }
            self.fill(socket, target)?;
            if target.filled().len() > before {
                return Ok(());
            }
        }
    }

    /// One read from `socket`. What it brought may be no plaintext.
    fn fill(&mut self, socket: &Stream, target: &mut ReadBuf<'_>) -> io::Result<()> {
        INPUT.with_borrow_mut(|input| {
            let waiting = self.incoming.len();
            let size = (waiting + target.remaining() + SPARE).clamp(4 << 10, MAX_READ);
            if input.len() < size {
                input.resize(size, 0);
            }
            let (before, room) = input
                .get_mut(..size)
                .unwrap_or_default()
                .split_at_mut(waiting);
            before.copy_from_slice(&self.incoming);
            let count = socket.try_read(room)?;
            if count == 0 {
                self.reading = Reading::RelayError;
                return Ok(());
            }
            let before = target.filled().len();
            let filled = input.get_mut(..waiting + count).unwrap_or_default();
            self.digest(socket, filled, target);
            self.barren += count;
            if self.has_plain() || target.filled().len() > before {
                self.barren = 0;
            } else if self.barren > MAX_BARREN && self.reading == Reading::Open {
                self.fail(Error::General("a flood of records without data".into()));
            }
            Ok(())
        })
    }

    /// Nothing more is read, and nothing more written: rustls may hold places in input that is gone.
    fn fail(&mut self, error: Error) {
        self.reading = Reading::HandshakeError(error);
        self.closed = true;
        self.incoming = Vec::new();
    }

    fn digest(&mut self, socket: &Stream, input: &mut [u8], target: &mut ReadBuf<'_>) {
        let before = self.outgoing.len();
        let mut plain = Plain {
            target,
            rest: &mut self.plain,
        };
        let digested = session::digest(&mut self.end, input, &mut plain, &mut self.outgoing);
        match digested {
            Err(error) => self.fail(error),
            // What comes behind the end means nothing, RFC 8446 section 6.1.
            Ok(Digested { ended: true, .. }) => {
                self.reading = Reading::Ended;
                self.incoming = Vec::new();
            }
            Ok(Digested { used, .. }) => match input.get(used..).unwrap_or_default() {
                [] => self.incoming = Vec::new(),
                rest if rest.len() > MAX_WAITING => {
                    self.fail(Error::General("handshake message too long".into()));
                }
                rest => {
                    self.incoming.clear();
                    self.incoming.extend_from_slice(rest);
                }
            },
        }
        // Answers to what was read, such as an alert. What does not fit now goes out with the next write, which also shows
        // what is wrong with the socket: what was read counts.
        if self.outgoing.len() > before && self.accepted == 0 {
            let _ = self.flush(socket);
        }
    }

    /// Sends what waits; `WouldBlock` if not all of it fits.
    fn flush(&mut self, socket: &Stream) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.outgoing.get(self.sent..) {
            let count = socket.try_write(rest)?;
            self.sent += count;
            self.wire += count as u64;
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Encrypts and sends without waiting. `Ok` says how much went out whole; after `WouldBlock` the same bytes must be
    /// given again, as they may be encrypted already.
    fn write(&mut self, socket: &Stream, bytes: &[u8], last: bool) -> io::Result<usize> {
        if self.accepted > 0 {
            self.flush(socket)?;
            return Ok(std::mem::take(&mut self.accepted));
        }
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let last = last && bytes.len() <= MAX_WRITE;
        let bytes = bytes.get(..MAX_WRITE).unwrap_or(bytes);
        OUTPUT.with_borrow_mut(|out| {
            out.clear();
            out.extend_from_slice(self.outgoing.get(self.sent..).unwrap_or_default());
            session::encrypt(&mut self.end, &mut self.incoming, bytes, out)
                .map_err(io::Error::other)?;
            if last {
                self.closed = true;
                session::close(&mut self.end, &mut self.incoming, out).map_err(io::Error::other)?;
            }
            let sent = match if last {
                socket.try_write_last(out)
            } else {
                socket.try_write(out)
            } {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                sent => sent?,
            };
            self.wire += sent as u64;
            self.sent = 0;
            self.outgoing.clear();
            let rest = out.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                self.outgoing = Vec::new();
                return Ok(bytes.len());
            }
            self.outgoing.extend_from_slice(rest);
            self.accepted = bytes.len();
            would_block()
        })
    }

    /// Tells the peer that nothing more comes; `WouldBlock` until the socket has taken it.
    fn close(&mut self, socket: &Stream) -> io::Result<()> {
        if !std::mem::replace(&mut self.closed, true) {
            session::close(&mut self.end, &mut self.incoming, &mut self.outgoing)
                .map_err(io::Error::other)?;
        }
        self.flush(socket)
    }
}

impl TlsStream {
    fn new(socket: Stream, session: Session, agreed: NegotiatedTls) -> Self {
        Self {
            socket,
            session: RefCell::new(session),
            agreed,
        }
    }

    /// The stream below.
    pub(super) fn socket(&self) -> &Stream {
        &self.socket
    }

    /// What the handshake agreed on.
    pub const fn negotiated(&self) -> &NegotiatedTls {
        &self.agreed
    }

    /// As [`Stream::try_read`].
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(buffer);
        self.session.borrow_mut().read(&self.socket, &mut target)?;
        Ok(target.filled().len())
    }

    /// As [`Stream::try_write`]; after `WouldBlock` the same bytes must come again.
    pub(super) fn try_write(&self, bytes: &[u8], last: bool) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.session.borrow_mut().write(&self.socket, bytes, last)
    }

    /// Nothing to read, not closed, no error. What is no plaintext, such as a session ticket, is worked off.
    pub(super) fn is_idle_and_open(&self) -> bool {
        let mut session = self.session.borrow_mut();
        if session.has_plain() || session.reading != Reading::Open {
            return false;
        }
        loop {
            match session.fill(&self.socket, &mut ReadBuf::new(&mut [])) {
                Ok(()) if session.has_plain() || session.reading != Reading::Open => return false,
                Ok(()) => {}
                // Part of a record: nobody knows of what.
                Err(error) => {
                    return error.kind() == io::ErrorKind::WouldBlock
                        && session.incoming.is_empty();
                }
            }
        }
    }

    /// As [`Stream::has_no_pending_input`].
    pub(super) fn has_no_pending_input(&self) -> bool {
        let session = self.session.borrow();
        let is_idle =
            !session.has_plain() && session.incoming.is_empty() && session.reading == Reading::Open;
        is_idle && self.socket.has_no_pending_input()
    }

    /// The peer has ended its direction of the socket below: what that acknowledges is exact. After the end of TLS only.
    pub fn peer_closed_socket(&self) -> bool {
        self.session.borrow().reading == Reading::RelayError
            || matches!(self.socket.try_read(&mut [0; 32]), Ok(0))
    }

    /// Ends our direction in order; `WouldBlock` until the socket has taken all that was written before.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self.session.borrow_mut().close(&self.socket) {
            // Otherwise the session or the socket has failed, and there is nobody to be told.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            _ => self.socket.shutdown_write(),
        }
    }

    /// Bytes of ciphertext written to the socket.
    pub fn wire_written(&self) -> u64 {
        self.session.borrow().wire
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let session = self.session.borrow();
        if session.has_plain() || session.reading != Reading::Open {
            return Poll::Ready(Ok(()));
        }
        drop(session);
        self.socket.poll_read_ready(cx)
    }

    pub(super) fn poll_read(
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

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// Both parts in one record, if that is cheap.
    pub(super) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        /// Parts up to this together are copied to one piece.
        const JOINED: usize = 64 << 10;
        let mut full = parts.iter().filter(|part| !part.is_empty());
        let (Some(first), second) = (full.next(), full.next()) else {
            return Poll::Ready(Ok(0));
        };
        let Some(second) = second else {
            return self.poll_write(cx, first);
        };
        let mut joined = Vec::with_capacity(JOINED.min(first.len() + second.len()));
        for part in [first, second] {
            let room = JOINED - joined.len();
            joined.extend_from_slice(part.get(..room).unwrap_or(part));
        }
        self.poll_write(cx, &joined)
    }
}

/// The version as a bool: everything below 1.3 is 1.2, because nothing older is spoken.
fn is_13(version: Option<ProtocolVersion>) -> bool {
    version == Some(ProtocolVersion::TLSv1_3)
}
