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
        BackendPeer, ClientPeer, ConnectionState, GoawayState, MOST_ANSWERS, MOST_HEADS,
        MOST_UNWRITTEN, PeerRole,
    },
    stream_entry::{StreamEntry, remember},
};
use crate::{
    base::{clock, rng::Random},
    http1::{request::HeadLimits, response::MAX_HEAD_BYTES},
    http2::frame::{self, ErrorCode, LARGEST, kind, setting},
    net::{
        stream::Stream,
        tls::{NegotiatedTls, TlsStream},
    },
};

/// Most reads in a row before others have their turn.
const READS: usize = 16;
/// How long the window of a backend's connection may be used up until further requests go elsewhere.
const STALL_TIME: Duration = Duration::from_millis(100);
/// Payload of the PING that a client answers when it has seen our GOAWAY.
pub(super) const FAREWELL: [u8; 8] = *b"farewell";

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
    pub(super) facts: ConnectionInfo,
    pub(super) core: RefCell<ConnectionState>,
}

impl Connection {
    /// The connection of a client on `stream`, of which `read` has been read already, beginning with the preface. Of its
    /// streams `most` may be open at a time; `random` makes keys of WebSockets.
    pub fn of_client(
        stream: Stream,
        read: &[u8],
        limits: HeadLimits,
        most: usize,
        random: Random,
    ) -> Rc<Self> {
        let role = PeerRole::Client(Box::new(ClientPeer {
            limits,
            most,
            random,
            asked: VecDeque::new(),
            leave: GoawayState::None,
            is_leaving: false,
        }));
        let this = Self::new(stream, role);
        {
            let core = &mut *this.core.borrow_mut();
            core.preface = frame::CLIENT_PREFACE.len();
            core.greet(&[
                (setting::MAX_CONCURRENT_STREAMS, most as u32),
                (setting::INITIAL_WINDOW_SIZE, core.windows.first),
                // Twice what is allowed, so that we give the answer to what is too large, and log it.
                (setting::MAX_HEADER_LIST_SIZE, 2 * limits.bytes as u32),
                (setting::ENABLE_CONNECT_PROTOCOL, 1),
            ]);
            core.take_in(read);
        }
        this
    }

    /// A new connection to a backend on `stream`, with windows for `streams` streams at a time.
    pub(super) fn of_backend(stream: Stream, streams: usize) -> Rc<Self> {
        let role = PeerRole::Backend(BackendPeer {
            streams,
            ..BackendPeer::default()
        });
        let this = Self::new(stream, role);
        {
            let core = &mut *this.core.borrow_mut();
            core.out.extend_from_slice(frame::CLIENT_PREFACE);
            core.greet(&[
                (setting::ENABLE_PUSH, 0),
                (setting::INITIAL_WINDOW_SIZE, core.windows.first),
                (setting::MAX_HEADER_LIST_SIZE, 2 * MAX_HEAD_BYTES as u32),
            ]);
        }
        this
    }

    fn new(stream: Stream, role: PeerRole) -> Rc<Self> {
        Rc::new(Self {
            facts: ConnectionInfo {
                agreed: stream.tls().map(TlsStream::negotiated).cloned(),
                local: stream.local_addr(),
                peer: stream.peer_addr(),
            },
            core: RefCell::new(ConnectionState::new(stream, role)),
        })
    }

    /// Drives the connection: ready with a request of a client, or with `None` when the connection is over.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<IncomingRequest>> {
        let core = &mut *self.core.borrow_mut();
        remember(&mut core.driver, cx);
        for _ in 0..READS {
            if let Some(asked) = core.next_asked() {
                return Poll::Ready(Some(asked));
            }
            let flushed = core.poll_flush(cx);
            if core.is_over() {
                return flushed.map(|()| None);
            }
            if flushed.is_ready() {
                core.wake_senders(cx);
            } else if core.unwritten() > MOST_ANSWERS {
                return Poll::Pending;
            }
            ready!(core.poll_read(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Streams that somebody is using.
    pub fn open(&self) -> usize {
        self.core.borrow().flows.len()
    }

    /// Something is there that was not written.
    pub fn has_unwritten(&self) -> bool {
        self.core.borrow().unwritten() > 0
    }

    /// Bytes that went out.
    pub fn written(&self) -> u64 {
        self.core.borrow().written
    }

    /// Bytes of the connection that the peer has not acknowledged, while the stream waits for that: some of them are of the
    /// stream, or it has to wait for room behind those of others.
    pub(super) fn unacked_of(&self, id: u32) -> Option<u64> {
        let core = self.core.borrow();
        let flow = core.flows.get(&id)?;
        let queued = core.stream.as_ref()?.unacked()?;
        // Under TLS what is queued is a little more than what was written.
        let acked = core.written.saturating_sub(queued);
        let is_crowded = flow.is_waiting && core.unwritten() >= MOST_UNWRITTEN;
        (acked < flow.sent_until || is_crowded).then_some(queued + core.unwritten() as u64)
    }

    /// Bytes that the peer has not acknowledged; `None` where the kernel does not say.
    pub fn unacked(&self) -> Option<u64> {
        let core = self.core.borrow();
        let queued = core.stream.as_ref()?.unacked()?;
        Some(queued + core.unwritten() as u64)
    }

    /// Why the connection is over, once it is.
    pub fn fate(&self) -> Option<StreamError> {
        self.core.borrow().fate
    }

    /// Ends the connection when its streams have come to their end. A client is told in two steps, so that the streams that
    /// it has begun meanwhile are served: RFC 9113 section 6.8. The second step is when it answers, or when this is called again.
    pub fn leave(&self) {
        let core = &mut *self.core.borrow_mut();
        match &mut core.role {
            PeerRole::Client(client) if client.leave == GoawayState::None => {
                client.leave = GoawayState::Announced;
                frame::write_goaway(&mut core.out, LARGEST, ErrorCode::NO_ERROR);
                frame::write(&mut core.out, kind::PING, 0, 0, &FAREWELL);
            }
            PeerRole::Client(_) => core.take_leave(),
            PeerRole::Backend(backend) if !backend.is_leaving => {
                backend.is_leaving = true;
                frame::write_goaway(&mut core.out, 0, ErrorCode::NO_ERROR);
            }
            PeerRole::Backend(_) => {}
        }
        core.wake();
    }

    /// Gives the stream back at the end.
    pub fn take_stream(&self) -> Option<Stream> {
        let core = &mut *self.core.borrow_mut();
        core.lose();
        core.stream.take()
    }

    /// The peer's settings are in force.
    pub(super) fn is_greeted(&self) -> bool {
        self.core.borrow().is_greeted
    }

    /// The backend at the other end has sent its settings, and allows a stream.
    pub(super) fn takes_streams(&self) -> bool {
        self.is_greeted() && self.backend(|backend| backend.most) != Some(Some(0))
    }

    /// Streams beside `id` that were not ended.
    pub(super) fn live_beside(&self, id: u32) -> usize {
        let core = self.core.borrow();
        let is_live = |(other, flow): &(&u32, &StreamEntry)| **other != id && flow.ended.is_none();
        core.flows.iter().filter(is_live).count()
    }

    /// True if nothing of the stream was received, except maybe its end.
    pub(super) fn is_untouched(&self, id: u32) -> bool {
        let core = self.core.borrow();
        let flow = core.flows.get(&id);
        flow.is_some_and(|flow| {
            flow.interim_responses == 0 && !flow.reader.is_begun() && !flow.is_opened
        })
    }

    /// What is known of the backend at the other end.
    pub(super) fn backend<T>(&self, look: impl FnOnce(&BackendPeer) -> T) -> Option<T> {
        match &self.core.borrow().role {
            PeerRole::Backend(backend) => Some(look(backend)),
            PeerRole::Client(_) => None,
        }
    }

    /// For how long nothing has come from the backend, counted from when it was next asked for something.
    pub(super) fn silence(&self) -> Duration {
        let asked = self.backend(|backend| backend.asked).flatten();
        asked.map_or(Duration::ZERO, |asked| {
            clock::now().saturating_duration_since(asked)
        })
    }

    /// Asks the backend for a sign of life: an acknowledgement of settings, or any other frame. Servers of gRPC would hold a PING
    /// without calls against us.
    pub(super) fn probe(&self) {
        let core = &mut *self.core.borrow_mut();
        if let PeerRole::Backend(backend) = &mut core.role
            && backend.probed.is_none()
        {
            backend.probed = Some(clock::now());
            frame::write_settings(&mut core.out, &[]);
            core.wake();
        }
    }

    /// Begins a stream to a backend with the fields that `write` gives; gives its id.
    pub(super) fn begin(
        &self,
        expected: ResponseExpectation,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u32, StreamError> {
        let core = &mut *self.core.borrow_mut();
        if let Some(fate) = core.fate {
            return Err(fate);
        }
        let id = if core.last == 0 { 1 } else { core.last + 2 };
        match &mut core.role {
            PeerRole::Backend(backend) if !backend.is_leaving && id <= LARGEST => {
                if backend.asked.is_none() {
                    backend.asked = Some(clock::now());
                }
            }
            _ => return Err(StreamError::Unseen(ErrorCode::NO_ERROR)),
        }
        core.last = id;
        let mut flow = core.new_flow();
        flow.expected = expected;
        core.flows.insert(id, flow);
        core.flood_guard.credit_request();
        core.send_fields(id, ends, write)?;
        Ok(id)
    }

    /// Ready when something of the stream can be taken, or its end.
    pub(super) fn poll_ready(&self, id: u32, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.flows.get_mut(&id) else {
            return Poll::Ready(Err(StreamError::Lost));
        };
        if flow.reader.has_bytes() || flow.reader.is_ended() {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = flow.ended.or(flow.reader.refused()) {
            return Poll::Ready(Err(ended));
        }
        remember(&mut flow.read, cx);
        Poll::Pending
    }

    /// Length that the peer has declared of a body that is given out in chunks.
    pub(super) fn declared_length(&self, id: u32) -> Option<u64> {
        self.core.borrow().flows.get(&id)?.reader.declared()
    }

    /// Gives what has come on the stream; false at the end.
    pub(super) fn take(&self, id: u32, target: &mut ReadBuf<'_>) -> bool {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.flows.get_mut(&id) else {
            return false;
        };
        let before = target.filled().len();
        let content = flow.reader.take(target);
        if content > 0 {
            core.give_to(id, content);
            core.give(content);
        }
        target.filled().len() > before
    }

    /// Ready when the stream is no more, whoever ended it.
    pub(super) fn poll_gone(&self, id: u32, cx: &Context<'_>) -> Poll<StreamError> {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.flows.get_mut(&id) else {
            return Poll::Ready(StreamError::Lost);
        };
        if let Some(ended) = flow.ended {
            return Poll::Ready(ended);
        }
        remember(&mut flow.gone, cx);
        Poll::Pending
    }

    /// Ready when so much content can be sent, more than nothing.
    pub(super) fn poll_room(&self, id: u32, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.core.borrow_mut().poll_room(id, true, cx)
    }

    /// Ready when fields can be sent, which no window holds up.
    pub(super) fn poll_room_for_fields(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.core.borrow_mut().poll_room(id, false, cx)
    }

    /// Fields can be sent.
    pub(super) fn has_room_for_fields(&self) -> bool {
        self.core.borrow().unwritten() < MOST_UNWRITTEN
    }

    /// The peer has long not taken what there is for it.
    pub(super) fn is_clogged(&self) -> bool {
        self.core.borrow().unwritten() > MOST_HEADS
    }

    /// The peer has long opened its window for no content.
    pub(super) fn is_stalled(&self) -> bool {
        let since = self.core.borrow().stalled_since;
        since.is_some_and(|since| clock::now().saturating_duration_since(since) >= STALL_TIME)
    }

    /// Sends a head or trailers, which `write` gives as a field block.
    pub(super) fn send_fields(
        &self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), StreamError> {
        self.core.borrow_mut().send_fields(id, ends, write)
    }

    /// Sends content: `fill` appends as much as the room allows that it is told, and says whether the stream ends with it.
    pub(super) fn send_data<T>(
        &self,
        id: u32,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        self.core.borrow_mut().send_data(id, fill)
    }

    /// The stream is not used any more. It is reset with `code` if we have not come to our end, and if the peer has not
    /// because nobody wants the rest.
    pub(super) fn close(&self, id: u32, code: ErrorCode) {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.discard(id) else {
            return;
        };
        let rest = match core.role {
            // RFC 9113 section 8.1: the response is whole, whatever was still to come of the request.
            PeerRole::Client(_) => ErrorCode::NO_ERROR,
            PeerRole::Backend(_) => ErrorCode::CANCEL,
        };
        let code = match (flow.sent_end, flow.got_end) {
            _ if flow.ended.is_some() => None,
            (true, true) => None,
            (true, false) => Some(rest),
            (false, _) => Some(code),
        };
        if let Some(code) = code {
            // The peer has done nothing wrong, so the reset is not charged.
            core.write_reset(id, code);
        }
        core.wake();
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
