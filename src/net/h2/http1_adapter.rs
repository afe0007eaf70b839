//! What both kinds of h2 streams are to the engine: bytes of HTTP/1.1 to be read, and bytes of HTTP/1.1 to be written.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::ReadBuf;

/// An h2 stream as a connection that carries one HTTP/1.1 exchange.
pub trait Http1Adapter {
    /// Ready when there is something to take, or the end.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Gives some of what is there; false at the end. Only after [`Http1Adapter::poll_ready`].
    fn take(&self, target: &mut ReadBuf<'_>) -> io::Result<bool>;

    /// Takes what can be sent or buffered; `WouldBlock` when that is nothing.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ready when a write takes something, or fails.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// As `Stream::try_read`.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(buffer);
        // Whoever goes on to wait polls for it, and is woken by that.
        match self.poll_read(&mut Context::from_waker(Waker::noop()), &mut target) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(read) => read.map(|()| target.filled().len()),
        }
    }

    /// Takes as much as there is.
    fn poll_read(&self, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = target.filled().len();
        while target.remaining() > 0 {
            match self.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // An error is told when nothing is left to be given first.
                _ if target.filled().len() > before => break,
                failed => return failed,
            }
            if !self.take(target)? {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for room, and writes.
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

    /// As [`Http1Adapter::poll_write`], one part after the other: the head and the body behind it are frames of their own.
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
