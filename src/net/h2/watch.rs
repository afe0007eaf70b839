//! Looks at the frames of an h2 connection as they pass, and keeps account of those that cost us and not the peer.
//!
//! The h2 crate bounds memory; this bounds work: pings, settings, priorities, empty frames and resets are paid for from an
//! allowance that honest traffic keeps full (RFC 9113 section 10.5).

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{base::clock, net::stream::Stream};

/// What a connection may spend at once. 200 streams can be reset in a row: a browser that leaves a page does half of that.
const ALLOWANCE: i64 = 2_000;
/// What it gets back in a second.
const REFILL: i64 = 100;
/// Most heads and trailers on one stream of a backend: two more than the interim responses that are passed on.
const SECTIONS: u32 = 18;
/// Length of a frame's header.
const HEADER: usize = 9;
/// Length of what a client sends first, RFC 9113 section 3.4.
const PREFACE: usize = 24;

/// The account of one connection.
#[derive(Debug)]
pub struct Account {
    left: Cell<i64>,
    filled: Cell<Instant>,
    written: Cell<u64>,
    /// The stream, when the connection has given it back.
    stream: RefCell<Option<Stream>>,
    /// What is seen of a backend; `None` towards clients.
    backend: Option<Box<Backend>>,
}

/// What the frames of a backend have told.
#[derive(Debug, Default)]
struct Backend {
    has_settings: Cell<bool>,
    is_leaving: Cell<bool>,
    /// When the first head went out since anything came.
    asked: Cell<Option<Instant>>,
    /// The streams that exchanges are using, and how many heads and trailers came on each.
    sections: RefCell<HashMap<u32, u32>>,
}

impl Account {
    fn pay(&self, cost: i64) {
        self.left.set((self.left.get() - cost).min(ALLOWANCE));
    }

    /// Nothing is left: the connection is to be closed with ENHANCE_YOUR_CALM.
    pub fn is_spent(&self) -> bool {
        if self.left.get() >= 0 {
            return false;
        }
        let now = clock::now();
        let passed = now.saturating_duration_since(self.filled.get());
        let seconds = i64::try_from(passed.as_secs()).unwrap_or(ALLOWANCE);
        if seconds > 0 {
            self.filled.set(now);
            self.pay(-seconds.min(ALLOWANCE) * REFILL);
        }
        self.left.get() < 0
    }

    /// The backend has sent its settings, which are in force: RFC 9113 sections 3.4 and 6.5.3.
    pub fn has_settings(&self) -> bool {
        let backend = self.backend.as_ref();
        backend.is_some_and(|backend| backend.has_settings.get())
    }

    /// The backend takes no more streams, RFC 9113 section 6.8.
    pub fn is_leaving(&self) -> bool {
        let backend = self.backend.as_ref();
        backend.is_some_and(|backend| backend.is_leaving.get())
    }

    /// For how long nothing has come from the backend, counted from when it was next asked for something.
    pub fn silence(&self) -> Duration {
        let asked = self.backend.as_ref().and_then(|it| it.asked.get());
        asked.map_or(Duration::ZERO, |asked| {
            clock::now().saturating_duration_since(asked)
        })
    }

    /// An exchange uses stream `id` of a backend.
    pub fn stream_begins(&self, id: u32) {
        if let Some(backend) = &self.backend {
            backend.sections.borrow_mut().insert(id, 0);
        }
    }

    /// It does so no more.
    pub fn stream_ends(&self, id: u32) {
        if let Some(backend) = &self.backend {
            backend.sections.borrow_mut().remove(&id);
        }
    }

    /// A frame from the peer.
    fn came(&self, frame: Frame) {
        self.pay(cost_in(frame));
        if let Some(backend) = &self.backend {
            self.heard(backend, frame);
        }
    }

    fn heard(&self, backend: &Backend, frame: Frame) {
        backend.asked.set(None);
        if frame.kind == GOAWAY {
            backend.is_leaving.set(true);
        }
        let mut sections = backend.sections.borrow_mut();
        let Some(count) = sections
            .get_mut(&frame.stream)
            .filter(|_| frame.kind == HEADERS)
        else {
            return;
        };
        *count += 1;
        if *count > SECTIONS {
            self.pay(ALLOWANCE);
        }
    }

    /// A frame of ours.
    fn went(&self, frame: Frame) {
        self.pay(cost_out(frame));
        let Some(backend) = &self.backend else {
            return;
        };
        match frame.kind {
            SETTINGS if frame.flags & ACK != 0 => backend.has_settings.set(true),
            HEADERS if backend.asked.get().is_none() => backend.asked.set(Some(clock::now())),
            _ => {}
        }
    }

    /// Bytes that went out.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// The stream, after the [`Watched`] that had it was dropped.
    pub fn take_stream(&self) -> Option<Stream> {
        self.stream.borrow_mut().take()
    }
}

/// Finds the frames in one direction.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes that belong to no header.
    skip: usize,
}

/// The header of a frame, RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
    stream: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip >= bytes.len() {
                self.skip -= bytes.len();
                return;
            }
            bytes = bytes.get(self.skip..).unwrap_or_default();
            self.skip = 0;
            let room = self.header.get_mut(self.have..).unwrap_or_default();
            let count = room.len().min(bytes.len());
            room.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            bytes = bytes.get(count..).unwrap_or_default();
            self.have += count;
            if self.have == HEADER {
                self.have = 0;
                let [high, middle, low, kind, flags, stream @ ..] = self.header;
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.skip = length;
                seen(Frame {
                    kind,
                    flags,
                    length,
                    stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
                });
            }
        }
    }
}

/// What a frame of the peer costs, and less than nothing for one that is work asked for or done; RFC 9113 section 6.
fn cost_in(frame: Frame) -> i64 {
    match frame.kind {
        DATA if frame.length > 0 => -1,
        DATA if frame.flags & END_STREAM == 0 => 10,
        // Heads are limited by the number of streams, those of backends by `SECTIONS` too.
        DATA | HEADERS => 0,
        // The work for the stream was for nothing.
        RST_STREAM => 10,
        // Each is answered.
        SETTINGS | PING if frame.flags & ACK == 0 => 5,
        CONTINUATION => 20,
        // PRIORITY, WINDOW_UPDATE, acknowledgements, unknown ones.
        _ => 1,
    }
}

/// Each frame of a response may be followed by two window updates and a ping. Our own resets cost as much as theirs: a client
/// can provoke them.
fn cost_out(frame: Frame) -> i64 {
    match frame.kind {
        DATA | HEADERS => -7,
        RST_STREAM => 10,
        _ => 0,
    }
}

/// A stream whose frames are looked at. Some of it may have been read before.
#[derive(Debug)]
pub struct Watched {
    stream: Option<Stream>,
    before: Vec<u8>,
    incoming: Frames,
    outgoing: Frames,
    account: Rc<Account>,
}

impl Watched {
    /// Watches `stream`, of which `before` has been read already, beginning with the preface.
    pub fn new(stream: Stream, before: Vec<u8>) -> (Self, Rc<Account>) {
        let mut watched = Self::begin(stream, None);
        watched.0.before = before;
        watched.0.incoming.skip = PREFACE;
        watched
    }

    /// Watches a new connection to a backend.
    pub fn of_backend(stream: Stream) -> (Self, Rc<Account>) {
        let mut watched = Self::begin(stream, Some(Box::default()));
        watched.0.outgoing.skip = PREFACE;
        watched
    }

    fn begin(stream: Stream, backend: Option<Box<Backend>>) -> (Self, Rc<Account>) {
        let account = Rc::new(Account {
            left: Cell::new(ALLOWANCE),
            filled: Cell::new(clock::now()),
            written: Cell::new(0),
            stream: RefCell::default(),
            backend,
        });
        let watched = Self {
            stream: Some(stream),
            before: Vec::new(),
            incoming: Frames::default(),
            outgoing: Frames::default(),
            account: Rc::clone(&account),
        };
        (watched, account)
    }

    fn wrote(&mut self, parts: &[IoSlice<'_>], mut count: usize) {
        self.account
            .written
            .set(self.account.written.get() + count as u64);
        for part in parts {
            let here = part.get(..count).unwrap_or(part);
            count -= here.len();
            let account = &self.account;
            self.outgoing.feed(here, |frame| account.went(frame));
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        *self.account.stream.borrow_mut() = self.stream.take();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.account.is_spent() {
            // The driver sees it, and nothing more is read.
            return Poll::Pending;
        }
        let start = buffer.filled().len();
        if this.before.is_empty() {
            ready!(this.stream()?.poll_read(cx, buffer))?;
        } else {
            let count = this.before.len().min(buffer.remaining());
            buffer.put_slice(this.before.get(..count).unwrap_or_default());
            this.before.drain(..count);
            if this.before.is_empty() {
                this.before = Vec::new();
            }
        }
        let new = buffer.filled().get(start..).unwrap_or_default();
        let account = &this.account;
        this.incoming.feed(new, |frame| account.came(frame));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(this.stream()?.poll_write(cx, bytes))?;
        this.wrote(&[IoSlice::new(bytes)], count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(this.stream()?.poll_write_vectored(cx, parts))?;
        this.wrote(parts, count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, flags: u8, length: usize) -> Frame {
        Frame {
            kind,
            flags,
            length,
            stream: 1,
        }
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        let mut bytes = (frame.length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([frame.kind, frame.flags]);
        bytes.extend(frame.stream.to_be_bytes());
        bytes.resize(HEADER + frame.length, 0xee);
        bytes
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_split() {
        let sent = [
            (0, 1, 300),
            (8, 0, 4),
            (1, 5, 0),
            (9, 4, 77),
            (0, 0, 70_000),
        ];
        let sent = sent.map(|(kind, flags, length)| header(kind, flags, length));
        let bytes: Vec<u8> = sent.iter().flat_map(bytes).collect();
        for size in [1, 2, 8, 9, 10, 100, 1_000, bytes.len()] {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for part in bytes.chunks(size) {
                frames.feed(part, |frame| seen.push(frame));
            }
            assert_eq!(seen, sent, "{size}");
        }
    }

    #[tokio::test]
    async fn settings_are_there_when_we_have_acknowledged_them() {
        let (_peer, stream) = crate::net::fixture::pair().await;
        let (_watched, account) = Watched::of_backend(stream);
        account.went(header(SETTINGS, 0, 6));
        // The payload may be still to come.
        account.came(header(SETTINGS, 0, 6));
        account.came(header(SETTINGS, ACK, 0));
        assert!(!account.has_settings());
        account.went(header(SETTINGS, ACK, 0));
        assert!(account.has_settings());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_comes_back_with_time_and_with_responses() {
        let (_peer, stream) = crate::net::fixture::pair().await;
        let (_watched, account) = Watched::new(stream, Vec::new());
        let reset = cost_in(header(3, 0, 4));
        for _ in 0..200 {
            account.pay(reset);
            assert!(!account.is_spent());
        }
        account.pay(reset);
        assert!(account.is_spent());
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..9 {
            assert!(!account.is_spent());
            account.pay(reset);
        }
        account.pay(reset);
        assert!(account.is_spent(), "a second is worth ten");
        account.pay(cost_out(header(1, 4, 50)) + cost_out(header(0, 1, 50)));
        assert!(!account.is_spent(), "a response is worth one");
    }

    #[test]
    fn what_a_client_does_for_a_response_costs_less_than_the_response_gives() {
        let honest = 2 * cost_in(header(8, 0, 4)) + cost_in(header(6, 0, 8));
        assert!(honest + cost_out(header(0, 0, 20)) <= 0);
        assert!(cost_in(header(0, 0, 20)) < 0, "a part of an upload");
        assert_eq!(cost_in(header(0, 1, 0)), 0, "the end of one");
        assert!(cost_in(header(0, 0, 0)) > 0);
    }
}
