//! Reads `listeners.NAME.sni`: the pools of TLS connections by the server name they ask for.

use std::{collections::BTreeMap, net::IpAddr};

use super::{NameTable, NodeKind, NodeRef, Section, TreeReader, matching, quote};
use crate::config::model::{Config, HostMatch, ListenerProtocol};

const SNI_EXAMPLE: &str = "write `{app.example.com: POOL, \"*.example.com\": POOL}`";

/// The names and their pools.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pools: &mut NameTable<'_>,
) -> BTreeMap<HostMatch, usize> {
    let mut names = BTreeMap::new();
    let mut seen: BTreeMap<HostMatch, usize> = BTreeMap::new();
    if at.is_or_word() {
        return names;
    }
    if matches!(&at.node.kind, NodeKind::Map(entries) if entries.is_empty()) {
        let hint = "name a server, or remove `sni`: every connection then goes to `pool`";
        reader.error(at, "`sni` is empty", hint);
    }
    let Some(entries) = reader.map(at, SNI_EXAMPLE) else {
        return names;
    };
    for entry in entries.iter() {
        let text = entry.last_key();
        let pool = pools.resolve(reader, entry, "pool");
        let name = match server_name(text) {
            Ok(name) => name,
            Err(help) => {
                reader.error_at_key(entry, format!("{} is not a server name", quote(text)), help);
                continue;
            }
        };
        if let Some(line) = seen.get(&name) {
            reader.error_at_key(
                entry,
                format!(
                    "{} is given twice: server names are not case-sensitive, and a final dot is ignored",
                    quote(text)
                ),
                format!("remove one; the first is in line {line}"),
            );
            continue;
        }
        seen.insert(name.clone(), entry.key_place().line);
        if let Some(pool) = pool {
            names.insert(name, pool);
        }
    }
    names
}

/// A server name that clients may send (RFC 6066 section 3): never an address. The error is the
/// hint.
fn server_name(text: &str) -> Result<HostMatch, &'static str> {
    const ADDRESS_HINT: &str =
        "write a name: SNI has no IP addresses; connections without SNI go to `pool`";
    if text == "*" {
        return Err("write `pool: NAME` in the listener: it takes all other connections");
    }
    // A URL, or another product's matcher.
    if text.contains(['/', '(']) {
        return Err("write the name alone, such as `app.example.com`");
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Err(ADDRESS_HINT);
    }
    let name = matching::host(text)?;
    let (HostMatch::Exact(labels) | HostMatch::Suffix(labels)) = &name;
    let last = labels.rsplit('.').next().unwrap_or_default();
    // What ends in a number is an address, or the end of one.
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ADDRESS_HINT);
    }
    Ok(name)
}

/// Reports `sni` on a listener that cannot have it.
pub(super) fn check_place(
    reader: &mut TreeReader<'_>,
    keys: &Section<'_>,
    at: NodeRef<'_>,
    protocol: ListenerProtocol,
) {
    if protocol == ListenerProtocol::Http {
        reader.error_at_key(
            at,
            "`sni` belongs to a tcp listener, this one is http",
            "write `protocol: tcp` to pass TLS through; for http use `host` in `routes`",
        );
    } else if keys.get("tls").is_some() && !at.is_or_word() {
        reader.error_at_key(
            at,
            "`sni` passes TLS through, but `tls` terminates it",
            "remove one of them",
        );
    }
}

/// Warns of pools that would encrypt again what comes encrypted.
pub(super) fn warn_of_tls_twice(
    reader: &mut TreeReader<'_>,
    listeners: &Section<'_>,
    config: &Config,
) {
    for (at, listener) in listeners.iter().zip(&config.listeners) {
        if listener.sni.is_empty() {
            continue;
        }
        let mut pools: Vec<usize> = listener.pools().collect();
        pools.sort_unstable();
        pools.dedup();
        for pool in pools.into_iter().filter_map(|pool| config.pools.get(pool)) {
            if pool.tls.is_some() {
                reader.warn_at_key(
                    at,
                    format!(
                        "pool {} has `tls`, but what `sni` passes through is encrypted already",
                        quote(&pool.name)
                    ),
                    "name a pool without `tls`: the backends get the TLS of the clients",
                );
            }
        }
    }
}
