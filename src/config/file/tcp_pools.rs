//! Warns of keys that have no effect because only tcp listeners use the pool.

use super::{NodeKind, NodeRef, Section, TreeReader, quote};
use crate::config::{
    model::{Config, HashSource, ListenerProtocol, RouteAction},
    problem::Severity,
    yaml::YamlNode,
};

/// Keys of a pool that only requests have a use for: the section (empty: the pool itself), and the
/// key.
const REQUEST_KEYS: &[(&str, &str)] = &[
    ("timeouts", "response"),
    ("timeouts", "total"),
    ("retries", "methods"),
    ("ejection", "status"),
    ("", "keepalive"),
];

/// Warns of such keys in every pool. `config` has all listeners and routes.
pub(super) fn warn_of_request_keys(
    reader: &mut TreeReader<'_>,
    pools: &Section<'_>,
    config: &Config,
) {
    for (index, (at, pool)) in pools.iter().zip(&config.pools).enumerate() {
        if !is_tcp_only(index, config) {
            continue;
        }
        for (section, key) in REQUEST_KEYS {
            warn_of_key(reader, at, section, key);
        }
        if pool.hash != HashSource::ClientIp {
            warn_of_key(reader, at, "", "hash");
        }
    }
}

/// True for a pool that tcp listeners use, and nothing else.
fn is_tcp_only(pool: usize, config: &Config) -> bool {
    let uses = |protocol: ListenerProtocol| {
        let mut listeners = config.listeners.iter();
        listeners.any(|one| one.protocol == protocol && one.pools().any(|used| used == pool))
    };
    let is_routed = config.routes.iter().any(|route| match &route.action {
        RouteAction::Pool(used) => *used == pool,
        RouteAction::Split(shares) => shares.iter().any(|share| share.pool == pool),
        RouteAction::Redirect(_) | RouteAction::Respond(_) => false,
    });
    uses(ListenerProtocol::Tcp) && !uses(ListenerProtocol::Http) && !is_routed
}

fn warn_of_key(reader: &mut TreeReader<'_>, pool: NodeRef<'_>, section: &str, key: &str) {
    let inner = if section.is_empty() {
        Some(pool.node)
    } else {
        child(pool.node, section).map(|(_, value)| value)
    };
    let Some((name, _)) = inner.and_then(|node| child(node, key)) else {
        return;
    };
    let path = [pool.path().as_str(), section, key]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(".");
    reader.report(
        Severity::Warning,
        name.place,
        path,
        format!(
            "{} has no effect: only tcp listeners use this pool",
            quote(key)
        ),
        "remove it",
    );
}

/// The key called `name` of a map, with its value.
fn child<'a>(node: &'a YamlNode, name: &str) -> Option<(&'a YamlNode, &'a YamlNode)> {
    let NodeKind::Map(entries) = &node.kind else {
        return None;
    };
    let mut entries = entries.iter();
    let found =
        entries.find(|(key, _)| matches!(&key.kind, NodeKind::Scalar { text, .. } if text == name));
    found.map(|(key, value)| (key, value))
}
