//! The part of a request that `policy: hash` goes by.

use super::client_address::ClientAddress;
use crate::{
    base::hasher::{address_hash, stable_hash},
    config::model::{BalancingPolicy, HashSource, PoolConfig},
    http::{cookies, message::RequestHead},
};

/// Hash of the part that the pool goes by, as the client sent it. `None`: the policy needs none, or
/// the request has no such part.
#[inline]
pub(super) fn hash_key(
    pool: &PoolConfig,
    head: &RequestHead,
    address: &ClientAddress,
) -> Option<u64> {
    if pool.policy != BalancingPolicy::Hash {
        return None;
    }
    match &pool.hash {
        HashSource::ClientIp => address.client.map(address_hash),
        HashSource::Path => Some(key(head.text(head.path))),
        HashSource::Uri => Some(key(head.text(head.target))),
        // HTTP/2 has it in another place.
        HashSource::Header(name) if name == "host" => Some(key(head.text(head.host))),
        HashSource::Header(name) => head.fields.values(name, &head.bytes).next().map(key),
        HashSource::Cookie(name) => cookies::values(head, name).next().map(key),
        HashSource::Query(name) => parameter(head, name.as_bytes()).map(key),
    }
}

fn key(bytes: &[u8]) -> u64 {
    stable_hash(0, bytes)
}

/// The first query parameter called `name`.
fn parameter<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let target = head.text(head.target);
    let query = target.get(head.text(head.path).len() + 1..)?;
    query
        .split(|byte| *byte == b'&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::rules::HeadLimits, http1::request};

    fn found(source: HashSource, head: &str) -> Option<u64> {
        let mut request = RequestHead::default();
        request.bytes.extend_from_slice(head.as_bytes());
        let limits = HeadLimits {
            fields: 100,
            bytes: 32 << 10,
        };
        assert!(request::parse(&mut request, limits).unwrap());
        let pool = PoolConfig {
            policy: BalancingPolicy::Hash,
            hash: source,
            ..PoolConfig::named("app")
        };
        let address = ClientAddress {
            client: Some([10, 0, 0, 1].into()),
            ..ClientAddress::default()
        };
        hash_key(&pool, &request, &address)
    }

    #[test]
    fn each_source_takes_its_part_of_the_request() {
        let head = "GET /a/b?id=7&x=id=8&id=9 HTTP/1.1\r\nHost: a:80\r\nX-Tenant: red\r\n\
                    X-Tenant: blue\r\nCookie: id=3; s=4\r\n\r\n";
        for (source, part) in [
            (HashSource::Path, "/a/b"),
            (HashSource::Uri, "/a/b?id=7&x=id=8&id=9"),
            (HashSource::Header("x-tenant".into()), "red"),
            (HashSource::Header("host".into()), "a:80"),
            (HashSource::Cookie("s".into()), "4"),
            (HashSource::Query("id".into()), "7"),
            (HashSource::Query("x".into()), "id=8"),
        ] {
            assert_eq!(
                found(source.clone(), head),
                Some(key(part.as_bytes())),
                "{source:?}"
            );
        }
        let by_address = address_hash([10, 0, 0, 1].into());
        assert_eq!(found(HashSource::ClientIp, head), Some(by_address));
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(address_hash(mapped), by_address);
    }

    #[test]
    fn a_request_without_the_part_has_no_key() {
        for source in [
            HashSource::Header("x-tenant".into()),
            HashSource::Cookie("s".into()),
            HashSource::Query("id".into()),
        ] {
            let head = "GET /?idx=1 HTTP/1.1\r\nHost: a\r\n\r\n";
            assert_eq!(found(source.clone(), head), None, "{source:?}");
        }
        let bare = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(found(HashSource::Query("id".into()), bare), None);
    }
}
