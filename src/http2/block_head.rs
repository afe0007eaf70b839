//! Writes heads and trailers as field blocks (RFC 9113 section 8).

use super::hpack::HpackEncoder;
use crate::{
    base::short_text::ShortText,
    http::{
        head_writer::{HeadWriter, RequestLine},
        message::BodyFraming,
    },
};

/// Writer of one field block.
#[derive(Debug)]
pub struct BlockHead<'a> {
    encoder: &'a mut HpackEncoder,
    out: &'a mut Vec<u8>,
}

impl<'a> BlockHead<'a> {
    /// Creates the writer of a block that `encoder` has begun; it is appended to `out`.
    pub fn new(encoder: &'a mut HpackEncoder, out: &'a mut Vec<u8>) -> Self {
        Self { encoder, out }
    }
}

impl HeadWriter for BlockHead<'_> {
    fn request_line(&mut self, line: RequestLine<'_>) {
        // RFC 8441 section 4: a WebSocket is an extended CONNECT.
        let method = if line.is_websocket {
            b"CONNECT"
        } else {
            line.method
        };
        let scheme: &[u8] = if line.is_secure { b"https" } else { b"http" };
        self.encoder.field(self.out, b":method", method);
        self.encoder.field(self.out, b":scheme", scheme);
        self.encoder.field(self.out, b":path", line.target);
        if !line.authority.is_empty() {
            self.encoder.field(self.out, b":authority", line.authority);
        }
        if line.is_websocket {
            self.encoder.field(self.out, b":protocol", b"websocket");
        }
    }

    fn status_line(&mut self, status: u16, _phrase: &[u8]) {
        // RFC 8441 section 5: a 200 takes the place of 101.
        self.encoder
            .status(self.out, if status == 101 { 200 } else { status });
    }

    fn trailer_start(&mut self) {}

    fn field(&mut self, name: &[u8], value: &[u8]) {
        // RFC 9113 section 8.2.1: no blanks around a value. HTTP/1 allows them.
        self.encoder.field(self.out, name, value.trim_ascii());
    }

    fn http1_field(&mut self, _name: &[u8], _value: &[u8]) {}

    fn framing(&mut self, framing: BodyFraming) {
        if let Some(length) = framing.declared_length() {
            let length = ShortText::number(length);
            self.encoder
                .field(self.out, b"content-length", length.as_bytes());
        }
    }

    fn end(&mut self) {}
}

/// True for a target that HTTP/2 can express: no byte that no URI may have (RFC 3986 appendix A),
/// as servers reset such streams, which would count against them. Those that are widely sent and
/// accepted may pass.
pub fn is_expressible(target: &[u8]) -> bool {
    let is_good = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'<' | b'>' | b'`');
    target.iter().all(is_good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::hpack::{FieldList, HpackDecoder, SizeLimits};

    /// Pseudo-header fields of a request.
    fn request(target: &str, authority: &str) -> Vec<String> {
        let mut block = Vec::new();
        BlockHead::new(&mut HpackEncoder::default(), &mut block).request_line(RequestLine {
            method: b"OPTIONS",
            is_secure: true,
            authority: authority.as_bytes(),
            target: target.as_bytes(),
            is_websocket: false,
        });
        let mut fields = FieldList::default();
        let limits = SizeLimits {
            kept: 1 << 10,
            decoded: 1 << 10,
        };
        HpackDecoder::default()
            .decode(&block, limits, &mut fields)
            .unwrap();
        let text = |bytes| str::from_utf8(bytes).unwrap();
        fields
            .iter()
            .map(|(name, value)| format!("{} {}", text(name), text(value)))
            .collect()
    }

    #[test]
    fn targets_that_no_uri_has_are_refused_and_never_changed() {
        for byte in 0x21..=0x7e_u8 {
            let target = format!("/a{}b?c{0}d", char::from(byte));
            let is_good = !b"#<>`".contains(&byte);
            assert_eq!(is_expressible(target.as_bytes()), is_good, "{target}");
            assert_eq!(request(&target, "a")[2], format!(":path {target}"));
        }
        for target in ["*", "/", "/?", "//a", "/a//b", "/..", "/%2e", "/{a|b}"] {
            assert!(is_expressible(target.as_bytes()), "{target}");
            assert_eq!(request(target, "a")[2], format!(":path {target}"));
        }
        for byte in [0, b' ', b'\t', 0x7f, 0x80, 0xff] {
            assert!(!is_expressible(&[b'/', byte]), "{byte:#x}");
        }
    }

    #[test]
    fn a_request_without_a_host_has_no_authority() {
        let head = request("/", "");
        assert_eq!(head, [":method OPTIONS", ":scheme https", ":path /"]);
        assert_eq!(request("/", "a:81")[3..], [":authority a:81"]);
    }
}
