//! One stream of a connection, as its exchange sees it: content and trailers to read, heads,
//! content and trailers to send.
//!
//! The same for both roles. Dropping it closes the stream: it is reset unless both sides have ended
//! it.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{StreamError, client::IncomingRequest, connection::Connection};
use crate::{
    http::message::Trailers,
    http2::{block_head::BlockHead, frame::ErrorCode},
    net::{copy::RelaySide, stream::Stream},
};

/// Stream of an HTTP/2 connection.
#[derive(Debug)]
pub struct H2Stream {
    connection: Rc<Connection>,
    /// Stream id; 0 before the stream is open, when all of its operations fail.
    id: Cell<u32>,
    /// Code of the reset if our message is incomplete when the stream is dropped.
    cut_code: Cell<ErrorCode>,
    /// Our message never ends properly: END_STREAM is not sent.
    is_cut: Cell<bool>,
}

impl H2Stream {
    /// Takes the stream of a client's request on `connection`.
    pub fn of_request(connection: &Rc<Connection>, request: &IncomingRequest) -> Self {
        Self::new(Rc::clone(connection), request.id, ErrorCode::INTERNAL_ERROR)
    }

    pub(super) fn new(connection: Rc<Connection>, id: u32, cut_code: ErrorCode) -> Self {
        Self {
            connection,
            id: Cell::new(id),
            cut_code: Cell::new(cut_code),
            is_cut: Cell::new(false),
        }
    }

    pub(super) const fn id(&self) -> u32 {
        self.id.get()
    }

    /// Notes that the stream was opened.
    pub(super) fn set_id(&self, id: u32) {
        self.id.set(id);
    }

    /// Sets the code of the reset that follows if our message is incomplete at the drop.
    pub fn set_cut_code(&self, code: ErrorCode) {
        self.cut_code.set(code);
    }

    /// Ends the stream with a reset instead of END_STREAM, after all of our message was sent: the
    /// peer's message is malformed (RFC 9113 section 8.1.1).
    pub fn end_with_reset(&self, code: ErrorCode) {
        self.cut_code.set(code);
        self.is_cut.set(true);
    }

    /// Lets the peer reset the stream `age` after its request without being charged for it: its
    /// request named that deadline.
    pub fn allow_reset_after(&self, age: Duration) {
        self.connection.allow_reset_after(self.id.get(), age);
    }

    /// Ready when there is content (true), or when it has ended (false).
    pub fn poll_content(&self, cx: &Context<'_>) -> Poll<Result<bool, StreamError>> {
        self.connection.poll_content(self.id.get(), cx)
    }

    /// Moves at most `most` bytes of content to the end of `target`; returns how many, and true if
    /// the message has ended behind them.
    pub fn read_content(&self, target: &mut Vec<u8>, most: usize) -> (usize, bool) {
        let take = |part: &[u8]| target.extend_from_slice(part);
        self.connection.read_content(self.id.get(), most, take)
    }

    /// Moves content into `buffer`; returns how much.
    pub fn read_slice(&self, buffer: &mut [u8]) -> usize {
        let (most, mut filled) = (buffer.len(), 0);
        let take = |part: &[u8]| {
            let end = filled + part.len();
            debug_assert!(end <= most, "no more than was asked for");
            if let Some(free) = buffer.get_mut(filled..end) {
                free.copy_from_slice(part);
            }
            filled = end;
        };
        self.connection.read_content(self.id.get(), most, take).0
    }

    /// Takes the trailers of a message that has ended.
    pub fn take_trailers(&self) -> Trailers {
        self.connection.take_trailers(self.id.get())
    }

    /// Ready when a head can be sent: it needs no window, but space in the output.
    pub fn poll_head_ready(&self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.connection.poll_send_fields(self.id.get(), cx)
    }

    /// Sends the head that `write` writes; returns its bytes on the wire. `ends`: no content
    /// follows.
    pub fn send_head(
        &self,
        ends: bool,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<usize, StreamError> {
        let ends = ends && !self.is_cut.get();
        self.connection.send_fields(self.id.get(), ends, write)
    }

    /// Ready when the windows allow at least one byte of content.
    pub fn poll_content_ready(&self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.connection.poll_send_content(self.id.get(), cx)
    }

    /// Sends as much of `content` as the windows and the output allow; returns how much. With
    /// `ends` the stream ends behind it, once all of it is sent.
    pub fn send_content(&self, content: &[u8], ends: bool) -> Result<usize, StreamError> {
        let ends = ends && !self.is_cut.get();
        self.connection.send_content(self.id.get(), content, ends)
    }

    /// Sends the trailers that `write` writes, which end the stream; returns their bytes on the
    /// wire.
    pub fn send_trailers(
        &self,
        write: impl FnOnce(&mut BlockHead<'_>),
    ) -> Result<usize, StreamError> {
        let ends = !self.is_cut.get();
        self.connection.send_fields(self.id.get(), ends, write)
    }

    /// Ready when the stream is closed before its end, by either side.
    pub fn poll_closed(&self, cx: &Context<'_>) -> Poll<StreamError> {
        self.connection.poll_closed(self.id.get(), cx)
    }

    /// Bytes that the peer has not acknowledged on the connection, while the stream depends on
    /// them; `None` if it does not, or the kernel does not tell.
    pub fn unacked(&self) -> Option<u64> {
        self.connection.unacked_on_stream(self.id.get())
    }
}

/// A tunnel over the stream (RFC 8441): its content is the bytes of another protocol.
impl RelaySide for H2Stream {
    fn stream(&self) -> Option<&Stream> {
        None
    }

    fn ends_by_drop(&self) -> bool {
        false
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_content(cx)
            .map(|ready| ready.map(drop).map_err(StreamError::into_io))
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // A caller that goes on to wait polls again with its own waker.
        match self.poll_content(&Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(Ok(true)) => Ok(self.read_slice(buffer)),
            Poll::Ready(Ok(false)) => Ok(0),
            Poll::Ready(Err(ended)) => Err(ended.into_io()),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_content_ready(cx).map_err(StreamError::into_io)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.send_content(bytes, false) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            sent => sent.map_err(StreamError::into_io),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        // Fails only on a closed stream.
        let _ = self.send_content(&[], true);
        Ok(())
    }

    fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_closed(cx).map(drop)
    }

    fn unacked(&self) -> Option<u64> {
        self.unacked()
    }

    fn set_reset_on_close(&self) {}
}

impl H2Stream {
    /// Closes the stream: it is reset unless both sides have ended it.
    pub(super) fn close(&self) {
        self.connection.close(self.id.get(), self.cut_code.get());
    }
}

impl Drop for H2Stream {
    fn drop(&mut self) {
        self.close();
    }
}
