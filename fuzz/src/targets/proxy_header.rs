//! A PROXY header: what is accepted is known to its last byte and no byte more, and means the same when it is written anew.

use balancer::{
    config::model::ProxyVersion,
    net::proxy_protocol::{MAX_HEADER_BYTES, ProxyHeader, ProxyHeaderError, encode, parse},
};

use super::prefixes;

type Parsed = Result<Option<(ProxyHeader, usize)>, ProxyHeaderError>;

fn check_prefixes(data: &[u8], version: Option<ProxyVersion>, whole: &Parsed) {
    let end = match whole {
        Ok(Some((_, length))) => *length,
        _ => data.len(),
    };
    for length in prefixes(data.len(), end) {
        let part = parse(&data[..length], version);
        match (&part, whole) {
            (Ok(Some(_)), _) => {
                assert!(length >= end, "{length} bytes are whole, {end} are needed");
                assert_eq!(&part, whole, "{length} bytes");
            }
            (Err(invalid), Ok(_)) => panic!("{length} bytes are refused alone: {invalid}"),
            (Ok(None), Ok(Some(_))) => assert!(length < end, "{length} bytes are not enough"),
            (Ok(None) | Err(_), _) => {}
        }
    }
}

/// Reads `data` with every choice of versions, whole and in part, and what is accepted a second time.
pub fn run(data: &[u8]) {
    let any = parse(data, None);
    check_prefixes(data, None, &any);
    if any == Ok(None) {
        assert!(
            data.len() < MAX_HEADER_BYTES,
            "more than a header, and still none"
        );
    }
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let one = parse(data, Some(version));
        check_prefixes(data, Some(version), &one);
        if one.is_ok() {
            assert_eq!(one, any, "{version:?}");
        }
    }
    let Ok(Some((header, length))) = any else {
        return;
    };
    assert!(length <= data.len().min(MAX_HEADER_BYTES), "{length} bytes");
    let ProxyHeader::Proxied(ends) = header else {
        return;
    };
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let written = encode(version, Some(ends));
        let again = parse(&written, Some(version));
        assert_eq!(again, Ok(Some((header, written.len()))), "{version:?}");
    }
}
