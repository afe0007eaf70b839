//! Finds values of other products in texts that are sent as they are: `$remote_addr`, `%[src]`,
//! `{uri}`, `%REQ(...)%`.
//!
//! Their author means the value, which this version does not have there. Texts that may be meant as
//! they are stay: JSON,
//! `$5.00`, `100%`, style sheets.

use super::{NodeRef, TreeReader, quote};

/// Purpose of a text that is sent as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextUse {
    /// The value of a header.
    Header,
    /// The target of a redirect.
    Redirect,
    /// The body of a response: only words that are known are refused.
    Body,
}

/// Variables of nginx, without those that begin with one of [`NGINX_PREFIXES`].
const NGINX_VARIABLES: &[&str] = &[
    "args",
    "binary_remote_addr",
    "body_bytes_sent",
    "bytes_sent",
    "connection",
    "content_length",
    "content_type",
    "document_root",
    "document_uri",
    "fastcgi_script_name",
    "host",
    "hostname",
    "https",
    "is_args",
    "msec",
    "nginx_version",
    "pid",
    "proxy_add_x_forwarded_for",
    "proxy_host",
    "proxy_port",
    "query_string",
    "remote_addr",
    "remote_port",
    "remote_user",
    "request",
    "request_body",
    "request_filename",
    "request_id",
    "request_method",
    "request_time",
    "request_uri",
    "scheme",
    "server_addr",
    "server_name",
    "server_port",
    "server_protocol",
    "status",
    "time_iso8601",
    "time_local",
    "uri",
];
const NGINX_PREFIXES: &[&str] = &[
    "arg_",
    "cookie_",
    "http_",
    "sent_http_",
    "ssl_",
    "upstream_",
    "realip_",
    "proxy_protocol_",
    "geoip_",
    "jwt_",
];
/// Words in braces: those that a later version gives a meaning, and those of Caddy.
const BRACED_WORDS: &[&str] = &[
    "backend",
    "client_cert_fingerprint",
    "client_cert_subject",
    "client_ip",
    "client_port",
    "dir",
    "file",
    "host",
    "hostport",
    "listener",
    "method",
    "path",
    "pool",
    "port",
    "query",
    "remote",
    "remote_host",
    "remote_port",
    "request_id",
    "route",
    "scheme",
    "tls_cipher",
    "tls_client_subject",
    "tls_sni",
    "tls_version",
    "upstream_hostport",
    "uri",
    "user",
    "auth_user",
    "client_address",
    "remote_addr",
    "request_uri",
];
const BRACES_PREFIXES: &[&str] = &[
    "header:", "cookie:", "query:", "http.", "header.", "cookie.", "query.", "env.", "labels.",
    "path.", "re.", "system.", "time.", "vars.", "tls.", "args[", "$",
];

/// Reports the first value of another product in `text`; true if there is one.
pub(super) fn refuse(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    text: &str,
    used: TextUse,
) -> bool {
    let Some(found) = find(text, used) else {
        return false;
    };
    let help = match used {
        TextUse::Redirect => {
            "variables are not supported here: `to: https` keeps host, path and query; any other target is sent unchanged"
        }
        TextUse::Header if is_about(found, &["addr", "client", "remote", "src"]) => {
            "variables are not supported here: backends get the client's address in X-Forwarded-For and X-Real-IP"
        }
        TextUse::Header if is_about(found, &["host", "server_name"]) => {
            "variables are not supported here: backends get the client's Host unchanged, and X-Forwarded-Host"
        }
        TextUse::Header if is_about(found, &["scheme", "proto", "https"]) => {
            "variables are not supported here: backends get X-Forwarded-Proto"
        }
        TextUse::Header if is_about(found, &["request_id"]) => {
            "variables are not supported here: X-Request-Id is sent anyway"
        }
        TextUse::Header | TextUse::Body => "variables are not supported here: remove it",
    };
    let message = format!(
        "{} is not a variable here: it would be sent literally",
        quote(found)
    );
    reader.error(at, message, help);
    true
}

fn is_about(found: &str, words: &[&str]) -> bool {
    let found = found.to_ascii_lowercase();
    words.iter().any(|word| found.contains(word))
}

fn find(text: &str, used: TextUse) -> Option<&str> {
    text.match_indices(['$', '%', '{', '\\'])
        .find_map(|(start, sign)| {
            let rest = text.get(start..)?;
            // Doubled, it stands for itself in most products.
            let before = text.get(..start).unwrap_or_default();
            if sign == "{" && (rest.starts_with("{{") || before.ends_with(['{', '$', '%'])) {
                return None;
            }
            let length = match sign {
                "$" => dollar(rest, used),
                "%" => percent(rest),
                "{" => braces(rest, used),
                _ => backslash(rest, used),
            }?;
            rest.get(..length)
        })
}

/// The length of a name at the beginning of `text`.
fn name_length(text: &str) -> usize {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes()
        .position(|byte| !is_name(byte))
        .unwrap_or(text.len())
}

fn is_nginx(name: &str) -> bool {
    NGINX_VARIABLES.contains(&name) || NGINX_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `$name`, `${name}`, and `$1` in a redirect.
fn dollar(rest: &str, used: TextUse) -> Option<usize> {
    let (open, close) = if rest.starts_with("${") {
        (2, 1)
    } else {
        (1, 0)
    };
    let inner = rest.get(open..)?;
    let length = name_length(inner);
    let name = inner.get(..length)?;
    let end = open + length + close;
    if name.is_empty() || close == 1 && !inner.get(length..)?.starts_with('}') {
        return None;
    }
    let is_group = name.bytes().all(|byte| byte.is_ascii_digit());
    let is_foreign = match used {
        TextUse::Body => is_nginx(name),
        TextUse::Redirect if is_group => true,
        TextUse::Header | TextUse::Redirect => {
            !is_group && (close == 1 || name.starts_with(|c: char| c.is_ascii_lowercase()))
        }
    };
    is_foreign.then_some(end)
}

/// `%[src]`, `%{HOST}`, `%REQ(X)%`, `%START_TIME%`.
fn percent(rest: &str) -> Option<usize> {
    let inner = rest.get(1..)?;
    for (open, close) in [('[', ']'), ('{', '}')] {
        if let Some(inner) = inner.strip_prefix(open) {
            let is_name = inner.starts_with(|c: char| c.is_ascii_alphabetic());
            return inner.find(close).filter(|_| is_name).map(|end| end + 3);
        }
    }
    let length = name_length(inner);
    let name = inner.get(..length)?;
    let is_command = name.len() > 2 && !name.bytes().any(|byte| byte.is_ascii_lowercase());
    let after = inner.get(length..)?;
    let end = if after.starts_with('(') {
        after.find(")%")? + 2
    } else if after.starts_with('%') && name.contains('_') {
        1
    } else {
        return None;
    };
    is_command.then_some(1 + length + end)
}

/// `{uri}`, `{header:NAME}`, `{http.request.uri}`, and `{1}` but in a body.
fn braces(rest: &str, used: TextUse) -> Option<usize> {
    let end = rest.find('}')?;
    let word = rest.get(1..end)?;
    let is_group = matches!(word.as_bytes(), [b'1'..=b'9']) && used != TextUse::Body;
    let is_short = word.len() <= 128 && !word.contains(char::is_whitespace);
    let has_prefix = |prefix: &&str| {
        word.strip_prefix(*prefix)
            .is_some_and(|more| !more.is_empty())
    };
    let is_known =
        BRACED_WORDS.contains(&word) || is_short && BRACES_PREFIXES.iter().any(has_prefix);
    (is_group || is_known).then_some(end + 1)
}

/// `\1` in a redirect.
fn backslash(rest: &str, used: TextUse) -> Option<usize> {
    let is_group = rest.get(1..)?.starts_with(|c: char| c.is_ascii_digit());
    (is_group && used == TextUse::Redirect).then_some(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_other_products_are_found() {
        for (text, found) in [
            ("$remote_addr", "$remote_addr"),
            ("for=$remote_addr;by=x", "$remote_addr"),
            ("${scheme}://x", "${scheme}"),
            ("$http_x_tenant", "$http_x_tenant"),
            ("a %[src] b", "%[src]"),
            ("%[req.hdr(Host)]", "%[req.hdr(Host)]"),
            ("%{REMOTE_ADDR}s", "%{REMOTE_ADDR}"),
            ("%REQ(:AUTHORITY)%", "%REQ(:AUTHORITY)%"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "%DOWNSTREAM_REMOTE_ADDRESS%"),
            ("x {client_ip}", "{client_ip}"),
            ("{http.request.uri}", "{http.request.uri}"),
            ("{header:X-Tenant}", "{header:X-Tenant}"),
            ("https://x{uri}", "{uri}"),
        ] {
            for used in [TextUse::Header, TextUse::Redirect, TextUse::Body] {
                assert_eq!(find(text, used), Some(found), "{text} {used:?}");
            }
        }
        for text in [
            "https://x/$1",
            "https://x/${1}",
            r"https://x/\1",
            "https://x/{1}",
        ] {
            assert!(find(text, TextUse::Redirect).is_some(), "{text}");
        }
        assert!(find("$tenant", TextUse::Header).is_some());
    }

    #[test]
    fn what_is_meant_as_it_is_stays() {
        for text in [
            r#"{"error": {"code": 403, "host": "x"}}"#,
            "costs $5.00, 100% off, $, %, {, }",
            "body{color:red}a{margin:0}",
            "@media print{p{color:red}}",
            "{{host}}",
            "100%",
            "/caf%C3%A9/%DEF%20",
            "$Version=1",
            "{}",
            "{tenant}",
            "max-age=31536000; includeSubDomains",
            "default-src 'self'; style-src 'sha256-abc=='",
        ] {
            for used in [TextUse::Header, TextUse::Body] {
                assert_eq!(find(text, used), None, "{text} {used:?}");
            }
        }
        for text in ["const a = `${name}`; $total; $('p')", r"/\d{1}/ \1 $1"] {
            assert_eq!(find(text, TextUse::Body), None, "{text}");
        }
    }
}
