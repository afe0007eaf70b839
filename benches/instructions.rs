//! Instructions of the hot path, counted under valgrind: the same number on a busy machine. `ci.sh`
//! compares them with `instructions.txt`; how to run it alone is in README.md.
#![expect(
    missing_docs,
    clippy::unwrap_used,
    reason = "the macros of gungraun make public items, and what cannot be set up must fail"
)]

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    rc::Rc,
    sync::Arc,
};

use balancer::{
    base::{address::BackendAddress, clock, rng::Random, socket_key::SocketKey},
    config::model::{
        BackendConfig, Config, HostMatch, ListenerConfig, PathMatch, PoolConfig, RouteConfig,
    },
    http::{
        message::{RequestHead, ResponseHead},
        rules::HeadLimits,
    },
    http1::{encode::TextHead, request, response},
    net::stream::Stream,
    pool::{PickRequest, Pool},
    proxy::{
        http::{ClientConnection, NextHop, RequestChanges, RequestOrigin, request_head, serve},
        worker::Worker,
    },
    route::Router,
    snapshot::{Daemon, Snapshot},
    telemetry::access_log::AccessLog,
};
use gungraun::prelude::*;
use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    task::{spawn_local, yield_now},
};

const LIMITS: HeadLimits = HeadLimits {
    fields: 100,
    bytes: 32 << 10,
};

const REQUEST: &[u8] = b"GET /articles/2024/balancing?page=2 HTTP/1.1\r\n\
    Host: www.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0)\r\n\
    Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-GB,en;q=0.7\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";

/// Exchanges of one measurement.
const EXCHANGES: usize = 100;

fn unparsed_request() -> RequestHead {
    RequestHead {
        bytes: REQUEST.to_vec(),
        ..RequestHead::default()
    }
}

fn parsed_request() -> RequestHead {
    let mut head = unparsed_request();
    assert_eq!(request::parse(&mut head, LIMITS), Ok(true));
    head
}

#[library_benchmark]
#[bench::browser(setup = unparsed_request)]
fn parse_request(mut head: RequestHead) -> RequestHead {
    assert!(request::parse(black_box(&mut head), LIMITS).is_ok());
    head
}

fn unparsed_response() -> ResponseHead {
    ResponseHead {
        bytes: RESPONSE.to_vec(),
        ..ResponseHead::default()
    }
}

#[library_benchmark]
#[bench::small(setup = unparsed_response)]
fn parse_response(mut head: ResponseHead) -> ResponseHead {
    assert!(response::parse(black_box(&mut head), b"GET").is_ok());
    head
}

#[library_benchmark]
#[bench::browser(setup = parsed_request)]
fn write_request(head: RequestHead) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    request_head(
        &mut TextHead::new(&mut out),
        black_box(&head),
        &Config::default().forwarded,
        RequestOrigin {
            peer: Some("192.0.2.1".parse().unwrap()),
            trusted: false,
            client: Some("192.0.2.1".parse().unwrap()),
            is_unlisted: true,
            client_header: None,
            port: Some(80),
            local: None,
            is_secure: false,
            subject: None,
        },
        "0123456789abcdef0123456789abcdef",
        RequestChanges::default(),
        NextHop::KeepAlive,
    );
    out
}

fn pool_of(backends: usize) -> Pool {
    let backends = (0..backends).map(|number| {
        let ip = [10, 0, (number / 256) as u8, (number % 256) as u8];
        BackendConfig::at(BackendAddress::Ip((ip, 80).into()))
    });
    let config = PoolConfig {
        backends: backends.collect(),
        health_check: None,
        ..PoolConfig::named("app")
    };
    let pool = Pool::new(&config, None, clock::now());
    let request = PickRequest::first(clock::now());
    assert!(pool.pick(&request, &mut Random::seeded(1)).is_ok());
    pool
}

#[library_benchmark]
#[bench::of_10(args = (10), setup = pool_of)]
#[bench::of_1000(args = (1_000), setup = pool_of)]
fn pick(pool: Pool) -> Pool {
    let mut random = Random::seeded(1);
    let request = PickRequest::first(clock::now());
    for _ in 0..10 {
        assert!(black_box(pool.pick(&request, &mut random)).is_ok());
    }
    pool
}

fn router_of(hosts: usize) -> Router {
    let routes = (0..hosts).map(|number| RouteConfig {
        hosts: vec![HostMatch::Exact(format!("host{number}.example.com"))],
        path: PathMatch::Prefix("/api".to_owned()),
        ..RouteConfig::named("route")
    });
    Router::new(&Config {
        listeners: vec![ListenerConfig::named("web")],
        routes: routes.collect(),
        ..Config::default()
    })
}

#[library_benchmark]
#[bench::of_1000(args = (1_000), setup = router_of)]
fn route(router: Router) -> Router {
    let found = router.find(
        0,
        black_box(b"host500.example.com"),
        b"/api/v7/orders?page=3",
        b"GET",
        &|_, _| false,
    );
    assert_eq!(found, Ok(Some(500)));
    router
}

/// A worker with one client and one backend, all on this thread.
struct Exchanges {
    runtime: LocalRuntime,
    client: TcpStream,
    backend: TcpStream,
    read: Vec<u8>,
}

impl Exchanges {
    /// Connects everything and makes the first exchanges, which take memory.
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        let backends = TcpListener::bind("127.0.0.1:0").unwrap();
        let clients = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(clients.local_addr().unwrap()).unwrap();
        let ours = clients.accept().unwrap().0;
        ours.set_nodelay(true).unwrap();
        let address = BackendAddress::Ip(backends.local_addr().unwrap());
        runtime.block_on(async { spawn_client(ours, address) });
        (&client).write_all(REQUEST).unwrap();
        backends.set_nonblocking(true).unwrap();
        let backend = loop {
            match backends.accept() {
                Ok((backend, _)) => break backend,
                Err(_) => runtime.block_on(yield_now()),
            }
        };
        for socket in [&client, &backend] {
            socket.set_nonblocking(true).unwrap();
            socket.set_nodelay(true).unwrap();
        }
        let mut exchanges = Self {
            runtime,
            client,
            backend,
            read: vec![0; 4096],
        };
        exchanges.answer();
        for _ in 0..4 {
            exchanges.run_one();
        }
        exchanges
    }

    /// The backend's part, and the response to the client.
    fn answer(&mut self) {
        let Self {
            runtime,
            client,
            backend,
            read,
        } = self;
        runtime.block_on(async {
            while backend.read(read).is_err() {
                yield_now().await;
            }
            backend.write_all(RESPONSE).unwrap();
            while client.read(read).is_err() {
                yield_now().await;
            }
        });
    }

    fn run_one(&mut self) {
        self.client.write_all(REQUEST).unwrap();
        self.answer();
    }
}

/// Serves the client behind `socket` by a pool of one backend.
fn spawn_client(socket: TcpStream, backend: BackendAddress) {
    let pool = PoolConfig {
        backends: vec![BackendConfig::at(backend)],
        health_check: None,
        ..PoolConfig::named("app")
    };
    let config = Config {
        listeners: vec![ListenerConfig {
            binds: vec!["127.0.0.1:80".parse().unwrap()],
            pool: Some(0),
            ..ListenerConfig::named("web")
        }],
        pools: vec![pool],
        ..Config::default()
    };
    let access_log = AccessLog::new(&config.access_log, None);
    let snapshot = Snapshot::build(Arc::new(config), None, access_log, clock::now());
    let worker = Rc::new(Worker::new(Arc::new(Daemon::new(snapshot, 1, 100))));
    let bind = Rc::new(SocketKey::tcp("127.0.0.1:80".parse().unwrap()));
    let entry = worker.connections.enter(Rc::clone(&bind));
    let stream = Stream::from_tcp(socket).unwrap();
    let client = ClientConnection::new(stream, None, bind, entry, None);
    drop(spawn_local(serve(worker, client)));
}

#[library_benchmark]
#[bench::http1(setup = Exchanges::new)]
fn exchange(mut exchanges: Exchanges) -> Exchanges {
    for _ in 0..EXCHANGES {
        exchanges.run_one();
    }
    exchanges
}

library_benchmark_group!(
    name = hot_path,
    benchmarks = [
        parse_request,
        parse_response,
        write_request,
        pick,
        route,
        exchange
    ]
);
main!(library_benchmark_groups = hot_path);
