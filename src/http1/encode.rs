//! Writes heads, chunks and trailers as text. Must not know which fields a head has: it is a
//! [`HeadWriter`] for those who decide that.

use crate::{
    base::short_text::ShortText,
    http::{
        head_writer::{HeadWriter, RequestLine},
        message::BodyFraming,
    },
};

/// Writer of one head as text.
#[derive(Debug)]
pub struct TextHead<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> TextHead<'a> {
    /// Creates the writer of a head that is appended to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }
}

impl HeadWriter for TextHead<'_> {
    fn request_line(&mut self, line: RequestLine<'_>) {
        self.out.extend_from_slice(line.method);
        self.out.push(b' ');
        self.out.extend_from_slice(line.target);
        self.out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    fn status_line(&mut self, status: u16, phrase: &[u8]) {
        self.out.extend_from_slice(b"HTTP/1.1 ");
        let status = ShortText::number(status.into());
        self.out.extend_from_slice(status.as_bytes());
        self.out.push(b' ');
        self.out.extend_from_slice(phrase);
        self.out.extend_from_slice(b"\r\n");
    }

    fn trailer_start(&mut self) {
        // Behind the last chunk.
        self.out.extend_from_slice(b"0\r\n");
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    fn http1_field(&mut self, name: &[u8], value: &[u8]) {
        self.field(name, value);
    }

    fn framing(&mut self, framing: BodyFraming) {
        match framing {
            BodyFraming::Length(length) => {
                let length = ShortText::number(length);
                self.field(b"Content-Length", length.as_bytes());
            }
            BodyFraming::Streamed(length) => {
                // Both together are how requests are smuggled, RFC 9112 section 6.1.
                debug_assert!(length.is_none(), "HTTP/1 has a length or chunks");
                self.field(b"Transfer-Encoding", b"chunked");
            }
            BodyFraming::None | BodyFraming::UntilClose => {}
        }
    }

    fn end(&mut self) {
        self.out.extend_from_slice(b"\r\n");
    }
}

/// Appends one chunk; `data` is not empty, as an empty chunk would end the body.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    chunk_size(out, data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the size line of a chunk; its data and a line end must follow.
pub fn chunk_size(out: &mut Vec<u8>, size: usize) {
    debug_assert!(size > 0, "an empty chunk would end the body");
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        let digit = (size >> (place * 4)) & 0xf;
        out.push(b"0123456789abcdef".get(digit).copied().unwrap_or_default());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::{message::Trailers, rules::RESPONSE_LIMITS},
        http1::body::{BodyDecoder, BodyStep},
    };

    #[test]
    fn what_is_chunked_decodes_to_the_same() {
        let mut out = Vec::new();
        for size in [1, 9, 10, 15, 16, 255, 4096, 70_000] {
            chunk(&mut out, &vec![b'x'; size]);
        }
        let mut end = TextHead::new(&mut out);
        end.trailer_start();
        end.field(b"X-A", b"b");
        end.end();
        let (mut decoder, mut rest, mut total) =
            (BodyDecoder::chunked(RESPONSE_LIMITS), out.as_slice(), 0);
        loop {
            match decoder.step(rest).unwrap() {
                BodyStep::Data(n) => {
                    total += n;
                    rest = &rest[n..];
                }
                BodyStep::Skip(n) => rest = &rest[n..],
                BodyStep::More => panic!("it must end"),
                BodyStep::End => break,
            }
        }
        let mut trailers = Trailers::new();
        trailers.push(b"X-A", b"b");
        assert_eq!(
            (total, decoder.take_trailers()),
            (1 + 9 + 10 + 15 + 16 + 255 + 4096 + 70_000, trailers)
        );
    }
}
