//! Reads a list of backends: that of a pool, or that of a source of members.

use std::{collections::HashMap, sync::Arc};

use super::{
    KeyValue as _, NodeRef, Section, TreeReader, assign, common::is_bare_ipv6, quote, tls,
};
use crate::{
    base::address::{AddressError, BackendAddress, is_host_name},
    config::model::{BackendConfig, BackendProtocol, ResolveMode, TlsOverride},
};

/// Values of `backup`, for messages.
const BACKUP_TIERS: &str = "`true`, `false` or a number of 1 to 9";

/// Reads a list of backends: that of a pool, or that of a file of members.
/// `is_checked`: the pool has a health check.
pub(super) fn backends(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: BackendProtocol,
    is_checked: bool,
) -> Vec<BackendConfig> {
    // A file of members is the list itself.
    let hint = if at.last_key().is_empty() {
        "write `[HOST:PORT, HOST:PORT]`, without a key"
    } else {
        "write `backends: [HOST:PORT, HOST:PORT]`"
    };
    let entries = reader.list(&at, "a list of backends", hint);
    let mut backends = Vec::with_capacity(entries.len());
    let mut addresses: HashMap<BackendAddress, usize> = HashMap::with_capacity(entries.len());
    let mut names: HashMap<Arc<str>, usize> = HashMap::with_capacity(entries.len());
    for entry in &entries {
        let Some(backend) = backend(reader, *entry, protocol, is_checked) else {
            continue;
        };
        let line = entry.node.place.line;
        if let Some(first) = addresses.insert(backend.address.clone(), line) {
            reader.error(
                *entry,
                format!(
                    "{} is in this pool twice",
                    quote(&backend.address.to_string())
                ),
                format!(
                    "remove one (the first is in line {first}); use `weight` for a larger share"
                ),
            );
        } else if let Some(first) = names.insert(Arc::clone(&backend.name), line) {
            reader.error(
                *entry,
                format!(
                    "two backends of this pool are called {}",
                    quote(&backend.name)
                ),
                format!("choose another name; the first is in line {first}"),
            );
        }
        backends.push(backend);
    }
    backends
}

/// Reads one entry of `backends`.
pub(super) fn backend(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    protocol: BackendProtocol,
    is_checked: bool,
) -> Option<BackendConfig> {
    if !at.is_map() {
        let address = address(reader, at)?;
        return Some(BackendConfig::at(address));
    }
    let keys = reader.section(at)?;
    let (mut weight, mut backup, mut max_connections) = (1, 0, None);
    keys.read(reader, "weight", &mut weight);
    if let Some(at) = keys.get("backup") {
        assign(&mut backup, tier(reader, at));
    }
    keys.read(reader, "max_connections", &mut max_connections);
    let name = keys.get("name").and_then(|at| backend_name(reader, at));
    let address = match (keys.get("address"), keys.get("srv")) {
        (Some(at), None) => address(reader, at)?,
        (None, Some(at)) => service(reader, at, &keys)?,
        (Some(_), Some(at)) => {
            let hint = "remove one: the records give the addresses";
            reader.error_at_key(at, "`srv` stands beside `address`", hint);
            return None;
        }
        (None, None) => {
            if !keys.is_meant("address") && !keys.is_meant("srv") {
                let hint = "write `{address: HOST:PORT}`";
                reader.error_at_key(at, "`address` is missing", hint);
            }
            return None;
        }
    };
    let mut resolve = ResolveMode::default();
    keys.read(reader, "resolve", &mut resolve);
    if let Some(at) = keys.get("resolve")
        && !matches!(address, BackendAddress::Name { .. })
    {
        let (message, hint) = if address.is_name() {
            let hint = "remove it: each address of a service is a backend";
            ("`resolve` has no effect with `srv`", hint)
        } else {
            let hint = "remove it: this address is no name";
            ("`resolve` has no effect here", hint)
        };
        reader.warn_at_key(at, message, hint);
    }
    let mut backend = BackendConfig {
        name: name.unwrap_or_else(|| address.to_string()).into(),
        address,
        weight,
        backup,
        max_connections,
        check_port: None,
        tls: TlsOverride::default(),
        resolve,
    };
    if let Some(at) = keys.get("check_port") {
        backend.check_port = u16::read(reader, at);
        check_own_port(reader, at, &backend, is_checked);
    }
    if let Some(at) = keys.get("tls") {
        backend.tls = tls::overriding(reader, at, protocol.is_h2());
        check_own_tls(reader, at, &backend, protocol);
    }
    Some(backend)
}

/// A unix socket has no port, and without checks there is nothing to ask it for.
fn check_own_port(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    backend: &BackendConfig,
    is_checked: bool,
) {
    if matches!(backend.address, BackendAddress::Unix(_)) {
        reader.error_at_key(
            at,
            "`check_port` cannot be used with a unix socket",
            "remove it: the check uses the socket",
        );
    } else if !is_checked {
        reader.warn_at_key(
            at,
            "`check_port` has no effect with `health_check: none`",
            "remove it, or check the pool",
        );
    }
}

/// Rules for the `tls` of one backend.
fn check_own_tls(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    backend: &BackendConfig,
    protocol: BackendProtocol,
) {
    match (&backend.tls, protocol) {
        (TlsOverride::Plain, BackendProtocol::H2) => reader.error_at_key(
            at,
            "`tls: none` cannot be used with `protocol: h2`",
            "put this backend into a pool with `protocol: h2c`",
        ),
        (TlsOverride::Own(_), BackendProtocol::H2c) => reader.error_at_key(
            at,
            "`tls` cannot be used with `protocol: h2c`",
            "put this backend into a pool with `protocol: h2`",
        ),
        (TlsOverride::Own(tls), _) => tls::check_name(reader, at, tls, backend),
        _ => {}
    }
}

/// `srv`: the records give the weights of the backends.
fn service(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    keys: &Section<'_>,
) -> Option<BackendAddress> {
    let hint = "write the whole name of the records, such as `srv: _http._tcp.app.internal`";
    let name = reader.text(at, "the name of SRV records", hint)?;
    if let Some(at) = keys.get("weight") {
        let hint = "remove it: the records give the weights";
        reader.error_at_key(at, "`weight` stands beside `srv`", hint);
    }
    if is_host_name(name) {
        return Some(BackendAddress::Service(name.to_ascii_lowercase()));
    }
    let message = format!("{} is not the name of SRV records", quote(name));
    reader.wrong_value(at, message, hint);
    None
}

/// `backup`: a truth value, or the number of a tier.
fn tier(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<u8> {
    let super::NodeKind::Scalar { text, quoted } = &at.node.kind else {
        reader.wrong_kind(at, BACKUP_TIERS, "write `true` for a backup");
        return None;
    };
    match text.as_str() {
        _ if *quoted => {}
        "true" | "True" | "TRUE" => return Some(1),
        "false" | "False" | "FALSE" => return Some(0),
        digits if digits.len() == 1 => {
            if let Ok(tier @ 1..=9) = digits.parse() {
                return Some(tier);
            }
        }
        _ => {}
    }
    let hint = match text.as_str() {
        "0" | "none" | "off" | "no" | "n" => "remove the key: the backend is then no backup",
        "on" | "yes" | "y" => "write `true`",
        _ if *quoted => "remove the quotes",
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => "the highest tier is 9",
        _ => "write `true`, or a tier of 1 to 9: the lowest tier with a healthy backend is used",
    };
    reader.wrong_plain(at, BACKUP_TIERS, hint);
    None
}

fn backend_name(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<String> {
    let name = reader.text(at, "a name", "use letters, digits, `_`, `-` and `.`")?;
    let fine = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.:[]/".contains(&b));
    if !fine {
        reader.error(
            at,
            format!("{} cannot be the name of a backend", quote(name)),
            "use 1 to 128 letters, digits, `_`, `-`, `.`, `:` and `/`",
        );
    }
    fine.then(|| name.to_owned())
}

fn address(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<BackendAddress> {
    let text = reader.text(
        at,
        "the address of a backend",
        "write `HOST:PORT` or `unix:/path`",
    )?;
    let error = match text.parse() {
        Ok(address) => return Some(address),
        Err(error) => error,
    };
    if text.contains("://") {
        let message = format!("{} is a URL; a backend is `HOST:PORT`", quote(text));
        reader.wrong_value(at, message, url_hint(text));
        return None;
    }
    if is_bare_ipv6(text) {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let cause = AddressError::NoPort;
        let message = format!("{} is not the address of a backend: {cause}", quote(text));
        reader.wrong_value(at, message, format!("write `\"[{bare}]:8080\"`"));
        return None;
    }
    let help = match error {
        AddressError::NoPort => format!("write {}", quote(&format!("{text}:8080"))),
        AddressError::BadPort if text.ends_with(":0") => {
            "write the port the backend listens on".to_owned()
        }
        AddressError::BadPort => "write `HOST:PORT` with a port of 1 to 65535".to_owned(),
        AddressError::BadHost => "write an IP address (IPv6 in brackets) or a host name".to_owned(),
        AddressError::BadPath => "write `unix:/run/app.sock`".to_owned(),
    };
    reader.wrong_value(
        at,
        format!("{} is not the address of a backend: {error}", quote(text)),
        help,
    );
    None
}

/// The hint for a URL as the address of a backend.
fn url_hint(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let host = rest.split('/').next().unwrap_or(rest);
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let is_tls = matches!(scheme, "https" | "grpcs" | "tls" | "wss");
    let address = match (has_port, is_tls) {
        (true, _) => host.to_owned(),
        (false, true) => format!("{host}:443"),
        (false, false) => format!("{host}:80"),
    };
    // YAML reads a bracket as the beginning of a list.
    let address = if address.starts_with('[') {
        format!("\"{address}\"")
    } else {
        address
    };
    let mut hint = format!("write {}", quote(&address));
    if is_tls {
        hint.push_str(", and `tls: {}` in the pool");
    }
    let path = rest.split_once('/').map(|(_, path)| path);
    if path.is_some_and(|path| !path.is_empty()) {
        hint.push_str("; the path goes into `rewrite` of a route");
    }
    hint
}
