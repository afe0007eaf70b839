//! Cost of reading and writing heads, and of decoding a chunked body.

use std::hint::black_box;

use balancer::{
    config::model::{ForwardedConfig, HeaderEdits},
    http::{
        message::{HttpVersion, RequestHead, ResponseHead},
        rules::{HeadLimits, RESPONSE_LIMITS},
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        encode::{self, TextHead},
        request, response,
    },
    proxy::http::{
        NextHop, RequestChanges, RequestOrigin, ResponseExtra, request_head, response_head,
    },
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 32 << 10,
};

const SMALL: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

const BROWSER: &str = "GET /articles/2024/balancing?page=2&sort=newest HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://www.example.com/articles/2024\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Cache-Control: max-age=0\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 5\r\n\r\n";

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_head");
    for (name, text) in [("small", SMALL), ("browser", BROWSER)] {
        let mut head = RequestHead {
            bytes: text.as_bytes().to_vec(),
            ..RequestHead::default()
        };
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| request::parse(black_box(&mut head), LIMITS));
        });
    }
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("response_head");
    let mut head = ResponseHead {
        bytes: RESPONSE.to_vec(),
        ..ResponseHead::default()
    };
    group.bench_function("parse", |bencher| {
        bencher.iter(|| response::parse(black_box(&mut head), b"GET"));
    });
    group.finish();
}

/// Bytes of data in `body`.
fn decode(mut body: &[u8]) -> usize {
    let (mut decoder, mut total) = (BodyDecoder::chunked(RESPONSE_LIMITS), 0);
    loop {
        let used = match decoder.step(body) {
            Ok(BodyStep::Data(count)) => {
                total += count;
                count
            }
            Ok(BodyStep::Skip(count)) => count,
            Ok(BodyStep::More | BodyStep::End) | Err(_) => return total,
        };
        body = body.get(used..).unwrap_or_default();
    }
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunked_64_KiB");
    group.throughput(Throughput::Bytes(64 << 10));
    for size in [64, 4096, 64 << 10] {
        let mut body = Vec::new();
        for _ in 0..(64 << 10) / size {
            encode::chunk(&mut body, &vec![b'x'; size]);
        }
        body.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(decode(&body), 64 << 10);
        group.bench_function(BenchmarkId::new("chunks_of", size), |bencher| {
            bencher.iter(|| decode(black_box(&body)));
        });
    }
    group.finish();
}

/// Writes a head for the other side, as an exchange does.
fn forwarded(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forwarded_head");
    let rules = ForwardedConfig::default();
    let client = Some([192, 0, 2, 7].into());
    let origin = RequestOrigin {
        peer: client,
        client,
        port: Some(8080),
        ..RequestOrigin::default()
    };
    let id = "0123456789abcdef0123456789abcdef";
    let edits = HeaderEdits {
        set: vec![("X-Tenant".to_owned(), "main".to_owned())],
        remove: vec!["X-Debug".to_owned(), "X-Internal-*".to_owned()],
        ..HeaderEdits::default()
    };
    let mut out = Vec::new();
    for (name, edits) in [("request", None), ("request_with_edits", Some(&edits))] {
        let mut head = RequestHead {
            bytes: BROWSER.as_bytes().to_vec(),
            ..RequestHead::default()
        };
        let changes = RequestChanges {
            edits,
            ..RequestChanges::default()
        };
        assert_eq!(request::parse(&mut head, LIMITS), Ok(true));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                request_head(
                    &mut TextHead::new(&mut out),
                    black_box(&head),
                    &rules,
                    origin,
                    id,
                    changes,
                    NextHop::KeepAlive,
                );
                out.len()
            });
        });
    }
    let mut head = ResponseHead {
        bytes: RESPONSE.to_vec(),
        ..ResponseHead::default()
    };
    assert_eq!(response::parse(&mut head, b"GET"), Ok(true));
    group.bench_function("response", |bencher| {
        bencher.iter(|| {
            out.clear();
            let extra = ResponseExtra {
                delivery: head.framing,
                keep_alive: true,
                version: HttpVersion::Http11,
                request_id: (&rules.request_id, id),
                edits: None,
                date: None,
                sticky: None,
            };
            response_head(&mut TextHead::new(&mut out), black_box(&head), extra);
            out.len()
        });
    });
    group.finish();
}

criterion_group!(benches, requests, responses, forwarded, bodies);
criterion_main!(benches);
