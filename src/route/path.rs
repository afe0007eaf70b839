//! The normal form of a path for matching (RFC 3986 section 6.2). The backend gets the path as
//! sent.
//!
//! Normal is: without query, percent-decoded once, dot segments removed, empty segments removed.
//! Many servers read `//` as `/`, so `//admin` must not slip past a rule for `/admin`. A final
//! slash stays. Escapes that are not two hex digits stay as they are.
//!
//! Servers disagree about an encoded slash: some take `%2f` for a separator, some for a byte of a
//! name. A request could hide a segment from one of them or fake one for the other
//! (`/admin/..%2fpublic`). So there are two readings, and [`super::Router::find`] refuses a request
//! for which they lead to different routes. A NUL (`%00`), which ends a path for some servers, is
//! refused as well.

use std::borrow::Cow;

/// Reading of `%2f`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncodedSlash {
    /// A separator of segments.
    Separates,
    /// Part of a name, kept as `%2F`.
    Belongs,
    /// Part of a name, marked by a NUL. Nothing else can be one, because paths with `%00` are
    /// refused. Unlike `Belongs` this can be encoded again without loss.
    Marked,
}

/// Returns the normal form of a path, with `%2f` read as a separator. A path that is normal already
/// is borrowed, without an allocation. A target without a leading slash (`*`) only loses its query.
pub fn normal_path(path: &[u8]) -> Cow<'_, [u8]> {
    normal(path, EncodedSlash::Separates)
}

/// True if `path` has an encoded slash, so that it has two readings.
pub(crate) fn is_ambiguous(path: &[u8]) -> bool {
    escapes(path).any(|escape| escape == b'/')
}

/// True if `path` has an encoded NUL.
pub(crate) fn has_nul(path: &[u8]) -> bool {
    escapes(path).any(|escape| escape == 0)
}

/// Returns the normal form for one reading of `%2f`.
pub(crate) fn normal(path: &[u8], slash: EncodedSlash) -> Cow<'_, [u8]> {
    let path = without_query(path);
    if !path.starts_with(b"/") || is_normal(path) {
        return Cow::Borrowed(path);
    }
    let decoded = decoded(path, slash);
    let mut out = Vec::with_capacity(decoded.len());
    let mut ends_open = false;
    for segment in decoded.split(|byte| *byte == b'/').skip(1) {
        ends_open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => out.truncate(memchr::memrchr(b'/', &out).unwrap_or(0)),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
            }
        }
    }
    // A path that ends in a slash or a dot segment names the directory: its final slash stays.
    if ends_open || out.is_empty() {
        out.push(b'/');
    }
    Cow::Owned(out)
}

/// The path before `?`.
pub(crate) fn without_query(path: &[u8]) -> &[u8] {
    memchr::memchr(b'?', path)
        .and_then(|mark| path.get(..mark))
        .unwrap_or(path)
}

/// True for a path without escapes, empty segments and segments that begin with a dot. The fast
/// path: a false "no" only costs time.
fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for byte in path {
        match byte {
            b'%' => return false,
            b'/' | b'.' if after_slash => return false,
            _ => after_slash = *byte == b'/',
        }
    }
    true
}

/// Percent-decodes a path once.
pub(crate) fn decoded(path: &[u8], slash: EncodedSlash) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'%', path) else {
        return Cow::Borrowed(path);
    };
    let (head, mut left) = path.split_at(first);
    let mut out = Vec::with_capacity(path.len());
    out.extend_from_slice(head);
    while let Some((byte, after)) = left.split_first() {
        match escape(left) {
            Some((b'/', after)) if slash == EncodedSlash::Belongs => {
                out.extend_from_slice(b"%2F");
                left = after;
            }
            Some((b'/', after)) if slash == EncodedSlash::Marked => {
                out.push(0);
                left = after;
            }
            Some((value, after)) => {
                out.push(value);
                left = after;
            }
            None => {
                out.push(*byte);
                left = after;
            }
        }
    }
    Cow::Owned(out)
}

/// Decodes the escape at the beginning of `text`; returns the byte and the text after it.
pub(crate) fn escape(text: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, after @ ..] = text else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some(((digit(*high)? * 16 + digit(*low)?) as u8, after))
}

/// The decoded bytes of all escapes in a path.
fn escapes(path: &[u8]) -> impl Iterator<Item = u8> {
    let path = without_query(path);
    memchr::memchr_iter(b'%', path).filter_map(|at| escape(path.get(at..)?).map(|(value, _)| value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, slash: EncodedSlash) -> String {
        String::from_utf8_lossy(&normal(path.as_bytes(), slash)).into_owned()
    }

    #[test]
    fn paths_have_one_normal_form() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a/b?x=/../y", "/a/b"),
            ("/%61%2e%2E/b", "/a../b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("//a///b//", "/a/b/"),
            ("/...", "/..."),
            ("/.hidden/a.b", "/.hidden/a.b"),
            ("/100%", "/100%"),
            ("/a%zz%4", "/a%zz%4"),
            ("/%2561", "/%61"),
            ("/caf%c3%a9", "/café"),
            ("/a%2fb", "/a/b"),
            ("/a%2F..%2fb", "/b"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(text(path, EncodedSlash::Separates), expected, "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_can_be_read_as_part_of_a_name() {
        assert_eq!(text("/a%2fb/c", EncodedSlash::Belongs), "/a%2Fb/c");
        assert_eq!(text("/a/..%2fb", EncodedSlash::Belongs), "/a/..%2Fb");
        assert!(is_ambiguous(b"/a%2Fb") && !is_ambiguous(b"/a%252fb?%2f"));
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        for path in ["/", "/a/b.c/", "/a?b%2f", "/x../z.", "*"] {
            let borrowed = matches!(normal_path(path.as_bytes()), Cow::Borrowed(_));
            assert!(borrowed, "{path}");
        }
    }

    #[test]
    fn the_normal_form_is_stable() {
        let mut random = crate::base::rng::Random::seeded(11);
        for _ in 0..20_000 {
            let pieces = ["/", "/", "a", ".", "..", "b", "é"];
            let path: String = (0..random.below(12))
                .map(|_| pieces[random.below(7)])
                .collect();
            let path = format!("/{path}");
            let once = text(&path, EncodedSlash::Separates);
            assert_eq!(text(&once, EncodedSlash::Separates), once, "{path}");
            assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"));
        }
    }
}
