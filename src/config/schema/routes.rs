//! The keys of `routes[]`.

use super::{
    KEY,
    KeyDefault::{Nothing, Required, Value, Words},
    KeyRow,
    pools::TIMEOUTS_VALUE_HINTS,
    spec::{
        ONE_DAY, ONE_HOUR, ONE_MILLISECOND, ONE_WEEK, REDIRECT_STATUSES, TOKEN_PATTERN, boolean,
        duration, integer, keys, networks, one_of, rate, share, text,
    },
};
use crate::config::model::RetryCondition;

pub(super) static ROUTE_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "routes[].first",
        value: boolean(),
        default: Value("false"),
        doc: "goes before all routes that are not `first`, and before the `redirect` of a \
              listener",
        ..KEY
    },
    KeyRow {
        path: "routes[].listeners",
        value: text("name").one_or_more(),
        default: Words("all http listeners"),
        doc: "a route that names the listener goes before those that name none",
        ..KEY
    },
    KeyRow {
        path: "routes[].host",
        value: text("name").one_or_more(),
        default: Words("any"),
        doc: "`api.example.com`, or `*.example.com` for every name below it; without a port",
        other_words: &[
            (&["domains"], "balancer calls this `host`"),
            (&["server_name"], "balancer calls this `host`, in `routes`"),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].path",
        value: text("path").pattern("^/"),
        default: Words("any"),
        doc: "this path and all below it, by whole segments: `/a` takes `/a` and `/a/b`, not \
              `/ab`",
        other_words: &[(
            &["path_prefix", "prefix", "uri"],
            "balancer calls this `path`",
        )],
        ..KEY
    },
    KeyRow {
        path: "routes[].path_exact",
        value: text("path").pattern("^/"),
        default: Words("any"),
        doc: "only this path",
        ..KEY
    },
    KeyRow {
        path: "routes[].path_regex",
        value: text("regular expression, at most 1024 bytes"),
        default: Words("any"),
        doc: "must match the whole path, see above. At most one of the three path keys",
        ..KEY
    },
    KeyRow {
        path: "routes[].method",
        value: text("name").pattern(TOKEN_PATTERN).one_or_more(),
        default: Words("any"),
        doc: "as sent: `GET`",
        ..KEY
    },
    KeyRow {
        path: "routes[].headers",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Words("any"),
        doc: "all must hold; the value is compared as it is, `\"*\"`: the header only has to be \
              there. `Upgrade`, `Connection`, `TE`, `Keep-Alive` and `Transfer-Encoding` are \
              what the client sent; one of their words is enough, without regard to case. \
              `{Upgrade: websocket}` takes the WebSockets of HTTP/2 too",
        ..KEY
    },
    KeyRow {
        path: "routes[].pool",
        value: text("name of a pool"),
        default: Nothing,
        doc: "exactly one of `pool`, `split`, `redirect` and `respond`",
        other_words: &[(&["cluster", "service"], "balancer calls this `pool`")],
        section_words: &[(&["backend", "upstream"], "balancer calls this `pool`")],
        ..KEY
    },
    KeyRow {
        path: "routes[].split",
        value: integer(0, 256)
            .map_of("names of pools")
            .shown("map of names of pools to 0 to 256"),
        default: Nothing,
        doc: "each request goes to one of these pools by chance, each its share of the sum: \
              `{stable: 9, canary: 1}`. 0: none. Further attempts stay in the pool that was picked, and clients with a \
              [sticky](#sticky-sessions) cookie in their pool",
        other_words: &[(
            &[
                "canary",
                "split_clients",
                "traffic split",
                "traffic_split",
                "trafficsplit",
                "weighted",
                "weighted_clusters",
            ],
            "write `split: {stable: 9, canary: 1}` in a route",
        )],
        ..KEY
    },
    KeyRow {
        path: "routes[].redirect",
        value: keys().or("https"),
        default: Nothing,
        ..KEY
    },
    KeyRow {
        path: "routes[].redirect.to",
        value: text("`https`, a URL or a path").pattern("^(https$|https?://|/)"),
        default: Required,
        section_words: &[(&["target", "url", "location"], "balancer calls this `to`")],
        doc: "as for listeners",
        ..KEY
    },
    KeyRow {
        path: "routes[].redirect.port",
        value: integer(1, 65_535),
        default: Value("443"),
        doc: "with `to: https`",
        ..KEY
    },
    KeyRow {
        path: "routes[].redirect.status",
        value: one_of(REDIRECT_STATUSES).shown("301, 302, 303, 307 or 308"),
        default: Value("308"),
        ..KEY
    },
    KeyRow {
        path: "routes[].respond",
        value: keys(),
        default: Nothing,
        doc: "a fixed response",
        value_hints: &[(&["NUMBER"], "write `respond: {status: {value}}`")],
        ..KEY
    },
    KeyRow {
        path: "routes[].respond.status",
        value: integer(200, 599),
        default: Value("200"),
        ..KEY
    },
    KeyRow {
        path: "routes[].respond.body",
        value: text("text, at most 64 KiB"),
        default: Words("empty"),
        ..KEY
    },
    KeyRow {
        path: "routes[].respond.content_type",
        value: text("media type"),
        default: Value("text/plain; charset=utf-8"),
        doc: "not with 204, 205 and 304, which have no body",
        ..KEY
    },
    KeyRow {
        path: "routes[].respond.headers",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Value("{}"),
        doc: "fields of the response; the same names as in `response_headers` are refused",
        ..KEY
    },
    KeyRow {
        path: "routes[].rewrite",
        value: keys(),
        default: Nothing,
        doc: "what the backend gets instead, see below; not with `redirect` and `respond`",
        value_hints: &[(&["/*"], "write `rewrite: {path: {value}}`")],
        other_words: &[
            (
                &["add_prefix", "addprefix"],
                "write `rewrite: {path: /prefix}` in a route with `path: /`",
            ),
            (
                &["pass_host_header", "passhostheader"],
                "the host is kept; `rewrite: {host: NAME}` in a route sends another",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].rewrite.path",
        value: text("path, at most 1024 bytes").pattern("^/"),
        default: Words("the client's"),
        doc: "replaces what was matched. Not with `strip_prefix`",
        other_words: &[
            (
                &["path_rewrite", "rewrite_target"],
                "write `rewrite: {path: /new}` in a route",
            ),
            (
                &["prefix_rewrite"],
                "write `rewrite: {path: /new}` in a route with `path`",
            ),
            (
                &[
                    "regex_rewrite",
                    "replacement",
                    "replacepathregex",
                    "stripprefixregex",
                ],
                "write `rewrite: {path: /$1}` in a route with `path_regex`",
            ),
            (
                &["replace_path", "replacepath"],
                "write `rewrite: {path: /new}` in a route with `path_exact`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].rewrite.strip_prefix",
        value: text("path, at most 1024 bytes").pattern("^/"),
        default: Words("none"),
        doc: "is taken off the beginning, by whole segments. A path that does not begin with it \
              goes on as it came",
        other_words: &[(
            &["strip_path", "stripprefix"],
            "write `rewrite: {strip_prefix: /api}` in a route",
        )],
        ..KEY
    },
    KeyRow {
        path: "routes[].rewrite.host",
        value: text("name, with or without a port"),
        default: Words("the client's"),
        doc: "the `Host` that the backend gets; `X-Forwarded-Host` keeps the client's",
        other_words: &[(
            &["host_rewrite", "host_rewrite_literal"],
            "write `rewrite: {host: NAME}` in a route",
        )],
        ..KEY
    },
    KeyRow {
        path: "routes[].request_headers",
        value: keys(),
        default: Nothing,
        doc: "changes what the backend gets: first `remove`, then `set`, then `add`",
        other_words: &[
            (
                &[
                    "custom_request_headers",
                    "customrequestheaders",
                    "proxy_set_header",
                    "set_header",
                ],
                "write `request_headers: {set: {X-Name: value}}` in a route",
            ),
            (
                &["request_headers_to_add"],
                "write `request_headers: {add: {X-Name: value}}` in a route",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].request_headers.set",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Value("{}"),
        doc: "replaces every field of the name, those that balancer adds too \
              (`X-Forwarded-Proto`, `Via`). Fields of the connection, the framing and `Expect` \
              cannot be changed; `Host` only here",
        ..KEY
    },
    KeyRow {
        path: "routes[].request_headers.add",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Value("{}"),
        doc: "adds a field",
        ..KEY
    },
    KeyRow {
        path: "routes[].request_headers.remove",
        value: text("name").pattern(TOKEN_PATTERN).one_or_more(),
        default: Words("none"),
        doc: "a final `*` stands for any end of a name: `X-Internal-*`. It takes the fields \
              that balancer adds too, but never `Host`, `Expect` and those of the connection and \
              the framing",
        ..KEY
    },
    KeyRow {
        path: "routes[].response_headers",
        value: keys(),
        default: Nothing,
        doc: "changes what the client gets from the route: the responses of backends, its \
              `respond` and `redirect`, 403, 429, and the errors of balancer's own. Of \
              errors what describes the body and keeps it out of caches stays as it is: \
              `Content-*` (but `Content-Security-Policy`), `Cache-Control` and the like, \
              `grpc-*`",
        other_words: &[
            (
                &["add_header", "response_headers_to_add"],
                "write `response_headers: {add: {X-Name: value}}` in a route",
            ),
            (
                &["custom_response_headers", "customresponseheaders"],
                "write `response_headers: {set: {X-Name: value}}` in a route",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].response_headers.set",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Value("{}"),
        ..KEY
    },
    KeyRow {
        path: "routes[].response_headers.add",
        value: text("value")
            .map_of("names")
            .shown("map of names to values"),
        default: Value("{}"),
        ..KEY
    },
    KeyRow {
        path: "routes[].response_headers.remove",
        value: text("name").pattern(TOKEN_PATTERN).one_or_more(),
        default: Words("none"),
        doc: "a final `*` as for requests",
        ..KEY
    },
    KeyRow {
        path: "routes[].timeouts",
        value: keys(),
        default: Words("the pool's"),
        doc: "what is given overrides the pool's",
        value_hints: TIMEOUTS_VALUE_HINTS,
        ..KEY
    },
    KeyRow {
        path: "routes[].timeouts.connect",
        value: duration(ONE_MILLISECOND, ONE_HOUR),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].timeouts.response",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].timeouts.idle",
        value: duration(ONE_MILLISECOND, ONE_WEEK).or("none"),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].timeouts.total",
        value: duration(ONE_MILLISECOND, ONE_DAY).or("none"),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].retries",
        value: keys().or("none"),
        default: Words("the pool's"),
        doc: "what is given overrides the pool's",
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0"],
                "write `retries: none`",
            ),
            (&["NUMBER"], "write `retries: {attempts: {value}}`"),
        ],
        ..KEY
    },
    KeyRow {
        path: "routes[].retries.attempts",
        value: integer(0, 10),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].retries.budget",
        value: share(),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].retries.conditions",
        value: one_of(RetryCondition::NAMES)
            .one_or_more()
            .shown("word or list"),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].retries.methods",
        value: text("name").pattern(TOKEN_PATTERN).one_or_more(),
        default: Words("the pool's"),
        ..KEY
    },
    KeyRow {
        path: "routes[].rate_limit",
        value: keys().or("none"),
        default: Words("the listener's"),
        doc: "the route's requests count here instead, whichever listener they come to; none: \
              they are not limited",
        ..KEY
    },
    KeyRow {
        path: "routes[].rate_limit.per_client",
        value: rate(),
        default: Required,
        ..KEY
    },
    KeyRow {
        path: "routes[].rate_limit.burst",
        value: integer(1, 1_000_000),
        default: Words("the requests of one second, at least 1"),
        ..KEY
    },
    KeyRow {
        path: "routes[].allow",
        value: networks().one_or_more().shown("networks, at least one"),
        default: Words("all"),
        doc: "clients that may use the route, by [the client's address](#the-clients-address); \
              others get 403",
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
            "write `allow: [10.0.0.0/8]` in the route",
        )],
        ..KEY
    },
];
