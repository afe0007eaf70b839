//! State of an HTTP/2 connection: output, receive buffer, streams and windows.
//!
//! Frames of the peer are handled in `input.rs`.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use tokio::io::AsyncWrite;

use super::{
    StreamError,
    client::IncomingRequest,
    closed_streams::{ClosedStreams, ResetBy},
    flood_guard::FloodGuard,
    recv_windows::{RTT_PROBE, RecvWindows},
    stream_entry::{SendWindow, StreamEntry, WindowShare, set_waker},
};
use crate::{
    base::{clock, hasher::NumberBuild},
    http::rules::HeadLimits,
    http2::{
        block_head::BlockHead,
        frame::{self, ErrorCode, INITIAL_WINDOW, MAX_PAYLOAD_BYTES, flag, kind},
        hpack::{HpackDecoder, HpackEncoder},
    },
    net::{
        buffer::{BufferSize, PooledBuffer},
        stream::Stream,
    },
};

/// Output above which streams may not add frames.
pub(super) const MAX_UNWRITTEN_BYTES: usize = 64 << 10;
/// Output above which nothing more is read: replies to frames (ACKs, resets) are output as well, so
/// a peer that sends and never reads could grow it without bound.
pub(super) const READ_STOP_BYTES: usize = 4 * MAX_UNWRITTEN_BYTES;
/// Output above which no stream is opened: heads wait for no window, and this much unread output is
/// more than a burst.
pub(super) const STREAM_STOP_BYTES: usize = 4 * READ_STOP_BYTES;
/// Capacity of the output buffer that a connection in use keeps.
const KEPT_OUTPUT_BYTES: usize = 2 * MAX_UNWRITTEN_BYTES;

/// Connection window below which streams have to wait for each other.
const STALLED_WINDOW_BYTES: usize = 4 << 10;

/// Progress of our graceful shutdown, RFC 9113 section 6.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoawayState {
    NotSent,
    /// First GOAWAY sent: the client still may open streams.
    Announced,
    /// Final GOAWAY sent: new streams are refused.
    Final,
}

/// Client at the other end.
#[derive(Debug)]
pub(super) struct ClientPeer {
    pub limits: HeadLimits,
    /// Concurrent streams that we allow.
    pub max_streams: usize,
    /// Requests that no exchange has taken yet.
    pub requests: VecDeque<IncomingRequest>,
    pub goaway: GoawayState,
    /// The client sent GOAWAY.
    pub goaway_received: bool,
}

/// Backend at the other end.
#[derive(Debug, Default)]
pub(super) struct BackendPeer {
    /// SETTINGS_MAX_CONCURRENT_STREAMS of the backend; `None`: not sent.
    pub max_streams: Option<u32>,
    /// The backend supports extended CONNECT, RFC 8441 section 3.
    pub supports_connect: bool,
    pub is_closing: bool,
    /// A response head was received on this connection.
    pub has_responded: bool,
    /// Time of the oldest request since a frame was received.
    pub asked_at: Option<Instant>,
    /// Time of the probe; `None` after a frame was received.
    pub probed_at: Option<Instant>,
    /// Concurrent streams for which there are receive windows.
    pub window_streams: usize,
}

/// Role and state of the other end.
#[derive(Debug)]
pub(super) enum PeerRole {
    Client(Box<ClientPeer>),
    Backend(BackendPeer),
}

/// Field block that continues in another frame.
#[derive(Debug)]
pub(super) struct PartialBlock {
    pub stream: u32,
    pub ends: bool,
    /// Its HEADERS frame makes the stream depend on itself.
    pub is_self_dependent: bool,
    pub bytes: Vec<u8>,
    pub continuations: usize,
}

/// Remainder of a DATA frame whose header was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialData {
    pub stream: u32,
    pub left: usize,
    pub padding: usize,
    pub ends: bool,
    /// Discarded: its window has been released already.
    pub is_waste: bool,
}

/// Mutable state of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub transport: Option<Stream>,
    pub role: PeerRole,
    /// Bytes of the client preface that are still expected.
    pub preface_left: usize,
    /// The peer's SETTINGS were received.
    pub settings_received: bool,
    /// The peer has acknowledged our SETTINGS.
    pub is_acknowledged: bool,
    /// Receive time of the bytes being handled, set when first needed.
    pub read_at: Option<Instant>,
    /// Beginning of an incomplete frame.
    pub unread: Vec<u8>,
    pub partial_data: Option<PartialData>,
    pub partial_block: Option<Box<PartialBlock>>,
    pub decoder: HpackDecoder,
    pub encoder: HpackEncoder,
    pub flood_guard: FloodGuard,
    pub windows: RecvWindows,
    pub send_window: SendWindow,
    /// Content that the peer has not yet acknowledged by a WINDOW_UPDATE of the connection.
    pub unacknowledged: usize,
    /// Start of the current exhaustion of the connection window.
    pub stalled_since: Option<Instant>,
    /// Send window of each new stream.
    pub peer_initial_window: u32,
    pub streams: HashMap<u32, StreamEntry, NumberBuild>,
    /// Highest stream id opened so far.
    pub last_stream_id: u32,
    pub closed_streams: ClosedStreams,
    /// Output; bytes before `sent` are written.
    pub out: Vec<u8>,
    pub sent: usize,
    pub written: u64,
    /// Streams that wait for output space or for the connection window, in order.
    pub waiting: VecDeque<u32>,
    pub driver: Option<Waker>,
    /// Set when the connection is closed, though output may remain.
    pub close_reason: Option<StreamError>,
}

impl ConnectionState {
    pub(super) fn new(stream: Stream, role: PeerRole) -> Self {
        let (closed, windows) = match &role {
            PeerRole::Client(client) => (
                ClosedStreams::new(client.max_streams),
                RecvWindows::for_client(client.max_streams),
            ),
            PeerRole::Backend(backend) => (
                ClosedStreams::new(backend.window_streams),
                RecvWindows::for_backend(backend.window_streams),
            ),
        };
        Self {
            transport: Some(stream),
            role,
            preface_left: 0,
            settings_received: false,
            is_acknowledged: false,
            read_at: None,
            unread: Vec::new(),
            partial_data: None,
            partial_block: None,
            decoder: HpackDecoder::default(),
            encoder: HpackEncoder::default(),
            flood_guard: FloodGuard::new(),
            windows,
            send_window: SendWindow::new(INITIAL_WINDOW),
            unacknowledged: 0,
            stalled_since: None,
            peer_initial_window: INITIAL_WINDOW,
            streams: HashMap::default(),
            last_stream_id: 0,
            closed_streams: closed,
            out: Vec::new(),
            sent: 0,
            written: 0,
            waiting: VecDeque::new(),
            driver: None,
            close_reason: None,
        }
    }

    pub(super) fn send_settings(&mut self, settings: &[(u16, u32)]) {
        frame::write_settings(&mut self.out, settings);
        let more = self.windows.first_increment();
        frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
    }

    /// Creates the entry of a new stream.
    pub(super) fn new_entry(&self) -> StreamEntry {
        let recv_window = self.windows.stream(self.is_acknowledged);
        StreamEntry::new(recv_window, SendWindow::new(self.peer_initial_window))
    }

    pub(super) fn wake(&self) {
        self.driver.iter().for_each(Waker::wake_by_ref);
    }

    pub(super) fn unwritten(&self) -> usize {
        self.out.len() - self.sent
    }

    pub(super) fn next_request(&mut self) -> Option<IncomingRequest> {
        loop {
            let PeerRole::Client(client) = &mut self.role else {
                return None;
            };
            let request = client.requests.pop_front()?;
            // Opened and reset in one read: no work has begun, so there is nothing to undo or to
            // record.
            if self
                .streams
                .get(&request.id)
                .is_some_and(|entry| entry.error.is_none())
            {
                return Some(request);
            }
            self.discard(request.id);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.close_reason.is_some()
            || self.streams.is_empty()
                && match &self.role {
                    PeerRole::Client(client) => {
                        client.goaway == GoawayState::Final || client.goaway_received
                    }
                    PeerRole::Backend(backend) => backend.is_closing,
                }
    }

    /// Writes the output.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(bytes @ [_, ..]) = self.out.get(self.sent..)
            && let Some(transport) = &mut self.transport
        {
            match Pin::new(transport).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    self.written += count as u64;
                }
                Poll::Ready(Err(_)) => self.abort(),
                Poll::Pending => {
                    self.compact();
                    return Poll::Pending;
                }
            }
        }
        self.sent = 0;
        self.out.clear();
        self.out.shrink_to(KEPT_OUTPUT_BYTES);
        if self.streams.is_empty() {
            self.release_buffers();
        }
        Poll::Ready(())
    }

    /// Drops written output, which with a slow reader might otherwise grow for ever.
    fn compact(&mut self) {
        if self.sent >= MAX_UNWRITTEN_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Frees all buffers of an idle connection: thousands of them cost little memory.
    fn release_buffers(&mut self) {
        self.out = Vec::new();
        self.streams = HashMap::default();
        self.waiting = VecDeque::new();
        if let PeerRole::Client(client) = &mut self.role {
            client.requests = VecDeque::new();
        }
    }

    /// Reads once and handles the frames.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(transport) = &mut self.transport else {
            return Poll::Ready(());
        };
        let mut buffer = PooledBuffer::take(BufferSize::Medium);
        let before = self.unread.len();
        let Some((kept, free)) = buffer.split_at_mut_checked(before) else {
            return Poll::Ready(());
        };
        match ready!(transport.poll_read_buf(cx, free)) {
            Ok(0) | Err(_) => self.abort(),
            Ok(count) => {
                kept.copy_from_slice(&self.unread);
                self.unread = Vec::new();
                debug_assert!(before + count <= buffer.len(), "reads fit the buffer");
                self.recv(buffer.get(..before + count).unwrap_or_default());
            }
        }
        Poll::Ready(())
    }

    /// Handles `bytes` and keeps the beginning of an incomplete frame.
    pub(super) fn recv(&mut self, bytes: &[u8]) {
        self.read_at = None;
        let used = self.recv_frames(bytes);
        debug_assert!(used <= bytes.len(), "a frame is not longer than its bytes");
        if self.close_reason.is_none() {
            self.unread = bytes.get(used..).unwrap_or_default().to_vec();
        }
    }

    /// Wakes as many queued streams as fit into the output, in turns, so that each gets its share.
    pub(super) fn wake_senders(&mut self, cx: &Context<'_>) {
        let share = self.window_share();
        let mut frames = MAX_UNWRITTEN_BYTES / MAX_PAYLOAD_BYTES;
        let mut left = self.waiting.len();
        while frames > 0
            && left > 0
            && let Some(id) = self.waiting.pop_front()
        {
            left -= 1;
            let Some(entry) = self.streams.get_mut(&id) else {
                continue;
            };
            if entry.waits_for_window && share.available_to(entry) == 0 {
                self.waiting.push_back(id);
                continue;
            }
            entry.is_queued = false;
            if let Some(waker) = entry.write_waker.take() {
                waker.wake();
                frames -= 1;
            }
        }
        if left > 0 {
            cx.waker().wake_by_ref();
        }
    }

    /// Closes the connection without GOAWAY.
    pub(super) fn abort(&mut self) {
        self.close(StreamError::Lost);
        self.out = Vec::new();
        self.sent = 0;
    }

    /// Closes the connection with an error: the peer violated the protocol or a limit.
    pub(super) fn fail(&mut self, code: ErrorCode) {
        if self.close_reason.is_none() {
            let last = match self.role {
                PeerRole::Client(_) => self.last_stream_id,
                PeerRole::Backend(_) => 0,
            };
            frame::write_goaway(&mut self.out, last, code);
            self.close(StreamError::Failed(code));
        }
    }

    /// Closes all streams; output that remains, such as GOAWAY, is still written.
    pub(super) fn close(&mut self, why: StreamError) {
        self.close_reason.get_or_insert(why);
        self.streams.values_mut().for_each(|entry| entry.close(why));
        self.unread = Vec::new();
        self.partial_block = None;
    }

    /// Releases content from the connection window after it was read or discarded.
    pub(super) fn release(&mut self, count: usize) {
        if self.windows.connection.release(count) {
            let more = self.windows.connection.announce();
            frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
            self.wake();
        }
    }

    /// Releases content from the window of a stream, unless the peer has ended it.
    pub(super) fn release_on_stream(&mut self, id: u32, count: usize) {
        let Some(entry) = self.open_entry(id).filter(|entry| !entry.end_received) else {
            return;
        };
        if !entry.recv_window.release(count) {
            return;
        }
        let now = clock::now();
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        let unread = entry.recv_buffer.unread_content();
        let more = self.windows.announce(&mut entry.recv_window, unread, now);
        frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, id, more);
        if self.windows.begins_probe(now) {
            frame::write(&mut self.out, kind::PING, 0, 0, &RTT_PROBE);
        }
        self.wake();
    }

    /// Applies our initial window, which the peer now knows (RFC 9113 section 6.5.3).
    pub(super) fn on_settings_ack(&mut self) {
        if std::mem::replace(&mut self.is_acknowledged, true) {
            return;
        }
        let (from, to) = (self.windows.first.max(INITIAL_WINDOW), self.windows.first);
        if from == to {
            return;
        }
        for (id, entry) in &mut self.streams {
            entry.recv_window.resize(from, to);
            // The smaller window may make released bytes worth a WINDOW_UPDATE, and no later event
            // would send it.
            if entry.recv_window.release(0) && entry.error.is_none() && !entry.end_received {
                let more = entry.recv_window.announce();
                frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, *id, more);
            }
        }
    }

    /// Resets a stream. Frames for it may still arrive, so its id is remembered.
    pub(super) fn write_reset(&mut self, id: u32, code: ErrorCode) {
        frame::write_u32(&mut self.out, kind::RST_STREAM, id, code.0);
        self.closed_streams.insert(id, ResetBy::Us);
    }

    /// Removes a stream and releases its unread content.
    pub(super) fn discard(&mut self, id: u32) -> Option<StreamEntry> {
        let entry = self.streams.remove(&id)?;
        self.windows.reclaim(&entry.recv_window);
        self.release(entry.recv_buffer.unread_content());
        Some(entry)
    }

    /// Entry of a stream, unless it was closed.
    pub(super) fn open_entry(&mut self, id: u32) -> Option<&mut StreamEntry> {
        self.streams
            .get_mut(&id)
            .filter(|entry| entry.error.is_none())
    }

    fn sendable_entry(&mut self, id: u32) -> Result<&mut StreamEntry, StreamError> {
        let entry = self.streams.get_mut(&id).ok_or(StreamError::Lost)?;
        entry.error.map_or(Ok(entry), Err)
    }

    pub(super) fn send_fields(
        &mut self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<usize, StreamError> {
        let start = self.out.len();
        self.sendable_entry(id)?.end_sent |= ends;
        let encoder = &mut self.encoder;
        frame::write_fields(&mut self.out, id, ends, |out| {
            encoder.begin_block(out);
            write(&mut BlockHead::new(encoder, out));
        });
        self.flood_guard.credit_head();
        self.wake();
        Ok(self.out.len() - start)
    }

    /// Share of the connection window that each stream may use.
    fn window_share(&self) -> WindowShare {
        let is_shared = matches!(self.role, PeerRole::Backend(_)) && self.streams.len() > 1;
        WindowShare {
            left: self.send_window.available(),
            unacknowledged: is_shared.then_some(self.unacknowledged),
        }
    }

    /// Records a WINDOW_UPDATE of the connection.
    pub(super) fn acknowledged(&mut self, bytes: u32) {
        self.unacknowledged = self.unacknowledged.saturating_sub(bytes as usize);
        if self.send_window.available() >= STALLED_WINDOW_BYTES {
            self.stalled_since = None;
        }
    }

    /// Sends `content` in frames, within both windows and the output buffer; returns the bytes
    /// taken. With `ends` the last frame ends the stream, if all of it was taken.
    pub(super) fn send_content(
        &mut self,
        id: u32,
        content: &[u8],
        ends: bool,
    ) -> Result<usize, StreamError> {
        let mut sent = 0;
        loop {
            let share = self.window_share();
            let all = MAX_UNWRITTEN_BYTES.saturating_sub(self.unwritten());
            let entry = self.sendable_entry(id)?;
            // 16 KiB at most, so that the frames of other streams are not delayed for long.
            let own = entry.send_window.available().min(share.available_to(entry));
            let capacity = own.min(all).min(MAX_PAYLOAD_BYTES);
            debug_assert!(sent <= content.len(), "a frame holds what is left");
            let rest = content.get(sent..).unwrap_or_default();
            let part = rest.get(..capacity).unwrap_or(rest);
            let is_last = ends && part.len() == rest.len();
            // An empty frame that ends the stream needs no window.
            if part.is_empty() && !is_last {
                return Ok(sent);
            }
            let flags = if is_last { flag::END_STREAM } else { 0 };
            frame::write(&mut self.out, kind::DATA, flags, id, part);
            self.on_content_sent(id, part.len(), is_last);
            sent += part.len();
            if sent == content.len() {
                return Ok(sent);
            }
        }
    }

    /// Accounts for a DATA frame that was added to the output: on the connection, then on the
    /// stream.
    fn on_content_sent(&mut self, id: u32, length: usize, ends: bool) {
        self.send_window.consume(length);
        self.unacknowledged += length;
        if self.send_window.available() < STALLED_WINDOW_BYTES && self.stalled_since.is_none() {
            self.stalled_since = Some(clock::now());
        }
        let sent_until = self.written + self.unwritten() as u64;
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.send_window.consume(length);
            entry.unacknowledged += length;
            entry.end_sent |= ends;
            entry.sent_until = sent_until;
        }
        self.flood_guard.credit(length);
        self.wake();
    }

    pub(super) fn poll_writable(
        &mut self,
        id: u32,
        is_content: bool,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let is_full = self.unwritten() >= MAX_UNWRITTEN_BYTES;
        let share = self.window_share();
        let entry = match self.sendable_entry(id) {
            Ok(entry) => entry,
            Err(ended) => return Poll::Ready(Err(ended)),
        };
        let is_held = is_content && entry.send_window.available() == 0;
        let is_shut = is_content && share.available_to(entry) == 0;
        if !is_held && !is_shut && !is_full {
            return Poll::Ready(Ok(()));
        }
        set_waker(&mut entry.write_waker, cx);
        entry.waits_for_window = is_content;
        // Streams that are blocked on their own window are woken by its WINDOW_UPDATE; all others
        // queue.
        if !is_held && !std::mem::replace(&mut entry.is_queued, true) {
            self.waiting.push_back(id);
        }
        Poll::Pending
    }
}
