//! Heads, framing and trailers of messages of any wire format.
//!
//! A head is one buffer and spans into it. A wire format fills it, [`super::rules`] decides whether
//! it has exactly one meaning, and everything above reads it.

use super::fields::{HeadFields, KnownField, Span, list};

/// Protocol version of a message, RFC 9110 section 2.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// Returns the version as logs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// End of a body, RFC 9110 section 6.4 and RFC 9112 section 6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyFraming {
    /// No body.
    #[default]
    None,
    /// Exactly this many bytes, and no trailers.
    Length(u64),
    /// Until the mark that the wire format has for its end (the last chunk, END_STREAM); trailers
    /// may come with it. The length, if the sender has declared it as well, which only HTTP/2 can.
    Streamed(Option<u64>),
    /// Until the connection is closed. Only responses.
    UntilClose,
}

impl BodyFraming {
    /// True if no content follows the head: over HTTP/2 it ends the stream.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }

    /// Length of the body, if its sender has declared it.
    pub const fn declared_length(self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(length),
            Self::Streamed(length) => length,
            Self::None | Self::UntilClose => None,
        }
    }
}

/// Request head: its buffer, and spans into it. Bytes after [`RequestHead::len`] belong to the body
/// or the next request.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// Bytes of the head, and what was read behind it.
    pub bytes: Vec<u8>,
    /// Length of the head with its empty line.
    pub len: usize,
    /// Fields; those of one hop are struck out already.
    pub fields: HeadFields,
    /// Method as sent; `GET` for a WebSocket over HTTP/2.
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
    pub framing: BodyFraming,
    /// True if the client allows another request on this connection.
    pub keep_alive: bool,
    /// Protocol of a valid request to switch, RFC 9110 section 7.8 and RFC 8441.
    pub upgrade: Option<Span>,
    /// True if the client accepts trailers (`TE`), RFC 9110 section 10.1.4.
    pub takes_trailers: bool,
    /// True if the client waits for 100 before it sends the body.
    pub expects_continue: bool,
}

impl RequestHead {
    /// Bytes of `span`.
    #[inline]
    pub fn text(&self, span: Span) -> &[u8] {
        span.get(&self.bytes)
    }

    /// Value of the first field called `known`.
    pub fn find(&self, known: KnownField) -> Option<&[u8]> {
        self.fields.find(known, &self.bytes)
    }

    /// True for a switch to WebSocket alone (RFC 6455 section 4.1), without content: the only
    /// upgrade that HTTP/2 has (RFC 8441).
    pub fn is_websocket(&self) -> bool {
        let protocol = self.upgrade.map(|protocol| self.text(protocol));
        self.framing == BodyFraming::None
            && protocol.is_some_and(|it| it.eq_ignore_ascii_case(b"websocket"))
    }

    /// Makes it empty, keeping the allocations.
    pub fn clear(&mut self) {
        self.forget();
        self.bytes.clear();
    }

    /// Resets all but the bytes, so that nothing of an earlier request is taken for this one's.
    pub fn forget(&mut self) {
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
}

/// Response head: its buffer, and spans into it. Bytes after [`ResponseHead::len`] belong to the
/// body or the next response.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// Bytes of the head, and what was read behind it.
    pub bytes: Vec<u8>,
    /// Length of the head with its empty line.
    pub len: usize,
    /// Fields; those of one hop are struck out already.
    pub fields: HeadFields,
    /// Status, 100..=599. An HTTP/2 response that switches to a WebSocket has 101 here.
    pub status: u16,
    /// Reason phrase of the backend; may be empty.
    pub phrase: Span,
    /// Framing of the body.
    pub framing: BodyFraming,
    /// Announced length of a body that is not sent: HEAD and 304.
    pub announced: Option<u64>,
    /// True if the backend allows another request on this connection.
    pub keep_alive: bool,
    /// Protocol of a 101, or the one that a 426 requires.
    pub upgrade: Option<Span>,
}

impl ResponseHead {
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

    /// Resets all but the bytes, so that nothing of an earlier response is taken for this one's.
    pub fn forget(&mut self) {
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

    /// True for 1xx other than 101: another head follows.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// True if a 101 switches to one of the requested protocols, RFC 9110 section 7.8.
    pub fn switches_to(&self, asked: &[u8]) -> bool {
        self.upgrade.is_some_and(|upgrade| {
            let mut protocols = list(self.text(upgrade)).peekable();
            protocols.peek().is_some()
                && protocols
                    .all(|protocol| list(asked).any(|wanted| wanted.eq_ignore_ascii_case(protocol)))
        })
    }
}

/// Trailers: fields behind a body, RFC 9110 section 6.5.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trailers {
    /// Names and values, one field after the other.
    bytes: Vec<u8>,
    /// Name and value of each field.
    fields: Vec<(Span, Span)>,
}

impl Trailers {
    /// Creates an empty list.
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            fields: Vec::new(),
        }
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(value);
        let end = self.bytes.len();
        self.fields
            .push((Span::new(start, middle), Span::new(middle, end)));
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|(name, value)| (name.get(&self.bytes), value.get(&self.bytes)))
    }

    /// Value of the first field called `name`, without regard to case.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Drops the fields whose name `is_kept` refuses.
    pub fn retain(&mut self, is_kept: impl Fn(&[u8]) -> bool) {
        let Self { bytes, fields } = self;
        fields.retain(|(name, _)| is_kept(name.get(bytes)));
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}
