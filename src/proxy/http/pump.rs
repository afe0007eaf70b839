//! Moves one message in one direction: decodes the body as it comes, re-encodes it, and never
//! holds more than a buffer of it.
//!
//! The head goes out first, in one write with the body bytes that are there already.
//! Back-pressure is simple: nothing is read while there is something to write.

use std::{
    future::Future,
    io::{self, IoSlice},
    ops::Range,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::buffers::{GROWN_BUFFER_BYTES, INITIAL_BUFFER_BYTES, MAX_BUFFER_BYTES};
use crate::{
    http::fields::is_same_or_twin,
    http1::{
        body::{BodyDecoder, BodyError, BodyStep},
        encode,
    },
    net::{splice, stream::Stream},
};

/// Body bytes up to this are copied behind the head: a copy is cheaper than a vectored write.
const MAX_COPIED_BYTES: usize = 4 << 10;
/// Remaining body bytes from which on the kernel moves them: below it the pipe costs more than the
/// copies that splice saves.
const SPLICE_THRESHOLD_BYTES: u64 = 256 << 10;
/// Largest request body that is kept for a further attempt.
const MAX_REPLAY_BYTES: usize = 64 << 10;

/// The failure of one direction.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// Reading failed: reset.
    #[error("cannot read: {0}")]
    Read(#[source] io::Error),
    /// The source ended before the body did.
    #[error("the body ended early")]
    Cut,
    /// The body is malformed.
    #[error("malformed body: {0}")]
    Malformed(#[source] BodyError),
    /// The body is longer than allowed.
    #[error("the body is too long")]
    TooLarge,
    /// Writing failed: the sink is gone.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
}

/// One message that is moved from a source to a sink.
#[derive(Debug)]
pub struct Pump {
    decoder: BodyDecoder,
    /// The body is sent chunked.
    chunked: bool,
    /// Bytes read; those from `taken` on are not decoded yet.
    input: Vec<u8>,
    taken: usize,
    /// Part of `input` to be written from where it is, after `out`.
    raw: Range<usize>,
    /// Bytes encoded; those from `sent` on are not written yet.
    out: Vec<u8>,
    sent: usize,
    /// Nothing more will be added to `out`.
    ended: bool,
    /// The sink is shut down after the message, so its last bytes can share a segment with the FIN.
    last: bool,
    /// The transfer by the kernel, while there is one.
    splice: Option<splice::SpliceTransfer>,
    /// Bodies may be spliced: they are neither re-encoded nor kept for a replay.
    may_splice: bool,
    /// Body bytes decoded.
    body: u64,
    /// Length of the body announced to the sink, where the source sends chunks.
    length: Option<u64>,
    /// Largest body that is accepted.
    limit: u64,
    /// Bytes read from the source.
    read: u64,
    /// Bytes written to the sink.
    written: u64,
    /// Body bytes decoded so far, while they can be sent again.
    replay: Option<Vec<u8>>,
    /// Names of trailers that are dropped, besides those that always are.
    forbidden: Vec<Box<str>>,
}

/// Writes the end of the last message: with MSG_MORE, so that data and FIN share a segment.
fn poll_write_last(cx: &mut Context<'_>, to: &mut Stream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match to.try_write_last(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Pin::new(to).poll_write(cx, bytes)
        }
        written => Poll::Ready(written),
    }
}

/// Reads into the spare capacity of `buffer`.
pub(super) fn poll_fill(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    buffer: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    pin!(stream.read_buf(buffer)).poll(cx)
}

impl Pump {
    /// A message whose encoded head is `out`. The body begins at `input[taken..]`.
    pub fn new(
        out: Vec<u8>,
        input: Vec<u8>,
        taken: usize,
        decoder: Option<BodyDecoder>,
        chunked: bool,
    ) -> Self {
        Self {
            ended: decoder.is_none(),
            decoder: decoder.unwrap_or(BodyDecoder::Length(0)),
            chunked,
            input,
            taken,
            raw: 0..0,
            out,
            sent: 0,
            last: false,
            splice: None,
            may_splice: false,
            body: 0,
            length: None,
            limit: u64::MAX,
            read: 0,
            written: 0,
            replay: None,
            forbidden: Vec::new(),
        }
    }

    /// Drops trailers called one of `names`, or a twin with underscores.
    pub(super) fn forbid_trailers(&mut self, names: Vec<Box<str>>) {
        self.forbidden = names;
    }

    /// Sends the body in chunks, or not. With a `length` it comes in chunks and goes without; the
    /// message ends after `length` body bytes, and trailers are dropped.
    pub(super) fn set_framing(&mut self, chunked: bool, length: Option<u64>) {
        self.chunked = chunked;
        self.length = length;
        self.end_if_whole();
    }

    /// Refuses a body of more than `limit` bytes.
    pub(super) fn limit_body(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Keeps the body, so that the message can be sent again, up to a limit.
    pub(super) fn keep_for_replay(&mut self) {
        self.replay = Some(Vec::new());
    }

    /// Lets the kernel move long bodies of known length.
    pub(super) fn allow_splice(&mut self) {
        self.may_splice = !self.chunked;
    }

    /// Notes that the sink is shut down as soon as the message is written.
    pub(super) fn is_last(&mut self) {
        self.last = true;
    }

    /// Everything was written.
    pub(super) fn is_done(&self) -> bool {
        self.ended && !self.has_output()
    }

    /// The source was read to the end of the body.
    pub(super) fn has_read_all(&self) -> bool {
        self.ended
    }

    /// Nothing was read beyond the end of the body.
    pub(super) fn is_drained(&self) -> bool {
        self.taken == self.input.len()
    }

    /// Decodes the first bytes of the body without writing: ready when there are some, or an error.
    pub(super) fn poll_first(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            self.decode()?;
            if self.body > 0 || self.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, from))?;
        }
    }

    /// Body bytes decoded.
    pub(super) fn body(&self) -> u64 {
        self.body
    }

    /// Bytes read from the source, and bytes written to the sink: one grows with every progress.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.read, self.written)
    }

    /// True while the sink is waited for, not the source.
    pub(super) fn waits_for_sink(&self) -> bool {
        self.has_output()
            || self
                .splice
                .as_ref()
                .is_some_and(|splice| splice.pending() > 0)
    }

    /// True if the message can be sent again from its beginning.
    pub(super) fn can_replay(&self) -> bool {
        self.body == 0 || self.replay.is_some()
    }

    /// Starts again with `head` for another sink. Only if [`Pump::can_replay`].
    pub(super) fn replay(&mut self, head: &[u8]) {
        debug_assert!(self.can_replay(), "the body is not kept");
        self.out.clear();
        self.out.extend_from_slice(head);
        // The kept body is encoded again, as the framing may be another one for this sink.
        (self.sent, self.raw, self.written) = (0, 0..0, 0);
        let replay = self.replay.as_deref().unwrap_or_default();
        if self.chunked {
            if !replay.is_empty() {
                encode::chunk(&mut self.out, replay);
            }
            if self.ended {
                self.encode_last_chunk();
            }
        } else {
            self.out.extend_from_slice(replay);
        }
    }

    /// Bytes read behind the end of the body.
    pub(super) fn unread(&self) -> &[u8] {
        debug_assert!(self.taken <= self.input.len(), "decoded bytes were read");
        self.input.get(self.taken..).unwrap_or_default()
    }

    /// Takes the buffers back: encoded bytes, bytes read, and the offset of those not decoded.
    pub(super) fn into_buffers(self) -> (Vec<u8>, Vec<u8>, usize) {
        (self.out, self.input, self.taken)
    }

    fn has_output(&self) -> bool {
        self.sent < self.out.len() || !self.raw.is_empty()
    }

    /// Moves bytes until one side must be waited for. Ready when all was written, or on failure.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            // The body bytes that are there go out with the head, in one write.
            if !self.ended && self.raw.is_empty() && self.out.len() < GROWN_BUFFER_BYTES {
                self.decode()?;
            }
            if self.has_output() {
                ready!(self.poll_write(cx, to)).map_err(PumpError::Write)?;
                continue;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.splice.is_some() || self.begins_splice() {
                ready!(self.poll_splice(cx, from, to))?;
                continue;
            }
            ready!(self.poll_read(cx, from))?;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        debug_assert!(self.sent <= self.out.len() && self.raw.end <= self.input.len());
        let head = self.out.get(self.sent..).unwrap_or_default();
        let raw = self.input.get(self.raw.clone()).unwrap_or_default();
        let ends = self.last && self.ended && raw.is_empty();
        let written = ready!(match (head, raw) {
            (_, []) if ends => poll_write_last(cx, to, head),
            (_, []) => Pin::new(to).poll_write(cx, head),
            ([], _) => Pin::new(to).poll_write(cx, raw),
            _ => Pin::new(to).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(raw)]),
        })?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += written as u64;
        let of_head = written.min(head.len());
        self.raw.start += written - of_head;
        self.sent += of_head;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
    ) -> Poll<Result<(), PumpError>> {
        self.prepare_input();
        let count = ready!(poll_fill(from, cx, &mut self.input)).map_err(PumpError::Read)?;
        self.read += count as u64;
        if count > 0 {
            return Poll::Ready(Ok(()));
        }
        // Only a body without a framing of its own ends with its connection (RFC 9112 section 8).
        if !matches!(self.decoder, BodyDecoder::UntilClose) {
            return Poll::Ready(Err(PumpError::Cut));
        }
        self.end();
        Poll::Ready(Ok(()))
    }

    /// Empties the input, all of which was decoded, and grows it if the last read filled it.
    fn prepare_input(&mut self) {
        let was_full = self.input.len() == self.input.capacity();
        self.input.clear();
        (self.taken, self.raw) = (0, 0..0);
        let additional = match self.input.capacity() {
            0..INITIAL_BUFFER_BYTES => INITIAL_BUFFER_BYTES,
            INITIAL_BUFFER_BYTES..GROWN_BUFFER_BYTES if was_full => GROWN_BUFFER_BYTES,
            GROWN_BUFFER_BYTES..MAX_BUFFER_BYTES if was_full => MAX_BUFFER_BYTES,
            _ => 0,
        };
        self.input.reserve(additional);
    }

    /// Decodes the input until there is something to write, or nothing left.
    fn decode(&mut self) -> Result<(), PumpError> {
        loop {
            debug_assert!(self.taken <= self.input.len(), "decoded bytes were read");
            let input = self.input.get(self.taken..).unwrap_or_default();
            match self.decoder.step(input).map_err(PumpError::Malformed)? {
                BodyStep::Data(count) => {
                    let data = self.taken..self.taken + count;
                    self.taken = data.end;
                    if self.take_data(data)? {
                        return Ok(());
                    }
                }
                BodyStep::Skip(count) => self.taken += count,
                BodyStep::More => return Ok(()),
                BodyStep::End => {
                    self.end();
                    return Ok(());
                }
            }
        }
    }

    /// Queues body bytes; true if they must be written before more are decoded.
    fn take_data(&mut self, data: Range<usize>) -> Result<bool, PumpError> {
        debug_assert!(data.end <= self.input.len(), "decoded bytes were read");
        let bytes = self.input.get(data.clone()).unwrap_or_default();
        self.body += bytes.len() as u64;
        if self.body > self.limit {
            return Err(PumpError::TooLarge);
        }
        if self.length.is_some_and(|length| self.body > length) {
            let what = "more content than was declared";
            return Err(PumpError::Malformed(BodyError::Malformed(what)));
        }
        // A body above the limit is sent once: keeping it would cost memory for each upload.
        if let Some(replay) = &mut self.replay {
            if replay.len() + bytes.len() <= MAX_REPLAY_BYTES {
                replay.extend_from_slice(bytes);
            } else {
                self.replay = None;
            }
        }
        if self.chunked {
            encode::chunk(&mut self.out, bytes);
            return Ok(self.out.len() >= MAX_BUFFER_BYTES);
        }
        let is_copied = bytes.len() <= MAX_COPIED_BYTES;
        if is_copied {
            self.out.extend_from_slice(bytes);
        } else {
            self.raw = data;
        }
        self.end_if_whole();
        Ok(self.ended || !is_copied || self.out.len() >= GROWN_BUFFER_BYTES)
    }

    /// Ends the message if its announced length is reached. Its remaining chunks are dropped.
    fn end_if_whole(&mut self) {
        // The sink waits for no chunk that follows, so neither may the message.
        if self.length == Some(self.body) {
            self.taken = self.input.len();
            self.end();
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.chunked {
            self.encode_last_chunk();
        }
    }

    /// Encodes the last chunk. A trailer must not set a field by which the backend identifies the
    /// client: servers merge trailers into the header section.
    fn encode_last_chunk(&mut self) {
        let trailers = self.decoder.trailers();
        if self.forbidden.is_empty() || trailers.is_empty() {
            return encode::last_chunk(&mut self.out, trailers);
        }
        let is_allowed = |line: &&[u8]| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            let mut names = self.forbidden.iter();
            !names.any(|forbidden| is_same_or_twin(name, forbidden.as_bytes()))
        };
        let lines = trailers.split_inclusive(|byte| *byte == b'\n');
        let kept: Vec<&[u8]> = lines.filter(is_allowed).collect();
        encode::last_chunk(&mut self.out, &kept.concat());
    }

    /// Starts a splice if the rest of the body is long, of known length, and not in our memory.
    fn begins_splice(&mut self) -> bool {
        let BodyDecoder::Length(left) = &mut self.decoder else {
            return false;
        };
        if !self.may_splice || *left < SPLICE_THRESHOLD_BYTES || self.taken < self.input.len() {
            return false;
        }
        self.splice = Some(splice::SpliceTransfer::new(Some(*left)));
        true
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
    ) -> Poll<Result<(), PumpError>> {
        let (Some(splice), BodyDecoder::Length(left)) = (&mut self.splice, &mut self.decoder)
        else {
            return Poll::Ready(Ok(()));
        };
        match ready!(splice.poll_move(cx, from, to)) {
            Ok(0) if *left > 0 => Poll::Ready(Err(PumpError::Cut)),
            Ok(count) => {
                let count = count as u64;
                self.read += count;
                self.written += count;
                self.body += count;
                *left = left.saturating_sub(count);
                if *left == 0 {
                    self.splice = None;
                    self.end();
                }
                Poll::Ready(Ok(()))
            }
            // Not a pair of sockets that the kernel can splice: copy the rest.
            Err(splice::TransferError::Unsupported) => {
                self.splice = None;
                self.may_splice = false;
                Poll::Ready(Ok(()))
            }
            Err(splice::TransferError::Read(error)) => Poll::Ready(Err(PumpError::Read(error))),
            Err(splice::TransferError::Write(error)) => Poll::Ready(Err(PumpError::Write(error))),
        }
    }
}
