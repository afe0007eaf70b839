//! Moves one body in one direction: reads it as it comes, encodes it for the other side, and never
//! holds more than a buffer of it.
//!
//! A source and a sink are an HTTP/1 connection or an HTTP/2 stream. To an HTTP/1 sink the head
//! goes out first, in one write with the body bytes that are there already. Back-pressure is
//! simple: nothing is read while there is something to write.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::{
    body_filter::{self, BodyFilter},
    buffers::{GROWN_BUFFER_BYTES, INITIAL_BUFFER_BYTES, MAX_BUFFER_BYTES},
    forward::trailer_section,
};
use crate::{
    h2::{StreamError, stream::H2Stream},
    http::{fields::is_same_or_twin, message::Trailers},
    http1::{
        body::{BodyDecoder, BodyError, BodyStep},
        encode::{self, TextHead},
    },
    http2::block_head::BlockHead,
    net::{
        buffer::{BufferSize, PooledBuffer},
        splice,
        stream::Stream,
    },
};

/// Body bytes up to this are copied behind the head: a copy is cheaper than a vectored write.
const MAX_COPIED_BYTES: usize = 4 << 10;
/// Remaining body bytes from which on the kernel moves them: below it the pipe costs more than the
/// copies that splice saves.
const SPLICE_THRESHOLD_BYTES: u64 = 32 << 10;
/// Largest request body that is kept for a further attempt.
const MAX_REPLAY_BYTES: usize = 64 << 10;

/// The side that a body comes from.
pub enum BodySource<'s> {
    /// Bytes in which a [`BodyDecoder`] finds the body.
    H1(&'s mut Stream),
    /// Content of DATA frames.
    H2(&'s H2Stream),
}

/// The side that a body goes to.
pub enum BodySink<'s> {
    /// Bytes, as [`BodyEncoding`] says.
    H1(&'s mut Stream),
    /// Content of DATA frames.
    H2(&'s H2Stream),
}

/// Encoding of a body for its sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEncoding {
    /// As it is: its length was announced, or it ends with its connection.
    Plain,
    /// Chunked, RFC 9112 section 7.1.
    Chunked,
    /// DATA frames, RFC 9113 section 6.1. Nothing but content is in the buffers.
    Frames,
}

/// The failure of one direction.
#[derive(Debug, thiserror::Error)]
pub enum BodyRelayError {
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

/// One body that is moved from a source to a sink.
#[derive(Debug)]
pub struct BodyRelay {
    /// Finds the body in the bytes of an HTTP/1 source; `None` for an HTTP/2 source, whose bytes
    /// are all content.
    decoder: Option<BodyDecoder>,
    encoding: BodyEncoding,
    filter: Option<BodyFilter>,
    /// Bytes read; those from `taken` on are not decoded yet.
    input: Vec<u8>,
    taken: usize,
    /// Part of `input` to be written from where it is, after `out`.
    raw: Range<usize>,
    /// Bytes encoded; those from `sent` on are not written yet.
    out: Vec<u8>,
    sent: usize,
    /// The body was read to its end.
    ended: bool,
    /// It was not: the announced length was reached. Trailers may follow.
    ended_by_length: bool,
    /// The sink knows the end of the body.
    end_sent: bool,
    trailers: Trailers,
    /// Fault behind the bytes that are still to be written.
    malformed: Option<BodyError>,
    /// The sink is shut down after the message, so its last bytes can share a segment with the FIN.
    last: bool,
    /// The transfer by the kernel, while there is one.
    splice: Option<splice::SpliceTransfer>,
    /// Bodies may be spliced, while they are neither encoded nor filtered nor kept for a replay.
    may_splice: bool,
    /// Body bytes decoded.
    body: u64,
    /// Length of the body announced to the sink, where the source has an end mark of its own.
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

/// Reads a head, or the first part of one, to the end of `bytes`, through a buffer of the thread:
/// an exchange that waits, and most that do not, need no more memory than their heads.
pub(super) fn poll_fill_head(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    bytes: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    // An exchange before this one has needed more: so will this one, perhaps.
    if bytes.capacity() - bytes.len() >= INITIAL_BUFFER_BYTES {
        return stream.poll_read_vec(cx, bytes);
    }
    let mut buffer = PooledBuffer::take(BufferSize::Small);
    let count = ready!(stream.poll_read_buf(cx, &mut buffer))?;
    debug_assert!(count <= buffer.len(), "reads fit the buffer");
    bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
    Poll::Ready(Ok(count))
}

fn cannot_read(ended: StreamError) -> BodyRelayError {
    BodyRelayError::Read(ended.into_io())
}

impl BodyRelay {
    /// A message without a body. The vectors are free buffers.
    pub fn without_body(out: Vec<u8>, input: Vec<u8>) -> Self {
        Self {
            ended: true,
            ..Self::new(out, input, 0, None)
        }
    }

    /// A body that begins at `input[taken..]`. `decoder` finds it there; without one the source is
    /// HTTP/2. `out` is a free buffer or an encoded head.
    pub fn new(out: Vec<u8>, input: Vec<u8>, taken: usize, decoder: Option<BodyDecoder>) -> Self {
        Self {
            decoder,
            encoding: BodyEncoding::Plain,
            filter: None,
            input,
            taken,
            raw: 0..0,
            out,
            sent: 0,
            ended: false,
            ended_by_length: false,
            end_sent: false,
            trailers: Trailers::new(),
            malformed: None,
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

    /// Passes the body through `filter`.
    #[cfg(test)]
    pub(super) fn set_filter(&mut self, filter: BodyFilter) {
        self.filter = Some(filter);
    }

    /// Refuses a body of more than `limit` bytes.
    pub(super) fn limit_body(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Keeps the body, so that the message can be sent again, up to a limit.
    pub(super) fn keep_for_replay(&mut self) {
        self.replay = Some(Vec::new());
    }

    /// Lets the kernel move long bodies of known length between two plain sockets.
    pub(super) fn allow_splice(&mut self) {
        self.may_splice = true;
    }

    /// Notes that the sink is shut down as soon as the message is written.
    pub(super) fn is_last(&mut self) {
        self.last = true;
    }

    /// Everything was written.
    pub(super) fn is_done(&self) -> bool {
        self.ended && !self.has_output() && !self.owes_end()
    }

    /// The source was read to the end of the body.
    pub(super) fn has_read_all(&self) -> bool {
        self.ended
    }

    /// Nothing was read beyond the end of the body.
    pub(super) fn is_drained(&self) -> bool {
        self.taken == self.input.len()
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
            || self.ended && self.owes_end()
            || self
                .splice
                .as_ref()
                .is_some_and(|splice| splice.pending() > 0)
    }

    /// True if the message can be sent again from its beginning.
    pub(super) fn can_replay(&self) -> bool {
        self.body == 0 || self.replay.is_some()
    }

    /// Starts again for a sink with this encoding; gives the buffer for the head of an HTTP/1
    /// message. With a `length` the message ends for the sink behind that number of body bytes:
    /// it was announced, so trailers are dropped. Only if [`BodyRelay::can_replay`].
    pub(super) fn rewind(&mut self, encoding: BodyEncoding, length: Option<u64>) -> &mut Vec<u8> {
        debug_assert!(self.can_replay(), "the body is not kept");
        (self.sent, self.raw, self.written) = (0, 0..0, 0);
        self.ended &= !std::mem::take(&mut self.ended_by_length);
        self.set_sink(encoding, length);
        self.out.clear();
        &mut self.out
    }

    /// Sets the encoding for the sink, and the length that was announced to it, if the source has
    /// an end mark of its own.
    pub fn set_sink(&mut self, encoding: BodyEncoding, length: Option<u64>) {
        (self.encoding, self.length) = (encoding, length);
    }

    /// Encodes the kept body again, behind the head. Without a body the head has told the sink.
    pub(super) fn replay(&mut self, has_body: bool) {
        self.end_sent = !has_body;
        if let Some(replay) = self.replay.take() {
            let encode = |part: &[u8]| encode_part(&mut self.out, self.encoding, part);
            body_filter::apply(&mut self.filter, &replay, encode);
            self.replay = Some(replay);
        }
        if self.ended && has_body {
            self.encode_end();
        } else {
            self.end_if_whole();
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

    /// True if an HTTP/2 sink has yet to be told that the body has ended.
    fn owes_end(&self) -> bool {
        self.encoding == BodyEncoding::Frames && !self.end_sent
    }

    /// Moves bytes until one side must be waited for. Ready when all was written, or on failure.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: BodySource<'_>,
        mut to: BodySink<'_>,
    ) -> Poll<Result<(), BodyRelayError>> {
        loop {
            // The body bytes that are there go out with the head, in one write.
            let is_decodable = !self.ended && self.malformed.is_none();
            if is_decodable && self.raw.is_empty() && self.out.len() < GROWN_BUFFER_BYTES {
                self.decode()?;
            }
            if self.has_output() || self.ended && self.owes_end() {
                ready!(self.poll_write(cx, &mut to)).map_err(BodyRelayError::Write)?;
                continue;
            }
            if let Some(malformed) = self.malformed {
                return Poll::Ready(Err(BodyRelayError::Malformed(malformed)));
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if let (BodySource::H1(from), BodySink::H1(to)) = (&from, &to)
                && (self.splice.is_some() || self.begins_splice())
            {
                ready!(self.poll_splice(cx, from, to))?;
                continue;
            }
            ready!(self.poll_read(cx, &mut from))?;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, to: &mut BodySink<'_>) -> Poll<io::Result<()>> {
        debug_assert!(self.sent <= self.out.len() && self.raw.end <= self.input.len());
        match to {
            BodySink::H1(to) => self.poll_write_bytes(cx, to),
            BodySink::H2(to) => self.poll_write_frames(cx, to).map_err(StreamError::into_io),
        }
    }

    fn poll_write_bytes(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
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
        self.note_written(written);
        Poll::Ready(Ok(()))
    }

    /// Sends what is there as DATA; the last of it, or trailers, with END_STREAM.
    fn poll_write_frames(
        &mut self,
        cx: &Context<'_>,
        to: &H2Stream,
    ) -> Poll<Result<(), StreamError>> {
        let copied = self.out.get(self.sent..).unwrap_or_default();
        let raw = self.input.get(self.raw.clone()).unwrap_or_default();
        let part = if copied.is_empty() { raw } else { copied };
        let is_last = self.ended && part.len() == copied.len() + raw.len();
        let ends = is_last && self.trailers.is_empty();
        let (length, sent) = (part.len(), to.send_content(part, ends)?);
        self.note_written(sent);
        if sent < length {
            return to.poll_content_ready(cx);
        }
        if is_last {
            if !ends {
                // They need no window, but space in the output, which all streams share.
                ready!(to.poll_head_ready(cx))?;
                let write = |block: &mut BlockHead<'_>| trailer_section(block, &self.trailers);
                self.written += to.send_trailers(write)? as u64;
            }
            self.end_sent = true;
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, written: usize) {
        self.written += written as u64;
        let of_out = written.min(self.out.len() - self.sent);
        self.raw.start += written - of_out;
        self.sent += of_out;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    /// Reads more of the body.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut BodySource<'_>,
    ) -> Poll<Result<(), BodyRelayError>> {
        let from = match from {
            BodySource::H1(from) => from,
            BodySource::H2(from) => return self.poll_read_frames(cx, from),
        };
        self.prepare_input();
        let read = ready!(from.poll_read_vec(cx, &mut self.input)).map_err(BodyRelayError::Read)?;
        self.read += read as u64;
        if read > 0 {
            return Poll::Ready(Ok(()));
        }
        // Only a body without a length ends with its connection (RFC 9112 section 8).
        if !matches!(self.decoder, Some(BodyDecoder::UntilClose)) {
            return Poll::Ready(Err(BodyRelayError::Cut));
        }
        self.end();
        Poll::Ready(Ok(()))
    }

    fn poll_read_frames(
        &mut self,
        cx: &Context<'_>,
        from: &H2Stream,
    ) -> Poll<Result<(), BodyRelayError>> {
        ready!(from.poll_content(cx)).map_err(cannot_read)?;
        self.input.clear();
        (self.taken, self.raw) = (0, 0..0);
        let (count, is_end) = from.read_content(&mut self.input, MAX_BUFFER_BYTES);
        self.read += count as u64;
        if is_end {
            self.decode()?;
            if !self.ended {
                self.trailers = from.take_trailers();
                self.end();
            }
        }
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

    /// Decodes the input until there is something to write and more data, or nothing left: the end
    /// of the body is found as early as it can be, and told with the last data.
    fn decode(&mut self) -> Result<(), BodyRelayError> {
        let mut must_write = false;
        while !must_write || !self.decoder.as_ref().is_none_or(BodyDecoder::is_in_data) {
            debug_assert!(self.taken <= self.input.len(), "decoded bytes were read");
            let input = self.input.get(self.taken..).unwrap_or_default();
            let step = match &mut self.decoder {
                Some(decoder) => match decoder.step(input) {
                    Ok(step) => step,
                    // What came before it is written first.
                    Err(malformed) if must_write => {
                        self.malformed = Some(malformed);
                        return Ok(());
                    }
                    Err(malformed) => return Err(BodyRelayError::Malformed(malformed)),
                },
                None if input.is_empty() => BodyStep::More,
                None => BodyStep::Data(input.len()),
            };
            match step {
                BodyStep::Data(count) => {
                    let data = self.taken..self.taken + count;
                    self.taken = data.end;
                    must_write = self.take_data(data)?;
                    if self.ended {
                        return Ok(());
                    }
                }
                BodyStep::Skip(count) => self.taken += count,
                BodyStep::More => return Ok(()),
                BodyStep::End => {
                    if let Some(decoder) = &mut self.decoder {
                        self.trailers = decoder.take_trailers();
                    }
                    self.end();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Queues body bytes; true if they must be written before more are decoded.
    fn take_data(&mut self, data: Range<usize>) -> Result<bool, BodyRelayError> {
        debug_assert!(data.end <= self.input.len(), "decoded bytes were read");
        let bytes = self.input.get(data.clone()).unwrap_or_default();
        self.body += bytes.len() as u64;
        if self.body > self.limit {
            return Err(BodyRelayError::TooLarge);
        }
        if self.length.is_some_and(|length| self.body > length) {
            let what = "more content than was declared";
            return Err(BodyRelayError::Malformed(BodyError::Malformed(what)));
        }
        // A body above the limit is sent once: keeping it would cost memory for each upload.
        if let Some(replay) = &mut self.replay {
            if replay.len() + bytes.len() <= MAX_REPLAY_BYTES {
                if let (true, Some(BodyDecoder::Length(left))) = (replay.is_empty(), &self.decoder)
                {
                    let whole = bytes.len() as u64 + left;
                    replay.reserve(whole.min(MAX_REPLAY_BYTES as u64) as usize);
                }
                replay.extend_from_slice(bytes);
            } else {
                self.replay = None;
            }
        }
        let must_write = match (&self.filter, self.encoding) {
            (Some(_), _) | (None, BodyEncoding::Chunked) => {
                let encode = |part: &[u8]| encode_part(&mut self.out, self.encoding, part);
                body_filter::apply(&mut self.filter, bytes, encode);
                self.out.len() >= MAX_BUFFER_BYTES
            }
            (None, BodyEncoding::Plain) => self.queue_raw(data, MAX_COPIED_BYTES),
            // Written from where they are, if there is nothing before them. Chunks may be small and
            // many: they share a frame.
            (None, BodyEncoding::Frames) => {
                let is_chunked = matches!(self.decoder, Some(BodyDecoder::Chunked(_)));
                let most = if self.out.is_empty() && !is_chunked {
                    0
                } else {
                    MAX_COPIED_BYTES
                };
                self.queue_raw(data, most)
            }
        };
        self.end_if_whole();
        Ok(must_write)
    }

    /// Queues bytes of the input behind `out`, as a copy if they are at most `most`; true if they
    /// must be written before more are decoded.
    fn queue_raw(&mut self, data: Range<usize>, most: usize) -> bool {
        let bytes = self.input.get(data.clone()).unwrap_or_default();
        let is_copied = bytes.len() <= most;
        if is_copied {
            self.out.extend_from_slice(bytes);
        } else {
            self.raw = data;
        }
        !is_copied || self.out.len() >= GROWN_BUFFER_BYTES
    }

    /// Ends the message if its announced length is reached. What the source sends behind it, such
    /// as trailers, is dropped.
    fn end_if_whole(&mut self) {
        // The sink waits for nothing that follows, so neither may the message.
        if self.length == Some(self.body) && !self.ended {
            self.taken = self.input.len();
            self.ended_by_length = true;
            self.end();
        }
    }

    fn end(&mut self) {
        self.ended = true;
        // A trailer must not set a field by which the backend identifies the client: servers merge
        // trailers into the header section.
        if !self.trailers.is_empty() && !self.forbidden.is_empty() {
            let forbidden = &self.forbidden;
            self.trailers.retain(|name| {
                let mut names = forbidden.iter();
                !names.any(|forbidden| is_same_or_twin(name, forbidden.as_bytes()))
            });
        }
        self.encode_end();
    }

    /// Encodes the end of the body for an HTTP/1 sink.
    fn encode_end(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.finish(|part| encode_part(&mut self.out, self.encoding, part));
        }
        if self.encoding == BodyEncoding::Chunked {
            trailer_section(&mut TextHead::new(&mut self.out), &self.trailers);
        }
    }

    /// Starts a splice if the rest of the body is long, of known length, and not in our memory.
    fn begins_splice(&mut self) -> bool {
        let Some(BodyDecoder::Length(left)) = &mut self.decoder else {
            return false;
        };
        let is_as_it_is = self.encoding == BodyEncoding::Plain && self.filter.is_none();
        // A body above the limit is refused where its bytes are counted.
        let is_allowed = self.body.saturating_add(*left) <= self.limit;
        let may_splice = self.may_splice && is_as_it_is && is_allowed && self.replay.is_none();
        if !may_splice || *left < SPLICE_THRESHOLD_BYTES || self.taken < self.input.len() {
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
    ) -> Poll<Result<(), BodyRelayError>> {
        let (Some(splice), Some(BodyDecoder::Length(left))) = (&mut self.splice, &mut self.decoder)
        else {
            return Poll::Ready(Ok(()));
        };
        match ready!(splice.poll_move(cx, from, to)) {
            Ok(0) if *left > 0 => Poll::Ready(Err(BodyRelayError::Cut)),
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
            Err(splice::TransferError::Read(error)) => {
                Poll::Ready(Err(BodyRelayError::Read(error)))
            }
            Err(splice::TransferError::Write(error)) => {
                Poll::Ready(Err(BodyRelayError::Write(error)))
            }
        }
    }
}

/// Encodes a part unless it is empty.
fn encode_part(out: &mut Vec<u8>, encoding: BodyEncoding, part: &[u8]) {
    match encoding {
        _ if part.is_empty() => {}
        BodyEncoding::Chunked => encode::chunk(out, part),
        BodyEncoding::Plain | BodyEncoding::Frames => out.extend_from_slice(part),
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
