//! Every key of the file, section by section: the one list that the readers, the hints and the docs' test share.
//!
//! `NAME` stands for a name the user chooses, `[]` for an entry of a list.

/// A section's path and its keys.
pub type Section = (&'static str, &'static [&'static str]);

const RETRIES: &[&str] = &["attempts", "budget", "conditions", "methods"];
const TIMEOUTS: &[&str] = &["connect", "response", "idle", "total"];
const EDITS: &[&str] = &["set", "add", "remove"];
const REDIRECT: &[&str] = &["to", "port", "status"];
const RATE_LIMIT: &[&str] = &["per_client", "burst"];

/// All sections. The first, with the empty path, is the file itself.
pub const SECTIONS: &[Section] = &[
    (
        "",
        &[
            "version",
            "workers",
            "max_connections",
            "drain",
            "admin",
            "metrics",
            "log",
            "access_log",
            "trusted_proxies",
            "forwarded",
            "errors",
            "listeners",
            "routes",
            "pools",
        ],
    ),
    ("drain", &["delay", "timeout"]),
    ("admin", &["bind", "token_file"]),
    ("metrics", &["bind", "per_backend"]),
    ("log", &["level", "format"]),
    ("access_log", &["output", "format", "when", "headers"]),
    ("access_log.when", &["min_status", "slower_than", "sample"]),
    ("trusted_proxies", &["from", "client_header"]),
    (
        "forwarded",
        &["x_forwarded", "real_ip", "rfc7239", "via", "request_id"],
    ),
    ("errors", &["status", "format", "pages", "override"]),
    ("listeners", &["NAME"]),
    (
        "listeners.NAME",
        &[
            "bind",
            "protocol",
            "pool",
            "redirect",
            "http",
            "timeouts",
            "limits",
            "rate_limit",
            "accept_proxy",
            "allow",
            "deny",
            "socket",
            "tls",
            "sni",
        ],
    ),
    ("listeners.NAME.redirect", REDIRECT),
    (
        "listeners.NAME.http",
        &["max_headers", "max_header_size", "h2c", "h2_max_streams"],
    ),
    (
        "listeners.NAME.timeouts",
        &["header", "body_idle", "keepalive", "tls"],
    ),
    (
        "listeners.NAME.limits",
        &["connections", "connections_per_client", "request_body"],
    ),
    ("listeners.NAME.rate_limit", RATE_LIMIT),
    ("listeners.NAME.accept_proxy", &["version", "from"]),
    (
        "listeners.NAME.socket",
        &["backlog", "keepalive", "fast_open"],
    ),
    (
        "listeners.NAME.tls",
        &[
            "certificates",
            "cert",
            "key",
            "min_version",
            "alpn",
            "client_ca",
            "client_auth",
            "client_subject",
            "same_host",
        ],
    ),
    ("listeners.NAME.tls.certificates[]", &["cert", "key"]),
    (
        "routes[]",
        &[
            "first",
            "listeners",
            "host",
            "path",
            "path_exact",
            "path_regex",
            "method",
            "headers",
            "pool",
            "split",
            "redirect",
            "respond",
            "rewrite",
            "request_headers",
            "response_headers",
            "timeouts",
            "retries",
            "rate_limit",
            "allow",
        ],
    ),
    ("routes[].redirect", REDIRECT),
    (
        "routes[].respond",
        &["status", "body", "content_type", "headers"],
    ),
    ("routes[].rewrite", &["path", "strip_prefix", "host"]),
    ("routes[].request_headers", EDITS),
    ("routes[].response_headers", EDITS),
    ("routes[].timeouts", TIMEOUTS),
    ("routes[].retries", RETRIES),
    ("routes[].rate_limit", RATE_LIMIT),
    ("pools", &["NAME"]),
    (
        "pools.NAME",
        &[
            "policy",
            "backends",
            "protocol",
            "send_proxy",
            "health_check",
            "ejection",
            "retries",
            "timeouts",
            "keepalive",
            "limits",
            "when_all_down",
            "tls",
        ],
    ),
    (
        "pools.NAME.tls",
        &["ca", "server_name", "verify", "client_cert", "client_key"],
    ),
    (
        "pools.NAME.backends[]",
        &["address", "name", "weight", "backup", "max_connections"],
    ),
    (
        "pools.NAME.health_check",
        &[
            "type", "path", "method", "host", "expect", "body", "service", "port", "interval",
            "timeout", "rise", "fall", "on_down",
        ],
    ),
    (
        "pools.NAME.ejection",
        &["failures", "eject_for", "max_eject_for", "max_ejected"],
    ),
    ("pools.NAME.retries", RETRIES),
    ("pools.NAME.timeouts", TIMEOUTS),
    (
        "pools.NAME.keepalive",
        &[
            "idle_per_backend",
            "idle_timeout",
            "max_age",
            "max_requests",
        ],
    ),
    (
        "pools.NAME.limits",
        &["connections_per_backend", "streams_per_connection"],
    ),
];

/// The keys of a section; none for a path that is not one.
pub fn of(section: &str) -> &'static [&'static str] {
    SECTIONS
        .iter()
        .find(|(path, _)| *path == section)
        .map_or(&[], |(_, keys)| keys)
}

/// The paths of all keys, in the order of the sections: `workers`, `drain.delay`, `listeners.NAME.bind`, …
pub fn all() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|(section, keys)| {
        keys.iter()
            .filter(|key| **key != "NAME")
            .map(move |key| match *section {
                "" => (*key).to_owned(),
                section => format!("{section}.{key}"),
            })
    })
}

/// Keys and values of the contract that this version does not have.
const LATER: &[(&str, &str)] = &[
    ("pools.NAME", "hash"),
    ("pools.NAME", "slow_start"),
    ("pools.NAME", "sticky"),
    ("pools.NAME.limits", "queue"),
    ("pools.NAME.limits", "queue_timeout"),
];

/// True for a key that a later version will have.
pub fn is_later(section: &str, key: &str) -> bool {
    LATER.contains(&(section, key))
}
