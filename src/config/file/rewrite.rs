//! Reads what a route does with a request on its way to a backend: `rewrite` and `split`.

use std::fmt::Write as _;

use super::{
    KeyValue as _, NameTable, NodeKind, NodeRef, Section, TreeReader,
    common::{clean_text, is_bare_ipv6},
    quote,
};
use crate::config::model::{
    PathMatch, PathPiece, PathRewrite, RewriteConfig, RouteConfig, SplitShare,
};

/// Longest path to write, in bytes.
const MAX_PATH_BYTES: usize = 1024;

/// `rewrite`, for a route whose match has been read; `given` are the route's keys.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    given: &Section<'_>,
    route: &RouteConfig,
) -> RewriteConfig {
    let mut rewrite = RewriteConfig::default();
    let Some(keys) = reader.section(at) else {
        return rewrite;
    };
    let (path, strip) = (keys.get("path"), keys.get("strip_prefix"));
    if matches!(&at.node.kind, NodeKind::Map(entries) if entries.is_empty()) {
        reader.error_at_key(
            at,
            "`rewrite` changes nothing",
            "add `path: /new`, `strip_prefix: /old` or `host: NAME`",
        );
    }
    if let (Some(_), Some(strip)) = (path, strip) {
        reader.error_at_key(
            strip,
            "`path` and `strip_prefix` cannot both be set",
            "keep one: `path` replaces the matched prefix",
        );
    }
    let by_regex = given.get("path_regex").is_some();
    if let Some(at) = path {
        rewrite.path = match &route.path {
            PathMatch::Regex(regex) => pieces(reader, at, regex).map(PathRewrite::Expand),
            // The expression could not be read: its groups are not known.
            _ if by_regex => None,
            _ => plain(reader, at).map(PathRewrite::Replace),
        }
        .unwrap_or_default();
    } else if let Some(at) = strip {
        rewrite.path = prefix(reader, at, route)
            .map(PathRewrite::Strip)
            .unwrap_or_default();
    }
    if let Some(at) = keys.get("host") {
        rewrite.host = host(reader, at);
        let edits = given.get("request_headers");
        if edits.is_some_and(|_| sets_host(route)) {
            reader.error_at_key(
                at,
                "`request_headers.set` sets Host too",
                "keep one of the two",
            );
        }
    }
    rewrite
}

fn sets_host(route: &RouteConfig) -> bool {
    let mut names = route.request_headers.set.iter().map(|(name, _)| name);
    names.any(|name| name.eq_ignore_ascii_case("host"))
}

/// A path to write that refers to nothing.
fn plain(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let text = path_text(reader, at)?;
    if text.contains('$') {
        refuse(
            reader,
            at,
            text,
            "`$` refers to a group of `path_regex`, which this route does not have; a dollar is `%24`",
        );
        return None;
    }
    check(text)
        .map_err(|help| refuse(reader, at, text, help))
        .is_ok()
        .then(|| text.to_owned())
}

fn prefix(reader: &mut TreeReader<'_>, at: NodeRef<'_>, route: &RouteConfig) -> Option<String> {
    let text = plain(reader, at)?;
    let trimmed = text.trim_end_matches('/');
    if trimmed.is_empty() {
        reader.error(at, "`/` removes nothing", "remove the key");
        return None;
    }
    let takes = |path: &str| {
        path.strip_prefix(trimmed)
            .map(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let below = |path: &str| {
        trimmed
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let fits = match &route.path {
        PathMatch::Any | PathMatch::Regex(_) => true,
        PathMatch::Exact(path) => takes(path) == Some(true),
        PathMatch::Prefix(path) => path == "/" || takes(path) == Some(true) || below(path),
    };
    // Written with an escape, the same path has another look.
    if !fits && !text.contains('%') {
        reader.warn_at_key(
            at,
            "no path of this route begins with it: nothing is removed",
            "write the beginning of the route's own `path`",
        );
    }
    Some(trimmed.to_owned())
}

fn path_text<'a>(reader: &mut TreeReader<'_>, at: NodeRef<'a>) -> Option<&'a str> {
    let text = clean_text(reader, at, "the path of a rewrite")?;
    if text.len() > MAX_PATH_BYTES {
        reader.error(
            at,
            "the path of a rewrite is longer than 1024 bytes",
            "shorten it",
        );
        return None;
    }
    Some(text)
}

fn refuse(reader: &mut TreeReader<'_>, at: NodeRef<'_>, text: &str, help: impl Into<String>) {
    reader.error(at, format!("{} is not a valid path", quote(text)), help);
}

/// Checks the characters of a path (RFC 3986 section 3.3). A path that servers read in different
/// ways is refused.
fn check(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err("write a path that begins with `/`".to_owned());
    }
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
        let mut escaped = String::new();
        for byte in odd.encode_utf8(&mut [0; 4]).bytes() {
            _ = write!(escaped, "%{byte:02X}");
        }
        return Err(format!("write `{odd}` encoded, as `{escaped}`"));
    }
    if text.contains(['?', '#']) {
        return Err("remove query and fragment: the client's query is kept".to_owned());
    }
    if let Some(odd) = text.chars().find(|c| "\"<>\\^`{|}[]".contains(*c)) {
        return Err(format!("write `{odd}` encoded, as `%{:02X}`", odd as u32));
    }
    for escape in text.split('%').skip(1) {
        let digits = escape
            .get(..2)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let help = match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            None => "write two hexadecimal digits after `%`; `%25` is `%` itself",
            Some(b'/') => "remove `%2F`: servers read it differently",
            Some(b'.') => "write `%2E` as a dot",
            Some(0..0x20 | 0x7f) => "remove control characters",
            Some(_) => continue,
        };
        return Err(help.to_owned());
    }
    let mut segments = text.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err("remove doubled slashes".to_owned());
        }
        if matches!(segment, "." | "..") {
            return Err("remove `.` and `..`".to_owned());
        }
    }
    Ok(())
}

/// A path with references to groups: `$1`, `${1}`, `${name}`; `$$` is a dollar.
fn pieces(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    regex: &regex::Regex,
) -> Option<Vec<PathPiece>> {
    let text = path_text(reader, at)?;
    if text.starts_with('$') {
        refuse(
            reader,
            at,
            text,
            format!("write a slash in front: `/{text}`; doubled slashes become one"),
        );
        return None;
    }
    let pieces = match split_pieces(text, regex) {
        Ok(pieces) => pieces,
        Err(help) => {
            refuse(reader, at, text, help);
            return None;
        }
    };
    // A group stands for something: the path around it must be one all the same.
    let like: String = pieces
        .iter()
        .map(|piece| match piece {
            PathPiece::Text(text) => text.as_str(),
            PathPiece::Group(_) => "x",
        })
        .collect();
    check(&like)
        .map_err(|help| refuse(reader, at, text, help))
        .is_ok()
        .then_some(pieces)
}

fn split_pieces(text: &str, regex: &regex::Regex) -> Result<Vec<PathPiece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            plain.push('$');
            rest = after;
            continue;
        }
        let (name, after) = if let Some(inner) = after.strip_prefix('{') {
            inner.split_once('}').ok_or("a `}` is missing after `${`")?
        } else {
            let end = after.find(|c: char| !c.is_ascii_digit());
            after.split_at(end.unwrap_or(after.len()))
        };
        if name.is_empty() {
            return Err("write `$1` or `${name}` for a group, `$$` for a dollar".to_owned());
        }
        if !plain.is_empty() {
            pieces.push(PathPiece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(PathPiece::Group(group(name, regex)?));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(PathPiece::Text(plain));
    }
    Ok(pieces)
}

fn group(name: &str, regex: &regex::Regex) -> Result<usize, String> {
    let index = match name.parse::<usize>() {
        Ok(number) => (number < regex.captures_len()).then_some(number),
        Err(_) => regex.capture_names().position(|known| known == Some(name)),
    };
    index.ok_or_else(|| {
        let known: Vec<String> = regex
            .capture_names()
            .enumerate()
            .skip(1)
            .map(|(index, name)| match name {
                Some(name) => format!("`${{{name}}}`"),
                None => format!("`${index}`"),
            })
            .collect();
        let known = match known.as_slice() {
            [] => "no groups: put what you want to keep in `(…)`".to_owned(),
            known => known.join(", "),
        };
        format!(
            "there is no group {}: `path_regex` has {known}",
            quote(name)
        )
    })
}

/// A Host to send, RFC 9110 section 7.2: a name or an address, with or without a port.
fn host(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let hint = "write a name such as `internal.example` or `internal.example:8080`";
    let text = clean_text(reader, at, "the name of a host")?;
    let (name, port) = host_parts(text);
    let help = match text {
        _ if is_name(name) && is_port(port) => return Some(text.to_owned()),
        _ if text.contains("://") => "remove the scheme",
        _ if text.contains('/') => "remove the path: it goes into `path`",
        _ if text.contains('@') => "remove user and password",
        _ if text.contains('*') => "write one name without `*`",
        _ if !text.is_ascii() => "write the name as it is sent, in Punycode: `xn--…`",
        _ if is_bare_ipv6(text) && !text.starts_with('[') => {
            return refuse_host(reader, at, text, &format!("write `\"[{text}]\"`"));
        }
        _ => hint,
    };
    refuse_host(reader, at, text, help)
}

fn refuse_host(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    text: &str,
    help: &str,
) -> Option<String> {
    reader.error(at, format!("{} is not a valid host", quote(text)), help);
    None
}

fn host_parts(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    }
}

fn is_port(port: Option<&str>) -> bool {
    port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn is_name(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[') {
        let inner = inner.strip_suffix(']');
        return inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    labels.len() <= 253
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

/// `split`: names of pools and their weights.
pub(super) fn split(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pools: &mut NameTable<'_>,
) -> Option<Vec<SplitShare>> {
    let map = reader.map(at, "write pools and weights: `{stable: 9, canary: 1}`")?;
    let mut shares = Vec::new();
    let (mut entries, mut total, mut whole) = (0, 0, true);
    for at in map.iter() {
        entries += 1;
        let pool = pools.resolve_key(reader, at, "pool");
        let weight = u16::read(reader, at);
        total += u32::from(weight.unwrap_or(1));
        match (pool, weight) {
            (Some(pool), Some(weight)) => shares.push(SplitShare {
                pool,
                weight,
                retries: None,
            }),
            _ => whole = false,
        }
    }
    if entries == 0 {
        reader.error(
            at,
            "`split` names no pool",
            "write pools and weights: `{stable: 9, canary: 1}`",
        );
    } else if total == 0 {
        reader.error(
            at,
            "every weight is 0: no pool gets a request",
            "give one of them a weight of 1 or more",
        );
    }
    (whole && total > 0).then_some(shares)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{
        NoFiles,
        model::{Config, RouteAction},
        parse,
    };

    fn config(routes: &str) -> Config {
        let text = format!(
            "listeners: {{web: {{bind: ':80', pool: a}}}}\nroutes: [{routes}]\npools:\n  a: {{backends: [h:1], retries: {{attempts: 7}}}}\n  b: {{backends: [h:1], retries: none}}\n"
        );
        match parse(Path::new("test.yaml"), &text, &NoFiles) {
            Ok(loaded) => loaded.config,
            Err(problems) => panic!("{problems}"),
        }
    }

    fn text(text: &str) -> PathPiece {
        PathPiece::Text(text.to_owned())
    }

    #[test]
    fn groups_are_found_by_number_and_by_name() {
        let regex = "'/(?<first>.)(.)(.)(.)(.)(.)(.)(.)(.)(.)'";
        for (path, expected) in [
            ("/$1", vec![text("/"), PathPiece::Group(1)]),
            ("/$10", vec![text("/"), PathPiece::Group(10)]),
            ("/${1}0", vec![text("/"), PathPiece::Group(1), text("0")]),
            (
                "/${first}$2",
                vec![text("/"), PathPiece::Group(1), PathPiece::Group(2)],
            ),
            ("/$0/", vec![text("/"), PathPiece::Group(0), text("/")]),
            ("/$$1$$", vec![text("/$1$")]),
            ("/a%20b", vec![text("/a%20b")]),
        ] {
            let config = config(&format!(
                "{{path_regex: {regex}, pool: a, rewrite: {{path: '{path}'}}}}"
            ));
            assert_eq!(
                config.routes[0].rewrite.path,
                PathRewrite::Expand(expected),
                "{path}"
            );
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for host in [
            "inner",
            "a.b-c_d.example.",
            "inner:8080",
            "10.0.0.1:1",
            "[::1]",
            "[2001:db8::1]:65535",
        ] {
            let config = config(&format!("{{pool: a, rewrite: {{host: '{host}'}}}}"));
            assert_eq!(config.routes[0].rewrite.host.as_deref(), Some(host));
        }
    }

    #[test]
    fn an_override_of_retries_is_laid_over_each_pool_of_a_split() {
        let config = config("{split: {a: 256, b: 0}, retries: {budget: 1%}}");
        let route = &config.routes[0];
        let RouteAction::Split(shares) = &route.action else {
            panic!("{:?}", route.action)
        };
        let weights: Vec<_> = shares
            .iter()
            .map(|share| (share.pool, share.weight))
            .collect();
        assert_eq!(weights, [(0, 256), (1, 0)]);
        let attempts = [0, 1].map(|pool| {
            let over = route.retries_for(pool).and_then(Option::as_ref);
            over.map(|retries| (retries.attempts, retries.budget))
        });
        assert_eq!(attempts, [Some((7, 0.01)), Some((2, 0.01))]);
    }
}
