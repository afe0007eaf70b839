//! The keys of `pools.NAME.discover`.

use super::{
    KEY,
    KeyComparison::Pool,
    KeyDefault::{Nothing, Required, Value, Words},
    KeyRow,
    spec::{boolean, keys, text},
};

/// Sources of members.
pub(super) static DISCOVER_KEYS: &[KeyRow] = &[
    KeyRow {
        path: "pools.NAME.discover",
        value: keys(),
        default: Nothing,
        doc: "further backends, from one source that is watched: `file` or `etcd`. See \
              [discovery](#discovery)",
        differs: Pool(|a, b| a.discover != b.discover),
        other_words: &[(
            &[
                "service_discovery",
                "discovery",
                "eds_cluster_config",
                "dynamic_upstreams",
                "server_template",
                "use_nodes",
            ],
            "balancer calls this `discover`, in a pool; for DNS write a name in `backends`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.file",
        value: text("path"),
        default: Nothing,
        doc: "a YAML or JSON file with a list like `backends`, read again when it changes",
        section_words: &[(&["path", "filename"], "balancer calls this `file`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd",
        value: keys(),
        default: Nothing,
        doc: "keys of an etcd cluster, each with one entry of `backends` as JSON; only in builds \
              with the feature `etcd`",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.endpoints",
        value: text("`HOST:PORT`").non_empty_list(),
        default: Required,
        doc: "members of the cluster; the next one is asked when one fails",
        section_words: &[(
            &["hosts", "servers", "addresses", "endpoint", "address"],
            "write `endpoints: [HOST:PORT]`",
        )],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.prefix",
        value: text("1 to 512 bytes"),
        default: Required,
        doc: "every key that begins with it is one backend",
        section_words: &[(&["key", "root", "root_key"], "balancer calls this `prefix`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.user",
        value: text("name"),
        default: Nothing,
        doc: "needs `password`",
        section_words: &[(&["username"], "balancer calls this `user`")],
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.password",
        value: text("password"),
        default: Nothing,
        doc: "needs `user`",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls",
        value: keys(),
        default: Nothing,
        doc: "TLS to the endpoints; `{}` for the CAs that this machine trusts",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls.ca",
        value: text("path"),
        default: Words("the CAs that this machine trusts"),
        doc: "CA certificates (PEM) that the endpoints' certificates must be signed by",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls.server_name",
        value: text("host name"),
        default: Words("the host of each endpoint"),
        doc: "name that the certificates must be for",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls.verify",
        value: boolean(),
        default: Value("true"),
        doc: "verifies the certificates of the endpoints",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls.client_cert",
        value: text("path"),
        default: Nothing,
        doc: "certificate chain to show to the endpoints; needs `client_key`",
        ..KEY
    },
    KeyRow {
        path: "pools.NAME.discover.etcd.tls.client_key",
        value: text("path"),
        default: Nothing,
        doc: "its private key",
        ..KEY
    },
];
