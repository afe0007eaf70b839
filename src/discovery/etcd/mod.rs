//! Members from etcd: every key with a prefix is one backend, as JSON.
//!
//! All keys are read once, and then watched from that revision on. A connection that breaks goes on
//! at another endpoint from the last revision; after a compaction all keys are read again. The last
//! members are kept in the state directory, for a start without etcd.
//!
//! `client.rs` speaks with an endpoint, `keys.rs` knows what the keys say.

mod client;
mod keys;

use std::{cell::RefCell, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use self::{
    client::{EtcdClient, EtcdError, WatchEvent},
    keys::{KeptMembers, KeyTable},
};
use super::{
    listed::{ListedState, MemberListing},
    resolver::DnsResolver,
};
use crate::{
    base::{backoff, paths::state_directory, rng::Random, state_file::StateFile},
    config::model::{BackendConfig, EtcdConfig, PoolConfig},
};

/// Time from a failure to the next attempt, jittered by 10 %; doubled by each further one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The longest of them.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Largest file of kept members, in bytes.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// The file with the last members of a pool; `None` without a state directory.
fn kept_file(pool: &str) -> Option<StateFile> {
    let directory: PathBuf = state_directory()?.join("members").join(pool);
    Some(StateFile::new(&directory, "etcd.json"))
}

/// Reads the last members of `pool`, kept by an earlier process.
pub(super) fn kept_members(cluster: &EtcdConfig, pool: &PoolConfig) -> Vec<BackendConfig> {
    let Some(file) = kept_file(&pool.name) else {
        return Vec::new();
    };
    match file.read(MAX_KEPT_BYTES) {
        Ok(Some(bytes)) => KeptMembers::read(&bytes, cluster).members(pool),
        Ok(None) => Vec::new(),
        Err(error) => {
            let path = file.path();
            tracing::warn!(target: "discovery", path = %path.display(), %error, "members that were kept cannot be read");
            Vec::new()
        }
    }
}

/// The task that watches the keys of one pool.
pub(super) struct EtcdSource {
    cluster: Box<EtcdConfig>,
    pool: Rc<RefCell<Arc<PoolConfig>>>,
    state: Rc<ListedState>,
    resolver: DnsResolver,
    keys: KeyTable,
}

impl EtcdSource {
    pub(super) fn new(
        cluster: Box<EtcdConfig>,
        pool: Rc<RefCell<Arc<PoolConfig>>>,
        state: Rc<ListedState>,
        resolver: DnsResolver,
    ) -> Self {
        Self {
            cluster,
            pool,
            state,
            resolver,
            keys: KeyTable::default(),
        }
    }

    /// Follows the keys until the task ends.
    pub(super) async fn run(mut self) {
        let mut random = Random::from_system();
        let mut failures = 0_u32;
        let mut endpoint = 0_usize;
        loop {
            let known = self.keys.revision();
            let error = self.follow(endpoint).await;
            // A connection that brought news was good: the next endpoint is tried at once.
            if self.keys.revision() != known {
                failures = 0;
            }
            match error {
                EtcdError::Quiet => continue,
                EtcdError::Compacted => {
                    self.keys.forget_revision();
                    continue;
                }
                EtcdError::Failed(cause) => self.state.fail(&cause),
            }
            failures = failures.saturating_add(1);
            endpoint = endpoint.wrapping_add(1);
            let pause = backoff::doubled(RETRY_INTERVAL, failures - 1, MAX_RETRY_INTERVAL);
            sleep(pause.mul_f64(0.9 + 0.2 * random.unit())).await;
        }
    }

    /// Follows the keys at one endpoint, until something ends that.
    async fn follow(&mut self, endpoint: usize) -> EtcdError {
        match self.try_follow(endpoint).await {
            Ok(()) => EtcdError::Quiet,
            Err(error) => error,
        }
    }

    async fn try_follow(&mut self, endpoint: usize) -> Result<(), EtcdError> {
        let cluster = self.cluster.clone();
        let endpoints = &cluster.endpoints;
        let address = endpoints.get(endpoint % endpoints.len().max(1));
        let Some(address) = address else {
            debug_assert!(false, "there is at least one endpoint");
            return Err(EtcdError::Failed("no endpoint".to_owned()));
        };
        let resolver = self.resolver.clone();
        let mut client = EtcdClient::new(address, &cluster, &resolver);
        client.log_in().await?;
        let revision = if let Some(revision) = self.keys.revision() {
            revision
        } else {
            let listed = client.list().await?;
            let pool = Arc::clone(&self.pool.borrow());
            self.keys.replace(listed.entries, listed.revision, &pool);
            self.publish().await;
            listed.revision
        };
        let mut watch = client.watch(revision + 1).await?;
        // The endpoint serves: a failure before is over.
        self.publish().await;
        while let Some(WatchEvent { changes, revision }) = watch.next().await? {
            if self.keys.apply(changes, revision, &self.pool.borrow()) {
                self.publish().await;
            }
        }
        Ok(())
    }

    /// Hands the members on, and keeps them for the next start.
    async fn publish(&mut self) {
        let (members, trouble) = self.keys.members();
        let listing = match trouble {
            None => MemberListing::Whole(members),
            Some(trouble) => MemberListing::Partial(members, trouble),
        };
        self.state.succeed(listing);
        let name = Arc::clone(&self.pool.borrow().name);
        let Some(file) = kept_file(&name) else { return };
        let Some(kept) = self.keys.take_new(&self.cluster) else {
            return;
        };
        let path = file.path();
        let written = spawn_blocking(move || file.write(&kept)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(target: "discovery", path = %path.display(), %error, "members cannot be kept for the next start");
        }
    }
}
