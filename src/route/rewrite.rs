//! The path that a backend gets in place of the client's: `rewrite.path` and `rewrite.strip_prefix`.
//!
//! What is taken off is found in the normal form that routes are matched in, and cut from the bytes that were sent, so
//! that the rest goes on as it came. That is safe only where every reader of the path sees the same segments. A path
//! for which this does not hold is first brought into one plain form:
//!
//! - *plain* is a path without empty and dot segments, whose `%` are all escapes, even when `%2F` is read as a slash;
//! - a path that is not is decoded, put into normal form and encoded again (RFC 3986 section 6.2), so `//api/./x` goes
//!   on like `/api/x`;
//! - a path with `%2F` that gives another path when that is read as a slash than when it is read as part of a name is
//!   refused, and so is one whose prefix or groups end elsewhere then. `/api/a%2Fb` without `/api` is `/a%2Fb`.
//!
//! A path put together from groups may join slashes, which become one, and must not join dots to a dot segment: it is
//! refused. So a rewritten path is always plain: it begins with one slash, and its normal form is the rewritten normal
//! form of the client's. Targets that are not a path (`*`) are left alone.

use std::borrow::Cow;

use regex::{Captures, Regex};

use super::{
    path::{EncodedSlash, decoded, escape, is_ambiguous, normal, normal_path, without_query},
    whole,
};
use crate::{
    config::model::{PathMatch, PathPiece, PathRewrite, RouteConfig},
    reason::Reason,
};

/// Longest rewritten target in bytes: groups can be repeated.
const MAX_TARGET: usize = 64 << 10;

/// A route's `rewrite`, prepared.
#[derive(Debug)]
pub(super) enum PathRewriter {
    /// Puts `with` in place of the segments of `prefix`; both without a final slash.
    Prefix { prefix: Box<[u8]>, with: Box<[u8]> },
    /// Puts this in place of the whole path.
    Whole(Box<[u8]>),
    /// Puts the path together from the groups of an expression.
    Groups(Regex, Vec<PathPiece>),
}

impl PathRewriter {
    /// `None` for a route that keeps paths as they are.
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

    /// See [`super::Router::rewrite`].
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
        if out.len() > MAX_TARGET {
            return Err(Reason::RequestUriTooLong);
        }
        Ok(Some(out))
    }
}

fn without_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

/// The path with `with` in place of `prefix`; `None` if it does not begin with that.
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
    let (front, rest) = plain.split_at(end);
    if *decoded(front, EncodedSlash::Marked) != *prefix {
        // An encoded slash makes the prefix for some servers.
        return if begins(EncodedSlash::Separates) {
            Err(Reason::RequestError)
        } else {
            Ok(None)
        };
    }
    let mut out = Vec::with_capacity(with.len() + rest.len() + 1);
    out.extend_from_slice(with);
    out.extend_from_slice(rest);
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(Some(out))
}

/// True if a normal path begins with the segments of `prefix`, which has no final slash.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
}

/// The path that `pieces` make from the groups of `regex`, which has matched it.
fn expanded(path: &[u8], regex: &Regex, pieces: &[PathPiece]) -> Result<Vec<u8>, Reason> {
    let plain = plain(path).ok_or(Reason::RequestError)?;
    let text = DecodedText::of(&plain, EncodedSlash::Separates);
    let groups = regex.captures(&text.text).ok_or(Reason::RequestError)?;
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
                plain.get(range).unwrap_or_default()
            }),
        };
        if out.len() + part.len() > MAX_TARGET {
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

/// True if the groups that `pieces` name lie in the same places.
fn same_groups(pieces: &[PathPiece], one: &Captures<'_>, other: &Captures<'_>) -> bool {
    pieces.iter().all(|piece| match piece {
        PathPiece::Text(_) => true,
        PathPiece::Group(group) => {
            one.get(*group).map(|found| found.range())
                == other.get(*group).map(|found| found.range())
        }
    })
}

/// A decoded path as text, and where each byte of it stands in the path as sent.
struct DecodedText {
    text: String,
    /// By byte of `text`, and one more for its end.
    places: Vec<usize>,
}

impl DecodedText {
    /// Bytes that are not UTF-8 become U+FFFD, as they do when a route is looked up.
    fn of(plain: &[u8], slash: EncodedSlash) -> Self {
        let bytes = decoded(plain, slash);
        let mut text = String::with_capacity(bytes.len());
        let mut places = Vec::with_capacity(bytes.len() + 1);
        let mut at = 0;
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            for _ in chunk.valid().bytes() {
                places.push(at);
                at += unit(plain, at);
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                places.extend([at; char::REPLACEMENT_CHARACTER.len_utf8()]);
                for _ in chunk.invalid() {
                    at += unit(plain, at);
                }
            }
        }
        places.push(at);
        Self { text, places }
    }

    /// Where the byte at `place` of the text stands in the path as sent.
    fn sent(&self, place: usize) -> usize {
        self.places.get(place).copied().unwrap_or_default()
    }
}

/// How many bytes at `at` stand for one.
fn unit(path: &[u8], at: usize) -> usize {
    if path.get(at..).and_then(escape).is_some() {
        3
    } else {
        1
    }
}

/// The path in plain form: itself, or its normal form encoded again; `None` if it has none that all servers read alike.
fn plain(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if is_plain(path) {
        return Some(Cow::Borrowed(path));
    }
    let encoded = encoded(&normal(path, EncodedSlash::Marked));
    let alike = is_plain(&encoded)
        && normal(&encoded, EncodedSlash::Separates) == normal(path, EncodedSlash::Separates);
    alike.then_some(Cow::Owned(encoded))
}

/// True for a path without empty and dot segments, whatever is read as a slash, and without `%` that are no escapes.
fn is_plain(path: &[u8]) -> bool {
    let Some(mut rest) = path.strip_prefix(b"/") else {
        return false;
    };
    let (mut length, mut dots) = (0, 0);
    let is_dots = |length: usize, dots: usize| length == dots && matches!(length, 1 | 2);
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, escape(rest)) {
            (_, Some(escaped)) => escaped,
            (b'%', None) => return false,
            (byte, None) => (*byte, after),
        };
        rest = after;
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

/// A decoded path with everything escaped that a path may not hold (RFC 3986 section 3.3), and NUL as `%2F`.
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
