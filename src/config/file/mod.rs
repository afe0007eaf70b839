//! Turns the tree of a document into the checked model, section by section.
//!
//! Every reader returns a value, defaults in place of what was wrong, so that one run reports
//! everything; the value is used only when nothing was reported as an error.

mod backends;
mod balancing;
mod check_texts;
mod common;
mod discover;
mod ejection;
mod foreign;
mod global;
mod health_check;
mod listener;
mod matching;
mod pool;
mod rewrite;
mod route;
mod sni;
mod sticky;
mod tcp_pools;
mod tls;

use std::{collections::HashMap, net::SocketAddr};

use super::{
    bind_list::BindList,
    check, hint,
    key_value::KeyValue,
    model::{BackendConfig, Config, PoolConfig},
    problem::quote,
    reader::{NodeRef, OrNone, Section, TreeReader, assign},
    route_order,
    yaml::{NodeKind, YamlNode},
};
use crate::base::address::BindAddress;

/// The names of the pools or listeners, to resolve references.
#[derive(Default)]
pub(super) struct NameTable<'a> {
    index: HashMap<&'a str, usize>,
    order: Vec<(&'a str, usize)>,
    used: Vec<bool>,
    /// True where the section with the names could not be read: what it was to define is not known.
    is_unknown: bool,
}

impl<'a> NameTable<'a> {
    /// The names of `section`. Without it `is_meant` tells whether it was meant to be there.
    fn new(section: Option<&'a Section<'a>>, is_meant: bool) -> Self {
        section.map_or_else(
            || Self {
                is_unknown: is_meant,
                ..Self::default()
            },
            Self::of,
        )
    }

    fn of(section: &'a Section<'a>) -> Self {
        let order: Vec<(&str, usize)> = section
            .iter()
            .map(|at| (at.last_key(), at.key_place().line))
            .collect();
        Self {
            index: order
                .iter()
                .enumerate()
                .map(|(index, (name, _))| (*name, index))
                .collect(),
            used: vec![false; order.len()],
            order,
            is_unknown: false,
        }
    }

    /// The index of the pool or listener that `at` names.
    fn resolve(
        &mut self,
        reader: &mut TreeReader<'_>,
        at: NodeRef<'_>,
        what: &str,
    ) -> Option<usize> {
        let name = reader.text(at, &format!("the name of a {what}"), "write one name")?;
        let found = self.find(name);
        if found.is_none() && !self.is_unknown {
            let help = self.help(name, what);
            reader.error(at, format!("{what} {} is not defined", quote(name)), help);
        }
        found
    }

    /// The index of the pool or listener that the key of `at` names.
    fn resolve_key(
        &mut self,
        reader: &mut TreeReader<'_>,
        at: NodeRef<'_>,
        what: &str,
    ) -> Option<usize> {
        let name = at.last_key();
        let found = self.find(name);
        if found.is_none() && !self.is_unknown {
            let help = self.help(name, what);
            reader.error_at_key(at, format!("{what} {} is not defined", quote(name)), help);
        }
        found
    }

    fn find(&mut self, name: &str) -> Option<usize> {
        let index = *self.index.get(name)?;
        if let Some(used) = self.used.get_mut(index) {
            *used = true;
        }
        Some(index)
    }

    /// The hint for a name that is not defined.
    fn help(&self, name: &str, what: &str) -> String {
        let near = hint::nearest(name, self.order.iter().map(|(name, _)| *name));
        let line = near.and_then(|near| self.order.iter().find(|(name, _)| *name == near));
        match (line, self.order.len()) {
            (Some((near, line)), _) => format!("did you mean `{near}` (line {line})?"),
            _ if name.contains('/') => {
                format!(
                    "write the name of a {what}; a path for its backends goes into `rewrite` of a route"
                )
            }
            (None, 0) => format!("define it: there are no {what}s"),
            (None, 1..=5) => {
                let names: Vec<&str> = self.order.iter().map(|(name, _)| *name).collect();
                format!(
                    "defined: {}",
                    names
                        .iter()
                        .map(|name| quote(name))
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            }
            _ => format!("define it under `{what}s`"),
        }
    }
}

/// Reads a whole document.
pub(super) fn read(reader: &mut TreeReader<'_>, root: &YamlNode) -> (Config, BindList) {
    let mut config = Config::default();
    let mut binds = BindList::default();
    let at = NodeRef::root(root);
    if matches!(root.kind, NodeKind::Null) {
        reader.error(
            at,
            "the file is empty",
            "write at least `listeners` and `pools`, see docs/configuration.md",
        );
        return (config, binds);
    }
    let Some(file) = reader.section(at) else {
        return (config, binds);
    };
    global::read(reader, &file, &mut config, &mut binds);

    // Pools first, then listeners, then routes: each refers to what comes before.
    let pools_at = file.get("pools");
    let pools = pools_at.and_then(|at| reader.map(at, "write `NAME: {backends: [HOST:PORT]}`"));
    let mut pool_names = NameTable::new(pools.as_ref(), file.is_meant("pools"));
    if let Some(pools) = &pools {
        config.pools = pools.iter().map(|at| pool::read(reader, at)).collect();
    }

    let hint = "write `NAME: {bind: \":8080\", pool: NAME}`";
    let listeners = file.get("listeners").and_then(|at| reader.map(at, hint));
    let mut listener_names = NameTable::new(listeners.as_ref(), file.is_meant("listeners"));
    if let Some(listeners) = &listeners {
        config.listeners = listeners
            .iter()
            .map(|at| listener::read(reader, at, &mut pool_names, &mut binds))
            .collect();
        sni::warn_of_tls_twice(reader, listeners, &config);
    } else if !file.is_meant("listeners") {
        reader.error(
            at,
            "`listeners` is missing",
            "write `listeners: {web: {bind: \":8080\", pool: NAME}}`",
        );
    }

    if let Some(at) = file.get("routes") {
        let mut names = route::RouteReferences {
            pools: &mut pool_names,
            listeners: &mut listener_names,
        };
        read_routes(reader, at, &mut names, &mut config);
    }

    // Rules over several sections.
    check::binds(reader, &binds);
    if let Some(listeners) = &listeners {
        listener::warn_of_no_work(reader, listeners, &config);
    }
    if let Some(pools) = &pools {
        tcp_pools::warn_of_request_keys(reader, pools, &config);
        sticky::check_use(reader, pools, &config);
        check::unused_pools(reader, pools, &pool_names.used);
    }
    (config, binds)
}

/// Reads `routes` into `config`, which has the listeners and pools already.
fn read_routes(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    names: &mut route::RouteReferences<'_, '_>,
    config: &mut Config,
) {
    let entries = reader.list(&at, "a list of routes", "write each route as `- host: …`");
    let mut places = Vec::with_capacity(entries.len());
    for entry in &entries {
        let reported = reader.problems.len();
        let route = route::read(reader, *entry, names, config);
        config.routes.push(route);
        let is_sound = !reader.has_errors_since(reported);
        places.push(is_sound.then_some(*entry));
    }
    route_order::check(reader, &places, config);
}

/// Reads the document of a source of members, for `pool`: a list like `backends`.
pub(super) fn read_members(
    reader: &mut TreeReader<'_>,
    root: &YamlNode,
    pool: &PoolConfig,
) -> Vec<BackendConfig> {
    discover::members(reader, root, pool)
}

/// Reads a document that is one entry of `backends`, for `pool`.
pub(super) fn read_member(
    reader: &mut TreeReader<'_>,
    root: &YamlNode,
    pool: &PoolConfig,
) -> Option<BackendConfig> {
    discover::member(reader, root, pool)
}

/// `metrics.bind` and `admin.bind` take one IP address.
fn ip_bind(address: &BindAddress) -> Option<SocketAddr> {
    match address {
        BindAddress::Ip(address) => Some(*address),
        BindAddress::Unix(_) => None,
    }
}
