//! Reads what a route matches: hosts, paths, headers.

use super::{
    NodeRef, Section, TreeReader,
    common::{clean_text, header_name},
    quote,
};
use crate::config::model::{BytePattern, HeaderMatch, HostMatch, PathMatch, whole_path};

/// Longest regular expression in bytes.
const MAX_REGEX_BYTES: usize = 1024;
/// Largest compiled regular expression, and cache of its automaton, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// `host`: one or more names.
pub(super) fn hosts(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<HostMatch> {
    let hint = "write a name such as `api.example.com` or `\"*.example.com\"`";
    let mut hosts = Vec::new();
    for entry in reader.one_or_more(&at, "a host name", hint) {
        let Some(text) = reader.text(entry, "a host name", hint) else {
            continue;
        };
        match host(text) {
            Ok(host) if hosts.contains(&host) => {
                reader.error(
                    entry,
                    format!("{} is given twice", quote(text)),
                    "remove one",
                );
            }
            Ok(host) => hosts.push(host),
            Err(help) => {
                reader.error(
                    entry,
                    format!("{} is not a valid host name", quote(text)),
                    help,
                );
            }
        }
    }
    hosts
}

/// One name, or `*.` and a name; the error is the hint.
pub(super) fn host(text: &str) -> Result<HostMatch, &'static str> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    if let Some(inner) = name.strip_prefix('[') {
        return match inner
            .strip_suffix(']')
            .map(str::parse::<std::net::Ipv6Addr>)
        {
            Some(Ok(_)) => Ok(HostMatch::Exact(name.to_owned())),
            _ => Err("write an IPv6 address in brackets, without a port"),
        };
    }
    let (suffix, labels) = match name.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    if name == "*" {
        return Err("remove the key: then every host matches");
    }
    if labels.contains("://") || labels.contains('/') {
        return Err("remove scheme and path; the path goes into `path`");
    }
    if labels.contains(':') {
        return Err("remove the port: it is not matched");
    }
    if labels.contains('*') {
        return Err("`*` is allowed only at the beginning, as a whole label: `\"*.example.com\"`");
    }
    if !labels.is_ascii() {
        return Err("write the name as it is sent, in Punycode: `xn--…`");
    }
    let fine = labels.len() <= 253
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if !fine {
        return Err("write a name such as `api.example.com` or `\"*.example.com\"`");
    }
    Ok(if suffix {
        HostMatch::Suffix(labels.to_owned())
    } else {
        HostMatch::Exact(labels.to_owned())
    })
}

/// `path`, `path_exact`, `path_regex`: at most one of them.
pub(super) fn path(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> PathMatch {
    let kinds = ["path", "path_exact", "path_regex"];
    let given: Vec<(&str, NodeRef<'_>)> = kinds
        .iter()
        .filter_map(|key| keys.get(key).map(|at| (*key, at)))
        .collect();
    if let [(first, _), (_, second), ..] = given.as_slice() {
        reader.error_at_key(
            *second,
            format!(
                "a route can have only one path condition: `{first}` and `{}` are both set",
                second.last_key()
            ),
            "remove one, or write two routes",
        );
    }
    match given.first() {
        None => PathMatch::Any,
        Some(("path_regex", at)) => regex(reader, *at).map_or(PathMatch::Any, PathMatch::Regex),
        Some((kind, at)) => literal(reader, *at, *kind == "path"),
    }
}

fn literal(reader: &mut TreeReader<'_>, at: NodeRef<'_>, prefix: bool) -> PathMatch {
    let hint = "write a path that begins with `/`";
    let Some(text) = clean_text(reader, at, "the path of a route") else {
        return PathMatch::Any;
    };
    let help = if text.contains('*') {
        Some("remove `*`: `path` takes all paths below it; for patterns use `path_regex`")
    } else if !text.starts_with('/') {
        Some(hint)
    } else if text.contains(['?', '#']) {
        Some("remove the query: only the path is matched")
    } else if text
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        Some("remove `.` and `..`: paths are matched without them")
    } else if text.contains(' ') {
        Some("remove spaces")
    } else {
        None
    };
    if let Some(help) = help {
        reader.error(at, format!("{} is not a valid path", quote(text)), help);
        return PathMatch::Any;
    }
    if !prefix {
        return PathMatch::Exact(text.to_owned());
    }
    let trimmed = text.trim_end_matches('/');
    PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}

/// True if an expression is certain to match no path: it begins with a letter or digit of its own,
/// or is empty.
fn cannot_begin_with_slash(text: &str) -> bool {
    let start = text.trim_start_matches("(?i)").trim_start_matches('^');
    let mut characters = start.chars();
    match characters.next() {
        None => true,
        Some(first) => {
            let may_be_absent = matches!(characters.next(), Some('*' | '?' | '{'));
            first.is_ascii_alphanumeric() && !may_be_absent && !text.contains('|')
        }
    }
}

/// The cause and its place, out of the drawing of several lines that the library makes of a syntax
/// error.
fn syntax_cause(drawing: &str) -> String {
    let cause = drawing
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .unwrap_or("not valid");
    let place = drawing
        .lines()
        .find(|line| line.contains('^') && line.trim().bytes().all(|b| b == b'^'))
        .and_then(|line| line.find('^'))
        // The drawing indents the expression by four columns.
        .and_then(|column| column.checked_sub(4))
        .map(|column| format!(" at character {}", column + 1))
        .unwrap_or_default();
    format!("{cause}{place}")
}

/// The remedy for a syntax error, by its cause.
fn regex_hint(text: &str, cause: &str) -> String {
    if text.starts_with('*') {
        let fixed = escape_dots(text.trim_start_matches('*'));
        return format!(
            "write {}: `.*` stands for any text",
            quote(&format!("'.*{fixed}'"))
        );
    }
    let hint = match cause {
        _ if cause.starts_with("unclosed group") => {
            "close the group with `)`; a literal `(` is `\\(`"
        }
        _ if cause.starts_with("unopened group") => {
            "remove the `)`, or open the group with `(`; a literal `)` is `\\)`"
        }
        _ if cause.starts_with("unclosed character class") => {
            "close the class with `]`; a literal `[` is `\\[`"
        }
        _ if cause.contains("look-around") => {
            "look-ahead and look-behind are not supported: write another route for the paths that are excluded"
        }
        _ if cause.contains("backreference") => {
            "references to groups are not supported in an expression"
        }
        _ if cause.contains("repetition operator missing") => {
            "put something before `*`, `+` or `?`, such as `.*`; a literal one is `\\*`"
        }
        _ if cause.contains("repetition") => {
            "write a repetition as `{2}`, `{2,}` or `{2,4}`; a literal `{` is `\\{`"
        }
        _ if cause.contains("escape") => "remove the backslash, or write `\\\\` for a literal one",
        _ if cause.contains("character class range") => {
            "write the smaller character first: `[a-z]`"
        }
        _ if cause.contains("group name") => "write a named group as `(?<name>…)`",
        _ => "correct it, or put a backslash before a character that is meant literally",
    };
    hint.to_owned()
}

/// The text of a file name pattern with its dots as literal ones.
fn escape_dots(text: &str) -> String {
    text.replace('.', r"\.")
}

fn regex(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<regex::Regex> {
    let build = |pattern: &str| {
        regex::RegexBuilder::new(pattern)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
    };
    let text = regex_text(reader, at, "write one such as `/v[0-9]+/.*`")?;
    // The bare text first, so that the place in its message is the user's.
    match build(text).and_then(|bare| build(&whole_path(text)).map(|_| bare)) {
        Ok(bare) => {
            if cannot_begin_with_slash(text) {
                reader.warn_at_key(
                    at,
                    "the route never matches: a path begins with `/`, and the expression must match all of it",
                    "begin it with `/`, or with `.*`",
                );
            }
            Some(bare)
        }
        Err(error) => {
            report_regex(reader, at, text, error);
            None
        }
    }
}

/// An expression over bytes, for what a check expects; `is_whole`: it must match all of them.
pub(super) fn byte_pattern(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    is_whole: bool,
) -> Option<BytePattern> {
    let text = regex_text(reader, at, "write one such as `[0-9]+ OK`")?;
    let build = |pattern: &str| {
        regex::bytes::RegexBuilder::new(pattern)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
    };
    // The bare text first, so that the place in its message is the user's.
    let built = build(text).and_then(|bare| {
        if is_whole {
            build(&format!(r"\A(?:{text})\z"))
        } else {
            Ok(bare)
        }
    });
    match built {
        Ok(regex) => Some(BytePattern {
            text: text.to_owned(),
            regex,
        }),
        Err(error) => {
            report_regex(reader, at, text, error);
            None
        }
    }
}

/// The text of a regular expression.
fn regex_text<'a>(reader: &mut TreeReader<'_>, at: NodeRef<'a>, hint: &str) -> Option<&'a str> {
    let text = reader.text(at, "a regular expression", hint)?;
    if text.len() > MAX_REGEX_BYTES {
        reader.error(
            at,
            "the regular expression is longer than 1024 bytes",
            "shorten it",
        );
        return None;
    }
    Some(text)
}

/// Reports an expression that cannot be compiled.
fn report_regex(reader: &mut TreeReader<'_>, at: NodeRef<'_>, text: &str, error: regex::Error) {
    match error {
        regex::Error::Syntax(drawing) => {
            reader.error(
                at,
                format!("not a valid regular expression: {}", syntax_cause(&drawing)),
                regex_hint(text, &syntax_cause(&drawing)),
            );
        }
        _ => {
            reader.error(
                at,
                "the regular expression is too large",
                "use smaller repetitions: it may take 1MiB when compiled",
            );
        }
    }
}

/// `headers`: names and whole values, `"*"` for any.
pub(super) fn headers(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<HeaderMatch> {
    let mut matches: Vec<HeaderMatch> = Vec::new();
    let Some(map) = reader.map(at, "write `{X-Name: value}`, or `\"*\"` for any value") else {
        return matches;
    };
    for at in map.iter() {
        let name = at.last_key();
        let value = clean_text(reader, at, "the value of a header");
        if !header_name(reader, at, name, true) {
            continue;
        }
        let name = name.to_ascii_lowercase();
        if name == "host" {
            reader.error_at_key(
                at,
                "`host` has a key of its own",
                "write `host: NAME` in the route",
            );
        }
        if matches.iter().any(|other| other.name == name) {
            reader.error_at_key(
                at,
                format!(
                    "{} is given twice: header names are not case-sensitive",
                    quote(&name)
                ),
                "remove one",
            );
        }
        if let Some(value) = value {
            matches.push(HeaderMatch {
                name,
                value: (value != "*").then(|| value.to_owned()),
            });
        }
    }
    matches
}
