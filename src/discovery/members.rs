//! Turns the entries of a pool into its members: pure.
//!
//! An entry that stands for a group becomes one member for each address. Before the first answer it
//! is a member itself: a backend whose name is not resolved, so that status and log say why it gets
//! no traffic.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use super::answer::{DnsAnswer, ServiceHost};
use crate::{
    base::address::BackendAddress,
    config::model::{BackendConfig, ResolveMode},
};

/// Highest weight of a backend.
const MAX_WEIGHT: u16 = 256;
/// The last tier.
const MAX_TIER: u8 = 9;

/// A name to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum DnsQuery {
    /// Addresses of a host.
    Host(String),
    /// SRV records, and the addresses of their hosts.
    Service(String),
}

impl DnsQuery {
    /// The look-up that an entry needs.
    pub(super) fn of(entry: &BackendConfig) -> Option<Self> {
        match &entry.address {
            BackendAddress::Name { host, .. } => Some(Self::Host(host.clone())),
            BackendAddress::Service(name) => Some(Self::Service(name.clone())),
            BackendAddress::Ip(_) | BackendAddress::Resolved { .. } | BackendAddress::Unix(_) => {
                None
            }
        }
    }

    /// The name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Host(name) | Self::Service(name) => name,
        }
    }
}

/// Expands `entries` to members. `answer_to` returns the last good answer to a query.
///
/// Each address and each name occurs once: the first entry that has it gives the member.
pub(super) fn expand<'a>(
    entries: impl Iterator<Item = &'a BackendConfig>,
    answer_to: impl Fn(&DnsQuery) -> Option<DnsAnswer>,
) -> Vec<BackendConfig> {
    let mut members = Vec::new();
    let (mut addresses, mut names) = (HashSet::new(), HashSet::new());
    for entry in entries {
        let group = if entry.is_group() {
            let answer = DnsQuery::of(entry).and_then(|query| answer_to(&query));
            answer.map(|answer| members_of(entry, &answer))
        } else {
            None
        };
        for member in group.unwrap_or_else(|| vec![entry.clone()]) {
            if !addresses.contains(&member.address) && !names.contains(&member.name) {
                addresses.insert(member.address.clone());
                names.insert(Arc::clone(&member.name));
                members.push(member);
            }
        }
    }
    members
}

/// The members that an entry stands for.
fn members_of(entry: &BackendConfig, answer: &DnsAnswer) -> Vec<BackendConfig> {
    match (&entry.address, answer) {
        (BackendAddress::Name { host, port }, DnsAnswer::Host(addresses)) => {
            let member = |ip: &_| member(entry, host, SocketAddr::new(*ip, *port));
            addresses.iter().map(member).collect()
        }
        (BackendAddress::Service(_), DnsAnswer::Service(hosts)) => service_members(entry, hosts),
        _ => {
            debug_assert!(false, "an answer to another query");
            vec![entry.clone()]
        }
    }
}

/// One address of `host`, with what `entry` says of it.
fn member(entry: &BackendConfig, host: &str, address: SocketAddr) -> BackendConfig {
    let own = BackendAddress::Resolved {
        host: host.to_owned(),
        address,
    };
    let name = match &entry.address {
        _ if *entry.name == *entry.address.to_string() => own.to_string(),
        // The hosts of a service may have several ports on one address.
        BackendAddress::Service(_) => format!("{}/{address}", entry.name),
        _ => format!("{}/{}", entry.name, address.ip()),
    };
    BackendConfig {
        address: own,
        name: name.into(),
        resolve: ResolveMode::default(),
        ..entry.clone()
    }
}

fn service_members(entry: &BackendConfig, hosts: &[ServiceHost]) -> Vec<BackendConfig> {
    let priorities: BTreeSet<u16> = hosts.iter().map(|one| one.priority).collect();
    let mut members = Vec::new();
    for (tier, priority) in priorities.iter().enumerate() {
        let tier = u8::try_from(tier).unwrap_or(MAX_TIER);
        let same = || hosts.iter().filter(|one| one.priority == *priority);
        let weights: Vec<u16> = same().map(|one| one.weight).collect();
        for (one, weight) in same().zip(scaled(&weights)) {
            let entry = BackendConfig {
                weight,
                backup: entry.backup.saturating_add(tier).min(MAX_TIER),
                ..entry.clone()
            };
            let address = |ip: &_| SocketAddr::new(*ip, one.port);
            let of_host = one.addresses.iter().map(address);
            members.extend(of_host.map(|address| member(&entry, &one.host, address)));
        }
    }
    members
}

/// Scales the weights of one priority to 1..=256 by their ratio.
///
/// A record of weight 0 has a very small chance beside others (RFC 2782), which is the smallest
/// share here; where all are 0, all have the same.
fn scaled(weights: &[u16]) -> Vec<u16> {
    let highest = weights.iter().copied().max().unwrap_or(0);
    let has_zero = weights.contains(&0);
    let scale = |weight: u16| {
        if highest == 0 || weight == 0 {
            1
        } else if highest <= MAX_WEIGHT && !has_zero {
            weight
        } else {
            let scaled = u32::from(weight) * u32::from(MAX_WEIGHT) / u32::from(highest);
            u16::try_from(scaled).unwrap_or(MAX_WEIGHT).max(1)
        }
    };
    weights.iter().map(|weight| scale(*weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str) -> BackendConfig {
        BackendConfig::at(address.parse().unwrap())
    }

    fn service(name: &str) -> BackendConfig {
        BackendConfig::at(BackendAddress::Service(name.to_owned()))
    }

    fn row(member: &BackendConfig) -> String {
        format!("{} w{} b{}", member.name, member.weight, member.backup)
    }

    fn rows(
        entries: &[BackendConfig],
        answer_to: impl Fn(&DnsQuery) -> Option<DnsAnswer>,
    ) -> Vec<String> {
        expand(entries.iter(), answer_to).iter().map(row).collect()
    }

    fn host(host: &str, priority: u16, weight: u16, last: u8) -> ServiceHost {
        ServiceHost {
            priority,
            host: host.to_owned(),
            port: 8000 + u16::from(last),
            weight,
            addresses: vec![[10, 0, 0, last].into()],
        }
    }

    #[test]
    fn each_address_of_a_name_is_a_member_with_the_settings_of_its_entry() {
        let named = BackendConfig {
            name: "app".into(),
            weight: 3,
            backup: 2,
            ..entry("app.test:80")
        };
        let one = BackendConfig {
            resolve: ResolveMode::One,
            ..entry("one.test:80")
        };
        let entries = [entry("10.0.0.9:80"), entry("app.test:81"), named, one];
        let before = rows(&entries, |_| None);
        let names = [
            "10.0.0.9:80 w1 b0",
            "app.test:81 w1 b0",
            "app w3 b2",
            "one.test:80 w1 b0",
        ];
        assert_eq!(before, names);
        let answer = |query: &DnsQuery| {
            assert_eq!(*query, DnsQuery::Host("app.test".to_owned()));
            let addresses = ["10.0.0.1", "2001:db8::1"].map(|text| text.parse().unwrap());
            Some(DnsAnswer::Host(addresses.to_vec()))
        };
        assert_eq!(
            rows(&entries, answer),
            [
                "10.0.0.9:80 w1 b0",
                "app.test:81/10.0.0.1 w1 b0",
                "app.test:81/2001:db8::1 w1 b0",
                "app/10.0.0.1 w3 b2",
                "app/2001:db8::1 w3 b2",
                "one.test:80 w1 b0",
            ]
        );
    }

    #[test]
    fn priorities_become_tiers_and_weights_are_scaled_within_each() {
        let hosts = vec![
            host("a", 10, 1, 1),
            host("b", 10, 3, 2),
            host("c", 20, 0, 3),
            host("d", 20, 0, 4),
            host("e", 65_000, 0, 5),
            host("f", 65_000, 65_535, 6),
            host("g", 65_000, 1, 7),
        ];
        let answer = |_: &DnsQuery| Some(DnsAnswer::Service(hosts.clone()));
        assert_eq!(
            rows(&[service("_http._tcp.app")], answer),
            [
                "a:8001/10.0.0.1 w1 b0",
                "b:8002/10.0.0.2 w3 b0",
                "c:8003/10.0.0.3 w1 b1",
                "d:8004/10.0.0.4 w1 b1",
                "e:8005/10.0.0.5 w1 b2",
                "f:8006/10.0.0.6 w256 b2",
                "g:8007/10.0.0.7 w1 b2",
            ]
        );
        let named = BackendConfig {
            name: "app".into(),
            backup: 8,
            ..service("_http._tcp.app")
        };
        let tiers: Vec<_> = expand([&named].into_iter(), answer)
            .iter()
            .map(|one| one.backup)
            .collect();
        assert_eq!(tiers, [8, 8, 9, 9, 9, 9, 9]);
        let names = rows(&[named], answer);
        assert_eq!(names[0], "app/10.0.0.1:8001 w1 b8");
    }

    #[test]
    fn an_address_or_name_that_occurs_twice_is_one_member() {
        let hosts = |_: &DnsQuery| Some(DnsAnswer::Service(vec![host("a", 0, 1, 1)]));
        let other = BackendConfig {
            name: "a:8001/10.0.0.1".into(),
            ..entry("10.0.0.7:80")
        };
        let entries = [service("one"), service("two"), other];
        assert_eq!(rows(&entries, hosts), ["a:8001/10.0.0.1 w1 b0"]);
    }
}
