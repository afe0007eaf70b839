//! The fault matrix: every cause is produced once, and has the same name in the response, in the
//! access log and in the metric.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::harness::{
    answers::expect_error,
    client::{HttpClient, HttpResponse, ReadError},
    daemon::{TestDaemon, sum_of},
    peer::{Blackhole, Gate, ScriptedPeer, refused},
    poll,
};
use balancer::reason::Reason;
use rustix::process::Signal;

/// Reasons that no cause below can produce, and why.
const NOT_HERE: &[(&str, &str)] = &[
    (
        "proxy_internal_error",
        "a fault of balancer itself: nothing that peers, limits or a configuration do may lead to it",
    ),
    (
        "tls_certificate_error",
        "needs certificates: tests/blackbox/tls",
    ),
    ("tls_required", "needs certificates: tests/blackbox/tls"),
    (
        "misdirected_request",
        "needs certificates: tests/blackbox/tls",
    ),
    (
        "http_upgrade_failed",
        "needs HTTP/2: tests/blackbox/websockets.rs",
    ),
    (
        "backend_down",
        "needs checks: tests/blackbox/health/down.rs",
    ),
    (
        "http_response_status",
        "the client gets the response of the backend: tests/blackbox/health/ejection.rs",
    ),
];

/// The client's view of a failure.
enum ClientView {
    /// A whole response of ours.
    Answer(HttpResponse),
    /// No response could be sent: the connection was cut, as the cause has checked.
    Cut,
}

/// One cause and what must come of it.
struct FaultCause {
    reason: &'static str,
    /// Status in both profiles; the log's status where the connection is cut.
    statuses: (u16, u16),
    /// The label `pool` of the metric.
    pool: &'static str,
    make: fn(&FaultFixture) -> ClientView,
}

/// A response of ours.
const fn row(
    reason: &'static str,
    statuses: (u16, u16),
    pool: &'static str,
    make: fn(&FaultFixture) -> ClientView,
) -> FaultCause {
    FaultCause {
        reason,
        statuses,
        pool,
        make,
    }
}

/// Everything that can go wrong with a plain HTTP/1 exchange, but for the end of the daemon.
const FAULT_CAUSES: &[FaultCause] = &[
    row("destination_unavailable", (502, 503), "down", |world| {
        let down = "balancer_pool_backends{pool=\"down\",state=\"down\"}";
        world.daemon.wait_for_metric(down, |count| count > 0.5);
        world.get("/down")
    }),
    row("dns_error", (502, 502), "unnamed", |world| {
        world.get("/unnamed")
    }),
    row("connection_refused", (502, 502), "refusing", |world| {
        world.get("/refusing")
    }),
    row("connection_timeout", (502, 504), "hole", |world| {
        world.get("/hole")
    }),
    row("connection_terminated", (502, 502), "hangs_up", |world| {
        world.get("/hangs_up")
    }),
    row("connection_read_timeout", (502, 504), "silent", |world| {
        world.get("/silent")
    }),
    row("total_timeout", (502, 504), "endless", |world| {
        world.get("/endless")
    }),
    row("tls_protocol_error", (502, 502), "plain", |world| {
        world.get("/plain")
    }),
    row("rate_limited", (429, 429), "-", |world| {
        // The first is within the rate, and answered by a route.
        let mut client = world.daemon.client("@limited");
        assert_eq!(client.request("GET", "/ok").unwrap().text(), "fine");
        world.ask("@limited", "GET /ok HTTP/1.1\r\nHost: test\r\n\r\n")
    }),
    row("proxy_protocol_error", (502, 502), "garbage", |world| {
        world.get("/garbage")
    }),
    row(
        "http_response_header_section_size",
        (502, 502),
        "verbose",
        |world| world.get("/verbose"),
    ),
    row("connection_limit_reached", (503, 503), "busy", busy_backend),
    row("overload", (503, 503), "-", full_listener),
    row("http_request_denied", (403, 403), "-", |world| {
        world.ask("@shut", "GET /good HTTP/1.1\r\nHost: test\r\n\r\n")
    }),
    row("http_request_error", (400, 400), "-", |world| {
        world.ask("@web", "GET /good HTTP/1.1\r\nHost: test\r\nX : a\r\n\r\n")
    }),
    row(
        "http_request_header_section_size",
        (431, 431),
        "-",
        |world| {
            let large = "a".repeat(5_000);
            world.ask(
                "@web",
                format!("GET /good HTTP/1.1\r\nHost: test\r\nX: {large}\r\n\r\n"),
            )
        },
    ),
    row("http_request_uri_too_long", (414, 414), "-", |world| {
        let long = "a".repeat(3_000);
        world.ask(
            "@web",
            format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"),
        )
    }),
    row("http_request_body_size", (413, 413), "-", |world| {
        world.post("/good", "Content-Length: 1025\r\n\r\n")
    }),
    row("http_request_timeout", (408, 408), "-", |world| {
        world.ask("@hasty", "GET /good HTTP/1.1\r\nHost: te")
    }),
    row("no_route", (404, 404), "-", |world| world.get("/elsewhere")),
    row("method_not_allowed", (405, 405), "-", |world| {
        world.ask("@web", "CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n")
    }),
    row("expectation_failed", (417, 417), "-", |world| {
        world.post("/good", "Expect: 200-maybe\r\nContent-Length: 5\r\n\r\n")
    }),
    row("transfer_coding_unsupported", (501, 501), "-", |world| {
        world.post("/good", "Transfer-Encoding: gzip, chunked\r\n\r\n")
    }),
    row("version_not_supported", (505, 505), "-", |world| {
        world.ask("@web", "GET /good HTTP/3.0\r\nHost: test\r\n\r\n")
    }),
    row("http_request_incomplete", (400, 400), "good", |world| {
        world.post("/good", "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n")
    }),
    row("http_response_incomplete", (200, 200), "stops", |world| {
        world.is_cut_in_body("/stops")
    }),
    row(
        "http_response_idle_timeout",
        (200, 200),
        "stalls",
        |world| world.is_cut_in_body("/stalls"),
    ),
    row("client_disconnected", (499, 499), "patient", leaving_client),
    row("client_write_timeout", (200, 200), "torrent", deaf_client),
    row("idle_timeout", (101, 101), "mute_tunnel", |world| {
        world.is_cut_tunnel("/mute_tunnel")
    }),
    row("backend_reset", (101, 101), "broken_tunnel", |world| {
        world.is_cut_tunnel("/broken_tunnel")
    }),
];

/// Holds the one request that a backend may have, and asks for another.
fn busy_backend(world: &FaultFixture) -> ClientView {
    let mut held = world.daemon.client("@web");
    held.send("GET /busy HTTP/1.1\r\nHost: test\r\n\r\n");
    world.busy.wait_for_requests(1);
    let seen = world.get("/busy");
    world.door.open();
    assert_eq!(held.response().unwrap().text(), "good");
    seen
}

/// Holds the one connection that a listener may have, and opens another. An idle one would be
/// closed for it, so its next request has begun.
fn full_listener(world: &FaultFixture) -> ClientView {
    let mut held = world.daemon.client("@full");
    held.send("GET /ok HTTP/1.1\r\nHost: test\r\n\r\nGET /o");
    assert_eq!(held.response().unwrap().text(), "fine");
    world.ask("@full", "GET /ok HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn leaving_client(world: &FaultFixture) -> ClientView {
    let mut client = world.daemon.client("@web");
    client.send("GET /patient HTTP/1.1\r\nHost: test\r\n\r\n");
    world.patient.wait_for_requests(1);
    client.reset();
    ClientView::Cut
}

/// Reads nothing until it has been given up; then there is no end to the response.
fn deaf_client(world: &FaultFixture) -> ClientView {
    let mut client = world.daemon.client("@web");
    client.send("GET /torrent HTTP/1.1\r\nHost: test\r\n\r\n");
    world.line_of("client_write_timeout");
    assert!(matches!(client.rest(), Err(ReadError::Reset(_))));
    ClientView::Cut
}

/// The program under test, and what it is in front of.
struct FaultFixture {
    daemon: TestDaemon,
    busy: ScriptedPeer,
    /// Until it opens, `busy` answers nothing.
    door: Gate,
    patient: ScriptedPeer,
    _others: Vec<ScriptedPeer>,
    _hole: Blackhole,
}

/// Answers with `head`, and goes on as it is told.
fn after(head: &'static str, then: fn(crate::harness::peer::PeerConnection)) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        if connection.request().is_some() && connection.send(head) {
            then(connection);
        }
    })
}

const PARTIAL_RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst part";
const SWITCHING_PROTOCOLS: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

/// Backends by the name of their pool, with further keys of it.
fn others() -> Vec<(&'static str, ScriptedPeer, &'static str)> {
    let verbose = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n",
        "a".repeat(100_000)
    );
    let quick = "timeouts: {idle: 200ms}";
    vec![
        ("good", ScriptedPeer::answering("good"), ""),
        (
            "hangs_up",
            ScriptedPeer::saying("HTTP/1.1 200 OK\r\nCont"),
            "",
        ),
        (
            "silent",
            ScriptedPeer::silent(),
            "timeouts: {response: 200ms}",
        ),
        (
            "endless",
            ScriptedPeer::silent(),
            "timeouts: {total: 200ms}",
        ),
        ("plain", ScriptedPeer::start(no_tls), "tls: {verify: false}"),
        ("garbage", ScriptedPeer::saying("220 ready\r\n"), ""),
        ("verbose", ScriptedPeer::saying(verbose), ""),
        ("stops", ScriptedPeer::saying(PARTIAL_RESPONSE), ""),
        (
            "stalls",
            after(PARTIAL_RESPONSE, |mut one| one.wait_for_end()),
            quick,
        ),
        ("torrent", ScriptedPeer::start(torrent), quick),
        (
            "mute_tunnel",
            after(SWITCHING_PROTOCOLS, |mut one| one.wait_for_end()),
            quick,
        ),
        (
            "broken_tunnel",
            after(SWITCHING_PROTOCOLS, |mut one| {
                // The client has seen the switch before it sends something.
                one.wait_for_bytes();
                one.exactly(1);
                one.reset();
            }),
            "",
        ),
    ]
}

/// Answers a ClientHello as a web server without TLS does.
fn no_tls(mut connection: crate::harness::peer::PeerConnection) {
    connection.wait_for_bytes();
    connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    connection.wait_for_end();
}

fn torrent(mut connection: crate::harness::peer::PeerConnection) {
    connection.request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    let part = vec![b'a'; 1 << 20];
    while connection.send(&part) {}
}

/// A route and a pool for each of `pools`, and listeners with every limit that is met.
fn config(profile: &str, pools: &[(&str, SocketAddr, &str)]) -> String {
    let lines = pools.iter().map(|(name, backend, more)| {
        let is_checked = more.contains("health_check");
        let check = if is_checked {
            ""
        } else {
            "health_check: none, "
        };
        (
            format!("  - {{path: /{name}, pool: {name}}}\n"),
            format!("  {name}: {{backends: [\"{backend}\"], {check}{more}}}\n"),
        )
    });
    let (routes, sections): (String, String) = lines.unzip();
    format!(
        "errors: {{status: {profile}}}\nlisteners:\n  \
         web: {{bind: \"@web\", http: {{max_header_size: 4KiB, max_headers: 10}}, limits: {{request_body: 1KiB}}}}\n  \
         hasty: {{bind: \"@hasty\", timeouts: {{header: 200ms}}}}\n  \
         full: {{bind: \"@full\", limits: {{connections: 1}}}}\n  \
         limited: {{bind: \"@limited\", rate_limit: {{per_client: 1/m, burst: 1}}}}\n  \
         shut: {{bind: \"@shut\", deny: [127.0.0.0/8]}}\n\
         routes:\n  - {{path: /ok, respond: {{status: 200, body: fine}}}}\n  \
         - {{path: /unnamed, pool: unnamed}}\n{routes}\
         pools:\n  unnamed: {{backends: [\"nowhere.invalid:80\"], health_check: none}}\n{sections}"
    )
}

impl FaultFixture {
    fn new(profile: &str) -> Self {
        let (door, hole) = (Gate::new(), Blackhole::start());
        let opened = door.clone();
        let busy = ScriptedPeer::start(move |mut connection| {
            while connection.request().is_some() {
                opened.wait();
                connection.answer("good");
            }
        });
        let (patient, others) = (ScriptedPeer::silent(), others());
        let mut pools: Vec<(&str, SocketAddr, &str)> = vec![
            ("down", refused(), "health_check: {interval: 100ms}"),
            ("refusing", refused(), ""),
            ("hole", hole.address, "timeouts: {connect: 200ms}"),
            (
                "busy",
                busy.address,
                "limits: {connections_per_backend: 1, queue: 0}",
            ),
            ("patient", patient.address, ""),
        ];
        pools.extend(
            others
                .iter()
                .map(|(name, peer, more)| (*name, peer.address, *more)),
        );
        let daemon = TestDaemon::start(&config(profile, &pools));
        Self {
            daemon,
            busy,
            door,
            patient,
            _others: others.into_iter().map(|(_, peer, _)| peer).collect(),
            _hole: hole,
        }
    }

    /// Sends `bytes` on a connection of its own and reads the response.
    fn ask(&self, word: &str, bytes: impl AsRef<[u8]>) -> ClientView {
        let mut client = self.daemon.client(word);
        client.send(bytes);
        ClientView::Answer(client.response().unwrap())
    }

    fn get(&self, target: &str) -> ClientView {
        self.ask(
            "@web",
            format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"),
        )
    }

    fn post(&self, target: &str, rest: &str) -> ClientView {
        self.ask(
            "@web",
            format!("POST {target} HTTP/1.1\r\nHost: test\r\n{rest}"),
        )
    }

    fn is_cut_in_body(&self, target: &str) -> ClientView {
        let cut = self.daemon.get("@web", target);
        assert!(
            matches!(cut, Err(ReadError::Short(_) | ReadError::Reset(_))),
            "{cut:?}"
        );
        ClientView::Cut
    }

    /// Opens a tunnel and says one byte.
    fn is_cut_tunnel(&self, target: &str) -> ClientView {
        let mut client = self.daemon.client("@web");
        client.send(format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        ));
        assert_eq!(client.head().unwrap().0, 101);
        client.send("x");
        assert!(
            matches!(client.rest(), Err(ReadError::Reset(_))),
            "{target}"
        );
        ClientView::Cut
    }

    /// The only line of the access log with this reason.
    fn line_of(&self, reason: &str) -> serde_json::Value {
        self.daemon.wait_for_access(|line| line["reason"] == reason)
    }
}

/// Makes one cause, and compares everything that is told about it.
fn is_told_the_same_everywhere(world: &FaultFixture, cause: &FaultCause, split: bool) {
    let (reason, pool) = (cause.reason, cause.pool);
    let status = if split {
        cause.statuses.1
    } else {
        cause.statuses.0
    };
    let before = world.daemon.scrape();
    let seen = (cause.make)(world);
    let line = world.line_of(reason);
    assert_eq!(line["status"], status, "{line}");
    assert_eq!(line["pool"].as_str().unwrap_or("-"), pool, "{line}");
    let code = match seen {
        ClientView::Answer(response) => {
            let id = expect_error(&response, status, reason);
            // A connection that was not let in has sent no request.
            if reason != "overload" {
                assert_eq!(line["request_id"], id.as_str(), "{line}");
            }
            status
        }
        ClientView::Cut => 0,
    };
    let own =
        format!("balancer_errors_total{{pool=\"{pool}\",reason=\"{reason}\",code=\"{code}\"}}");
    let all = "balancer_errors_total";
    let grown = poll(|| {
        let page = world.daemon.scrape();
        let grown = |series: &str| (sum_of(&page, series) - sum_of(&before, series)) as u64;
        (grown(all) > 0).then(|| (grown(&own), grown(all)))
    });
    assert_eq!(grown, Some((1, 1)), "{own}");
}

fn the_matrix_holds(profile: &str) {
    let world = FaultFixture::new(profile);
    for cause in FAULT_CAUSES {
        is_told_the_same_everywhere(&world, cause, profile == "split");
    }
    let all = world.daemon.metric("balancer_errors_total") as usize;
    assert_eq!(all, FAULT_CAUSES.len(), "each cause was counted once");
    let told = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let mut lines: Vec<_> = world
        .daemon
        .stdout
        .all()
        .iter()
        .map(|line| told(line))
        .collect();
    lines.retain(|line| !line["reason"].is_null() && line["reason"] != "");
    assert_eq!(
        lines.len(),
        FAULT_CAUSES.len(),
        "each cause was logged once: {lines:?}"
    );
}

#[test]
fn every_cause_has_one_name_in_the_unified_profile() {
    the_matrix_holds("unified");
}

#[test]
fn every_cause_has_one_name_in_the_split_profile() {
    the_matrix_holds("split");
}

/// The end of the daemon is the one cause whose metric cannot be read afterwards.
#[test]
fn what_the_end_of_a_drain_cuts_is_named_and_never_looks_whole() {
    let peer = after("HTTP/1.1 200 OK\r\n\r\nfirst part", |mut one| {
        one.wait_for_end();
    });
    let mut daemon = TestDaemon::start(&format!(
        "drain: {{timeout: 300ms}}\nlisteners:\n  web: {{bind: \"@web\", pool: app}}\n\
         pools:\n  app: {{backends: [\"{}\"], health_check: none}}\n",
        peer.address
    ));
    // The body of an HTTP/1.0 response ends with its connection.
    let mut client = HttpClient::connect(daemon.address("@web"));
    client.send("GET / HTTP/1.0\r\nHost: test\r\n\r\n");
    client.until(b"first part").unwrap();
    daemon.signal(Signal::TERM);
    let end = client.rest();
    assert!(matches!(end, Err(ReadError::Reset(_))), "{end:?}");
    let line = daemon.wait_for_access(|line| line["reason"] == "drain_timeout");
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn every_reason_is_in_the_matrix_or_cannot_occur() {
    let mut made: BTreeSet<&str> = FAULT_CAUSES.iter().map(|cause| cause.reason).collect();
    assert_eq!(made.len(), FAULT_CAUSES.len(), "each reason has one cause");
    assert!(made.len() >= 25, "{} distinct reasons", made.len());
    made.insert("drain_timeout");
    let listed: BTreeSet<&str> = NOT_HERE.iter().map(|(reason, _)| *reason).collect();
    assert!(made.is_disjoint(&listed), "made, and said not to occur");
    let known: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let told: BTreeSet<&str> = made.union(&listed).copied().collect();
    assert_eq!(told, known);
}
