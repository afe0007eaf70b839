//! Writes heads and bodies: one pass over the fields that are kept, then the added ones.
//!
//! The caller adds fields between `*_line`/[`fields`] and [`end`]. Framing is always written here,
//! never copied.

use crate::{
    base::short_text::ShortText,
    http::{
        fields::HeadFields,
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
        request_line(self.out, line.method, line.target);
    }

    fn status_line(&mut self, status: u16, phrase: &[u8]) {
        status_line(self.out, status, phrase);
    }

    fn trailer_start(&mut self) {
        self.out.extend_from_slice(b"0\r\n");
    }

    #[inline]
    fn field(&mut self, name: &[u8], value: &[u8]) {
        field(self.out, name, value);
    }

    #[inline]
    fn http1_field(&mut self, name: &[u8], value: &[u8]) {
        field(self.out, name, value);
    }

    fn framing(&mut self, framing: BodyFraming) {
        if let Some(length) = framing.declared_length() {
            content_length(self.out, length);
        }
        if let BodyFraming::Streamed(_) = framing {
            chunked(self.out);
        }
    }

    fn end(&mut self) {
        end(self.out);
    }
}

/// Appends `GET /path HTTP/1.1`.
pub fn request_line(out: &mut Vec<u8>, method: &[u8], target: &[u8]) {
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Appends `HTTP/1.1 200 OK`.
pub fn status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

/// Appends every field that is not struck out.
pub fn fields(out: &mut Vec<u8>, fields: &HeadFields, bytes: &[u8]) {
    for each in fields.iter() {
        field(out, each.name.get(bytes), each.value.get(bytes));
    }
}

/// Appends one field.
#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends `Content-Length`.
pub fn content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    number(out, length);
    out.extend_from_slice(b"\r\n");
}

/// Appends `Transfer-Encoding: chunked`.
pub fn chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
}

/// Appends `Connection: upgrade` and `Upgrade`.
pub fn upgrade(out: &mut Vec<u8>, protocol: &[u8]) {
    out.extend_from_slice(b"Connection: upgrade\r\n");
    field(out, b"Upgrade", protocol);
}

/// Appends the empty line after the fields.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
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

/// Appends a decimal number, without the cost of formatting.
pub fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(ShortText::number(value).as_bytes());
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
