//! The state of one TLS connection between its socket and its reader and writer.
//!
//! Buffers for whole reads and writes belong to the thread. A session keeps only bytes that wait:
//! part of a record, plaintext that the reader had no space for, ciphertext that the socket did not
//! take. That is why rustls' unbuffered interface is used, and what makes 100,000 idle clients
//! cheap.

use std::{cell::RefCell, io};

use rustls::Error;
use tokio::io::ReadBuf;

use super::records::{self, PlaintextBuf, ProcessedRecords, RustlsConnection};
use crate::net::stream::Stream;

/// Most bytes taken from the socket at a time.
const MAX_READ_BYTES: usize = 256 << 10;
/// Least bytes asked of the socket at a time: a record of a usual head, or some small ones.
const MIN_READ_BYTES: usize = 4 << 10;
/// Bytes read beyond the reader's own space: the framing of a few records.
const READ_HEADROOM_BYTES: usize = 1 << 10;
/// Most bytes that may wait for the end of their record or handshake message: a record is at most
/// 16 KiB and 256 bytes (RFC 8446 section 5.2), a message with a long certificate chain is longer.
pub(super) const MAX_PARTIAL_BYTES: usize = 64 << 10;
/// Most plaintext that is encrypted at a time.
const MAX_WRITE_BYTES: usize = 256 << 10;
/// Most ciphertext in a row that brings no data, such as tickets and key updates. More is an
/// attack: each record costs us a decryption, and a key update a derivation of keys, for nothing.
pub(super) const MAX_BYTES_WITHOUT_PLAINTEXT: usize = 48 << 10;

thread_local! {
    /// Buffer that ciphertext is read to, and decrypted in place.
    static DECRYPT_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Buffer that plaintext is encrypted to.
    static ENCRYPT_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One end of a TLS connection, with the bytes that wait on either side of it.
#[derive(Debug)]
pub(super) struct TlsSession {
    pub(super) connection: RustlsConnection,
    /// Ciphertext of a record that is not whole. rustls remembers positions in it, so it must be
    /// passed in again at every call.
    pub(super) incoming: Vec<u8>,
    /// Decrypted bytes for the reader, from `plaintext_read` on.
    pub(super) plaintext: Vec<u8>,
    plaintext_read: usize,
    /// Ciphertext that the socket did not take yet, from `outgoing_sent` on.
    pub(super) outgoing: Vec<u8>,
    outgoing_sent: usize,
    /// Plaintext bytes encrypted in `outgoing` that were answered with `WouldBlock`: the writer is
    /// told of them when it comes again.
    pending_plaintext: usize,
    pub(super) read_state: ReadState,
    /// Our direction has ended.
    write_closed: bool,
    /// Ciphertext bytes read since the last plaintext.
    pub(super) bytes_without_plaintext: usize,
    /// Ciphertext bytes written to the socket.
    pub(super) wire_written: u64,
}

/// State of the peer's direction.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ReadState {
    Open,
    /// The peer ended its direction in order (`close_notify`).
    Ended,
    /// The session has failed.
    Failed(Error),
    /// FIN without `close_notify`: an attacker can forge that, so the data may be truncated
    /// (RFC 8446 section 6.1). An error, never the end of a message.
    Truncated,
}

fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

impl TlsSession {
    pub(super) const fn new(connection: RustlsConnection) -> Self {
        Self {
            connection,
            incoming: Vec::new(),
            plaintext: Vec::new(),
            plaintext_read: 0,
            outgoing: Vec::new(),
            outgoing_sent: 0,
            pending_plaintext: 0,
            read_state: ReadState::Open,
            write_closed: false,
            bytes_without_plaintext: 0,
            wire_written: 0,
        }
    }

    /// Moves waiting plaintext to `target`.
    fn take_plaintext(&mut self, target: &mut ReadBuf<'_>) {
        debug_assert!(self.plaintext_read <= self.plaintext.len(), "read past it");
        let waiting = self
            .plaintext
            .get(self.plaintext_read..)
            .unwrap_or_default();
        let fits = waiting.get(..target.remaining()).unwrap_or(waiting);
        target.put_slice(fits);
        self.plaintext_read += fits.len();
        if self.plaintext_read == self.plaintext.len() {
            self.plaintext = Vec::new();
            self.plaintext_read = 0;
        }
    }

    pub(super) fn has_plaintext(&self) -> bool {
        self.plaintext_read < self.plaintext.len()
    }

    /// Reads from `socket` and decrypts until there is plaintext, without waiting. `Ok` with
    /// nothing in `target` is the end.
    pub(super) fn read(&mut self, socket: &Stream, target: &mut ReadBuf<'_>) -> io::Result<()> {
        let before = target.filled().len();
        loop {
            if self.has_plaintext() || target.remaining() == 0 {
                self.take_plaintext(target);
                return Ok(());
            }
            match &self.read_state {
                ReadState::Open => {}
                ReadState::Ended => return Ok(()),
                ReadState::Truncated => return Err(io::ErrorKind::UnexpectedEof.into()),
                ReadState::Failed(error) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error.clone()));
                }
            }
            self.fill(socket, target)?;
            if target.filled().len() > before {
                return Ok(());
            }
        }
    }

    /// Reads from `socket` once and decrypts; what arrived may hold no plaintext.
    pub(super) fn fill(&mut self, socket: &Stream, target: &mut ReadBuf<'_>) -> io::Result<()> {
        DECRYPT_BUFFER.with_borrow_mut(|input| {
            let partial = self.incoming.len();
            let size = partial + target.remaining() + READ_HEADROOM_BYTES;
            let size = size.clamp(MIN_READ_BYTES, MAX_READ_BYTES);
            if input.len() < size {
                input.resize(size, 0);
            }
            // The waiting part of a record goes in front of what is read now.
            debug_assert!(partial < size, "no space left to read");
            let (before, space) = input
                .get_mut(..size)
                .unwrap_or_default()
                .split_at_mut(partial);
            before.copy_from_slice(&self.incoming);
            let count = socket.try_read(space)?;
            if count == 0 {
                self.read_state = ReadState::Truncated;
                return Ok(());
            }
            let before = target.filled().len();
            let filled = input.get_mut(..partial + count).unwrap_or_default();
            self.process(socket, filled, target);

            // Guard against records that carry no data.
            self.bytes_without_plaintext += count;
            if self.has_plaintext() || target.filled().len() > before {
                self.bytes_without_plaintext = 0;
            } else if self.bytes_without_plaintext > MAX_BYTES_WITHOUT_PLAINTEXT
                && self.read_state == ReadState::Open
            {
                self.fail(Error::General("a flood of records without data".into()));
            }
            Ok(())
        })
    }

    /// Ends both directions: after an error rustls must not be called again, as it may remember
    /// positions in input that is gone.
    fn fail(&mut self, error: Error) {
        self.read_state = ReadState::Failed(error);
        self.write_closed = true;
        self.incoming = Vec::new();
    }

    /// Processes the records in `input`, keeps a last part, and sends what rustls answers.
    fn process(&mut self, socket: &Stream, input: &mut [u8], target: &mut ReadBuf<'_>) {
        let before = self.outgoing.len();
        let mut plaintext = PlaintextBuf {
            target,
            overflow: &mut self.plaintext,
        };
        let processed = records::process(
            &mut self.connection,
            input,
            &mut plaintext,
            &mut self.outgoing,
        );
        match processed {
            Err(error) => self.fail(error),
            // Data behind `close_notify` is ignored, RFC 8446 section 6.1.
            Ok(ProcessedRecords { ended: true, .. }) => {
                self.read_state = ReadState::Ended;
                self.incoming = Vec::new();
            }
            Ok(ProcessedRecords { used, .. }) => match input.get(used..).unwrap_or_default() {
                [] => self.incoming = Vec::new(),
                partial if partial.len() > MAX_PARTIAL_BYTES => {
                    self.fail(Error::General("handshake message too long".into()));
                }
                partial => {
                    self.incoming.clear();
                    self.incoming.extend_from_slice(partial);
                }
            },
        }
        // Replies such as an alert. What does not fit goes out with the next write, which also
        // reports an error of the socket: data that was read before it must not be lost. With
        // `pending_plaintext` the writer itself comes again.
        if self.outgoing.len() > before && self.pending_plaintext == 0 {
            let _ = self.flush(socket);
        }
    }

    /// Sends waiting ciphertext; `WouldBlock` if the socket does not take all of it.
    pub(super) fn flush(&mut self, socket: &Stream) -> io::Result<()> {
        while let Some(waiting @ [_, ..]) = self.outgoing.get(self.outgoing_sent..) {
            let count = socket.try_write(waiting)?;
            self.outgoing_sent += count;
            self.wire_written += count as u64;
        }
        self.outgoing = Vec::new();
        self.outgoing_sent = 0;
        Ok(())
    }

    /// Encrypts and sends without waiting; with `last` our direction ends in the same segment.
    ///
    /// `Ok` counts bytes that went out whole. After `WouldBlock` the same bytes must come again:
    /// they are encrypted under sequence numbers that cannot be taken back.
    pub(super) fn write(&mut self, socket: &Stream, bytes: &[u8], last: bool) -> io::Result<usize> {
        if self.pending_plaintext > 0 {
            self.flush(socket)?;
            return Ok(std::mem::take(&mut self.pending_plaintext));
        }
        if self.write_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let last = last && bytes.len() <= MAX_WRITE_BYTES;
        let bytes = bytes.get(..MAX_WRITE_BYTES).unwrap_or(bytes);
        ENCRYPT_BUFFER.with_borrow_mut(|out| {
            // Encrypt behind what waits: records leave in the order of their numbers.
            out.clear();
            debug_assert!(self.outgoing_sent <= self.outgoing.len(), "sent past it");
            out.extend_from_slice(self.outgoing.get(self.outgoing_sent..).unwrap_or_default());
            records::encrypt(&mut self.connection, &mut self.incoming, bytes, out)
                .map_err(io::Error::other)?;
            if last {
                self.write_closed = true;
                records::encode_close_notify(&mut self.connection, &mut self.incoming, out)
                    .map_err(io::Error::other)?;
            }

            // Send, and keep what the socket does not take.
            let sent = match if last {
                socket.try_write_last(out)
            } else {
                socket.try_write(out)
            } {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                sent => sent?,
            };
            self.wire_written += sent as u64;
            self.outgoing_sent = 0;
            self.outgoing.clear();
            debug_assert!(sent <= out.len(), "the socket took more than there was");
            let unsent = out.get(sent..).unwrap_or_default();
            if unsent.is_empty() {
                self.outgoing = Vec::new();
                return Ok(bytes.len());
            }
            self.outgoing.extend_from_slice(unsent);
            self.pending_plaintext = bytes.len();
            would_block()
        })
    }

    /// Ends our direction with `close_notify`; `WouldBlock` until the socket has taken it.
    pub(super) fn close(&mut self, socket: &Stream) -> io::Result<()> {
        if !std::mem::replace(&mut self.write_closed, true) {
            records::encode_close_notify(
                &mut self.connection,
                &mut self.incoming,
                &mut self.outgoing,
            )
            .map_err(io::Error::other)?;
        }
        self.flush(socket)
    }
}
