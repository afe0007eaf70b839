//! One h2 stream to a backend as a connection that carries one HTTP/1.1 exchange: writing takes the request and sends it as
//! frames, reading gives the response.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::io::ReadBuf;

use super::{
    super::{
        reader::{self, Reader},
        text::Text,
        writer::{self, Writer},
    },
    Link,
    request::{self, Asked, Content},
    response::{self, Expected},
};
use crate::reason::Reason;

/// A stream to a backend.
#[derive(Debug)]
pub struct Outgoing {
    link: Rc<Link>,
    sending: RefCell<Sending>,
    receiving: RefCell<Receiving>,
    /// The backend has said that it did nothing with the request, or never got it.
    unseen: Cell<bool>,
}

#[derive(Debug)]
enum Sending {
    /// What is there of the head, and how to send it.
    Head(Vec<u8>, Box<SendRequest<Bytes>>),
    Body(Writer),
}

/// The response, as far as it was not read.
#[derive(Debug)]
struct Receiving {
    phase: Phase,
    reader: Reader,
    /// Of the stream, for the account of its frames; 0 before it has begun.
    id: u32,
}

#[derive(Debug)]
enum Phase {
    /// There is no stream yet. Somebody may be reading already.
    Unsent(Option<Waker>),
    /// There will be no response that can be read.
    Failed(io::ErrorKind),
    /// The final head is not there.
    Awaited(ResponseFuture, Expected),
    /// It is.
    Begun,
}

impl Outgoing {
    pub(super) fn new(link: Rc<Link>, sender: SendRequest<Bytes>) -> Self {
        link.enter();
        Self {
            link,
            sending: RefCell::new(Sending::Head(Vec::new(), Box::new(sender))),
            receiving: RefCell::new(Receiving {
                phase: Phase::Unsent(None),
                reader: Reader::new(),
                id: 0,
            }),
            unseen: Cell::new(false),
        }
    }

    /// The connection that the stream is on.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The backend cannot have acted on the request, RFC 9113 section 8.7.
    pub fn was_unseen(&self) -> bool {
        self.unseen.get()
    }

    /// Ready when the stream was reset, by whomever, or its connection is no more. A backend that has come to its end may
    /// say that it wants nothing more either (RFC 9113 section 8.1): what it sent before that is there to be read.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.sending.borrow_mut() {
            Sending::Head(..) => Poll::Pending,
            Sending::Body(body) => match ready!(body.poll_gone(cx)) {
                Some(h2::Reason::NO_ERROR) => Poll::Pending,
                _ => Poll::Ready(()),
            },
        }
    }

    /// Ends our direction of a tunnel; a request ends by itself.
    pub fn finish(&self) {
        if let Sending::Body(body) = &mut *self.sending.borrow_mut() {
            body.finish();
        }
    }

    /// Sends the head.
    fn begin(&self, head: &[u8], sender: &mut SendRequest<Bytes>) -> io::Result<Writer> {
        let begun = self.send(head, sender);
        if begun.is_err() {
            let phase = Phase::Failed(io::ErrorKind::BrokenPipe);
            self.receiving.borrow_mut().set(phase);
        }
        begun
    }

    fn send(&self, head: &[u8], sender: &mut SendRequest<Bytes>) -> io::Result<Writer> {
        let Asked {
            request,
            content,
            expected,
        } = request::read(head, self.link.is_secure)?;
        let ends = match &content {
            Content::Nothing => true,
            Content::Body(decoder) => decoder.is_done(),
            Content::Raw => false,
        };
        let sent = sender.send_request(request, ends);
        let (response, stream) = sent.or_else(|error| {
            // Nothing of it has left us.
            self.unseen.set(true);
            self.link.retire();
            writer::gone(error)
        })?;
        let mut receiving = self.receiving.borrow_mut();
        receiving.id = response.stream_id().as_u32();
        self.link.account.stream_begins(receiving.id);
        receiving.set(Phase::Awaited(response, expected));
        Ok(match content {
            Content::Body(decoder) if !ends => Writer::body(stream, decoder),
            Content::Raw => Writer::raw(stream),
            _ => Writer::done(stream),
        })
    }

    /// An error of the stream, as whoever reads it is to see it.
    fn failed(&self, error: h2::Error) -> io::Error {
        if self.link.account.is_spent() {
            return reader::reset(h2::Reason::ENHANCE_YOUR_CALM.into());
        }
        let refused = error.is_remote()
            && error.is_reset()
            && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if refused || error.is_remote() && error.is_go_away() {
            self.unseen.set(true);
        }
        // Any other reset is one of this stream alone.
        if refused || !error.is_reset() {
            self.link.retire();
        }
        reader::reset(error)
    }
}

impl Text for Outgoing {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut receiving = self.receiving.borrow_mut();
        let Receiving { phase, reader, .. } = &mut *receiving;
        if reader.has_bytes() {
            return Poll::Ready(Ok(()));
        }
        match phase {
            Phase::Unsent(waker) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Phase::Failed(kind) => return Poll::Ready(Err((*kind).into())),
            Phase::Awaited(response, expected) => {
                // Interim responses come first; the final one is behind them.
                if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                    let interim = interim.map_err(|error| self.failed(error))?;
                    reader.interim(response::interim(&interim)?);
                    return Poll::Ready(Ok(()));
                }
                let response = ready!(Pin::new(response).poll(cx));
                let (parts, stream) = response.map_err(|error| self.failed(error))?.into_parts();
                // It was taken out: whoever asks again is told the same.
                let expected = std::mem::take(expected);
                *phase = Phase::Failed(io::ErrorKind::InvalidData);
                let (text, body) = response::head(&parts, stream.is_end_stream(), &expected)?;
                reader.begin(text, body, stream);
                *phase = Phase::Begun;
            }
            Phase::Begun => {}
        }
        reader.poll_ready(cx)
    }

    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        self.receiving.borrow_mut().reader.take(target)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sending = self.sending.borrow_mut();
        let mut used = 0;
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            match &mut *sending {
                Sending::Head(head, sender) => {
                    let (whole, count) = writer::collect(head, rest)?;
                    used += count;
                    if let Some(head) = whole {
                        *sending = Sending::Body(self.begin(&head, sender)?);
                    }
                }
                Sending::Body(body) => match body.write(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && used > 0 => break,
                    count => used += count?,
                },
            }
        }
        Ok(used)
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.sending.borrow_mut() {
            Sending::Head(..) => Poll::Ready(Ok(())),
            Sending::Body(body) => body.poll_room(cx),
        }
    }
}

impl Receiving {
    fn set(&mut self, phase: Phase) {
        if let Phase::Unsent(Some(waker)) = std::mem::replace(&mut self.phase, phase) {
            waker.wake();
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Sending::Body(body) = self.sending.get_mut() {
            body.cut(h2::Reason::CANCEL);
        }
        self.link.account.stream_ends(self.receiving.get_mut().id);
        self.link.leave();
    }
}

fn h2_error(error: &io::Error) -> Option<&h2::Error> {
    error.get_ref()?.downcast_ref()
}

/// What an error of HTTP/2 says of a backend that has not answered.
pub(super) fn reason_of(error: &h2::Error) -> Reason {
    let ours = error.is_library() || error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
    // What we have found wrong ourselves, as opposed to what the backend has told, or an end without a word.
    if ours && !error.is_remote() {
        Reason::ProxyProtocolError
    } else {
        Reason::ConnectionTerminated
    }
}

/// What an error of reading an [`Outgoing`] says of the backend.
pub fn fault(error: &io::Error) -> Reason {
    match h2_error(error) {
        Some(error) => reason_of(error),
        None if error.kind() == io::ErrorKind::InvalidData => Reason::ProxyProtocolError,
        None => Reason::ConnectionTerminated,
    }
}

/// True if `error` says that HTTP/2 cannot express the request: nobody's fault but the client's.
pub fn is_inexpressible(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
