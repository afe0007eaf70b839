//! Readers shared by sections: addresses to listen on, header names and values, redirects, retries,
//! timeouts.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

use super::{KeyValue as _, NodeRef, OrNone, TreeReader, assign, foreign, quote};
use crate::{
    base::address::{AddressError, BindAddress},
    config::{
        model::{RateLimitConfig, RedirectConfig, RetriesConfig, RetryCondition, RetryConditions},
        yaml::NodeKind,
    },
};

/// One address to listen on.
pub(super) fn bind(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<BindAddress> {
    let hint = "write `\":8080\"`, `127.0.0.1:8080`, `\"[::]:8080\"` or `unix:/run/app.sock`";
    let text = reader.text(at, "an address to listen on", hint)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(error) => {
            let help = match error {
                AddressError::NoPort if hexadecimal(text).is_some() => {
                    let port = hexadecimal(text).unwrap_or_default();
                    format!("write the port as a decimal number: `{port}`")
                }
                AddressError::NoPort => format!("write {}", quote(&format!("{text}:8080"))),
                AddressError::BadHost if text.contains("://") => "remove the scheme".to_owned(),
                AddressError::BadHost if text.starts_with("localhost:") => {
                    let port = text.rsplit(':').next().unwrap_or_default();
                    format!("write `127.0.0.1:{port}`")
                }
                AddressError::BadHost if is_bare_ipv6(text) => {
                    let bare = text.trim_start_matches('[').trim_end_matches(']');
                    format!("write `\"[{bare}]:8080\"`")
                }
                AddressError::BadHost => {
                    "write an IP address of this machine, IPv6 in brackets".to_owned()
                }
                AddressError::BadPort | AddressError::BadPath => hint.to_owned(),
            };
            let cause = match error {
                AddressError::BadHost if text.contains("://") => "it is a URL".to_owned(),
                AddressError::BadHost if is_bare_ipv6(text) => AddressError::NoPort.to_string(),
                AddressError::BadHost if is_name_and_port(text) => {
                    "`bind` needs an IP address, not a name".to_owned()
                }
                AddressError::BadHost => "the host is not an IP address".to_owned(),
                error => error.to_string(),
            };
            reader.wrong_value(
                at,
                format!("{} is not an address to listen on: {cause}", quote(text)),
                help,
            );
            None
        }
    }
}

/// True for a host name with a port.
fn is_name_and_port(text: &str) -> bool {
    let (host, _) = text.rsplit_once(':').unwrap_or((text, ""));
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    host.bytes().all(is_fine) && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// True for an IPv6 address without a port, in brackets or not.
pub(super) fn is_bare_ipv6(text: &str) -> bool {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<Ipv6Addr>().is_ok()
}

/// `0x1F90` is a number in YAML 1.1, and text here.
fn hexadecimal(text: &str) -> Option<u16> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))?;
    u16::from_str_radix(digits, 16).ok()
}

/// Like [`bind`] for what only this machine is to reach: a bare port is one of 127.0.0.1.
pub(super) fn local_bind(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<BindAddress> {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_bare = at.scalar().is_some_and(is_port);
    match bind(reader, at)? {
        BindAddress::Ip(ip) if is_bare => {
            Some(BindAddress::Ip((Ipv4Addr::LOCALHOST, ip.port()).into()))
        }
        address => Some(address),
    }
}

/// Fields of the connection or of the framing, which only balancer itself may write. RFC 9110
/// sections 7.6.1 and 10.1.1, RFC 9112, RFC 9113 section 3.1.
pub(super) const FRAMING_FIELDS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// True for a token, RFC 9110 section 5.6.2: names of fields and methods.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Reports a header name that is not a token.
pub(super) fn header_name(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    name: &str,
    is_key: bool,
) -> bool {
    if is_token(name) && name.len() <= 256 {
        return true;
    }
    let message = format!("{} is not the name of a header", quote(name));
    let hint = if name.ends_with(':') {
        "remove the colon"
    } else {
        "use letters, digits and `-`"
    };
    if is_key {
        reader.error_at_key(at, message, hint);
    } else {
        reader.error(at, message, hint);
    }
    false
}

/// A text without control characters, such as the value of a header.
pub(super) fn clean_text<'a>(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'a>,
    what: &str,
) -> Option<&'a str> {
    let text = reader.text(at, what, "write text, in quotes where needed")?;
    if text.chars().any(char::is_control) {
        reader.error(
            at,
            format!("{what} has a control character: {}", quote(text)),
            "remove line breaks, tabs and other control characters",
        );
        return None;
    }
    if text.len() > 4096 {
        reader.error(
            at,
            format!("{what} is longer than 4096 bytes"),
            "shorten it",
        );
        return None;
    }
    Some(text)
}

/// A list of methods.
pub(super) fn methods(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<String> {
    let hint = "write methods as they are sent: `GET`";
    let mut methods: Vec<String> = Vec::new();
    for entry in reader.one_or_more(&at, "a list of methods", hint) {
        if let Some(method) = method(reader, entry) {
            if methods.contains(&method) {
                reader.error(
                    entry,
                    format!("{} is given twice", quote(&method)),
                    "remove one",
                );
            }
            methods.push(method);
        }
    }
    methods
}

/// One method.
pub(super) fn method(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let text = reader.text(at, "a method", "write a method as it is sent: `GET`")?;
    let upper = text.to_ascii_uppercase();
    let help = if text == "*" {
        "remove the key: then every method matches".to_owned()
    } else if upper == "CONNECT" {
        "CONNECT is not served".to_owned()
    } else if !is_token(text) || text.len() > 64 {
        "write a method as it is sent: `GET`".to_owned()
    } else if upper != text {
        format!("methods are case-sensitive: write `{upper}`")
    } else {
        return Some(text.to_owned());
    };
    reader.error(
        at,
        format!("{} is not a method that can be matched", quote(text)),
        help,
    );
    None
}

/// `redirect` of a listener or a route.
pub(super) fn redirect(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<RedirectConfig> {
    if at.is_or_word() {
        return Some(RedirectConfig::Https {
            port: 443,
            status: 308,
        });
    }
    if !at.is_map() {
        let found = at
            .scalar()
            .map_or_else(|| "something else".to_owned(), quote);
        reader.error(
            at,
            format!("expected `https` or keys, found {found}"),
            "write `https`, or `{to: https://example.com/new, status: 301}`",
        );
        return None;
    }
    let keys = reader.section(at)?;
    let mut status = 308;
    if let Some(at) = keys.get("status") {
        let given = reader.word(at).and_then(|word| word.parse().ok());
        assign(&mut status, given);
    }
    let port = keys.get("port").and_then(|at| u16::read(reader, at));
    let Some(to) = keys.get("to") else {
        if keys.is_meant("to") {
            return None;
        }
        reader.error_at_key(
            at,
            "`to` is missing",
            "write `to: https` or `to: https://example.com/new`",
        );
        return None;
    };
    let location = clean_text(reader, to, "the target of a redirect")?;
    if foreign::refuse(reader, to, location, foreign::TextUse::Redirect) {
        return None;
    }
    if location == "https" {
        return Some(RedirectConfig::Https {
            port: port.unwrap_or(443),
            status,
        });
    }
    if let Some(at) = keys.get("port") {
        reader.error_at_key(
            at,
            "`port` can only be used with `to: https`",
            "put the port into `to`",
        );
    }
    redirect_target(reader, to, location).map(|location| RedirectConfig::To { location, status })
}

/// A whole URL or a path, as it is sent in `Location`.
fn redirect_target(reader: &mut TreeReader<'_>, at: NodeRef<'_>, text: &str) -> Option<String> {
    let absolute = ["http://", "https://", "/"]
        .iter()
        .any(|start| text.starts_with(start));
    if !absolute || text.contains(char::is_whitespace) || !text.is_ascii() {
        let host = text.split(['/', ':']).next().unwrap_or_default();
        let is_url = host.contains('.')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._/:".contains(&byte));
        let help = if is_url && !text.contains("://") && !text.starts_with('.') {
            format!("write {}", quote(&format!("https://{text}")))
        } else {
            "write `https`, a whole URL or a path that begins with `/`, with spaces and non-ASCII \
             characters encoded as %XX"
                .to_owned()
        };
        reader.error(
            at,
            format!("{} is not a valid redirect target", quote(text)),
            help,
        );
        return None;
    }
    Some(text.to_owned())
}

/// `retries` of a pool or a route, over `base`; `Some(None)` is `none`.
pub(super) fn retries(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    base: RetriesConfig,
) -> Option<OrNone<RetriesConfig>> {
    if at.is_or_word() {
        return Some(None);
    }
    let keys = reader.section(at)?;
    let mut retries = base;
    keys.read(reader, "attempts", &mut retries.attempts);
    keys.read(reader, "budget", &mut retries.budget);
    if let Some(at) = keys.get("conditions") {
        retries.conditions = conditions(reader, at);
    }
    if let Some(at) = keys.get("methods") {
        retries.methods = methods(reader, at);
    }
    Some(Some(retries))
}

fn conditions(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> RetryConditions {
    let mut given: Vec<RetryCondition> = Vec::new();
    let hint = "write a list of `connect`, `stale`, `terminated`, `timeout` and `invalid`";
    for entry in reader.one_or_more(&at, "a list of conditions", hint) {
        given.extend(reader.one_of::<RetryCondition>(entry));
    }
    let has = |condition| given.contains(&condition);
    RetryConditions {
        connect: has(RetryCondition::Connect),
        stale: has(RetryCondition::Stale),
        terminated: has(RetryCondition::Terminated),
        timeout: has(RetryCondition::Timeout),
        invalid: has(RetryCondition::Invalid),
    }
}

/// `rate_limit` of a listener or a route; `Some(None)` is `none`.
pub(super) fn rate_limit(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
) -> Option<OrNone<RateLimitConfig>> {
    const RATE_LIMIT_EXAMPLE: &str = "write `{per_client: 100/s, burst: 200}`";
    if at.is_or_word() {
        return Some(None);
    }
    if let Some(text) = at.scalar() {
        let help = match crate::base::units::rate(text) {
            Ok(_) => format!("write `{{per_client: {text}}}`"),
            Err(_) if matches!(text, "off" | "0") => "write `none` to switch it off".to_owned(),
            Err(_) => RATE_LIMIT_EXAMPLE.to_owned(),
        };
        let message = format!("expected keys or `none`, found {}", quote(text));
        reader.error(at, message, help);
        return None;
    }
    let keys = reader.section(at)?;
    let Some(rate) = keys.get("per_client") else {
        if keys.is_meant("per_client") {
            return None;
        }
        reader.error_at_key(at, "`per_client` is missing", RATE_LIMIT_EXAMPLE);
        return None;
    };
    let per_client = reader.rate(rate);
    let burst = keys.get("burst").map(|at| u32::read(reader, at));
    let per_client = per_client?;
    Some(Some(RateLimitConfig {
        per_client,
        burst: burst.unwrap_or_else(|| Some(per_client.per_second()))?,
    }))
}

/// `timeouts` of a pool or a route: what is given.
pub(super) fn timeouts(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
) -> crate::config::model::TimeoutOverrides {
    let mut given = crate::config::model::TimeoutOverrides::default();
    let Some(keys) = reader.section(at) else {
        return given;
    };
    if let Some(at) = keys.get("connect") {
        if at.is_word("none") {
            reader.error(
                at,
                "expected a duration of 1ms to 1h, found `none`",
                "connecting always has a limit: write `1h` for the longest",
            );
        } else {
            given.connect = reader.duration(at);
        }
    }
    for (key, slot) in [
        ("response", &mut given.response),
        ("idle", &mut given.idle),
        ("total", &mut given.total),
    ] {
        *slot = keys.get(key).and_then(|at| reader.duration_or_none(at));
    }
    given
}

/// Warns when the whole exchange has less time than one connect.
pub(super) fn warn_short_total(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    total: Option<Duration>,
    connect: Duration,
) {
    if total.is_some_and(|total| total < connect) {
        reader.warn_at_key(
            at,
            format!(
                "`total` is shorter than `connect` ({})",
                crate::base::units::show_duration(connect)
            ),
            "make `total` longer: it covers connecting and all attempts",
        );
    }
}

/// `allow`: an empty list would allow all, which is the opposite of what it says.
pub(super) fn allowed(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<IpNet> {
    if matches!(&at.node.kind, NodeKind::List(entries) if entries.is_empty()) {
        reader.error(
            at,
            "`allow` is empty: no client could connect",
            "name networks, or remove the key to allow all clients",
        );
    }
    reader.networks(at)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{NoFiles, parse};

    #[test]
    fn a_bare_port_for_metrics_is_one_of_this_machine_alone() {
        let bound = |bind: &str| {
            let text = format!(
                "metrics: {{bind: {bind}}}\nlisteners: {{web: {{bind: 8080, pool: app}}}}\npools: {{app: {{backends: [127.0.0.1:1]}}}}\n"
            );
            let loaded = parse(Path::new("a.yaml"), &text, &NoFiles).unwrap();
            let listener = loaded.config.listeners[0].binds[0].to_string();
            (loaded.config.metrics.bind.unwrap().to_string(), listener)
        };
        let everywhere = "[::]:8080".to_owned();
        assert_eq!(bound("9900"), ("127.0.0.1:9900".to_owned(), everywhere));
        assert_eq!(bound("\":9900\"").0, "[::]:9900");
        assert_eq!(bound("0.0.0.0:9900").0, "0.0.0.0:9900");
    }
}
