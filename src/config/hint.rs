//! What to do about a wrong word: the nearest of ours, or our word for another product's.
//!
//! Hints only: nothing here makes a foreign word work.

use super::keys;

const CERTIFICATE: &str = "write `tls: {cert: FILE, key: FILE}` in the listener";
const CLIENT_HEADER: &str = "write `trusted_proxies: {from: [10.0.0.0/8], client_header: X-Real-IP}` at the top of the file";
const CA: &str =
    "balancer calls this `ca` in the `tls` of a pool, and `client_ca` in that of a listener";
const SNI: &str = "write `sni: {app.example.com: POOL}` in a listener with `protocol: tcp`";
const UNVERIFIED: &str = "write `verify: false`, or better `ca: FILE`";

/// Words of HAProxy, nginx, Envoy and Traefik, and the key that means the same here.
const FOREIGN_KEYS: &[(&str, &str)] = &[
    ("accesslog", "balancer calls this `access_log`"),
    ("access_log_path", "write `access_log: {output: file:PATH}`"),
    ("addr", "balancer calls this `address`"),
    (
        "backend",
        "balancer calls a group of servers a pool: `pools`, `pool`",
    ),
    ("average", "balancer calls this `per_client: 100/s`"),
    ("balance", "balancer calls this `policy`"),
    ("bind_address", "balancer calls this `bind`"),
    ("ca_cert", CA),
    ("ca_certificates", CA),
    ("ca_file", CA),
    ("cafile", CA),
    ("cert_file", "balancer calls this `cert`"),
    ("certfile", "balancer calls this `cert`"),
    ("certificate", "balancer calls this `cert`"),
    ("check", "balancer calls this `health_check`"),
    (
        "client_body_timeout",
        "write `timeouts: {body_idle: 30s}` in the listener",
    ),
    (
        "client_header_timeout",
        "write `timeouts: {header: 10s}` in the listener",
    ),
    (
        "client_max_body_size",
        "write `limits: {request_body: 16MiB}` in the listener",
    ),
    (
        "check_send_proxy",
        "checks begin with a PROXY header when the pool has `send_proxy`",
    ),
    (
        "clientauth",
        "write `client_ca: FILE`, and `client_auth: optional` unless it is required",
    ),
    ("cluster", "balancer calls this a pool: `pool`"),
    ("clusters", "balancer calls these `pools`"),
    (
        "connect_timeout",
        "write `timeouts: {connect: 3s}` in the pool",
    ),
    ("crt", "balancer calls this `tls: {cert: FILE, key: FILE}`"),
    ("default_backend", "balancer calls this `pool`"),
    ("domains", "balancer calls this `host`"),
    ("endpoints", "balancer calls these `backends`"),
    ("entrypoint", "balancer calls these `listeners`"),
    ("entrypoints", "balancer calls these `listeners`"),
    (
        "fail_timeout",
        "balancer calls this `ejection: {eject_for: 10s}` in the pool",
    ),
    ("frontend", "balancer calls these `listeners`"),
    ("frontends", "balancer calls these `listeners`"),
    (
        "global",
        "global keys such as `workers` stand at the top of the file",
    ),
    ("health", "balancer calls this `health_check`"),
    ("healthcheck", "balancer calls this `health_check`"),
    ("health_checks", "balancer calls this `health_check`"),
    ("http_check", "write `health_check: {path: /healthz}`"),
    ("httpchk", "write `health_check: {path: /healthz}`"),
    (
        "inter",
        "balancer calls this `health_check: {interval: 2s}`",
    ),
    ("insecure_skip_verify", UNVERIFIED),
    ("insecureskipverify", UNVERIFIED),
    ("key_file", "balancer calls this `key`"),
    ("keyfile", "balancer calls this `key`"),
    (
        "keepalive_timeout",
        "write `timeouts: {keepalive: 75s}` in the listener",
    ),
    ("lb_policy", "balancer calls this `policy`"),
    (
        "least_conn",
        "write `policy: least_connections` in the pool",
    ),
    ("grpc_health_check", "write `health_check: {type: grpc}`"),
    ("grpc_pass", "write `protocol: h2c` in the pool"),
    (
        "http2",
        "listeners speak HTTP/2 without a key; for backends write `protocol: h2` in the pool",
    ),
    (
        "http2_protocol_options",
        "write `protocol: h2`, or `h2c` without TLS, in the pool",
    ),
    (
        "limit_conn",
        "write `limits: {connections_per_client: 100}` in the listener",
    ),
    (
        "limit_req",
        "write `rate_limit: {per_client: 100/s, burst: 200}`",
    ),
    (
        "limit_req_zone",
        "write `rate_limit: {per_client: 100/s, burst: 200}` in the listener",
    ),
    ("listen", "balancer calls this `bind`, in `listeners`"),
    ("load_balancer", "balancer calls this `policy`, in a pool"),
    ("loadbalancer", "balancer calls this `policy`, in a pool"),
    ("location", "balancer calls these `routes`, with a `path`"),
    (
        "max_fails",
        "balancer calls this `ejection: {failures: 5}` in the pool",
    ),
    ("maxconn", "balancer calls this `max_connections`"),
    ("method_policy", "balancer calls this `policy`"),
    ("min_tls_version", "balancer calls this `min_version`"),
    ("minversion", "balancer calls this `min_version`"),
    ("mode", "balancer calls this `protocol`"),
    ("nbthread", "balancer calls this `workers`"),
    ("outlier_detection", "balancer calls this `ejection`"),
    ("path_prefix", "balancer calls this `path`"),
    ("port", "balancer calls this `bind: \":8080\"`"),
    ("prefix", "balancer calls this `path`"),
    (
        "proxy_connect_timeout",
        "write `timeouts: {connect: 3s}` in the pool",
    ),
    ("proxy_next_upstream", "balancer calls this `retries`"),
    (
        "proxy_pass",
        "balancer calls this `pool`; for a path behind it write `rewrite: {path: /new}` in a route",
    ),
    (
        "proxy_protocol",
        "write `accept_proxy: {from: [10.0.0.0/8]}` in the listener, or `send_proxy: v2` in the pool",
    ),
    (
        "proxyprotocol",
        "write `accept_proxy: {from: [10.0.0.0/8]}` in the listener, or `send_proxy: v2` in the pool",
    ),
    (
        "proxy_read_timeout",
        "write `timeouts: {response: 60s}` in the pool",
    ),
    ("proto", "balancer calls this `protocol`"),
    ("rate", "balancer calls this `per_client: 100/s`"),
    (
        "ratelimit",
        "write `rate_limit: {per_client: 100/s, burst: 200}`",
    ),
    ("real_ip_header", CLIENT_HEADER),
    ("real_ip_recursive", CLIENT_HEADER),
    ("retry_policy", "balancer calls this `retries`"),
    ("routers", "balancer calls these `routes`"),
    ("rule", "write `host`, `path`, `method` or `headers`"),
    ("send_proxy_v2", "write `send_proxy: v2` in the pool"),
    (
        "server",
        "balancer calls a server a backend (`backends` of a pool) and an nginx `server` block a listener",
    ),
    ("server_name", "balancer calls this `host`, in `routes`"),
    ("servers", "balancer calls these `backends`"),
    ("service", "balancer calls this a pool: `pool`"),
    (
        "service_name",
        "balancer calls this `service`, in a check of `type: grpc`",
    ),
    ("services", "balancer calls these `pools`"),
    (
        "set_real_ip_from",
        "write `accept_proxy: {from: [10.0.0.0/8]}` in the listener, or `trusted_proxies` at the top of the file",
    ),
    (
        "stick_table",
        "write `rate_limit: {per_client: 100/s, burst: 200}`; the table needs no setting",
    ),
    ("ssl", "balancer calls this `tls`"),
    ("ssl_certificate", CERTIFICATE),
    ("ssl_certificate_key", CERTIFICATE),
    (
        "ssl_client_certificate",
        "write `tls: {client_ca: FILE}` in the listener",
    ),
    (
        "ssl_min_ver",
        "write `tls: {min_version: \"1.2\"}` in the listener",
    ),
    (
        "ssl_protocols",
        "write `tls: {min_version: \"1.2\"}` in the listener",
    ),
    (
        "ssl_verify_client",
        "write `tls: {client_ca: FILE, client_auth: optional}` in the listener",
    ),
    ("sslmode", "write `tls: {ca: FILE}` in the pool"),
    ("strategy", "balancer calls this `policy`"),
    ("target", "balancer calls this `backends`, in a pool"),
    ("targets", "balancer calls these `backends`"),
    (
        "timeout",
        "balancer calls this `timeouts`, with one key for each",
    ),
    (
        "timeout client",
        "write `timeouts: {body_idle: 30s}` in the listener",
    ),
    (
        "timeout connect",
        "write `timeouts: {connect: 3s}` in the pool",
    ),
    (
        "timeout server",
        "write `timeouts: {response: 60s}` in the pool",
    ),
    ("tokens_per_fill", "balancer calls this `per_client: 100/s`"),
    ("max_tokens", "balancer calls this `burst`"),
    (
        "tls_certificates",
        "balancer calls this `certificates`, in the `tls` of a listener",
    ),
    ("unhealthy_threshold", "balancer calls this `fall`"),
    ("healthy_threshold", "balancer calls this `rise`"),
    (
        "upstream",
        "balancer calls a group of servers a pool: `pools`, `pool`",
    ),
    ("upstreams", "balancer calls these `pools`"),
    ("trusted_ips", CLIENT_HEADER),
    ("trustedips", CLIENT_HEADER),
    ("uri", "balancer calls this `path`"),
    ("url", "balancer calls this `address`, without a scheme"),
    (
        "virtual_hosts",
        "balancer calls these `routes`, with a `host`",
    ),
    (
        "worker_connections",
        "balancer calls this `max_connections`",
    ),
    ("worker_processes", "balancer calls this `workers`"),
    // Words for TLS that is passed on as it is.
    ("hostsni", SNI),
    ("host_sni", SNI),
    ("hostsniregexp", SNI),
    ("passthrough", SNI),
    ("req.ssl_sni", SNI),
    ("req_ssl_sni", SNI),
    ("server_names", SNI),
    ("ssl_fc_sni", SNI),
    ("ssl_passthrough", SNI),
    ("ssl_preread", SNI),
    ("ssl_preread_server_name", SNI),
    ("tls_inspector", SNI),
    // Words for what a route does with a request on its way.
    (
        "add_header",
        "write `response_headers: {add: {X-Name: value}}` in a route",
    ),
    (
        "add_prefix",
        "write `rewrite: {path: /prefix}` in a route with `path: /`",
    ),
    (
        "addprefix",
        "write `rewrite: {path: /prefix}` in a route with `path: /`",
    ),
    ("canary", "write `split: {stable: 9, canary: 1}` in a route"),
    (
        "custom_request_headers",
        "write `request_headers: {set: {X-Name: value}}` in a route",
    ),
    (
        "custom_response_headers",
        "write `response_headers: {set: {X-Name: value}}` in a route",
    ),
    (
        "customrequestheaders",
        "write `request_headers: {set: {X-Name: value}}` in a route",
    ),
    (
        "customresponseheaders",
        "write `response_headers: {set: {X-Name: value}}` in a route",
    ),
    ("host_rewrite", "write `rewrite: {host: NAME}` in a route"),
    (
        "host_rewrite_literal",
        "write `rewrite: {host: NAME}` in a route",
    ),
    (
        "middlewares",
        "a route has keys for them, such as `rewrite` and `request_headers`",
    ),
    (
        "pass_host_header",
        "the host is kept; `rewrite: {host: NAME}` in a route sends another",
    ),
    (
        "passhostheader",
        "the host is kept; `rewrite: {host: NAME}` in a route sends another",
    ),
    ("path_rewrite", "write `rewrite: {path: /new}` in a route"),
    (
        "prefix_rewrite",
        "write `rewrite: {path: /new}` in a route with `path`",
    ),
    (
        "proxy_set_header",
        "write `request_headers: {set: {X-Name: value}}` in a route",
    ),
    (
        "regex_rewrite",
        "write `rewrite: {path: /$1}` in a route with `path_regex`",
    ),
    (
        "replace_path",
        "write `rewrite: {path: /new}` in a route with `path_exact`",
    ),
    (
        "replacement",
        "write `rewrite: {path: /$1}` in a route with `path_regex`",
    ),
    (
        "replacepath",
        "write `rewrite: {path: /new}` in a route with `path_exact`",
    ),
    (
        "replacepathregex",
        "write `rewrite: {path: /$1}` in a route with `path_regex`",
    ),
    (
        "request_headers_to_add",
        "write `request_headers: {add: {X-Name: value}}` in a route",
    ),
    (
        "response_headers_to_add",
        "write `response_headers: {add: {X-Name: value}}` in a route",
    ),
    ("rewrite_target", "write `rewrite: {path: /new}` in a route"),
    (
        "set_header",
        "write `request_headers: {set: {X-Name: value}}` in a route",
    ),
    (
        "split_clients",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
    (
        "strip_path",
        "write `rewrite: {strip_prefix: /api}` in a route",
    ),
    (
        "stripprefix",
        "write `rewrite: {strip_prefix: /api}` in a route",
    ),
    (
        "stripprefixregex",
        "write `rewrite: {path: /$1}` in a route with `path_regex`",
    ),
    (
        "traffic split",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
    (
        "traffic_split",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
    (
        "trafficsplit",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
    (
        "weighted",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
    (
        "weighted_clusters",
        "write `split: {stable: 9, canary: 1}` in a route",
    ),
];

/// Values of other products, and ours.
const FOREIGN_VALUES: &[(&str, &str)] = &[
    ("first", "round_robin"),
    ("least-connections", "least_connections"),
    ("least_conn", "least_connections"),
    ("least_request", "least_connections"),
    ("leastconn", "least_connections"),
    ("leastconnections", "least_connections"),
    ("p2c", "random_two"),
    ("random", "random_two"),
    ("power_of_two", "random_two"),
    ("power_of_two_choices", "random_two"),
    ("round-robin", "round_robin"),
    ("roundrobin", "round_robin"),
    ("rr", "round_robin"),
    ("static-rr", "round_robin"),
    ("wrr", "round_robin"),
    ("https", "http"),
    ("http1", "http"),
    ("http2", "http"),
    ("http2", "h2"),
    ("grpc", "h2c"),
    ("grpcs", "h2"),
    ("warning", "warn"),
    ("notice", "info"),
    ("err", "error"),
    ("http/1.1", "http1"),
    ("1", "v1"),
    ("2", "v2"),
];

/// Values that a later version will have.
const LATER_VALUES: &[(&str, &str)] = &[
    ("policy", "hash"),
    ("policy", "least_time"),
    ("protocol", "udp"),
];

/// The hint for an unknown key of a section; `known` are the keys it may have.
pub(super) fn for_key(section: &str, key: &str, known: &[&str]) -> String {
    if keys::is_later(section, key) {
        return format!("this version does not have `{key}` yet; remove it");
    }
    let plain = key.to_ascii_lowercase().replace('-', "_");
    if let Some(same) = known.iter().find(|known| **known == plain) {
        return format!("did you mean `{same}`?");
    }
    if let Some((_, hint)) = FOREIGN_KEYS.iter().find(|(word, _)| *word == plain) {
        return (*hint).to_owned();
    }
    if let Some(near) = nearest(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    elsewhere(section, &plain).unwrap_or_else(|| format!("it may be {}", list(known)))
}

/// Where a key that is unknown in `section` does belong.
fn elsewhere(section: &str, key: &str) -> Option<String> {
    let mut homes = keys::SECTIONS
        .iter()
        .filter(|(path, keys)| *path != section && keys.contains(&key))
        .map(|(path, _)| *path);
    let home = homes.next()?;
    Some(match (home, homes.next()) {
        ("", _) => format!("`{key}` stands at the top of the file"),
        (_, None) => format!("`{key}` belongs in `{home}`"),
        (_, Some(other)) => format!("`{key}` belongs in `{home}` or `{other}`"),
    })
}

/// The hint for a value that is none of `known`; `key` is the last part of its path.
pub(super) fn for_value(key: &str, value: &str, known: &[&str]) -> String {
    if LATER_VALUES.contains(&(key, value)) {
        return format!(
            "this version does not have `{value}` yet; it may be {}",
            list(known)
        );
    }
    let plain = value.to_ascii_lowercase();
    let foreign = FOREIGN_VALUES
        .iter()
        .find(|(word, ours)| *word == plain && known.contains(ours))
        .map(|(_, ours)| *ours);
    match foreign.or_else(|| nearest(value, known.iter().copied())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it may be {}", list(known)),
    }
}

/// `a`, `b` or `c`, each in backticks.
pub(super) fn list(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [first @ .., last] => format!("`{}` or `{last}`", first.join("`, `")),
    }
}

/// The word nearest to `word`, if it is near: one edit in three characters, at most three.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    let most = (lower.chars().count() / 3).clamp(1, 3);
    candidates
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(edits, candidate)| *edits <= most && *edits < candidate.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `b` out of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut older: Vec<usize> = Vec::new();
    let mut old: Vec<usize> = (0..=b.len()).collect();
    let mut before: Option<char> = None;
    for (row, from) in a.chars().enumerate() {
        let mut new = vec![row + 1];
        for (column, to) in b.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let mut best = (at(&old, column) + usize::from(from != *to))
                .min(at(&old, column + 1) + 1)
                .min(at(&new, column) + 1);
            let swapped =
                column > 0 && before == Some(*to) && b.get(column - 1).copied() == Some(from);
            if swapped {
                best = best.min(at(&older, column - 1).saturating_add(1));
            }
            new.push(best);
        }
        before = Some(from);
        older = std::mem::replace(&mut old, new);
    }
    old.last().copied().unwrap_or(0)
}

/// True for the words that YAML 1.1 reads as booleans and YAML 1.2 as text.
pub(super) fn is_old_boolean(word: &str) -> bool {
    ["on", "off", "yes", "no", "y", "n"]
        .iter()
        .any(|old| old.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(distance("pool", "pool"), 0);
        assert_eq!(distance("ap", "app"), 1);
        assert_eq!(distance("wieght", "weight"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_near_words_are_proposed() {
        let words = || ["app", "api", "static"].into_iter();
        assert_eq!(nearest("ap", words()), Some("app"));
        assert_eq!(nearest("statik", words()), Some("static"));
        assert_eq!(nearest("postgres", words()), None);
        assert_eq!(nearest("x", ["y"].into_iter()), None);
    }

    #[test]
    fn no_foreign_word_is_a_key_of_ours_everywhere() {
        for (word, hint) in FOREIGN_KEYS {
            assert!(!hint.is_empty());
            assert!(
                !keys::of("").contains(word),
                "`{word}` is a key at the top of the file"
            );
        }
    }

    #[test]
    fn later_keys_are_not_accepted_now() {
        for (section, keys) in keys::SECTIONS {
            for key in *keys {
                assert!(!keys::is_later(section, key), "{section}.{key}");
            }
        }
    }
}
