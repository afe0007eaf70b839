//! The keys of `pools.NAME.sticky`.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::{Required, Value, Words},
    KeyRow,
    spec::{ONE_SECOND, ONE_YEAR, TOKEN_PATTERN, boolean, duration, keys, one_of, text},
};
use crate::config::model::{SameSite, SecureCookie};

pub(super) static STICKY_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.sticky",
        value: keys(),
        default: Words("none"),
        doc: "a cookie keeps each client on one backend, see [below](#sticky-sessions)",
        differs: Pool(|a, b| a.sticky != b.sticky),
        other_words: &[
            (
                &[
                    "sticky_cookie_insert",
                    "sticky_session",
                    "sticky_sessions",
                    "stickiness",
                    "session_affinity",
                    "session_affinity_config",
                    "sessionaffinity",
                    "session_persistence",
                    "session_stickiness",
                    "persistence",
                    "affinity",
                    "affinity_cookie",
                    "cookie_affinity",
                    "stateful_session",
                    "cookie_hash",
                ],
                "write `sticky: {cookie: lb}` in the pool",
            ),
            (
                &[
                    "appsession",
                    "sticky_learn",
                    "sticky_route",
                    "stick_table",
                    "stick",
                ],
                "balancer does not learn sessions of the application: it sets a cookie of its \
                  own, write `sticky: {cookie: lb}` in the pool",
            ),
        ],
        value_hints: &[
            (
                &["off", "false", "no", "disabled", "never", "0", "none"],
                "remove the key: without it clients are not kept on one backend",
            ),
            (
                &["true", "on", "yes", "enabled", "cookie"],
                "write `sticky: {cookie: lb}`, with the name of the cookie",
            ),
            (&["DURATION"], "write `sticky: {cookie: lb, ttl: {value}}`"),
            (
                &["ip", "client_ip", "source", "source_ip", "ip_hash"],
                "`sticky` is by a cookie: write `sticky: {cookie: lb}`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.cookie",
        value: text("name of a cookie").pattern(TOKEN_PATTERN),
        default: Required,
        doc: "the name of the cookie; pools of one host need different ones, but for those of one `split`",
        section_words: &[(
            &["name", "cookie_name", "cookiename"],
            "balancer calls this `cookie`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.ttl",
        value: duration(ONE_SECOND, ONE_YEAR).or("none"),
        default: Value("none"),
        doc: "lifetime of the cookie (`Max-Age`) in whole seconds, from when it is set; none: \
              until the browser is closed",
        section_words: &[(
            &[
                "max_age",
                "maxage",
                "expires",
                "maxlife",
                "maxidle",
                "timeout",
                "cookie_duration",
            ],
            "balancer calls this `ttl`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.secure",
        value: one_of(SecureCookie::NAMES),
        default: Value("auto"),
        doc: "`Secure`: the client sends the cookie over TLS only; auto: if the client uses TLS, \
              to balancer or to a trusted proxy",
        value_hints: &[
            (
                &["always", "on", "yes", "y", "1", "enabled"],
                "write `secure: true`",
            ),
            (
                &["never", "off", "no", "n", "0", "none", "disabled"],
                "write `secure: false`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.same_site",
        value: one_of(SameSite::NAMES),
        default: Value("lax"),
        doc: "`SameSite`; none, for pages that other sites embed, needs `secure: true`",
        section_words: &[(&["samesite"], "balancer calls this `same_site`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.http_only",
        value: boolean(),
        default: Value("true"),
        doc: "`HttpOnly`: scripts of a page cannot read the cookie",
        section_words: &[(&["httponly"], "balancer calls this `http_only`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.path",
        value: text("path").pattern("^/"),
        default: Value("/"),
        doc: "`Path`: the client sends the cookie with requests below it",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.sticky.secret_file",
        value: text("path"),
        default: Words("a key in the state directory"),
        doc: "a file with 16 bytes or more: balancers with the same secret choose the same \
              backend for a cookie; read at the start and by each reload",
        section_words: &[
            (
                &["secret", "key", "hmac_key"],
                "write the secret into a file, and name that in `secret_file`",
            ),
            (&["key_file"], "balancer calls this `secret_file`"),
            (
                &["domain"],
                "the cookie is always for the host alone; remove the key",
            ),
        ],
        ..KEY
    },
];
