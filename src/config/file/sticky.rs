//! Reads `pools.NAME.sticky`, with its rules over several pools and listeners.

use std::{path::PathBuf, time::Duration};

use super::{NodeRef, Section, TreeReader, assign, common::is_token, quote};
use crate::config::{
    io_cause,
    model::{
        Config, HostMatch, ListenerProtocol, PathMatch, PoolConfig, RouteAction, RouteConfig,
        SameSite, SecureCookie, StickyConfig, StickySecret,
    },
};

/// Largest secret file, in bytes.
const MAX_SECRET_BYTES: u64 = 4 << 10;
/// Longest name of a cookie, in bytes: names are part of every request.
const MAX_NAME_BYTES: usize = 64;
/// Longest `path`, in bytes.
const MAX_PATH_BYTES: usize = 256;
/// Prefixes with which browsers accept a cookie only if it is secure (RFC 6265bis); `__Host-`
/// needs the path `/` as well.
const SECURE_PREFIXES: [&str; 2] = ["__Secure-", HOST_PREFIX];
const HOST_PREFIX: &str = "__Host-";

/// Reads one `sticky`.
pub(super) fn read(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<StickyConfig> {
    let keys = reader.section(at)?;
    let mut sticky = StickyConfig::named("");
    let cookie = keys.get("cookie");
    match cookie {
        Some(at) => sticky.cookie = cookie_name(reader, at).unwrap_or_default(),
        None if keys.is_meant("cookie") => {}
        None => reader.error_at_key(at, "`cookie` is missing", "write `sticky: {cookie: lb}`"),
    }
    if let Some(at) = keys.get("ttl") {
        assign(&mut sticky.ttl, reader.duration_or_none(at));
        check_ttl(reader, at, sticky.ttl);
    }
    keys.read(reader, "secure", &mut sticky.secure);
    keys.read(reader, "same_site", &mut sticky.same_site);
    keys.read(reader, "http_only", &mut sticky.http_only);
    if let Some(at) = keys.get("path") {
        assign(&mut sticky.path, path(reader, at));
    }
    if let Some(at) = keys.get("secret_file") {
        sticky.secret = secret(reader, at);
    }
    check_secure(reader, &keys, &sticky);
    Some(sticky)
}

fn cookie_name(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let name = reader.text(at, "the name of a cookie", "write a name such as `lb`")?;
    let fine = is_token(name) && name.len() <= MAX_NAME_BYTES;
    if !fine {
        reader.error(
            at,
            format!("{} cannot be the name of a cookie", quote(name)),
            format!("use 1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` and `.`"),
        );
    }
    fine.then(|| name.to_owned())
}

fn check_ttl(reader: &mut TreeReader<'_>, at: NodeRef<'_>, ttl: Option<Duration>) {
    if let Some(ttl) = ttl
        && ttl.subsec_nanos() > 0
    {
        reader.error(
            at,
            "the lifetime of a cookie has whole seconds",
            format!("write `{}s`", ttl.as_secs()),
        );
    }
}

fn path(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let path = reader.text(at, "a path", "write a path such as `/`")?;
    let fine = path.starts_with('/')
        && path.len() <= MAX_PATH_BYTES
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b';');
    if !fine {
        reader.error(
            at,
            format!("{} cannot be the path of a cookie", quote(path)),
            "begin with `/`, and write no blanks and no `;`",
        );
    }
    fine.then(|| path.to_owned())
}

/// The content of `secret_file`.
fn secret(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<StickySecret> {
    let text = reader.text(
        at,
        "the path of a file",
        "write the path of a file with a secret",
    )?;
    let path: PathBuf = reader.resolve(text);
    let make = "make one with `openssl rand -base64 32`";
    let (message, hint) = match reader.files.read(&path, MAX_SECRET_BYTES) {
        Err(error) => (
            format!("cannot read {}: {}", quote(text), io_cause(&error)),
            "create a file with a random secret, readable only by balancer's user",
        ),
        Ok(bytes) if bytes.len() as u64 > MAX_SECRET_BYTES => {
            (format!("{} is larger than 4KiB", quote(text)), make)
        }
        Ok(bytes) => match StickySecret::of_file(&bytes) {
            Some(secret) => return Some(secret),
            None if bytes.trim_ascii().is_empty() => (format!("{} is empty", quote(text)), make),
            None => (
                format!(
                    "the secret in {} is shorter than {} bytes",
                    quote(text),
                    StickySecret::MIN_BYTES
                ),
                make,
            ),
        },
    };
    reader.error(at, message, hint);
    None
}

/// Reports what browsers would not keep: they drop such a cookie without a word.
fn check_secure(reader: &mut TreeReader<'_>, keys: &Section<'_>, sticky: &StickyConfig) {
    if sticky.same_site == SameSite::None
        && sticky.secure != SecureCookie::Always
        && let Some(at) = keys.get("same_site")
    {
        reader.error(
            at,
            "`same_site: none` needs `secure: true`",
            "add `secure: true`: browsers drop the cookie otherwise",
        );
    }
    let Some(at) = keys.get("cookie") else { return };
    let prefix = SECURE_PREFIXES.iter().find(|prefix| {
        let start = sticky.cookie.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    });
    let Some(prefix) = prefix else { return };
    if sticky.secure != SecureCookie::Always {
        reader.error(
            at,
            format!("the name of a cookie with `{prefix}` needs `secure: true`"),
            "add `secure: true`, or choose another name",
        );
    } else if *prefix == HOST_PREFIX && sticky.path != "/" {
        reader.error(
            at,
            format!("the name of a cookie with `{prefix}` needs `path: /`"),
            "remove `path`, or choose another name",
        );
    }
}

/// Reports sticky pools that cannot keep their clients: those of tcp listeners, those whose cookie
/// another pool of the same host replaces, and those in a split with other pools.
pub(super) fn check_use(reader: &mut TreeReader<'_>, pools: &Section<'_>, config: &Config) {
    let places: Vec<_> = pools.iter().collect();
    let sticky = config.pools.iter().enumerate().filter_map(|(index, pool)| {
        let at = places.get(index)?.child("sticky")?;
        Some((index, at, pool.sticky.as_ref()?))
    });
    let sticky: Vec<_> = sticky.collect();
    for (position, (index, at, own)) in sticky.iter().enumerate() {
        let mut listeners = config.listeners.iter();
        let tcp = listeners.find(|listener| {
            listener.protocol == ListenerProtocol::Tcp
                && listener.pools().any(|pool| pool == *index)
        });
        if let Some(listener) = tcp {
            reader.error_at_key(
                *at,
                format!(
                    "`sticky` does not work for listener {}: a tcp session has no cookies",
                    quote(&listener.name)
                ),
                "remove it, or give the listener a pool of its own",
            );
        }
        if let Some(loose) = loose_pool(config, *index) {
            reader.warn_at_key(
                *at,
                format!(
                    "pool {} of the same `split` is not sticky: its clients gather in this pool",
                    quote(&loose.name)
                ),
                "give both the same `sticky`",
            );
        }
        let rival = sticky.iter().take(position).find(|(other, _, earlier)| {
            earlier.cookie == own.cookie
                && !own.cookie.is_empty()
                && (is_below(&own.path, &earlier.path) || is_below(&earlier.path, &own.path))
                && share_host(config, *index, *other)
        });
        if let Some((other, other_at, _)) = rival {
            reader.warn_at_key(
                *at,
                format!(
                    "pool {} uses the cookie {} for the same host: each replaces that of the other",
                    quote(config.pools.get(*other).map_or("", |pool| &*pool.name)),
                    quote(&own.cookie)
                ),
                format!(
                    "choose another name; the other is in line {}",
                    other_at.key_place().line
                ),
            );
        }
    }
}

/// True if a client sends a cookie of `parent` with requests to `path`, RFC 6265 section 5.1.4.
fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || parent.ends_with('/') || rest.starts_with('/'))
}

/// Requests that may go to a pool.
struct PoolTraffic<'a> {
    /// The route, by its position; `None` for those of listeners without one.
    route: Option<usize>,
    /// `None` for all hosts.
    host: Option<&'a HostMatch>,
    /// The route takes all requests of the host.
    takes_all: bool,
}

/// True if requests for one host may go to both pools: by a route of each for hosts of which one
/// includes the other, unless the route of the narrower host takes all requests of it. Pools of one
/// split share their clients on purpose.
fn share_host(config: &Config, one: usize, other: usize) -> bool {
    let others = traffic(config, other);
    traffic(config, one).iter().any(|own| {
        others.iter().any(|other| {
            let is_split = own.route.is_some() && own.route == other.route;
            let overlaps = own.host == other.host
                || !own.takes_all && includes(other.host, own.host)
                || !other.takes_all && includes(own.host, other.host);
            overlaps && !is_split
        })
    })
}

/// The requests that may go to a pool.
fn traffic(config: &Config, pool: usize) -> Vec<PoolTraffic<'_>> {
    let mut found = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        if !goes_to(route, pool) {
            continue;
        }
        let takes_all = route.path == PathMatch::Any
            && route.methods.is_empty()
            && route.headers.is_empty()
            && route.listeners.is_empty();
        let traffic = |host| PoolTraffic {
            route: Some(index),
            host,
            takes_all,
        };
        if route.hosts.is_empty() {
            found.push(traffic(None));
        }
        found.extend(route.hosts.iter().map(|host| traffic(Some(host))));
    }
    let mut listeners = config.listeners.iter();
    if listeners.any(|listener| listener.pool == Some(pool)) {
        found.push(PoolTraffic {
            route: None,
            host: None,
            takes_all: true,
        });
    }
    found
}

fn goes_to(route: &RouteConfig, pool: usize) -> bool {
    match &route.action {
        RouteAction::Pool(index) => *index == pool,
        RouteAction::Split(shares) => shares.iter().any(|share| share.pool == pool),
        RouteAction::Redirect(_) | RouteAction::Respond(_) => false,
    }
}

/// The pool of a split with `pool` that is not sticky: its clients would move to `pool` one by one,
/// and stay there.
fn loose_pool(config: &Config, pool: usize) -> Option<&PoolConfig> {
    let splits = config
        .routes
        .iter()
        .filter_map(|route| match &route.action {
            RouteAction::Split(shares) if goes_to(route, pool) => Some(shares),
            _ => None,
        });
    let mut others = splits.flatten().filter(|share| share.weight > 0);
    others.find_map(|share| {
        let other = config.pools.get(share.pool)?;
        other.sticky.is_none().then_some(other)
    })
}

/// True if every name that `narrow` matches is one of `wide`.
fn includes(wide: Option<&HostMatch>, narrow: Option<&HostMatch>) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (
            Some(HostMatch::Suffix(parent)),
            Some(HostMatch::Exact(name) | HostMatch::Suffix(name)),
        ) => name
            .strip_suffix(parent.as_str())
            .is_some_and(|rest| rest.ends_with('.')),
        _ => false,
    }
}
