//! Reads `pools.NAME`: backends, protocol, PROXY header, ejection, retries, timeouts, keepalive,
//! limits. The check is read in `health_check.rs`, the policy in `balancing.rs`, sticky sessions in
//! `sticky.rs`.

use std::{collections::HashMap, sync::Arc};

use super::{
    KeyValue as _, NodeRef, Section, TreeReader, assign, balancing,
    common::{is_bare_ipv6, retries, timeouts, warn_short_total},
    ejection, health_check, quote, sticky, tls,
};
use crate::{
    base::address::{AddressError, BackendAddress},
    config::model::{
        BackendConfig, BackendProtocol, KeepaliveConfig, PoolConfig, PoolTimeoutsConfig,
        RetriesConfig, TlsOverride,
    },
};

/// Values of `backup`, for messages.
const BACKUP_TIERS: &str = "`true`, `false` or a number of 1 to 9";

/// Reads one pool.
pub(super) fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> PoolConfig {
    reader.name(at, "pool");
    let mut pool = PoolConfig::named(at.last_key());
    let Some(keys) = reader.section(at) else {
        return pool;
    };
    keys.read(reader, "protocol", &mut pool.protocol);
    keys.read(reader, "send_proxy", &mut pool.send_proxy);
    keys.read(reader, "when_all_down", &mut pool.when_all_down);
    let is_checked = keys.get("health_check").is_none_or(|at| !at.is_or_word());
    match keys.get("backends") {
        Some(at) => pool.backends = backends(reader, at, pool.protocol, is_checked),
        None if keys.is_meant("backends") => {}
        None => reader.error_at_key(
            at,
            format!("pool {} has no `backends`", quote(at.last_key())),
            "write `backends: [HOST:PORT]`",
        ),
    }
    balancing::read(reader, &keys, &mut pool);
    if let Some(at) = keys.get("backends") {
        balancing::warn_of_weights(reader, at, &pool);
    }
    check_protocol(reader, at, &keys, pool.protocol);
    if let Some(at) = keys.get("health_check") {
        pool.health_check = health_check::read(reader, at, pool.protocol, &pool.backends);
    }
    if let Some(at) = keys.get("ejection") {
        pool.ejection = ejection::read(reader, at, &pool.backends);
    }
    if let Some(at) = keys.get("retries") {
        let given = retries(reader, at, RetriesConfig::default());
        assign(&mut pool.retries, given);
    }
    if let Some(at) = keys.get("timeouts") {
        pool.timeouts = pool_timeouts(reader, at);
    }
    if let Some(at) = keys.get("keepalive") {
        pool.keepalive = keepalive(reader, at);
    }
    if let Some(at) = keys.get("tls") {
        pool.tls = tls::pool(reader, at, pool.protocol.is_h2());
        check_names(reader, at, &pool);
    }
    if let Some(at) = keys.get("sticky") {
        pool.sticky = sticky::read(reader, at);
    }
    if let Some(at) = keys.get("limits") {
        limits(reader, at, &mut pool);
    }
    pool
}

fn limits(reader: &mut TreeReader<'_>, at: NodeRef<'_>, pool: &mut PoolConfig) {
    let Some(keys) = reader.section(at) else {
        return;
    };
    keys.read(
        reader,
        "connections_per_backend",
        &mut pool.connections_per_backend,
    );
    keys.read(reader, "queue", &mut pool.queue);
    keys.read(reader, "queue_timeout", &mut pool.queue_timeout);
    warn_useless_queue(reader, &keys, pool);
    keys.read(
        reader,
        "streams_per_connection",
        &mut pool.streams_per_connection,
    );
    if let Some(at) = keys.get("streams_per_connection")
        && !pool.protocol.is_h2()
    {
        reader.warn_at_key(
            at,
            "`streams_per_connection` has no effect with `protocol: http1`",
            "remove it, or set `protocol: h2` or `h2c`",
        );
    }
}

/// Warns of keys about the queue that have no effect: nothing waits without a limit.
fn warn_useless_queue(reader: &mut TreeReader<'_>, keys: &Section<'_>, pool: &PoolConfig) {
    let is_limited = pool.connections_per_backend.is_some()
        || keys.is_meant("connections_per_backend")
        || pool
            .backends
            .iter()
            .any(|one| one.max_connections.is_some());
    for key in ["queue", "queue_timeout"] {
        let Some(at) = keys.get(key) else { continue };
        if !is_limited {
            reader.warn_at_key(
                at,
                format!("`{key}` has no effect: no backend of the pool has a limit"),
                "add `connections_per_backend: NUMBER`, or remove it",
            );
        } else if key == "queue_timeout" && pool.queue == 0 {
            reader.warn_at_key(
                at,
                "`queue_timeout` has no effect with `queue: 0`",
                "remove it, or allow a queue: `queue: 1000`",
            );
        }
    }
}

/// `h2` is agreed on within TLS, and `h2c` is the same without.
fn check_protocol(
    reader: &mut TreeReader<'_>,
    pool: NodeRef<'_>,
    keys: &Section<'_>,
    protocol: BackendProtocol,
) {
    let at = keys.get("protocol").unwrap_or(pool);
    match (protocol, keys.get("tls")) {
        (BackendProtocol::H2, None) => reader.error(
            at,
            "`protocol: h2` needs `tls`",
            "add `tls: {}`, or write `protocol: h2c` for HTTP/2 without TLS",
        ),
        (BackendProtocol::H2c, Some(_)) => reader.error(
            at,
            "`protocol: h2c` cannot be used with `tls`",
            "write `protocol: h2` for HTTP/2 over TLS, or remove `tls`",
        ),
        _ => {}
    }
}

/// Checks that there is a name for the certificate of each backend that has the pool's `tls`.
fn check_names(reader: &mut TreeReader<'_>, at: NodeRef<'_>, pool: &PoolConfig) {
    let Some(tls) = &pool.tls else { return };
    for backend in &pool.backends {
        if backend.tls == TlsOverride::Inherited {
            tls::check_name(reader, at, tls, backend);
        }
    }
}

fn backends(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: BackendProtocol,
    is_checked: bool,
) -> Vec<BackendConfig> {
    let hint = "write `backends: [HOST:PORT, HOST:PORT]`";
    let entries = reader.list(&at, "a list of backends", hint);
    let mut backends = Vec::with_capacity(entries.len());
    let mut addresses: HashMap<BackendAddress, usize> = HashMap::with_capacity(entries.len());
    let mut names: HashMap<Arc<str>, usize> = HashMap::with_capacity(entries.len());
    for entry in &entries {
        let Some(backend) = backend(reader, *entry, protocol, is_checked) else {
            continue;
        };
        let line = entry.node.place.line;
        if let Some(first) = addresses.insert(backend.address.clone(), line) {
            reader.error(
                *entry,
                format!(
                    "{} is in this pool twice",
                    quote(&backend.address.to_string())
                ),
                format!(
                    "remove one (the first is in line {first}); use `weight` for a larger share"
                ),
            );
        } else if let Some(first) = names.insert(Arc::clone(&backend.name), line) {
            reader.error(
                *entry,
                format!(
                    "two backends of this pool are called {}",
                    quote(&backend.name)
                ),
                format!("choose another name; the first is in line {first}"),
            );
        }
        backends.push(backend);
    }
    if entries.is_empty() && matches!(&at.node.kind, super::NodeKind::List(_)) {
        reader.error(at, "`backends` is empty", hint);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        reader.warn_at_key(
            at,
            "every backend has weight 0: the pool gets no traffic",
            "give at least one backend a weight of 1 or more",
        );
    }
    backends
}

fn backend(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: BackendProtocol,
    is_checked: bool,
) -> Option<BackendConfig> {
    if !at.is_map() {
        let address = address(reader, at)?;
        return Some(BackendConfig::at(address));
    }
    let keys = reader.section(at)?;
    let (mut weight, mut backup, mut max_connections) = (1, 0, None);
    keys.read(reader, "weight", &mut weight);
    if let Some(at) = keys.get("backup") {
        assign(&mut backup, tier(reader, at));
    }
    keys.read(reader, "max_connections", &mut max_connections);
    let name = keys.get("name").and_then(|at| backend_name(reader, at));
    let Some(at_address) = keys.get("address") else {
        if keys.is_meant("address") {
            return None;
        }
        reader.error_at_key(at, "`address` is missing", "write `{address: HOST:PORT}`");
        return None;
    };
    let address = address(reader, at_address)?;
    let mut backend = BackendConfig {
        name: name.unwrap_or_else(|| address.to_string()).into(),
        address,
        weight,
        backup,
        max_connections,
        check_port: None,
        tls: TlsOverride::default(),
    };
    if let Some(at) = keys.get("check_port") {
        backend.check_port = u16::read(reader, at);
        check_own_port(reader, at, &backend, is_checked);
    }
    if let Some(at) = keys.get("tls") {
        backend.tls = tls::overriding(reader, at, protocol.is_h2());
        check_own_tls(reader, at, &backend, protocol);
    }
    Some(backend)
}

/// A unix socket has no port, and without checks there is nothing to ask it for.
fn check_own_port(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    backend: &BackendConfig,
    is_checked: bool,
) {
    if matches!(backend.address, BackendAddress::Unix(_)) {
        reader.error_at_key(
            at,
            "`check_port` cannot be used with a unix socket",
            "remove it: the check uses the socket",
        );
    } else if !is_checked {
        reader.warn_at_key(
            at,
            "`check_port` has no effect with `health_check: none`",
            "remove it, or check the pool",
        );
    }
}

/// Rules for the `tls` of one backend.
fn check_own_tls(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    backend: &BackendConfig,
    protocol: BackendProtocol,
) {
    match (&backend.tls, protocol) {
        (TlsOverride::Plain, BackendProtocol::H2) => reader.error_at_key(
            at,
            "`tls: none` cannot be used with `protocol: h2`",
            "put this backend into a pool with `protocol: h2c`",
        ),
        (TlsOverride::Own(_), BackendProtocol::H2c) => reader.error_at_key(
            at,
            "`tls` cannot be used with `protocol: h2c`",
            "put this backend into a pool with `protocol: h2`",
        ),
        (TlsOverride::Own(tls), _) => tls::check_name(reader, at, tls, backend),
        _ => {}
    }
}

/// `backup`: a truth value, or the number of a tier.
fn tier(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<u8> {
    let super::NodeKind::Scalar { text, quoted } = &at.node.kind else {
        reader.wrong_kind(at, BACKUP_TIERS, "write `true` for a backup");
        return None;
    };
    match text.as_str() {
        _ if *quoted => {}
        "true" | "True" | "TRUE" => return Some(1),
        "false" | "False" | "FALSE" => return Some(0),
        digits if digits.len() == 1 => {
            if let Ok(tier @ 1..=9) = digits.parse() {
                return Some(tier);
            }
        }
        _ => {}
    }
    let hint = match text.as_str() {
        "0" | "none" | "off" | "no" | "n" => "remove the key: the backend is then no backup",
        "on" | "yes" | "y" => "write `true`",
        _ if *quoted => "remove the quotes",
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => "the highest tier is 9",
        _ => "write `true`, or a tier of 1 to 9: the lowest tier with a healthy backend is used",
    };
    reader.wrong_plain(at, BACKUP_TIERS, hint);
    None
}

fn backend_name(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let name = reader.text(at, "a name", "use letters, digits, `_`, `-` and `.`")?;
    let fine = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.:[]/".contains(&b));
    if !fine {
        reader.error(
            at,
            format!("{} cannot be the name of a backend", quote(name)),
            "use 1 to 128 letters, digits, `_`, `-`, `.`, `:` and `/`",
        );
    }
    fine.then(|| name.to_owned())
}

fn address(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<BackendAddress> {
    let text = reader.text(
        at,
        "the address of a backend",
        "write `HOST:PORT` or `unix:/path`",
    )?;
    let error = match text.parse() {
        Ok(address) => return Some(address),
        Err(error) => error,
    };
    if text.contains("://") {
        let message = format!("{} is a URL; a backend is `HOST:PORT`", quote(text));
        reader.wrong_value(at, message, url_hint(text));
        return None;
    }
    if is_bare_ipv6(text) {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let cause = AddressError::NoPort;
        let message = format!("{} is not the address of a backend: {cause}", quote(text));
        reader.wrong_value(at, message, format!("write `\"[{bare}]:8080\"`"));
        return None;
    }
    let help = match error {
        AddressError::NoPort => format!("write {}", quote(&format!("{text}:8080"))),
        AddressError::BadPort if text.ends_with(":0") => {
            "write the port the backend listens on".to_owned()
        }
        AddressError::BadPort => "write `HOST:PORT` with a port of 1 to 65535".to_owned(),
        AddressError::BadHost => "write an IP address (IPv6 in brackets) or a host name".to_owned(),
        AddressError::BadPath => "write `unix:/run/app.sock`".to_owned(),
    };
    reader.wrong_value(
        at,
        format!("{} is not the address of a backend: {error}", quote(text)),
        help,
    );
    None
}

/// The hint for a URL as the address of a backend.
fn url_hint(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let host = rest.split('/').next().unwrap_or(rest);
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let is_tls = matches!(scheme, "https" | "grpcs" | "tls" | "wss");
    let address = match (has_port, is_tls) {
        (true, _) => host.to_owned(),
        (false, true) => format!("{host}:443"),
        (false, false) => format!("{host}:80"),
    };
    // YAML reads a bracket as the beginning of a list.
    let address = if address.starts_with('[') {
        format!("\"{address}\"")
    } else {
        address
    };
    let mut hint = format!("write {}", quote(&address));
    if is_tls {
        hint.push_str(", and `tls: {}` in the pool");
    }
    let path = rest.split_once('/').map(|(_, path)| path);
    if path.is_some_and(|path| !path.is_empty()) {
        hint.push_str("; the path goes into `rewrite` of a route");
    }
    hint
}

fn pool_timeouts(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> PoolTimeoutsConfig {
    let mut all = PoolTimeoutsConfig::default();
    let given = timeouts(reader, at);
    assign(&mut all.connect, given.connect);
    assign(&mut all.response, given.response);
    assign(&mut all.idle, given.idle);
    assign(&mut all.tcp_idle, given.idle);
    assign(&mut all.total, given.total);
    warn_short_total(reader, at, all.total, all.connect);
    all
}

fn keepalive(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> KeepaliveConfig {
    let mut keepalive = KeepaliveConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "idle_per_backend", &mut keepalive.idle_per_backend);
        keys.read(reader, "idle_timeout", &mut keepalive.idle_timeout);
        keys.read(reader, "max_age", &mut keepalive.max_age);
        keys.read(reader, "max_requests", &mut keepalive.max_requests);
    }
    keepalive
}
