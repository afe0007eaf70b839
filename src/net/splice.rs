//! Moves bytes from one socket to another inside the kernel, socket to pipe to socket (splice(2)).
//!
//! Worthwhile for bulk only: a small message costs two system calls and a pipe more than a copy
//! does. Pipes belong to the thread and are held only while there are bytes in them, so the number
//! of idle connections does not count against the user's limit of pipes.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::{driver::SocketWait, limits::check_reserve, stream::Stream};

/// Wanted capacity of a pipe. An unprivileged user may have 64 MiB of pipes in all (pipe(7),
/// `pipe-user-pages-soft`), of any size each.
const PIPE_BYTES: usize = 512 * 1024;

/// Least capacity of a pipe: a smaller one, as a user over the limit gets, costs more than a copy.
const MIN_PIPE_BYTES: usize = 64 * 1024;

/// Most empty pipes that a thread keeps.
const MAX_FREE_PIPES: usize = 16;

const SPLICE_FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Failure of one direction, by its side.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The source failed: the peer has reset it.
    #[error("cannot read: {0}")]
    Read(#[source] io::Error),
    /// The sink failed: the peer no longer takes bytes.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
    /// No pipe is available, or these streams cannot be spliced. Nothing was taken from the source:
    /// copy instead.
    #[error("cannot splice")]
    Unsupported,
}

#[derive(Debug)]
struct KernelPipe {
    sink: OwnedFd,
    source: OwnedFd,
    capacity: usize,
}

thread_local! {
    static FREE_PIPES: RefCell<Vec<KernelPipe>> = const { RefCell::new(Vec::new()) };
}

impl KernelPipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = FREE_PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (source, sink) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        check_reserve(&sink)?;
        let capacity = fcntl_setpipe_size(&sink, PIPE_BYTES)
            .or_else(|_| fcntl_setpipe_size(&sink, MIN_PIPE_BYTES))?;
        Ok(Self {
            sink,
            source,
            capacity,
        })
    }

    /// Returns an empty pipe to the free list. A pipe with bytes in it must be closed: bytes of one
    /// session must never reach another.
    fn release(self) {
        // `try_with`: when a thread ends, its free list may be destroyed before its last pipes.
        let _ = FREE_PIPES.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_FREE_PIPES {
                free.push(self);
            }
        });
    }
}

/// One direction that is moved by splicing.
#[derive(Debug)]
pub struct SpliceTransfer {
    /// Only while there are bytes in it.
    pipe: Option<KernelPipe>,
    /// Bytes in the pipe.
    pending: usize,
    /// Bytes still to be taken from the source.
    remaining: u64,
}

impl SpliceTransfer {
    /// Moves at most `length` bytes; `None` moves until the end of the stream.
    pub const fn new(length: Option<u64>) -> Self {
        Self {
            pipe: None,
            pending: 0,
            remaining: match length {
                Some(length) => length,
                None => u64::MAX,
            },
        }
    }

    /// Bytes taken from the source and not yet sent. While there are any, the transfer waits for
    /// the sink, not for the source.
    pub const fn pending(&self) -> usize {
        self.pending
    }

    /// Moves some bytes and returns how many were sent. `Ok(0)`: the source has ended, or the
    /// length has been moved.
    pub fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
    ) -> Poll<Result<usize, TransferError>> {
        // The kernel neither encrypts for us nor writes HTTP/2 frames.
        if !from.is_plain() || !to.is_plain() {
            return Poll::Ready(Err(TransferError::Unsupported));
        }
        while self.pending == 0 {
            if self.remaining == 0 {
                return Poll::Ready(Ok(0));
            }
            ready!(from.poll_read_ready(cx)).map_err(TransferError::Read)?;
            match self.fill_pipe(from) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => {
                    self.pending = count;
                    self.remaining -= count as u64;
                }
                Err(TransferError::Read(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(TransferError::Write)?;
            match self.drain_pipe(to) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(TransferError::Write(error))),
            }
        }
    }

    /// Moves bytes from the source to an empty pipe. As the pipe is empty, EAGAIN can only mean
    /// that the source is: splice(2) does not tell the two apart.
    fn fill_pipe(&mut self, from: &Stream) -> Result<usize, TransferError> {
        debug_assert!(self.pipe.is_none(), "the pipe is not empty");
        let pipe = KernelPipe::take().map_err(|_| TransferError::Unsupported)?;
        let wanted =
            usize::try_from(self.remaining).map_or(pipe.capacity, |left| left.min(pipe.capacity));
        let taken = from.try_io(SocketWait::Read, |socket| {
            Ok(splice(
                socket,
                None,
                &pipe.sink,
                None,
                wanted,
                SPLICE_FLAGS,
            )?)
        });
        match taken {
            Ok(count) if count > 0 => self.pipe = Some(pipe),
            _ => pipe.release(),
        }
        if matches!(taken, Ok(0)) {
            from.check_end().map_err(TransferError::Read)?;
        }
        taken.map_err(|error| match error.raw_os_error() {
            // Sockets without splice, kernels without the call, sandboxes that forbid it.
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM) => TransferError::Unsupported,
            _ => TransferError::Read(error),
        })
    }

    /// Moves bytes from the pipe to the sink.
    fn drain_pipe(&mut self, to: &Stream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            debug_assert!(self.pending == 0, "pending bytes without a pipe");
            return Ok(0);
        };
        let pending = self.pending;
        let count = to.try_send_with(pending, |socket| {
            splice(&pipe.source, None, socket, None, pending, SPLICE_FLAGS)
        })?;
        self.pending -= count;
        if self.pending == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipe.release();
        }
        Ok(count)
    }
}
