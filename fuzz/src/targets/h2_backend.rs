//! Frames of an HTTP/2 backend: for any input the engine reads HTTP/1.1, and it looks complete only
//! if the backend has ended the stream.

use std::{cell::RefCell, io::Write, path::Path, rc::Rc, sync::Arc};

use balancer::{
    base::clock,
    config::{NoFiles, parse},
    http::{
        message::{BodyFraming, ResponseHead},
        rules::RESPONSE_LIMITS,
    },
    http1::{
        body::{BodyDecoder, BodyStep},
        response,
    },
    net::{h2::backend::H2Connection, stream::Stream},
    pool::Pool,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
    task::{LocalSet, spawn_local, yield_now},
};

/// Empty SETTINGS, RFC 9113 section 6.5.
const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PLAIN_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

thread_local! {
    static FIXTURE: RefCell<BackendFixture> = RefCell::new(BackendFixture::new());
}

struct BackendFixture {
    runtime: Runtime,
    pool: Pool,
}

impl BackendFixture {
    fn new() -> Self {
        let text = "listeners: {web: {bind: \":1\", pool: a}}\npools: {a: {backends: [\"h:1\"], protocol: h2c}}\n";
        let loaded = parse(Path::new("fuzz.yaml"), text, &NoFiles).expect("a good file");
        Self {
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            pool: Pool::new(&loaded.config.pools[0], None, clock::now()),
        }
    }
}

/// Bytes that the engine reads, and true if they ended without an error.
async fn read(pool: &Pool, frames: &[u8]) -> (Vec<u8>, bool) {
    let (mut peer, ours) = std::os::unix::net::UnixStream::pair().expect("two sockets");
    for one in [&peer, &ours] {
        one.set_nonblocking(true)
            .expect("sockets that do not block");
    }
    peer.write_all(&EMPTY_SETTINGS).expect("space for a frame");
    let ours = tokio::net::UnixStream::from_std(ours).expect("a socket of the runtime");
    let deadline = clock::now() + std::time::Duration::from_secs(60);
    let state = Arc::clone(&pool.backends[0].state);
    let opened =
        H2Connection::open(Stream::from(ours), Some(&state), 1, Rc::default(), deadline).await;
    let (connection, driver) = opened.expect("settings are all it needs");
    drop(spawn_local(driver));
    let mut stream = Stream::from(connection.open_stream(1).expect("a stream"));
    stream
        .write_all(PLAIN_REQUEST)
        .await
        .expect("a connection without faults");
    yield_now().await;
    yield_now().await;
    // Frames beyond the socket buffer are cut, as by a backend that dies.
    drop(peer.write(frames));
    peer.shutdown(std::net::Shutdown::Write)
        .expect("an open socket");
    let mut text = Vec::new();
    let ended = stream.read_to_end(&mut text).await.is_ok();
    (text, ended)
}

fn check(text: &[u8], ended: bool) {
    let (mut head, mut at) = (ResponseHead::default(), 0);
    loop {
        head.bytes = text[at..].to_vec();
        match response::parse(&mut head, b"GET") {
            Ok(true) => {}
            Ok(false) => {
                assert!(at == text.len(), "half a head");
                return assert!(!ended, "an end instead of a response");
            }
            // Several lengths and the like, which HTTP/2 can have as well.
            Err(_) => return,
        }
        at += head.len;
        // No switch was requested: the engine reads no further.
        if head.status == 101 {
            return;
        }
        if !head.is_interim() {
            break;
        }
    }
    let mut decoder = match head.framing {
        BodyFraming::None => BodyDecoder::Length(0),
        BodyFraming::Length(length) => BodyDecoder::Length(length),
        BodyFraming::Streamed(_) => BodyDecoder::chunked(RESPONSE_LIMITS),
        BodyFraming::UntilClose => panic!("a length or chunks must say where the body ends"),
    };
    loop {
        match decoder.step(&text[at..]) {
            Ok(BodyStep::Data(count) | BodyStep::Skip(count)) => at += count,
            Ok(BodyStep::More) => return assert!(!ended, "a cut that looks like an end"),
            Ok(BodyStep::End) => return assert_eq!(at, text.len(), "bytes behind the end"),
            // Trailers that are not allowed.
            Err(_) => return,
        }
    }
}

/// Responds to a request with `data`.
pub fn run(data: &[u8]) {
    FIXTURE.with_borrow(|fixture| {
        let local = LocalSet::new();
        let (text, ended) = local.block_on(&fixture.runtime, read(&fixture.pool, data));
        check(&text, ended);
    });
}
