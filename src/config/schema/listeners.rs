//! The keys of `listeners.NAME`.

use super::{
    KEY,
    KeyComparison::Listener,
    KeyDefault::{Nothing, Required, Value, Words},
    KeyRow,
    spec::{
        MAX_BODY_BYTES, MAX_TCP_KEEPALIVE, ONE_DAY, ONE_MILLISECOND, ONE_SECOND, REDIRECT_STATUSES,
        boolean, duration, header, integer, keys, networks, one_of, rate, size, text,
    },
};
use crate::config::model::{ClientAuth, ListenerProtocol, ProxyVersion, TlsVersion};

pub(super) static LISTENER_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "listeners.NAME.bind",
        value: text("address").one_or_more().shown("address or list"),
        default: Required,
        doc: "`\":8080\"`, `8080`, `127.0.0.1:8080`, `\"[::]:8080\"`, `unix:/path`. Without a \
              host: every address of this machine, IPv4 and IPv6. No address occurs twice. One \
              port may have several, in one listener or in two: the one with the address that a \
              client connects to takes it before a wildcard. `0.0.0.0` beside `[::]`, which \
              takes IPv4 too, only in one listener. `[::ffff:127.0.0.1]:80` is `127.0.0.1:80`",
        differs: Listener(|a, b| a.binds != b.binds),
        other_words: &[
            (&["bind_address"], "balancer calls this `bind`"),
            (&["listen"], "balancer calls this `bind`, in `listeners`"),
            (
                &["port"],
                "write the port in `bind`, such as `bind: \":8080\"`",
            ),
        ],
        section_words: &[(&["address", "addr"], "balancer calls this `bind`")],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.protocol",
        value: one_of(ListenerProtocol::NAMES),
        default: Value("http"),
        differs: Listener(|a, b| a.protocol != b.protocol),
        other_words: &[(&["mode", "proto"], "balancer calls this `protocol`")],
        other_values: &[("http1", "http"), ("http2", "http")],
        later_values: &["udp"],
        value_hints: &[
            (
                &["https"],
                "remove `protocol` and write `tls: {cert: FILE, key: FILE}`",
            ),
            (
                &["tls", "ssl"],
                "for HTTPS remove `protocol` and write `tls: {cert: FILE, key: FILE}`; to pass TLS \
                  through write `protocol: tcp` and `sni`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.pool",
        value: text("name of a pool"),
        default: Words("none"),
        doc: "where requests go that no route takes; none: 404. Required for tcp without `sni`",
        section_words: &[(
            &["backend", "cluster", "service", "upstream"],
            "balancer calls this `pool`",
        )],
        other_words: &[
            (&["default_backend"], "balancer calls this `pool`"),
            (
                &["proxy_pass"],
                "balancer calls this `pool`; for a path behind it write `rewrite: {path: /new}` \
                  in a route",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.redirect",
        value: keys().or("https"),
        default: Words("none"),
        doc: "redirect every request that no route takes which names the listener or is `first`, \
              http only, instead of a pool; see [routes](#routes)",
        differs: Listener(|a, b| a.redirect != b.redirect),
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.redirect.to",
        value: text("`https`, a URL or a path").pattern("^(https$|https?://|/)"),
        default: Required,
        section_words: &[(&["target", "url", "location"], "balancer calls this `to`")],
        doc: "`https` keeps host and target; anything else is sent as it is",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.redirect.port",
        value: integer(1, 65_535),
        default: Value("443"),
        doc: "with `to: https`",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.redirect.status",
        value: one_of(REDIRECT_STATUSES).shown("301, 302, 303, 307 or 308"),
        default: Value("308"),
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.http",
        value: keys(),
        default: Nothing,
        doc: "http only",
        differs: Listener(|a, b| a.http != b.http),
        value_hints: &[(
            &["true", "on", "yes", "enabled"],
            "remove the key: it has the limits of HTTP, which a listener speaks by default",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.http.max_headers",
        value: integer(1, 256),
        default: Value("100"),
        doc: "fields of a request; more is 431. Also the limit of its trailers. With HTTP/2 all \
              parts of a cookie are one field",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.http.max_header_size",
        value: size(1 << 10, 256 << 10),
        default: Value("32KiB"),
        doc: "bytes of a request's head; more is 431. Also the limit of its trailers. With \
              HTTP/2 each field counts 32 bytes more; the parts of a cookie count as they are \
              joined, with `; ` in between",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.http.h2c",
        value: boolean(),
        default: Value("true"),
        doc: "HTTP/2 without TLS, from clients that begin with it (prior knowledge); false: they \
              get 505. Never by `Upgrade: h2c`",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.http.h2_max_streams",
        value: integer(1, 1000),
        default: Value("100"),
        doc: "requests at a time on one HTTP/2 connection",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls",
        value: keys(),
        default: Words("none"),
        doc: "TLS 1.2 and 1.3 towards clients, see [TLS](operations.md#tls)",
        differs: Listener(|a, b| a.tls != b.tls),
        other_words: &[
            (
                &["crt"],
                "balancer calls this `tls: {cert: FILE, key: FILE}`",
            ),
            (&["ssl"], "balancer calls this `tls`"),
            (
                &["ssl_certificate", "ssl_certificate_key"],
                "write `tls: {cert: FILE, key: FILE}` in the listener",
            ),
        ],
        value_hints: &[
            (
                &["true", "on", "yes", "enabled"],
                "write `tls: {cert: FILE, key: FILE}`",
            ),
            (
                &["off", "false", "no", "disabled", "never", "0", "none"],
                "remove the key: without it there is no TLS",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.cert",
        value: text("path"),
        default: Words("required, or `certificates`"),
        doc: "PEM: the listener's own certificate first, then its issuers",
        other_words: &[(
            &["cert_file", "certfile", "certificate"],
            "balancer calls this `cert`",
        )],
        section_words: &[
            (
                &["ssl_certificate", "crt"],
                "balancer calls this `cert`; the key goes into `key`",
            ),
            (
                &["passthrough", "ssl_passthrough"],
                "remove `tls` and write `sni: {app.example.com: POOL}`, with `protocol: tcp`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.key",
        value: text("path"),
        default: Words("required with `cert`"),
        doc: "PEM, without a password; may be the same file",
        other_words: &[(&["key_file", "keyfile"], "balancer calls this `key`")],
        section_words: &[(
            &["ssl_certificate_key", "private_key"],
            "balancer calls this `key`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.certificates",
        value: keys().non_empty_list().shown("list of keys"),
        default: Nothing,
        doc: "several of them. The name that a client asks for (SNI) leads to the one for that \
              exact name, then to `*.` and its parent domain, then to the first. Two for one name, \
              with RSA and ECDSA: the first that the client can verify, by signature and curve",
        other_words: &[(
            &["tls_certificates"],
            "balancer calls this `certificates`, in the `tls` of a listener",
        )],
        section_words: &[(&["certs"], "balancer calls this `certificates`")],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.certificates[].cert",
        value: text("path"),
        default: Required,
        doc: "as `cert`",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.certificates[].key",
        value: text("path"),
        default: Required,
        doc: "as `key`",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.min_version",
        value: one_of(TlsVersion::NAMES).shown("`1.2` or `1.3`, in quotes"),
        default: Value("1.2"),
        doc: "older clients are refused",
        other_words: &[
            (
                &["min_tls_version", "minversion"],
                "balancer calls this `min_version`",
            ),
            (
                &["ssl_min_ver", "ssl_protocols"],
                "write `tls: {min_version: \"1.2\"}`, or `\"1.3\"`",
            ),
        ],
        section_words: &[(
            &["protocols", "versions"],
            "write `min_version: \"1.2\"`, or `\"1.3\"`",
        )],
        other_values: &[
            ("tlsv1.2", "1.2"),
            ("tls1.2", "1.2"),
            ("versiontls12", "1.2"),
            ("tlsv1.3", "1.3"),
            ("tls1.3", "1.3"),
            ("versiontls13", "1.3"),
        ],
        value_hints: &[(
            &[
                "1",
                "1.0",
                "1.1",
                "tlsv1",
                "tlsv1.0",
                "tlsv1.1",
                "tls1.0",
                "tls1.1",
                "versiontls10",
                "versiontls11",
                "ssl*",
            ],
            "TLS 1.0 and 1.1 are not supported: write `\"1.2\"`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.alpn",
        value: text("name").one_or_more(),
        default: Value("[h2, http/1.1]"),
        doc: "protocols offered to clients (ALPN), the preferred first. http: `h2` and \
              `http/1.1`; tcp: any names, the backend's matter. Without the key none for tcp",
        other_values: &[("http2", "h2"), ("grpcs", "h2")],
        value_hints: &[(
            &["h3", "h3-*", "http3", "http/3", "quic"],
            "balancer has no HTTP/3; remove `{value}`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.client_ca",
        value: text("path"),
        default: Words("none"),
        doc: "PEM: the authorities whose certificates clients may show, and certificates of \
              clients that are trusted as themselves",
        other_words: &[(
            &[
                "ssl_client_certificate",
                "ca_cert",
                "ca_certificates",
                "ca_file",
                "cafile",
            ],
            "write `tls: {client_ca: FILE}` in the listener",
        )],
        section_words: &[(&["ca"], "balancer calls this `client_ca`")],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.client_auth",
        value: one_of(ClientAuth::NAMES),
        default: Value("required"),
        doc: "whether a client without a certificate is let in; with `client_ca` only",
        other_words: &[
            (
                &["clientauth"],
                "write `client_ca: FILE`, and `client_auth: optional` unless it is required",
            ),
            (
                &["ssl_verify_client"],
                "write `tls: {client_ca: FILE}` in the listener; `client_auth: optional` also admits \
                  clients without a certificate",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.client_subject",
        value: header(),
        default: Words("none"),
        doc: "tells backends the subject of the client's certificate, such as \
              `CN=app,O=Example`; what clients send by that name, or with `_` for `-`, is \
              removed. Routes see the request as the client sent it",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.tls.same_host",
        value: boolean(),
        default: Value("true"),
        doc: "false: a request for a host with another certificate than the one shown is served \
              instead of 421, see [TLS](operations.md#tls). http only",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.sni",
        value: text("name of a pool")
            .map_of("server names")
            .or("none")
            .shown("map of server names to pools, or `none`"),
        default: Value("none"),
        doc: "TLS passthrough, tcp only, not with `tls`: each connection goes to a pool by the \
              name in its ClientHello. See below",
        other_words: &[(
            &[
                "hostsni",
                "host_sni",
                "hostsniregexp",
                "passthrough",
                "req.ssl_sni",
                "req_ssl_sni",
                "server_names",
                "ssl_fc_sni",
                "ssl_passthrough",
                "ssl_preread",
                "ssl_preread_server_name",
                "tls_inspector",
            ],
            "write `sni: {app.example.com: POOL}` in a listener with `protocol: tcp`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.timeouts",
        value: keys(),
        default: Nothing,
        doc: "for tcp: `tls` only",
        differs: Listener(|a, b| a.timeouts != b.timeouts),
        value_hints: &[
            (
                &["0", "none", "off"],
                "write `none` for each, such as `timeouts: {header: none}`",
            ),
            (
                &["DURATION"],
                "name the timeout, such as `timeouts: {header: {value}}`",
            ),
            (
                &["NUMBER"],
                "name the timeout, such as `timeouts: {header: {value}s}`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.timeouts.tls",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("10s"),
        doc: "for the whole TLS handshake; with `sni` for the whole ClientHello",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.timeouts.header",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("10s"),
        doc: "for the whole head of a request",
        other_words: &[
            (
                &["http_request"],
                "balancer calls this `header`, in `listeners.NAME.timeouts`",
            ),
            (
                &["client_header_timeout"],
                "write `timeouts: {header: 10s}` in the listener",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.timeouts.body_idle",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("30s"),
        doc: "in which a client that is waited for must send at least 1 KiB of its request's \
              body, or all that is left, until its response begins. See below",
        other_words: &[(
            &["client_body_timeout", "timeout client"],
            "write `timeouts: {body_idle: 30s}` in the listener",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.timeouts.keepalive",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("75s"),
        doc: "between a response and the next request",
        other_words: &[(
            &["keepalive_timeout"],
            "write `timeouts: {keepalive: 75s}` in the listener",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.limits",
        value: keys(),
        default: Nothing,
        differs: Listener(|a, b| a.limits != b.limits),
        value_hints: &[
            (
                &["0", "none", "off"],
                "remove the key: without it there are no limits",
            ),
            (&["NUMBER"], "write `limits: {connections: {value}}`"),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.limits.connections",
        value: integer(1, 10_000_000).or("none"),
        default: Value("none"),
        doc: "connections at a time; none: only `max_connections`. When it is reached, an idle \
              connection of the listener is closed for a new one",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.limits.connections_per_client",
        value: integer(1, 10_000_000).or("none"),
        default: Value("none"),
        doc: "connections at a time from one address: that of the connection, or of its PROXY \
              header. A proxy in front counts as one client, in `trusted_proxies` or not",
        other_words: &[(
            &["limit_conn"],
            "write `limits: {connections_per_client: 100}` in the listener",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.limits.request_body",
        value: size(0, MAX_BODY_BYTES).or("none").shown("size, or `none`"),
        default: Value("none"),
        doc: "bytes of a request's body; more is 413. http only",
        other_words: &[(
            &["client_max_body_size"],
            "write `limits: {request_body: 16MiB}` in the listener",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.rate_limit",
        value: keys().or("none"),
        default: Value("none"),
        doc: "requests of one client address, http only; more are 429. See below",
        differs: Listener(|a, b| a.rate_limit != b.rate_limit),
        other_words: &[
            (
                &["limit_req", "ratelimit"],
                "write `rate_limit: {per_client: 100/s, burst: 200}`",
            ),
            (
                &["limit_req_zone"],
                "write `rate_limit: {per_client: 100/s, burst: 200}` in the listener",
            ),
            (
                &["stick_table"],
                "write `rate_limit: {per_client: 100/s, burst: 200}`; the table needs no setting",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.rate_limit.per_client",
        value: rate(),
        default: Required,
        doc: "in the long run",
        other_words: &[(
            &["average", "rate", "tokens_per_fill"],
            "balancer calls this `per_client`, with a unit: `per_client: 100/s`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.rate_limit.burst",
        value: integer(1, 1_000_000),
        default: Words("the requests of one second, at least 1"),
        doc: "that may come at once",
        other_words: &[(&["max_tokens"], "balancer calls this `burst`")],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.accept_proxy",
        value: keys().or("none"),
        default: Value("none"),
        doc: "connections begin with a PROXY header, see below",
        differs: Listener(|a, b| a.accept_proxy != b.accept_proxy),
        value_hints: &[
            (
                &["true", "on", "yes", "enabled", "any"],
                "write `accept_proxy: {from: [10.0.0.0/8]}`",
            ),
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "write `accept_proxy: none`",
            ),
            (
                &["v1", "v2"],
                "write `accept_proxy: {version: {value}, from: [10.0.0.0/8]}`",
            ),
            (
                &["1", "2"],
                "write `accept_proxy: {version: v{value}, from: [10.0.0.0/8]}`",
            ),
        ],
        other_words: &[
            (
                &["proxy_protocol", "proxyprotocol"],
                "write `accept_proxy: {from: [10.0.0.0/8]}` in the listener, or `send_proxy: \
                  v2` in the pool",
            ),
            (
                &["set_real_ip_from"],
                "write `accept_proxy: {from: [10.0.0.0/8]}` in the listener, or \
                  `trusted_proxies` at the top level of the file",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.accept_proxy.version",
        value: one_of(ProxyVersion::NAMES).or("any"),
        default: Words("any"),
        doc: "the version it must have",
        other_values: &[("1", "v1"), ("2", "v2")],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.accept_proxy.from",
        value: networks(),
        default: Required,
        doc: "the load balancers in front: connections from elsewhere are refused. A peer on a \
              unix socket is let in: who may use the socket is a matter of its directory",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.allow",
        value: networks().one_or_more().shown("networks, at least one"),
        default: Words("all"),
        doc: "clients that may connect; http: each request by [the client's \
              address](#the-clients-address), others get 403",
        differs: Listener(|a, b| a.allow != b.allow),
        value_hints: &[(
            &["none"],
            "write `deny: [0.0.0.0/0, \"::/0\"]` to refuse every client",
        )],
        other_words: &[(
            &[
                "ipallowlist",
                "ipwhitelist",
                "ip_allow_list",
                "ip_white_list",
                "whitelist",
                "allowlist",
                "source_range",
            ],
            "write `allow: [10.0.0.0/8]`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.deny",
        value: networks(),
        default: Words("none"),
        doc: "clients that may not; takes precedence over `allow`",
        differs: Listener(|a, b| a.deny != b.deny),
        value_hints: &[(
            &["all", "any", "*"],
            "write `[0.0.0.0/0, \"::/0\"]` for every client; an `allow` refuses all others, so `deny: all` is not needed beside it",
        )],
        other_words: &[(
            &["blacklist", "denylist", "ipdenylist", "ip_deny_list"],
            "write `deny: [192.0.2.0/24]`",
        )],
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.socket",
        value: keys(),
        default: Nothing,
        differs: Listener(|a, b| a.socket != b.socket),
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.socket.backlog",
        value: integer(1, 1_048_576),
        default: Value("4096"),
        doc: "connections the kernel queues",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.socket.keepalive",
        value: duration(ONE_SECOND, MAX_TCP_KEEPALIVE).or("none"),
        default: Value("60s"),
        doc: "TCP keepalive probes after this idle time",
        ..KEY
    },
    KeyRow {
        path: "listeners.NAME.socket.fast_open",
        value: boolean(),
        default: Value("false"),
        doc: "TCP Fast Open",
        ..KEY
    },
];
