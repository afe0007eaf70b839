//! Reads `pools.NAME.health_check`: what is asked of a backend, how often, and what counts.

use super::{
    KeyValue as _, NodeRef, Section, TreeReader, assign, check_texts,
    common::{clean_text, method},
    quote, tls,
};
use crate::{
    base::{address::BackendAddress, units},
    config::{
        defaults::CHECK_USER,
        model::{
            BackendConfig, BackendProtocol, CheckKind, CheckType, HealthCheckConfig,
            HttpCheckConfig, PostgresCheckConfig, PostgresTarget, RedisCheckConfig, TlsOverride,
        },
    },
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
        refuse_unix(reader, at, backends);
    }
    if let Some(at) = keys.get("tls") {
        check.tls = check_tls(reader, at, &check.kind, protocol, backends);
    }
    keys.read(reader, "interval", &mut check.interval);
    for (key, slot) in [
        ("interval_down", &mut check.interval_down),
        ("interval_starting", &mut check.interval_starting),
    ] {
        if let Some(at) = keys.get(key) {
            *slot = reader.duration(at);
        }
    }
    keys.read(reader, "timeout", &mut check.timeout);
    keys.read(reader, "rise", &mut check.rise);
    keys.read(reader, "fall", &mut check.fall);
    keys.read(reader, "on_down", &mut check.on_down);
    warn_long_timeout(reader, &keys, &check);
    Some(check)
}

/// Warns of a timeout that is longer than an interval.
fn warn_long_timeout(reader: &mut TreeReader<'_>, keys: &Section<'_>, check: &HealthCheckConfig) {
    let intervals = [
        ("interval", Some(check.interval)),
        ("interval_down", check.interval_down),
        ("interval_starting", check.interval_starting),
    ];
    let shorter = intervals.into_iter().find_map(|(key, interval)| {
        let interval = interval.filter(|interval| check.timeout > *interval)?;
        Some((key, interval))
    });
    if let Some((key, interval)) = shorter
        && let Some(at) = keys.get("timeout").or_else(|| keys.get(key))
    {
        reader.warn_at_key(
            at,
            format!(
                "`timeout` ({}) is longer than `{key}` ({})",
                units::show_duration(check.timeout),
                units::show_duration(interval)
            ),
            "make the timeout shorter: checks would overlap",
        );
    }
}

/// A unix socket has no port.
fn refuse_unix(reader: &mut TreeReader<'_>, at: NodeRef<'_>, backends: &[BackendConfig]) {
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

/// `tls` of the checks alone. HTTP/2 is offered where the check speaks it.
fn check_tls(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    kind: &CheckKind,
    protocol: BackendProtocol,
    backends: &[BackendConfig],
) -> TlsOverride {
    let is_http = matches!(kind, CheckKind::Http(_) | CheckKind::Grpc { .. });
    let found = tls::overriding(reader, at, is_http && protocol.is_h2());
    if let TlsOverride::Own(tls) = &found {
        for backend in backends {
            tls::check_name(reader, at, tls, backend);
        }
    }
    found
}

/// Keys that belong to some types of check only: the key, its types, their description, and the
/// hint for the others.
const OWN_KEYS: [(&str, &[CheckType], &str, &str); 14] = [
    ("path", &[CheckType::Http], "an http", HTTP_HINT),
    ("method", &[CheckType::Http], "an http", HTTP_HINT),
    (
        "host",
        &[CheckType::Http, CheckType::Grpc, CheckType::Smtp],
        "an http",
        HTTP_HINT,
    ),
    ("headers", &[CheckType::Http], "an http", HTTP_HINT),
    ("expect", &[CheckType::Http], "an http", HTTP_HINT),
    ("expect_headers", &[CheckType::Http], "an http", HTTP_HINT),
    ("body", &[CheckType::Http], "an http", HTTP_HINT),
    (
        "service",
        &[CheckType::Grpc],
        "a grpc",
        "write `type: grpc`, or remove the key",
    ),
    (
        "steps",
        &[CheckType::Tcp],
        "a tcp",
        "write `type: tcp`, or remove the key",
    ),
    (
        "user",
        &[CheckType::Redis, CheckType::Mysql, CheckType::Postgres],
        "a redis, mysql or postgres",
        "set `type`, or remove the key",
    ),
    (
        "password_file",
        &[CheckType::Redis, CheckType::Postgres],
        "a redis or postgres",
        "set `type`, or remove the key: a mysql check does not log in",
    ),
    (
        "role",
        &[CheckType::Redis],
        "a redis",
        "write `type: redis`, or remove the key",
    ),
    (
        "database",
        &[CheckType::Postgres],
        "a postgres",
        POSTGRES_HINT,
    ),
    (
        "target",
        &[CheckType::Postgres],
        "a postgres",
        POSTGRES_HINT,
    ),
];

const HTTP_HINT: &str = "write `type: http`, or remove the key";
const POSTGRES_HINT: &str = "write `type: postgres`, or remove the key";

fn kind(reader: &mut TreeReader<'_>, keys: &Section<'_>, protocol: BackendProtocol) -> CheckKind {
    let mut kind = match keys.get("path") {
        Some(_) => CheckType::Http,
        None => CheckType::Tcp,
    };
    if let Some(at) = keys.get("type") {
        assign(&mut kind, reader.one_of(at));
        check_protocol(reader, at, kind, protocol);
    }
    for (key, types, owner, hint) in OWN_KEYS {
        if let Some(at) = keys.get(key)
            && !types.contains(&kind)
        {
            let message = format!(
                "`{key}` belongs to {owner} check, this one is {}",
                kind.name()
            );
            reader.error_at_key(at, message, hint);
        }
    }
    let mut host = || keys.get("host").and_then(|at| check_host(reader, at));
    match kind {
        CheckType::Grpc => CheckKind::Grpc {
            host: host(),
            service: keys
                .get("service")
                .and_then(|at| service(reader, at))
                .unwrap_or_default(),
        },
        CheckType::Smtp => CheckKind::Smtp { host: host() },
        CheckType::Tcp => match keys.get("steps") {
            Some(at) => CheckKind::Steps(check_texts::steps(reader, at)),
            None => CheckKind::Tcp,
        },
        CheckType::Http => CheckKind::Http(Box::new(http(reader, keys))),
        CheckType::Redis => CheckKind::Redis(redis(reader, keys)),
        CheckType::Mysql => CheckKind::Mysql {
            user: user(reader, keys).unwrap_or_else(|| CHECK_USER.to_owned()),
        },
        CheckType::Postgres => CheckKind::Postgres(postgres(reader, keys)),
    }
}

/// Reports a type of check that cannot be used with the `protocol` of the pool.
fn check_protocol(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    kind: CheckType,
    protocol: BackendProtocol,
) {
    match kind {
        CheckType::Tcp | CheckType::Http => {}
        CheckType::Grpc if protocol.is_h2() => {}
        CheckType::Grpc => reader.error(
            at,
            "a grpc check needs HTTP/2, but this pool uses HTTP/1.1",
            "add `protocol: h2c` to the pool, or `protocol: h2` with `tls`",
        ),
        CheckType::Redis | CheckType::Mysql | CheckType::Postgres | CheckType::Smtp => {
            if protocol.is_h2() {
                let name = kind.name();
                reader.error(
                    at,
                    format!("a {name} check is for servers that do not speak HTTP/2"),
                    "remove `protocol` from the pool, or use an http check",
                );
            }
        }
    }
}

fn http(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> HttpCheckConfig {
    let mut check = HttpCheckConfig::default();
    if let Some(at) = keys.get("path") {
        assign(&mut check.path, target(reader, at));
    }
    if let Some(at) = keys.get("method") {
        assign(&mut check.method, method(reader, at));
    }
    if let Some(at) = keys.get("expect") {
        check.expect = statuses(reader, at);
    }
    check.host = keys.get("host").and_then(|at| check_host(reader, at));
    if let Some(at) = keys.get("headers") {
        check.headers = check_texts::headers(reader, at);
    }
    if let Some(at) = keys.get("expect_headers") {
        check.expect_headers = check_texts::expected_headers(reader, at);
    }
    if let Some(at) = keys.get("body") {
        check.body = check_texts::body(reader, at, &check.method);
    }
    check
}

fn redis(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> RedisCheckConfig {
    let password = keys.get("password_file");
    if let (Some(at), None) = (keys.get("user"), password) {
        reader.error_at_key(
            at,
            "`user` needs `password_file`",
            "write `password_file: PATH`, or remove `user`",
        );
    }
    RedisCheckConfig {
        user: user(reader, keys),
        password: password.and_then(|at| check_texts::secret_file(reader, at)),
        role: keys.get("role").and_then(|at| reader.one_of(at)),
    }
}

fn postgres(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> PostgresCheckConfig {
    let mut check = PostgresCheckConfig::default();
    assign(&mut check.user, user(reader, keys));
    keys.read(reader, "target", &mut check.target);
    let password = keys.get("password_file");
    let target = keys
        .get("target")
        .filter(|_| check.target != PostgresTarget::Any);
    if let Some(at) = password.or(target)
        && keys.get("user").is_none()
    {
        reader.error_at_key(
            at,
            format!("`{}` needs `user`: the check logs in", at.last_key()),
            "write `user: NAME`, and `password_file: PATH` where the server wants a password",
        );
    }
    if let Some(at) = keys.get("database") {
        check.database = name_of(reader, at, "the name of a database");
        if password.is_none() && target.is_none() {
            reader.warn_at_key(
                at,
                "`database` has no effect: the check does not log in",
                "remove it, or add `password_file` or `target`",
            );
        }
    }
    check.password = password.and_then(|at| check_texts::secret_file(reader, at));
    check
}

fn user(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> Option<String> {
    let at = keys.get("user")?;
    name_of(reader, at, "the name of a user")
}

/// A name of 1 to 64 bytes.
fn name_of(reader: &mut TreeReader<'_>, at: NodeRef<'_>, what: &str) -> Option<String> {
    let name = clean_text(reader, at, what)?;
    let fine = (1..=64).contains(&name.len());
    if !fine {
        let message = format!("{} is not {what}", quote(name));
        reader.error(at, message, "write a name of 1 to 64 bytes");
    }
    fine.then(|| name.to_owned())
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

/// Reads `200`, `200-399` or `2xx`.
pub(super) fn status_range(text: &str) -> Option<(u16, u16)> {
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
