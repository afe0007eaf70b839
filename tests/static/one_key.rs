//! A correct file in which one key of the table has a given text.

use std::path::Path;

use balancer::config::{Problems, model::Config, parse};

use crate::fixture_files::AnyFiles;

/// A document in YAML's flow style, whose leaves are written as they are.
#[derive(Debug, Clone)]
enum Tree {
    Leaf(String),
    Map(Vec<(String, Tree)>),
    List(Vec<Tree>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Self::Leaf(text) => text.clone(),
            Self::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|(key, value)| format!("{key}: {}", value.text()));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::text).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// The place of `path`, made where it is missing. A leaf on the way gives way to keys.
    fn place(&mut self, path: &str) -> &mut Self {
        let mut here = self;
        for segment in path.split(['.', '[']).filter(|segment| !segment.is_empty()) {
            here = if segment == "0]" {
                here.first()
            } else {
                here.child(segment)
            };
        }
        here
    }

    fn child(&mut self, key: &str) -> &mut Self {
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(entries) = self else {
            panic!("not a map")
        };
        if !entries.iter().any(|(name, _)| name == key) {
            entries.push((key.to_owned(), Self::Map(Vec::new())));
        }
        let found = entries.iter_mut().find(|(name, _)| name == key);
        &mut found.unwrap().1
    }

    fn first(&mut self) -> &mut Self {
        if !matches!(self, Self::List(_)) {
            *self = Self::List(vec![Self::Map(Vec::new())]);
        }
        match self {
            Self::List(items) => &mut items[0],
            _ => panic!("not a list"),
        }
    }

    fn remove(&mut self, path: &str) {
        let (owner, key) = path.rsplit_once('.').unwrap_or(("", path));
        if let Self::Map(entries) = self.place(owner) {
            entries.retain(|(name, _)| name != key);
        }
    }
}

/// Keys that another key needs beside it: `-path` removes a key, `path=text` adds one.
/// The rows whose path begins with the first part.
const BESIDE: &[(&str, &str)] = &[
    (
        "pools.NAME.limits.streams_per_connection",
        "pools.app.protocol=h2c",
    ),
    (
        "pools.NAME.ejection.min_requests",
        "pools.app.ejection.failure_rate=50%",
    ),
    (
        "trusted_proxies.client_header",
        "trusted_proxies.from=[10.0.0.0/8]",
    ),
    ("pools", "-listeners.web.pool listeners.web.redirect=https"),
    (
        "pools.NAME",
        "-listeners.web.redirect listeners.web.pool=app",
    ),
    ("listeners.NAME.redirect", "-listeners.web.pool"),
    (
        "listeners.NAME.redirect.",
        "listeners.web.redirect.to=https",
    ),
    ("listeners.NAME.sni", "listeners.web.protocol=tcp"),
    (
        "listeners.NAME.accept_proxy.",
        "listeners.web.accept_proxy.from=[10.0.0.0/8]",
    ),
    (
        "listeners.NAME.rate_limit.",
        "listeners.web.rate_limit.per_client=1/s",
    ),
    (
        "listeners.NAME.tls.",
        "listeners.web.tls.cert=good.pem listeners.web.tls.key=good.key",
    ),
    (
        "listeners.NAME.tls.certificates",
        "-listeners.web.tls.cert -listeners.web.tls.key",
    ),
    (
        "listeners.NAME.tls.certificates[].",
        "listeners.web.tls.certificates[0].cert=good.pem listeners.web.tls.certificates[0].key=good.key",
    ),
    (
        "listeners.NAME.tls.client_",
        "listeners.web.tls.client_ca=a-ca.pem",
    ),
    ("pools.NAME.sticky.", "pools.app.sticky.cookie=lb"),
    (
        "pools.NAME.sticky.same_site",
        "pools.app.sticky.secure=true",
    ),
    ("routes[]", "routes[0].pool=app"),
    ("routes[].split", "-routes[0].pool"),
    ("routes[].respond", "-routes[0].pool"),
    ("routes[].redirect", "-routes[0].pool"),
    ("routes[].redirect.", "routes[0].redirect.to=https"),
    (
        "routes[].rate_limit.",
        "routes[0].rate_limit.per_client=1/s",
    ),
    (
        "pools.NAME.health_check.path",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.method",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.host",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.expect",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.body",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.service",
        "pools.app.protocol=h2c pools.app.health_check.type=grpc",
    ),
    (
        "pools.NAME.health_check.headers",
        "pools.app.health_check.type=http",
    ),
    (
        "pools.NAME.health_check.user",
        "pools.app.health_check.type=postgres",
    ),
    (
        "pools.NAME.health_check.password_file",
        "pools.app.health_check.type=redis",
    ),
    (
        "pools.NAME.health_check.role",
        "pools.app.health_check.type=redis",
    ),
    (
        "pools.NAME.health_check.database",
        "pools.app.health_check.type=postgres",
    ),
    (
        "pools.NAME.health_check.target",
        "pools.app.health_check.type=postgres pools.app.health_check.user=me",
    ),
    (
        "pools.NAME.health_check.tls.",
        "pools.app.health_check.tls.ca=a-ca.pem",
    ),
    (
        "pools.NAME.health_check.tls.client_",
        "pools.app.health_check.tls.client_cert=good.pem pools.app.health_check.tls.client_key=good.key",
    ),
    (
        "pools.NAME.backends[].tls.",
        "pools.app.backends[0].tls.ca=a-ca.pem",
    ),
    (
        "pools.NAME.backends[].tls.client_",
        "pools.app.backends[0].tls.client_cert=good.pem pools.app.backends[0].tls.client_key=good.key",
    ),
    (
        "pools.NAME.backends[].srv",
        "-pools.app.backends[0].address",
    ),
    (
        "pools.NAME.backends[].resolve",
        "pools.app.backends[0].address=a.test:1",
    ),
    (
        "pools.NAME.discover.etcd.",
        "pools.app.discover.etcd.endpoints=[a.test:1] pools.app.discover.etcd.prefix=/a/",
    ),
    (
        "pools.NAME.discover.etcd.user",
        "pools.app.discover.etcd.password=a",
    ),
    (
        "pools.NAME.discover.etcd.password",
        "pools.app.discover.etcd.user=a",
    ),
    (
        "pools.NAME.discover.etcd.tls.",
        "pools.app.discover.etcd.tls.ca=a-ca.pem",
    ),
    (
        "pools.NAME.discover.etcd.tls.client_",
        "pools.app.discover.etcd.tls.client_cert=good.pem pools.app.discover.etcd.tls.client_key=good.key",
    ),
    ("pools.NAME.tls.", "pools.app.tls.ca=a-ca.pem"),
    (
        "pools.NAME.tls.client_",
        "pools.app.tls.client_cert=good.pem pools.app.tls.client_key=good.key",
    ),
];

fn tree_for(path: &str) -> Tree {
    let mut tree = Tree::Map(Vec::new());
    let base = [
        ("listeners.web.bind", "':80'"),
        ("listeners.web.pool", "app"),
        ("pools.app.backends[0].address", "127.0.0.1:1"),
    ];
    for (path, text) in base {
        *tree.place(path) = Tree::Leaf(text.to_owned());
    }
    for (_, changes) in BESIDE.iter().filter(|(start, _)| path.starts_with(start)) {
        for change in changes.split(' ') {
            match (change.strip_prefix('-'), change.split_once('=')) {
                (Some(removed), _) => tree.remove(removed),
                (None, Some((path, text))) => *tree.place(path) = Tree::Leaf(text.to_owned()),
                (None, None) => panic!("{change}"),
            }
        }
    }
    tree
}

/// The place of a row in the file: its names filled in, the first entry of each list.
pub(crate) fn place(row_path: &str) -> String {
    row_path
        .replace("listeners.NAME", "listeners.web")
        .replace("pools.NAME", "pools.app")
        .replace("[]", "[0]")
}

/// A correct file that has room for the key of the row `path`, and the same with the key written as
/// `text`.
pub(crate) fn without_and_with(path: &str, text: &str) -> [String; 2] {
    let without = tree_for(path);
    let mut with = without.clone();
    *with.place(&place(path)) = Tree::Leaf(text.to_owned());
    let mut without = without;
    without.remove(&place(path));
    [without.text(), with.text()]
}

/// Reads a file as `balancer check` would.
pub(crate) fn read(text: &str) -> Result<Config, Problems> {
    parse(Path::new("balancer.yaml"), text, &AnyFiles).map(|loaded| loaded.config)
}
