//! Host names for matching: lower case, without port, final dot and brackets; IPv6 literals in
//! their shortest form.
//!
//! Works in a buffer on the stack. It refuses no request: the parser decides if a Host is valid.

use std::{io::Write, net::Ipv6Addr};

/// Maximum length of a host that can match: a DNS name has at most 253 bytes (RFC 1035).
pub(crate) const MAX_HOST_BYTES: usize = 255;

/// Returns the normal form of a Host field's value; `None` if it is too long to be a host.
pub(crate) fn normal_host<'a>(
    host: &[u8],
    buffer: &'a mut [u8; MAX_HOST_BYTES],
) -> Option<&'a [u8]> {
    let name = without_port(host);
    if let Some(literal) = ipv6(name) {
        let mut unused = &mut buffer[..];
        write!(unused, "{literal}").ok()?;
        let used = MAX_HOST_BYTES - unused.len();
        return buffer.get(..used);
    }
    // `example.com.` is the same host with its root label.
    let name = name.strip_suffix(b".").unwrap_or(name);
    let place = buffer.get_mut(..name.len())?;
    place.copy_from_slice(name);
    place.make_ascii_lowercase();
    Some(place)
}

/// Removes `:8080`, or a lone `:`. The colons of an IPv6 address without brackets are no port.
fn without_port(host: &[u8]) -> &[u8] {
    let Some(colon) = memchr::memrchr(b':', host) else {
        return host;
    };
    let (name, port) = host.split_at(colon);
    let is_port = port.iter().skip(1).all(u8::is_ascii_digit);
    let is_whole_name = name.ends_with(b"]") || !name.contains(&b':');
    if is_port && is_whole_name { name } else { host }
}

/// Parses an IPv6 literal, with or without brackets.
fn ipv6(name: &[u8]) -> Option<Ipv6Addr> {
    if !name.contains(&b':') {
        return None;
    }
    let inner = name
        .strip_prefix(b"[")
        .and_then(|inner| inner.strip_suffix(b"]"))
        .unwrap_or(name);
    std::str::from_utf8(inner).ok()?.parse().ok()
}

/// The parents of a name, nearest first: of `a.b.c` they are `b.c` and `c`.
pub(crate) fn parents(host: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memchr_iter(b'.', host).filter_map(|dot| host.get(dot + 1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_normal_form() {
        for (host, expected) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com:", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:80", "example.com"),
            ("example.com:80x", "example.com:80x"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "::1"),
            ("[::1]:8080", "::1"),
            ("::1", "::1"),
            ("[2001:DB8:0:0::1]:443", "2001:db8::1"),
            ("[nonsense]:443", "[nonsense]"),
            ("", ""),
        ] {
            let mut buffer = [0; MAX_HOST_BYTES];
            let got = normal_host(host.as_bytes(), &mut buffer).unwrap();
            assert_eq!(got, expected.as_bytes(), "{host}");
        }
    }

    #[test]
    fn a_value_too_long_for_a_host_is_none() {
        assert_eq!(normal_host(&[b'a'; 256], &mut [0; MAX_HOST_BYTES]), None);
    }

    #[test]
    fn parents_come_nearest_first() {
        let names: Vec<_> = parents(b"a.b.c").collect();
        assert_eq!(names, [&b"b.c"[..], b"c"]);
    }
}
