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
        state::broken_pipe,
        stream_entry::wake,
    },
    H2Connection, request,
};
use crate::http2::frame::ErrorCode;

/// A stream to a backend.
#[derive(Debug)]
pub struct OutgoingStream {
    connection: Rc<H2Connection>,
    /// Of the stream; `None` before it has begun.
    id: Cell<Option<u32>>,
    send_state: RefCell<RequestSendState>,
    /// Who reads before the stream has begun.
    read_waker: RefCell<Option<Waker>>,
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
    pub(super) fn new(connection: Rc<H2Connection>) -> Self {
        connection.add_stream();
        let epoch = connection.stream_limit.epoch();
        Self {
            connection,
            id: Cell::new(None),
            send_state: RefCell::new(RequestSendState::Head(Vec::new())),
            read_waker: RefCell::default(),
            refusal: Cell::new(None),
            epoch,
            own_limit: Cell::new(false),
        }
    }

    /// The connection that the stream is on.
    pub fn connection(&self) -> &H2Connection {
        &self.connection
    }

    /// Why the request was not processed; `None`: it may have been.
    pub fn refusal(&self) -> Option<StreamRefusal> {
        self.refusal.get()
    }

    /// Length that the backend has declared of the body of its response, which is read in chunks.
    pub fn declared_length(&self) -> Option<u64> {
        self.connection.engine.declared_length(self.id.get()?)
    }

    /// A limit of ours has ended the stream, or its connection: the backend may have kept to the protocol.
    pub fn hit_own_limit(&self) -> bool {
        self.own_limit.get()
    }

    /// Ready when the stream was reset, by whomever, or its connection is no more. A backend that has come to its end may
    /// say that it wants nothing more either (RFC 9113 section 8.1): what it sent before that is there to be read.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(id) = self.id.get() else {
            return Poll::Pending;
        };
        match self.connection.engine.poll_closed(id, cx) {
            Poll::Ready(StreamError::Reset(ErrorCode::NO_ERROR)) => Poll::Pending,
            gone => gone.map(drop),
        }
    }

    /// As `Stream::unacked`.
    pub fn unacked(&self) -> Option<u64> {
        self.connection.engine.unacked_on_stream(self.id.get()?)
    }

    /// Ends our direction of a tunnel; a request ends by itself.
    pub fn finish(&self) {
        if let (RequestSendState::Body(body), Some(id)) =
            (&mut *self.send_state.borrow_mut(), self.id.get())
        {
            body.finish(&self.connection.engine, id);
        }
    }

    /// Sends the head.
    fn send_head(&self, head: &[u8]) -> io::Result<BodyEncoder> {
        request::read(head, |mut asked| {
            let expected = std::mem::take(&mut asked.expected);
            let ends = matches!(asked.content, BodyEncoder::Done);
            let is_secure = self.connection.is_secure;
            let write = |out: &mut Vec<u8>| asked.write(out, is_secure);
            let begun = self.connection.engine.open_stream(expected, ends, write);
            let id = begun.map_err(|ended| {
                // Nothing of it has left us.
                self.refusal.set(Some(StreamRefusal::Full));
                self.connection.retire();
                broken_pipe(ended)
            })?;
            self.id.set(Some(id));
            Ok(asked.content)
        })
    }

    /// An end of the stream, as whoever reads it is to see it.
    fn map_error(&self, ended: StreamError) -> io::Error {
        if ended.is_own_limit() {
            self.own_limit.set(true);
        }
        match ended {
            StreamError::Failed(_) | StreamError::Http1 | StreamError::Lost => {
                self.connection.retire();
            }
            StreamError::NotProcessed(_) | StreamError::Reset(_)
                if self.refusal.get().is_none() =>
            {
                self.refusal.set(self.refusal_of(ended));
            }
            // Of this stream alone, or known already.
            StreamError::Invalid(_)
            | StreamError::Malformed(_)
            | StreamError::TooLarge(_)
            | StreamError::NotProcessed(_)
            | StreamError::Reset(_) => {}
        }
        recv_buffer::cut(ended)
    }

    /// What the end of a stream by the backend says of its request.
    fn refusal_of(&self, ended: StreamError) -> Option<StreamRefusal> {
        let (id, connection) = (self.id.get()?, &self.connection);
        match ended {
            StreamError::NotProcessed(_) => Some(connection.on_not_processed()),
            StreamError::Reset(code @ ErrorCode::REFUSED_STREAM) => {
                Some(connection.on_refused(id, self.epoch, code))
            }
            StreamError::Reset(code @ ErrorCode::ENHANCE_YOUR_CALM)
                if connection.engine.other_open_streams(id) > 0 =>
            {
                let refusal = connection.on_refused(id, self.epoch, code);
                connection
                    .engine
                    .has_received_nothing(id)
                    .then_some(refusal)
            }
            _ => None,
        }
    }
}

impl Http1Adapter for OutgoingStream {
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(id) = self.id.get() {
            let ready = self.connection.engine.poll_ready(id, cx);
            return ready.map_err(|ended| self.map_error(ended));
        }
        if matches!(*self.send_state.borrow(), RequestSendState::Failed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        *self.read_waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool> {
        let id = self.id.get();
        Ok(id.is_some_and(|id| self.connection.engine.read(id, target)))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut send_state = self.send_state.borrow_mut();
        let engine = &self.connection.engine;
        let mut used = 0;
        while used < bytes.len() {
            let rest = bytes.get(used..).unwrap_or_default();
            let written = match (&mut *send_state, self.id.get()) {
                (RequestSendState::Body(body), Some(id)) => body.write(engine, id, rest),
                (RequestSendState::Head(head), _) => {
                    let (whole, count) = body_encoder::collect(head, rest)?;
                    if let Some(head) = whole {
                        let begun = self.send_head(&head);
                        wake(&mut self.read_waker.borrow_mut());
                        match begun {
                            Ok(body) => *send_state = RequestSendState::Body(body),
                            Err(error) => {
                                *send_state = RequestSendState::Failed;
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

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match (&*self.send_state.borrow(), self.id.get()) {
            (RequestSendState::Body(body), Some(id)) => {
                body.poll_writable(&self.connection.engine, id, cx)
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for OutgoingStream {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            self.connection.engine.close(id, ErrorCode::CANCEL);
        }
        self.connection.remove_stream();
    }
}

/// True if `error` says that HTTP/2 cannot express the request: nobody's fault but the client's.
pub fn is_inexpressible(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
