//! One HTTP/2 connection, of a client or to a backend: what its streams share, and who drives it.
//!
//! Streams append frames to one buffer and wake the driver, which writes what many of them have said at once; it reads, and
//! wakes those that something has come for. Whoever sends is held up by the peer's windows and by that buffer, whoever is
//! sent to by ours. With nothing on its way a connection holds no buffer.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::ReadBuf;

use super::{
    StreamError,
    backend::ResponseExpectation,
    incoming::IncomingRequest,
    state::{
        BackendPeer, ClientPeer, ConnectionState, GoawayState, MAX_UNWRITTEN_BYTES, PeerRole,
        READ_STOP_BYTES, STREAM_STOP_BYTES,
    },
    stream_entry::{StreamEntry, set_waker},
};
use crate::{
    base::{clock, rng::Random},
    http1::{request::HeadLimits, response::MAX_HEAD_BYTES},
    http2::frame::{self, ErrorCode, MAX_WINDOW_SIZE, kind, setting},
    net::{
        stream::Stream,
        tls::{NegotiatedTls, TlsStream},
    },
};

/// Most reads in a row before others have their turn.
const MAX_READS_PER_POLL: usize = 16;
/// How long the window of a backend's connection may be used up until further requests go elsewhere.
const WINDOW_STALL_TIMEOUT: Duration = Duration::from_millis(100);
/// Payload of the PING that a client answers when it has seen our GOAWAY.
pub(super) const SHUTDOWN_PING: [u8; 8] = *b"shutdown";

/// What the streams of a connection can know of it.
#[derive(Debug)]
pub(super) struct ConnectionInfo {
    pub agreed: Option<NegotiatedTls>,
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) info: ConnectionInfo,
    pub(super) state: RefCell<ConnectionState>,
}

impl Connection {
    /// The connection of a client on `stream`, of which `read` has been read already, beginning with the preface. Of its
    /// streams `max_streams` may be open at a time; `random` makes keys of WebSockets.
    pub fn of_client(
        stream: Stream,
        read: &[u8],
        limits: HeadLimits,
        max_streams: usize,
        random: Random,
    ) -> Rc<Self> {
        let role = PeerRole::Client(Box::new(ClientPeer {
            limits,
            max_streams,
            random,
            requests: VecDeque::new(),
            goaway: GoawayState::NotSent,
            goaway_received: false,
        }));
        let this = Self::new(stream, role);
        {
            let state = &mut *this.state.borrow_mut();
            state.preface_left = frame::CLIENT_PREFACE.len();
            state.send_settings(&[
                (setting::MAX_CONCURRENT_STREAMS, max_streams as u32),
                (setting::INITIAL_WINDOW_SIZE, state.windows.first),
                // Twice what is allowed, so that we give the answer to what is too large, and log it.
                (setting::MAX_HEADER_LIST_SIZE, 2 * limits.bytes as u32),
                (setting::ENABLE_CONNECT_PROTOCOL, 1),
            ]);
            state.recv(read);
        }
        this
    }

    /// A new connection to a backend on `stream`, with windows for `streams` streams at a time.
    pub(super) fn of_backend(stream: Stream, streams: usize) -> Rc<Self> {
        let role = PeerRole::Backend(BackendPeer {
            window_streams: streams,
            ..BackendPeer::default()
        });
        let this = Self::new(stream, role);
        {
            let state = &mut *this.state.borrow_mut();
            state.out.extend_from_slice(frame::CLIENT_PREFACE);
            state.send_settings(&[
                (setting::ENABLE_PUSH, 0),
                (setting::INITIAL_WINDOW_SIZE, state.windows.first),
                (setting::MAX_HEADER_LIST_SIZE, 2 * MAX_HEAD_BYTES as u32),
            ]);
        }
        this
    }

    fn new(stream: Stream, role: PeerRole) -> Rc<Self> {
        Rc::new(Self {
            info: ConnectionInfo {
                agreed: stream.tls().map(TlsStream::negotiated).cloned(),
                local: stream.local_addr(),
                peer: stream.peer_addr(),
            },
            state: RefCell::new(ConnectionState::new(stream, role)),
        })
    }

    /// Drives the connection: ready with a request of a client, or with `None` when the connection is over.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<IncomingRequest>> {
        let state = &mut *self.state.borrow_mut();
        set_waker(&mut state.driver, cx);
        for _ in 0..MAX_READS_PER_POLL {
            if let Some(asked) = state.next_request() {
                return Poll::Ready(Some(asked));
            }
            let flushed = state.poll_flush(cx);
            if state.is_over() {
                return flushed.map(|()| None);
            }
            if flushed.is_ready() {
                state.wake_senders(cx);
            } else if state.unwritten() > READ_STOP_BYTES {
                return Poll::Pending;
            }
            ready!(state.poll_read(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Streams that somebody is using.
    pub fn open_streams(&self) -> usize {
        self.state.borrow().streams.len()
    }

    /// Something is there that was not written.
    pub fn has_unwritten(&self) -> bool {
        self.state.borrow().unwritten() > 0
    }

    /// Bytes that went out.
    pub fn written(&self) -> u64 {
        self.state.borrow().written
    }

    /// Bytes of the connection that the peer has not acknowledged, while the stream waits for that: some of them are of the
    /// stream, or it has to wait for room behind those of others.
    pub(super) fn unacked_on_stream(&self, id: u32) -> Option<u64> {
        let state = self.state.borrow();
        let entry = state.streams.get(&id)?;
        let queued = state.transport.as_ref()?.unacked()?;
        // Under TLS what is queued is a little more than what was written.
        let acked = state.written.saturating_sub(queued);
        let is_crowded = entry.is_queued && state.unwritten() >= MAX_UNWRITTEN_BYTES;
        (acked < entry.sent_until || is_crowded).then_some(queued + state.unwritten() as u64)
    }

    /// Bytes that the peer has not acknowledged; `None` where the kernel does not say.
    pub fn unacked(&self) -> Option<u64> {
        let state = self.state.borrow();
        let queued = state.transport.as_ref()?.unacked()?;
        Some(queued + state.unwritten() as u64)
    }

    /// Why the connection is over, once it is.
    pub fn close_reason(&self) -> Option<StreamError> {
        self.state.borrow().close_reason
    }

    /// Ends the connection when its streams have come to their end. A client is told in two steps, so that the streams that
    /// it has begun meanwhile are served: RFC 9113 section 6.8. The second step is when it answers, or when this is called again.
    pub fn begin_shutdown(&self) {
        let state = &mut *self.state.borrow_mut();
        match &mut state.role {
            PeerRole::Client(client) if client.goaway == GoawayState::NotSent => {
                client.goaway = GoawayState::Announced;
                frame::write_goaway(&mut state.out, MAX_WINDOW_SIZE, ErrorCode::NO_ERROR);
                frame::write(&mut state.out, kind::PING, 0, 0, &SHUTDOWN_PING);
            }
            PeerRole::Client(_) => state.finish_shutdown(),
            PeerRole::Backend(backend) if !backend.is_closing => {
                backend.is_closing = true;
                frame::write_goaway(&mut state.out, 0, ErrorCode::NO_ERROR);
            }
            PeerRole::Backend(_) => {}
        }
        state.wake();
    }

    /// Gives the stream back at the end.
    pub fn take_stream(&self) -> Option<Stream> {
        let state = &mut *self.state.borrow_mut();
        state.abort();
        state.transport.take()
    }

    /// The peer's settings are in force.
    pub(super) fn settings_received(&self) -> bool {
        self.state.borrow().settings_received
    }

    /// The backend at the other end has sent its settings, and allows a stream.
    pub(super) fn accepts_streams(&self) -> bool {
        self.settings_received()
            && self.with_backend(|backend| backend.max_streams) != Some(Some(0))
    }

    /// Streams beside `id` that were not ended.
    pub(super) fn other_open_streams(&self, id: u32) -> usize {
        let state = self.state.borrow();
        let is_live =
            |(other, entry): &(&u32, &StreamEntry)| **other != id && entry.error.is_none();
        state.streams.iter().filter(is_live).count()
    }

    /// True if nothing of the stream was received, except maybe its end.
    pub(super) fn has_received_nothing(&self, id: u32) -> bool {
        let state = self.state.borrow();
        let entry = state.streams.get(&id);
        entry.is_some_and(|entry| {
            entry.interim_responses == 0
                && !entry.recv_buffer.has_head()
                && !entry.window_update_received
        })
    }

    /// What is known of the backend at the other end.
    pub(super) fn with_backend<T>(&self, look: impl FnOnce(&BackendPeer) -> T) -> Option<T> {
        match &self.state.borrow().role {
            PeerRole::Backend(backend) => Some(look(backend)),
            PeerRole::Client(_) => None,
        }
    }

    /// For how long nothing has come from the backend, counted from when it was next asked for something.
    pub(super) fn unanswered_for(&self) -> Duration {
        let asked = self.with_backend(|backend| backend.asked_at).flatten();
        asked.map_or(Duration::ZERO, |asked| {
            clock::now().saturating_duration_since(asked)
        })
    }

    /// Asks the backend for a sign of life: an acknowledgement of settings, or any other frame. Servers of gRPC would hold a PING
    /// without calls against us.
    pub(super) fn probe(&self) {
        let state = &mut *self.state.borrow_mut();
        if let PeerRole::Backend(backend) = &mut state.role
            && backend.probed_at.is_none()
        {
            backend.probed_at = Some(clock::now());
            frame::write_settings(&mut state.out, &[]);
            state.wake();
        }
    }

    /// Begins a stream to a backend with the fields that `write` gives; gives its id.
    pub(super) fn open_stream(
        &self,
        expected: ResponseExpectation,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u32, StreamError> {
        let state = &mut *self.state.borrow_mut();
        if let Some(close_reason) = state.close_reason {
            return Err(close_reason);
        }
        let id = if state.last_stream_id == 0 {
            1
        } else {
            state.last_stream_id + 2
        };
        match &mut state.role {
            PeerRole::Backend(backend) if !backend.is_closing && id <= MAX_WINDOW_SIZE => {
                if backend.asked_at.is_none() {
                    backend.asked_at = Some(clock::now());
                }
            }
            _ => return Err(StreamError::NotProcessed(ErrorCode::NO_ERROR)),
        }
        state.last_stream_id = id;
        let mut entry = state.new_entry();
        entry.expected = expected;
        state.streams.insert(id, entry);
        state.flood_guard.credit_request();
        state.send_fields(id, ends, write)?;
        Ok(id)
    }

    /// Ready when something of the stream can be taken, or its end.
    pub(super) fn poll_ready(&self, id: u32, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::Lost));
        };
        if entry.recv_buffer.has_bytes() || entry.recv_buffer.is_finished() {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = entry.error.or(entry.recv_buffer.failure()) {
            return Poll::Ready(Err(ended));
        }
        set_waker(&mut entry.read_waker, cx);
        Poll::Pending
    }

    /// Length that the peer has declared of a body that is given out in chunks.
    pub(super) fn declared_length(&self, id: u32) -> Option<u64> {
        self.state
            .borrow()
            .streams
            .get(&id)?
            .recv_buffer
            .declared_length()
    }

    /// Gives what has come on the stream; false at the end.
    pub(super) fn read(&self, id: u32, target: &mut ReadBuf<'_>) -> bool {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return false;
        };
        let before = target.filled().len();
        let content = entry.recv_buffer.read(target);
        if content > 0 {
            state.release_on_stream(id, content);
            state.release(content);
        }
        target.filled().len() > before
    }

    /// Ready when the stream is no more, whoever ended it.
    pub(super) fn poll_closed(&self, id: u32, cx: &Context<'_>) -> Poll<StreamError> {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return Poll::Ready(StreamError::Lost);
        };
        if let Some(ended) = entry.error {
            return Poll::Ready(ended);
        }
        set_waker(&mut entry.close_waker, cx);
        Poll::Pending
    }

    /// Ready when so much content can be sent, more than nothing.
    pub(super) fn poll_send_content(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.state.borrow_mut().poll_writable(id, true, cx)
    }

    /// Ready when fields can be sent, which no window holds up.
    pub(super) fn poll_send_fields(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.state.borrow_mut().poll_writable(id, false, cx)
    }

    /// Fields can be sent.
    pub(super) fn can_send_fields(&self) -> bool {
        self.state.borrow().unwritten() < MAX_UNWRITTEN_BYTES
    }

    /// The peer has long not taken what there is for it.
    pub(super) fn is_output_full(&self) -> bool {
        self.state.borrow().unwritten() > STREAM_STOP_BYTES
    }

    /// The peer has long opened its window for no content.
    pub(super) fn is_window_stalled(&self) -> bool {
        let since = self.state.borrow().stalled_since;
        since.is_some_and(|since| {
            clock::now().saturating_duration_since(since) >= WINDOW_STALL_TIMEOUT
        })
    }

    /// Sends a head or trailers, which `write` gives as a field block.
    pub(super) fn send_fields(
        &self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), StreamError> {
        self.state.borrow_mut().send_fields(id, ends, write)
    }

    /// Sends content: `fill` appends as much as the room allows that it is told, and says whether the stream ends with it.
    pub(super) fn send_data<T>(
        &self,
        id: u32,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        self.state.borrow_mut().send_data(id, fill)
    }

    /// The stream is not used any more. It is reset with `code` if we have not come to our end, and if the peer has not
    /// because nobody wants the rest.
    pub(super) fn close(&self, id: u32, code: ErrorCode) {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.discard(id) else {
            return;
        };
        let rest = match state.role {
            // RFC 9113 section 8.1: the response is whole, whatever was still to come of the request.
            PeerRole::Client(_) => ErrorCode::NO_ERROR,
            PeerRole::Backend(_) => ErrorCode::CANCEL,
        };
        let code = match (entry.end_sent, entry.end_received) {
            _ if entry.error.is_some() => None,
            (true, true) => None,
            (true, false) => Some(rest),
            (false, _) => Some(code),
        };
        if let Some(code) = code {
            // The peer has done nothing wrong, so the reset is not charged.
            state.write_reset(id, code);
        }
        state.wake();
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
