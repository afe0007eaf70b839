//! One h2 stream to a backend as a connection that carries one HTTP/1.1 exchange: writing takes the request and sends it as
//! frames, reading gives the response.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::io::ReadBuf;

use super::{
    super::{
        StreamError,
        body_encoder::{self, BodyEncoder},
        http1_adapter::Http1Adapter,
        recv_buffer,
        state::gone,
        stream_entry::wake,
    },
    H2Connection, request,
};
use crate::http2::frame::ErrorCode;

/// A stream to a backend.
#[derive(Debug)]
pub struct OutgoingStream {
    link: Rc<H2Connection>,
    /// Of the stream; `None` before it has begun.
    id: Cell<Option<u32>>,
    sending: RefCell<RequestSendState>,
    /// Who reads before the stream has begun.
    reader: RefCell<Option<Waker>>,
    /// How the backend has refused the request, or why it never got it.
    refusal: Cell<Option<StreamRefusal>>,
    /// Of the stream limit when it began.
    epoch: u32,
    /// A limit of ours has ended it.
    own_limit: Cell<bool>,
}

/// Why a request was not processed, RFC 9113 section 8.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamRefusal {
    /// The connection had no room for it, or ends: another one may take it.
    Full,
    /// The same, said with ENHANCE_YOUR_CALM beside other streams before anything of the stream had come. No RFC promises
    /// that the request was not processed; servers that bound the memory of a connection refuse like this before a handler
    /// sees the request.
    Overloaded,
    /// Nothing else was under way on the connection, or nothing was ever answered on it: the backend takes no requests.
    Outright,
}

#[derive(Debug)]
enum RequestSendState {
    /// What is there of the head.
    Head(Vec<u8>),
    /// The head could not be sent.
    Failed,
    Body(BodyEncoder),
}

impl OutgoingStream {
    pub(super) fn new(link: Rc<H2Connection>) -> Self {
        link.enter();
        let epoch = link.limit.epoch();
        Self {
            link,
            id: Cell::new(None),
            sending: RefCell::new(RequestSendState::Head(Vec::new())),
            reader: RefCell::default(),
            refusal: Cell::new(None),
            epoch,
            own_limit: Cell::new(false),
        }
    }

    /// The connection that the stream is on.
    pub fn link(&self) -> &H2Connection {
        &self.link
    }

    /// Why the request was not processed; `None`: it may have been.
    pub fn refusal(&self) -> Option<StreamRefusal> {
        self.refusal.get()
    }

    /// Length that the backend has declared of the body of its response, which is read in chunks.
    pub fn declared_length(&self) -> Option<u64> {
        self.link.connection.declared_length(self.id.get()?)
    }

    /// A limit of ours has ended the stream, or its connection: the backend may have kept to the protocol.
    pub fn hit_own_limit(&self) -> bool {
        self.own_limit.get()
    }

    /// Ready when the stream was reset, by whomever, or its connection is no more. A backend that has come to its end may
    /// say that it wants nothing more either (RFC 9113 section 8.1): what it sent before that is there to be read.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(id) = self.id.get() else {
            return Poll::Pending;
        };
        match self.link.connection.poll_gone(id, cx) {
            Poll::Ready(StreamError::Reset(ErrorCode::NO_ERROR)) => Poll::Pending,
            gone => gone.map(drop),
        }
    }

    /// As `Stream::unacked`.
    pub fn unacked(&self) -> Option<u64> {
        self.link.connection.unacked_of(self.id.get()?)
    }

    /// Ends our direction of a tunnel; a request ends by itself.
    pub fn finish(&self) {
        if let (RequestSendState::Body(body), Some(id)) =
            (&mut *self.sending.borrow_mut(), self.id.get())
        {
            body.finish(&self.link.connection, id);
        }
    }

    /// Sends the head.
    fn begin(&self, head: &[u8]) -> io::Result<BodyEncoder> {
        request::read(head, |mut asked| {
            let expected = std::mem::take(&mut asked.expected);
            let ends = matches!(asked.content, BodyEncoder::Done);
            let is_secure = self.link.is_secure;
            let write = |out: &mut Vec<u8>| asked.write(out, is_secure);
            let begun = self.link.connection.begin(expected, ends, write);
            let id = begun.map_err(|ended| {
                // Nothing of it has left us.
                self.refusal.set(Some(StreamRefusal::Full));
                self.link.retire();
                gone(ended)
            })?;
            self.id.set(Some(id));
            Ok(asked.content)
        })
    }

    /// An end of the stream, as whoever reads it is to see it.
    fn failed(&self, ended: StreamError) -> io::Error {
        if ended.is_own_limit() {
            self.own_limit.set(true);
        }
        match ended {
            StreamError::Failed(_) | StreamError::Http1 | StreamError::Lost => self.link.retire(),
            StreamError::Unseen(_) | StreamError::Reset(_) if self.refusal.get().is_none() => {
                self.refusal.set(self.refused(ended));
            }
            // Of this stream alone, or known already.
            StreamError::Invalid(_)
            | StreamError::Malformed(_)
            | StreamError::TooLarge(_)
            | StreamError::Unseen(_)
            | StreamError::Reset(_) => {}
        }
        recv_buffer::cut(ended)
    }

    /// What the end of a stream by the backend says of its request.
    fn refused(&self, ended: StreamError) -> Option<StreamRefusal> {
        let (id, link) = (self.id.get()?, &self.link);
        match ended {
            StreamError::Unseen(_) => Some(link.left_out()),
            StreamError::Reset(code @ ErrorCode::REFUSED_STREAM) => {
                Some(link.refused(id, self.epoch, code))
            }
            StreamError::Reset(code @ ErrorCode::ENHANCE_YOUR_CALM)
                if link.connection.live_beside(id) > 0 =>
            {
                let refusal = link.refused(id, self.epoch, code);
                link.connection.is_untouched(id).then_some(refusal)
            }
            _ => None,
        }
    }
}

impl Http1Adapter for OutgoingStream {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(id) = self.id.get() {
            let ready = self.link.connection.poll_ready(id, cx);
            return ready.map_err(|ended| self.failed(ended));
        }
        if matches!(*self.sending.borrow(), RequestSendState::Failed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        *self.reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        let id = self.id.get();
        Ok(id.is_some_and(|id| self.link.connection.take(id, target)))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sending = self.sending.borrow_mut();
        let connection = &self.link.connection;
        let mut used = 0;
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            let written = match (&mut *sending, self.id.get()) {
                (RequestSendState::Body(body), Some(id)) => body.write(connection, id, rest),
                (RequestSendState::Head(head), _) => {
                    let (whole, count) = body_encoder::collect(head, rest)?;
                    if let Some(head) = whole {
                        let begun = self.begin(&head);
                        wake(&mut self.reader.borrow_mut());
                        match begun {
                            Ok(body) => *sending = RequestSendState::Body(body),
                            Err(error) => {
                                *sending = RequestSendState::Failed;
                                return Err(error);
                            }
                        }
                    }
                    Ok(count)
                }
                (RequestSendState::Failed | RequestSendState::Body(_), _) => {
                    Err(io::ErrorKind::BrokenPipe.into())
                }
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && used > 0 => break,
                count => used += count?,
            }
        }
        Ok(used)
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match (&*self.sending.borrow(), self.id.get()) {
            (RequestSendState::Body(body), Some(id)) => {
                body.poll_room(&self.link.connection, id, cx)
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for OutgoingStream {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            self.link.connection.close(id, ErrorCode::CANCEL);
        }
        self.link.leave();
    }
}

/// True if `error` says that HTTP/2 cannot express the request: nobody's fault but the client's.
pub fn is_inexpressible(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
