//! The keys of `pools.NAME.health_check` and `pools.NAME.ejection`.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::{Value, Words},
    KeyRow, backend_tls,
    spec::{
        MIN_CHECK_INTERVAL, ONE_DAY, ONE_HOUR, ONE_MILLISECOND, TOKEN_PATTERN, boolean, duration,
        integer, keys, one_of, share, text,
    },
};
use crate::config::model::{CheckType, OnDown, PostgresTarget, RedisRole};

pub(super) static HEALTH_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.health_check",
        value: keys().or("none"),
        default: Words("a tcp check"),
        doc: "asks every backend, at once and then in every interval",
        differs: Pool(|a, b| a.health_check != b.health_check),
        other_words: &[(
            &["check", "health", "healthcheck", "health_checks"],
            "balancer calls this `health_check`",
        )],
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "write `health_check: none`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: every pool is checked by connecting to its backends",
            ),
            (&["DURATION"], "write `health_check: {interval: {value}}`"),
            (&["NUMBER"], "write `health_check: {interval: {value}s}`"),
            (&["/*"], "write `health_check: {path: {value}}`"),
            (
                &["tcp", "http", "grpc", "redis", "mysql", "postgres", "smtp"],
                "write `health_check: {type: {value}}`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.type",
        value: one_of(CheckType::NAMES),
        default: Words("tcp; http with `path`"),
        doc: "tcp: the connection is accepted, and answers `steps`; http: asked by the pool's \
              `protocol`; grpc: `grpc.health.v1.Health/Check` says SERVING; the others: the \
              server answers and is ready, see \
              [operations.md](operations.md#checks-of-databases-and-mail-servers)",
        other_words: &[
            (&["grpc_health_check"], "write `health_check: {type: grpc}`"),
            (
                &["redis_check", "mysql_check", "pgsql_check", "smtpchk"],
                "write `health_check: {type: TYPE}`: `redis`, `mysql`, `postgres` or `smtp`",
            ),
        ],
        other_values: &[
            ("https", "http"),
            ("http1", "http"),
            ("http2", "http"),
            ("postgresql", "postgres"),
            ("pgsql", "postgres"),
            ("mariadb", "mysql"),
            ("valkey", "redis"),
            ("mail", "smtp"),
            ("esmtp", "smtp"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.path",
        value: text("path").pattern("^/"),
        default: Value("/"),
        doc: "what an http check asks for",
        other_words: &[
            (
                &["health_uri", "health_path", "healthcheck_path", "uri"],
                "write `health_check: {path: PATH}` in the pool",
            ),
            (
                &["http_check", "httpchk"],
                "write `health_check: {path: PATH}`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.method",
        value: text("name").pattern(TOKEN_PATTERN),
        default: Value("GET"),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.host",
        value: text("name"),
        default: Words("the address"),
        doc: "the `Host` header, or `:authority`; of an smtp check the name in EHLO",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.headers",
        value: text("value")
            .map_of("header")
            .shown("map of headers and values"),
        default: Words("none"),
        doc: "further request headers of an http check; `User-Agent` replaces `balancer-check`",
        other_words: &[(
            &["health_headers", "request_headers_to_add"],
            "write `health_check: {headers: {NAME: VALUE}}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.expect",
        value: text("status")
            .one_or_more()
            .shown("status, range, class or list"),
        default: Value("200-399"),
        doc: "`200`, `200-299`, `2xx`",
        other_words: &[(
            &["health_status"],
            "write `health_check: {expect: STATUS}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.expect_headers",
        value: text("whole value")
            .or_keys()
            .map_of("header")
            .shown("map of headers and whole values or keys"),
        default: Words("none"),
        doc: "what the response must have: a header with this value, or as the keys say",
        other_words: &[(
            &["expected_headers"],
            "write `health_check: {expect_headers: {NAME: VALUE}}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.expect_headers.NAME.regex",
        value: text("regular expression"),
        doc: "matches the whole value",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.expect_headers.NAME.present",
        value: boolean(),
        doc: "true: the header is there, with any value; false: it is not",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.body",
        value: text("text of 1 to 4096 bytes")
            .or_keys()
            .shown("text of 1 to 4096 bytes, or keys"),
        default: Words("none"),
        doc: "must occur in the first 64 KiB of the response",
        other_words: &[(
            &["health_body"],
            "write `health_check: {body: TEXT}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.body.regex",
        value: text("regular expression"),
        doc: "must match somewhere in them",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.service",
        value: text("name"),
        default: Words("the server as a whole"),
        doc: "the service that a grpc check asks for, such as `shop.v1.Orders`",
        other_words: &[(
            &["service_name"],
            "balancer calls this `service`, in a check of `type: grpc`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps",
        value: keys().non_empty_list().shown("list of 1 to 32"),
        default: Words("none"),
        doc: "of a tcp check: what is sent, and what must come then, see \
              [operations.md](operations.md#checks-in-steps)",
        other_words: &[(
            &["tcp_check", "tcp_checks"],
            "write `health_check: {steps: [{send: TEXT, expect: TEXT}]}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].send",
        value: text("text of 1 to 4096 bytes")
            .or_keys()
            .shown("text of 1 to 4096 bytes, or keys"),
        default: Words("nothing"),
        doc: "`\\r`, `\\n`, `\\t`, `\\0` and `\\xHH` stand for bytes, `\\\\` for a backslash",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].send.hex",
        value: text("pairs of hexadecimal digits"),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].send.secret_file",
        value: text("path"),
        doc: "the bytes of this file, without its last line end; read at the start and at each \
              reload",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].expect",
        value: text("text of 1 to 4096 bytes")
            .or_keys()
            .shown("text of 1 to 4096 bytes, or keys"),
        default: Words("nothing"),
        doc: "must occur in the next 64 KiB that the backend sends; escapes as in `send`",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].expect.hex",
        value: text("pairs of hexadecimal digits"),
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.steps[].expect.regex",
        value: text("regular expression"),
        doc: "must match somewhere in what has arrived",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.user",
        value: text("name of 1 to 64 bytes"),
        default: Words("`balancer`; of a redis check Redis's own `default`"),
        doc: "who a redis, mysql or postgres check says it is",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.password_file",
        value: text("path"),
        default: Words("none: no login"),
        doc: "a redis or postgres check logs in with the password in this file, read at the \
              start and at each reload, without its last line end",
        section_words: &[(
            &["password"],
            "put it into a file of its own, and name that with `password_file`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.role",
        value: one_of(RedisRole::NAMES),
        default: Words("either"),
        doc: "the role that a Redis server must have",
        other_values: &[
            ("slave", "replica"),
            ("primary", "master"),
            ("secondary", "replica"),
            ("leader", "master"),
            ("follower", "replica"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.database",
        value: text("name of 1 to 64 bytes"),
        default: Words("that of the user's name"),
        doc: "the database that a postgres check logs in to",
        section_words: &[(&["dbname"], "balancer calls this `database`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.target",
        value: one_of(PostgresTarget::NAMES),
        default: Value("any"),
        doc: "what a PostgreSQL server must be; `primary` and `standby` log in and ask",
        section_words: &[(
            &["target_session_attrs"],
            "balancer calls this `target`: `primary`, `standby` or `any`",
        )],
        other_values: &[
            ("master", "primary"),
            ("read-write", "primary"),
            ("replica", "standby"),
            ("read-only", "standby"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.tls",
        value: keys().or("none"),
        default: Words("that of the backend or the pool"),
        doc: "`tls` of checks alone; `none`: checks are plain",
        section_words: &[(&["ssl"], "balancer calls this `tls`, with keys of its own")],
        ..KEY
    },
    backend_tls::ca("pools.NAME.health_check.tls.ca"),
    backend_tls::server_name("pools.NAME.health_check.tls.server_name"),
    backend_tls::verify("pools.NAME.health_check.tls.verify"),
    backend_tls::client_cert("pools.NAME.health_check.tls.client_cert"),
    backend_tls::client_key("pools.NAME.health_check.tls.client_key"),
    KeyRow {
        path: "pools.NAME.health_check.port",
        value: integer(1, 65_535),
        default: Words("the backend's"),
        doc: "an error where a backend is a unix socket",
        other_words: &[(
            &["health_port"],
            "write `health_check: {port: NUMBER}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.interval",
        value: duration(MIN_CHECK_INTERVAL, ONE_HOUR),
        default: Value("2s"),
        doc: "from one check to the next, give or take 10 %; a backend that is down because it \
              refuses connections is asked four times as often (100 ms at least, 64 such \
              backends at a time), as that costs it nothing",
        other_words: &[
            (
                &["health_interval"],
                "write `health_check: {interval: DURATION}` in the pool",
            ),
            (
                &["inter"],
                "write `health_check: {interval: DURATION}` in the pool",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.interval_down",
        value: duration(MIN_CHECK_INTERVAL, ONE_HOUR),
        default: Words("as `interval`"),
        doc: "the same while the checks say that the backend is down, refused connections \
              included",
        other_words: &[(
            &["downinter", "unhealthy_interval"],
            "write `health_check: {interval_down: DURATION}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.interval_starting",
        value: duration(MIN_CHECK_INTERVAL, ONE_HOUR),
        default: Words("as `interval` or `interval_down`"),
        doc: "the same until the first good check of a backend, refused connections included",
        other_words: &[(
            &["fastinter", "no_traffic_interval"],
            "write `health_check: {interval_starting: DURATION}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.timeout",
        value: duration(ONE_MILLISECOND, ONE_HOUR),
        default: Value("1s"),
        doc: "for the whole check",
        other_words: &[(
            &["health_timeout"],
            "write `health_check: {timeout: DURATION}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.rise",
        value: integer(1, 100),
        default: Value("2"),
        doc: "good checks in a row until up",
        other_words: &[(&["healthy_threshold"], "balancer calls this `rise`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.fall",
        value: integer(1, 100),
        default: Value("3"),
        doc: "bad checks in a row until down",
        other_words: &[(&["unhealthy_threshold"], "balancer calls this `fall`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.on_down",
        value: one_of(OnDown::NAMES),
        default: Value("keep"),
        doc: "close: when the checks take a backend down, its TCP sessions and tunnels \
              (WebSocket and other upgrades) are reset, with the reason `backend_down`; requests \
              under way finish",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection",
        value: keys().or("none"),
        default: Words("on"),
        doc: "takes a backend out that fails real traffic; `none` by a reload frees all at once; \
              see [operations.md](operations.md#ejection)",
        differs: Pool(|a, b| a.ejection != b.ejection),
        other_words: &[(&["outlier_detection"], "balancer calls this `ejection`")],
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "write `ejection: none`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: failing backends are ejected by default",
            ),
            (&["DURATION"], "write `ejection: {eject_for: {value}}`"),
            (&["NUMBER"], "write `ejection: {failures: {value}}`"),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.failures",
        value: integer(1, 1000),
        default: Value("5"),
        doc: "failures in a row",
        other_words: &[(
            &[
                "max_fails",
                "consecutive_5xx",
                "consecutive_gateway_failure",
            ],
            "write `ejection: {failures: NUMBER}` in the pool; `status` beside it says which responses count",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.eject_for",
        value: duration(ONE_MILLISECOND, ONE_DAY),
        default: Value("10s"),
        doc: "the first time; doubled each time",
        other_words: &[(
            &["fail_timeout"],
            "write `ejection: {eject_for: DURATION}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.max_eject_for",
        value: duration(ONE_MILLISECOND, ONE_DAY),
        default: Value("5m"),
        doc: "the longest time; without the key `eject_for` where that is longer",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.max_ejected",
        value: share(),
        default: Value("50%"),
        doc: "of the pool that may be out at once, rounded down, backends that checks took down \
              included: of 10 backends one at 10 %, none at 9 % (a warning). Of two or three one \
              may go at any share above 0 %; the last one that serves never. `0%` ejects none, \
              and by a reload frees all at once",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.failure_rate",
        value: share().or("none"),
        default: Value("none"),
        doc: "share of failures in the last 10 s that ejects a backend, beside `failures`; above 0 %",
        other_words: &[(
            &["failure_percentage_threshold", "error_rate"],
            "write `ejection: {failure_rate: SHARE}` in the pool",
        )],
        value_hints: &[(&["off", "false", "no", "disabled", "never"], "write `none`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.min_requests",
        value: integer(1, 1_000_000),
        default: Value("20"),
        doc: "requests to the backend in the last 10 s that `failure_rate` needs",
        other_words: &[(
            &["failure_percentage_request_volume", "request_volume"],
            "write `ejection: {min_requests: NUMBER}` in the pool",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.ejection.status",
        value: text("status")
            .one_or_more()
            .shown("5xx status, range, class or list"),
        default: Words("none"),
        doc: "responses that are failures: `503`, `500-504`, `5xx`. They are passed on as they are",
        ..KEY
    },
];
