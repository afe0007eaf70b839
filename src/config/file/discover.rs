//! Reads `pools.NAME.discover`, and the documents of its sources: a file with a list of members, or
//! one member.

use super::{
    NodeRef, Section, TreeReader,
    backends::{backend, backends},
    quote, tls,
};
use crate::{
    base::address::BackendAddress,
    config::{
        io_cause,
        model::{
            BackendConfig, DiscoverConfig, EtcdConfig, MembersFileConfig, PoolConfig, TlsOverride,
        },
        parse_members, schema,
        yaml::{self, NodeKind, YamlNode},
    },
};

/// Longest prefix of etcd keys, in bytes.
const MAX_PREFIX_BYTES: usize = 512;

/// Reads `discover` of `pool`, whose other keys were read.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pool: &PoolConfig,
) -> Option<DiscoverConfig> {
    let keys = reader.section(at)?;
    match (keys.get("file"), keys.get("etcd")) {
        (Some(at), None) => members_file(reader, at, pool).map(DiscoverConfig::File),
        (None, Some(at)) => etcd(reader, at).map(|etcd| DiscoverConfig::Etcd(Box::new(etcd))),
        (Some(_), Some(at)) => {
            let hint = "remove one, or put its members into a pool of their own";
            reader.error_at_key(at, "`etcd` stands beside `file`", hint);
            None
        }
        (None, None) => {
            if !keys.has_unknown() {
                let hint = "write `discover: {file: PATH}`";
                reader.error_at_key(at, "`discover` names no source", hint);
            }
            None
        }
    }
}

/// `discover.file`. What is wrong with the file itself is a warning: it may be right in a moment,
/// and must not hold up a reload.
fn members_file(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    pool: &PoolConfig,
) -> Option<MembersFileConfig> {
    let text = reader.text(at, "the path of a file", "write `file: PATH`")?;
    if text.is_empty() {
        reader.error(at, "the path is empty", "write `file: PATH`");
        return None;
    }
    let path = reader.resolve(text);
    let read = reader.files.read(&path, yaml::MAX_BYTES as u64);
    let (initial, trouble) = match read {
        Err(error) => (Vec::new(), Some(io_cause(&error))),
        Ok(bytes) => match parse_members(&path, &bytes, pool) {
            Ok(members) => (members, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        },
    };
    if let Some(trouble) = trouble {
        let message = format!("{} cannot be used: {trouble}", quote(text));
        let hint = "the members so far stay, at a start there are none; it is read again when it \
                    changes";
        reader.warn_at_key(at, message, hint);
    }
    Some(MembersFileConfig {
        path,
        initial: initial.into(),
    })
}

/// `discover.etcd`.
fn etcd(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<EtcdConfig> {
    if !cfg!(feature = "etcd") {
        let hint = "take a build with `--features etcd`, such as the package, or write \
                    `discover: {file: PATH}`";
        reader.error_at_key(at, "this build has no etcd", hint);
    }
    let keys = reader.section(at)?;
    let endpoints = endpoints(reader, &keys);
    let prefix = prefix(reader, &keys);
    let login = login(reader, &keys);
    let tls = match keys.get("tls") {
        Some(at) => Some(tls::pool(reader, at, false)?),
        None => None,
    };
    for (key, given) in [
        ("endpoints", !endpoints.is_empty()),
        ("prefix", prefix.is_some()),
    ] {
        if !given && !keys.is_meant(key) {
            let hint = "write `etcd: {endpoints: [HOST:2379], prefix: /services/app/}`";
            reader.error_at_key(at, format!("`etcd` has no `{key}`"), hint);
        }
    }
    Some(EtcdConfig {
        endpoints,
        prefix: prefix?,
        login,
        tls,
    })
}

fn endpoints(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> Vec<BackendAddress> {
    let Some(list) = keys.get("endpoints") else {
        return Vec::new();
    };
    let hint = "write `endpoints: [HOST:2379]`";
    let mut endpoints = Vec::new();
    for entry in reader.list(&list, "a list of addresses", hint) {
        let Some(text) = reader.text(entry, "the address of an etcd member", hint) else {
            continue;
        };
        match text.parse() {
            Ok(BackendAddress::Unix(_)) | Err(_) => {
                let message = format!("{} is not the address of an etcd member", quote(text));
                let hint = match text.split_once("://") {
                    Some(("https", rest)) => format!("write `{rest}`, and `tls: {{}}` beside it"),
                    Some((_, rest)) => format!("write `{rest}`"),
                    None => "write `HOST:2379`".to_owned(),
                };
                reader.error(entry, message, hint);
            }
            Ok(address) => endpoints.push(address),
        }
    }
    if matches!(&list.node.kind, NodeKind::List(entries) if entries.is_empty()) {
        reader.error(list, "`endpoints` is empty", hint);
    }
    endpoints
}

fn prefix(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> Option<String> {
    let at = keys.get("prefix")?;
    let hint = "write the beginning of the keys, such as `prefix: /services/app/`";
    let text = reader.text(at, "a prefix of keys", hint)?;
    if (1..=MAX_PREFIX_BYTES).contains(&text.len()) {
        return Some(text.to_owned());
    }
    reader.error(at, "a prefix has 1 to 512 bytes", hint);
    None
}

fn login(reader: &mut TreeReader<'_>, keys: &Section<'_>) -> Option<(String, String)> {
    let mut text = |key: &str| {
        let at = keys.get(key)?;
        reader
            .text(at, "a text", "write it in quotes")
            .map(str::to_owned)
    };
    let (user, password) = (text("user"), text("password"));
    for (key, other) in [("user", "password"), ("password", "user")] {
        if let Some(at) = keys.get(key)
            && !keys.is_meant(other)
        {
            reader.error_at_key(
                at,
                format!("`{key}` needs `{other}`"),
                format!("add `{other}`"),
            );
        }
    }
    user.zip(password)
}

/// Reads a list of members. An empty list is an answer; an empty document is a file that is being
/// written.
pub(super) fn members(
    reader: &mut TreeReader<'_>,
    root: &YamlNode,
    pool: &PoolConfig,
) -> Vec<BackendConfig> {
    let Some(row) = schema::find("pools.NAME", "backends") else {
        debug_assert!(false, "`backends` has a row");
        return Vec::new();
    };
    let at = NodeRef::root_of(root, row, false);
    let members = backends(reader, at, pool.protocol, pool.health_check.is_some());
    for member in &members {
        check_member(reader, at, member, pool);
    }
    members
}

/// Reads a document that is one entry of `backends`.
pub(super) fn member(
    reader: &mut TreeReader<'_>,
    root: &YamlNode,
    pool: &PoolConfig,
) -> Option<BackendConfig> {
    let row = schema::find("pools.NAME", "backends")?;
    let at = NodeRef::root_of(root, row, true);
    let member = backend(reader, at, pool.protocol, pool.health_check.is_some())?;
    check_member(reader, at, &member, pool);
    Some(member)
}

/// Checks a member by the keys of its pool, as those in the configuration are.
fn check_member(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    member: &BackendConfig,
    pool: &PoolConfig,
) {
    if let Some(tls) = &pool.tls
        && member.tls == TlsOverride::Inherited
    {
        tls::check_name(reader, at, tls, member);
    }
    let check_port = pool.health_check.as_ref().and_then(|check| check.port);
    if check_port.is_some() && matches!(member.address, BackendAddress::Unix(_)) {
        let name = quote(&member.name);
        let message = format!("{name} has no port, and the pool's check has");
        let hint = "remove `port` of the check, or put unix sockets into another pool";
        reader.error(at, message, hint);
    }
}
