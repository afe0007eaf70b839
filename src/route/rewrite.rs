//! Path rewriting: `rewrite.path` and `rewrite.strip_prefix`.
//!
//! The prefix to remove is found in the normal form that routes are matched in, and cut from the
//! bytes as sent, so that the other bytes reach the backend unchanged. That is safe only if every
//! reader of the path sees the same segments. Other paths are first brought into one plain form:
//!
//! - *Plain* is a path without empty and dot segments, whose `%` are all escapes, even when `%2F`
//!   is read as a slash.
//! - Any other path is decoded, normalised and encoded again (RFC 3986 section 6.2), so `//api/./x`
//!   goes on like `/api/x`.
//! - A path with `%2F` is refused if reading that as a slash gives another path, or another end of
//!   the prefix or the groups, than reading it as part of a name. `/api/a%2Fb` without `/api` is
//!   `/a%2Fb`.
//!
//! A path put together from groups may join slashes, which become one. It must not join dots to a
//! dot segment: it is refused then. So a rewritten path is always plain: it begins with one slash,
//! and its normal form is the rewritten normal form of the client's path. Targets that are not a
//! path (`*`) are left alone.

use std::borrow::Cow;

use regex::{Captures, Regex};

use super::{
    path::{EncodedSlash, decoded, escape, is_ambiguous, normal, normal_path, without_query},
    pattern::whole,
};
use crate::{
    config::model::{PathMatch, PathPiece, PathRewrite, RouteConfig},
    reason::Reason,
};

/// Maximum length of a rewritten target. Groups can be repeated, so a short target could grow
/// without end.
const MAX_TARGET_BYTES: usize = 64 << 10;

/// A prepared `rewrite` of a route.
#[derive(Debug)]
pub(super) enum PathRewriter {
    /// Replaces the segments of `prefix` by `with`; both without a final slash.
    Prefix { prefix: Box<[u8]>, with: Box<[u8]> },
    /// Replaces the whole path.
    Whole(Box<[u8]>),
    /// Builds the path from the groups of an expression.
    Groups(Regex, Vec<PathPiece>),
}

impl PathRewriter {
    /// Prepares the rewrite; `None` for a route that keeps paths as they are.
    pub(super) fn new(route: &RouteConfig) -> Option<Self> {
        let prefix = |prefix: &str, with: &str| Self::Prefix {
            prefix: without_slash(&normal_path(prefix.as_bytes())).into(),
            with: without_slash(with.as_bytes()).into(),
        };
        match (&route.rewrite.path, &route.path) {
            (PathRewrite::Strip(strip), _) => Some(prefix(strip, "")),
            (PathRewrite::Replace(with), PathMatch::Prefix(path)) => Some(prefix(path, with)),
            (PathRewrite::Replace(with), PathMatch::Any) => Some(prefix("/", with)),
            (PathRewrite::Replace(with), _) => Some(Self::Whole(with.as_bytes().into())),
            (PathRewrite::Expand(pieces), PathMatch::Regex(regex)) => {
                Some(Self::Groups(whole(regex), pieces.clone()))
            }
            (PathRewrite::Keep | PathRewrite::Expand(_), _) => None,
        }
    }

    /// Rewrites a target; see [`super::Router::rewrite`].
    pub(super) fn target(&self, target: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
        if !target.starts_with(b"/") {
            return Ok(None);
        }
        let path = without_query(target);
        let query = target.get(path.len()..).unwrap_or_default();
        let rewritten = match self {
            Self::Prefix { prefix, with } => replaced(path, prefix, with)?,
            Self::Whole(with) => Some(with.to_vec()),
            Self::Groups(regex, pieces) => Some(expanded(path, regex, pieces)?),
        };
        let Some(mut out) = rewritten else {
            return Ok(None);
        };
        out.extend_from_slice(query);
        if out.len() > MAX_TARGET_BYTES {
            return Err(Reason::RequestUriTooLong);
        }
        Ok(Some(out))
    }
}

/// Removes one final slash.
fn without_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

/// Replaces `prefix` by `with`; `None` if the path does not begin with it.
fn replaced(path: &[u8], prefix: &[u8], with: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
    let begins = |slash: EncodedSlash| is_below(&normal(path, slash), prefix);
    let Some(plain) = plain(path) else {
        return if begins(EncodedSlash::Separates) || begins(EncodedSlash::Marked) {
            Err(Reason::RequestError)
        } else {
            Ok(None)
        };
    };
    let segments = memchr::memchr_iter(b'/', prefix).count();
    let end = memchr::memchr_iter(b'/', &plain)
        .nth(segments)
        .unwrap_or(plain.len());
    let (front, tail) = plain.split_at(end);
    if *decoded(front, EncodedSlash::Marked) != *prefix {
        // For servers that read an encoded slash as one, the path has the prefix all the same.
        return if begins(EncodedSlash::Separates) {
            Err(Reason::RequestError)
        } else {
            Ok(None)
        };
    }
    let mut out = Vec::with_capacity(with.len() + tail.len() + 1);
    out.extend_from_slice(with);
    out.extend_from_slice(tail);
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(Some(out))
}

/// True if a normal path begins with the segments of `prefix`, which has no final slash.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|below| matches!(below, [] | [b'/', ..]))
}

/// Builds the path of `pieces` from the groups of `regex`, which has matched the path.
fn expanded(path: &[u8], regex: &Regex, pieces: &[PathPiece]) -> Result<Vec<u8>, Reason> {
    let plain = plain(path).ok_or(Reason::RequestError)?;
    let text = DecodedText::of(&plain, EncodedSlash::Separates);
    let groups = regex.captures(&text.text).ok_or(Reason::RequestError)?;
    // Both readings of an encoded slash must select the same bytes.
    if is_ambiguous(&plain) {
        let other = DecodedText::of(&plain, EncodedSlash::Marked);
        let others = regex.captures(&other.text).ok_or(Reason::RequestError)?;
        if !same_groups(pieces, &groups, &others) {
            return Err(Reason::RequestError);
        }
    }
    let mut out = Vec::new();
    for piece in pieces {
        let part = match piece {
            PathPiece::Text(text) => text.as_bytes(),
            PathPiece::Group(group) => groups.get(*group).map_or(&[][..], |found| {
                let range = text.sent(found.start())..text.sent(found.end());
                debug_assert!(plain.get(range.clone()).is_some(), "{range:?}");
                plain.get(range).unwrap_or_default()
            }),
        };
        if out.len() + part.len() > MAX_TARGET_BYTES {
            return Err(Reason::RequestUriTooLong);
        }
        push_joined(&mut out, part);
    }
    is_plain(&out).then_some(out).ok_or(Reason::RequestError)
}

/// Appends `part`; slashes that meet become one.
fn push_joined(out: &mut Vec<u8>, part: &[u8]) {
    let part = match out.last() {
        Some(b'/') => part.strip_prefix(b"/").unwrap_or(part),
        _ => part,
    };
    out.extend_from_slice(part);
}

/// True if the groups that `pieces` use are at the same places in both matches.
fn same_groups(pieces: &[PathPiece], one: &Captures<'_>, other: &Captures<'_>) -> bool {
    pieces.iter().all(|piece| match piece {
        PathPiece::Text(_) => true,
        PathPiece::Group(group) => {
            one.get(*group).map(|found| found.range())
                == other.get(*group).map(|found| found.range())
        }
    })
}

/// A decoded path as text, with the position of each byte in the path as sent.
struct DecodedText {
    text: String,
    /// Position by byte of `text`, and one more for its end.
    places: Vec<usize>,
}

impl DecodedText {
    /// Decodes a plain path. Bytes that are not UTF-8 become U+FFFD, as in a route lookup.
    fn of(plain: &[u8], slash: EncodedSlash) -> Self {
        let bytes = decoded(plain, slash);
        let mut text = String::with_capacity(bytes.len());
        let mut places = Vec::with_capacity(bytes.len() + 1);
        let mut at = 0;
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            for _ in chunk.valid().bytes() {
                places.push(at);
                at += encoded_length(plain, at);
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                places.extend([at; char::REPLACEMENT_CHARACTER.len_utf8()]);
                for _ in chunk.invalid() {
                    at += encoded_length(plain, at);
                }
            }
        }
        places.push(at);
        Self { text, places }
    }

    /// Position in the path as sent of the byte at `place` of the text.
    fn sent(&self, place: usize) -> usize {
        debug_assert!(place < self.places.len(), "{place} is outside of the text");
        self.places.get(place).copied().unwrap_or_default()
    }
}

/// Number of bytes at `at` that encode one byte.
fn encoded_length(path: &[u8], at: usize) -> usize {
    if path.get(at..).and_then(escape).is_some() {
        3
    } else {
        1
    }
}

/// Returns the path in plain form: itself, or its normal form encoded again. `None` if servers
/// would read that differently.
fn plain(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if is_plain(path) {
        return Some(Cow::Borrowed(path));
    }
    let encoded = encoded(&normal(path, EncodedSlash::Marked));
    let alike = is_plain(&encoded)
        && normal(&encoded, EncodedSlash::Separates) == normal(path, EncodedSlash::Separates);
    alike.then_some(Cow::Owned(encoded))
}

/// True for a path without empty and dot segments, in both readings of `%2F`, and without `%` that
/// are no escapes.
fn is_plain(path: &[u8]) -> bool {
    let Some(mut left) = path.strip_prefix(b"/") else {
        return false;
    };
    let (mut length, mut dots) = (0, 0);
    let is_dots = |length: usize, dots: usize| length == dots && matches!(length, 1 | 2);
    while let Some((first, after)) = left.split_first() {
        let (byte, after) = match (first, escape(left)) {
            (_, Some(escaped)) => escaped,
            (b'%', None) => return false,
            (byte, None) => (*byte, after),
        };
        left = after;
        match byte {
            b'/' if length == 0 || is_dots(length, dots) => return false,
            b'/' => (length, dots) = (0, 0),
            byte => {
                length += 1;
                dots += usize::from(byte == b'.');
            }
        }
    }
    !is_dots(length, dots)
}

/// Encodes a decoded path: escapes all bytes that a path may not hold (RFC 3986 section 3.3), and a
/// NUL, the mark of an encoded slash, as `%2F`.
fn encoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            0 => out.extend_from_slice(b"%2F"),
            b'/' | b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*'
            | b'+' | b',' | b';' | b'=' | b':' | b'@' => out.push(*byte),
            byte if byte.is_ascii_alphanumeric() => out.push(*byte),
            byte => {
                let digit = |value: u8| b"0123456789ABCDEF".get(usize::from(value)).copied();
                out.push(b'%');
                out.extend(digit(byte >> 4));
                out.extend(digit(byte & 15));
            }
        }
    }
    out
}
