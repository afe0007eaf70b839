//! Received message, read as HTTP/1.1 text: its head, then the body in the framing that the head
//! announces.

use std::{collections::VecDeque, io};

use tokio::io::ReadBuf;

use super::StreamError;
use crate::{
    http::fields::KnownField,
    http1::encode,
    http2::{
        fields::{is_name, trimmed},
        hpack::FieldList,
    },
};

/// Capacity that is kept for a body after all of it was read.
const KEPT_CONTENT_BYTES: usize = 64 << 10;

/// Content after the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// None.
    None,
    /// Chunked, which leaves a place for trailers: whether there are any is known only at the end,
    /// even if a length was declared.
    Chunked,
    /// Bytes of another protocol, RFC 8441.
    Raw,
}

/// Head as HTTP/1.1 text.
#[derive(Debug)]
pub(super) struct Http1Head {
    pub text: Vec<u8>,
    pub body: BodyKind,
    /// `Content-Length` of the body, which `text` does not have.
    pub length: Option<u64>,
}

/// Progress of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecvPhase {
    /// The final head was not received.
    Head,
    Body,
    /// The whole message was received.
    Whole,
    /// The whole message was received and encoded; only `text` is left to read.
    Closed,
}

/// Unread part of a message.
#[derive(Debug)]
pub(super) struct RecvBuffer {
    /// Heads, then the lines around each chunk; read up to `at`.
    text: Vec<u8>,
    at: usize,
    phase: RecvPhase,
    body: BodyKind,
    /// Unread content, which still occupies the receive windows.
    data: VecDeque<u8>,
    /// Unread bytes of the current chunk.
    chunk: usize,
    declared: Option<u64>,
    /// Declared bytes that are still expected.
    length: Option<u64>,
    /// Trailer section.
    trailers: Vec<u8>,
    /// Set if the message is cut though its stream ends properly.
    failure: Option<StreamError>,
}

impl RecvBuffer {
    /// Creates an empty buffer.
    pub(super) const fn new() -> Self {
        Self {
            text: Vec::new(),
            at: 0,
            phase: RecvPhase::Head,
            body: BodyKind::None,
            data: VecDeque::new(),
            chunk: 0,
            declared: None,
            length: None,
            trailers: Vec::new(),
            failure: None,
        }
    }

    /// Sets the final head.
    pub(super) fn set_head(&mut self, head: Http1Head) {
        self.push_interim(head.text);
        self.phase = RecvPhase::Body;
        self.body = head.body;
        (self.declared, self.length) = (head.length, head.length);
    }

    /// Declared length of a body that is read in chunks.
    pub(super) const fn declared_length(&self) -> Option<u64> {
        match self.body {
            BodyKind::Chunked => self.declared,
            BodyKind::None | BodyKind::Raw => None,
        }
    }

    /// Appends an interim head.
    pub(super) fn push_interim(&mut self, text: Vec<u8>) {
        if self.at == self.text.len() {
            (self.text, self.at) = (text, 0);
        } else {
            self.text.extend_from_slice(&text);
        }
    }

    /// True once the final head was received.
    pub(super) fn has_head(&self) -> bool {
        self.phase != RecvPhase::Head
    }

    /// Appends content. False: more than was declared, which is request smuggling if passed on.
    pub(super) fn push_content(&mut self, bytes: &[u8]) -> bool {
        if let Some(length) = &mut self.length {
            match length.checked_sub(bytes.len() as u64) {
                Some(left) => *length = left,
                None => return false,
            }
        }
        self.data.extend(bytes);
        true
    }

    /// Ends the message. False: less content than was declared.
    pub(super) fn finish(&mut self, trailers: Vec<u8>) -> bool {
        let is_whole = self.length.unwrap_or(0) == 0;
        if is_whole {
            self.trailers = trailers;
            self.phase = RecvPhase::Whole;
        }
        is_whole
    }

    /// Cuts the message: it is read up to here and then fails with `why`.
    pub(super) fn fail(&mut self, why: StreamError) {
        self.failure = Some(why);
    }

    /// Error that cuts the message.
    pub(super) const fn failure(&self) -> Option<StreamError> {
        self.failure
    }

    /// Unread bytes of heads and chunk lines.
    pub(super) fn unread_text(&self) -> usize {
        self.text.len() - self.at
    }

    /// True if the message has content; otherwise it is discarded.
    pub(super) const fn expects_content(&self) -> bool {
        !matches!(self.body, BodyKind::None)
    }

    /// Unread content bytes.
    pub(super) fn unread_content(&self) -> usize {
        self.data.len()
    }

    /// True if there are bytes to read.
    pub(super) fn has_bytes(&self) -> bool {
        self.at < self.text.len()
            || self.unread_content() > 0
            || self.phase == RecvPhase::Whole && self.body == BodyKind::Chunked
    }

    /// True if nothing more will be received.
    pub(super) fn is_finished(&self) -> bool {
        match self.phase {
            RecvPhase::Head => false,
            RecvPhase::Body => self.body == BodyKind::None,
            RecvPhase::Whole | RecvPhase::Closed => true,
        }
    }

    /// Reads as much as fits into `target`; returns how much of it was content.
    pub(super) fn read(&mut self, target: &mut ReadBuf<'_>) -> usize {
        let mut content = 0;
        while target.remaining() > 0 {
            if let Some(lines @ [_, ..]) = self.text.get(self.at..) {
                let fits = lines.get(..target.remaining()).unwrap_or(lines);
                target.put_slice(fits);
                self.at += fits.len();
            } else if self.unread_content() > 0 {
                content += self.read_content(target);
            } else if self.phase == RecvPhase::Whole {
                self.phase = RecvPhase::Closed;
                self.clear_text();
                if self.body == BodyKind::Chunked {
                    encode::last_chunk(&mut self.text, &self.trailers);
                }
            } else {
                break;
            }
        }
        content
    }

    fn read_content(&mut self, target: &mut ReadBuf<'_>) -> usize {
        let is_chunked = self.body == BodyKind::Chunked;
        if is_chunked && self.chunk == 0 {
            self.chunk = self.unread_content();
            self.clear_text();
            encode::chunk_size(&mut self.text, self.chunk);
            return 0;
        }
        let most = if is_chunked { self.chunk } else { usize::MAX };
        let count = self.unread_content().min(most).min(target.remaining());
        let mut left = count;
        let (front, back) = self.data.as_slices();
        for bytes in [front, back] {
            let part = bytes.get(..left).unwrap_or(bytes);
            target.put_slice(part);
            left -= part.len();
        }
        self.data.drain(..count);
        if self.data.is_empty() {
            self.data.clear();
            self.data.shrink_to(KEPT_CONTENT_BYTES);
        }
        if is_chunked {
            self.chunk -= count;
            if self.chunk == 0 {
                self.clear_text();
                encode::end(&mut self.text);
            }
        }
        count
    }

    fn clear_text(&mut self) {
        self.text.clear();
        self.at = 0;
    }
}

/// Error of reading a message that was cut.
pub(super) fn cut(ended: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, ended)
}

/// Writes trailers as the section after the last chunk; `None` if one of them is not allowed.
pub(super) fn trailer_section(fields: &FieldList) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (name, value) in fields.iter() {
        let is_allowed = is_name(name) && !KnownField::of(name).is_hop_by_hop();
        encode::field(&mut out, name, trimmed(value).filter(|_| is_allowed)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::rng::Random,
        http::rules::RESPONSE_LIMITS,
        http1::body::{BodyDecoder, BodyStep},
    };

    /// Body and trailers of chunks.
    fn content(text: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut decoder, mut at, mut out) = (BodyDecoder::chunked(RESPONSE_LIMITS), 0, Vec::new());
        loop {
            match decoder.step(&text[at..]).unwrap() {
                BodyStep::Data(count) => {
                    out.extend_from_slice(&text[at..at + count]);
                    at += count;
                }
                BodyStep::Skip(count) => at += count,
                BodyStep::More => panic!("no end"),
                BodyStep::End => {
                    assert_eq!(at, text.len());
                    return (out, decoder.trailers().to_vec());
                }
            }
        }
    }

    #[test]
    fn any_order_of_frames_and_reads_gives_the_same_body() {
        let mut random = Random::seeded(12);
        for round in 0..3_000 {
            let body = if round % 2 == 0 {
                BodyKind::Chunked
            } else {
                BodyKind::Raw
            };
            let sent: Vec<u8> = (0..random.below(3_000))
                .map(|_| random.bits() as u8)
                .collect();
            let mut recv_buffer = RecvBuffer::new();
            recv_buffer.push_interim(b"1".to_vec());
            recv_buffer.set_head(Http1Head {
                text: b"2".to_vec(),
                body,
                length: (round % 3 == 0).then_some(sent.len() as u64),
            });
            let (mut rest, mut text, mut taken) = (&sent[..], Vec::new(), 0);
            let mut whole = false;
            while !whole || recv_buffer.has_bytes() {
                if random.below(2) == 0 && !whole {
                    let (now, later) = rest.split_at(random.below(rest.len() + 1).min(700));
                    assert!(recv_buffer.push_content(now));
                    rest = later;
                    if rest.is_empty() {
                        assert!(recv_buffer.finish(b"x: y\r\n".to_vec()));
                        whole = true;
                    }
                }
                let mut buffer = [0; 500];
                let buffer = &mut buffer[..random.below(500)];
                let mut target = ReadBuf::new(buffer);
                taken += recv_buffer.read(&mut target);
                text.extend_from_slice(target.filled());
            }
            assert!(recv_buffer.is_finished());
            assert_eq!(taken, sent.len());
            assert_eq!(&text[..2], b"12");
            if body == BodyKind::Chunked {
                assert_eq!(content(&text[2..]), (sent, b"x: y\r\n".to_vec()));
            } else {
                assert_eq!(&text[2..], sent);
            }
        }
    }

    #[test]
    fn a_length_is_kept_exactly() {
        for (came, good_push, good_end) in [(3, true, false), (4, true, true), (5, false, true)] {
            let mut recv_buffer = RecvBuffer::new();
            recv_buffer.set_head(Http1Head {
                text: Vec::new(),
                body: BodyKind::Chunked,
                length: Some(4),
            });
            assert_eq!(recv_buffer.push_content(&vec![0; came]), good_push);
            if good_push {
                assert_eq!(recv_buffer.finish(Vec::new()), good_end);
                assert_eq!(recv_buffer.is_finished(), good_end, "a cut is no end");
            }
        }
    }
}
