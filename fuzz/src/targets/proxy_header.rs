//! PROXY header: an accepted header has a definite length, and means the same when encoded again.

use balancer::{
    config::model::ProxyVersion,
    net::proxy_protocol::{MAX_HEADER_BYTES, ProxyHeader, ProxyHeaderError, encode, parse},
};

use super::prefixes;

type ParsedHeader = Result<Option<(ProxyHeader, usize)>, ProxyHeaderError>;

fn check_prefixes(data: &[u8], version: Option<ProxyVersion>, whole: &ParsedHeader) {
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

/// Parses `data` with each choice of versions, whole and in part, and accepted input again.
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
