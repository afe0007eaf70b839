//! `pools.NAME.discover`, and how names of backends are resolved.

use std::{fmt, path::PathBuf, sync::Arc};

use super::{BackendConfig, PoolTlsConfig};
use crate::base::address::BackendAddress;

/// `backends[].resolve`: what the addresses of a name are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResolveMode {
    /// Each address is a backend of its own.
    #[default]
    Each,
    /// One backend, reached at any of them.
    One,
}

/// `pools.NAME.discover`: where members of the pool are listed, besides `backends`.
#[derive(Debug, Clone, PartialEq)]
pub enum DiscoverConfig {
    /// A file that is watched.
    File(MembersFileConfig),
    /// Keys of an etcd cluster that are watched.
    Etcd(Box<EtcdConfig>),
}

/// `discover.file`.
#[derive(Debug, Clone)]
pub struct MembersFileConfig {
    /// The file; relative paths were resolved.
    pub path: PathBuf,
    /// Its members when the configuration was read: none if it could not be read then.
    pub initial: Arc<[BackendConfig]>,
}

/// The content of the file is no part of the configuration: it changes without a reload.
impl PartialEq for MembersFileConfig {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// `discover.etcd`.
#[derive(Clone, PartialEq)]
pub struct EtcdConfig {
    /// Members of the cluster; at least one.
    pub endpoints: Vec<BackendAddress>,
    /// Prefix of the keys that are backends.
    pub prefix: String,
    /// `user` with `password`.
    pub login: Option<(String, String)>,
    /// `tls` to the endpoints; none: plain.
    pub tls: Option<PoolTlsConfig>,
}

/// Without the password, which must reach no log.
impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
