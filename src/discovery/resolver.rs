//! Queries to the DNS, as the system's resolver would make them: /etc/hosts first, then the
//! servers, search list and options of /etc/resolv.conf. Both files are read again when they
//! change.
//!
//! Knows nothing of pools. Schedule and last good answers are those of `names.rs`.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RData, RecordType},
    },
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use super::answer::{
    FamilyResult, MAX_HOSTS, ServiceHost, TimedAnswer, join_families, join_service,
};
use crate::{base::clock, config::files::read_regular};

/// Queries that run at the same time, with the retries of each.
const MAX_QUERIES: usize = 32;
/// Time for all attempts of one query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(8);
/// Time for the addresses of the other family, once one is known: servers that do not answer such
/// queries must not hold up the rest.
const OTHER_FAMILY_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for one attempt, and most attempts: /etc/resolv.conf may ask for more.
const MAX_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: usize = 5;
/// Largest part of /etc/hosts and /etc/resolv.conf that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Time that an entry of /etc/hosts may be used: a change is seen before.
const HOSTS_TTL: Duration = Duration::from_mins(5);

/// Files that the system's resolver reads.
#[derive(Debug, Clone)]
pub(super) struct ResolverFiles {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    /// Addresses of this machine, of the second family.
    pub(super) if_inet6: PathBuf,
}

impl Default for ResolverFiles {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            if_inet6: "/proc/net/if_inet6".into(),
        }
    }
}

/// Identity of a file's content: device, inode, size, and time of change in nanoseconds.
pub(super) type FileStamp = Option<(u64, u64, u64, i128)>;

/// The stamp of the file at `path`, or of the one that links lead to; `None` if there is none.
pub(super) fn stamp(path: &Path) -> FileStamp {
    let found = fs::metadata(path).ok()?;
    let changed = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    Some((found.dev(), found.ino(), found.size(), changed))
}

/// Makes queries. Clones share everything.
#[derive(Clone)]
pub(super) struct DnsResolver {
    shared: Rc<ResolverShared>,
}

struct ResolverShared {
    files: ResolverFiles,
    queries: Semaphore,
    current: RefCell<Rc<LoadedResolver>>,
}

/// The settings of resolvers by the files as they were read.
struct LoadedResolver {
    config: ResolverConfig,
    options: ResolverOpts,
    hosts: Hosts,
    /// `resolvers` of the configuration; empty: those of the file.
    servers: Vec<SocketAddr>,
    stamps: [FileStamp; 2],
    /// /etc/resolv.conf has `options no-aaaa`.
    no_aaaa: bool,
}

impl LoadedResolver {
    /// Reads the files. What is missing or wrong in them is left out, as the system does it.
    fn load(files: &ResolverFiles, servers: &[SocketAddr]) -> Result<Self, NetError> {
        let stamps = [stamp(&files.resolv_conf), stamp(&files.hosts)];
        let read = |path: &Path| read_regular(path, MAX_FILE_BYTES).unwrap_or_default();
        let (conf, _) = resolv_conf::Config::parse_with_errors(&read(&files.resolv_conf));
        let mut hosts = Hosts::default();
        // Ends at the first line that is no text.
        let _ = hosts.read_hosts_conf(io::Cursor::new(read(&files.hosts)));
        let system = conf.get_nameservers_or_local().into_iter();
        let system = system.map(|ip| SocketAddr::new(ip.into(), 53));
        let servers_in_force: Vec<_> = if servers.is_empty() {
            system.collect()
        } else {
            servers.to_vec()
        };
        let search = conf.get_last_search_or_domain();
        let search = search.filter_map(|domain| Name::from_str_relaxed(domain).ok());
        let config = ResolverConfig::from_parts(
            None,
            search.collect(),
            servers_in_force.into_iter().map(name_server).collect(),
        );
        let timeout = Duration::from_secs(u64::from(conf.timeout.max(1)));
        let mut options = ResolverOpts::default();
        options.ndots = conf.ndots as usize;
        options.timeout = timeout.min(MAX_ATTEMPT_TIMEOUT);
        options.attempts = (conf.attempts as usize).clamp(1, MAX_ATTEMPTS);
        options.edns0 = true;
        // Answers are kept by `names.rs`, which also has to know when one is new.
        options.cache_size = 0;
        // They are looked at here, once for both families.
        options.use_hosts_file = ResolveHosts::Never;
        let loaded = Self {
            config,
            options,
            hosts,
            servers: servers.to_vec(),
            stamps,
            no_aaaa: conf.no_aaaa,
        };
        // What is wrong with the settings is found now and not by each query.
        loaded.resolver()?;
        Ok(loaded)
    }

    /// A resolver for one query, with connections of its own: a server that hangs on the answer to
    /// one name must not hold up those to others.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let provider = TokioRuntimeProvider::default();
        TokioResolver::builder_with_config(self.config.clone(), provider)
            .with_options(self.options.clone())
            .build()
    }

    /// Addresses of `name` in /etc/hosts.
    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let kinds = [RecordType::A, RecordType::AAAA];
        let queries = kinds.map(|kind| Query::query(name.clone(), kind));
        let found = queries
            .iter()
            .filter_map(|query| self.hosts.lookup_static_host(query));
        found.flat_map(|lookup| addresses(&lookup)).collect()
    }
}

/// A server that is asked by UDP, and by TCP for long answers.
fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections.to_vec())
}

impl DnsResolver {
    /// A resolver by `files`, with `servers` instead of the system's unless there are none.
    ///
    /// # Errors
    /// When the library cannot make a resolver. No content of the files leads to that.
    pub(super) fn new(files: ResolverFiles, servers: &[SocketAddr]) -> Result<Self, String> {
        let loaded = LoadedResolver::load(&files, servers).map_err(|error| error.to_string())?;
        Ok(Self {
            shared: Rc::new(ResolverShared {
                files,
                queries: Semaphore::new(MAX_QUERIES),
                current: RefCell::new(Rc::new(loaded)),
            }),
        })
    }

    /// Takes up changed files and other `servers`. True if there was a change.
    pub(super) fn update(&self, servers: &[SocketAddr]) -> bool {
        let files = &self.shared.files;
        let current = Rc::clone(&self.shared.current.borrow());
        let stamps = [stamp(&files.resolv_conf), stamp(&files.hosts)];
        if stamps == current.stamps && servers == current.servers {
            return false;
        }
        match LoadedResolver::load(files, servers) {
            Ok(loaded) => {
                self.shared.current.replace(Rc::new(loaded));
                true
            }
            Err(error) => {
                tracing::warn!(target: "discovery", %error, "resolver not changed");
                false
            }
        }
    }

    /// True if this machine may reach other machines by IPv6.
    fn has_ipv6(&self) -> bool {
        let text = read_regular(&self.shared.files.if_inet6, MAX_FILE_BYTES);
        let text = text.unwrap_or_default();
        has_wide_ipv6(&String::from_utf8_lossy(&text))
    }

    /// Looks up the addresses of a host. `previous` is the last good answer.
    ///
    /// # Errors
    /// The cause as a text for people.
    pub(super) async fn host(
        &self,
        host: &str,
        previous: &[IpAddr],
    ) -> Result<TimedAnswer<Vec<IpAddr>>, String> {
        let loaded = Rc::clone(&self.shared.current.borrow());
        let name = Name::from_ascii(host).map_err(|error| error.to_string())?;
        let listed = loaded.in_hosts(&name);
        if !listed.is_empty() {
            let listed = FamilyResult::Found(listed, HOSTS_TTL);
            return join_families(&[], listed, FamilyResult::Empty(String::new()));
        }
        let v4 = self.query(&loaded, name.clone(), RecordType::A, QUERY_TIMEOUT);
        let (v4, found_as) = family(v4.await);
        let v6 = if loaded.no_aaaa || !self.has_ipv6() {
            FamilyResult::Empty("no addresses".to_owned())
        } else {
            // The same name of the search list: addresses of two machines must not be mixed.
            let (name, limit) =
                found_as.map_or((name, QUERY_TIMEOUT), |found| (found, OTHER_FAMILY_TIMEOUT));
            let v6 = self.query(&loaded, name, RecordType::AAAA, limit);
            family(v6.await).0
        };
        join_families(previous, v4, v6)
    }

    /// Looks up the hosts of a service and their addresses. `previous` is the last good answer.
    ///
    /// # Errors
    /// The cause as a text for people.
    pub(super) async fn service(
        &self,
        service: &str,
        previous: &[ServiceHost],
    ) -> Result<TimedAnswer<Vec<ServiceHost>>, String> {
        let loaded = Rc::clone(&self.shared.current.borrow());
        let name = Name::from_ascii(service).map_err(|error| error.to_string())?;
        let lookup = self.query(&loaded, name, RecordType::SRV, QUERY_TIMEOUT);
        let records = service_records(&lookup.await?);
        let mut lookups = JoinSet::new();
        for host in records.answer.iter().map(|one| one.host.clone()) {
            let known = previous.iter().find(|known| known.host == host);
            let known = known.map_or_else(Vec::new, |known| known.addresses.clone());
            let this = self.clone();
            lookups.spawn_local(async move {
                // With its final dot: the search list is for names that people write.
                let found = this.host(&format!("{host}."), &known).await;
                (host, found)
            });
        }
        let mut found = HashMap::new();
        while let Some(joined) = lookups.join_next().await {
            found.extend(joined.ok());
        }
        join_service(previous, records, &found)
    }

    /// Makes one query, within `limit` after the queries that it has to wait for.
    async fn query(
        &self,
        loaded: &LoadedResolver,
        name: Name,
        kind: RecordType,
        limit: Duration,
    ) -> Result<Lookup, String> {
        let _permit = self.shared.queries.acquire().await;
        let resolver = loaded.resolver().map_err(|error| cause(&error))?;
        match timeout(limit, resolver.lookup(name, kind)).await {
            Ok(Ok(lookup)) => Ok(lookup),
            Ok(Err(error)) => Err(cause(&error)),
            Err(_) => Err(TIMED_OUT.to_owned()),
        }
    }
}

const TIMED_OUT: &str = "no answer from the DNS servers in time";
const NO_RECORDS: &str = "the name has no addresses";
const NO_NAME: &str = "no such name (NXDOMAIN)";

/// The cause of a failed query, in words.
fn cause(error: &NetError) -> String {
    match error {
        _ if error.is_nx_domain() => NO_NAME.to_owned(),
        _ if error.is_no_records_found() => NO_RECORDS.to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the DNS server says: {code}"),
        NetError::Timeout => TIMED_OUT.to_owned(),
        NetError::NoConnections => "no DNS server can be reached".to_owned(),
        error => error.to_string(),
    }
}

/// The result of a query for one family, and the name that was found.
fn family(result: Result<Lookup, String>) -> (FamilyResult, Option<Name>) {
    match result {
        Ok(lookup) => {
            let found = addresses(&lookup);
            if found.is_empty() {
                return (FamilyResult::Empty(NO_RECORDS.to_owned()), None);
            }
            let mut name = lookup.query().name().clone();
            name.set_fqdn(true);
            (FamilyResult::Found(found, ttl(&lookup)), Some(name))
        }
        Err(cause) if cause == NO_NAME || cause == NO_RECORDS => (FamilyResult::Empty(cause), None),
        Err(cause) => (FamilyResult::Failed(cause), None),
    }
}

/// Time for which an answer holds: the shortest of its records.
fn ttl(lookup: &Lookup) -> Duration {
    let records = lookup.answers().iter().map(|record| record.ttl).min();
    let records = Duration::from_secs(u64::from(records.unwrap_or(0)));
    let until = lookup.valid_until();
    // It may also be shorter: of an alias that is not among the records.
    let rest = until.saturating_duration_since(clock::now());
    records.min(Duration::from_secs(rest.as_secs_f64().round() as u64))
}

fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    let records = lookup.answers().iter();
    let found = records.filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    found.collect()
}

/// The records of a service: each host and port once, without those that say that there is none.
fn service_records(lookup: &Lookup) -> TimedAnswer<Vec<ServiceHost>> {
    let records = lookup.answers().iter();
    let mut hosts: Vec<_> = records
        .filter_map(|record| match &record.data {
            RData::SRV(srv) if !srv.target.is_root() && srv.port > 0 => Some(ServiceHost {
                priority: srv.priority,
                host: host_text(&srv.target),
                port: srv.port,
                weight: srv.weight,
                addresses: Vec::new(),
            }),
            _ => None,
        })
        .collect();
    hosts.sort_unstable();
    hosts.dedup_by(|a, b| (a.priority, &a.host, a.port) == (b.priority, &b.host, b.port));
    hosts.truncate(MAX_HOSTS);
    TimedAnswer {
        answer: hosts,
        ttl: ttl(lookup),
    }
}

/// A host name as in the configuration: in lower case, without the final dot.
fn host_text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// True if one of the addresses in the format of /proc/net/if_inet6 reaches beyond its link: a
/// machine without one gets no IPv6 addresses, as from the system's resolver.
fn has_wide_ipv6(text: &str) -> bool {
    text.lines().any(|line| {
        let scope = line.split_whitespace().nth(3);
        // ipv6(7): 10 is the host itself, 20 the link.
        scope.is_some_and(|scope| scope != "10" && scope != "20")
    })
}
