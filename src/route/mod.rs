//! Which route a request takes. Pure; knows the configuration's routes and nothing of pools or connections.
//!
//! Precedence among the routes that match: those that are `first`, in the order of the file; then those that name the
//! listener; then, unless the listener redirects what is left, the others. Within the last two: exact host, then the
//! longest `*.suffix`, then no host; within that an exact path, then the regular expression that stands first in the file,
//! then the longest prefix by whole segments, then no path; within that routes with a method, then those with more headers,
//! then the first in the file. Regular expressions stand between exact and prefix because they are written for particular
//! paths, while a prefix is what is left.
//!
//! HostTable are compared in lower case without port and final dot (`host`), paths in one normal form (`path`).
//! A lookup is a hash per label of the host and per segment of the path, however many routes there are; only `first` routes
//! (`first`) and regular expressions are tried one by one.

mod first;
mod host;
mod path;
mod rewrite;
#[cfg(test)]
mod rewrite_tests;
mod server_name;
mod split;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use regex::Regex;

pub(crate) use self::host::{MAX_HOST, normal_host};
use self::{first::FirstRoute, host::parents, path::EncodedSlash, rewrite::PathRewriter};
pub use self::{path::normal_path, server_name::ServerNames, split::pick_pool};
use crate::{
    config::model::{
        Config, HeaderMatch, HostMatch, ListenerConfig, ListenerProtocol, PathMatch, RouteConfig,
        whole_path,
    },
    reason::Reason,
};

/// Asks the request for a header: true if it has a field of that name (given in lower case) whose value passes the
/// test. The test is to be made for every field of the name until one passes.
pub type HasHeader<'a> = dyn Fn(&str, &dyn Fn(&[u8]) -> bool) -> bool + 'a;

/// The routes of a configuration, prepared for lookup.
#[derive(Debug)]
pub struct Router {
    /// By listener; listeners with the same routes share a table.
    tables: Vec<Arc<RouteTable>>,
    /// By route.
    rewriters: Vec<Option<PathRewriter>>,
}

/// The routes of a listener.
#[derive(Debug, Default)]
struct RouteTable {
    /// In the order of the file.
    first: Vec<FirstRoute>,
    /// Those that name their listeners.
    named: HostTable,
    others: HostTable,
}

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
    /// By prefix without its final slash: `/` is empty.
    prefix: HashMap<Box<[u8]>, Vec<RouteEntry>>,
    /// Segments of the longest prefix: a path of thousands of segments costs no more than this many lookups.
    depth: usize,
    any: Vec<RouteEntry>,
}

/// What is left to compare when host and path have matched.
#[derive(Debug, Clone)]
struct RouteEntry {
    route: usize,
    methods: Arc<[String]>,
    headers: Arc<[HeaderMatch]>,
}

/// The part of a request that is the same for all readings of its path.
struct RequestConditions<'a> {
    method: &'a [u8],
    header: &'a HasHeader<'a>,
}

impl Router {
    /// Prepares the routes of `config`.
    pub fn new(config: &Config) -> Self {
        let mut shared: HashMap<Vec<usize>, Arc<RouteTable>> = HashMap::new();
        let tables = config
            .listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| {
                let is_http = listener.protocol == ListenerProtocol::Http;
                let of_listener: Vec<usize> = config
                    .routes
                    .iter()
                    .enumerate()
                    .filter(|(_, route)| is_http && serves(route, index, listener))
                    .map(|(route, _)| route)
                    .collect();
                let table = shared
                    .entry(of_listener)
                    .or_insert_with_key(|routes| Arc::new(RouteTable::new(&config.routes, routes)));
                Arc::clone(table)
            });
        Self {
            tables: tables.collect(),
            rewriters: config.routes.iter().map(PathRewriter::new).collect(),
        }
    }

    /// The target that the backend gets for a request of this route, with the client's query; `None`: `target` as it
    /// came. `target` is one that [`Router::find`] has let through.
    ///
    /// # Errors
    /// The request has two meanings once it is rewritten, or the new target is too long. See `rewrite`.
    pub fn rewrite(&self, route: usize, target: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
        match self.rewriters.get(route) {
            Some(Some(rewriter)) => rewriter.target(target),
            _ => Ok(None),
        }
    }

    /// The route for a request: an index into `Config::routes`, or `None` if no route matches: then it is the listener's own
    /// redirect or pool that counts. A listener with a redirect has no routes but those that come before it.
    ///
    /// `listener` is the index into `Config::listeners`, `host` the authority as sent, `path` the path as sent (a query
    /// is ignored). [`Reason::RequestError`] refuses paths that servers read differently: an encoded NUL, and encoded
    /// slashes where it makes a difference for the route.
    pub fn find(
        &self,
        listener: usize,
        host: &[u8],
        path: &[u8],
        method: &[u8],
        header: &HasHeader<'_>,
    ) -> Result<Option<usize>, Reason> {
        let Some(table) = self.tables.get(listener) else {
            return Ok(None);
        };
        if path::has_nul(path) {
            return Err(Reason::RequestError);
        }
        let mut buffer = [0; MAX_HOST];
        let host = normal_host(host, &mut buffer).unwrap_or_default();
        let rest = RequestConditions { method, header };
        let found = table.find(host, &normal_path(path), &rest);
        if path::is_ambiguous(path)
            && table.find(host, &path::normal(path, EncodedSlash::Belongs), &rest) != found
        {
            return Err(Reason::RequestError);
        }
        Ok(found)
    }
}

/// True if the listener with this index has the route: a listener's redirect leaves nothing to those behind it.
fn serves(route: &RouteConfig, index: usize, listener: &ListenerConfig) -> bool {
    if route.listeners.is_empty() {
        route.first || listener.redirect.is_none()
    } else {
        route.listeners.contains(&index)
    }
}

impl RouteTable {
    fn new(routes: &[RouteConfig], indexes: &[usize]) -> Self {
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

    fn find(&self, host: &[u8], path: &[u8], rest: &RequestConditions<'_>) -> Option<usize> {
        let first = self.first.iter().find(|one| one.matches(host, path, rest));
        first
            .map(FirstRoute::route)
            .or_else(|| self.named.find(host, path, rest))
            .or_else(|| self.others.find(host, path, rest))
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
            let mut buffer = [0; MAX_HOST];
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

    fn find(&self, host: &[u8], path: &[u8], rest: &RequestConditions<'_>) -> Option<usize> {
        let exact = self
            .exact
            .get(host)
            .and_then(|paths| paths.find(path, rest));
        exact
            .or_else(|| {
                if self.suffix.is_empty() {
                    return None;
                }
                parents(host).find_map(|parent| self.suffix.get(parent)?.find(path, rest))
            })
            .or_else(|| self.any.find(path, rest))
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

    fn find(&self, path: &[u8], rest: &RequestConditions<'_>) -> Option<usize> {
        self.exact
            .get(path)
            .and_then(|list| first(list, rest))
            .or_else(|| self.find_regex(path, rest))
            .or_else(|| {
                if self.prefix.is_empty() {
                    return None;
                }
                prefixes(path, self.depth).find_map(|prefix| first(self.prefix.get(prefix)?, rest))
            })
            .or_else(|| first(&self.any, rest))
    }

    fn find_regex(&self, path: &[u8], rest: &RequestConditions<'_>) -> Option<usize> {
        if self.regex.is_empty() {
            return None;
        }
        let path = text(path);
        self.regex
            .iter()
            .find_map(|(regex, entries)| first(entries, rest).filter(|_| regex.is_match(&path)))
    }
}

/// The first entry that matches; the entries of one path are in the order in which they are to be tried.
fn first(entries: &[RouteEntry], rest: &RequestConditions<'_>) -> Option<usize> {
    let mut entries = entries.iter();
    entries.find(|entry| entry.matches(rest)).map(|e| e.route)
}

/// A path for regular expressions. Bytes that are not UTF-8 become U+FFFD, so that no byte hides a path from `.`.
fn text(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

impl RouteEntry {
    /// Sorts what is to be tried first to the front.
    fn rank(&self) -> (bool, std::cmp::Reverse<usize>, usize) {
        (
            self.methods.is_empty(),
            std::cmp::Reverse(self.headers.len()),
            self.route,
        )
    }

    fn matches(&self, rest: &RequestConditions<'_>) -> bool {
        let method = self.methods.is_empty()
            || self
                .methods
                .iter()
                .any(|method| method.as_bytes() == rest.method);
        method
            && self
                .headers
                .iter()
                .all(|wanted| (rest.header)(&wanted.name, &|value| wanted.holds(value)))
    }
}

/// The expression made to match the whole path; one that is too large with its anchors stays as it is.
fn whole(regex: &Regex) -> Regex {
    Regex::new(&whole_path(regex.as_str())).unwrap_or_else(|_| regex.clone())
}

/// The prefixes of a path by whole segments, longest first, of at most `depth` segments; the last is empty, for `/`.
fn prefixes(path: &[u8], depth: usize) -> impl Iterator<Item = &[u8]> {
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
