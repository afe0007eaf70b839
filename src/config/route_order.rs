//! Warns of routes that take requests from each other other than their author hardly meant: routes
//! that can never match, and routes for all hosts or listeners that another route hides on some of
//! them.
//!
//! The order is that of `crate::route`. Only a single route is looked for that takes all requests
//! of another on one host of one listener, and expressions are compared by their text: what this
//! warns of is certain, but it does not find all.

use std::collections::HashMap;

use super::{
    model::{
        Config, HeaderMatch, HostMatch, ListenerProtocol, PathMatch, RouteAction, RouteConfig,
    },
    problem::quote,
    reader::{NodeRef, TreeReader},
};

/// Expressions that match every path that begins with a slash.
const EVERY_PATH: [&str; 8] = [".*", "/.*", "^.*", "^.*$", ".*$", "^/.*", "^/.*$", "/.*$"];

/// A path condition; of expressions the text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum PathKey<'a> {
    Any,
    Prefix(&'a str),
    Exact(&'a str),
    Regex(&'a str),
}

/// The routes by what they match; a route without hosts is under `None`.
struct RouteIndex<'a> {
    all: &'a Config,
    by_host: HashMap<(Option<&'a HostMatch>, PathKey<'a>), Vec<usize>>,
    /// Those with hosts; a path that only others have is there without any.
    by_path: HashMap<PathKey<'a>, Vec<usize>>,
}

/// The cause that a route gets no requests of a host on a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RouteTaker {
    Route(usize),
    ListenerRedirect,
}

/// Reports dead and hidden routes; `places` are those of `config.routes`, none for a route with an
/// error: what it would match is not known, so nothing is said of it and nothing because of it.
pub(super) fn check(reader: &mut TreeReader<'_>, places: &[Option<NodeRef<'_>>], config: &Config) {
    let routes = RouteIndex::new(config, |index| matches!(places.get(index), Some(Some(_))));
    let place = |index: usize| places.get(index).copied().flatten();
    let line = |index: usize| place(index).map_or(0, |at| at.node.place.line);
    for (index, route) in config.routes.iter().enumerate() {
        let Some(at) = place(index) else { continue };
        let takers = routes.takers(index, route);
        if takers.iter().all(|(_, taker)| taker.is_some()) {
            let other = takers.iter().find_map(|(_, taker)| match taker {
                Some(RouteTaker::Route(other)) => Some(*other),
                _ => None,
            });
            warn_of_dead(reader, at, other.map(|other| (other, line(other))), &takers);
        } else if !is_fallback(route) {
            warn_if_hidden(reader, at, &routes, (index, route), &takers, line);
        }
    }
}

fn warn_of_dead(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    other: Option<(usize, usize)>,
    takers: &[(usize, Option<RouteTaker>)],
) {
    match other {
        Some((other, line)) => reader.warn_at_key(
            at,
            format!("the route never matches: `routes[{other}]` takes its requests"),
            format!("remove one or change what it matches; the other is in line {line}"),
        ),
        None if takers.is_empty() => {}
        None => reader.warn_at_key(
            at,
            "the route never matches: its listeners redirect every request",
            "add `listeners: [NAME]` or `first: true`: then it goes before the redirect",
        ),
    }
}

fn warn_if_hidden(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    routes: &RouteIndex<'_>,
    (index, route): (usize, &RouteConfig),
    takers: &[(usize, Option<RouteTaker>)],
    line: impl Fn(usize) -> usize,
) {
    let hidden = routes.hidden_on_host(index, route);
    let takes_all = hidden.is_none_or(|(_, _, takes_all)| takes_all);
    let (place, other, cure) = if let Some((host, other, _)) = hidden {
        let host = match host {
            HostMatch::Exact(name) => quote(name),
            HostMatch::Suffix(name) => quote(&format!("*.{name}")),
        };
        (format!("host {host}"), other, "write it for that host too")
    } else if let Some((listener, other)) = routes.hidden_on_listener(takers) {
        let name = routes.all.listeners.get(listener).map(|one| &*one.name);
        let name = quote(name.unwrap_or_default());
        (format!("listener {name}"), other, "name its `listeners`")
    } else {
        return;
    };
    let effect = match (refuses(route), takes_all) {
        (true, true) => format!("the route refuses nothing on {place}"),
        (true, false) => format!("the route does not refuse everything on {place}"),
        (false, _) => format!("the route has no effect on {place}"),
    };
    let some = if takes_all { "" } else { "some of " };
    reader.warn_at_key(
        at,
        format!("{effect}: `routes[{other}]` takes {some}its requests there"),
        if route.first {
            format!("move it above line {}, or {cure}", line(other))
        } else {
            format!(
                "add `first: true`, or {cure}; the other is in line {}",
                line(other)
            )
        },
    );
}

impl<'a> RouteIndex<'a> {
    fn new(config: &'a Config, is_sound: impl Fn(usize) -> bool) -> Self {
        let mut routes = Self {
            all: config,
            by_host: HashMap::new(),
            by_path: HashMap::new(),
        };
        let all = config.routes.iter().enumerate();
        for (index, route) in all.filter(|(index, _)| is_sound(*index)) {
            let path = PathKey::of(&route.path);
            for host in hosts(route) {
                let same = routes.by_host.entry((host, path)).or_default();
                same.push(index);
            }
            let with_hosts = routes.by_path.entry(path).or_default();
            if !route.hosts.is_empty() {
                with_hosts.push(index);
            }
        }
        routes
    }

    fn get(&self, index: usize) -> Option<&'a RouteConfig> {
        self.all.routes.get(index)
    }

    /// The path condition of `route`, and those of any route that include it.
    fn wider_paths<'r>(&self, route: &'r RouteConfig) -> Vec<PathKey<'r>> {
        let mut paths = PathKey::of(&route.path).and_wider();
        paths.retain(|path| self.by_path.contains_key(path));
        paths
    }

    /// The listeners of a route, one entry for each of its hosts, and who takes its requests there.
    fn takers(&self, index: usize, route: &RouteConfig) -> Vec<(usize, Option<RouteTaker>)> {
        let listeners = self.all.listeners.iter().enumerate();
        let served = listeners.filter(|(listener, config)| {
            config.protocol == ListenerProtocol::Http && serves(route, *listener)
        });
        served
            .flat_map(|(listener, config)| {
                let redirects = tier(route) == 2 && config.redirect.is_some();
                hosts(route).into_iter().map(move |host| {
                    let redirect = redirects.then_some(RouteTaker::ListenerRedirect);
                    let taker = || {
                        self.taker(index, route, listener, host)
                            .map(RouteTaker::Route)
                    };
                    (listener, redirect.or_else(taker))
                })
            })
            .collect()
    }

    /// A route that takes all requests of `route` for this one of its hosts.
    fn taker(
        &self,
        index: usize,
        route: &RouteConfig,
        listener: usize,
        host: Option<&HostMatch>,
    ) -> Option<usize> {
        let paths = self.wider_paths(route);
        wider_hosts(host).iter().find_map(|wider| {
            paths.iter().find_map(|path| {
                let known = self.by_host.get(&(wider.as_ref(), *path))?.iter();
                known.copied().find(|other| {
                    self.get(*other).is_some_and(|taker| {
                        *other != index
                            && serves(taker, listener)
                            && takes_rest(taker, route)
                            && goes_before((*other, taker), (index, route), wider.as_ref() == host)
                    })
                })
            })
        })
    }

    /// A host for which another route, that does not name this one's path, takes its requests: all
    /// of them (true), or some that this one would refuse.
    fn hidden_on_host(
        &self,
        index: usize,
        route: &RouteConfig,
    ) -> Option<(&'a HostMatch, usize, bool)> {
        let own = PathKey::of(&route.path);
        let can_be_hidden = |host: &HostMatch| {
            match host {
            _ if route.hosts.is_empty() => true,
            _ if route.hosts.contains(host) => false,
            HostMatch::Exact(name) | HostMatch::Suffix(name) => route.hosts.iter().any(|wider| {
                matches!(wider, HostMatch::Suffix(wider) if refuses(route) && is_below(name, wider))
            }),
        }
        };
        let mut others = self
            .wider_paths(route)
            .into_iter()
            .filter(|path| *path != own || own == PathKey::Any)
            .filter_map(|path| self.by_path.get(&path))
            .flatten();
        others.find_map(|other| {
            let taker = self.get(*other)?;
            let goes_first = match tier(taker) {
                0 => refuses(route) && (tier(route) > 0 || *other < index),
                taker => taker <= tier(route),
            };
            let takes_all = takes_rest(taker, route);
            let hides = *other != index
                && goes_first
                && (asks_backend(taker) || !refuses(route))
                && (takes_all || refuses(route))
                && self.share_listener(taker, route);
            let host = taker.hosts.iter().find(|host| can_be_hidden(host))?;
            hides.then_some((host, *other, takes_all))
        })
    }

    /// A listener that a route for all listeners has, and on which one that names it sends
    /// everything to a pool.
    fn hidden_on_listener(&self, takers: &[(usize, Option<RouteTaker>)]) -> Option<(usize, usize)> {
        takers.iter().find_map(|(listener, taker)| match taker {
            Some(RouteTaker::Route(other)) => {
                let taker = self.get(*other)?;
                (asks_backend(taker) && tier(taker) == 1).then_some((*listener, *other))
            }
            _ => None,
        })
    }

    /// True if some listener has both, `route` not only behind its redirect.
    fn share_listener(&self, taker: &RouteConfig, route: &RouteConfig) -> bool {
        let mut listeners = self.all.listeners.iter().enumerate();
        listeners.any(|(listener, config)| {
            config.protocol == ListenerProtocol::Http
                && serves(taker, listener)
                && serves(route, listener)
                && (tier(route) < 2 || config.redirect.is_none())
        })
    }
}

/// The hosts of a route; `None` for all of them.
fn hosts(route: &RouteConfig) -> Vec<Option<&HostMatch>> {
    if route.hosts.is_empty() {
        return vec![None];
    }
    route.hosts.iter().map(Some).collect()
}

fn serves(route: &RouteConfig, listener: usize) -> bool {
    route.listeners.is_empty() || route.listeners.contains(&listener)
}

/// 0 for a route that is `first`, 1 for one that names its listeners, 2 for others.
fn tier(route: &RouteConfig) -> u8 {
    match (route.first, route.listeners.is_empty()) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    }
}

/// True for the route that takes what others leave.
fn is_fallback(route: &RouteConfig) -> bool {
    let every_path = match &route.path {
        PathMatch::Any => true,
        PathMatch::Prefix(path) => path == "/",
        PathMatch::Exact(_) | PathMatch::Regex(_) => false,
    };
    every_path && route.methods.is_empty() && route.headers.is_empty()
}

fn asks_backend(route: &RouteConfig) -> bool {
    matches!(route.action, RouteAction::Pool(_) | RouteAction::Split(_))
}

/// True for a route that keeps requests from a backend.
fn refuses(route: &RouteConfig) -> bool {
    !route.allow.is_empty()
        || matches!(route.action, RouteAction::Respond(ref respond) if respond.status >= 400)
}

/// True if `taker` has no condition on method and headers that `route` does not have.
fn takes_rest(taker: &RouteConfig, route: &RouteConfig) -> bool {
    let methods = taker.methods.is_empty()
        || !route.methods.is_empty() && route.methods.iter().all(|one| taker.methods.contains(one));
    let is_given = |wanted: &HeaderMatch| {
        let mut given = route.headers.iter();
        given.any(|one| {
            one.name == wanted.name && (wanted.value.is_none() || wanted.value == one.value)
        })
    };
    methods && taker.headers.iter().all(is_given)
}

/// True if `taker`, whose conditions are no narrower than those of `route`, goes before it.
fn goes_before(
    (taker_index, taker): (usize, &RouteConfig),
    (index, route): (usize, &RouteConfig),
    same_host: bool,
) -> bool {
    let (taker_tier, own_tier) = (tier(taker), tier(route));
    if taker_tier != own_tier || own_tier == 0 {
        return (taker_tier, taker_index) < (own_tier, index);
    }
    if !same_host {
        return false;
    }
    let rank = |index: usize, route: &RouteConfig| {
        let headers = std::cmp::Reverse(route.headers.len());
        (route.methods.is_empty(), headers, index)
    };
    match (PathKey::of(&taker.path), PathKey::of(&route.path)) {
        (taker_path, path) if taker_path == path => rank(taker_index, taker) < rank(index, route),
        (PathKey::Regex(_), PathKey::Prefix(_)) => true,
        (PathKey::Regex(_), PathKey::Regex(_)) => taker_index < index,
        _ => false,
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent)
        .is_some_and(|rest| rest.ends_with('.'))
}

/// The host itself, the suffixes that include it, and all hosts.
fn wider_hosts(host: Option<&HostMatch>) -> Vec<Option<HostMatch>> {
    let Some(host) = host else { return vec![None] };
    let (HostMatch::Exact(name) | HostMatch::Suffix(name)) = host;
    let parents = name
        .match_indices('.')
        .filter_map(|(dot, _)| name.get(dot + 1..))
        .map(|parent| Some(HostMatch::Suffix(parent.to_owned())));
    std::iter::once(Some(host.clone()))
        .chain(parents)
        .chain([None])
        .collect()
}

impl<'a> PathKey<'a> {
    fn of(path: &'a PathMatch) -> Self {
        match path {
            PathMatch::Any => Self::Any,
            PathMatch::Prefix(path) => Self::Prefix(path),
            PathMatch::Exact(path) => Self::Exact(path),
            PathMatch::Regex(regex) => Self::Regex(regex.as_str()),
        }
    }

    /// The condition itself, and those that include it.
    fn and_wider(self) -> Vec<Self> {
        let mut wider = vec![self];
        if let Self::Prefix(path) | Self::Exact(path) = self {
            let prefixes = std::iter::successors(Some(path), |path| {
                path.rfind('/').and_then(|slash| path.get(..slash))
            });
            let prefixes = prefixes.map(|path| if path.is_empty() { "/" } else { path });
            wider.extend(prefixes.map(Self::Prefix).filter(|prefix| *prefix != self));
        }
        if self != Self::Any {
            wider.extend(EVERY_PATH.map(Self::Regex));
            wider.push(Self::Any);
        }
        wider
    }
}
