//! Routes that are `first`: matched one by one, before all others.

use regex::Regex;

use super::{
    entry::{RequestConditions, RouteEntry},
    host::{MAX_HOST_BYTES, normal_host, parents},
    path::normal_path,
    pattern::{text, whole},
};
use crate::config::model::{HostMatch, PathMatch, RouteConfig};

/// A route that is `first`, prepared for matching.
#[derive(Debug)]
pub(super) struct FirstRoute {
    /// Empty is any.
    hosts: Vec<HostPattern>,
    path: PathPattern,
    entry: RouteEntry,
}

/// A host in normal form.
#[derive(Debug)]
enum HostPattern {
    Exact(Box<[u8]>),
    Suffix(Box<[u8]>),
}

/// A path in normal form; a prefix is without its final slash.
#[derive(Debug)]
enum PathPattern {
    Any,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Regex(Regex),
}

impl FirstRoute {
    pub(super) fn new(route: &RouteConfig, entry: RouteEntry) -> Self {
        let path = match &route.path {
            PathMatch::Any => PathPattern::Any,
            PathMatch::Exact(path) => PathPattern::Exact((*normal_path(path.as_bytes())).into()),
            PathMatch::Prefix(path) => {
                let path = normal_path(path.as_bytes());
                PathPattern::Prefix(path.strip_suffix(b"/").unwrap_or(&path).into())
            }
            PathMatch::Regex(regex) => PathPattern::Regex(whole(regex)),
        };
        Self {
            hosts: route.hosts.iter().filter_map(HostPattern::new).collect(),
            path,
            entry,
        }
    }

    /// Index into `Config::routes`.
    pub(super) fn route(&self) -> usize {
        self.entry.route
    }

    /// True if the route matches; `host` and `path` are in normal form.
    pub(super) fn matches(
        &self,
        host: &[u8],
        path: &[u8],
        conditions: &RequestConditions<'_>,
    ) -> bool {
        // The path last: a regular expression costs more than all other tests.
        let host = self.hosts.is_empty() || self.hosts.iter().any(|one| one.matches(host));
        host && self.entry.matches(conditions) && self.path.matches(path)
    }
}

impl HostPattern {
    fn new(host: &HostMatch) -> Option<Self> {
        let mut buffer = [0; MAX_HOST_BYTES];
        Some(match host {
            HostMatch::Exact(name) => {
                Self::Exact(normal_host(name.as_bytes(), &mut buffer)?.into())
            }
            HostMatch::Suffix(name) => {
                Self::Suffix(normal_host(name.as_bytes(), &mut buffer)?.into())
            }
        })
    }

    fn matches(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Suffix(name) => parents(host).any(|parent| parent == &**name),
        }
    }
}

impl PathPattern {
    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|below| matches!(below, [] | [b'/', ..])),
            Self::Regex(regex) => regex.is_match(&text(path)),
        }
    }
}
