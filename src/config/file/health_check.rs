//! Reads `pools.NAME.health_check`: what is asked of a backend, how often, and what counts.

use super::{
    KeyValue as _, NodeRef, Section, TreeReader, assign,
    common::{clean_text, method},
    quote,
};
use crate::{
    base::{address::BackendAddress, units},
    config::model::{BackendConfig, BackendProtocol, CheckKind, CheckType, HealthCheckConfig},
};

/// Reads `pools.NAME.health_check` of a pool whose backends speak `protocol`.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: BackendProtocol,
    backends: &[BackendConfig],
) -> Option<HealthCheckConfig> {
    if at.is_or_word() {
        return None;
    }
    let mut check = HealthCheckConfig::default();
    let Some(keys) = reader.section(at) else {
        return Some(check);
    };
    check.kind = kind(reader, &keys, protocol);
    if let Some(at) = keys.get("port") {
        check.port = u16::read(reader, at);
        check_port(reader, at, backends);
    }
    keys.read(reader, "interval", &mut check.interval);
    keys.read(reader, "timeout", &mut check.timeout);
    keys.read(reader, "rise", &mut check.rise);
    keys.read(reader, "fall", &mut check.fall);
    keys.read(reader, "on_down", &mut check.on_down);
    if check.timeout > check.interval
        && let Some(at) = keys.get("timeout").or_else(|| keys.get("interval"))
    {
        reader.warn_at_key(
            at,
            format!(
                "`timeout` ({}) is longer than `interval` ({})",
                units::show_duration(check.timeout),
                units::show_duration(check.interval)
            ),
            "make the timeout shorter: checks would overlap",
        );
    }
    Some(check)
}

/// A unix socket has no port.
fn check_port(reader: &mut TreeReader<'_>, at: NodeRef<'_>, backends: &[BackendConfig]) {
    let is_unix = |backend: &&BackendConfig| matches!(backend.address, BackendAddress::Unix(_));
    if let Some(backend) = backends.iter().find(is_unix) {
        reader.error_at_key(
            at,
            format!(
                "`port` cannot be used with backend {}, which is a unix socket",
                quote(&backend.name)
            ),
            "remove `port`, or put backends on unix sockets into a pool of their own",
        );
    }
}

/// Keys that belong to some types of check only.
const OWN_KEYS: [(&str, &[CheckType], &str); 6] = [
    (
        "path",
        &[CheckType::Http],
        "write `type: http`, or remove the key",
    ),
    (
        "method",
        &[CheckType::Http],
        "write `type: http`, or remove the key",
    ),
    (
        "host",
        &[CheckType::Http, CheckType::Grpc],
        "write `type: http`, or remove the key",
    ),
    (
        "expect",
        &[CheckType::Http],
        "write `type: http`, or remove the key",
    ),
    (
        "body",
        &[CheckType::Http],
        "write `type: http`, or remove the key",
    ),
    (
        "service",
        &[CheckType::Grpc],
        "write `type: grpc`, or remove the key",
    ),
];

fn kind(reader: &mut TreeReader<'_>, keys: &Section<'_>, protocol: BackendProtocol) -> CheckKind {
    let mut kind = match keys.get("path") {
        Some(_) => CheckType::Http,
        None => CheckType::Tcp,
    };
    if let Some(at) = keys.get("type") {
        assign(&mut kind, reader.one_of(at));
        if kind == CheckType::Grpc && !protocol.is_h2() {
            reader.error(
                at,
                "a grpc check needs HTTP/2, but this pool uses HTTP/1.1",
                "add `protocol: h2c` to the pool, or `protocol: h2` with `tls`",
            );
        }
    }
    for (key, types, hint) in OWN_KEYS {
        if let Some(at) = keys.get(key)
            && !types.contains(&kind)
        {
            let owner = if types.contains(&CheckType::Http) {
                "an http"
            } else {
                "a grpc"
            };
            let message = format!(
                "`{key}` belongs to {owner} check, this one is {}",
                kind.name()
            );
            reader.error_at_key(at, message, hint);
        }
    }
    match kind {
        CheckType::Tcp => CheckKind::Tcp,
        CheckType::Http => http(reader, keys),
        CheckType::Grpc => CheckKind::Grpc {
            service: keys
                .get("service")
                .and_then(|at| service(reader, at))
                .unwrap_or_default(),
            host: keys.get("host").and_then(|at| check_host(reader, at)),
        },
    }
}

fn http(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> CheckKind {
    let mut path = "/".to_owned();
    if let Some(at) = keys.get("path") {
        assign(&mut path, target(reader, at));
    }
    let mut verb = "GET".to_owned();
    if let Some(at) = keys.get("method") {
        assign(&mut verb, method(reader, at));
    }
    let mut expect = vec![(200, 399)];
    if let Some(at) = keys.get("expect") {
        expect = statuses(reader, at);
    }
    let host = keys.get("host").and_then(|at| check_host(reader, at));
    let body = keys
        .get("body")
        .and_then(|at| check_body(reader, at, &verb));
    CheckKind::Http {
        path,
        method: verb,
        host,
        expect,
        body,
    }
}

/// The name of a service as its definition writes it: `package.Service`.
fn service(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let hint = "write its full name, such as `shop.v1.Orders`";
    let name = reader.text(at, "the name of a gRPC service", hint)?;
    let fine = (1..=256).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if !fine {
        reader.error(
            at,
            format!("{} is not the name of a gRPC service", quote(name)),
            hint,
        );
    }
    fine.then(|| name.to_owned())
}

fn target(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let path = clean_text(reader, at, "the path of a check")?;
    let fine = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if !fine {
        let help = if path.contains("://") {
            "remove scheme and host; `host` sets the Host header"
        } else {
            "write a path that begins with `/`, such as `/healthz`"
        };
        reader.error(at, format!("{} is not a valid path", quote(path)), help);
    }
    fine.then(|| path.to_owned())
}

fn check_host(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let host = clean_text(reader, at, "the host of a check")?;
    let fine = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if !fine {
        reader.error(
            at,
            format!("{} is not a host name", quote(host)),
            "write a name such as `app.example.com`, with a port where it is needed",
        );
    }
    fine.then(|| host.to_owned())
}

fn check_body(reader: &mut TreeReader<'_>, at: NodeRef<'_>, verb: &str) -> Option<String> {
    let hint = "write a text that occurs in the response";
    let body = reader.text(at, "a text", hint)?;
    if body.is_empty() || body.len() > 4096 {
        reader.error(at, "expected a text of 1 to 4096 bytes", hint);
        return None;
    }
    if verb == "HEAD" {
        reader.error_at_key(
            at,
            "the response to HEAD has no body",
            "remove `body`, or use `method: GET`",
        );
    }
    Some(body.to_owned())
}

/// `200`, `200-399`, `2xx`, or a list of these.
fn statuses(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<(u16, u16)> {
    let hint = "write `200`, `200-399`, `2xx` or a list of these";
    let mut ranges = Vec::new();
    for entry in reader.one_or_more(&at, "a status", hint) {
        let Some(text) = reader.text(entry, "a status", hint) else {
            continue;
        };
        match status_range(text) {
            Some(range) => ranges.push(range),
            None => reader.error(
                entry,
                format!("expected statuses of 100 to 599, found {}", quote(text)),
                hint,
            ),
        }
    }
    ranges
}

fn status_range(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|status| text.len() == 3 && (100..=599).contains(status))
    };
    if let Some(class) = text.strip_suffix("xx") {
        let class = class.parse::<u16>().ok().filter(|n| (1..=5).contains(n))?;
        return Some((class * 100, class * 100 + 99));
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (status(low.trim())?, status(high.trim())?);
    (low <= high).then_some((low, high))
}
