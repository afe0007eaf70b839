//! Rules about messages that do not depend on a wire format: sizes, target, authority, fields,
//! trailers.
//!
//! As strict as RFC 9110: input that a second parser could read differently is refused, never
//! repaired, as request smuggling lives on such differences. What only one format can get wrong is
//! checked where that format is read, `http1` or `http2`.

use super::{
    fields::{KnownField, Span, content_length, list},
    message::{BodyFraming, HttpVersion, RequestHead},
};

/// Most fields of a head for any configuration; they are parsed on the stack.
pub const MAX_FIELDS: usize = 256;

/// Bytes of a response head. A backend that sends more is broken; HAProxy allows 16 KiB, nginx 4 to
/// 8 KiB.
pub const MAX_HEAD_BYTES: usize = 64 << 10;

/// Size limits of a response head and of the trailers of a response.
pub const RESPONSE_LIMITS: HeadLimits = HeadLimits {
    fields: MAX_FIELDS,
    bytes: MAX_HEAD_BYTES,
};

/// Size limits of a head: `listeners.NAME.http`.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Fields, at most [`MAX_FIELDS`].
    pub fields: usize,
    /// Bytes of the whole head; the target may have half of them.
    pub bytes: usize,
}

/// Kind of a fault in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadFault {
    /// It is not a valid message, or has more than one meaning.
    Malformed,
    /// The target exceeds its limit.
    TargetTooLong,
    /// The fields exceed their limits.
    TooLarge,
    /// A method that is not served: CONNECT.
    MethodNotAllowed,
    /// An expectation other than 100-continue.
    ExpectationFailed,
    /// A transfer coding other than chunked.
    CodingUnsupported,
    /// A version of HTTP that is not spoken.
    VersionUnsupported,
}

/// Cause for which a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct HeadError {
    /// Kind of the fault, which gives the reason.
    pub fault: HeadFault,
    /// Text for the log at debug level.
    pub detail: &'static str,
}

impl HeadError {
    /// Creates the error of a malformed head.
    pub const fn malformed(detail: &'static str) -> Self {
        Self {
            fault: HeadFault::Malformed,
            detail,
        }
    }

    /// Creates the error of a head whose fields exceed a limit.
    pub const fn too_large(detail: &'static str) -> Self {
        Self {
            fault: HeadFault::TooLarge,
            detail,
        }
    }
}

/// True if every byte of `target` may stand in one, RFC 9112 section 3.2: ASCII, and no fragment.
pub fn is_target(target: &[u8]) -> bool {
    target
        .iter()
        .all(|byte| byte.is_ascii_graphic() && *byte != b'#')
}

/// Judges a request whose method, version, fields, framing, host and target were read and checked
/// ([`is_authority`], [`is_target`]), and sets what follows from them.
///
/// # Errors
/// The request is refused.
pub fn judge_request(head: &mut RequestHead) -> Result<(), HeadError> {
    head.path = path_of(head);
    judge_fields(head)
}

/// Notes the declared length in the field value `value`. Several lengths are refused, even equal
/// ones: a second parser may find another end of the body (request smuggling, response splitting).
///
/// # Errors
/// There is a length already, or the value is malformed (RFC 9110 section 8.6).
pub fn declare_length(length: &mut Option<u64>, value: &[u8]) -> Result<(), HeadError> {
    if length.is_some() {
        return Err(HeadError::malformed("several content-length"));
    }
    let value = content_length(value);
    *length = Some(value.ok_or(HeadError::malformed("a malformed content-length"))?);
    Ok(())
}

/// Returns the part of the target before its query.
fn path_of(head: &RequestHead) -> Span {
    let target = head.text(head.target);
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    Span::of(target.get(..end).unwrap_or_default(), &head.bytes)
}

/// Reads `TE` and `Expect` (RFC 9110 sections 10.1.1 and 10.1.4), and strikes out the fields that
/// are not forwarded.
fn judge_fields(head: &mut RequestHead) -> Result<(), HeadError> {
    let RequestHead {
        bytes,
        fields,
        version,
        framing,
        takes_trailers,
        expects_continue,
        ..
    } = head;
    for field in fields.iter() {
        let value = field.value.get(bytes);
        match field.known {
            KnownField::Te => {
                *takes_trailers |= list(value).any(|it| it.eq_ignore_ascii_case(b"trailers"));
            }
            KnownField::Expect if !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(HeadError {
                    fault: HeadFault::ExpectationFailed,
                    detail: "an unknown expectation",
                });
            }
            KnownField::Expect => {
                *expects_continue =
                    *version >= HttpVersion::Http11 && *framing != BodyFraming::None;
            }
            _ => {}
        }
    }
    let mut keeps_expect = *expects_continue;
    fields.strike(|field| match field.known {
        // One of them is enough.
        KnownField::Expect => !std::mem::take(&mut keeps_expect),
        KnownField::ContentLength => true,
        _ => false,
    });
    fields.strike_hop_by_hop(bytes);
    fields.strike(|field| is_underscored_twin(field.name.get(bytes)));
    Ok(())
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

/// True for `host` or `host:port` without user information, RFC 3986 section 3.2. Escapes are
/// refused: one parser would decode `a%2fb`, another would not.
pub fn is_authority(text: &[u8]) -> bool {
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

/// True for a name that a trailer section may have. RFC 9110 section 6.5.1 forbids those that
/// frame, route or authorise: they would be read after the decisions that depend on them. Names
/// with underscores are treated as those with dashes: some servers read both as one.
pub fn is_allowed_in_trailers(name: &[u8]) -> bool {
    const FORBIDDEN_TRAILERS: [&str; 12] = [
        "set-cookie",
        "cache-control",
        "content-encoding",
        "content-range",
        "max-forwards",
        "range",
        "proxy-authorization",
        "proxy-authenticate",
        "www-authenticate",
        "location",
        "retry-after",
        "age",
    ];
    let dash = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    let dashed: Vec<u8>;
    let name = if name.contains(&b'_') {
        dashed = name.iter().map(dash).collect();
        dashed.as_slice()
    } else {
        name
    };
    let known = KnownField::of(name);
    !(known.is_hop_by_hop()
        || known.is_protected()
        || known == KnownField::Trailer
        || known == KnownField::Date
        // Names in which a proxy gives the client's address, such as `CF-Connecting-IP`.
        || is_about_address(name)
        || FORBIDDEN_TRAILERS
            .iter()
            .any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes())))
}

fn is_about_address(name: &[u8]) -> bool {
    let last = name.rsplit(|byte| *byte == b'-').next().unwrap_or_default();
    last.eq_ignore_ascii_case(b"ip") || last.eq_ignore_ascii_case(b"clientip")
}
