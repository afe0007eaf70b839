//! Rules over several sections: clashing binds, unused pools. Routes that take requests
//! from each other are in `route_order`.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use super::{
    bind_list::{BindList, BoundAddress},
    problem::{Severity, quote},
    reader::{Section, TreeReader},
};
use crate::base::address::BindAddress;

/// Reports every bind that clashes with an earlier one.
pub(super) fn binds(reader: &mut TreeReader<'_>, binds: &BindList) {
    let mut by_port: HashMap<Option<u16>, Vec<&BoundAddress>> = HashMap::new();
    let mut all: Vec<&BoundAddress> = binds.all().iter().collect();
    all.sort_by_key(|bound| bound.place);
    for bound in all {
        let port = match &bound.socket.address {
            BindAddress::Ip(address) => Some(address.port()),
            BindAddress::Unix(_) => None,
        };
        let others = by_port.entry(port).or_default();
        if let Some(other) = others.iter().find(|other| clash(bound, other)) {
            let shown = if bound.socket == other.socket {
                String::new()
            } else {
                format!(" as {}", quote(&other.socket.address.to_string()))
            };
            reader.report(
                Severity::Error,
                bound.place,
                bound.path.clone(),
                format!(
                    "{} is already used{shown}, by {}",
                    quote(&bound.socket.address.to_string()),
                    other.owner
                ),
                match other.place.line {
                    0 => "choose another port, or set `metrics.bind`".to_owned(),
                    line => format!("choose another port or address; the other is in line {line}"),
                },
            );
        }
        others.push(bound);
    }
}

fn clash(one: &BoundAddress, other: &BoundAddress) -> bool {
    if one.socket.transport != other.socket.transport {
        return false;
    }
    let (a, b) = match (&one.socket.address, &other.socket.address) {
        (BindAddress::Ip(a), BindAddress::Ip(b)) => (a, b),
        (BindAddress::Unix(a), BindAddress::Unix(b)) => return plain_path(a) == plain_path(b),
        _ => return false,
    };
    if a == b {
        return true;
    }
    if a.port() != b.port() || a.port() == 0 {
        return false;
    }
    let covers = |wide: &std::net::IpAddr, narrow: &std::net::IpAddr| {
        wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    // A listener may list the wildcards of both families. In two listeners they are no two
    // addresses: `[::]` takes IPv4 too.
    let two_wildcards = a.ip().is_unspecified() && b.ip().is_unspecified();
    if two_wildcards && one.owner != other.owner {
        return true;
    }
    // Listeners may give one address of a port to another listener: the kernel prefers the exact
    // address.
    !(one.shares && other.shares) && (covers(&a.ip(), &b.ip()) || covers(&b.ip(), &a.ip()))
}

/// An absolute path without `.` and `..`; what symbolic links make of it is not known here.
fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = plain.pop(),
            component => plain.push(component),
        }
    }
    plain
}

/// Warns of pools that nothing refers to.
pub(super) fn unused_pools(reader: &mut TreeReader<'_>, pools: &Section<'_>, used: &[bool]) {
    // A reference that could not be read may be the one that is missing.
    if reader.has_errors_since(0) {
        return;
    }
    for (at, used) in pools.iter().zip(used) {
        if !used {
            reader.warn_at_key(
                at,
                format!("pool {} is not used", quote(at.last_key())),
                "name it in a listener or a route, or remove it",
            );
        }
    }
}
