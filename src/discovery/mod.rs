//! Members of pools: from names by the DNS, a watched file, keys of etcd.
//!
//! Lives on the control thread and nothing in it blocks. It knows what the sources list, and tells
//! which pools that concerns; `runtime/membership.rs` puts it in force. Read next: `members.rs`
//! (entries → members), `names.rs` (when a name is looked up), `resolver.rs` (how).

mod answer;
mod changes;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod listed;
mod members;
mod names;
mod resolver;
mod source_table;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{AbortHandle, JoinSet, spawn_local},
    time::{sleep, timeout_at},
};

pub use self::source_table::{MemberSourceKind, SourceKey, SourceState, SourceTable, SourceView};
use self::{
    answer::DnsAnswer,
    changes::{SourceChange, SourceChanges},
    listed::{ListedState, ListedTask},
    members::DnsQuery,
    names::NameTask,
    resolver::{DnsResolver, ResolverFiles},
};
use crate::{
    base::address::BackendAddress,
    config::model::{BackendConfig, Config, DiscoverConfig, PoolConfig, ResolveMode},
    pool::{Backend, Pool, ResolvedAddresses},
};

/// Time from one look at /etc/resolv.conf and /etc/hosts to the next.
const FILES_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which changes are gathered: a pool of many names is not built once for each of them.
const GATHER_TIME: Duration = Duration::from_millis(10);

/// Addresses used of a name with `resolve: one`: the first in ascending order.
const MAX_ADDRESSES_OF_ONE: usize = 16;

/// All sources of the configuration in force. Dropping it ends all look-ups.
#[derive(Debug)]
pub struct MemberDiscovery {
    table: Arc<SourceTable>,
    context: Rc<DiscoveryContext>,
    names: HashMap<DnsQuery, NameTask>,
    /// By pool.
    listed: HashMap<Arc<str>, ListedTask>,
    /// Look-ups that each dynamic pool needs, by its index.
    queries: HashMap<usize, HashSet<DnsQuery>>,
    /// The pools that need a look-up, as indexes: the reverse.
    users: HashMap<DnsQuery, BTreeSet<usize>>,
    pools: HashMap<Arc<str>, usize>,
    config: Arc<Config>,
    files: AbortHandle,
}

/// Parts that tasks share.
struct DiscoveryContext {
    resolver: DnsResolver,
    servers: RefCell<Vec<SocketAddr>>,
    changes: Rc<SourceChanges>,
}

impl std::fmt::Debug for DiscoveryContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiscoveryContext").finish_non_exhaustive()
    }
}

impl Drop for MemberDiscovery {
    fn drop(&mut self) {
        self.files.abort();
    }
}

impl MemberDiscovery {
    /// Without sources yet. Must be called on the control thread, inside its runtime.
    ///
    /// # Errors
    /// A text if no resolver can be made.
    pub fn new(table: Arc<SourceTable>) -> Result<Self, String> {
        Self::with_files(table, ResolverFiles::default())
    }

    fn with_files(table: Arc<SourceTable>, files: ResolverFiles) -> Result<Self, String> {
        let context = Rc::new(DiscoveryContext {
            resolver: DnsResolver::new(files, &[])?,
            servers: RefCell::default(),
            changes: Rc::default(),
        });
        let files = spawn_local(watch_files(Rc::clone(&context))).abort_handle();
        Ok(Self {
            table,
            context,
            names: HashMap::new(),
            listed: HashMap::new(),
            queries: HashMap::new(),
            users: HashMap::new(),
            pools: HashMap::new(),
            config: Arc::default(),
            files,
        })
    }

    /// Members of a pool by what is known now: of a name that was not resolved yet, a backend
    /// without an address.
    pub fn members(&self, pool: &PoolConfig) -> Vec<BackendConfig> {
        let listed = self.listed_by(pool);
        let entries = pool.backends.iter().chain(&listed);
        members::expand(entries, |query| self.answer_to(query))
    }

    /// Entries that the pool's source lists.
    fn listed_by(&self, pool: &PoolConfig) -> Vec<BackendConfig> {
        let Some(discover) = &pool.discover else {
            return Vec::new();
        };
        let running = self.listed.get(&pool.name);
        match running.filter(|running| running.discover == *discover) {
            Some(running) => running.state.members(),
            None => initial(pool, discover),
        }
    }

    fn answer_to(&self, query: &DnsQuery) -> Option<DnsAnswer> {
        self.names.get(query)?.answer()
    }

    /// Follows a configuration that is in force now: sources that left end, new ones start, and
    /// names are looked up again.
    pub fn apply(&mut self, config: &Arc<Config>) {
        self.context.servers.replace(config.resolvers.clone());
        self.context.resolver.update(&config.resolvers);
        self.config = Arc::clone(config);
        let pools = config.pools.iter().enumerate();
        self.pools = pools
            .clone()
            .map(|(index, pool)| (Arc::clone(&pool.name), index))
            .collect();
        self.follow_lists();
        self.refresh();
        let dynamic = pools.filter(|(_, pool)| is_resolved(pool) || pool.discover.is_some());
        self.queries = dynamic
            .map(|(index, pool)| (index, self.queries_of(pool)))
            .collect();
        self.users.clear();
        for (index, queries) in &self.queries {
            for query in queries {
                let users = self.users.entry(query.clone()).or_default();
                users.insert(*index);
            }
        }
        self.names.retain(|query, _| self.users.contains_key(query));
        let queries: Vec<_> = self.users.keys().cloned().collect();
        for query in queries {
            self.start_name(query);
        }
    }

    /// Ends sources of lists that left, and starts new ones.
    fn follow_lists(&mut self) {
        let mut kept = HashMap::new();
        for pool in &self.config.pools {
            let Some(discover) = &pool.discover else {
                continue;
            };
            let running = self.listed.remove(&pool.name);
            let running = running.filter(|running| running.discover == *discover);
            let task = match running {
                Some(running) => {
                    running.pool.replace(Arc::new(pool.clone()));
                    running
                }
                None => self.start_list(pool, discover),
            };
            kept.insert(Arc::clone(&pool.name), task);
        }
        self.listed = kept;
    }

    fn start_list(&self, pool: &PoolConfig, discover: &DiscoverConfig) -> ListedTask {
        let config = Rc::new(RefCell::new(Arc::new(pool.clone())));
        let (kind, detail) = match discover {
            DiscoverConfig::File(file) => (MemberSourceKind::File, file.path.display().to_string()),
            DiscoverConfig::Etcd(etcd) => (MemberSourceKind::Etcd, etcd.prefix.clone()),
        };
        let key = (kind, Arc::clone(&pool.name));
        let source = self.table.add(key.clone(), detail);
        let changes = &self.context.changes;
        let state = ListedState::new(&pool.name, &source, changes, initial(pool, discover));
        let task = match discover {
            DiscoverConfig::File(watched) => {
                let (path, shared) = (watched.path.clone(), Rc::clone(&state));
                spawn_local(file::watch(path, Rc::clone(&config), shared)).abort_handle()
            }
            #[cfg(feature = "etcd")]
            DiscoverConfig::Etcd(cluster) => {
                let watched = etcd::EtcdSource::new(
                    cluster.clone(),
                    Rc::clone(&config),
                    Rc::clone(&state),
                    self.context.resolver.clone(),
                );
                spawn_local(watched.run()).abort_handle()
            }
            #[cfg(not(feature = "etcd"))]
            DiscoverConfig::Etcd(_) => {
                debug_assert!(false, "refused when the configuration is read");
                spawn_local(async {}).abort_handle()
            }
        };
        ListedTask {
            discover: discover.clone(),
            pool: config,
            state,
            task,
            table: Arc::clone(&self.table),
            key,
        }
    }

    /// Look-ups that a pool needs now.
    fn queries_of(&self, pool: &PoolConfig) -> HashSet<DnsQuery> {
        let listed = self.listed_by(pool);
        let entries = pool.backends.iter().chain(&listed);
        entries.filter_map(DnsQuery::of).collect()
    }

    fn start_name(&mut self, query: DnsQuery) {
        if !self.names.contains_key(&query) {
            let resolver = self.context.resolver.clone();
            let changes = &self.context.changes;
            let task = NameTask::start(query.clone(), resolver, &self.table, changes);
            self.names.insert(query, task);
        }
    }

    /// Looks all names up again.
    pub fn refresh(&self) {
        self.names.values().for_each(NameTask::refresh);
    }

    /// Completes when sources have changed, with those that follow at once. Nothing is lost if it
    /// is dropped before.
    pub async fn changed(&self) {
        self.context.changes.wait().await;
        sleep(GATHER_TIME).await;
    }

    /// Takes the changes of all sources: the pools that they concern, as indexes.
    pub fn take_changes(&mut self) -> BTreeSet<usize> {
        let mut pools = BTreeSet::new();
        for change in self.context.changes.take() {
            match change {
                SourceChange::Name(query) => {
                    pools.extend(self.users.get(&query).into_iter().flatten());
                }
                SourceChange::Files => self.refresh(),
                SourceChange::Listed(name) => {
                    if let Some(index) = self.pools.get(&name).copied() {
                        self.follow_names(index);
                        pools.insert(index);
                    }
                }
            }
        }
        pools
    }

    /// Starts and ends look-ups after the list of one pool has changed.
    fn follow_names(&mut self, index: usize) {
        let config = Arc::clone(&self.config);
        let Some(pool) = config.pools.get(index) else {
            debug_assert!(false, "an index of another configuration");
            return;
        };
        let new = self.queries_of(pool);
        let old = self.queries.insert(index, new.clone()).unwrap_or_default();
        for query in old.difference(&new) {
            if let Some(users) = self.users.get_mut(query) {
                users.remove(&index);
                if users.is_empty() {
                    self.users.remove(query);
                    self.names.remove(query);
                }
            }
        }
        for query in new.difference(&old) {
            self.users.entry(query.clone()).or_default().insert(index);
            self.start_name(query.clone());
        }
    }

    /// Gives the backends of `pool` that are names what the names resolve to.
    pub fn publish(&self, pool: &Pool) {
        for backend in pool.backends.iter().filter(|one| one.state.is_name()) {
            let Some(query) = DnsQuery::of(&backend.config) else {
                continue;
            };
            let Some(name) = self.names.get(&query).filter(|name| name.is_looked_up()) else {
                continue;
            };
            if backend.config.resolve == ResolveMode::One
                && let Some(DnsAnswer::Host(found)) = name.answer()
            {
                store(backend, &found);
            }
            backend.state.looked_up.raise();
        }
    }
}

/// Members of a pool at start, before anything was looked up.
pub fn first_members(pool: &PoolConfig) -> Vec<BackendConfig> {
    let listed = pool.discover.as_ref();
    let listed = listed.map_or_else(Vec::new, |discover| initial(pool, discover));
    members::expand(pool.backends.iter().chain(&listed), |_| None)
}

/// Members of each of `pools` by one look-up of every name, with `servers` for `resolvers`. What is
/// not known at the `deadline`, or cannot be looked up, is a backend without an address. Must be
/// called inside a local task set.
pub async fn members_once(
    pools: &[PoolConfig],
    servers: &[SocketAddr],
    deadline: Instant,
) -> Vec<Vec<BackendConfig>> {
    let listed = |pool: &PoolConfig| {
        let listed = pool.discover.as_ref();
        let listed = listed.map_or_else(Vec::new, |discover| initial(pool, discover));
        [pool.backends.clone(), listed].concat()
    };
    let entries: Vec<_> = pools.iter().map(listed).collect();
    let groups = entries.iter().flatten().filter(|entry| entry.is_group());
    let queries: BTreeSet<_> = groups.filter_map(DnsQuery::of).collect();
    let mut answers = HashMap::new();
    if let Ok(resolver) = DnsResolver::new(ResolverFiles::default(), servers) {
        let mut lookups = JoinSet::new();
        for query in queries {
            let resolver = resolver.clone();
            lookups.spawn_local(async move {
                let answer = names::look_up(&resolver, &query, None).await;
                (query, answer.ok().map(|found| found.answer))
            });
        }
        while let Ok(Some(joined)) = timeout_at(deadline.into(), lookups.join_next()).await {
            answers.extend(joined.ok());
        }
    }
    let answer_to = |query: &DnsQuery| answers.get(query).cloned().flatten();
    let expanded = entries
        .iter()
        .map(|entries| members::expand(entries.iter(), answer_to));
    expanded.collect()
}

/// Publishes the addresses of a backend that is a name, if they changed.
fn store(backend: &Backend, found: &[IpAddr]) {
    let BackendAddress::Name { port, .. } = &backend.config.address else {
        return;
    };
    let found = found.iter().take(MAX_ADDRESSES_OF_ONE);
    let addresses: Vec<_> = found.map(|ip| SocketAddr::new(*ip, *port)).collect();
    let old = backend.state.resolved.load_full();
    if old.addresses() != addresses {
        let new = ResolvedAddresses::new(addresses, Some(&old));
        backend.state.resolved.store(Arc::new(new));
    }
}

/// Members of a source before it was read.
#[cfg_attr(
    not(feature = "etcd"),
    expect(unused_variables, reason = "only etcd keeps members by pool")
)]
fn initial(pool: &PoolConfig, discover: &DiscoverConfig) -> Vec<BackendConfig> {
    match discover {
        DiscoverConfig::File(file) => file.initial.to_vec(),
        #[cfg(feature = "etcd")]
        DiscoverConfig::Etcd(cluster) => etcd::kept_members(cluster, pool),
        #[cfg(not(feature = "etcd"))]
        DiscoverConfig::Etcd(_) => Vec::new(),
    }
}

/// True if an entry of the pool is a name.
fn is_resolved(pool: &PoolConfig) -> bool {
    pool.backends.iter().any(|one| one.address.is_name())
}

/// Takes up changes of the files of the system's resolver.
async fn watch_files(context: Rc<DiscoveryContext>) {
    loop {
        sleep(FILES_INTERVAL).await;
        let servers = context.servers.borrow().clone();
        if context.resolver.update(&servers) {
            tracing::info!(target: "discovery", "the files of the system's resolver have changed");
            context.changes.add(SourceChange::Files);
        }
    }
}
