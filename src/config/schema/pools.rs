//! The keys of `pools.NAME`.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::{Nothing, Value, Words},
    KeyRow, backend_tls,
    spec::{
        ONE_DAY, ONE_HOUR, ONE_MILLISECOND, ONE_WEEK, TOKEN_PATTERN, duration, integer, keys,
        one_of, share, text,
    },
};
use crate::config::model::{
    BackendProtocol, ProxyVersion, ResolveMode, RetryCondition, WhenAllDown,
};

/// The hints for a single value at a `timeouts`, whether of a pool or of a route.
pub(super) const TIMEOUTS_VALUE_HINTS: &[(&[&str], &str)] = &[
    (
        &["0", "none", "off"],
        "write `none` for each, such as `timeouts: {response: none}`",
    ),
    (
        &["DURATION"],
        "name the timeout, such as `timeouts: {response: {value}}`",
    ),
    (
        &["NUMBER"],
        "name the timeout, such as `timeouts: {response: {value}s}`",
    ),
];

/// Backends.
pub(super) static BACKEND_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.backends",
        value: text("address")
            .or_keys()
            .non_empty_list()
            .shown("list, at least one"),
        default: Words("required without `discover`"),
        doc: "`HOST:PORT`, `unix:PATH`, or keys; each address once. A name stands for all of its \
              addresses, see [names](#names)",
        other_words: &[
            (
                &["endpoints", "servers", "targets"],
                "balancer calls these `backends`",
            ),
            (
                &["server"],
                "balancer calls a server a backend (`backends` of a pool) and an nginx `server` \
                  block a listener",
            ),
            (&["target"], "balancer calls this `backends`, in a pool"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].address",
        value: text("`HOST:PORT` or `unix:PATH`"),
        default: Words("required without `srv`"),
        other_words: &[
            (
                &["port"],
                "write the port after the address: `address: HOST:PORT`",
            ),
            (&["addr"], "balancer calls this `address`"),
            (&["url"], "balancer calls this `address`, without a scheme"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].srv",
        value: text("name of a service").pattern(r"^[A-Za-z0-9_.-]{1,254}$"),
        default: Nothing,
        doc: "instead of `address`: the name of SRV records, such as `_http._tcp.app.internal`, \
              which give hosts, ports, weights and tiers. See [names](#names)",
        section_words: &[(
            &["service", "service_name", "dns_srv", "srv_name"],
            "balancer calls this `srv`: the whole name of the records, such as \
              `_http._tcp.app.internal`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].resolve",
        value: one_of(ResolveMode::NAMES),
        default: Value("each"),
        doc: "of a name: `each` of its addresses is a backend, or all of them are `one`, with one \
              state",
        section_words: &[(
            &["resolvers", "init_addr", "resolve_prefer"],
            "write `resolvers` at the top level of the file",
        )],
        other_values: &[
            ("all", "each"),
            ("strict_dns", "each"),
            ("logical_dns", "one"),
            ("first", "one"),
        ],
        value_hints: &[(
            &["true", "false", "on", "off", "yes", "no"],
            "names are always resolved; `resolve` may be {known}",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].name",
        value: text("1 to 128 letters, digits, `_`, `-`, `.`, `:`, `/`, `[` and `]`")
            .pattern(r"^[A-Za-z0-9_.:\[\]/-]{1,128}$"),
        default: Words("the address"),
        doc: "what metrics and logs call it",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].weight",
        value: integer(0, 256),
        default: Value("1"),
        doc: "its share; 0: no new work",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].backup",
        value: one_of(&["true", "false", "1", "2", "3", "4", "5", "6", "7", "8", "9"])
            .shown("true, false or 1 to 9"),
        default: Value("false"),
        doc: "a backup: gets work only when no other backend may. The number is its tier, `true` \
              is 1, see [below](#backups)",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].max_connections",
        value: integer(1, 1_000_000).or("none"),
        default: Value("none"),
        doc: "exchanges or sessions at a time; the smaller of this and \
              `limits.connections_per_backend` holds",
        other_words: &[(
            &["maxconn", "max_conns"],
            "balancer calls this `max_connections`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].check_port",
        value: integer(1, 65_535),
        default: Words("that of `health_check`, else the backend's"),
        doc: "the port that its checks use; an error where the backend is a unix socket",
        other_words: &[(
            &["agent_port"],
            "write `check_port: NUMBER` in the entry of the backend",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.backends[].tls",
        value: keys().or("none"),
        default: Words("the pool's"),
        doc: "the same keys as `tls` of the pool, for this backend alone, checks included; \
              `none`: plain",
        section_words: &[(&["ssl"], "balancer calls this `tls`, with keys of its own")],
        ..KEY
    },
    backend_tls::ca("pools.NAME.backends[].tls.ca"),
    backend_tls::server_name("pools.NAME.backends[].tls.server_name"),
    backend_tls::verify("pools.NAME.backends[].tls.verify"),
    backend_tls::client_cert("pools.NAME.backends[].tls.client_cert"),
    backend_tls::client_key("pools.NAME.backends[].tls.client_key"),
    KeyRow {
        path: "pools.NAME.protocol",
        value: one_of(BackendProtocol::NAMES),
        default: Value("http1"),
        doc: "what http listeners speak with the backends: HTTP/1.1 (under TLS with `tls`), \
              HTTP/2 under TLS (`h2`, needs `tls`), HTTP/2 without TLS (`h2c`); gRPC needs one \
              of the last two",
        differs: Pool(|a, b| a.protocol != b.protocol),
        other_words: &[
            (&["grpc_pass"], "write `protocol: h2c` in the pool"),
            (
                &["http2"],
                "listeners accept HTTP/2 by default; for backends write `protocol: h2c`, or \
                  `protocol: h2` with `tls`",
            ),
            (
                &["http2_protocol_options"],
                "write `protocol: h2c` in the pool, or `protocol: h2` with `tls`",
            ),
        ],
        other_values: &[("http/1.1", "http1")],
        later_values: &["udp"],
        value_hints: &[
            (
                &["https", "http1+tls"],
                "remove `protocol`, and write `tls: {}` in the pool",
            ),
            (&["grpcs"], "write `protocol: h2` and `tls: {}` in the pool"),
            (
                &["http2", "http/2", "grpc"],
                "write `protocol: h2c`, or `protocol: h2` with `tls`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.send_proxy",
        value: one_of(ProxyVersion::NAMES).or("none"),
        default: Value("none"),
        doc: "connections to backends begin with a PROXY header, see below",
        differs: Pool(|a, b| a.send_proxy != b.send_proxy),
        other_words: &[
            (
                &["check_send_proxy"],
                "checks begin with a PROXY header when the pool has `send_proxy`",
            ),
            (&["send_proxy_v2"], "write `send_proxy: v2` in the pool"),
        ],
        other_values: &[("1", "v1"), ("2", "v2")],
        ..KEY
    },
];

/// Traffic to a backend.
pub(super) static TRAFFIC_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.retries",
        value: keys().or("none"),
        default: Words("on"),
        doc: "further attempts on other backends",
        differs: Pool(|a, b| a.retries != b.retries),
        other_words: &[(
            &["proxy_next_upstream", "retry_policy"],
            "balancer calls this `retries`",
        )],
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "write `retries: none`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: requests are retried by default",
            ),
            (&["NUMBER"], "write `retries: {attempts: {value}}`"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.retries.attempts",
        value: integer(0, 10),
        default: Value("2"),
        doc: "attempts after the first",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.retries.budget",
        value: share(),
        default: Value("20%"),
        doc: "retries as a share of requests, at least 10 a second; unused, the share of one \
              second is kept, and 100 attempts of idle times",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.retries.conditions",
        value: one_of(RetryCondition::NAMES)
            .one_or_more()
            .shown("word or list"),
        default: Value("[connect, stale, terminated, invalid]"),
        doc: "`connect`: refused, unreachable, timed out. `stale`: a keepalive connection that \
              was closed before it took the request. Either of the two: a backend that refused \
              the request without processing it. `terminated`: closed before a whole response \
              head. `timeout`: no response head in time. `invalid`: a response that is not valid \
              HTTP",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.retries.methods",
        value: text("name").pattern(TOKEN_PATTERN).one_or_more(),
        default: Value("[GET, HEAD, OPTIONS, TRACE, PUT, DELETE]"),
        doc: "the methods for which conditions other than `connect` and `stale` hold",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.timeouts",
        value: keys(),
        default: Nothing,
        differs: Pool(|a, b| a.timeouts != b.timeouts),
        value_hints: TIMEOUTS_VALUE_HINTS,
        other_words: &[
            (
                &["timeout_client"],
                "client timeouts are in `listeners.NAME.timeouts`",
            ),
            (
                &["timeout"],
                "balancer calls this `timeouts`, with one key for each",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.timeouts.connect",
        value: duration(ONE_MILLISECOND, ONE_HOUR),
        default: Value("3s"),
        doc: "to connect, TLS handshake included; cannot be `none`",
        other_words: &[
            (
                &["client"],
                "client timeouts are in `listeners.NAME.timeouts`: `header`, `body_idle`, `keepalive`",
            ),
            (
                &[
                    "connect_timeout",
                    "proxy_connect_timeout",
                    "timeout connect",
                ],
                "write `timeouts: {connect: 3s}` in the pool",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.timeouts.response",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("60s"),
        doc: "from the sent request to the whole response head",
        other_words: &[
            (
                &["server", "read", "proxy_read", "header_timeout"],
                "write `response`: the time until the response begins, and `idle`: the time between two bytes",
            ),
            (
                &["proxy_read_timeout", "timeout server"],
                "write `timeouts: {response: 60s}` in the pool",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.timeouts.idle",
        value: duration(ONE_MILLISECOND, ONE_WEEK).or("none"),
        default: Words("60s; 1h for tcp and tunnels"),
        doc: "without a byte in either direction: of an exchange whose response has begun, of a \
              gRPC call, of a session. See [below](#slow-clients-and-pipelines)",
        other_words: &[(
            &["tunnel"],
            "write `idle`: the time between two bytes, of tunnels too",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.timeouts.total",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("none"),
        doc: "for the whole exchange with all its attempts",
        other_words: &[(
            &["check"],
            "write `health_check: {timeout: 1s}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.tls",
        value: keys(),
        default: Words("none"),
        doc: "TLS 1.2 and 1.3 towards the backends, checks included; `tls: {}` is enough where \
              the machine believes their authority",
        differs: Pool(|a, b| a.tls != b.tls),
        other_words: &[(&["sslmode"], "write `tls: {ca: FILE}` in the pool")],
        value_hints: &[
            (
                &["true", "on", "yes", "enabled"],
                "write `tls: {}`: certificates are verified with the system's CA certificates",
            ),
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "remove the key: without it there is no TLS",
            ),
            (&["none"], "remove the key: without it there is no TLS"),
        ],
        ..KEY
    },
    backend_tls::ca("pools.NAME.tls.ca"),
    backend_tls::server_name("pools.NAME.tls.server_name"),
    backend_tls::verify("pools.NAME.tls.verify"),
    backend_tls::client_cert("pools.NAME.tls.client_cert"),
    backend_tls::client_key("pools.NAME.tls.client_key"),
    KeyRow {
        path: "pools.NAME.keepalive",
        value: keys(),
        default: Nothing,
        doc: "idle connections to backends",
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "none", "0"],
                "write `keepalive: {idle_per_backend: 0}`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: connections are kept by default",
            ),
            (&["DURATION"], "write `keepalive: {idle_timeout: {value}}`"),
            (
                &["NUMBER"],
                "write `keepalive: {idle_per_backend: {value}}`",
            ),
        ],
        differs: Pool(|a, b| a.keepalive != b.keepalive),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.keepalive.idle_per_backend",
        value: integer(0, 65_535),
        default: Value("64"),
        doc: "per backend and worker; 0 closes each after its exchange",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.keepalive.idle_timeout",
        value: duration(ONE_MILLISECOND, ONE_HOUR),
        default: Value("4s"),
        doc: "keep it below the backend's own",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.keepalive.max_age",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("10m"),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.keepalive.max_requests",
        value: integer(1, 1_000_000_000).or("none"),
        default: Value("none"),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.limits",
        value: keys(),
        default: Nothing,
        value_hints: &[
            (
                &["0", "none", "off"],
                "remove the key: without it there are no limits",
            ),
            (
                &["NUMBER"],
                "write `limits: {connections_per_backend: {value}}`",
            ),
        ],
        other_words: &[
            (
                &[
                    "maxconn",
                    "max_conns",
                    "max_connections",
                    "connection_limit",
                ],
                "write `limits: {connections_per_backend: 100}`",
            ),
            (
                &["circuit_breakers", "circuit_breaker"],
                "write `limits: {connections_per_backend: 100}` for the limits, and `ejection` to leave failing backends out",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.limits.connections_per_backend",
        value: integer(1, 1_000_000).or("none"),
        default: Value("none"),
        doc: "exchanges or sessions at a time on each backend",
        differs: Pool(|a, b| a.connections_per_backend != b.connections_per_backend),
        other_words: &[(
            &[
                "maxconn",
                "max_conns",
                "max_connections",
                "connection_limit",
            ],
            "write `limits: {connections_per_backend: 100}`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.limits.queue",
        value: integer(0, 1_000_000),
        default: Value("1000"),
        doc: "requests and sessions that wait while all backends are at their limit; 0: none \
              waits. See [below](#the-queue)",
        differs: Pool(|a, b| a.queue != b.queue),
        value_hints: &[(&["none", "off", "false", "no"], "write 0: nothing waits")],
        other_words: &[(
            &[
                "maxqueue",
                "max_queue",
                "queue_size",
                "max_pending_requests",
                "max_pending",
                "backlog",
            ],
            "write `queue: 1000`: requests and sessions that wait, of the whole pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.limits.queue_timeout",
        value: duration(ONE_MILLISECOND, ONE_HOUR),
        default: Value("5s"),
        doc: "longest wait in the queue; then 503. Cannot be `none`",
        differs: Pool(|a, b| a.queue_timeout != b.queue_timeout),
        other_words: &[(
            &[
                "timeout_queue",
                "timeout queue",
                "max_wait",
                "pending_timeout",
            ],
            "write `limits: {queue_timeout: 5s}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.limits.streams_per_connection",
        value: integer(1, 1000),
        default: Value("100"),
        doc: "with `protocol: h2` or `h2c`: requests at a time on one connection. Fewer where \
              the backend allows fewer (SETTINGS_MAX_CONCURRENT_STREAMS), and for a while after \
              it has refused requests on a connection that was full",
        differs: Pool(|a, b| a.streams_per_connection != b.streams_per_connection),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.when_all_down",
        value: one_of(WhenAllDown::NAMES),
        default: Value("reject"),
        doc: "reject: 502; fail_open: every backend gets traffic",
        differs: Pool(|a, b| a.when_all_down != b.when_all_down),
        ..KEY
    },
];
