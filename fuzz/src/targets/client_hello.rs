//! ClientHello: the result for a prefix never changes with later bytes, a name is a host name, and
//! the same message in other records gives the same.

use balancer::net::client_hello::{
    ClientHelloError, ClientHelloParser, MAX_HELLO_BYTES, ParsedClientHello, parse,
};

use super::prefixes;

type ParsedHello = Result<Option<ParsedClientHello>, ClientHelloError>;

fn check_prefixes(data: &[u8], whole: &ParsedHello) {
    for length in prefixes(data.len(), data.len()) {
        let part = parse(&data[..length]);
        assert!(
            part == Ok(None) || part == *whole,
            "{length} bytes are {part:?}, all are {whole:?}"
        );
    }
    let mut parser = ClientHelloParser::default();
    for length in (0..data.len()).step_by(1 + data.len() / 64) {
        let part = parser.parse(&data[..length]);
        assert_eq!(part, parse(&data[..length]), "{length} bytes, in pieces");
        if part != Ok(None) {
            break;
        }
    }
}

fn check_name(name: &str) {
    assert!((1..=253).contains(&name.len()), "{name:?}");
    for label in name.split('.') {
        let is_fine = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        assert!((1..=63).contains(&label.len()), "{name:?}");
        assert!(label.bytes().all(is_fine), "{name:?}");
    }
}

/// Handshake message of accepted records.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message: Vec<u8> = Vec::new();
    loop {
        let length = usize::from(u16::from_be_bytes([records[3], records[4]]));
        message.extend(&records[5..5 + length]);
        records = &records[5 + length..];
        if let [_, a, b, c, ..] = message[..]
            && message.len() == 4 + u32::from_be_bytes([0, a, b, c]) as usize
        {
            return message;
        }
    }
}

/// Parses `data` whole and in part, and accepted input again in records of other sizes.
pub fn run(data: &[u8]) {
    let whole = parse(data);
    check_prefixes(data, &whole);
    if whole == Ok(None) {
        assert!(data.len() < MAX_HELLO_BYTES, "no end of it is known");
    }
    let Ok(Some(hello)) = &whole else { return };
    if let Some(name) = &hello.server_name {
        check_name(name);
    }
    let message = message(data);
    for size in [1, 7, 300, message.len()] {
        let mut records = Vec::new();
        for part in message.chunks(size) {
            records.extend([22, 3, 3]);
            records.extend((part.len() as u16).to_be_bytes());
            records.extend(part);
        }
        let again = parse(&records);
        if records.len() <= MAX_HELLO_BYTES {
            assert_eq!(again, whole, "in records of {size}");
        } else {
            assert_eq!(
                again,
                Err(ClientHelloError::TooLarge),
                "in records of {size}"
            );
        }
    }
}
