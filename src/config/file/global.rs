//! Reads the keys at the top of the file: workers, drain, admin, metrics, logs, forwarded, errors.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    NodeRef, Section, TreeReader, assign,
    common::{header_name, local_bind},
    ip_bind, quote,
};
use crate::{
    base::{address::BindAddress, socket_key::SocketKey},
    config::{
        bind_list::BindList,
        hint, io_cause,
        model::{
            AccessLogConfig, AdminConfig, Config, DrainConfig, ErrorPage, ErrorsConfig,
            ForwardedConfig, LogConfig, LogOutput, LogWhenConfig, MetricsConfig,
            TrustedProxiesConfig,
        },
    },
    reason::{Reason, StatusProfile},
};

/// Largest error page in bytes.
const MAX_PAGE_BYTES: u64 = 64 << 10;
/// Largest token file in bytes.
const MAX_TOKEN_BYTES: u64 = 4 << 10;

/// Most DNS servers of `resolvers`.
const MAX_RESOLVERS: usize = 8;

/// Reads them all into `config`.
pub(super) fn read(
    reader: &mut TreeReader<'_>,
    file: &Section<'_>,
    config: &mut Config,
    binds: &mut BindList,
) {
    if let Some(at) = file.get("version") {
        reader.word(at);
    }
    file.read(reader, "workers", &mut config.workers);
    file.read(reader, "max_connections", &mut config.max_connections);
    if let Some(at) = file.get("drain") {
        config.drain = drain(reader, at);
    }
    if let Some(at) = file.get("admin") {
        config.admin = admin(reader, at, binds);
    }
    read_metrics(reader, file, &mut config.metrics, binds);
    let is_bound = |at: NodeRef<'_>| at.has_key("bind");
    if let (false, Some(address)) = (
        file.get("metrics").is_some_and(is_bound),
        config.metrics.bind,
    ) {
        binds.add_default_metrics(address);
    }
    if let Some(at) = file.get("log") {
        config.log = log(reader, at);
    }
    if let Some(at) = file.get("access_log") {
        config.access_log = access_log(reader, at);
    }
    if let Some(at) = file.get("trusted_proxies") {
        config.trusted_proxies = trusted_proxies(reader, at);
    }
    if let Some(at) = file.get("resolvers") {
        config.resolvers = resolvers(reader, at);
    }
    if let Some(at) = file.get("forwarded") {
        config.forwarded = forwarded(reader, at);
    }
    if let Some(at) = file.get("errors") {
        config.errors = errors(reader, at);
    }
}

fn drain(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> DrainConfig {
    let mut drain = DrainConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "delay", &mut drain.delay);
        keys.read(reader, "timeout", &mut drain.timeout);
    }
    drain
}

fn admin(reader: &mut TreeReader<'_>, at: NodeRef<'_>, binds: &mut BindList) -> AdminConfig {
    let mut admin = AdminConfig {
        bind: None,
        token_file: None,
    };
    let Some(keys) = reader.section(at) else {
        return admin;
    };
    if let Some(at) = keys.get("token_file") {
        admin.token_file = reader
            .text(
                at,
                "the path of a file",
                "write the path of a file with the token",
            )
            .map(|path| reader.resolve(path));
        if let Some(path) = &admin.token_file {
            check_token(reader, at, path);
        }
    }
    let Some(at) = keys.get("bind") else {
        return admin;
    };
    admin.bind = local_bind(reader, at);
    let Some(address) = admin.bind.clone() else {
        return admin;
    };
    if let Some(ip) = ip_bind(&address) {
        if !ip.ip().is_loopback() {
            reader.error(
                at,
                format!("{} is not a loopback address", quote(&ip.to_string())),
                format!(
                    "write `127.0.0.1:{}` or `unix:/run/balancer/admin.sock`",
                    ip.port()
                ),
            );
        }
        if keys.get("token_file").is_none() {
            reader.error(
                at,
                "`token_file` is missing: an admin address on TCP needs it",
                "add `token_file: PATH`, or use `unix:/run/balancer/admin.sock`",
            );
        }
    }
    binds.add(at, SocketKey::tcp(address), "`admin`".to_owned(), false);
    admin
}

fn check_token(reader: &mut TreeReader<'_>, at: NodeRef<'_>, path: &Path) {
    match reader.files.read(path, MAX_TOKEN_BYTES) {
        Err(error) => reader.error(
            at,
            format!(
                "cannot read {}: {}",
                quote(&path.to_string_lossy()),
                io_cause(&error)
            ),
            "create a file with the token in it, readable only by balancer's user",
        ),
        Ok(bytes) if bytes.len() as u64 > MAX_TOKEN_BYTES => {
            reader.error(
                at,
                "the token file is larger than 4KiB",
                "keep one token in it",
            );
        }
        Ok(bytes) if bytes.trim_ascii().is_empty() => {
            reader.error(
                at,
                "the token file is empty",
                "write a long random token into it",
            );
        }
        Ok(_) => {}
    }
}

fn read_metrics(
    reader: &mut TreeReader<'_>,
    file: &Section<'_>,
    metrics: &mut MetricsConfig,
    binds: &mut BindList,
) {
    let Some(at) = file.get("metrics") else {
        return;
    };
    let Some(keys) = reader.section(at) else {
        return;
    };
    keys.read(reader, "per_backend", &mut metrics.per_backend);
    let Some(at) = keys.get("bind") else {
        return;
    };
    if at.is_or_word() {
        metrics.bind = None;
        return;
    }
    match local_bind(reader, at) {
        Some(BindAddress::Unix(_)) => reader.error(
            at,
            "expected an IP address and port or `none`, found a unix socket",
            "write `127.0.0.1:9900`",
        ),
        Some(BindAddress::Ip(ip)) => {
            metrics.bind = Some(ip);
            let socket = SocketKey::tcp(BindAddress::Ip(ip));
            binds.add(at, socket, "`metrics`".to_owned(), false);
        }
        None => {}
    }
}

fn log(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> LogConfig {
    let mut log = LogConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "level", &mut log.level);
        keys.read(reader, "format", &mut log.format);
    }
    log
}

fn access_log(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> AccessLogConfig {
    let mut log = AccessLogConfig::default();
    let Some(keys) = reader.section(at) else {
        return log;
    };
    if let Some(at) = keys.get("output") {
        assign(&mut log.output, output(reader, at));
    }
    keys.read(reader, "format", &mut log.format);
    if let Some(at) = keys.get("when") {
        log.when = when(reader, at);
    }
    if let Some(at) = keys.get("headers") {
        let hint = "write the names of request headers";
        for entry in reader.list(&at, "a list of header names", hint) {
            if let Some(name) = reader.text(entry, "the name of a header", hint)
                && header_name(reader, entry, name, false)
            {
                log.headers.push(name.to_ascii_lowercase());
            }
        }
    }
    log
}

fn output(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<LogOutput> {
    let path = at.scalar().and_then(|text| text.strip_prefix("file:"));
    let Some(path) = path else {
        if let Some(text) = at.scalar().filter(|text| text.starts_with(['/', '.'])) {
            reader.error(
                at,
                format!(
                    "expected `stdout`, `stderr`, `none` or `file:PATH`, found {}",
                    quote(text)
                ),
                format!("write {}", quote(&format!("file:{text}"))),
            );
            return None;
        }
        return match reader.word_among(at, &["stdout", "stderr", "none", "file:PATH"])? {
            "stdout" => Some(LogOutput::Stdout),
            "stderr" => Some(LogOutput::Stderr),
            _ => Some(LogOutput::None),
        };
    };
    let path = reader.resolve(path.trim());
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if path.file_name().is_none() {
        reader.error(
            at,
            "the path of the log file is missing",
            "write `file:/var/log/balancer/access.log`",
        );
        return None;
    }
    if let Some(directory) = directory
        && !reader.files.is_dir(directory)
    {
        reader.error(
            at,
            format!(
                "the directory {} does not exist",
                quote(&directory.to_string_lossy())
            ),
            "create it; balancer creates only the file",
        );
    }
    Some(LogOutput::File(path))
}

fn when(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> LogWhenConfig {
    let mut when = LogWhenConfig::default();
    if let Some(keys) = reader.section(at) {
        keys.read(reader, "min_status", &mut when.min_status);
        keys.read(reader, "slower_than", &mut when.slower_than);
        keys.read(reader, "sample", &mut when.sample);
    }
    when
}

fn trusted_proxies(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> TrustedProxiesConfig {
    let mut trusted = TrustedProxiesConfig::default();
    if !at.is_map() {
        trusted.from = reader.networks(at);
        return trusted;
    }
    let Some(keys) = reader.section(at) else {
        return trusted;
    };
    match keys.get("from") {
        Some(at) => trusted.from = reader.networks(at),
        None if keys.is_meant("from") => {}
        None => reader.error_at_key(
            at,
            "`trusted_proxies` has no `from`",
            "write `from: [10.0.0.0/8]`: the addresses of the proxies in front",
        ),
    }
    if let Some(at) = keys.get("client_header") {
        trusted.client_header = address_header(reader, at, "CF-Connecting-IP");
    }
    trusted
}

/// DNS servers: IP addresses, as asking for the address of one would need another.
fn resolvers(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<SocketAddr> {
    let hint = "write `resolvers: [10.0.0.53]`";
    let mut servers = Vec::new();
    for entry in reader.list(&at, "a list of addresses", hint) {
        let Some(text) = reader.text(entry, "the address of a DNS server", hint) else {
            continue;
        };
        let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        match bare.or_else(|_| text.parse()) {
            Ok(server) if server.port() > 0 && !servers.contains(&server) => servers.push(server),
            Ok(server) if server.port() > 0 => {
                let message = format!("{} is in the list twice", quote(text));
                reader.error(entry, message, "remove one");
            }
            _ => {
                let message = format!("{} is not the address of a DNS server", quote(text));
                let hint = "write an IP address, such as `10.0.0.53` or `\"[2001:db8::53]:5353\"`";
                reader.error(entry, message, hint);
            }
        }
    }
    if servers.len() > MAX_RESOLVERS {
        let message = format!("more than {MAX_RESOLVERS} DNS servers");
        reader.error(at, message, "name those that are nearest");
    }
    servers
}

/// The name of a header with the client's address and nothing else.
fn address_header(reader: &mut TreeReader<'_>, at: NodeRef<'_>, example: &str) -> Option<String> {
    let hint = format!("write a name such as `{example}`");
    let name = reader.text(at, "the name of a header", &hint)?;
    if !header_name(reader, at, name, false) {
        return None;
    }
    let dashed = name.to_ascii_lowercase().replace('_', "-");
    let shown = quote(name);
    let (message, help) = match (dashed.as_str(), at.last_key()) {
        ("x-forwarded-for", "client_header") => (
            format!("{shown} is the default and cannot be set here"),
            "remove `client_header`".to_owned(),
        ),
        ("x-forwarded-for", _) => (
            format!("balancer sets {shown} itself"),
            "remove `real_ip`, or write another name: `X-Real-IP`".to_owned(),
        ),
        _ if dashed.starts_with("x-forwarded-") => (
            format!("{shown} is reserved, as are all names that begin with `X-Forwarded-`"),
            hint,
        ),
        ("host" | "via" | "cookie" | "authorization" | "forwarded", _) => (
            format!("{shown} cannot carry the client's address: it has another meaning"),
            hint,
        ),
        _ if super::route::is_framing(name) => (
            format!("{shown} cannot carry the client's address: it belongs to the connection"),
            hint,
        ),
        _ => return Some(name.to_owned()),
    };
    reader.error(at, message, help);
    None
}

fn forwarded(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> ForwardedConfig {
    let mut forwarded = ForwardedConfig::default();
    let Some(keys) = reader.section(at) else {
        return forwarded;
    };
    keys.read(reader, "x_forwarded", &mut forwarded.x_forwarded);
    keys.read(reader, "rfc7239", &mut forwarded.rfc7239);
    keys.read(reader, "via", &mut forwarded.via);
    if let Some(at) = keys.get("request_id")
        && let Some(name) = reader.text(at, "the name of a header", "write `X-Request-Id`")
        && header_name(reader, at, name, false)
    {
        if super::route::is_framing(name) {
            reader.error(
                at,
                format!(
                    "{} cannot carry the request id: it belongs to the connection",
                    quote(name)
                ),
                "write `X-Request-Id`",
            );
        }
        name.clone_into(&mut forwarded.request_id);
    }
    if let Some(at) = keys.get("real_ip") {
        if at.is_or_word() {
            forwarded.real_ip = None;
        } else if let Some(name) = address_header(reader, at, "X-Real-IP") {
            forwarded.real_ip = Some(name);
        }
        let dashed = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        if forwarded.real_ip.as_deref().map(dashed) == Some(dashed(&forwarded.request_id)) {
            reader.error(
                at,
                "the same header carries the request id",
                "give the two different names",
            );
        }
    }
    forwarded
}

fn errors(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> ErrorsConfig {
    let mut errors = ErrorsConfig::default();
    let Some(keys) = reader.section(at) else {
        return errors;
    };
    keys.read(reader, "status", &mut errors.status);
    keys.read(reader, "format", &mut errors.format);
    if let Some(at) = keys.get("pages")
        && !at.is_or_word()
    {
        errors.pages = pages(reader, at);
    }
    if let Some(at) = keys.get("override") {
        errors.overrides = overrides(reader, at);
    }
    errors
}

fn pages(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<ErrorPage> {
    let hint = "name a directory with files such as `502.html` and `503.json`";
    let mut pages = Vec::new();
    let Some(text) = reader.text(at, "the path of a directory", hint) else {
        return pages;
    };
    let directory = reader.resolve(text);
    let mut names = match reader.files.list(&directory) {
        Ok(names) => names,
        Err(error) => {
            let message = format!(
                "cannot read the directory {}: {}",
                quote(text),
                io_cause(&error)
            );
            reader.error(at, message, hint);
            return pages;
        }
    };
    names.sort();
    for name in names {
        if let Some(page) = page(reader, at, &directory, &name) {
            pages.push(page);
        }
    }
    if pages.is_empty() {
        reader.error(at, format!("{} has no error pages", quote(text)), hint);
    }
    pages
}

/// Reads one file of the directory; other names than `NNN.html` and `NNN.json` are left alone.
fn page(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    directory: &Path,
    name: &str,
) -> Option<ErrorPage> {
    let (code, kind) = name.split_once('.')?;
    let html = match kind {
        "html" => true,
        "json" => false,
        _ => return None,
    };
    let status = code
        .parse::<u16>()
        .ok()
        .filter(|status| code.len() == 3 && (400..=599).contains(status))?;
    match reader.files.read(&directory.join(name), MAX_PAGE_BYTES) {
        Err(error) => {
            let message = format!(
                "cannot read the error page {}: {}",
                quote(name),
                io_cause(&error)
            );
            reader.error(at, message, "make it readable by balancer's user");
            None
        }
        Ok(body) if body.len() as u64 > MAX_PAGE_BYTES => {
            let message = format!("the error page {} is larger than 64KiB", quote(name));
            reader.error(at, message, "make it smaller; put images elsewhere");
            None
        }
        Ok(body) => Some(ErrorPage { status, html, body }),
    }
}

fn overrides(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<(Reason, u16)> {
    let mut overrides = Vec::new();
    let Some(map) = reader.map(at, "write `{connection_timeout: 504}`") else {
        return overrides;
    };
    for at in map.iter() {
        let name = at.last_key();
        let Some(reason) = Reason::from_name(name) else {
            let near = hint::nearest(name, Reason::ALL.iter().map(|reason| reason.name()));
            let help = near.map_or_else(
                || "the reasons are listed in docs/reasons.md".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            reader.error_at_key(at, format!("{} is not a reason", quote(name)), help);
            continue;
        };
        if reason.status(StatusProfile::Unified) == 0 {
            reader.error_at_key(
                at,
                format!("{} has no status: the connection is cut", quote(name)),
                "remove it",
            );
            continue;
        }
        if let Some(status) = reader.integer(at) {
            overrides.push((reason, status as u16));
        }
    }
    overrides
}
