//! Answers of the DNS, as far as members depend on them: pure.
//!
//! Each part of an answer that could not be had now keeps its last good value: a server that fails
//! for one family of addresses, or for one host of a service, must not take down what works.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Addresses kept of one name: the first in ascending order.
pub(super) const MAX_ADDRESSES: usize = 1024;

/// Hosts kept of one service: the first by priority and name.
pub(super) const MAX_HOSTS: usize = 256;

/// Time to live of an answer of which one part is old.
const PARTIAL_TTL: Duration = Duration::from_secs(30);

/// The records that the DNS lists for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DnsAnswer {
    /// Addresses of a host, in ascending order, IPv4 first.
    Host(Vec<IpAddr>),
    /// Hosts that provide a service.
    Service(Vec<ServiceHost>),
}

/// One SRV record (RFC 2782), with the addresses of its host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceHost {
    /// Lower is preferred.
    pub(super) priority: u16,
    /// The host name in lower case, without a final dot.
    pub(super) host: String,
    pub(super) port: u16,
    /// Share among the hosts of one priority.
    pub(super) weight: u16,
    pub(super) addresses: Vec<IpAddr>,
}

impl DnsAnswer {
    /// The addresses of a host.
    pub(super) fn host(&self) -> &[IpAddr] {
        match self {
            Self::Host(addresses) => addresses,
            Self::Service(_) => &[],
        }
    }

    /// The hosts of a service.
    pub(super) fn service(&self) -> &[ServiceHost] {
        match self {
            Self::Host(_) => &[],
            Self::Service(hosts) => hosts,
        }
    }

    /// Every address, as texts for people.
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::Host(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Self::Service(hosts) => hosts
                .iter()
                .flat_map(|one| one.addresses.iter().map(|ip| (ip, one.port)))
                .map(|(ip, port)| SocketAddr::new(*ip, port).to_string())
                .collect(),
        }
    }
}

/// A good answer and the time that it may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimedAnswer<T> {
    pub(super) answer: T,
    pub(super) ttl: Duration,
}

/// Result of a query for the addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FamilyResult {
    Found(Vec<IpAddr>, Duration),
    /// The name has none, with the cause.
    Empty(String),
    /// It is not known, with the cause.
    Failed(String),
}

/// Joins the results of both families to the addresses of a host. `previous` is the last good
/// answer.
///
/// # Errors
/// The cause if neither family has an address.
pub(super) fn join_families(
    previous: &[IpAddr],
    v4: FamilyResult,
    v6: FamilyResult,
) -> Result<TimedAnswer<Vec<IpAddr>>, String> {
    let mut ttl = Duration::MAX;
    let mut addresses = Vec::new();
    let mut errors = [None, None];
    let results = [(v4, true), (v6, false)];
    let found = |result: &FamilyResult| matches!(result, FamilyResult::Found(..));
    let any_found = results.iter().any(|(result, _)| found(result));
    for ((result, is_v4), error) in results.into_iter().zip(&mut errors) {
        match result {
            FamilyResult::Found(mut found, own_ttl) => {
                ttl = ttl.min(own_ttl);
                addresses.append(&mut found);
            }
            FamilyResult::Empty(cause) => *error = Some((false, cause)),
            FamilyResult::Failed(cause) => {
                *error = Some((true, cause));
                ttl = ttl.min(PARTIAL_TTL);
                addresses.extend(previous.iter().filter(|one| one.is_ipv4() == is_v4));
            }
        }
    }
    if !any_found {
        // A failure says more than the absence of the other family.
        let mut errors: Vec<_> = errors.into_iter().flatten().collect();
        errors.sort_by_key(|(failed, _)| !failed);
        let cause = errors.into_iter().next().map(|(_, cause)| cause);
        return Err(cause.unwrap_or_else(|| "no addresses".to_owned()));
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    Ok(TimedAnswer {
        answer: addresses,
        ttl,
    })
}

/// Joins the records of a service with the addresses of its hosts, by host name. `previous` is the
/// last good answer.
///
/// # Errors
/// The first cause if no host has an address.
pub(super) fn join_service(
    previous: &[ServiceHost],
    records: TimedAnswer<Vec<ServiceHost>>,
    addresses: &HashMap<String, Result<TimedAnswer<Vec<IpAddr>>, String>>,
) -> Result<TimedAnswer<Vec<ServiceHost>>, String> {
    let TimedAnswer {
        answer: mut hosts,
        mut ttl,
    } = records;
    let mut first_error = None;
    for one in &mut hosts {
        match addresses.get(&one.host) {
            Some(Ok(found)) => {
                ttl = ttl.min(found.ttl);
                one.addresses.clone_from(&found.answer);
            }
            failed => {
                ttl = ttl.min(PARTIAL_TTL);
                let cause = failed.and_then(|failed| failed.as_ref().err());
                let known = previous.iter().find(|known| known.host == one.host);
                one.addresses = known.map_or_else(Vec::new, |known| known.addresses.clone());
                let cause = cause.map_or("not looked up", String::as_str);
                first_error.get_or_insert_with(|| format!("{}: {cause}", one.host));
            }
        }
    }
    hosts.retain(|one| !one.addresses.is_empty());
    if hosts.is_empty() {
        return Err(first_error.unwrap_or_else(|| "no hosts provide this service".to_owned()));
    }
    hosts.sort_unstable();
    hosts.dedup();
    limit_addresses(&mut hosts);
    Ok(TimedAnswer { answer: hosts, ttl })
}

/// Keeps the first [`MAX_ADDRESSES`] of all hosts together.
fn limit_addresses(hosts: &mut Vec<ServiceHost>) {
    let mut left = MAX_ADDRESSES;
    for one in hosts.iter_mut() {
        one.addresses.truncate(left);
        left -= one.addresses.len();
    }
    hosts.retain(|one| !one.addresses.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn found(addresses: &[&str], seconds: u64) -> FamilyResult {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        FamilyResult::Found(addresses, Duration::from_secs(seconds))
    }

    fn empty() -> FamilyResult {
        FamilyResult::Empty("no addresses".to_owned())
    }

    fn failed() -> FamilyResult {
        FamilyResult::Failed("timed out".to_owned())
    }

    #[test]
    fn a_family_that_failed_keeps_its_addresses_and_one_that_is_empty_does_not() {
        let known = [ip("10.0.0.9"), ip("2001:db8::9")];
        let row = |v4, v6| {
            let joined = join_families(&known, v4, v6)?;
            let texts: Vec<_> = joined.answer.iter().map(ToString::to_string).collect();
            Ok((texts.join(" "), joined.ttl.as_secs()))
        };
        let good = |text: &str, ttl| Ok((text.to_owned(), ttl));
        let bad = |text: &str| Err::<(String, u64), _>(text.to_owned());
        let both = found(&["2001:db8::1"], 5);
        assert_eq!(
            row(found(&["10.0.0.2", "10.0.0.1", "10.0.0.2"], 60), both),
            good("10.0.0.1 10.0.0.2 2001:db8::1", 5)
        );
        assert_eq!(row(found(&["10.0.0.1"], 60), empty()), good("10.0.0.1", 60));
        let partial = row(found(&["10.0.0.1"], 60), failed());
        assert_eq!(partial, good("10.0.0.1 2001:db8::9", 30));
        let partial = row(failed(), found(&["2001:db8::1"], 3));
        assert_eq!(partial, good("10.0.0.9 2001:db8::1", 3));
        assert_eq!(row(failed(), empty()), bad("timed out"));
        assert_eq!(row(empty(), failed()), bad("timed out"));
        assert_eq!(row(empty(), empty()), bad("no addresses"));
    }

    #[test]
    fn no_more_addresses_are_kept_than_the_limit() {
        let many = (0..2000_u32)
            .rev()
            .map(|number| IpAddr::from(number.to_be_bytes()));
        let many = FamilyResult::Found(many.collect(), Duration::ZERO);
        let joined = join_families(&[], many, empty()).unwrap();
        assert_eq!(joined.answer.len(), MAX_ADDRESSES);
        assert_eq!(joined.answer[1023], IpAddr::from(1023_u32.to_be_bytes()));
    }

    fn host(name: &str, addresses: &[&str]) -> ServiceHost {
        ServiceHost {
            priority: 0,
            host: name.to_owned(),
            port: 80,
            weight: 1,
            addresses: addresses.iter().map(|text| ip(text)).collect(),
        }
    }

    #[test]
    fn a_host_of_a_service_that_fails_keeps_its_addresses() {
        let records = TimedAnswer {
            answer: vec![host("b", &[]), host("a", &[]), host("new", &[])],
            ttl: Duration::from_secs(100),
        };
        let good = TimedAnswer {
            answer: vec![ip("10.0.0.1")],
            ttl: Duration::from_secs(40),
        };
        let mut addresses = HashMap::from([
            ("a".to_owned(), Ok(good)),
            ("b".to_owned(), Err("timed out".to_owned())),
            ("new".to_owned(), Err("no addresses".to_owned())),
        ]);
        let known = [host("a", &["10.0.0.7"]), host("b", &["10.0.0.8"])];
        let joined = join_service(&known, records.clone(), &addresses).unwrap();
        let expected = [host("a", &["10.0.0.1"]), host("b", &["10.0.0.8"])];
        assert_eq!(joined.answer, expected);
        assert_eq!(joined.ttl, PARTIAL_TTL);
        addresses.remove("a");
        let none = join_service(&[], records, &addresses);
        assert_eq!(none, Err("b: timed out".to_owned()));
    }
}
