//! Field blocks of the RFC, random blocks, and malformed ones.

use super::{super::encoder::HpackEncoder, *};
use crate::base::rng::Random;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// Limits above which a block is an error.
const fn limits(most: usize) -> SizeLimits {
    SizeLimits {
        kept: most,
        decoded: most,
    }
}

fn decode(decoder: &mut HpackDecoder, block: &[u8]) -> Result<Vec<String>, HpackError> {
    let mut fields = FieldList::default();
    decoder.decode(block, limits(1 << 16), &mut fields)?;
    assert_eq!(fields.len(), fields.iter().count());
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let lines = fields.iter();
    Ok(lines
        .map(|(name, value)| format!("{}: {}", text(name), text(value)))
        .collect())
}

const RFC_REQUESTS: [&[&str]; 3] = [
    &[
        ":method: GET",
        ":scheme: http",
        ":path: /",
        ":authority: www.example.com",
    ],
    &[
        ":method: GET",
        ":scheme: http",
        ":path: /",
        ":authority: www.example.com",
        "cache-control: no-cache",
    ],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

#[test]
fn the_requests_of_the_rfc_are_read() {
    // RFC 7541 appendices C.3 and C.4: three requests on one connection, without the Huffman code
    // and with it.
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, coded] {
        let mut decoder = HpackDecoder::default();
        for (block, expected) in blocks.iter().zip(RFC_REQUESTS) {
            assert_eq!(decode(&mut decoder, &bytes(block)).unwrap(), expected);
        }
    }
}

#[test]
fn entries_go_as_the_table_is_full() {
    // RFC 7541 appendix C.5, in a table of 256 bytes, which the first block sets.
    let mut decoder = HpackDecoder::default();
    let blocks = [
        "3fe1 01 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    let all: Vec<_> = blocks
        .iter()
        .map(|block| decode(&mut decoder, &bytes(block)).unwrap())
        .collect();
    assert_eq!(
        all[1],
        [
            ":status: 307",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:21 GMT",
            "location: https://www.example.com"
        ]
    );
    assert_eq!(
        all[2],
        [
            ":status: 200",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:22 GMT",
            "location: https://www.example.com",
            "content-encoding: gzip",
            "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
        ]
    );
    // Three entries are left, 215 bytes.
    assert!(decode(&mut decoder, &[0xc0]).is_ok());
    assert!(decode(&mut decoder, &[0xc1]).is_err());
}

#[test]
fn what_is_no_block_is_refused() {
    for (what, block) in [
        ("index 0", "80"),
        ("no such entry", "be"),
        ("a name of no entry", "7f0000"),
        ("a number without end", "ffffffffffff01"),
        ("a number that is cut", "ff"),
        ("no value", "4001 61"),
        ("a string that is cut", "4001 6105 61"),
        ("a name that is cut", "4005 61"),
        ("bad padding", "4001 61 82 1f00"),
        ("a table that is too large", "3fe2 1f"),
        ("a size behind a field", "82 20"),
    ] {
        let found = decode(&mut HpackDecoder::default(), &bytes(block));
        assert_eq!(found, Err(HpackError::Malformed), "{what}");
    }
    assert_eq!(
        decode(&mut HpackDecoder::default(), &bytes("3fe1 1f 20 82")).unwrap(),
        [":method: GET"]
    );
    assert!(
        decode(&mut HpackDecoder::default(), &[])
            .unwrap()
            .is_empty()
    );
}

#[test]
fn small_blocks_of_large_fields_are_bounded() {
    let mut block = vec![0x40, 1, b'a', 100];
    block.extend([b'x'; 100]);
    block.extend([0xbe; 5_000]);
    assert_eq!(
        decode(&mut HpackDecoder::default(), &block),
        Err(HpackError::TooLarge)
    );
}

#[test]
fn what_is_beyond_the_limit_is_entered_in_the_table_and_not_kept() {
    let mut block = vec![0x82, 0x40, 1, b'a', 100];
    block.extend([b'x'; 100]);
    // 134 bytes each, and one literal behind the limit that enters the table.
    block.extend([0xbe; 20]);
    block.extend([0x40, 1, b'b', 1, b'y']);
    let limits = SizeLimits {
        kept: 1_000,
        decoded: 4_000,
    };
    let (mut decoder, mut fields) = (HpackDecoder::default(), FieldList::default());
    assert_eq!(decoder.decode(&block, limits, &mut fields), Ok(()));
    assert!(!fields.is_whole());
    assert_eq!(fields.len(), 8, "{}", fields.size());
    assert_eq!(fields.iter().next(), Some((&b":method"[..], &b"GET"[..])));
    assert_eq!(decode(&mut decoder, &[0xbe]).unwrap(), ["b: y"]);
    block.extend([0xbf; 20]);
    assert_eq!(
        decoder.decode(&block, limits, &mut fields),
        Err(HpackError::TooLarge)
    );
}

#[test]
fn what_is_encoded_is_read_again() {
    let mut random = Random::seeded(9_113);
    let names = [
        "accept",
        "X-Request-Id",
        "Content-Length",
        "cookie",
        "x",
        "Date",
    ];
    let (mut decoder, mut encoder) = (HpackDecoder::default(), HpackEncoder::default());
    for round in 0..2_000 {
        let (mut block, mut expected) = (Vec::new(), Vec::new());
        encoder.begin_block(&mut block);
        let status = 100 + random.below(500) as u16;
        encoder.status(&mut block, status);
        expected.push(format!(":status: {status}"));
        for _ in 0..random.below(8) {
            let name = names[random.below(names.len())];
            let value: String = (0..random.below(200))
                .map(|_| char::from(b' ' + random.below(95) as u8))
                .collect();
            encoder.field(&mut block, name.as_bytes(), value.as_bytes());
            expected.push(format!("{}: {value}", name.to_lowercase()));
        }
        assert_eq!(decode(&mut decoder, &block).unwrap(), expected, "{round}");
    }
}

#[test]
fn any_bytes_are_a_block_or_not() {
    let mut random = Random::seeded(5);
    for _ in 0..50_000 {
        let mut decoder = HpackDecoder::default();
        for _ in 0..3 {
            let block: Vec<u8> = (0..random.below(30)).map(|_| random.bits() as u8).collect();
            let mut fields = FieldList::default();
            let decoded = decoder.decode(&block, limits(1_000), &mut fields);
            assert!(decoded.is_err() || fields.size() <= 1_000);
        }
    }
}
