//! The keys of `pools.NAME` that say how a backend is picked.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::Value,
    KeyRow,
    spec::{ONE_HOUR, ONE_SECOND, duration, one_of, text},
};
use crate::config::model::BalancingPolicy;

/// The choice of a backend.
pub(super) static BALANCING_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.policy",
        value: one_of(BalancingPolicy::NAMES),
        default: Value("round_robin"),
        doc: "how a backend is picked; all but `first` respect weights, see [below](#policies)",
        differs: Pool(|a, b| a.policy != b.policy),
        other_words: &[
            (
                &["balance", "lb_policy", "method_policy", "strategy"],
                "balancer calls this `policy`",
            ),
            (
                &["least_conn"],
                "write `policy: least_connections` in the pool",
            ),
            (
                &["load_balancer", "loadbalancer"],
                "balancer calls this `policy`, in a pool",
            ),
            (
                &["ip_hash"],
                "write `policy: hash` in the pool: by default it goes by the client's address",
            ),
        ],
        other_values: &[
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
            ("first_available", "first"),
            ("failover", "first"),
            ("ordered", "first"),
            ("leasttime", "least_time"),
            ("least-time", "least_time"),
            ("ewma", "least_time"),
            ("peak_ewma", "least_time"),
            ("maglev", "hash"),
            ("ring_hash", "hash"),
            ("consistent_hash", "hash"),
            ("chash", "hash"),
        ],
        value_hints: &[
            (
                &[
                    "ip_hash",
                    "ip-hash",
                    "source",
                    "source_ip",
                    "client_ip",
                    "client_ip_hash",
                ],
                "write `policy: hash`: by default it goes by the client's address",
            ),
            (
                &[
                    "uri",
                    "uri_hash",
                    "hdr",
                    "header",
                    "cookie",
                    "url_param",
                    "query",
                ],
                "write `policy: hash`, and what it goes by in `hash`, such as `hash: uri`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.hash",
        value: text("`client_ip`, `path`, `uri`, `header:NAME`, `cookie:NAME` or `query:NAME`")
            .pattern("^(client_ip|path|uri|(header|cookie|query):.+)$"),
        default: Value("client_ip"),
        doc: "the part of a request that `policy: hash` leads to a backend, as the client sent it. \
              `uri` is the path with the query. A request without that part takes turns",
        differs: Pool(|a, b| a.hash != b.hash),
        other_words: &[(
            &["hash_on", "hash_policy", "upstream_hash_by", "hash_key"],
            "balancer calls this `hash`, with `policy: hash` in the pool",
        )],
        value_hints: &[
            (&["header", "hdr"], "name the header: `hash: header:NAME`"),
            (&["cookie"], "name the cookie: `hash: cookie:NAME`"),
            (
                &[
                    "ip",
                    "source",
                    "source_ip",
                    "remote_addr",
                    "$remote_addr",
                    "$binary_remote_addr",
                ],
                "write `hash: client_ip`",
            ),
            (&["url", "$request_uri"], "write `hash: uri`"),
            (&["$uri"], "write `hash: path`"),
            (
                &["query", "url_param"],
                "name the parameter: `hash: query:NAME`",
            ),
        ],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.hash_balance",
        value: text("`101%` to `1000%`")
            .pattern("^(10[1-9]|1[1-9][0-9]|[2-9][0-9]{2}|1000)%$")
            .or("none"),
        default: Value("none"),
        doc: "bounds the load of `policy: hash`: a backend gets at most this percentage of its share \
              of all that is in flight; other requests with its keys go to the next backend of the key",
        differs: Pool(|a, b| a.hash_balance != b.hash_balance),
        other_words: &[(
            &["hash_balance_factor"],
            "balancer calls this `hash_balance`, as a percentage",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.slow_start",
        value: duration(ONE_SECOND, ONE_HOUR).or("none"),
        default: Value("none"),
        doc: "a backend that has recovered or was added begins with 10 % of its weight, which grows \
              to the whole in this time, see [below](#slow-start)",
        differs: Pool(|a, b| a.slow_start != b.slow_start),
        other_words: &[
            (
                &["slowstart"],
                "balancer calls this `slow_start`, in a pool",
            ),
            (
                &["slow_start_config"],
                "balancer calls this `slow_start`, a duration",
            ),
        ],
        ..KEY
    },
];
