//! Reads `listeners.NAME`.

use super::{
    NameTable, NodeRef, Section, TreeReader, assign,
    common::{allowed, bind, rate_limit, redirect},
    quote, sni, tls,
};
use crate::{
    base::socket_key::SocketKey,
    config::{
        bind_list::BindList,
        model::{
            AcceptProxyConfig, Config, ListenerConfig, ListenerHttpConfig, ListenerLimitsConfig,
            ListenerProtocol, ListenerTimeoutsConfig, SocketConfig,
        },
    },
};

/// Reads one listener.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pools: &mut NameTable<'_>,
    binds: &mut BindList,
) -> ListenerConfig {
    reader.name(at, "listener");
    let mut listener = ListenerConfig::named(at.last_key());
    let Some(keys) = reader.section(at) else {
        return listener;
    };
    keys.read(reader, "protocol", &mut listener.protocol);
    read_binds(reader, &keys, &mut listener, binds);
    listener.pool = keys
        .get("pool")
        .and_then(|at| pools.resolve(reader, at, "pool"));
    if let Some(at) = keys.get("limits") {
        listener.limits = limits(reader, at, listener.protocol);
    }
    if let Some(at) = keys.get("accept_proxy") {
        listener.accept_proxy = accept_proxy(reader, at);
    }
    if let Some(at) = keys.get("allow") {
        listener.allow = allowed(reader, at);
    }
    if let Some(at) = keys.get("deny") {
        listener.deny = reader.networks(at);
    }
    if let Some(at) = keys.get("socket") {
        listener.socket = socket(reader, at);
    }
    if let Some(at) = keys.get("tls") {
        listener.tls = tls::listener(reader, at, listener.protocol);
    }
    if let Some(at) = keys.get("sni") {
        listener.sni = sni::read(reader, at, pools);
        sni::check_place(reader, &keys, at, listener.protocol);
    }
    match listener.protocol {
        ListenerProtocol::Http => http_only(reader, &keys, &mut listener),
        ListenerProtocol::Tcp => tcp_only(reader, &keys, &mut listener),
    }
    listener
}

fn read_binds(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    listener: &mut ListenerConfig,
    binds: &mut BindList,
) {
    let name = quote(&listener.name);
    let Some(at) = keys.get("bind") else {
        if keys.is_meant("bind") {
            return;
        }
        reader.error_at_key(
            keys.at,
            format!("listener {name} has no `bind`"),
            "write `bind: \":8080\"`",
        );
        return;
    };
    let hint = "write `\":8080\"`, `127.0.0.1:8080`, `unix:/path` or a list of these";
    for entry in reader.one_or_more(&at, "an address to listen on", hint) {
        if let Some(address) = bind(reader, entry) {
            let socket = SocketKey {
                transport: listener.protocol.transport(),
                address: address.clone(),
            };
            binds.add(entry, socket, format!("listener {name}"), true);
            listener.binds.push(address);
        }
    }
}

fn http_only(reader: &mut TreeReader<'_>, keys: &Section<'_>, listener: &mut ListenerConfig) {
    if let Some(at) = keys.get("redirect") {
        listener.redirect = redirect(reader, at);
        if let Some(at) = keys.get("pool") {
            reader.error_at_key(
                at,
                "a listener with `redirect` sends nothing to a pool",
                "remove `pool` or `redirect`",
            );
        }
    }
    if let Some(at) = keys.get("http") {
        listener.http = http(reader, at);
    }
    if let Some(at) = keys.get("timeouts") {
        listener.timeouts = timeouts(reader, at, ListenerProtocol::Http);
    }
    if let Some(at) = keys.get("rate_limit") {
        listener.rate_limit = rate_limit(reader, at).flatten();
    }
}

fn tcp_only(reader: &mut TreeReader<'_>, keys: &Section<'_>, listener: &mut ListenerConfig) {
    for key in ["redirect", "http", "rate_limit"] {
        if let Some(at) = keys.get(key) {
            let help = match key {
                "rate_limit" => {
                    "it counts requests; `limits: {connections_per_client: 100}` counts connections"
                }
                _ => "remove it, or write `protocol: http`",
            };
            reader.error_at_key(
                at,
                format!("`{key}` belongs to an http listener, this one is tcp"),
                help,
            );
        }
    }
    if let Some(at) = keys.get("timeouts") {
        listener.timeouts = timeouts(reader, at, ListenerProtocol::Tcp);
    }
    let has_names = keys
        .get("sni")
        .map_or_else(|| keys.is_meant("sni"), |at| !at.is_or_word());
    if !keys.is_meant("pool") && !has_names {
        reader.error_at_key(
            keys.at,
            format!("tcp listener {} has no `pool`", quote(keys.at.last_key())),
            "write `pool: NAME`",
        );
    }
}

fn http(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> ListenerHttpConfig {
    let mut http = ListenerHttpConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "max_headers", &mut http.max_headers);
        keys.read(reader, "max_header_size", &mut http.max_header_size);
        keys.read(reader, "h2c", &mut http.h2c);
        keys.read(reader, "h2_max_streams", &mut http.h2_max_streams);
    }
    http
}

fn timeouts(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: ListenerProtocol,
) -> ListenerTimeoutsConfig {
    let mut timeouts = ListenerTimeoutsConfig::default();
    let Some(keys) = reader.section(at) else {
        return timeouts;
    };
    for (key, slot) in [
        ("header", &mut timeouts.header),
        ("body_idle", &mut timeouts.body_idle),
        ("keepalive", &mut timeouts.keepalive),
        ("tls", &mut timeouts.tls),
    ] {
        let Some(at) = keys.get(key) else { continue };
        if protocol == ListenerProtocol::Tcp && key != "tls" {
            reader.error_at_key(
                at,
                format!("`{key}` belongs to an http listener, this one is tcp"),
                "the idle time of a session is `timeouts: {idle: 1h}` of its pool",
            );
        }
        assign(slot, reader.duration_or_none(at));
    }
    timeouts
}

fn limits(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: ListenerProtocol,
) -> ListenerLimitsConfig {
    let mut limits = ListenerLimitsConfig::default();
    let Some(keys) = reader.section(at) else {
        return limits;
    };
    keys.read(reader, "connections", &mut limits.connections);
    keys.read(
        reader,
        "connections_per_client",
        &mut limits.connections_per_client,
    );
    keys.read(reader, "request_body", &mut limits.request_body);
    if let Some(at) = keys.get("request_body")
        && protocol == ListenerProtocol::Tcp
    {
        reader.error_at_key(
            at,
            "`request_body` belongs to an http listener, this one is tcp",
            "remove it, or write `protocol: http`",
        );
    }
    limits
}

fn accept_proxy(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<AcceptProxyConfig> {
    if at.is_or_word() {
        return None;
    }
    let keys = reader.section(at)?;
    let mut rules = AcceptProxyConfig {
        version: None,
        from: Vec::new(),
    };
    keys.read(reader, "version", &mut rules.version);
    let hint = "write `from: [10.0.0.0/8]`: the addresses of the load balancers in front";
    match keys.get("from") {
        None if keys.is_meant("from") => {}
        None => reader.error_at_key(at, "`accept_proxy` has no `from`", hint),
        Some(at) => {
            rules.from = reader.networks(at);
            if matches!(&at.node.kind, super::NodeKind::List(entries) if entries.is_empty()) {
                reader.error(at, "`from` is empty: no client could connect", hint);
            }
        }
    }
    Some(rules)
}

fn socket(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> SocketConfig {
    let mut socket = SocketConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "backlog", &mut socket.backlog);
        keys.read(reader, "keepalive", &mut socket.keepalive);
        keys.read(reader, "fast_open", &mut socket.fast_open);
    }
    socket
}

/// Warns of http listeners that can only answer 404.
pub(super) fn warn_of_no_work(
    reader: &mut TreeReader<'_>,
    listeners: &Section<'_>,
    config: &Config,
) {
    for (index, at) in listeners.iter().enumerate() {
        let Some(listener) = config.listeners.get(index) else {
            continue;
        };
        let routed = config
            .routes
            .iter()
            .any(|route| route.listeners.is_empty() || route.listeners.contains(&index));
        // A pool or redirect that could not be read has been reported.
        let given = !at.is_map() || at.has_key("pool") || at.has_key("redirect");
        if listener.protocol == ListenerProtocol::Http && !given && !routed {
            reader.warn_at_key(
                at,
                format!(
                    "listener {} answers every request with 404",
                    quote(&listener.name)
                ),
                "add `pool: NAME`, a route or `redirect: https`",
            );
        }
    }
}
