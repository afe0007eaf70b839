//! One HTTP/2 connection, of a client or to a backend: what its streams share, and who drives it.
//!
//! Streams append frames to one buffer and wake the driver, which writes what many of them have said at once; it reads, and
//! wakes those that something has come for. Whoever sends is held up by the peer's windows and by that buffer, whoever is
//! sent to by ours. With nothing on its way a connection holds no buffer.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use tokio::io::{AsyncWrite, ReadBuf};

use super::{
    Ended,
    account::Account,
    backend::Expected,
    flow::{Flow, Inward, Outward, remember},
    incoming::Asked,
};
use crate::{
    base::{clock, rng::Random},
    http1::{request::Limits, response::MAX_HEAD},
    http2::{
        frame::{self, Code, Frame, INITIAL_WINDOW, LARGEST, MAX_PAYLOAD, flag, kind, setting},
        hpack::{self, Decoder},
    },
    net::{
        buffer::{Buffer, Size},
        stream::Stream,
        tls::{Agreed, Tls},
    },
};

/// Bytes of frames that wait to be written until nobody may add to them.
const MOST_UNWRITTEN: usize = 64 << 10;
/// The same until nothing more is read: what is read makes frames as well.
const MOST_ANSWERS: usize = 4 * MOST_UNWRITTEN;
/// The same until no exchange begins on a connection: heads wait for no room, and this many that nobody takes are no burst.
const MOST_HEADS: usize = 4 * MOST_ANSWERS;
/// Room for frames that a connection in use keeps.
const KEPT: usize = 2 * MOST_UNWRITTEN;
/// Most reads in a row before others have their turn.
const READS: usize = 16;
/// Bytes of a message that a stream may hold unread.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a client's connection.
const CLIENT_WINDOW: u32 = 1 << 20;
/// The same for those of a backend's: those that nobody reads must not hold up the others.
const BACKEND_WINDOW: u32 = super::backend::STREAMS as u32 * STREAM_WINDOW;
/// Streams whose frames may still be on their way after we have ended them.
const REMEMBERED: usize = 256;
/// Payload of the PING that a client answers when it has seen our GOAWAY.
pub(super) const FAREWELL: [u8; 8] = *b"farewell";

/// What the streams of a connection can know of it.
#[derive(Debug)]
pub(super) struct Facts {
    pub agreed: Option<Agreed>,
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) facts: Facts,
    pub(super) core: RefCell<Core>,
}

/// How far we have taken leave of a client, RFC 9113 section 6.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    None,
    /// The client was told that there will be an end.
    Announced,
    /// No more streams.
    Taken,
}

/// A client at the other end.
#[derive(Debug)]
pub(super) struct Client {
    pub limits: Limits,
    /// Most streams at a time.
    pub most: usize,
    /// For the keys of WebSockets.
    pub random: Random,
    /// Requests that nobody has taken up.
    pub asked: VecDeque<Asked>,
    pub leave: Leave,
    /// The client has taken leave.
    pub is_leaving: bool,
}

/// A backend at the other end.
#[derive(Debug, Default)]
pub(super) struct Backend {
    /// Most streams at a time, as far as it has said.
    pub most: Option<u32>,
    /// It takes extended CONNECT, RFC 8441 section 3.
    pub takes_connect: bool,
    pub is_leaving: bool,
    /// When the first head went out since anything came.
    pub asked: Option<Instant>,
}

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Role {
    Client(Box<Client>),
    Backend(Backend),
}

/// A field block that goes on in another frame.
#[derive(Debug)]
pub(super) struct Block {
    pub stream: u32,
    pub ends: bool,
    pub bytes: Vec<u8>,
    pub frames: usize,
}

/// What is left of a DATA frame whose beginning has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub stream: u32,
    pub left: usize,
    pub padding: usize,
    pub ends: bool,
    /// Nobody wants it; its window has been opened again.
    pub is_waste: bool,
}

/// Hashes ids of streams, which follow each other.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "ids are hashed as numbers");
    }

    fn write_u32(&mut self, id: u32) {
        // By the golden ratio: the table looks at the upper bits and at the lower ones.
        self.0 = u64::from(id)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

/// What changes of a connection.
#[derive(Debug)]
pub(super) struct Core {
    pub stream: Option<Stream>,
    pub role: Role,
    /// Bytes of the preface that have not come.
    pub preface: usize,
    /// The peer's settings have come.
    pub is_greeted: bool,
    /// What was read of a frame that is not whole.
    unread: Vec<u8>,
    pub part: Option<Part>,
    pub block: Option<Box<Block>>,
    pub decoder: Decoder,
    pub account: Account,
    pub inward: Inward,
    pub outward: Outward,
    /// What each new stream may send.
    pub initial: u32,
    pub flows: HashMap<u32, Flow, BuildHasherDefault<IdHasher>>,
    /// The highest id of a stream that has begun.
    pub last: u32,
    /// Ended by us, and maybe not yet by the peer.
    pub remembered: VecDeque<u32>,
    /// Frames, written up to `sent`.
    pub out: Vec<u8>,
    sent: usize,
    /// No block has been written.
    is_first: bool,
    written: u64,
    /// Streams that wait to send something.
    waiting: VecDeque<u32>,
    driver: Option<Waker>,
    /// The connection is over, but for what is still to be written.
    pub fate: Option<Ended>,
}

/// What streams with frames on a connection can be told by.
impl Connection {
    /// The connection of a client on `stream`, of which `read` has been read already, beginning with the preface. Of its
    /// streams `most` may be open at a time; `random` makes keys of WebSockets.
    pub fn of_client(
        stream: Stream,
        read: &[u8],
        limits: Limits,
        most: usize,
        random: Random,
    ) -> Rc<Self> {
        let role = Role::Client(Box::new(Client {
            limits,
            most,
            random,
            asked: VecDeque::new(),
            leave: Leave::None,
            is_leaving: false,
        }));
        let this = Self::new(stream, role, CLIENT_WINDOW);
        {
            let core = &mut *this.core.borrow_mut();
            core.preface = frame::PREFACE.len();
            core.greet(
                &[
                    (setting::MAX_CONCURRENT_STREAMS, most as u32),
                    (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                    // Twice what is allowed, so that we give the answer to what is too large, and log it.
                    (setting::MAX_HEADER_LIST_SIZE, 2 * limits.bytes as u32),
                    (setting::ENABLE_CONNECT_PROTOCOL, 1),
                ],
                CLIENT_WINDOW,
            );
            core.take_in(read);
        }
        this
    }

    /// A new connection to a backend on `stream`.
    pub(super) fn of_backend(stream: Stream) -> Rc<Self> {
        let this = Self::new(stream, Role::Backend(Backend::default()), BACKEND_WINDOW);
        {
            let core = &mut *this.core.borrow_mut();
            core.out.extend_from_slice(frame::PREFACE);
            core.greet(
                &[
                    (setting::ENABLE_PUSH, 0),
                    (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                    (setting::MAX_HEADER_LIST_SIZE, 2 * MAX_HEAD as u32),
                ],
                BACKEND_WINDOW,
            );
        }
        this
    }

    fn new(stream: Stream, role: Role, window: u32) -> Rc<Self> {
        let (inward, _) = Inward::of_connection(window);
        Rc::new(Self {
            facts: Facts {
                agreed: stream.tls().map(Tls::agreed).cloned(),
                local: stream.local_addr(),
                peer: stream.peer_addr(),
            },
            core: RefCell::new(Core {
                stream: Some(stream),
                role,
                preface: 0,
                is_greeted: false,
                unread: Vec::new(),
                part: None,
                block: None,
                decoder: Decoder::default(),
                account: Account::new(),
                inward,
                outward: Outward::new(INITIAL_WINDOW),
                initial: INITIAL_WINDOW,
                flows: HashMap::default(),
                last: 0,
                remembered: VecDeque::new(),
                out: Vec::new(),
                sent: 0,
                is_first: true,
                written: 0,
                waiting: VecDeque::new(),
                driver: None,
                fate: None,
            }),
        })
    }

    /// Drives the connection: ready with a request of a client, or with `None` when the connection is over.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Asked>> {
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

    /// Why the connection is over, once it is.
    pub fn fate(&self) -> Option<Ended> {
        self.core.borrow().fate
    }

    /// Ends the connection when its streams have come to their end. A client is told in two steps, so that the streams that
    /// it has begun meanwhile are served: RFC 9113 section 6.8.
    pub fn leave(&self) {
        let core = &mut *self.core.borrow_mut();
        match &mut core.role {
            Role::Client(client) if client.leave == Leave::None => {
                client.leave = Leave::Announced;
                frame::write_goaway(&mut core.out, LARGEST, Code::NO_ERROR);
                frame::write(&mut core.out, kind::PING, 0, 0, &FAREWELL);
            }
            Role::Backend(backend) if !backend.is_leaving => {
                backend.is_leaving = true;
                frame::write_goaway(&mut core.out, 0, Code::NO_ERROR);
            }
            _ => {}
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

    /// What is known of the backend at the other end.
    pub(super) fn backend<T>(&self, look: impl FnOnce(&Backend) -> T) -> Option<T> {
        match &self.core.borrow().role {
            Role::Backend(backend) => Some(look(backend)),
            Role::Client(_) => None,
        }
    }

    /// For how long nothing has come from the backend, counted from when it was next asked for something.
    pub(super) fn silence(&self) -> Duration {
        let asked = self.backend(|backend| backend.asked).flatten();
        asked.map_or(Duration::ZERO, |asked| {
            clock::now().saturating_duration_since(asked)
        })
    }

    /// Begins a stream to a backend with the fields that `write` gives; gives its id.
    pub(super) fn begin(
        &self,
        expected: Expected,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<u32, Ended> {
        let core = &mut *self.core.borrow_mut();
        if let Some(fate) = core.fate {
            return Err(fate);
        }
        let id = if core.last == 0 { 1 } else { core.last + 2 };
        match &mut core.role {
            Role::Backend(backend) if !backend.is_leaving && id <= LARGEST => {
                if backend.asked.is_none() {
                    backend.asked = Some(clock::now());
                }
            }
            _ => return Err(Ended::Unseen(Code::NO_ERROR)),
        }
        core.last = id;
        let mut flow = Flow::new(STREAM_WINDOW, Outward::new(core.initial));
        flow.expected = expected;
        core.flows.insert(id, flow);
        core.send_fields(id, ends, write)?;
        Ok(id)
    }

    /// Ready when something of the stream can be taken, or its end.
    pub(super) fn poll_ready(&self, id: u32, cx: &Context<'_>) -> Poll<Result<(), Ended>> {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.flows.get_mut(&id) else {
            return Poll::Ready(Err(Ended::Lost));
        };
        if flow.reader.has_bytes() || flow.reader.is_ended() {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = flow.ended {
            return Poll::Ready(Err(ended));
        }
        remember(&mut flow.read, cx);
        Poll::Pending
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
            let opens = !flow.got_end && flow.ended.is_none();
            if let Some(more) = flow.inward.give(content).filter(|_| opens) {
                frame::write_u32(&mut core.out, kind::WINDOW_UPDATE, id, more);
                core.wake();
            }
            core.give(content);
        }
        target.filled().len() > before
    }

    /// Ready when the stream is no more, whoever ended it.
    pub(super) fn poll_gone(&self, id: u32, cx: &Context<'_>) -> Poll<Ended> {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.flows.get_mut(&id) else {
            return Poll::Ready(Ended::Lost);
        };
        if let Some(ended) = flow.ended {
            return Poll::Ready(ended);
        }
        remember(&mut flow.gone, cx);
        Poll::Pending
    }

    /// Ready when so much content can be sent, more than nothing.
    pub(super) fn poll_room(&self, id: u32, cx: &Context<'_>) -> Poll<Result<(), Ended>> {
        self.core.borrow_mut().poll_room(id, true, cx)
    }

    /// Ready when fields can be sent, which no window holds up.
    pub(super) fn poll_room_for_fields(
        &self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Ended>> {
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

    /// Sends a head or trailers, which `write` gives as a field block.
    pub(super) fn send_fields(
        &self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Ended> {
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
    pub(super) fn close(&self, id: u32, code: Code) {
        let core = &mut *self.core.borrow_mut();
        let Some(flow) = core.discard(id) else {
            return;
        };
        let rest = match core.role {
            // RFC 9113 section 8.1: the response is whole, whatever was still to come of the request.
            Role::Client(_) => Code::NO_ERROR,
            Role::Backend(_) => Code::CANCEL,
        };
        let code = match (flow.sent_end, flow.got_end) {
            _ if flow.ended.is_some() => None,
            (true, true) => None,
            (true, false) => Some(rest),
            (false, _) => Some(code),
        };
        if let Some(code) = code {
            core.write_reset(id, code);
            // That we do not want an answer any more is not the doing of the backend.
            if matches!(core.role, Role::Client(_)) {
                core.account.pay_reset();
            }
        }
        core.wake();
    }
}

impl Core {
    fn greet(&mut self, settings: &[(u16, u32)], window: u32) {
        frame::write_settings(&mut self.out, settings);
        let (_, more) = Inward::of_connection(window);
        frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
    }

    pub(super) fn wake(&self) {
        self.driver.iter().for_each(Waker::wake_by_ref);
    }

    fn unwritten(&self) -> usize {
        self.out.len() - self.sent
    }

    fn next_asked(&mut self) -> Option<Asked> {
        loop {
            let Role::Client(client) = &mut self.role else {
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

    fn is_over(&self) -> bool {
        self.fate.is_some()
            || self.flows.is_empty()
                && match &self.role {
                    Role::Client(client) => client.leave == Leave::Taken || client.is_leaving,
                    Role::Backend(backend) => backend.is_leaving,
                }
    }

    /// Writes what is there.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
        if let Role::Client(client) = &mut self.role {
            client.asked = VecDeque::new();
        }
    }

    /// Reads once, and does what the frames say.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(());
        };
        let mut buffer = Buffer::take(Size::Medium);
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
    fn take_in(&mut self, bytes: &[u8]) {
        let used = self.digest(bytes);
        if self.fate.is_none() {
            self.unread = bytes.get(used..).unwrap_or_default().to_vec();
        }
    }

    /// Lets some of those send who wait for room: as many as can use it. The others have their turn when these have had
    /// theirs.
    fn wake_senders(&mut self, cx: &Context<'_>) {
        let is_shut = self.outward.room() == 0;
        let mut most = MOST_UNWRITTEN / MAX_PAYLOAD;
        let mut left = self.waiting.len();
        while most > 0
            && left > 0
            && let Some(id) = self.waiting.pop_front()
        {
            left -= 1;
            let Some(flow) = self.flows.get_mut(&id) else {
                continue;
            };
            if is_shut && flow.has_content {
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
    fn lose(&mut self) {
        self.end(Ended::Lost);
        self.out = Vec::new();
        self.sent = 0;
    }

    /// We end the connection: the peer has done what it may not.
    pub(super) fn fail(&mut self, code: Code) {
        if self.fate.is_none() {
            let last = match self.role {
                Role::Client(_) => self.last,
                Role::Backend(_) => 0,
            };
            frame::write_goaway(&mut self.out, last, code);
            self.end(Ended::Failed(code));
        }
    }

    /// The connection is over, but for what is still to be written.
    pub(super) fn end(&mut self, why: Ended) {
        self.fate.get_or_insert(why);
        self.flows.values_mut().for_each(|flow| flow.end(why));
        self.unread = Vec::new();
        self.block = None;
    }

    /// So much content has been taken or let go.
    pub(super) fn give(&mut self, count: usize) {
        if let Some(more) = self.inward.give(count) {
            frame::write_u32(&mut self.out, kind::WINDOW_UPDATE, 0, more);
            self.wake();
        }
    }

    /// Ends a stream. Frames for it may still be on their way.
    pub(super) fn write_reset(&mut self, id: u32, code: Code) {
        frame::write_u32(&mut self.out, kind::RST_STREAM, id, code.0);
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
    }

    /// Forgets a stream, and what nobody has read of it.
    fn discard(&mut self, id: u32) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.give(flow.reader.unread());
        Some(flow)
    }

    fn sending(&mut self, id: u32) -> Result<&mut Flow, Ended> {
        let flow = self.flows.get_mut(&id).ok_or(Ended::Lost)?;
        flow.ended.map_or(Ok(flow), Err)
    }

    fn send_fields(
        &mut self,
        id: u32,
        ends: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Ended> {
        self.sending(id)?.sent_end |= ends;
        let is_first = std::mem::take(&mut self.is_first);
        frame::write_fields(&mut self.out, id, ends, |out| {
            if is_first {
                hpack::begin(out);
            }
            write(out);
        });
        self.account.earn_head();
        self.wake();
        Ok(())
    }

    fn send_data<T>(
        &mut self,
        id: u32,
        fill: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        let (own, all) = (
            self.outward.room(),
            MOST_UNWRITTEN.saturating_sub(self.unwritten()),
        );
        let flow = self.sending(id).map_err(gone)?;
        let room = flow.outward.room().min(own).min(all).min(MAX_PAYLOAD);
        let start = self.out.len();
        self.out.extend_from_slice(&[0; frame::HEADER]);
        let filled = fill(&mut self.out, room);
        let length = self.out.len() - start - frame::HEADER;
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
        if let Some(place) = self.out.get_mut(start..start + frame::HEADER) {
            place.copy_from_slice(&header.bytes());
        }
        self.outward.take(length);
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.outward.take(length);
            flow.sent_end |= ends;
        }
        self.account.earn();
        self.wake();
        Ok(value)
    }

    fn poll_room(
        &mut self,
        id: u32,
        is_content: bool,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Ended>> {
        let is_full = self.unwritten() >= MOST_UNWRITTEN;
        let is_shut = is_content && self.outward.room() == 0;
        let flow = match self.sending(id) {
            Ok(flow) => flow,
            Err(ended) => return Poll::Ready(Err(ended)),
        };
        let is_held = is_content && flow.outward.room() == 0;
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
pub(super) fn gone(ended: Ended) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, ended)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
