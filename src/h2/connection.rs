//! One HTTP/2 connection, from a client or to a backend, and the loop that drives it.
//!
//! Streams append frames to one output buffer and wake the driver. It writes the frames of many
//! streams with one call, reads, and wakes the streams that received something. Sending is limited
//! by the peer's windows and the output buffer, receiving by our windows. An idle connection holds
//! no buffer.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{
    StreamError,
    client::IncomingRequest,
    flood_guard::rapid_reset_age,
    state::{
        BackendPeer, ClientPeer, ConnectionState, GoawayState, MAX_UNWRITTEN_BYTES, PeerRole,
        READ_STOP_BYTES, STREAM_STOP_BYTES,
    },
    stream_entry::{StreamEntry, set_waker},
};
use crate::{
    base::clock,
    http::{
        message::{ResponseHead, Trailers},
        rules::{HeadLimits, MAX_HEAD_BYTES},
    },
    http2::{
        block_head::BlockHead,
        frame::{self, ErrorCode, MAX_STREAM_ID, kind, setting},
        response::ResponseExpectation,
    },
    net::stream::Stream,
};

/// Reads per poll, so that one busy peer does not starve the other tasks of the worker.
const MAX_READS_PER_POLL: usize = 16;
/// Time that the connection window of a backend may stay exhausted before new requests go
/// elsewhere.
const WINDOW_STALL_TIMEOUT: Duration = Duration::from_millis(100);
/// Payload of the PING that follows our first GOAWAY: its ACK shows that the client has read it.
pub(super) const SHUTDOWN_PING: [u8; 8] = *b"shutdown";

/// HTTP/2 connection, shared by its driver and its streams.
#[derive(Debug)]
pub struct Connection {
    pub(super) state: RefCell<ConnectionState>,
}

impl Connection {
    /// Creates the server side of a client's connection. `read` was read already and begins with
    /// the preface; at most `max_streams` streams may be open.
    pub fn of_client(
        stream: Stream,
        read: &[u8],
        limits: HeadLimits,
        max_streams: usize,
    ) -> Rc<Self> {
        let role = PeerRole::Client(Box::new(ClientPeer {
            limits,
            max_streams,
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
                // Twice the limit: a head that is a little too large is answered and logged, not
                // cut off by the client's library.
                (setting::MAX_HEADER_LIST_SIZE, 2 * limits.bytes as u32),
                (setting::ENABLE_CONNECT_PROTOCOL, 1),
            ]);
            state.recv(read);
        }
        this
    }

    /// Creates the client side of a connection to a backend, with windows for `streams` concurrent
    /// streams.
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
            state: RefCell::new(ConnectionState::new(stream, role)),
        })
    }

    /// Drives the connection. Ready with a client's request, or with `None` when it is closed.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<IncomingRequest>> {
        let state = &mut *self.state.borrow_mut();
        set_waker(&mut state.driver, cx);
        for _ in 0..MAX_READS_PER_POLL {
            if let Some(request) = state.next_request() {
                return Poll::Ready(Some(request));
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

    /// Tells the encoder of field blocks that no stream is open.
    pub fn pause_field_table(&self, now: Instant) {
        self.state.borrow_mut().encoder.pause(now);
    }

    /// True if the encoder of field blocks holds memory.
    pub fn has_field_table(&self) -> bool {
        self.state.borrow().encoder.has_table()
    }

    /// Frees the memory of the encoder of field blocks.
    pub fn release_field_table(&self) {
        self.state.borrow_mut().encoder.release();
    }

    /// Notes that [`Connection::poll`] is called again soon in any case: streams need not wake the
    /// driver.
    pub fn expect_poll(&self) {
        self.state.borrow_mut().driver = None;
    }

    /// Wakes the task of `cx` when there is something to do, as after [`Connection::poll`].
    pub fn listen(&self, cx: &Context<'_>) {
        set_waker(&mut self.state.borrow_mut().driver, cx);
    }

    /// Number of streams in use.
    pub fn open_streams(&self) -> usize {
        self.state.borrow().streams.len()
    }

    /// True if output waits to be written.
    pub fn has_unwritten(&self) -> bool {
        self.state.borrow().unwritten() > 0
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.state.borrow().written
    }

    /// Bytes that the peer has not acknowledged on the connection, while the stream depends on
    /// them: some are its own, or it waits for buffer space behind those of others.
    pub(super) fn unacked_on_stream(&self, id: u32) -> Option<u64> {
        let state = self.state.borrow();
        let entry = state.streams.get(&id)?;
        let queued = state.transport.as_ref()?.unacked()?;
        // TLS adds a few bytes per record, so this is a little less than was acknowledged.
        let acked = state.written.saturating_sub(queued);
        let is_crowded = entry.is_queued && state.unwritten() >= MAX_UNWRITTEN_BYTES;
        (acked < entry.sent_until || is_crowded).then_some(queued + state.unwritten() as u64)
    }

    /// Bytes that the peer has not acknowledged; `None` where the kernel does not tell.
    pub fn unacked(&self) -> Option<u64> {
        let state = self.state.borrow();
        let queued = state.transport.as_ref()?.unacked()?;
        Some(queued + state.unwritten() as u64)
    }

    /// Cause of the end, once the connection is closed.
    pub fn close_reason(&self) -> Option<StreamError> {
        self.state.borrow().close_reason
    }

    /// Closes the connection after its streams have ended. A client is told in two steps (RFC 9113
    /// section 6.8): the first GOAWAY names the highest possible stream, so requests that are
    /// already on their way are still served. The final one follows the ACK of the PING, or a
    /// second call.
    pub fn begin_shutdown(&self) {
        let state = &mut *self.state.borrow_mut();
        match &mut state.role {
            PeerRole::Client(client) if client.goaway == GoawayState::NotSent => {
                client.goaway = GoawayState::Announced;
                frame::write_goaway(&mut state.out, MAX_STREAM_ID, ErrorCode::NO_ERROR);
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

    /// Takes the transport out of a closed connection.
    pub fn take_stream(&self) -> Option<Stream> {
        let state = &mut *self.state.borrow_mut();
        state.abort();
        state.transport.take()
    }

    /// True once the peer's SETTINGS were received.
    pub(super) fn settings_received(&self) -> bool {
        self.state.borrow().settings_received
    }

    /// True if the backend has sent SETTINGS and allows at least one stream.
    pub(super) fn accepts_streams(&self) -> bool {
        self.settings_received()
            && self.with_backend(|backend| backend.max_streams) != Some(Some(0))
    }

    /// Number of open streams other than `id`.
    pub(super) fn other_open_streams(&self, id: u32) -> usize {
        let state = self.state.borrow();
        let is_live =
            |(other, entry): &(&u32, &StreamEntry)| **other != id && entry.error.is_none();
        state.streams.iter().filter(is_live).count()
    }

    /// True if nothing was received on the stream, except maybe its end.
    pub(super) fn has_received_nothing(&self, id: u32) -> bool {
        let state = self.state.borrow();
        let entry = state.streams.get(&id);
        entry.is_some_and(|entry| {
            entry.interim_responses == 0
                && !entry.recv_buffer.has_head()
                && !entry.window_update_received
        })
    }

    /// Applies `look` to the state of the backend; `None` on a client's connection.
    pub(super) fn with_backend<T>(&self, look: impl FnOnce(&BackendPeer) -> T) -> Option<T> {
        match &self.state.borrow().role {
            PeerRole::Backend(backend) => Some(look(backend)),
            PeerRole::Client(_) => None,
        }
    }

    /// Time since the oldest unanswered request was sent, without any frame received.
    pub(super) fn unanswered_for(&self) -> Duration {
        let asked_at = self.with_backend(|backend| backend.asked_at).flatten();
        asked_at.map_or(Duration::ZERO, |asked_at| {
            clock::now().saturating_duration_since(asked_at)
        })
    }

    /// Sends empty SETTINGS, which the backend must acknowledge (RFC 9113 section 6.5.3). A PING
    /// would do as well, but gRPC servers close connections that send PINGs without calls
    /// ("too_many_pings").
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

    /// Opens a stream to the backend with the head that `write` writes; returns its id and the
    /// bytes of the head on the wire.
    pub(super) fn open_stream(
        &self,
        expected: ResponseExpectation,
        ends: bool,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<(u32, usize), StreamError> {
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
            PeerRole::Backend(backend) if !backend.is_closing && id <= MAX_STREAM_ID => {
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
        let count = state.send_fields(id, ends, write)?;
        Ok((id, count))
    }

    /// Ready when a response head was moved into `head`.
    pub(super) fn poll_head(
        &self,
        id: u32,
        head: &mut ResponseHead,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::Lost));
        };
        if entry.recv_buffer.read_head(head) {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = entry.error.or(entry.recv_buffer.failure()) {
            return Poll::Ready(Err(ended));
        }
        set_waker(&mut entry.read_waker, cx);
        Poll::Pending
    }

    /// Ready when the stream has content to read (true), or it has ended (false).
    pub(super) fn poll_content(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<bool, StreamError>> {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::Lost));
        };
        let recv_buffer = &entry.recv_buffer;
        if recv_buffer.unread_content() > 0 {
            return Poll::Ready(Ok(true));
        }
        if recv_buffer.is_finished() {
            return Poll::Ready(Ok(false));
        }
        if let Some(ended) = entry.error.or(recv_buffer.failure()) {
            return Poll::Ready(Err(ended));
        }
        set_waker(&mut entry.read_waker, cx);
        Poll::Pending
    }

    /// Gives at most `most` bytes of content to `take`, and opens the windows for as many; returns
    /// their number, and true if the message has ended behind them.
    pub(super) fn read_content(
        &self,
        id: u32,
        most: usize,
        take: impl FnMut(&[u8]),
    ) -> (usize, bool) {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.streams.get_mut(&id) else {
            return (0, false);
        };
        let count = entry.recv_buffer.read_content(most, take);
        let is_end = entry.recv_buffer.is_finished() && entry.recv_buffer.unread_content() == 0;
        if count > 0 {
            state.release_on_stream(id, count);
            state.release(count);
        }
        (count, is_end)
    }

    /// Takes the trailers of a message that has ended.
    pub(super) fn take_trailers(&self, id: u32) -> Trailers {
        let state = &mut *self.state.borrow_mut();
        let entry = state.streams.get_mut(&id);
        entry.map_or_else(Trailers::new, |entry| entry.recv_buffer.take_trailers())
    }

    /// Lets the peer reset the stream from `age` after its request on.
    pub(super) fn allow_reset_after(&self, id: u32, age: Duration) {
        if let Some(entry) = self.state.borrow_mut().streams.get_mut(&id) {
            entry.rapid_until = entry.opened_at.map(|opened| opened + rapid_reset_age(age));
        }
    }

    /// Ready when the stream is closed, by either side.
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

    /// Ready when the windows allow at least one byte of content.
    pub(super) fn poll_send_content(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.state.borrow_mut().poll_writable(id, true, cx)
    }

    /// Ready when a field block can be sent: flow control covers DATA only (RFC 9113 section 5.2).
    pub(super) fn poll_send_fields(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.state.borrow_mut().poll_writable(id, false, cx)
    }

    /// True if the peer has not read for so long that new requests would only add to the output.
    pub(super) fn is_output_full(&self) -> bool {
        self.state.borrow().unwritten() > STREAM_STOP_BYTES
    }

    /// True if the backend has kept the connection window exhausted.
    pub(super) fn is_window_stalled(&self) -> bool {
        let since = self.state.borrow().stalled_since;
        since.is_some_and(|since| {
            clock::now().saturating_duration_since(since) >= WINDOW_STALL_TIMEOUT
        })
    }

    /// Sends a head or trailers, which `write` writes; returns the bytes of their frames.
    pub(super) fn send_fields(
        &self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<usize, StreamError> {
        self.state.borrow_mut().send_fields(id, ends, write)
    }

    /// Sends as much of `content` as the windows and the output allow; returns how much. With
    /// `ends` the stream ends behind all of it.
    pub(super) fn send_content(
        &self,
        id: u32,
        content: &[u8],
        ends: bool,
    ) -> Result<usize, StreamError> {
        self.state.borrow_mut().send_content(id, content, ends)
    }

    /// Closes the stream: resets it unless both sides have ended it. `code` is sent if our side is
    /// incomplete.
    pub(super) fn close(&self, id: u32, code: ErrorCode) {
        let state = &mut *self.state.borrow_mut();
        let Some(entry) = state.discard(id) else {
            return;
        };
        let rest = match state.role {
            // RFC 9113 section 8.1: the response is complete, and the remaining request is not
            // needed.
            PeerRole::Client(_) => ErrorCode::NO_ERROR,
            PeerRole::Backend(_) => ErrorCode::CANCEL,
        };
        let code = match (entry.end_sent, entry.end_received) {
            _ if entry.error.is_some() => None,
            (true, true) => None,
            (true, false) => Some(rest),
            // RFC 9113 section 8.1.1: a response may come first.
            (false, _) => Some(code),
        };
        if let Some(code) = code {
            // The peer is not at fault, so the flood guard is not charged.
            state.write_reset(id, code);
        }
        state.wake();
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
