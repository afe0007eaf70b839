//! Tables, and hellos of real programs.

use std::{fs, path::Path, sync::Arc};

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::base::{crypto::provider, rng::Random};

/// A hello of `extensions` under one record of version 3.1, as most clients write it.
fn hello_of(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    recorded(&message_of(&block(extensions)))
}

/// The extensions with the length of all in front.
fn block(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (kind, data) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((data.len() as u16).to_be_bytes());
        all.extend(data);
    }
    let mut block = (all.len() as u16).to_be_bytes().to_vec();
    block.extend(all);
    block
}

/// A handshake message that ends with `rest`.
fn message_of(rest: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([9; 32]);
    body.extend([0, 6, 0x3a, 0x3a, 0x13, 0x01, 0xc0, 0x2b, 1, 0]);
    body.extend(rest);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    message
}

fn recorded(fragment: &[u8]) -> Vec<u8> {
    let mut record = vec![22, 3, 1];
    record.extend((fragment.len() as u16).to_be_bytes());
    record.extend(fragment);
    record
}

/// The data of a server name extension with these entries.
fn names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in entries {
        list.push(*kind);
        list.extend((name.len() as u16).to_be_bytes());
        list.extend(*name);
    }
    let mut data = (list.len() as u16).to_be_bytes().to_vec();
    data.extend(list);
    data
}

fn named(name: &[u8]) -> Vec<u8> {
    hello_of(&[(0, names(&[(0, name)]))])
}

/// A hello as modern browsers send it: GREASE, a post-quantum key share, an encrypted inner hello,
/// padding.
fn modern(name: &[u8]) -> Vec<u8> {
    hello_of(&[
        (0x5a5a, Vec::new()),
        (0xfe0d, vec![0xec; 300]),
        (51, vec![0x11; 1_216 + 36]),
        (0, names(&[(0, name)])),
        (43, vec![4, 0x9a, 0x9a, 3, 4]),
        (0xbaba, vec![0]),
        (21, vec![0; 117]),
    ])
}

/// A hello as rustls sends it to `name`.
fn of_rustls(name: &str, version: &'static rustls::SupportedProtocolVersion) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// Hellos as programs have sent them: file name and bytes.
fn captured() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/client_hello");
    let entries = fs::read_dir(directory).unwrap();
    let mut all: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// The same message in records of `sizes`, over and over.
fn refragmented(hello: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut message = &hello[RECORD_HEADER..];
    let mut all = Vec::new();
    for size in sizes.iter().cycle() {
        if message.is_empty() {
            break;
        }
        let (part, rest) = message.split_at((*size).min(message.len()));
        all.extend(recorded(part));
        message = rest;
    }
    all
}

#[track_caller]
fn name_of(bytes: &[u8]) -> Option<String> {
    let hello = parse(bytes).unwrap().expect("the hello is whole");
    hello.server_name.map(String::from)
}

fn real() -> Vec<(Vec<u8>, Option<String>)> {
    let mut all = vec![
        (
            modern(b"App.example.com"),
            Some("app.example.com".to_owned()),
        ),
        (
            of_rustls("app.example.com", &rustls::version::TLS12),
            Some("app.example.com".to_owned()),
        ),
        (
            of_rustls("app.example.com", &rustls::version::TLS13),
            Some("app.example.com".to_owned()),
        ),
        (of_rustls("192.0.2.1", &rustls::version::TLS13), None),
    ];
    for (file, bytes) in captured() {
        let name = name_of(&bytes);
        assert_eq!(name.is_none(), file.contains("nameless"), "{file}");
        all.push((bytes, name));
    }
    all
}

#[test]
fn the_hellos_of_real_programs_have_their_name() {
    let seen: Vec<_> = captured()
        .into_iter()
        .map(|(file, bytes)| (file, name_of(&bytes)))
        .collect();
    let expected = [
        ("curl", Some("shop.example.com")),
        ("openssl-nameless", None),
        ("openssl-tls10", Some("old.example.com")),
        ("openssl-tls11", Some("old.example.com")),
        ("openssl-tls12", Some("app.example.com")),
        ("openssl-tls13", Some("app.example.com")),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(file, name)| ((*file).to_owned(), name.map(str::to_owned)))
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn no_prefix_of_a_hello_has_a_name_and_the_whole_has() {
    for (bytes, name) in real() {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end} bytes for {name:?}");
        }
        assert_eq!(name_of(&bytes), name);
    }
}

#[test]
fn records_of_any_size_have_the_same_name_and_no_prefix_of_them_has() {
    let mut random = Random::seeded(11);
    for (bytes, name) in real() {
        let length = bytes.len() - RECORD_HEADER;
        let two = (1..length).map(|first| vec![first, length]);
        let any = (0..40).map(|_| (0..9).map(|_| 1 + random.below(90)).collect());
        for sizes in two.chain(any).chain([vec![1], vec![2], vec![5]]) {
            let split = refragmented(&bytes, &sizes);
            assert_eq!(name_of(&split), name, "{sizes:?}");
            let step = 1 + split.len() / 40;
            for end in (0..split.len()).step_by(step).chain([split.len() - 1]) {
                assert_eq!(parse(&split[..end]), Ok(None), "{end} of {sizes:?}");
            }
        }
    }
}

#[test]
fn bytes_behind_the_hello_are_ignored() {
    for behind in [
        &b"\x14\x03\x03\x00\x01\x01"[..],
        b"\x17\x03\x03",
        b"GET /",
        &vec![0; 40_000],
    ] {
        let mut bytes = modern(b"a.test");
        bytes.extend(behind);
        assert_eq!(name_of(&bytes).as_deref(), Some("a.test"));
    }
}

#[test]
fn names_have_one_form() {
    let long = format!("{}.test", ["a".repeat(62).as_str(); 3].join("."));
    for (sent, name) in [
        ("a.test", "a.test"),
        ("A.TEST", "a.test"),
        ("a.test.", "a.test"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("_acme.a-b.test", "_acme.a-b.test"),
        ("192.0.2.1", "192.0.2.1"),
        (&long, &long),
    ] {
        assert_eq!(name_of(&named(sent.as_bytes())).as_deref(), Some(name));
    }
}

#[test]
fn what_is_no_host_name_is_refused() {
    let long = ["a".repeat(63).as_str(); 4].join(".");
    let label = format!("{}.test", "a".repeat(64));
    for sent in [
        &b""[..],
        b".",
        b"a..test",
        b".a.test",
        b"a.test..",
        b"a.test:443",
        b"a test",
        b"a.test\0",
        b"a.test\r\nX: y",
        b"*.test",
        b"[::1]",
        b"2001:db8::1",
        b"b\xfccher.test",
        "b\u{fc}cher.test".as_bytes(),
        b"\"a\".test",
        long.as_bytes(),
        label.as_bytes(),
    ] {
        let refused = parse(&named(sent)).unwrap_err();
        assert_eq!(
            refused,
            ClientHelloError::Malformed("the server name is not a host name"),
            "{}",
            sent.escape_ascii()
        );
    }
}

#[test]
fn a_hello_without_a_name_is_a_hello() {
    assert_eq!(name_of(&hello_of(&[])), None);
    assert_eq!(name_of(&hello_of(&[(43, vec![2, 3, 4])])), None);
    // Before TLS 1.3 there may be no extensions at all.
    assert_eq!(name_of(&recorded(&message_of(&[]))), None);
}

#[test]
fn more_or_other_than_one_host_name_is_refused() {
    let one = names(&[(0, b"a.test")]);
    let mut trailing = one.clone();
    trailing.push(0);
    for data in [
        Vec::new(),
        vec![0, 0],
        names(&[(0, b"a.test"), (0, b"b.test")]),
        names(&[(0, b"a.test"), (1, b"b.test")]),
        names(&[(1, b"a.test")]),
        trailing,
        one[..one.len() - 1].to_vec(),
    ] {
        let refused = parse(&hello_of(&[(0, data.clone())])).unwrap_err();
        assert!(
            matches!(refused, ClientHelloError::Malformed(_)),
            "{data:?}"
        );
    }
    let twice = hello_of(&[(0, one.clone()), (43, vec![2, 3, 4]), (0, one)]);
    let refused = ClientHelloError::Malformed("two server name extensions");
    assert_eq!(parse(&twice), Err(refused));
}

#[test]
fn lengths_must_fit_exactly() {
    let whole = named(b"a.test");
    // Every byte of a length, made one larger and one smaller.
    let session = RECORD_HEADER + 4 + 34;
    let suites = session + 33;
    let compression = suites + 8;
    let extensions = compression + 2;
    let places = [
        8,
        session,
        suites + 1,
        compression,
        extensions + 1,
        extensions + 5,
    ];
    for place in places.into_iter().chain([extensions + 7, extensions + 10]) {
        for wrong in [whole[place].wrapping_add(1), whole[place].wrapping_sub(1)] {
            let mut bytes = whole.clone();
            bytes[place] = wrong;
            // More may still come where the message says that it is longer.
            let refused = match parse(&bytes) {
                Ok(None) => place == 8 && wrong > whole[place],
                Ok(Some(_)) => false,
                Err(refused) => matches!(refused, ClientHelloError::Malformed(_)),
            };
            assert!(refused, "byte {place} as {wrong}: {:?}", parse(&bytes));
        }
    }
}

#[test]
fn lists_of_impossible_lengths_are_refused() {
    let rest = block(&[]);
    let body = |session: &[u8], suites: &[u8], compression: &[u8]| {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(session.len() as u8);
        body.extend(session);
        body.extend((suites.len() as u16).to_be_bytes());
        body.extend(suites);
        body.push(compression.len() as u8);
        body.extend(compression);
        body.extend(&rest);
        let mut message = vec![1, 0, 0, body.len() as u8];
        message.extend(body);
        parse(&recorded(&message))
    };
    assert!(body(&[], &[0x13, 1], &[0]).is_ok());
    assert!(body(&[1; 32], &[0x13, 1], &[0, 1]).is_ok());
    assert!(body(&[1; 33], &[0x13, 1], &[0]).is_err());
    assert!(body(&[], &[], &[0]).is_err());
    assert!(body(&[], &[0x13, 1, 0], &[0]).is_err());
    assert!(body(&[], &[0x13, 1], &[]).is_err());
}

#[test]
fn what_is_not_tls_is_known_by_its_first_bytes() {
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PROXY TCP4 ",
        b"\x80\x2e\x01\x03\x01",
        b"\x15\x03\x01\x00\x02",
        b"\x17\x03\x03",
        b"\x16\x02",
        b"\x16\x16\x16\x16",
        b"\0",
    ] {
        assert_eq!(
            parse(bytes),
            Err(ClientHelloError::NotTls),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn records_that_cannot_begin_a_connection_are_refused() {
    let message = message_of(&block(&[]));
    let (first, second) = message.split_at(20);
    let cases: [Vec<u8>; 7] = [
        // Empty, in front and in the middle.
        recorded(&[]),
        [recorded(first), recorded(&[]), recorded(second)].concat(),
        // Longer than a record may be.
        vec![22, 3, 1, 0x40, 1],
        // Another kind of record, or of version, between two parts.
        [recorded(first), vec![21, 3, 1, 0, 2, 1, 0]].concat(),
        [recorded(first), vec![22, 4]].concat(),
        // Another message, and one behind the hello in the same record.
        recorded(&[2, 0, 0, 1, 0]),
        recorded(&[&message[..], &[1]].concat()),
    ];
    for bytes in cases {
        assert!(
            matches!(parse(&bytes), Err(ClientHelloError::Malformed(_))),
            "{:?} {bytes:?}",
            parse(&bytes)
        );
    }
}

#[test]
fn a_hello_is_bounded() {
    let padded = |length: usize| {
        // A message of a header, the fixed body, and two extensions.
        let fixed = message_of(&block(&[(0, names(&[(0, b"a.test")])), (21, Vec::new())])).len();
        message_of(&block(&[
            (21, vec![0; length - fixed]),
            (0, names(&[(0, b"a.test")])),
        ]))
    };
    let longest = padded(MAX_MESSAGE_BYTES);
    assert_eq!(longest.len(), MAX_MESSAGE_BYTES);
    assert_eq!(name_of(&recorded(&longest)).as_deref(), Some("a.test"));
    let longer = recorded(&[1, 0, 0x40, 0]);
    assert_eq!(parse(&longer[..8]), Ok(None));
    assert_eq!(
        parse(&longer),
        Err(ClientHelloError::TooLarge),
        "as soon as it says so"
    );
    // Small records: what they carry is not too long, they are.
    let small = refragmented(&recorded(&longest), &[4]);
    assert!(small.len() > MAX_HELLO_BYTES);
    assert_eq!(parse(&small[..MAX_HELLO_BYTES - 1]), Ok(None));
    assert_eq!(
        parse(&small[..MAX_HELLO_BYTES]),
        Err(ClientHelloError::TooLarge)
    );
    assert_eq!(parse(&small), Err(ClientHelloError::TooLarge));
    let usual = refragmented(&recorded(&padded(2_000)), &[1]);
    assert_eq!(name_of(&usual).as_deref(), Some("a.test"));
}

#[test]
fn a_fault_of_a_prefix_is_the_fault_of_the_whole() {
    let mut random = Random::seeded(12);
    let seeds: Vec<_> = real().into_iter().map(|(bytes, _)| bytes).collect();
    for round in 0..3_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        if random.below(2) == 0 {
            bytes = refragmented(&bytes, &[1 + random.below(100)]);
        }
        for _ in 0..=random.below(3) {
            let place = random.below(bytes.len());
            bytes[place] = random.bits() as u8;
        }
        let whole = parse(&bytes);
        let mut parser = ClientHelloParser::default();
        for end in 0..=bytes.len() {
            let verdict = parser.parse(&bytes[..end]);
            if verdict != Ok(None) || end == bytes.len() {
                assert_eq!(verdict, whole, "piece by piece, at {end}");
                break;
            }
        }
        for _ in 0..20 {
            let part = parse(&bytes[..random.below(bytes.len())]);
            assert!(part == Ok(None) || part == whole, "{part:?} {whole:?}");
        }
    }
}
