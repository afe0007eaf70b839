//! Reads how a pool picks a backend: `policy`, `hash`, `hash_balance` and `slow_start`.

use super::{
    NodeRef, Section, TreeReader, assign,
    common::{header_name, is_token},
    quote,
};
use crate::config::model::{BalancingPolicy, HashSource, PoolConfig};

/// Longest name of a cookie or query parameter, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Reads the keys of one pool.
pub(super) fn read(reader: &mut TreeReader<'_>, keys: &Section<'_>, pool: &mut PoolConfig) {
    keys.read(reader, "policy", &mut pool.policy);
    if let Some(at) = keys.get("hash") {
        assign(&mut pool.hash, hash_source(reader, at));
        warn_unless_hash(reader, at, pool.policy);
    }
    if let Some(at) = keys.get("hash_balance") {
        if !at.is_or_word() {
            pool.hash_balance = balance(reader, at);
        }
        warn_unless_hash(reader, at, pool.policy);
    }
    keys.read(reader, "slow_start", &mut pool.slow_start);
    if let Some(at) = keys.get("slow_start")
        && pool.slow_start.is_some()
        && pool.policy == BalancingPolicy::First
    {
        reader.warn_at_key(
            at,
            "`slow_start` has no effect with `policy: first`, which does not respect weights",
            "remove it, or choose another policy",
        );
    }
}

fn warn_unless_hash(reader: &mut TreeReader<'_>, at: NodeRef<'_>, policy: BalancingPolicy) {
    if policy != BalancingPolicy::Hash {
        reader.warn_at_key(
            at,
            format!(
                "{} has no effect with `policy: {}`",
                quote(at.last_key()),
                policy.name()
            ),
            "write `policy: hash`, or remove it",
        );
    }
}

/// The part of the request, such as `header:X-Tenant`.
fn hash_source(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<HashSource> {
    let wanted = "`client_ip`, `path`, `uri`, `header:NAME`, `cookie:NAME` or `query:NAME`";
    let text = reader.text(at, wanted, "write `hash: client_ip`")?;
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    let source = match (kind, name) {
        ("client_ip", "") => HashSource::ClientIp,
        ("path", "") => HashSource::Path,
        ("uri", "") => HashSource::Uri,
        ("header", name) if !name.is_empty() => {
            if !header_name(reader, at, name, false) {
                return None;
            }
            HashSource::Header(name.to_ascii_lowercase())
        }
        ("cookie", name) if is_token(name) && name.len() <= MAX_NAME_BYTES => {
            HashSource::Cookie(name.to_owned())
        }
        ("query", name) if is_parameter(name) => HashSource::Query(name.to_owned()),
        _ => {
            let message = format!("{} is not {wanted}", quote(text));
            let hint = "the name of a cookie has letters, digits and some signs, that of a parameter no \
                        `&`, `=` or `?`";
            reader.wrong_value(at, message, hint);
            return None;
        }
    };
    Some(source)
}

/// True for a name that can stand in a query as it is.
fn is_parameter(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"&=#?".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(fits)
}

/// A percentage above 100.
fn balance(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<u32> {
    let wanted = "a percentage of 101% to 1000%";
    let text = reader.text(at, wanted, "write `hash_balance: 125%`")?;
    let percent = text.strip_suffix('%').and_then(|digits| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse::<u32>().ok()).flatten()
    });
    match percent {
        Some(percent @ 101..=1000) => Some(percent),
        Some(_) => {
            let hint = "at 100% every backend would have to have exactly its share: write `125%`";
            reader.wrong_value(at, format!("{} is not {wanted}", quote(text)), hint);
            None
        }
        None => {
            reader.wrong_value(
                at,
                format!("{} is not {wanted}", quote(text)),
                balance_hint(text),
            );
            None
        }
    }
}

/// Other products write the factor as a number: 125 or 1.25.
fn balance_hint(text: &str) -> String {
    let percent = match text.parse::<f64>() {
        Ok(factor) if (1.01..=10.0).contains(&factor) => (factor * 100.0).round(),
        Ok(percent) if (101.0..=1000.0).contains(&percent) => percent.round(),
        _ => 125.0,
    };
    format!("write `hash_balance: {percent:.0}%`")
}

/// Warns of weights where the policy respects none.
pub(super) fn warn_of_weights(reader: &mut TreeReader<'_>, at: NodeRef<'_>, pool: &PoolConfig) {
    // Weight 0, no new work, holds for every policy.
    let is_weighted = |weight: u16| weight > 1;
    let weighted = pool.backends.iter().find(|one| is_weighted(one.weight));
    if let Some(backend) = weighted
        && pool.policy == BalancingPolicy::First
    {
        reader.warn_at_key(
            at,
            format!(
                "the weight of {} has no effect with `policy: first`",
                quote(&backend.name)
            ),
            "remove it, or choose another policy",
        );
    }
}
