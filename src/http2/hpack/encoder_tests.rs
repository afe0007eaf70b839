//! Encoder: every block is what a decoder with the same table reads.

#[path = "interop_tests.rs"]
mod interop;

use super::{
    super::{FieldList, HpackDecoder, SizeLimits},
    *,
};
use crate::base::{clock, rng::Random};

const LIMITS: SizeLimits = SizeLimits {
    kept: 1 << 20,
    decoded: 1 << 20,
};

/// Names in lower case, and values.
type FieldPairs = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(decoder: &mut HpackDecoder, block: &[u8]) -> FieldPairs {
    let mut fields = FieldList::default();
    decoder.decode(block, LIMITS, &mut fields).unwrap();
    let pairs = fields.iter();
    pairs
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect()
}

fn block(encoder: &mut HpackEncoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.begin_block(&mut out);
    for (name, value) in fields {
        encoder.field(&mut out, name.as_bytes(), value.as_bytes());
    }
    out
}

#[test]
fn numbers_are_those_of_the_rfc() {
    // RFC 7541 appendix C.1.
    for (value, prefix, expected) in [
        (10, 5, &[10][..]),
        (1_337, 5, &[31, 154, 10]),
        (42, 8, &[42]),
        (30, 5, &[30]),
        (31, 5, &[31, 0]),
        (127, 7, &[127, 0]),
    ] {
        let mut out = Vec::new();
        number(&mut out, value, prefix, 0);
        assert_eq!(out, expected, "{value}");
    }
}

#[test]
fn what_the_static_table_has_is_not_spelled_out() {
    let block = |name: &str, value: &str| block(&mut HpackEncoder::default(), &[(name, value)]);
    assert_eq!(block(":method", "GET"), [0x82]);
    assert_eq!(block(":path", "/"), [0x84]);
    assert_eq!(block("Content-Length", "7"), [0x0f, 13, 1, b'7']);
    assert_eq!(block("X", "!"), [0, 1, b'x', 1, b'!']);
    assert_eq!(block("Cookie", "\t")[0], 0x1f, "never indexed");
    let long = "X".repeat(200);
    assert_eq!(block(&long, "")[..4], [0, 127, 73, b'x']);
    for (code, first) in [(200, 0x88), (304, 0x8b), (500, 0x8e), (201, 0x08)] {
        let mut out = Vec::new();
        HpackEncoder::default().status(&mut out, code);
        assert_eq!(out[0], first, "{code}");
    }
}

/// Last of `count` equal blocks with one field.
fn last_block(encoder: &mut HpackEncoder, name: &str, value: &str, count: usize) -> Vec<u8> {
    let mut last = Vec::new();
    for _ in 0..count {
        last = block(encoder, &[(name, value)]);
    }
    last
}

/// First byte of the representation of a field, in the last of `count` equal blocks.
fn first_byte(name: &str, value: &str, count: usize) -> u8 {
    last_block(&mut HpackEncoder::default(), name, value, count)[0]
}

#[test]
fn what_repeats_is_sent_in_one_byte() {
    for (name, value, literal, added) in [
        ("server", "x", 0x0f, 0x76),
        ("X-Frame-Options", "DENY", 0, 0x40),
        (":status", "302", 0x08, 0x48),
    ] {
        let first: Vec<u8> = (1..=5)
            .map(|count| first_byte(name, value, count))
            .collect();
        assert_eq!(first, [literal, literal, added, 0xbe, 0xbe], "{name}");
    }
}

#[test]
fn secrets_and_private_values_are_never_in_the_table() {
    for name in [
        "authorization",
        "Cookie",
        "set-cookie",
        "proxy-authorization",
    ] {
        assert_eq!(first_byte(name, "x", 5) & 0xf0, 0x10, "{name}");
    }
    for name in [":path", "etag", "x-api-key", "content-length", "referer"] {
        assert_eq!(first_byte(name, "/secret", 5) & 0xf0, 0, "{name}");
    }
}

#[test]
fn of_names_that_repeat_no_value_is_looked_up() {
    let mut encoder = HpackEncoder::default();
    let mut send = |value| block(&mut encoder, &[("X-Forwarded-For", value)]);
    assert_eq!(send("::1")[..2], [0, 15]);
    assert_eq!(send("::1")[..2], [0x40, 15], "it enters the table");
    for value in ["::1", "::2", "::1"] {
        let expected = [&[0x0f, 62 - 15, 3], value.as_bytes()].concat();
        assert_eq!(send(value), expected);
    }
}

#[test]
fn numbers_of_fields_end_and_the_table_stays_right() {
    let (mut encoder, mut decoder) = (HpackEncoder::default(), HpackDecoder::default());
    for round in 0..200_000 {
        let value = format!("{}", round / 2);
        let fields = [("via", &value[..]), ("x-request-id", &value), ("dnt", "1")];
        let block = block(&mut encoder, &fields);
        let expected = fields.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(decode(&mut decoder, &block), expected, "{round}");
    }
}

#[test]
fn values_that_change_push_nothing_out() {
    let mut encoder = HpackEncoder::default();
    for round in 0..10_000 {
        let value = format!("nonce-{round}");
        let fields = [("server", "x"), ("content-security-policy", &value)];
        let block = block(&mut encoder, &fields);
        assert!(round < 3 || block[0] == 0xbe, "{round}");
    }
}

#[test]
fn a_large_value_stays_a_literal() {
    assert_eq!(first_byte("vary", &"x".repeat(986), 3), 0x7b);
    assert_eq!(first_byte("vary", &"x".repeat(989), 5), 0x0f);
}

#[test]
fn size_updates_come_first_in_the_next_block() {
    // RFC 7541 section 4.2.
    let mut encoder = HpackEncoder::default();
    encoder.set_max_size(1 << 20);
    assert_eq!(
        block(&mut encoder, &[]),
        [0; 0],
        "it stays at our own limit"
    );
    encoder.set_max_size(30);
    encoder.set_max_size(10);
    assert_eq!(block(&mut encoder, &[]), [0x2a], "the last is the smallest");
    encoder.set_max_size(5);
    encoder.set_max_size(0);
    encoder.set_max_size(20);
    assert_eq!(block(&mut encoder, &[]), [0x20, 0x34], "smallest, and last");
    assert_eq!(block(&mut encoder, &[]), [0; 0]);
    encoder.set_max_size(u32::MAX);
    assert_eq!(block(&mut encoder, &[]), [0x3f, 0xe1, 0x1f], "4,096");
}

#[test]
fn a_peer_without_a_table_costs_no_memory() {
    let mut encoder = HpackEncoder::default();
    encoder.set_max_size(0);
    for round in 0..5 {
        let block = block(&mut encoder, &[("server", "x")]);
        assert_eq!(block.len(), 4 + usize::from(round == 0), "{block:?}");
    }
    assert!(encoder.table.is_none());
}

#[test]
fn a_message_now_and_then_needs_no_table() {
    let mut encoder = HpackEncoder::default();
    assert!(size_of_val(&encoder) <= 32);
    let mut now = clock::now();
    let mut send = |pause| {
        block(&mut encoder, &[("server", "x")]);
        now += pause;
        encoder.pause(now);
        encoder.has_table()
    };
    for _ in 0..10 {
        assert!(!send(Duration::from_millis(51)));
    }
    assert_eq!([0; 3].map(|_| send(BUSY_INTERVAL)), [false, true, true]);
    assert!(send(Duration::from_hours(1)), "until it is released");
}

#[test]
fn a_released_table_is_empty_at_the_peer() {
    let mut encoder = HpackEncoder::default();
    let mut fill = |count| {
        let last = last_block(&mut encoder, "server", "x", count);
        encoder.release();
        assert!(encoder.table.is_none());
        last
    };
    assert_eq!(fill(1).len(), 4);
    assert_eq!(fill(2).len(), 4, "nothing was added");
    assert_eq!(fill(3), [0x76, 1, b'x']);
    assert_eq!(fill(1)[..4], [0x20, 0x3f, 0xe1, 0x1f], "to 0 and back");
    assert_eq!(fill(4), [0xbe]);
}

#[test]
fn the_messages_of_the_rfc_are_read_again() {
    // RFC 7541 appendices C.3 to C.6. We refer to less than they do.
    let request = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
        ("custom-key", "custom-value"),
    ];
    let response = [
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        (
            "set-cookie",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ];
    for (fields, most, last) in [(request, 4_096, 34), (response, 256, 130)] {
        let (mut encoder, mut decoder) = (HpackEncoder::default(), HpackDecoder::default());
        encoder.set_max_size(most);
        for round in 0..6 {
            let block = block(&mut encoder, &fields);
            assert!(round < 3 || block.len() <= last, "{}", block.len());
            let expected = fields.map(|(name, value)| (name.into(), value.into()));
            assert_eq!(decode(&mut decoder, &block), expected);
        }
    }
}

/// Random head: some fields repeat, and some change.
fn random_head(random: &mut Random) -> FieldPairs {
    const NAMES: [&str; 13] = [
        ":status",
        "Server",
        "content-type",
        "vary",
        "user-agent",
        "accept",
        "x-frame-options",
        "sec-fetch-mode",
        "Traceparent",
        "Date",
        "x-request-id",
        "cookie",
        "Strict-Transport-Security",
    ];
    let fields = (0..random.below(12)).map(|_| {
        let name = NAMES[random.below(NAMES.len())];
        let length = if random.below(30) == 0 { 1_200 } else { 60 };
        let value = match random.below(4) {
            0 => format!("{:x}", random.bits()),
            _ => ["a", "bc", "d/e"][random.below(3)].repeat(random.below(length)),
        };
        (name.into(), value.into())
    });
    fields.collect()
}

#[test]
fn any_heads_with_any_sizes_are_read_again() {
    let mut random = Random::seeded(7_541);
    for run in 0..200 {
        let (mut encoder, mut decoder) = (HpackEncoder::default(), HpackDecoder::default());
        for _ in 0..random.below(200) {
            match random.below(20) {
                0 => encoder.release(),
                5 => encoder.pause(clock::now()),
                1 | 2 => encoder.set_max_size(random.below(6_000) as u32),
                3 => encoder.set_max_size(0),
                4 => encoder.set_max_size(4_096),
                _ => {}
            }
            let (mut out, head) = (Vec::new(), random_head(&mut random));
            encoder.begin_block(&mut out);
            for (name, value) in &head {
                encoder.field(&mut out, name, value);
            }
            let lower = head.into_iter();
            let expected: FieldPairs = lower
                .map(|(name, value)| (name.to_ascii_lowercase(), value))
                .collect();
            assert_eq!(decode(&mut decoder, &out), expected, "{run}");
            let table = encoder.table.as_ref().map(|table| &table.fields);
            let (used, most) = table.map_or((0, 0), |table| (table.size(), table.max_size()));
            assert!(used <= most && most <= 4_096, "{used} of {most}");
            assert_eq!(decoder.table_size(), used, "the same table");
        }
    }
}
