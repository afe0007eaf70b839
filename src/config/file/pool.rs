//! Reads `pools.NAME`: backends, protocol, PROXY header, ejection, retries, timeouts, keepalive,
//! limits. The check is read in `health_check.rs`, the policy in `balancing.rs`, sticky sessions in
//! `sticky.rs`.

use super::{
    NodeRef, Section, TreeReader, assign,
    backends::backends,
    balancing,
    common::{retries, timeouts, warn_short_total},
    discover, ejection, health_check, quote, sticky, tls,
};
use crate::config::model::{
    BackendConfig, BackendProtocol, KeepaliveConfig, PoolConfig, PoolTimeoutsConfig, RetriesConfig,
    TlsOverride,
};

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
        Some(at) => {
            pool.backends = backends(reader, at, pool.protocol, is_checked);
            check_weights(reader, at, &pool.backends);
        }
        None if keys.is_meant("backends") || keys.is_meant("discover") => {}
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
    // What members may be depends on the other keys, and on members what ejection and limits do.
    if let Some(at) = keys.get("discover") {
        pool.discover = discover::read(reader, at, &pool);
    }
    if let Some(at) = keys.get("ejection") {
        pool.ejection = ejection::read(reader, at, &pool);
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
    // Discovered members may have a limit of their own.
    let is_limited = pool.connections_per_backend.is_some()
        || pool.discover.is_some()
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

/// Refuses an empty list, and warns of one that gets no traffic.
fn check_weights(reader: &mut TreeReader<'_>, at: NodeRef<'_>, backends: &[BackendConfig]) {
    if matches!(&at.node.kind, super::NodeKind::List(entries) if entries.is_empty()) {
        let hint = "write `backends: [HOST:PORT, HOST:PORT]`";
        reader.error(at, "`backends` is empty", hint);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        reader.warn_at_key(
            at,
            "every backend has weight 0: the pool gets no traffic",
            "give at least one backend a weight of 1 or more",
        );
    }
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
