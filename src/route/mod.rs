//! Selection of the route for a request. Pure; knows the configured routes and neither pools nor
//! connections.
//!
//! Precedence among the routes that match, by the first difference:
//! 1. routes that are `first`, in the order of the file;
//! 2. routes that name the listener, then, unless the listener redirects the others, all other
//!    ones;
//! 3. exact host, then the longest `*.suffix`, then no host;
//! 4. exact path, then the regular expression that is first in the file, then the longest prefix by
//!    whole segments, then no path;
//! 5. a method, then more headers, then the first in the file.
//!
//! Regular expressions rank between exact and prefix because they are written for particular paths,
//! while a prefix is a fallback.
//!
//! Hosts are compared in lower case without port and final dot (`host`), paths in one normal form
//! (`path`). A lookup hashes each label of the host and each segment of the path, however many
//! routes there are. Only `first` routes (`first`) and regular expressions are matched one by one.

mod entry;
mod first;
mod host;
mod path;
mod pattern;
mod rewrite;
#[cfg(test)]
mod rewrite_tests;
mod server_name;
mod split;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

pub(crate) use self::host::{MAX_HOST_BYTES, normal_host};
pub use self::{entry::HasHeader, path::normal_path, server_name::ServerNames, split::pick_pool};
use self::{
    entry::RequestConditions, path::EncodedSlash, rewrite::PathRewriter, table::RouteTable,
};
use crate::{
    config::model::{Config, ListenerConfig, ListenerProtocol, RouteConfig},
    reason::Reason,
};

/// The routes of a configuration, prepared for lookup.
#[derive(Debug)]
pub struct Router {
    /// By listener; listeners with the same routes share a table.
    tables: Vec<Arc<RouteTable>>,
    /// By route.
    rewriters: Vec<Option<PathRewriter>>,
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

    /// Returns the target for the backend of a request of this route, with the client's query;
    /// `None` keeps `target`. `target` is one that [`Router::find`] has accepted.
    ///
    /// # Errors
    /// The rewritten request would have two meanings, or the new target is too long. See `rewrite`.
    pub fn rewrite(&self, route: usize, target: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
        match self.rewriters.get(route) {
            Some(Some(rewriter)) => rewriter.target(target),
            _ => Ok(None),
        }
    }

    /// Returns the route for a request, an index into `Config::routes`. `None` if no route matches:
    /// then the listener's own redirect or pool applies. A listener with a redirect has only the
    /// routes that go before it.
    ///
    /// `listener` is the index into `Config::listeners`, `host` the authority as sent, `path` the
    /// path as sent (a query is ignored).
    ///
    /// # Errors
    /// [`Reason::RequestError`] for paths that servers read differently: an encoded NUL, and
    /// encoded slashes if they make a difference for the route.
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
        // A host that is too long is none: it matches only routes without a host.
        let mut buffer = [0; MAX_HOST_BYTES];
        let host = normal_host(host, &mut buffer).unwrap_or_default();
        let conditions = RequestConditions { method, header };
        let found = table.find(host, &normal_path(path), &conditions);
        // Both readings of an encoded slash must lead to the same route: otherwise a client could
        // reach a path of one route under the rules of another.
        if path::is_ambiguous(path)
            && table.find(
                host,
                &path::normal(path, EncodedSlash::Belongs),
                &conditions,
            ) != found
        {
            return Err(Reason::RequestError);
        }
        Ok(found)
    }
}

/// True if the listener with this index has the route. A redirect takes every request that no route
/// before it has taken.
fn serves(route: &RouteConfig, index: usize, listener: &ListenerConfig) -> bool {
    if route.listeners.is_empty() {
        route.first || listener.redirect.is_none()
    } else {
        route.listeners.contains(&index)
    }
}
