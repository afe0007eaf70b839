//! Parses a request head and accepts it only if it has exactly one meaning (RFC 9112 sections 2 to
//! 6, 9).

use std::mem::MaybeUninit;

use super::{
    HttpVersion, content_length,
    fields::{HeadFields, KnownField, Span},
    has_only_crlf, list,
};
use crate::reason::Reason;

/// Most fields of a head for any configuration; they are parsed on the stack.
pub const MAX_FIELDS: usize = 256;

/// Size limits of a head: `listeners.NAME.http`.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Fields, at most [`MAX_FIELDS`].
    pub fields: usize,
    /// Bytes of the whole head; the target may have half of them.
    pub bytes: usize,
}

/// Length of a request body, RFC 9112 section 6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestFraming {
    /// No body.
    #[default]
    None,
    /// This many bytes, not 0.
    Length(u64),
    /// Chunked.
    Chunked,
}

/// Cause for which a request head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct RequestHeadError {
    /// Reason that gives the status.
    pub reason: Reason,
    /// Text for the log at debug level.
    pub detail: &'static str,
}

const fn malformed(detail: &'static str) -> RequestHeadError {
    RequestHeadError {
        reason: Reason::RequestError,
        detail,
    }
}

/// Request head: its buffer, and spans into it. Bytes after [`RequestHead::len`] belong to the body
/// or the next request.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// Bytes read from the client since this head began.
    pub bytes: Vec<u8>,
    /// Length of the head with its empty line.
    pub len: usize,
    /// Fields; those of one hop are struck out already.
    pub fields: HeadFields,
    /// Method as sent.
    pub method: Span,
    /// Target for the backend: origin-form or `*`.
    pub target: Span,
    /// Target without its query.
    pub path: Span,
    /// Host name with port, from the target or the field; empty only for HTTP/1.0 without one.
    pub host: Span,
    /// Version of the client.
    pub version: HttpVersion,
    /// Framing of the body.
    pub framing: RequestFraming,
    /// Length of a chunked body, which only HTTP/2 can declare; [`RequestHead::parse`] leaves it to
    /// its caller.
    pub declared_length: Option<u64>,
    /// True if the client allows another request on this connection.
    pub keep_alive: bool,
    /// Protocol of a valid request to switch, RFC 9110 section 7.8.
    pub upgrade: Option<Span>,
    /// True if the client accepts trailers (`TE`), RFC 9110 section 10.1.4.
    pub takes_trailers: bool,
    /// True if the client waits for 100 before it sends the body.
    pub expects_continue: bool,
}

impl RequestHead {
    /// Length of the body, if known.
    pub fn body_length(&self) -> Option<u64> {
        match self.framing {
            RequestFraming::Length(length) => Some(length),
            RequestFraming::None | RequestFraming::Chunked => self.declared_length,
        }
    }

    /// Bytes of `span`.
    #[inline]
    pub fn text(&self, span: Span) -> &[u8] {
        span.get(&self.bytes)
    }

    /// Value of the first field called `known`.
    pub fn find(&self, known: KnownField) -> Option<&[u8]> {
        self.fields.find(known, &self.bytes)
    }

    /// Makes it empty, keeping the allocations.
    pub fn clear(&mut self) {
        self.forget();
        self.bytes.clear();
    }

    /// Resets all but the bytes, so that nothing of an earlier request is taken for this one's.
    fn forget(&mut self) {
        let (bytes, mut fields) = (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.fields),
        );
        fields.clear();
        *self = Self {
            bytes,
            fields,
            ..Self::default()
        };
    }

    /// Parses a head at the beginning of `self.bytes`. `Ok(false)`: more bytes are needed.
    ///
    /// # Errors
    /// The request is refused; nothing after it on the connection may be read as a request.
    pub fn parse(&mut self, limits: HeadLimits) -> Result<bool, RequestHeadError> {
        self.forget();
        let Self { bytes, fields, .. } = self;
        let mut slots = [MaybeUninit::<httparse::Header<'_>>::uninit(); MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let slots = slots
            .get_mut(..limits.fields.min(MAX_FIELDS))
            .unwrap_or_default();
        let outcome = httparse::ParserConfig::default().parse_request_with_uninit_headers(
            &mut request,
            bytes,
            slots,
        );
        let len = match outcome {
            Ok(httparse::Status::Complete(len)) if len <= limits.bytes => len,
            Ok(httparse::Status::Partial) if bytes.len() < limits.bytes => {
                return check_partial(bytes, limits).map(|()| false);
            }
            Ok(_) => return Err(too_large(bytes, limits)),
            Err(error) => return Err(refusal_of(error, bytes)),
        };
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(malformed("the request line is incomplete"));
        };
        if target.len() > limits.bytes / 2 {
            return Err(too_large(bytes, limits));
        }
        fields.fill(request.headers, bytes);
        let (method, target) = (
            Span::of(method.as_bytes(), bytes),
            Span::of(target.as_bytes(), bytes),
        );
        self.len = len;
        self.method = method;
        self.version = if version == 0 {
            HttpVersion::Http10
        } else {
            HttpVersion::Http11
        };
        self.check(target).map(|()| true)
    }

    /// Checks what the tokenizer leaves open. Bytes and line ends come first, as the meaning of
    /// fields depends on them.
    fn check(&mut self, target: Span) -> Result<(), RequestHeadError> {
        debug_assert!(
            self.len <= self.bytes.len(),
            "the head was found in the bytes"
        );
        let head = self.bytes.get(..self.len).unwrap_or_default();
        if head.starts_with(b"\n") || head.starts_with(b"\r\n\r") || head.starts_with(b"\r\n\n") {
            return Err(malformed("empty lines before the request"));
        }
        if !has_only_crlf(head) {
            return Err(malformed("a line ends without a carriage return"));
        }
        if self.text(self.method) == b"CONNECT" {
            return Err(RequestHeadError {
                reason: Reason::MethodNotAllowed,
                detail: "CONNECT is not served",
            });
        }
        self.framing = self.check_framing()?;
        self.check_target(target)?;
        self.check_connection()
    }

    /// Decides the framing, RFC 9112 section 6.3: one length, or chunked, or none. Everything else
    /// is refused, as two lengths, or a length beside `chunked`, let a second parser find another
    /// end of the body (CL.TE and TE.CL smuggling).
    fn check_framing(&self) -> Result<RequestFraming, RequestHeadError> {
        let (mut length, mut coding) = (None, None);
        for field in self.fields.iter() {
            match field.known {
                KnownField::ContentLength if length.is_some() => {
                    return Err(malformed("several Content-Length"));
                }
                KnownField::ContentLength => {
                    let value = content_length(self.text(field.value));
                    length = Some(value.ok_or(malformed("a malformed Content-Length"))?);
                }
                KnownField::TransferEncoding if coding.is_some() => {
                    return Err(malformed("several Transfer-Encoding"));
                }
                KnownField::TransferEncoding => coding = Some(self.text(field.value)),
                _ => {}
            }
        }
        match (length, coding) {
            (None | Some(0), None) => Ok(RequestFraming::None),
            (Some(length), None) => Ok(RequestFraming::Length(length)),
            (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
            (None, Some(_)) if self.version == HttpVersion::Http10 => {
                Err(malformed("Transfer-Encoding in HTTP/1.0"))
            }
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(RequestFraming::Chunked)
            }
            (None, Some(coding)) => Err(refused_coding(coding)),
        }
    }

    /// Checks target and Host, RFC 9112 section 3.2 and RFC 9110 section 7.2: one authority, one
    /// path. Two different authorities would let routing and the backend disagree about the site.
    fn check_target(&mut self, target: Span) -> Result<(), RequestHeadError> {
        let bytes = &self.bytes;
        let text = target.get(bytes);
        if !text
            .iter()
            .all(|byte| (0x21..=0x7e).contains(byte) && *byte != b'#')
        {
            return Err(malformed(
                "a fragment, or a byte that is not ASCII, in the target",
            ));
        }
        let mut hosts = self
            .fields
            .iter()
            .filter(|field| field.known == KnownField::Host)
            .map(|field| field.value);
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(malformed("several Host"));
        }
        if host.is_none() && self.version == HttpVersion::Http11 {
            return Err(malformed("no Host"));
        }
        if host.is_some_and(|host| !is_authority(host.get(bytes))) {
            return Err(malformed("an invalid Host"));
        }
        let is_options = self.method.get(bytes) == b"OPTIONS";
        (self.target, self.host) = match text {
            [b'/', ..] => (target, host.unwrap_or_default()),
            b"*" if is_options => (target, host.unwrap_or_default()),
            _ => split_absolute(text, bytes, host, is_options)?,
        };
        let target = self.target.get(bytes);
        let path = target
            .split(|byte| *byte == b'?')
            .next()
            .unwrap_or_default();
        self.path = Span::of(path, bytes);
        Ok(())
    }

    /// Reads connection options, upgrade and expectation: RFC 9110 sections 7.6.1, 7.8, 10.1.1.
    fn check_connection(&mut self) -> Result<(), RequestHeadError> {
        let Self {
            bytes,
            fields,
            version,
            framing,
            ..
        } = self;
        let modern = *version == HttpVersion::Http11;
        let closes = fields.has_connection_option(b"close", bytes);
        self.keep_alive = !closes && (modern || fields.has_connection_option(b"keep-alive", bytes));
        let upgrade = fields
            .iter()
            .find(|field| field.known == KnownField::Upgrade)
            .map(|field| field.value);
        // The body is sent before the switch, so its end must be beyond doubt.
        let may_upgrade = modern
            && *framing != RequestFraming::Chunked
            && fields.has_connection_option(b"upgrade", bytes);
        self.upgrade = upgrade.filter(|value| {
            may_upgrade && !value.is_empty() && !list(value.get(bytes)).any(carries_http)
        });
        self.takes_trailers = fields
            .iter()
            .filter(|field| field.known == KnownField::Te)
            .any(|field| {
                list(field.value.get(bytes)).any(|it| it.eq_ignore_ascii_case(b"trailers"))
            });
        self.expects_continue = false;
        for field in fields
            .iter()
            .filter(|field| field.known == KnownField::Expect)
        {
            if !field.value.get(bytes).eq_ignore_ascii_case(b"100-continue") {
                return Err(RequestHeadError {
                    reason: Reason::ExpectationFailed,
                    detail: "an unknown expectation",
                });
            }
            self.expects_continue = modern && *framing != RequestFraming::None;
        }
        let keep_expect = self.expects_continue;
        let mut seen_expect = false;
        fields.strike(|field| match field.known {
            KnownField::Expect => std::mem::replace(&mut seen_expect, true) || !keep_expect,
            KnownField::ContentLength => true,
            _ => false,
        });
        fields.strike_hop_by_hop(bytes);
        fields.strike(|field| is_underscored_twin(field.name.get(bytes)));
        Ok(())
    }
}

/// True for protocols that carry HTTP again, such as h2c (RFC 9113 section 3.1) or TLS (RFC 2817):
/// requests inside them would bypass routes, limits and the log (h2c smuggling).
fn carries_http(protocol: &[u8]) -> bool {
    [&b"h2"[..], b"h3", b"http", b"tls"].iter().any(|prefix| {
        protocol
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}

/// True for names such as `X_Forwarded_For`: some servers read them as the field with dashes, which
/// we vouch for.
fn is_underscored_twin(name: &[u8]) -> bool {
    // Longest known name; a longer one can begin with a known prefix.
    const MAX_KNOWN_NAME: usize = 17;
    if !name.contains(&b'_') {
        return false;
    }
    let mut dashed = [0_u8; MAX_KNOWN_NAME];
    let dashed = dashed
        .get_mut(..name.len().min(MAX_KNOWN_NAME))
        .unwrap_or_default();
    dashed
        .iter_mut()
        .zip(name)
        .for_each(|(to, from)| *to = if *from == b'_' { b'-' } else { *from });
    match KnownField::of(dashed) {
        KnownField::Other => false,
        known => name.len() <= MAX_KNOWN_NAME || known.is_forwarding(),
    }
}

/// Splits `http://host/path?query`; the authority must equal Host, RFC 9112 section 3.2.2.
fn split_absolute(
    text: &[u8],
    bytes: &[u8],
    host: Option<Span>,
    is_options: bool,
) -> Result<(Span, Span), RequestHeadError> {
    let scheme_end = [&b"http://"[..], b"https://"]
        .iter()
        .find(|scheme| {
            text.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .map(|scheme| scheme.len());
    let rest = scheme_end
        .and_then(|end| text.get(end..))
        .ok_or(malformed("the target is neither a path nor a URL"))?;
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_authority(authority) {
        return Err(malformed("an invalid authority in the target"));
    }
    if host.is_some_and(|host| !host.get(bytes).eq_ignore_ascii_case(authority)) {
        return Err(malformed("the target and Host name different authorities"));
    }
    let target = match path {
        [b'/', ..] => Span::of(path, bytes),
        // An empty path means `/`, or `*` for OPTIONS (RFC 9110 section 4.2.3).
        [] if is_options => return Err(malformed("OPTIONS for a server needs the target `*`")),
        [] => slash_of(text, bytes),
        _ => return Err(malformed("a query without a path in the target")),
    };
    Ok((target, Span::of(authority, bytes)))
}

/// Returns a span over one `/` of the scheme's `//`: the target of a URL without a path.
fn slash_of(text: &[u8], bytes: &[u8]) -> Span {
    let slash = text
        .iter()
        .position(|byte| *byte == b'/')
        .unwrap_or_default();
    text.get(slash..=slash)
        .map(|slash| Span::of(slash, bytes))
        .unwrap_or_default()
}

/// True for `host` or `host:port` without user information, RFC 3986 section 3.2. Escapes are
/// refused: one parser would decode `a%2fb`, another would not.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = if let [b'[', rest @ ..] = text {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let (inner, after) = rest.split_at(end);
        let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        let is_address = !inner.is_empty() && inner.iter().all(is_part);
        (is_address, after.get(1..).unwrap_or_default())
    } else {
        let end = memchr::memchr(b':', text).unwrap_or(text.len());
        let (name, port) = text.split_at(end);
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte);
        (!name.is_empty() && name.iter().all(is_part), port)
    };
    host && match port {
        [] | [b':'] => true,
        // At most five digits, so that no parser's arithmetic can wrap.
        [b':', digits @ ..] if digits.len() <= 5 => {
            content_length(digits).is_some_and(|port| u16::try_from(port).is_ok())
        }
        _ => false,
    }
}

/// Error of a head that exceeds its limit: 414 if the first line is too long, otherwise 431.
fn too_large(bytes: &[u8], limits: HeadLimits) -> RequestHeadError {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.bytes / 2 {
        RequestHeadError {
            reason: Reason::RequestUriTooLong,
            detail: "the request line is too long",
        }
    } else {
        RequestHeadError {
            reason: Reason::RequestHeaderSectionSize,
            detail: "the head is too large",
        }
    }
}

/// Refuses early what can no longer become a valid head; never what would be accepted if it came at
/// once.
fn check_partial(bytes: &[u8], limits: HeadLimits) -> Result<(), RequestHeadError> {
    let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = bytes.iter().position(|byte| !is_line_end(byte));
    let line = bytes.get(start.unwrap_or_default()..).unwrap_or_default();
    let target = line
        .split(|byte| is_line_end(byte) || *byte == b' ')
        .nth(1)
        .unwrap_or_default();
    if target.len() > limits.bytes / 2 {
        return Err(too_large(bytes, limits));
    }
    Ok(())
}

fn refusal_of(error: httparse::Error, bytes: &[u8]) -> RequestHeadError {
    match error {
        httparse::Error::TooManyHeaders => RequestHeadError {
            reason: Reason::RequestHeaderSectionSize,
            detail: "too many fields",
        },
        httparse::Error::Version if asks_for_other_version(bytes) => RequestHeadError {
            reason: Reason::VersionNotSupported,
            detail: "an unknown protocol version",
        },
        httparse::Error::HeaderName => malformed("an invalid field name"),
        httparse::Error::HeaderValue => malformed("an invalid field value"),
        httparse::Error::NewLine => malformed("an invalid line end"),
        httparse::Error::Token => malformed("an invalid method, target or line"),
        _ => malformed("an invalid request line"),
    }
}

/// True if the first line ends in a well-formed `HTTP/x.y` that we do not speak.
fn asks_for_other_version(bytes: &[u8]) -> bool {
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    matches!(
        line,
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9']
            if !matches!((major, minor), (b'1', b'0' | b'1'))
    )
}

/// Error of an unsupported coding: 501 for a well-formed list of known codings before a final
/// `chunked`, 400 otherwise; RFC 9112 section 6.1.
fn refused_coding(coding: &[u8]) -> RequestHeadError {
    const KNOWN_CODINGS: [&[u8]; 8] = [
        b"gzip",
        b"x-gzip",
        b"deflate",
        b"compress",
        b"x-compress",
        b"br",
        b"zstd",
        b"identity",
    ];
    let mut tokens: Vec<&[u8]> = list(coding).collect();
    let last = tokens.pop().unwrap_or_default();
    let others_known = !tokens.is_empty()
        && tokens.iter().all(|token| {
            KNOWN_CODINGS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(token))
        });
    if last.eq_ignore_ascii_case(b"chunked") && others_known {
        RequestHeadError {
            reason: Reason::TransferCodingUnsupported,
            detail: "a transfer coding other than chunked",
        }
    } else {
        malformed("a malformed Transfer-Encoding")
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
