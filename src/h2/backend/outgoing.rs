//! One stream to a backend: opened with the head of a request, then read for the response.

use std::{
    cell::Cell,
    rc::Rc,
    task::{Context, Poll},
};

use super::{super::stream::H2Stream, H2Connection};
use crate::{
    h2::StreamError,
    http::message::ResponseHead,
    http2::{block_head::BlockHead, frame::ErrorCode, response::ResponseExpectation},
};

/// Stream to a backend.
#[derive(Debug)]
pub struct OutgoingStream {
    connection: Rc<H2Connection>,
    stream: H2Stream,
    /// Set when the backend has not processed the request.
    refusal: Cell<Option<StreamRefusal>>,
    /// Epoch of the stream limit when the stream was assigned.
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

impl OutgoingStream {
    pub(super) fn new(connection: Rc<H2Connection>) -> Self {
        connection.add_stream();
        let epoch = connection.stream_limit.epoch();
        let stream = H2Stream::new(Rc::clone(&connection.engine), 0, ErrorCode::CANCEL);
        Self {
            connection,
            stream,
            refusal: Cell::new(None),
            epoch,
            own_limit: Cell::new(false),
        }
    }

    /// Connection of the stream.
    pub fn connection(&self) -> &H2Connection {
        &self.connection
    }

    /// The stream itself. Nothing can be read from it or sent on it before the head.
    pub const fn stream(&self) -> &H2Stream {
        &self.stream
    }

    /// True once the head was sent.
    pub const fn is_open(&self) -> bool {
        self.stream.id() > 0
    }

    /// Cause for which the request was not processed; `None`: it may have been.
    pub fn refusal(&self) -> Option<StreamRefusal> {
        self.refusal.get()
    }

    /// True if a limit of ours ended the stream: the backend may have followed the protocol.
    pub fn hit_own_limit(&self) -> bool {
        self.own_limit.get()
    }

    /// Opens the stream with the head that `write` writes; returns its bytes on the wire. `ends`:
    /// the request has no content.
    ///
    /// # Errors
    /// The request was not sent at all.
    pub fn send_head(
        &self,
        expected: ResponseExpectation,
        ends: bool,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<usize, StreamError> {
        debug_assert_eq!(self.stream.id(), 0, "a stream has one request");
        match self.connection.engine.open_stream(expected, ends, write) {
            Ok((id, count)) => {
                self.stream.set_id(id);
                Ok(count)
            }
            Err(ended) => {
                self.refusal.set(Some(StreamRefusal::Full));
                self.connection.retire();
                Err(ended)
            }
        }
    }

    /// Ready when a response head was moved into `head`.
    pub fn poll_head(
        &self,
        head: &mut ResponseHead,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let polled = self.connection.engine.poll_head(self.stream.id(), head, cx);
        polled.map_err(|ended| self.note_error(ended))
    }

    /// Ready when the stream is reset or its connection closed. RST_STREAM with NO_ERROR after a
    /// complete response only stops the upload (RFC 9113 section 8.1): that response can still be
    /// read.
    pub fn poll_closed(&self, cx: &Context<'_>) -> Poll<()> {
        match self.stream.poll_closed(cx) {
            Poll::Ready(StreamError::Reset(ErrorCode::NO_ERROR)) => Poll::Pending,
            gone => gone.map(drop),
        }
    }

    /// Draws the conclusions from an error of the stream, for the connection and for a retry.
    pub fn note_error(&self, ended: StreamError) -> StreamError {
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
        ended
    }

    /// Tells from the peer's reset or GOAWAY whether the request was not processed.
    fn refusal_of(&self, ended: StreamError) -> Option<StreamRefusal> {
        let (id, connection) = (self.stream.id(), &self.connection);
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

impl Drop for OutgoingStream {
    fn drop(&mut self) {
        // The connection must not end before the stream is closed.
        self.stream.close();
        self.connection.remove_stream();
    }
}
