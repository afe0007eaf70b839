//! What changes of an HTTP/2 connection: what waits to be written and by whom, what was read, and how it ends.
//!
//! What the peer's frames do to it is in `input.rs`.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use tokio::io::AsyncWrite;

use super::{
    StreamError,
    closed_streams::ClosedStreams,
    flood_guard::FloodGuard,
    incoming::IncomingRequest,
    recv_windows::{RTT_PROBE, RecvWindows},
    stream_entry::{SendWindow, StreamEntry, WindowShare, remember},
};
use crate::{
    base::{clock, hasher::NumberBuild, rng::Random},
    http1::request::HeadLimits,
    http2::{
        frame::{self, ErrorCode, Frame, INITIAL_WINDOW, MAX_PAYLOAD_BYTES, flag, kind},
        hpack::{self, HpackDecoder},
    },
    net::{
        buffer::{BufferSize, PooledBuffer},
        stream::Stream,
    },
};

/// Bytes of frames that wait to be written until nobody may add to them.
pub(super) const MOST_UNWRITTEN: usize = 64 << 10;
/// The same until nothing more is read: what is read makes frames as well.
pub(super) const MOST_ANSWERS: usize = 4 * MOST_UNWRITTEN;
/// The same until no exchange begins on a connection: heads wait for no room, and this many that nobody takes are no burst.
pub(super) const MOST_HEADS: usize = 4 * MOST_ANSWERS;
/// Room for frames that a connection in use keeps.
const KEPT: usize = 2 * MOST_UNWRITTEN;

/// Room of a connection's window below which streams have to wait for each other.
const STALLED_ROOM: usize = 4 << 10;

/// How far we have taken leave of a client, RFC 9113 section 6.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoawayState {
    None,
    /// The client was told that there will be an end.
    Announced,
    /// No more streams.
    Taken,
}

/// A client at the other end.
#[derive(Debug)]
pub(super) struct ClientPeer {
    pub limits: HeadLimits,
    /// Most streams at a time.
    pub most: usize,
    /// For the keys of WebSockets.
    pub random: Random,
    /// Requests that nobody has taken up.
    pub asked: VecDeque<IncomingRequest>,
    pub leave: GoawayState,
    /// The client has taken leave.
    pub is_leaving: bool,
}

/// A backend at the other end.
#[derive(Debug, Default)]
pub(super) struct BackendPeer {
    /// Most streams at a time, as far as it has said.
    pub most: Option<u32>,
    /// It takes extended CONNECT, RFC 8441 section 3.
    pub takes_connect: bool,
    pub is_leaving: bool,
    /// A response head was received.
    pub has_answered: bool,
    /// When the first head went out since anything came.
    pub asked: Option<Instant>,
    /// When it was asked for a sign of life; `None` after a frame was received.
    pub probed: Option<Instant>,
    /// Streams at a time for which there are windows.
    pub streams: usize,
}

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum PeerRole {
    Client(Box<ClientPeer>),
    Backend(BackendPeer),
}

/// A field block that goes on in another frame.
#[derive(Debug)]
pub(super) struct FieldBlock {
    pub stream: u32,
    pub ends: bool,
    pub bytes: Vec<u8>,
    pub continuations: usize,
}

/// What is left of a DATA frame whose beginning has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialData {
    pub stream: u32,
    pub left: usize,
    pub padding: usize,
    pub ends: bool,
    /// Nobody wants it; its window has been opened again.
    pub is_waste: bool,
}

/// What changes of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub stream: Option<Stream>,
    pub role: PeerRole,
    /// Bytes of the preface that have not come.
    pub preface: usize,
    /// The peer's settings have come.
    pub is_greeted: bool,
    /// The peer has acknowledged ours.
    pub is_acknowledged: bool,
    /// When what is read now was read, where that was asked for.
    pub read_at: Option<Instant>,
    /// What was read of a frame that is not whole.
    pub unread: Vec<u8>,
    pub part: Option<PartialData>,
    pub block: Option<Box<FieldBlock>>,
    pub decoder: HpackDecoder,
    pub flood_guard: FloodGuard,
    pub windows: RecvWindows,
    pub outward: SendWindow,
    /// Content that the peer has not acknowledged with a window of the connection.
    pub unacknowledged: usize,
    /// Since when the connection's window is used up, or nearly.
    pub stalled_since: Option<Instant>,
    /// What each new stream may send.
    pub initial: u32,
    pub flows: HashMap<u32, StreamEntry, NumberBuild>,
    /// The highest id of a stream that has begun.
    pub last: u32,
    pub closed: ClosedStreams,
    /// Frames, written up to `sent`.
    pub out: Vec<u8>,
    pub sent: usize,
    /// No block has been written.
    pub is_first: bool,
    pub written: u64,
    /// Streams that wait to send something.
    pub waiting: VecDeque<u32>,
    pub driver: Option<Waker>,
    /// The connection is over, but for what is still to be written.
    pub fate: Option<StreamError>,
}

impl ConnectionState {
    pub(super) fn new(stream: Stream, role: PeerRole) -> Self {
        let (closed, windows) = match &role {
            PeerRole::Client(client) => (
                ClosedStreams::new(client.most),
                RecvWindows::for_client(client.most),
            ),
            PeerRole::Backend(backend) => (
                ClosedStreams::new(backend.streams),
                RecvWindows::for_backend(backend.streams),
            ),
        };
        Self {
            stream: Some(stream),
            role,
            preface: 0,
            is_greeted: false,
            is_acknowledged: false,
            read_at: None,
            unread: Vec::new(),
            part: None,
            block: None,
            decoder: HpackDecoder::default(),
            flood_guard: FloodGuard::new(),
            windows,
            outward: SendWindow::new(INITIAL_WINDOW),
            unacknowledged: 0,
            stalled_since: None,
            initial: INITIAL_WINDOW,
            flows: HashMap::default(),
            last: 0,
            closed,
            out: Vec::new(),
            sent: 0,
            is_first: true,
            written: 0,
            waiting: VecDeque::new(),
            driver: None,
            fate: None,
        }
    }

    pub(super) fn greet(&mut self, settings: &[(u16, u32)]) {
        frame::write_settings(&mut self.out, settings);
        let more = self.windows.first_increment();
        frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
    }

    /// A new stream, which is not open to the peer yet.
    pub(super) fn new_flow(&self) -> StreamEntry {
        let inward = self.windows.stream(self.is_acknowledged);
        StreamEntry::new(inward, SendWindow::new(self.initial))
    }

    pub(super) fn wake(&self) {
        self.driver.iter().for_each(Waker::wake_by_ref);
    }

    pub(super) fn unwritten(&self) -> usize {
        self.out.len() - self.sent
    }

    pub(super) fn next_asked(&mut self) -> Option<IncomingRequest> {
        loop {
            let PeerRole::Client(client) = &mut self.role else {
                return None;
            };
            let asked = client.asked.pop_front()?;
            // Asked and reset at once: nothing has begun, so there is nothing to be done or recorded.
            if self
                .flows
                .get(&asked.id)
                .is_some_and(|flow| flow.ended.is_none())
            {
                return Some(asked);
            }
            self.discard(asked.id);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.fate.is_some()
            || self.flows.is_empty()
                && match &self.role {
                    PeerRole::Client(client) => {
                        client.leave == GoawayState::Taken || client.is_leaving
                    }
                    PeerRole::Backend(backend) => backend.is_leaving,
                }
    }

    /// Writes what is there.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(bytes @ [_, ..]) = self.out.get(self.sent..)
            && let Some(stream) = &mut self.stream
        {
            match Pin::new(stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    self.written += count as u64;
                }
                Poll::Ready(Err(_)) => self.lose(),
                Poll::Pending => {
                    self.compact();
                    return Poll::Pending;
                }
            }
        }
        self.sent = 0;
        self.out.clear();
        self.out.shrink_to(KEPT);
        if self.flows.is_empty() {
            self.rest();
        }
        Poll::Ready(())
    }

    /// Lets go what was written: with a slow reader there may always be something behind it.
    fn compact(&mut self) {
        if self.sent >= MOST_UNWRITTEN {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// With nothing on its way nothing is held.
    fn rest(&mut self) {
        self.out = Vec::new();
        self.flows = HashMap::default();
        self.waiting = VecDeque::new();
        if let PeerRole::Client(client) = &mut self.role {
            client.asked = VecDeque::new();
        }
    }

    /// Reads once, and does what the frames say.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(());
        };
        let mut buffer = PooledBuffer::take(BufferSize::Medium);
        let before = self.unread.len();
        let Some((kept, room)) = buffer.split_at_mut_checked(before) else {
            return Poll::Ready(());
        };
        match ready!(stream.poll_read_buf(cx, room)) {
            Ok(0) | Err(_) => self.lose(),
            Ok(count) => {
                kept.copy_from_slice(&self.unread);
                self.unread = Vec::new();
                self.take_in(buffer.get(..before + count).unwrap_or_default());
            }
        }
        Poll::Ready(())
    }

    /// Works off what was read, and keeps what is not whole.
    pub(super) fn take_in(&mut self, bytes: &[u8]) {
        self.read_at = None;
        let used = self.digest(bytes);
        if self.fate.is_none() {
            self.unread = bytes.get(used..).unwrap_or_default().to_vec();
        }
    }

    /// Lets some of those send who wait for room: as many as can use it. The others have their turn when these have had
    /// theirs.
    pub(super) fn wake_senders(&mut self, cx: &Context<'_>) {
        let share = self.share();
        let mut most = MOST_UNWRITTEN / MAX_PAYLOAD_BYTES;
        let mut left = self.waiting.len();
        while most > 0
            && left > 0
            && let Some(id) = self.waiting.pop_front()
        {
            left -= 1;
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            if flow.has_content && share.room(flow) == 0 {
                self.waiting.push_back(id);
                continue;
            }
            flow.is_waiting = false;
            if let Some(waker) = flow.write.take() {
                waker.wake();
                most -= 1;
            }
        }
        if left > 0 {
            cx.waker().wake_by_ref();
        }
    }

    /// The connection has ended without a word.
    pub(super) fn lose(&mut self) {
        self.end(StreamError::Lost);
        self.out = Vec::new();
        self.sent = 0;
    }

    /// We end the connection: the peer has done what it may not.
    pub(super) fn fail(&mut self, code: ErrorCode) {
        if self.fate.is_none() {
            let last = match self.role {
                PeerRole::Client(_) => self.last,
                PeerRole::Backend(_) => 0,
            };
            frame::write_goaway(&mut self.out, last, code);
            self.end(StreamError::Failed(code));
        }
    }

    /// The connection is over, but for what is still to be written.
    pub(super) fn end(&mut self, why: StreamError) {
        self.fate.get_or_insert(why);
        self.flows.values_mut().for_each(|flow| flow.end(why));
        self.unread = Vec::new();
        self.block = None;
    }

    /// So much content has been taken or let go.
    pub(super) fn give(&mut self, count: usize) {
        if self.windows.connection.release(count) {
            let more = self.windows.connection.announce();
            frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
            self.wake();
        }
    }

    /// So much of the content of a stream has been taken or let go: opens its window, if more is to come.
    pub(super) fn give_to(&mut self, id: u32, count: usize) {
        let Some(flow) = self.live(id).filter(|flow| !flow.got_end) else {
            return;
        };
        if !flow.inward.release(count) {
            return;
        }
        let now = clock::now();
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let unread = flow.reader.unread();
        let more = self.windows.announce(&mut flow.inward, unread, now);
        frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, id, more);
        if self.windows.begins_probe(now) {
            frame::write(&mut self.out, kind::PING, 0, 0, &RTT_PROBE);
        }
        self.wake();
    }

    /// The peer knows our settings, RFC 9113 section 6.5.3.
    pub(super) fn settings_acknowledged(&mut self) {
        if std::mem::replace(&mut self.is_acknowledged, true) {
            return;
        }
        let (from, to) = (self.windows.first.max(INITIAL_WINDOW), self.windows.first);
        if from == to {
            return;
        }
        for (id, flow) in &mut self.flows {
            flow.inward.resize(from, to);
            // What was not worth an announcement may be one now, and nothing else might come.
            if flow.inward.release(0) && flow.ended.is_none() && !flow.got_end {
                let more = flow.inward.announce();
                frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, *id, more);
            }
        }
    }

    /// Ends a stream. Frames for it may still be on their way.
    pub(super) fn write_reset(&mut self, id: u32, code: ErrorCode) {
        frame::write_u32(&mut self.out, kind::RST_STREAM, id, code.0);
        self.closed.insert(id);
    }

    /// Forgets a stream, and what nobody has read of it.
    pub(super) fn discard(&mut self, id: u32) -> Option<StreamEntry> {
        let flow = self.flows.remove(&id)?;
        self.windows.reclaim(&flow.inward);
        self.give(flow.reader.unread());
        Some(flow)
    }

    /// The stream, if it is in use and was not ended.
    pub(super) fn live(&mut self, id: u32) -> Option<&mut StreamEntry> {
        self.flows.get_mut(&id).filter(|flow| flow.ended.is_none())
    }

    fn sending(&mut self, id: u32) -> Result<&mut StreamEntry, StreamError> {
        let flow = self.flows.get_mut(&id).ok_or(StreamError::Lost)?;
        flow.ended.map_or(Ok(flow), Err)
    }

    pub(super) fn send_fields(
        &mut self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), StreamError> {
        self.sending(id)?.sent_end |= ends;
        let is_first = std::mem::take(&mut self.is_first);
        frame::write_fields(&mut self.out, id, ends, |out| {
            if is_first {
                hpack::begin(out);
            }
            write(out);
        });
        self.flood_guard.credit_head();
        self.wake();
        Ok(())
    }

    /// How streams share the rest of the connection's window.
    fn share(&self) -> WindowShare {
        let is_shared = matches!(self.role, PeerRole::Backend(_)) && self.flows.len() > 1;
        WindowShare {
            left: self.outward.room(),
            unacknowledged: is_shared.then_some(self.unacknowledged),
        }
    }

    /// The peer has opened the connection's window.
    pub(super) fn acknowledged(&mut self, bytes: u32) {
        self.unacknowledged = self.unacknowledged.saturating_sub(bytes as usize);
        if self.outward.room() >= STALLED_ROOM {
            self.stalled_since = None;
        }
    }

    pub(super) fn send_data<T>(
        &mut self,
        id: u32,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        let (share, all) = (
            self.share(),
            MOST_UNWRITTEN.saturating_sub(self.unwritten()),
        );
        let flow = self.sending(id).map_err(gone)?;
        let own = flow.outward.room().min(share.room(flow));
        let room = own.min(all).min(MAX_PAYLOAD_BYTES);
        let start = self.out.len();
        self.out.extend_from_slice(&[0; frame::HEADER_BYTES]);
        let filled = fill(&mut self.out, room);
        let length = self.out.len() - start - frame::HEADER_BYTES;
        debug_assert!(length <= room, "windows are kept");
        let (value, ends) = match filled {
            Ok(filled) if filled.1 || length > 0 => filled,
            nothing => {
                self.out.truncate(start);
                return nothing.map(|(value, _)| value);
            }
        };
        let header = Frame {
            length,
            kind: kind::DATA,
            flags: if ends { flag::END_STREAM } else { 0 },
            stream: id,
        };
        header.write_at(&mut self.out, start);
        self.outward.take(length);
        self.unacknowledged += length;
        if self.outward.room() < STALLED_ROOM && self.stalled_since.is_none() {
            self.stalled_since = Some(clock::now());
        }
        let sent_until = self.written + self.unwritten() as u64;
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.outward.take(length);
            flow.unacknowledged += length;
            flow.sent_end |= ends;
            flow.sent_until = sent_until;
        }
        self.flood_guard.credit(length);
        self.wake();
        Ok(value)
    }

    pub(super) fn poll_room(
        &mut self,
        id: u32,
        is_content: bool,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let is_full = self.unwritten() >= MOST_UNWRITTEN;
        let share = self.share();
        let flow = match self.sending(id) {
            Ok(flow) => flow,
            Err(ended) => return Poll::Ready(Err(ended)),
        };
        let is_held = is_content && flow.outward.room() == 0;
        let is_shut = is_content && share.room(flow) == 0;
        if !is_held && !is_shut && !is_full {
            return Poll::Ready(Ok(()));
        }
        remember(&mut flow.write, cx);
        flow.has_content = is_content;
        // The peer wakes those that it holds; for the others there is a line.
        if !is_held && !std::mem::replace(&mut flow.is_waiting, true) {
            self.waiting.push_back(id);
        }
        Poll::Pending
    }
}

/// Writing on a stream that is no more.
pub(super) fn gone(ended: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, ended)
}
