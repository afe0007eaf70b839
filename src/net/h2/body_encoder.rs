//! Sends the HTTP/1.1 message that the engine writes as frames: splits off the head, decodes the
//! body.
//!
//! Bounded: accepts only as many bytes as the peer's windows and the output buffer can take.

use std::{
    borrow::Cow,
    io,
    task::{Context, Poll},
};

use super::{connection::Connection, state::broken_pipe};
use crate::{
    http::{fields::KnownField, rules::HeadLimits},
    http1::{
        body::{BodyDecoder, BodyError, BodyStep},
        head_end,
    },
    http2::{frame::ErrorCode, hpack::HpackEncoder},
};

/// Bytes of a head that we write ourselves: the peer's, and fields that routes add.
const MAX_HEAD_BYTES: usize = 512 << 10;
/// Fields of such a head.
pub(super) const MAX_FIELDS: usize = 512;
/// Trailer limits; those of peers were checked when they were read.
const TRAILER_LIMITS: HeadLimits = HeadLimits {
    fields: MAX_FIELDS,
    bytes: MAX_HEAD_BYTES,
};

/// Content after a head.
#[derive(Debug)]
pub(super) enum BodyEncoder {
    /// Body, and the bytes of it that are known to follow.
    Body(BodyDecoder, usize),
    /// Bytes of another protocol.
    Raw,
    /// END_STREAM was sent.
    Done,
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn malformed(error: BodyError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Collects a head in `head`; returns it once complete, and the bytes of `input` that belong to it.
pub(super) fn collect<'i>(
    head: &mut Vec<u8>,
    input: &'i [u8],
) -> io::Result<(Option<Cow<'i, [u8]>>, usize)> {
    if head.is_empty()
        && let Some(whole) = head_end(input, 0).and_then(|end| input.get(..end))
    {
        return Ok((Some(Cow::Borrowed(whole)), whole.len()));
    }
    let before = head.len();
    head.extend_from_slice(input);
    let Some(end) = head_end(head, before) else {
        if head.len() > MAX_HEAD_BYTES {
            return Err(invalid("a head that does not end"));
        }
        return Ok((None, input.len()));
    };
    head.truncate(end);
    Ok((Some(Cow::Owned(std::mem::take(head))), end - before))
}

/// Finds the framing of the body; `Transfer-Encoding` overrides a length.
pub(super) fn framing(fields: &[httparse::Header<'_>]) -> io::Result<Option<BodyDecoder>> {
    let mut decoder = None;
    for field in fields {
        match KnownField::of(field.name.as_bytes()) {
            KnownField::ContentLength if decoder.is_none() => {
                let length = str::from_utf8(field.value).ok();
                let length = length.and_then(|it| it.parse().ok());
                decoder = Some(BodyDecoder::Length(length.ok_or(invalid("no length"))?));
            }
            KnownField::TransferEncoding => decoder = Some(BodyDecoder::chunked(TRAILER_LIMITS)),
            _ => {}
        }
    }
    Ok(decoder)
}

/// Fields that are forwarded: RFC 9113 section 8.2.2 forbids the hop-by-hop ones.
pub(super) fn end_to_end_fields<'f, 'b>(
    fields: &'f [httparse::Header<'b>],
) -> impl Iterator<Item = &'f httparse::Header<'b>> {
    let is_kept =
        |field: &&httparse::Header<'_>| !KnownField::of(field.name.as_bytes()).is_hop_by_hop();
    fields.iter().filter(is_kept)
}

/// Splits a trailer section into names and values.
fn trailers(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    section.split(|byte| *byte == b'\n').filter_map(|line| {
        let (name, value) = line.split_at_checked(memchr::memchr(b':', line)?)?;
        Some((name, value.get(1..)?.trim_ascii()))
    })
}

impl BodyEncoder {
    /// Sends body bytes as far as the windows allow.
    pub(super) fn write(
        &mut self,
        connection: &Connection,
        id: u32,
        input: &[u8],
    ) -> io::Result<usize> {
        if matches!(self, Self::Done) {
            // The body of a response to HEAD, written because the engine refused the request before
            // it knew the method.
            return Ok(input.len());
        }
        let (used, is_end) = connection.send_data(id, |out, capacity| {
            let (used, is_end) = self.fill(out, capacity, input)?;
            let ends = is_end && self.trailers().is_empty();
            Ok(((used, is_end), ends))
        })?;
        if is_end {
            let section = self.trailers();
            if !section.is_empty() {
                let write = |encoder: &mut HpackEncoder, out: &mut Vec<u8>| {
                    trailers(section).for_each(|(name, value)| encoder.field(out, name, value));
                };
                connection
                    .send_fields(id, true, write)
                    .map_err(broken_pipe)?;
            }
            *self = Self::Done;
        } else if used == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(used)
    }

    /// Appends content of `input` to `out`, at most `capacity` bytes; returns the bytes used, and
    /// true at the end of the content.
    fn fill(
        &mut self,
        out: &mut Vec<u8>,
        capacity: usize,
        input: &[u8],
    ) -> io::Result<(usize, bool)> {
        let Self::Body(decoder, known) = self else {
            let raw = input.get(..capacity).unwrap_or(input);
            out.extend_from_slice(raw);
            return Ok((raw.len(), false));
        };
        let (mut used, mut left) = (0, capacity);
        loop {
            debug_assert!(used <= input.len(), "steps lie within the input");
            let rest = input.get(used..).unwrap_or_default();
            if *known == 0 {
                match decoder.step(rest).map_err(malformed)? {
                    BodyStep::Data(count) => *known = count,
                    BodyStep::Skip(count) => used += count,
                    BodyStep::More => return Ok((used, false)),
                    BodyStep::End => return Ok((used, true)),
                }
                continue;
            }
            let count = (*known).min(rest.len()).min(left);
            if count == 0 {
                return Ok((used, false));
            }
            out.extend_from_slice(rest.get(..count).unwrap_or_default());
            *known -= count;
            used += count;
            left -= count;
        }
    }

    /// Trailer section, once the content is complete.
    fn trailers(&self) -> &[u8] {
        match self {
            Self::Body(decoder, _) => decoder.trailers(),
            Self::Raw | Self::Done => &[],
        }
    }

    /// Ready when a write makes progress or fails.
    pub(super) fn poll_writable(
        &self,
        connection: &Connection,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Done => Poll::Ready(Ok(())),
            Self::Body(..) | Self::Raw => connection.poll_send_content(id, cx).map_err(broken_pipe),
        }
    }

    /// Ends a tunnel. A message ends by its own framing, or is incomplete.
    pub(super) fn finish(&mut self, connection: &Connection, id: u32) {
        if matches!(self, Self::Raw) {
            // Fails only on a closed stream.
            let _ = connection.send_data(id, |_, _| Ok(((), true)));
            *self = Self::Done;
        }
    }

    /// Code for a reset at this point; `code` is that for an incomplete message.
    pub(super) const fn cut(&self, code: ErrorCode) -> ErrorCode {
        match self {
            Self::Raw => ErrorCode::CANCEL,
            Self::Body(..) | Self::Done => code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_collected_from_any_parts() {
        let text = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        for cut in 0..text.len() {
            let (first, second) = text.split_at(cut);
            let mut head = Vec::new();
            let (mut whole, mut count) = collect(&mut head, first).unwrap();
            if whole.is_none() {
                let (found, more) = collect(&mut head, second).unwrap();
                (whole, count) = (found, count + more);
            }
            let whole = whole.unwrap().into_owned();
            assert_eq!(
                (&whole[..], count),
                (&text[..text.len() - 4], text.len() - 4)
            );
            assert!(head.is_empty());
        }
    }

    #[test]
    fn trailers_are_read_from_their_section() {
        let section = b"Grpc-Status: 0\r\nx:\r\ny: a:b \r\n";
        let all: Vec<_> = trailers(section).collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"Grpc-Status", b"0"), (b"x", b""), (b"y", b"a:b")];
        assert_eq!(all, expected);
    }
}
