//! Interface of both kinds of HTTP/2 streams to the HTTP/1 engine: HTTP/1.1 text to read and to
//! write.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::ReadBuf;

/// HTTP/2 stream as a connection with one HTTP/1.1 exchange.
pub trait Http1Adapter {
    /// Ready when there is something to read, or the end.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads some bytes; false at the end. Only after [`Http1Adapter::poll_ready`].
    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool>;

    /// Writes what can be sent or buffered; `WouldBlock` if that is nothing.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ready when a write makes progress or fails.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// As `Stream::try_read`.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(buffer);
        // A caller that goes on to wait polls again with its own waker.
        match self.poll_read(&mut Context::from_waker(Waker::noop()), &mut target) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(read) => read.map(|()| target.filled().len()),
        }
    }

    /// Reads as much as there is.
    fn poll_read(&self, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = target.filled().len();
        while target.remaining() > 0 {
            match self.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // Bytes that were read come first, the error with the next call.
                _ if target.filled().len() > before => break,
                failed => return failed,
            }
            if !self.take(target)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until a write is possible, and writes.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_writable(cx))?;
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// As [`Http1Adapter::poll_write`], part by part: a head and a body are separate frames.
    fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match self.poll_write(cx, part) {
                Poll::Ready(Ok(count)) => {
                    written += count;
                    if count < part.len() {
                        break;
                    }
                }
                Poll::Pending | Poll::Ready(Err(_)) if written > 0 => break,
                failed => return failed,
            }
        }
        Poll::Ready(Ok(written))
    }
}
