//! Tables of headers in both versions, changed bytes, and headers on streams.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    parse::{BINARY_START, checksum},
    *,
};
use crate::{
    base::rng::Random,
    config::model::ProxyVersion,
    net::{fixture, stream::Stream},
};

const V1: ProxyVersion = ProxyVersion::V1;
const V2: ProxyVersion = ProxyVersion::V2;

fn ends(source: &str, destination: &str) -> ConnectionEnds {
    ConnectionEnds {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

/// Writes a header of version 2 from its parts.
fn binary(command: u8, kind: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap();
    [BINARY_START, &[command, kind], &length.to_be_bytes(), block].concat()
}

const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

fn four() -> ProxyHeader {
    ProxyHeader::Proxied(ends("192.0.2.1:56324", "198.51.100.2:443"))
}

/// Addresses of version 2 with TLVs behind them.
fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    binary(0x21, 0x11, &[&FOUR, tlvs].concat())
}

/// The same with a checksum; it is right if `wrong` is 0.
fn with_checksum(wrong: u32) -> Vec<u8> {
    let mut header = with_tlvs(&[0x04, 0, 2, 9, 9, 0x03, 0, 4, 0, 0, 0, 0]);
    let at = header.len() - 4;
    let sum = checksum(&header, at) ^ wrong;
    header[at..].copy_from_slice(&sum.to_be_bytes());
    header
}

fn six() -> Vec<u8> {
    let mut block = Vec::new();
    for last in [1, 2] {
        block.extend_from_slice(&[
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
        ]);
    }
    block.extend_from_slice(&[0xdc, 0x04, 0x01, 0xbb]);
    block
}

fn valid() -> Vec<(Vec<u8>, ProxyHeader)> {
    let six_header = ProxyHeader::Proxied(ends("[2001:db8::1]:56324", "[2001:db8::2]:443"));
    let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), 107);
    let mut mapped = vec![0; 10];
    mapped.extend_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    mapped.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 2]);
    mapped.extend_from_slice(&FOUR[8..]);
    let texts: [(&str, ProxyHeader); 9] = [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", four()),
        (
            "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n",
            six_header,
        ),
        (
            "PROXY TCP6 2001:DB8:0:0:0:0:0:1 2001:db8::2 56324 443\r\n",
            six_header,
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 56324 443\r\n",
            four(),
        ),
        (
            "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            ProxyHeader::Proxied(ends("0.0.0.0:0", "255.255.255.255:65535")),
        ),
        ("PROXY UNKNOWN\r\n", ProxyHeader::Own),
        ("PROXY UNKNOWN \r\n", ProxyHeader::Own),
        ("PROXY UNKNOWN what\0ever\r\n", ProxyHeader::Own),
        (longest, ProxyHeader::Own),
    ];
    let binaries = [
        (binary(0x21, 0x11, &FOUR), four()),
        (binary(0x21, 0x21, &six()), six_header),
        (binary(0x21, 0x21, &mapped), four()),
        (binary(0x21, 0x31, &[7; 216]), ProxyHeader::Unix),
        (binary(0x21, 0x32, &[7; 216]), ProxyHeader::Own),
        (binary(0x21, 0x12, &FOUR), ProxyHeader::Own),
        (binary(0x21, 0x22, &six()), ProxyHeader::Own),
        (binary(0x21, 0x00, &[]), ProxyHeader::Own),
        (binary(0x21, 0x00, &[1, 2, 3, 4, 5]), ProxyHeader::Own),
        (binary(0x20, 0x00, &[]), ProxyHeader::Own),
        // Everything behind LOCAL is skipped.
        (binary(0x20, 0x11, &FOUR), ProxyHeader::Own),
        (binary(0x20, 0xff, &[0xff; 40]), ProxyHeader::Own),
        (with_tlvs(&[0x04, 0, 0, 0xe0, 0, 3, 1, 2, 3]), four()),
        (with_checksum(0), four()),
        (
            with_tlvs(&[&[0x20, 0x0f, 0xf1][..], &[6; 4081]].concat()),
            four(),
        ),
    ];
    texts
        .into_iter()
        .map(|(text, header)| (text.as_bytes().to_vec(), header))
        .chain(binaries)
        .collect()
}

#[test]
fn a_header_means_the_same_in_any_number_of_pieces() {
    for (bytes, header) in valid() {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end], None), Ok(None), "{end} of {bytes:?}");
        }
        let own = if bytes[0] == b'P' { V1 } else { V2 };
        let other = if own == V1 { V2 } else { V1 };
        for more in ["", "G", "\r\n", "PROXY UNKNOWN\r\n"] {
            let followed = [&bytes, more.as_bytes()].concat();
            let whole = Ok(Some((header, bytes.len())));
            assert_eq!(parse(&followed, None), whole, "{bytes:?}");
            assert_eq!(parse(&followed, Some(own)), whole, "{bytes:?}");
            assert!(parse(&followed, Some(other)).is_err(), "{bytes:?}");
        }
    }
}

#[test]
fn text_that_is_not_a_header_is_refused() {
    let long = format!("PROXY UNKNOWN {}", "x".repeat(107 - 15));
    let texts = [
        "GET / HTTP/1.1\r\n",
        "P\r\n",
        "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY\tTCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2\r\n",
        "PROXY TCP4\r\n",
        "PROXY \r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n",
        "PROXY TCP4 192.0.2 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.02.1 198.51.100.2 1 2\r\n",
        "PROXY TCP6 2001:db8::1%eth0 2001:db8::2 1 2\r\n",
        "PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 -1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 0x2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\rx",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.\u{ff12} 1 2\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY unknown\r\n",
        "PROXY UNKNOWN \n\r\n",
        &long,
        &format!("{}\r\n", &long[..106]),
    ];
    for text in texts {
        assert!(parse(text.as_bytes(), None).is_err(), "{text:?}");
    }
}

#[test]
fn bytes_that_are_not_a_header_are_refused() {
    let mut other_start = binary(0x21, 0x11, &FOUR);
    other_start[4] = 1;
    let binaries = [
        other_start,
        binary(0x11, 0x11, &FOUR),
        binary(0x31, 0x11, &FOUR),
        binary(0x22, 0x11, &FOUR),
        binary(0x2f, 0x11, &FOUR),
        binary(0x21, 0x10, &FOUR),
        binary(0x21, 0x01, &FOUR),
        binary(0x21, 0x13, &FOUR),
        binary(0x21, 0x41, &FOUR),
        binary(0x21, 0x11, &[]),
        binary(0x21, 0x11, &FOUR[..11]),
        binary(0x21, 0x12, &FOUR[..11]),
        binary(0x21, 0x21, &FOUR),
        binary(0x21, 0x21, &six()[..35]),
        binary(0x21, 0x31, &[0; 215]),
        binary(0x20, 0, &[0; 4097]),
        binary(0x21, 0x11, &vec![0; 65_535]),
        with_tlvs(&[0x04]),
        with_tlvs(&[0x04, 0]),
        with_tlvs(&[0x04, 0, 1]),
        with_tlvs(&[0x04, 0, 1, 0, 0x04]),
        with_tlvs(&[0x04, 0xff, 0xff, 0]),
        with_tlvs(&[0x03, 0, 3, 0, 0, 0]),
        with_tlvs(&[0x03, 0, 5, 0, 0, 0, 0, 0]),
        with_checksum(1),
        with_checksum(1 << 31),
    ];
    for bytes in binaries {
        assert!(parse(&bytes, None).is_err(), "{bytes:?}");
    }
}

#[test]
fn garbage_is_known_at_its_first_byte() {
    let invalid = |bytes: &[u8]| parse(bytes, None).is_err();
    for first in 0..=u8::MAX {
        assert_eq!(invalid(&[first]), !b"P\r".contains(&first), "{first}");
    }
    assert!(invalid(b"PRI"));
    assert!(invalid(b"\r\n\r\n\0\r\nQUIT\r"));
    assert!(invalid(&[BINARY_START, &[0x00]].concat()));
    assert!(invalid(&[BINARY_START, &[0x21, 0x99]].concat()));
    // A length over the limit is refused before its bytes arrive.
    assert!(invalid(&[BINARY_START, &[0x21, 0x11, 0x10, 0x01]].concat()));
    assert!(invalid(&[b"PROXY UNKNOWN ", &[b'x'; 92][..]].concat()));
}

/// The check value of CRC-32C, and the same with the checksum's own bytes inside.
#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(checksum(b"123456789", 100), 0xe306_9283);
    let without = [b"12", &[0; 4][..], b"789"].concat();
    assert_eq!(checksum(&without, 100), checksum(b"123456789", 2));
}

#[test]
fn mutated_headers_are_read_within_their_bytes_and_mean_what_they_say() {
    let seeds = valid();
    let mut random = Random::seeded(7);
    let mut taken = 0;
    for round in 0..60_000 {
        let mut bytes = seeds[random.below(seeds.len())].0.clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => drop(bytes.drain(at..(at + 1 + random.below(4)).min(bytes.len()))),
                _ => bytes.insert(at, b" \r\n0:."[random.below(6)]),
            }
            if bytes.is_empty() {
                bytes.push(b'P');
            }
        }
        let Ok(Some((header, length))) = parse(&bytes, None) else {
            continue;
        };
        taken += 1;
        assert!(
            length <= bytes.len().min(MAX_HEADER_BYTES),
            "round {round}: {bytes:?}"
        );
        // The result depends on the bytes of the header alone, and on all of them.
        assert_eq!(parse(&bytes[..length], None), Ok(Some((header, length))));
        assert_eq!(parse(&bytes[..length - 1], None), Ok(None), "{bytes:?}");
        if let ProxyHeader::Proxied(ends) = header {
            for version in [V1, V2] {
                let written = encode(version, Some(ends));
                let read = parse(&written, Some(version));
                assert_eq!(read, Ok(Some((header, written.len()))), "round {round}");
            }
        }
    }
    assert!(taken > 10_000, "{taken}");
}

#[test]
fn headers_are_written_as_the_specification_shows_them() {
    let client = ends("192.0.2.1:56324", "198.51.100.2:443");
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
    assert_eq!(&*encode(V1, Some(client)), line);
    assert_eq!(&*encode(V2, Some(client)), binary(0x21, 0x11, &FOUR));
    let client = ends("[2001:db8::1]:56324", "[2001:db8::2]:443");
    let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
    assert_eq!(&*encode(V1, Some(client)), line);
    assert_eq!(&*encode(V2, Some(client)), binary(0x21, 0x21, &six()));
    // Nothing is known of the client.
    assert_eq!(&*encode(V1, None), b"PROXY UNKNOWN\r\n");
    assert_eq!(&*encode(V2, None), binary(0x21, 0, &[]));
    // The connection is our own.
    assert_eq!(&*encode_local(V1), b"PROXY UNKNOWN\r\n");
    assert_eq!(&*encode_local(V2), binary(0x20, 0, &[]));
}

#[test]
fn addresses_of_two_families_become_one_family() {
    for (source, destination) in [
        ("192.0.2.1:1", "[2001:db8::2]:2"),
        ("[2001:db8::2]:2", "192.0.2.1:1"),
    ] {
        let client = ends(source, destination);
        for version in [V1, V2] {
            let written = encode(version, Some(client));
            let read = parse(&written, None).unwrap().unwrap().0;
            assert_eq!(read, ProxyHeader::Proxied(client));
        }
    }
    let line = encode(V1, Some(ends("192.0.2.1:1", "[2001:db8::2]:2")));
    assert_eq!(&*line, b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 1 2\r\n");
}

/// Bytes behind the header stay in the stream, wherever the segments were split.
#[tokio::test]
async fn a_header_is_taken_off_a_stream_to_its_last_byte() {
    for (bytes, header) in valid() {
        let splits = (1..bytes.len()).step_by((bytes.len() / 60).max(1));
        for split in splits.chain([bytes.len()]) {
            let (mut peer, mut stream) = fixture::pair().await;
            let (first, second) = bytes.split_at(split);
            peer.write_all(first).await.unwrap();
            let send = async {
                // The receiver has peeked at the first part by now, or peeks at both together.
                tokio::task::yield_now().await;
                let rest = [second, b"rest"].concat();
                peer.write_all(&rest).await.unwrap();
                peer.shutdown().await.unwrap();
            };
            let (received, ()) = tokio::join!(receive_header(&stream, None), send);
            assert_eq!(received.unwrap(), header, "{split} of {bytes:?}");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"rest", "{split} of {bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_header_that_drips_in_is_taken() {
    let bytes = with_checksum(0);
    let (mut peer, stream) = fixture::pair().await;
    let drip = async {
        for byte in &bytes {
            peer.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (received, ()) = tokio::join!(receive_header(&stream, None), drip);
    assert_eq!(received.unwrap(), four());
    assert!(stream.has_no_pending_input());
}

#[tokio::test]
async fn a_stream_without_a_header_has_its_cause() {
    for (bytes, wanted) in [
        ("", "closed before the first byte"),
        ("PROXY TCP4 192", "closed in the middle of the header"),
        (
            "GET / HTTP/1.1\r\n",
            "not a PROXY header of a version that is allowed",
        ),
    ] {
        let (mut peer, stream) = fixture::pair().await;
        peer.write_all(bytes.as_bytes()).await.unwrap();
        drop(peer);
        let error = receive_header(&stream, None).await.unwrap_err();
        assert_eq!(error.to_string(), wanted, "{bytes:?}");
    }
}

#[tokio::test]
async fn what_is_sent_is_received() {
    let client = ends("192.0.2.1:56324", "198.51.100.2:443");
    for (version, more) in [(V1, false), (V2, true)] {
        let (peer, stream) = fixture::pair().await;
        let peer = Stream::from(peer);
        send_header(&peer, &encode(version, Some(client)), more).unwrap();
        peer.shutdown_write().unwrap();
        let received = receive_header(&stream, Some(version)).await.unwrap();
        assert_eq!(received, ProxyHeader::Proxied(client));
    }
}
