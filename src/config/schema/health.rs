//! The keys of `pools.NAME.health_check` and `pools.NAME.ejection`.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::{Value, Words},
    KeyRow,
    spec::{
        MIN_CHECK_INTERVAL, ONE_DAY, ONE_HOUR, ONE_MILLISECOND, TOKEN_PATTERN, duration, integer,
        keys, one_of, share, text,
    },
};
use crate::config::model::{CheckType, OnDown};

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
                &["tcp", "http", "grpc"],
                "write `health_check: {type: {value}}`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.health_check.type",
        value: one_of(CheckType::NAMES),
        default: Words("tcp; http with `path`"),
        doc: "tcp: the connection is accepted; http: asked by the pool's `protocol`; grpc: \
              `grpc.health.v1.Health/Check` says SERVING",
        other_words: &[(&["grpc_health_check"], "write `health_check: {type: grpc}`")],
        other_values: &[("https", "http"), ("http1", "http"), ("http2", "http")],
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
        doc: "the `Host` header, or `:authority`",
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
        path: "pools.NAME.health_check.body",
        value: text("text of 1 to 4096 bytes"),
        default: Words("none"),
        doc: "must occur in the first 64 KiB of the response",
        other_words: &[(
            &["health_body"],
            "write `health_check: {body: TEXT}` in the pool",
        )],
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
            &["max_fails"],
            "write `ejection: {failures: NUMBER}` in the pool",
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
];
