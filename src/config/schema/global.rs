//! The keys at the top of the file, and those of the sections there.

use tracing::level_filters::LevelFilter;

use super::{
    KEY,
    KeyComparison::File,
    KeyDefault::{Nothing, Required, Value, Words},
    KeyEffect::Restart,
    KeyRow,
    spec::{
        NAME_PATTERN, ONE_DAY, ONE_HOUR, ONE_MILLISECOND, ZERO_DURATION, boolean, duration, header,
        integer, keys, networks, one_of, share, text,
    },
};
use crate::{
    config::model::{AccessFormat, ErrorFormat, LogFormat, PerBackend, ValueSet as _},
    reason::StatusProfile,
};

pub(super) static GLOBAL_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "version",
        value: one_of(&["1"]).shown("1"),
        default: Value("1"),
        doc: "the version of this format",
        ..KEY
    },
    KeyRow {
        path: "workers",
        value: integer(1, 1024).or("auto"),
        default: Value("auto"),
        doc: "threads that carry traffic; auto: the cores that affinity and cgroup leave",
        effect: Restart,
        differs: File(|a, b| a.workers != b.workers),
        other_words: &[(
            &["nbthread", "worker_processes"],
            "balancer calls this `workers`",
        )],
        ..KEY
    },
    KeyRow {
        path: "max_connections",
        value: integer(1, 10_000_000).or("auto"),
        default: Value("auto"),
        doc: "client connections at a time; auto: from the open-file limit, see \
              [Limits](operations.md#limits)",
        differs: File(|a, b| a.max_connections != b.max_connections),
        other_words: &[(
            &["maxconn", "worker_connections"],
            "balancer calls this `max_connections`",
        )],
        ..KEY
    },
    KeyRow {
        path: "drain",
        value: keys(),
        default: Nothing,
        doc: "how balancer leaves on SIGTERM",
        value_hints: &[
            (&["DURATION"], "write `drain: {timeout: {value}}`"),
            (&["NUMBER"], "write `drain: {timeout: {value}s}`"),
        ],
        differs: File(|a, b| a.drain != b.drain),
        ..KEY
    },
    KeyRow {
        path: "drain.delay",
        value: duration(ZERO_DURATION, ONE_HOUR),
        default: Value("0s"),
        doc: "how long it goes on accepting after `/readyz` says 503",
        ..KEY
    },
    KeyRow {
        path: "drain.timeout",
        value: duration(ZERO_DURATION, ONE_DAY),
        default: Value("30s"),
        doc: "how long open work may then take before it is cut",
        ..KEY
    },
    KeyRow {
        path: "admin",
        value: keys(),
        default: Nothing,
        doc: "the admin API",
        value_hints: &[
            (&["unix:*"], "write `admin: {bind: {value}}`"),
            (
                &["127.*", "[::1]*"],
                "write `admin: {bind: \"{value}\", token_file: FILE}`",
            ),
            (
                &["NUMBER"],
                "write `admin: {bind: 127.0.0.1:{value}, token_file: FILE}`",
            ),
            (
                &["off", "false", "no", "disabled", "never", "none"],
                "remove the key: the admin API cannot be switched off, and is a unix socket by default",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: the admin API is on by default, as a unix socket",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "admin.bind",
        value: text("`unix:PATH` or a loopback address with a port"),
        default: Words("a socket in the runtime directory"),
        doc: "where it listens; a bare port is one of 127.0.0.1. A reload is refused if the new \
              address cannot be listened on",
        effect: Restart,
        differs: File(|a, b| a.admin.bind != b.admin.bind),
        ..KEY
    },
    KeyRow {
        path: "admin.token_file",
        value: text("path of a file, at most 4 KiB"),
        default: Words("none"),
        doc: "the bearer token; required when `admin.bind` is a loopback address. It is read \
              again for each request, so a new token holds at once; while the file cannot be \
              read, the last one does",
        effect: Restart,
        differs: File(|a, b| a.admin.token_file != b.admin.token_file),
        ..KEY
    },
    KeyRow {
        path: "metrics",
        value: keys(),
        default: Nothing,
        doc: "the scrape",
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0", "none"],
                "write `metrics: {bind: none}`",
            ),
            (&["NUMBER"], "write `metrics: {bind: {value}}`"),
            (
                &[":*", "127.*", "0.0.0.0:*", "[::*"],
                "write `metrics: {bind: \"{value}\"}`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key: metrics are at 127.0.0.1:9900 by default",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "metrics.bind",
        value: text("address and port, a bare port").or("none"),
        default: Value("127.0.0.1:9900"),
        doc: "where `/metrics`, `/livez` and `/readyz` are. A bare port is one of 127.0.0.1; \
              `\":9900\"` is every address. A reload is refused if the new address cannot be \
              listened on",
        effect: Restart,
        differs: File(|a, b| a.metrics.bind != b.metrics.bind),
        ..KEY
    },
    KeyRow {
        path: "metrics.per_backend",
        value: one_of(PerBackend::NAMES),
        default: Value("full"),
        doc: "which `balancer_backend_*` series there are",
        differs: File(|a, b| a.metrics.per_backend != b.metrics.per_backend),
        ..KEY
    },
    KeyRow {
        path: "log",
        value: keys(),
        default: Nothing,
        doc: "balancer's own log, on standard error",
        value_hints: &[
            (
                &["error", "warn", "info", "debug", "trace"],
                "write `log: {level: {value}}`",
            ),
            (&["warning"], "write `log: {level: warn}`"),
            (&["json", "text", "auto"], "write `log: {format: {value}}`"),
            (
                &["off", "false", "no", "disabled", "none"],
                "write `log: {level: error}` for the fewest lines; the log cannot be switched off",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "log.level",
        value: one_of(LevelFilter::NAMES),
        default: Value("info"),
        doc: "how much",
        differs: File(|a, b| a.log.level != b.log.level),
        other_values: &[("warning", "warn"), ("notice", "info"), ("err", "error")],
        ..KEY
    },
    KeyRow {
        path: "log.format",
        value: one_of(LogFormat::NAMES),
        default: Value("auto"),
        doc: "auto: text on a terminal, JSON elsewhere",
        effect: Restart,
        differs: File(|a, b| a.log.format != b.log.format),
        ..KEY
    },
    KeyRow {
        path: "access_log",
        value: keys(),
        default: Nothing,
        doc: "one line per exchange or session",
        differs: File(|a, b| a.access_log != b.access_log),
        other_words: &[(&["accesslog"], "balancer calls this `access_log`")],
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0", "none"],
                "write `access_log: {output: none}`",
            ),
            (
                &["stdout", "stderr", "file:*"],
                "write `access_log: {output: {value}}`",
            ),
            (&["/*", "./*"], "write `access_log: {output: file:{value}}`"),
            (
                &["json", "combined"],
                "write `access_log: {format: {value}}`",
            ),
            (
                &["true", "on", "yes", "enabled"],
                "remove the key, or write `access_log: {when: {sample: 100%}}` to log every request",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "access_log.output",
        value: text("`stdout`, `stderr`, `file:PATH` or `none`")
            .pattern("^(stdout|stderr|none|file:.+)$"),
        default: Value("stdout"),
        doc: "a file is reopened on SIGUSR1; its directory must exist",
        other_words: &[(
            &["access_log_path"],
            "write `access_log: {output: file:PATH}`",
        )],
        ..KEY
    },
    KeyRow {
        path: "access_log.format",
        value: one_of(AccessFormat::NAMES),
        default: Value("json"),
        ..KEY
    },
    KeyRow {
        path: "access_log.when",
        value: keys(),
        default: Nothing,
        doc: "a line is written when any of these holds, or when there is a reason",
        ..KEY
    },
    KeyRow {
        path: "access_log.when.min_status",
        value: integer(100, 599),
        default: Value("500"),
        doc: "a status of at least this",
        ..KEY
    },
    KeyRow {
        path: "access_log.when.slower_than",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Value("none"),
        doc: "took longer than this",
        ..KEY
    },
    KeyRow {
        path: "access_log.when.sample",
        value: share(),
        default: Value("0%"),
        doc: "this share of all others",
        ..KEY
    },
    KeyRow {
        path: "access_log.headers",
        value: header().list().shown("list of header names"),
        default: Value("[]"),
        doc: "request headers to add to each line",
        ..KEY
    },
    KeyRow {
        path: "trusted_proxies",
        value: networks().or_keys().shown("networks or keys"),
        default: Value("[]"),
        doc: "peers whose forwarded headers and request ids are believed; those of all others \
              are removed or replaced. See [the client's address](#the-clients-address)",
        differs: File(|a, b| a.trusted_proxies != b.trusted_proxies),
        other_words: &[(
            &["real_ip_recursive", "trusted_ips", "trustedips"],
            "write `trusted_proxies: [10.0.0.0/8]` at the top level of the file",
        )],
        ..KEY
    },
    KeyRow {
        path: "trusted_proxies.from",
        value: networks(),
        default: Words("required with `client_header`"),
        doc: "the same, where keys are given",
        ..KEY
    },
    KeyRow {
        path: "trusted_proxies.client_header",
        value: header(),
        default: Words("none: `X-Forwarded-For`"),
        doc: "the header in which these proxies name the client's address, such as \
              `CF-Connecting-IP`",
        section_words: &[(&["header"], "balancer calls this `client_header`")],
        other_words: &[(
            &["real_ip_header"],
            "write `trusted_proxies: {from: [10.0.0.0/8], client_header: X-Real-IP}` at the top \
              level of the file",
        )],
        ..KEY
    },
    KeyRow {
        path: "resolvers",
        value: text("`ADDRESS` or `ADDRESS:PORT`").list(),
        default: Words("those of /etc/resolv.conf"),
        doc: "DNS servers that names of backends are resolved with, in any number up to 8; the port \
              is 53 unless given. See [names](#names)",
        differs: File(|a, b| a.resolvers != b.resolvers),
        other_words: &[
            (
                &["resolver"],
                "write `resolvers: [ADDRESS]` at the top level of the file",
            ),
            (
                &["nameserver", "nameservers", "dns_resolvers"],
                "balancer calls these `resolvers`, at the top level of the file",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "forwarded",
        value: keys(),
        default: Nothing,
        doc: "what backends are told about the client",
        value_hints: &[(
            &["off", "false", "no", "disabled", "none"],
            "write `forwarded: {x_forwarded: false, real_ip: none, via: false}`",
        )],
        differs: File(|a, b| a.forwarded != b.forwarded),
        ..KEY
    },
    KeyRow {
        path: "forwarded.x_forwarded",
        value: boolean(),
        default: Value("true"),
        doc: "`X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host`, and \
              `X-Forwarded-Port`, the local port that the client reached",
        ..KEY
    },
    KeyRow {
        path: "forwarded.real_ip",
        value: header().or("none"),
        default: Value("X-Real-IP"),
        doc: "set to the client's address",
        ..KEY
    },
    KeyRow {
        path: "forwarded.rfc7239",
        value: boolean(),
        default: Value("false"),
        doc: "`Forwarded`",
        ..KEY
    },
    KeyRow {
        path: "forwarded.via",
        value: boolean(),
        default: Value("true"),
        doc: "`Via`",
        ..KEY
    },
    KeyRow {
        path: "forwarded.request_id",
        value: header(),
        default: Value("X-Request-Id"),
        doc: "carries the id of the request",
        ..KEY
    },
    KeyRow {
        path: "errors",
        value: keys(),
        default: Nothing,
        doc: "error responses of balancer's own, see docs/reasons.md",
        value_hints: &[
            (
                &["json", "html", "auto"],
                "write `errors: {format: {value}}`",
            ),
            (&["unified", "split"], "write `errors: {status: {value}}`"),
            (&["/*", "./*"], "write `errors: {pages: {value}}`"),
        ],
        differs: File(|a, b| a.errors != b.errors),
        ..KEY
    },
    KeyRow {
        path: "errors.status",
        value: one_of(StatusProfile::NAMES),
        default: Value("unified"),
        doc: "unified: every failure of a backend is 502; split: timeouts 504, an empty pool 503",
        ..KEY
    },
    KeyRow {
        path: "errors.format",
        value: one_of(ErrorFormat::NAMES),
        default: Value("json"),
        doc: "auto: HTML for clients whose `Accept` prefers it",
        ..KEY
    },
    KeyRow {
        path: "errors.pages",
        value: text("path of a directory").or("none"),
        default: Value("none"),
        doc: "bodies of your own: files such as `502.html` and `503.json`, 400 to 599, at most \
              64 KiB each",
        ..KEY
    },
    KeyRow {
        path: "errors.override",
        value: integer(400, 599)
            .map_of("reason")
            .shown("map of reason to 400 to 599"),
        default: Value("{}"),
        doc: "another status for a reason: `{connection_timeout: 504}`",
        ..KEY
    },
    KeyRow {
        path: "listeners",
        value: keys()
            .map_of("names")
            .pattern(NAME_PATTERN)
            .shown("map of names"),
        default: Required,
        doc: "see below",
        other_words: &[(
            &["entrypoint", "entrypoints", "frontend", "frontends"],
            "balancer calls these `listeners`",
        )],
        ..KEY
    },
    KeyRow {
        path: "routes",
        value: keys().list().shown("list"),
        default: Value("[]"),
        doc: "see below",
        other_words: &[
            (
                &["location"],
                "balancer calls these `routes`, with a `path`",
            ),
            (&["routers"], "balancer calls these `routes`"),
            (
                &["virtual_hosts"],
                "balancer calls these `routes`, with a `host`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools",
        value: keys()
            .map_of("names")
            .pattern(NAME_PATTERN)
            .shown("map of names"),
        default: Value("{}"),
        doc: "see below",
        other_words: &[(
            &["backend", "clusters", "services", "upstream", "upstreams"],
            "balancer calls these `pools`",
        )],
        section_words: &[(
            &["backends", "servers"],
            "balancer calls these `pools`: `pools: {NAME: {backends: [HOST:PORT]}}`",
        )],
        ..KEY
    },
];
