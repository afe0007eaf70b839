//! Reads `routes[]`: what it matches is in `matching`, what it does is here.

use super::{
    NameTable, NodeRef, Section, TreeReader, assign,
    common::{
        FRAMING_FIELDS, allowed, clean_text, header_name, is_token, methods, rate_limit, redirect,
        retries, timeouts, warn_short_total,
    },
    foreign, matching, quote, rewrite,
};
use crate::config::model::{
    Config, HeaderEdits, ListenerProtocol, PoolConfig, RespondConfig, RouteAction, RouteConfig,
};

/// Largest body of `respond` in bytes.
const MAX_RESPOND_BYTES: usize = 64 << 10;

/// The names that routes refer to.
pub(super) struct RouteReferences<'r, 'a> {
    pub(super) pools: &'r mut NameTable<'a>,
    pub(super) listeners: &'r mut NameTable<'a>,
}

/// Reads one route; `config` has the listeners and pools already.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    names: &mut RouteReferences<'_, '_>,
    config: &Config,
) -> RouteConfig {
    let mut route = RouteConfig::named(at.path());
    let Some(keys) = reader.section(at) else {
        return route;
    };
    keys.read(reader, "first", &mut route.first);
    read_match(reader, &keys, &mut route);
    if let Some(at) = keys.get("listeners") {
        route.listeners = listeners(reader, at, names.listeners, config);
    }
    assign(&mut route.action, action(reader, &keys, names.pools));
    if let Some(at) = keys.get("request_headers") {
        route.request_headers = edits(reader, at, true);
    }
    if let Some(at) = keys.get("response_headers") {
        route.response_headers = edits(reader, at, false);
    }
    if let Some(at) = keys.get("rewrite") {
        route.rewrite = rewrite::read(reader, at, &keys, &route);
    }
    if let Some(at) = keys.get("rate_limit") {
        route.rate_limit = rate_limit(reader, at);
    }
    if let Some(at) = keys.get("allow") {
        route.allow = allowed(reader, at);
    }
    read_overrides(reader, &keys, &mut route, config);
    route
}

fn read_match(reader: &mut TreeReader<'_>, keys: &Section<'_>, route: &mut RouteConfig) {
    if let Some(at) = keys.get("host") {
        route.hosts = matching::hosts(reader, at);
    }
    route.path = matching::path(reader, keys);
    if let Some(at) = keys.get("method") {
        route.methods = methods(reader, at);
    }
    if let Some(at) = keys.get("headers") {
        route.headers = matching::headers(reader, at);
    }
}

fn read_overrides(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    route: &mut RouteConfig,
    config: &Config,
) {
    let pools: Vec<&PoolConfig> = match &route.action {
        RouteAction::Pool(index) => config.pools.get(*index).into_iter().collect(),
        RouteAction::Split(shares) => shares
            .iter()
            .filter_map(|share| config.pools.get(share.pool))
            .collect(),
        RouteAction::Redirect(_) | RouteAction::Respond(_) => {
            refuse_overrides(reader, keys);
            Vec::new()
        }
    };
    if let Some(at) = keys.get("timeouts") {
        route.timeouts = timeouts(reader, at);
        let over = &route.timeouts;
        let short = pools.iter().map(|pool| &pool.timeouts).find_map(|own| {
            let connect = over.connect.unwrap_or(own.connect);
            let total = over.total.unwrap_or(own.total);
            total
                .filter(|total| *total < connect)
                .map(|_| (total, connect))
        });
        if let Some((total, connect)) = short {
            warn_short_total(reader, at, total, connect);
        }
    }
    if let Some(at) = keys.get("retries") {
        read_retries(reader, at, route, &pools);
    }
}

fn refuse_overrides(reader: &mut TreeReader<'_>, keys: &Section<'_>) {
    for key in ["rewrite", "request_headers", "timeouts", "retries"] {
        if let Some(at) = keys.get(key) {
            reader.error_at_key(
                at,
                format!("`{key}` has no effect: this route sends nothing to a backend"),
                "remove it",
            );
        }
    }
}

/// Reads `retries` of a route. It overrides those of the pool, of a `split` those of each pool.
fn read_retries(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    route: &mut RouteConfig,
    pools: &[&PoolConfig],
) {
    let base = |pool: Option<&&PoolConfig>| {
        pool.and_then(|pool| pool.retries.clone())
            .unwrap_or_default()
    };
    route.retries = retries(reader, at, base(pools.first()));
    if let RouteAction::Split(shares) = &mut route.action {
        let reported = reader.problems.len();
        for (share, pool) in shares.iter_mut().zip(pools) {
            share.retries = retries(reader, at, base(Some(pool)));
        }
        // The same text again: what is wrong with it has been reported.
        reader.problems.truncate(reported);
    }
}

fn listeners(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    names: &mut NameTable<'_>,
    config: &Config,
) -> Vec<usize> {
    let mut found = Vec::new();
    for entry in reader.one_or_more(&at, "names of listeners", "write a list of names") {
        let Some(index) = names.resolve(reader, entry, "listener") else {
            continue;
        };
        let listener = config.listeners.get(index);
        if listener.is_some_and(|listener| listener.protocol == ListenerProtocol::Tcp) {
            let name = quote(entry.scalar().unwrap_or_default());
            reader.error(
                entry,
                format!("listener {name} is tcp: it has no routes"),
                "name http listeners only",
            );
        }
        if found.contains(&index) {
            let name = quote(entry.scalar().unwrap_or_default());
            reader.error(entry, format!("{name} is given twice"), "remove one");
        } else {
            found.push(index);
        }
    }
    found
}

fn action(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    pools: &mut NameTable<'_>,
) -> Option<RouteAction> {
    let kinds = ["pool", "split", "redirect", "respond"];
    let given: Vec<NodeRef<'_>> = kinds.iter().filter_map(|key| keys.get(key)).collect();
    if let [first, second, ..] = given.as_slice() {
        reader.error_at_key(
            *second,
            format!(
                "a route can have only one action: `{}` and `{}` are both set",
                first.last_key(),
                second.last_key()
            ),
            "keep one of `pool`, `split`, `redirect` and `respond`",
        );
    }
    let Some(at) = given.first().copied() else {
        if kinds.iter().any(|key| keys.is_meant(key)) {
            return None;
        }
        reader.error_at_key(
            keys.at,
            "the route does nothing",
            "add `pool: NAME`, `redirect: https` or `respond: {status: 200}`",
        );
        return None;
    };
    match at.last_key() {
        "pool" => pools.resolve(reader, at, "pool").map(RouteAction::Pool),
        "split" => rewrite::split(reader, at, pools).map(RouteAction::Split),
        "redirect" => redirect(reader, at).map(RouteAction::Redirect),
        _ => respond(reader, at),
    }
}

fn respond(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<RouteAction> {
    let keys = reader.section(at)?;
    let mut respond = RespondConfig::default();
    keys.read(reader, "status", &mut respond.status);
    if let Some(at) = keys.get("body") {
        let text = reader.text(at, "a text", "write the text of the response");
        foreign::refuse(reader, at, text.unwrap_or_default(), foreign::TextUse::Body);
        assign(&mut respond.body, text.map(str::to_owned));
        if respond.body.len() > MAX_RESPOND_BYTES {
            reader.error(
                at,
                "`body` is larger than 64KiB",
                "serve large responses from a backend",
            );
        }
    }
    if let Some(at) = keys.get("headers") {
        respond.headers = fields(reader, at, false);
    }
    let is_type = |(name, _): &mut (String, String)| name.eq_ignore_ascii_case("content-type");
    let mut types = respond.headers.extract_if(.., is_type);
    let by_header = types.next().map(|(_, value)| value);
    drop(types);
    if let Some(at) = keys.get("content_type") {
        if by_header.is_some() {
            reader.error_at_key(at, "`headers` sets Content-Type too", "keep one of the two");
        }
        respond.content_type = content_type(reader, at).unwrap_or_default();
    } else {
        assign(&mut respond.content_type, by_header);
    }
    if let status @ (204 | 205 | 304) = respond.status {
        let is_empty = respond.body.is_empty();
        let body = keys.get("body").filter(|_| !is_empty);
        for at in body.into_iter().chain(keys.get("content_type")) {
            reader.error_at_key(
                at,
                format!("a response with status {status} has no body"),
                format!("remove `{}`", at.last_key()),
            );
        }
    }
    Some(RouteAction::Respond(respond))
}

/// A media type, RFC 9110 section 8.3.1. Parameters are not looked into.
fn content_type(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let text = clean_text(reader, at, "a media type")?;
    let kind = text.split(';').next().unwrap_or_default().trim_end();
    let is_type = kind
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
    if !is_type || !text.is_ascii() {
        reader.error(
            at,
            format!("{} is not a media type", quote(text)),
            "write one such as `text/html; charset=utf-8` or `application/json`",
        );
        return None;
    }
    Some(text.to_owned())
}

/// True for a name that only balancer itself may write, also when written with `_`: some servers
/// read that as `-`.
pub(super) fn is_framing(name: &str) -> bool {
    let dashed = name.to_ascii_lowercase().replace('_', "-");
    FRAMING_FIELDS.contains(&dashed.as_str())
}

fn edits(reader: &mut TreeReader<'_>, at: NodeRef<'_>, request: bool) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let Some(keys) = reader.section(at) else {
        return edits;
    };
    // A backend needs exactly one Host: it may be set, not added or removed. A response has none.
    if let Some(at) = keys.get("set") {
        edits.set = fields(reader, at, request);
    }
    if let Some(at) = keys.get("add") {
        edits.add = fields(reader, at, false);
    }
    if let Some(at) = keys.get("remove") {
        let hint = "write a list of header names, such as `X-Debug` or `X-Internal-*`";
        for entry in reader.one_or_more(&at, "names of headers", hint) {
            if let Some(name) = reader.text(entry, "the name of a header", hint)
                && header_name(reader, entry, name, false)
                && may_edit(reader, entry, name, false)
                && is_pattern(reader, entry, name)
            {
                edits.remove.push(name.to_owned());
            }
        }
    }
    edits
}

/// A name in `remove` may end in `*`.
fn is_pattern(reader: &mut TreeReader<'_>, at: NodeRef<'_>, name: &str) -> bool {
    let help = match name.find('*') {
        None => return true,
        Some(0) => "write the names, or their beginning: `X-Internal-*`",
        Some(place) if place + 1 == name.len() => return true,
        Some(_) => "`*` is allowed only as the last character",
    };
    reader.error(
        at,
        format!("{} is not a valid header name to remove", quote(name)),
        help,
    );
    false
}

fn may_edit(reader: &mut TreeReader<'_>, at: NodeRef<'_>, name: &str, host: bool) -> bool {
    let is_host = name.eq_ignore_ascii_case("host");
    let help = if is_framing(name) {
        "remove it: balancer writes this header itself"
    } else if is_host && !host {
        "only `request_headers.set` can change Host"
    } else {
        return true;
    };
    reader.error_at_key(at, format!("{} cannot be changed here", quote(name)), help);
    false
}

fn fields(reader: &mut TreeReader<'_>, at: NodeRef<'_>, host: bool) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    let Some(map) = reader.map(at, "write `{X-Name: value}`") else {
        return fields;
    };
    for at in map.iter() {
        let name = at.last_key();
        let value = clean_text(reader, at, "the value of a header");
        if !header_name(reader, at, name, true) || !may_edit(reader, at, name, host) {
            continue;
        }
        if fields
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            reader.error_at_key(
                at,
                format!(
                    "{} is given twice: header names are not case-sensitive",
                    quote(name)
                ),
                "remove one",
            );
        }
        if name.contains('*') {
            reader.warn_at_key(
                at,
                format!(
                    "{} is a whole name here, and its `*` is literal",
                    quote(name)
                ),
                "name each header; only `remove` accepts a final `*`",
            );
        }
        if let Some(value) = value {
            foreign::refuse(reader, at, value, foreign::TextUse::Header);
            fields.push((name.to_owned(), value.to_owned()));
        }
    }
    fields
}
