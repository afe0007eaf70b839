//! Cost of encoding and decoding field blocks.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed benchmark"
)]

use std::hint::black_box;

use balancer::http2::hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const LIMITS: SizeLimits = SizeLimits {
    kept: 1 << 20,
    decoded: 1 << 20,
};

/// Heads of a kind that are sent in turns.
const HEADS: usize = 64;

type Head = Vec<(&'static str, String)>;

/// Response head: some fields repeat, and some change.
fn response(number: usize) -> Head {
    let id = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    vec![
        (":status", "200".to_owned()),
        ("Server", "nginx/1.24.0 (Ubuntu)".to_owned()),
        ("Date", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
        ("Content-Type", "application/json; charset=utf-8".to_owned()),
        ("Content-Length", format!("{}", 1_000 + number * 37)),
        (
            "X-Request-Id",
            format!("{id:016x}{:016x}", id.rotate_left(29)),
        ),
        ("Cache-Control", "private, max-age=60".to_owned()),
        ("Vary", "Accept-Encoding".to_owned()),
        ("ETag", format!("\"{:x}-{:x}\"", id >> 40, number)),
    ]
}

const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Mobile Safari/537.36",
];

/// Request head of one of several browsers, as it is forwarded to a backend.
fn request(number: usize) -> Head {
    let id = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    vec![
        (":method", "GET".to_owned()),
        (":scheme", "https".to_owned()),
        (
            ":path",
            format!("/articles/{number}/balancing?page=2&sort=newest"),
        ),
        (":authority", "www.example.com".to_owned()),
        ("user-agent", AGENTS[number % 4].to_owned()),
        (
            "accept",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
                .to_owned(),
        ),
        ("accept-language", "en-GB,en;q=0.7,de;q=0.3".to_owned()),
        ("accept-encoding", "gzip, deflate, br, zstd".to_owned()),
        (
            "referer",
            format!("https://www.example.com/articles/{}", number / 2),
        ),
        (
            "cookie",
            format!("session={id:032x}; theme=dark; consent=1"),
        ),
        ("sec-fetch-mode", "navigate".to_owned()),
        ("upgrade-insecure-requests", "1".to_owned()),
        ("x-forwarded-for", format!("203.0.113.{number}")),
        ("x-forwarded-proto", "https".to_owned()),
        ("x-request-id", format!("{id:032x}")),
    ]
}

fn heads(make: fn(usize) -> Head) -> Vec<Head> {
    (0..HEADS).map(make).collect()
}

fn encode(encoder: &mut HpackEncoder, head: &Head, out: &mut Vec<u8>) {
    encoder.begin_block(out);
    for (name, value) in head {
        encoder.field(out, name.as_bytes(), value.as_bytes());
    }
}

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("field_block");
    for (name, heads) in [("response", heads(response)), ("request", heads(request))] {
        let (mut encoder, mut out, mut next) = (HpackEncoder::default(), Vec::new(), 0);
        group.bench_function(BenchmarkId::new("encode", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                next = (next + 1) % HEADS;
                encode(&mut encoder, black_box(&heads[next]), &mut out);
                out.len()
            });
        });
        let (mut encoder, mut out) = (HpackEncoder::default(), Vec::new());
        group.bench_function(BenchmarkId::new("encode_first", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                encoder = HpackEncoder::default();
                encode(&mut encoder, black_box(&heads[0]), &mut out);
                out.len()
            });
        });
        let (mut encoder, mut decoder) = (HpackEncoder::default(), HpackDecoder::default());
        let (mut fields, mut block) = (FieldList::default(), Vec::new());
        for head in &heads {
            block.clear();
            encode(&mut encoder, head, &mut block);
            decoder
                .decode(&block, LIMITS, &mut fields)
                .expect("a block");
        }
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| decoder.decode(black_box(&block), LIMITS, &mut fields));
        });
    }
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);
