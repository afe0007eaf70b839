//! Moving bytes from one socket to another inside the kernel: socket to pipe to socket, never through our memory.
//!
//! Pays for bulk only: a small message costs two system calls and a pipe more than a copy. Pipes belong to the thread and are
//! held only while there are bytes in them.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use super::{limits::check_reserve, stream::Stream};

/// Bytes a pipe can hold. The kernel grants an unprivileged user 64 MiB of pipes at this size or any other.
const PIPE_BYTES: usize = 512 * 1024;

/// A pipe the kernel made smaller than this (the user has too many) would cost more calls than a copy.
const PIPE_BYTES_LEAST: usize = 64 * 1024;

/// Empty pipes a thread keeps.
const PIPES_KEPT: usize = 16;

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// What went wrong, and on which side.
#[derive(Debug)]
pub enum TransferError {
    /// The source failed: the peer has reset it.
    Read(io::Error),
    /// The sink failed: the peer no longer takes bytes.
    Write(io::Error),
    /// No pipe is to be had, or these streams cannot be spliced. Nothing was taken from the source: copy instead.
    Unsupported,
}

#[derive(Debug)]
struct KernelPipe {
    sink: OwnedFd,
    source: OwnedFd,
    capacity: usize,
}

thread_local! {
    static FREE: RefCell<Vec<KernelPipe>> = const { RefCell::new(Vec::new()) };
}

impl KernelPipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = FREE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (source, sink) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        check_reserve(&sink)?;
        let capacity = fcntl_setpipe_size(&sink, PIPE_BYTES)
            .or_else(|_| fcntl_setpipe_size(&sink, PIPE_BYTES_LEAST))?;
        Ok(Self {
            sink,
            source,
            capacity,
        })
    }

    /// Only for an empty pipe: bytes of one session must never reach another.
    fn give_back(self) {
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < PIPES_KEPT {
                free.push(self);
            }
        });
    }
}

/// One direction that is moved by splicing.
#[derive(Debug)]
pub struct SpliceTransfer {
    pipe: Option<KernelPipe>,
    held: usize,
    left: u64,
}

impl SpliceTransfer {
    /// Moves at most `length` bytes; `None` moves until the end of the stream.
    pub const fn new(length: Option<u64>) -> Self {
        Self {
            pipe: None,
            held: 0,
            left: match length {
                Some(length) => length,
                None => u64::MAX,
            },
        }
    }

    /// Bytes taken from the source and not yet passed on. While there are any, it is the sink that is waited for.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Moves some bytes, and says how many were passed on. `Ok(0)`: the source has ended, or the length has been moved.
    pub fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
    ) -> Poll<Result<usize, TransferError>> {
        if !from.is_plain() || !to.is_plain() {
            // The kernel cannot encrypt for us, nor make frames.
            return Poll::Ready(Err(TransferError::Unsupported));
        }
        while self.held == 0 {
            if self.left == 0 {
                return Poll::Ready(Ok(0));
            }
            ready!(from.poll_read_ready(cx)).map_err(TransferError::Read)?;
            match self.fill(from) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => {
                    self.held = count;
                    self.left -= count as u64;
                }
                Err(TransferError::Read(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(fault) => return Poll::Ready(Err(fault)),
            }
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(TransferError::Write)?;
            match self.empty(to) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(TransferError::Write(error))),
            }
        }
    }

    /// Source to pipe. The pipe is empty before, so that `WouldBlock` can only mean an empty source.
    fn fill(&mut self, from: &Stream) -> Result<usize, TransferError> {
        let pipe = KernelPipe::take().map_err(|_| TransferError::Unsupported)?;
        let wanted =
            usize::try_from(self.left).map_or(pipe.capacity, |left| left.min(pipe.capacity));
        let taken = from.try_io(Interest::READABLE, |socket| {
            Ok(splice(socket, None, &pipe.sink, None, wanted, FLAGS)?)
        });
        match taken {
            Ok(count) if count > 0 => self.pipe = Some(pipe),
            _ => pipe.give_back(),
        }
        taken.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM) => TransferError::Unsupported,
            _ => TransferError::Read(error),
        })
    }

    /// Pipe to sink.
    fn empty(&mut self, to: &Stream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else {
            return Ok(0);
        };
        let held = self.held;
        let mut passed = None;
        let result = to.try_io(Interest::WRITABLE, |socket| {
            let count = splice(&pipe.source, None, socket, None, held, FLAGS)?;
            passed = Some(count);
            if count < held {
                // Told to the driver only: the socket is full, so the next try need not ask the kernel.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        let count = passed.map_or(result, Ok)?;
        self.held -= count;
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            pipe.give_back();
        }
        Ok(count)
    }
}
