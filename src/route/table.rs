//! Hash tables over the routes of one listener.

use std::collections::HashMap;

use regex::Regex;

use super::{
    entry::{RequestConditions, RouteEntry},
    first::FirstRoute,
    host::{MAX_HOST_BYTES, normal_host, parents},
    path::normal_path,
    pattern::{text, whole},
};
use crate::config::model::{HostMatch, PathMatch, RouteConfig};

/// All routes of a listener.
#[derive(Debug, Default)]
pub(super) struct RouteTable {
    /// In the order of the file.
    first: Vec<FirstRoute>,
    /// Routes that name their listeners.
    named: HostTable,
    others: HostTable,
}

/// Routes by host, those of one host in a [`PathTable`].
#[derive(Debug, Default)]
struct HostTable {
    exact: HashMap<Box<[u8]>, PathTable>,
    suffix: HashMap<Box<[u8]>, PathTable>,
    any: PathTable,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct PathTable {
    exact: HashMap<Box<[u8]>, Vec<RouteEntry>>,
    /// Each expression once, in the order of the file.
    regex: Vec<(Regex, Vec<RouteEntry>)>,
    /// By prefix without its final slash; `/` is the empty one.
    prefix: HashMap<Box<[u8]>, Vec<RouteEntry>>,
    /// Segments of the longest prefix. Bounds the lookups for a path of thousands of segments.
    depth: usize,
    any: Vec<RouteEntry>,
}

impl RouteTable {
    /// Prepares the routes at `indexes`.
    pub(super) fn new(routes: &[RouteConfig], indexes: &[usize]) -> Self {
        let mut table = Self::default();
        for (index, route) in indexes.iter().filter_map(|i| Some((*i, routes.get(*i)?))) {
            let entry = RouteEntry {
                route: index,
                methods: route.methods.clone().into(),
                headers: route.headers.clone().into(),
            };
            if route.first {
                table.first.push(FirstRoute::new(route, entry));
            } else if route.listeners.is_empty() {
                table.others.add(route, &entry);
            } else {
                table.named.add(route, &entry);
            }
        }
        table.named.sort();
        table.others.sort();
        table
    }

    /// Finds the best match; `host` and `path` are in normal form.
    pub(super) fn find(
        &self,
        host: &[u8],
        path: &[u8],
        conditions: &RequestConditions<'_>,
    ) -> Option<usize> {
        let first = self
            .first
            .iter()
            .find(|one| one.matches(host, path, conditions));
        first
            .map(FirstRoute::route)
            .or_else(|| self.named.find(host, path, conditions))
            .or_else(|| self.others.find(host, path, conditions))
    }
}

impl HostTable {
    fn add(&mut self, route: &RouteConfig, entry: &RouteEntry) {
        if route.hosts.is_empty() {
            self.any.add(&route.path, entry);
        }
        for host in &route.hosts {
            let (map, name) = match host {
                HostMatch::Exact(name) => (&mut self.exact, name),
                HostMatch::Suffix(name) => (&mut self.suffix, name),
            };
            let mut buffer = [0; MAX_HOST_BYTES];
            if let Some(name) = normal_host(name.as_bytes(), &mut buffer) {
                map.entry(name.into()).or_default().add(&route.path, entry);
            }
        }
    }

    fn sort(&mut self) {
        let hosts = self.exact.values_mut().chain(self.suffix.values_mut());
        hosts.for_each(PathTable::sort);
        self.any.sort();
    }

    fn find(&self, host: &[u8], path: &[u8], conditions: &RequestConditions<'_>) -> Option<usize> {
        let exact = self
            .exact
            .get(host)
            .and_then(|paths| paths.find(path, conditions));
        exact
            .or_else(|| {
                if self.suffix.is_empty() {
                    return None;
                }
                parents(host).find_map(|parent| self.suffix.get(parent)?.find(path, conditions))
            })
            .or_else(|| self.any.find(path, conditions))
    }
}

impl PathTable {
    fn add(&mut self, path: &PathMatch, entry: &RouteEntry) {
        let entry = entry.clone();
        match path {
            PathMatch::Any => self.any.push(entry),
            PathMatch::Regex(regex) => {
                let regex = whole(regex);
                let mut known = self.regex.iter_mut();
                match known.find(|(known, _)| known.as_str() == regex.as_str()) {
                    Some((_, entries)) => entries.push(entry),
                    None => self.regex.push((regex, vec![entry])),
                }
            }
            PathMatch::Exact(path) => {
                let path = normal_path(path.as_bytes());
                self.exact.entry((*path).into()).or_default().push(entry);
            }
            PathMatch::Prefix(path) => {
                let path = normal_path(path.as_bytes());
                let path = path.strip_suffix(b"/").unwrap_or(&path);
                self.depth = self.depth.max(memchr::memchr_iter(b'/', path).count());
                self.prefix.entry(path.into()).or_default().push(entry);
            }
        }
    }

    fn sort(&mut self) {
        self.any.sort_by_key(RouteEntry::rank);
        let regexes = self.regex.iter_mut().map(|(_, entries)| entries);
        let lists = self.exact.values_mut().chain(self.prefix.values_mut());
        lists
            .chain(regexes)
            .for_each(|list| list.sort_by_key(RouteEntry::rank));
    }

    /// Finds the best match among the routes of this host. The order of the steps is the
    /// precedence.
    fn find(&self, path: &[u8], conditions: &RequestConditions<'_>) -> Option<usize> {
        self.exact
            .get(path)
            .and_then(|list| first(list, conditions))
            .or_else(|| self.find_regex(path, conditions))
            .or_else(|| {
                if self.prefix.is_empty() {
                    return None;
                }
                prefixes(path, self.depth)
                    .find_map(|prefix| first(self.prefix.get(prefix)?, conditions))
            })
            .or_else(|| first(&self.any, conditions))
    }

    /// Finds the first expression that matches; conditions first, as they cost less.
    fn find_regex(&self, path: &[u8], conditions: &RequestConditions<'_>) -> Option<usize> {
        if self.regex.is_empty() {
            return None;
        }
        let path = text(path);
        self.regex.iter().find_map(|(regex, entries)| {
            first(entries, conditions).filter(|_| regex.is_match(&path))
        })
    }
}

/// The first entry that matches; `entries` are sorted by rank.
fn first(entries: &[RouteEntry], conditions: &RequestConditions<'_>) -> Option<usize> {
    let mut entries = entries.iter();
    entries
        .find(|entry| entry.matches(conditions))
        .map(|e| e.route)
}

/// The prefixes of a path by whole segments, of at most `depth` segments, longest first. The last
/// one is empty, for `/`.
pub(super) fn prefixes(path: &[u8], depth: usize) -> impl Iterator<Item = &[u8]> {
    let end = memchr::memchr_iter(b'/', path)
        .nth(depth)
        .unwrap_or(path.len());
    let longest = path
        .starts_with(b"/")
        .then(|| path.get(..end))
        .flatten()
        .map(|path| path.strip_suffix(b"/").unwrap_or(path));
    std::iter::successors(longest, |path| {
        memchr::memrchr(b'/', path).and_then(|slash| path.get(..slash))
    })
}
