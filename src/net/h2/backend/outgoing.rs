//! One stream to a backend, offered as a connection with one HTTP/1.1 exchange: writing takes the
//! request, reading gives the response.

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
use crate::http2::{frame::ErrorCode, hpack::HpackEncoder};

/// Stream to a backend.
#[derive(Debug)]
pub struct OutgoingStream {
    connection: Rc<H2Connection>,
    /// Stream id; `None` until the head was sent.
    id: Cell<Option<u32>>,
    send_state: RefCell<RequestSendState>,
    /// Reader that waits for the stream to be opened.
    read_waker: RefCell<Option<Waker>>,
    /// Set when the backend has not processed the request.
    refusal: Cell<Option<StreamRefusal>>,
    /// Epoch of the stream limit when the stream was opened.
    epoch: u32,
    /// A limit of ours ended the stream.
    own_limit: Cell<bool>,
}

/// Cause for which a request was not processed, RFC 9113 section 8.7: it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamRefusal {
    /// The connection is full or closing: another one may take the request.
    Full,
    /// The same, expressed by ENHANCE_YOUR_CALM while other streams were open and before anything
    /// was received on this one. No RFC promises that such a request was not processed, but servers
    /// that bound the memory of a connection refuse like this before a handler sees the request.
    Overloaded,
    /// No other stream was open, or no response ever came on this connection: the backend takes no
    /// requests.
    Outright,
}

#[derive(Debug)]
enum RequestSendState {
    /// Incomplete head.
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

    /// Connection of the stream.
    pub fn connection(&self) -> &H2Connection {
        &self.connection
    }

    /// Cause for which the request was not processed; `None`: it may have been.
    pub fn refusal(&self) -> Option<StreamRefusal> {
        self.refusal.get()
    }

    /// Length that the backend declared of the response body, which is read in chunks.
    pub fn declared_length(&self) -> Option<u64> {
        self.connection.engine.declared_length(self.id.get()?)
    }

    /// True if a limit of ours ended the stream: the backend may have followed the protocol.
    pub fn hit_own_limit(&self) -> bool {
        self.own_limit.get()
    }

    /// Ready when the stream is reset or its connection closed. RST_STREAM with NO_ERROR after a
    /// complete response only stops the upload (RFC 9113 section 8.1): that response can still be
    /// read.
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
        request::read(head, |mut tokenized| {
            let expected = std::mem::take(&mut tokenized.expected);
            let ends = matches!(tokenized.content, BodyEncoder::Done);
            let is_secure = self.connection.is_secure;
            let write = |encoder: &mut HpackEncoder, out: &mut Vec<u8>| {
                tokenized.write(encoder, out, is_secure);
            };
            let begun = self.connection.engine.open_stream(expected, ends, write);
            let id = begun.map_err(|ended| {
                // The request was not sent at all.
                self.refusal.set(Some(StreamRefusal::Full));
                self.connection.retire();
                broken_pipe(ended)
            })?;
            self.id.set(Some(id));
            Ok(tokenized.content)
        })
    }

    /// Maps a stream error to `io::Error` and updates the connection.
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
            // These concern this stream only, or were handled before.
            StreamError::Invalid(_)
            | StreamError::Malformed(_)
            | StreamError::TooLarge(_)
            | StreamError::NotProcessed(_)
            | StreamError::Reset(_) => {}
        }
        recv_buffer::cut(ended)
    }

    /// Tells from the peer's reset or GOAWAY whether the request was not processed.
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

/// True if HTTP/2 cannot express the request: the client is at fault.
pub fn is_inexpressible(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
