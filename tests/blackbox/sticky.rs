//! Sticky sessions: a cookie keeps each client on one backend.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use hyper::http::Method;

use crate::harness::{
    TempDir,
    client::{HttpClient, HttpResponse},
    daemon::{TestDaemon, command},
    h2,
    peer::{Gate, PeerConnection, ScriptedPeer},
    poll,
    tls::{self, TestAuthority},
};

/// Answers every request with `body`, on a connection of its own: nothing goes on when the backend
/// is gone.
fn closing(body: &str) -> impl Fn(PeerConnection) + Send + Sync + 'static {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    move |mut connection| {
        if connection.request().is_some() {
            connection.send_last(&answer);
        }
    }
}

/// Backends that answer with `a`, `b`, `c`, and so on.
fn backends(count: usize) -> Vec<ScriptedPeer> {
    let names = ["a", "b", "c", "d"].iter().take(count);
    names
        .map(|name| ScriptedPeer::start(closing(name)))
        .collect()
}

/// A listener `@web` with a sticky pool of `backends`; `keys` are more keys of the pool.
fn config(backends: &[ScriptedPeer], keys: &str) -> String {
    let addresses: Vec<String> = backends.iter().map(|one| one.address.to_string()).collect();
    config_of(&addresses.join(", "), keys)
}

fn config_of(backends: &str, keys: &str) -> String {
    let sticky = if keys.contains("sticky:") {
        ""
    } else {
        "sticky: {cookie: lb}, "
    };
    format!(
        "listeners: {{web: {{bind: \"@web\", pool: app}}}}\n\
         pools: {{app: {{backends: [{backends}], health_check: none, {sticky}{keys}}}}}\n"
    )
}

/// One request with these cookies, on a connection of its own.
fn get(address: SocketAddr, cookies: &str) -> HttpResponse {
    let mut client = HttpClient::connect(address);
    send(&mut client, cookies);
    client.response().unwrap()
}

fn send<S: std::io::Read + std::io::Write>(client: &mut HttpClient<S>, cookies: &str) {
    let fields = match cookies {
        "" => String::new(),
        cookies => format!("Cookie: {cookies}\r\n"),
    };
    client.send(format!("GET / HTTP/1.1\r\nHost: test\r\n{fields}\r\n"));
}

/// The cookie `lb=ID` that a response sets.
fn cookie(response: &HttpResponse) -> String {
    assert_eq!(response.count("set-cookie"), 1, "{response:?}");
    let field = response.header("set-cookie").unwrap();
    field.split(';').next().unwrap().to_owned()
}

/// A cookie for the backend that answers with `body`.
fn cookie_for(address: SocketAddr, body: &str) -> String {
    let mut all = (0..50).map(|_| get(address, ""));
    cookie(&all.find(|response| response.text() == body).unwrap())
}

/// Checks that `count` clients with the cookie get the backend `body`, and no new cookie.
fn expect_backend(address: SocketAddr, cookie: &str, body: &str, count: usize) {
    for _ in 0..count {
        let response = get(address, cookie);
        assert_eq!(response.text(), body, "{cookie}");
        assert_eq!(response.count("set-cookie"), 0, "{response:?}");
        assert_eq!(response.count("cache-control"), 0, "{response:?}");
    }
}

fn with_state(directory: &Path) -> std::process::Command {
    let mut program = command();
    program.env("STATE_DIRECTORY", directory);
    program
}

#[test]
fn a_client_stays_on_its_backend_and_others_are_balanced() {
    let peers = backends(3);
    let daemon = TestDaemon::start(&config(&peers, ""));
    let web = daemon.address("@web");
    let first = get(web, "other=1");
    let field = first.header("set-cookie").unwrap();
    let id = field
        .strip_prefix("lb=")
        .and_then(|rest| rest.split_once(';'));
    let (id, attributes) = id.unwrap();
    assert!(
        id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{field}"
    );
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(first.header("cache-control"), Some("private"));

    let own = cookie(&first);
    expect_backend(web, &own, &first.text(), 10);
    expect_backend(web, &format!("a=b; {own}; c=d"), &first.text(), 2);
    let mut kept = daemon.client("@web");
    for _ in 0..5 {
        send(&mut kept, &own);
        assert_eq!(kept.response().unwrap().text(), first.text());
    }
    let mut seen: Vec<String> = (0..3).map(|_| get(web, "").text()).collect();
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"]);

    let count = |result: &str| {
        daemon.metric(&format!(
            "balancer_sticky_total{{pool=\"app\",result=\"{result}\"}}"
        ))
    };
    assert_eq!(
        (count("hit"), count("miss"), count("fallback")),
        (17.0, 4.0, 0.0)
    );
    let pool = &daemon.status()["pools"][0];
    assert_eq!(pool["sticky"]["cookie"], "lb");
    let ids = pool["backends"].as_array().unwrap().iter();
    assert!(
        ids.clone().any(|backend| backend["sticky_id"] == *id),
        "{pool}"
    );
}

#[test]
fn ids_that_name_no_backend_are_ignored() {
    let peers = backends(2);
    let daemon = TestDaemon::start(&config(&peers, ""));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let id = own.strip_prefix("lb=").unwrap();
    let forged = "f".repeat(24);
    let long = "x".repeat(20_000);
    for value in [
        "",
        "1",
        &forged,
        &long,
        &id[1..],
        &peers[1].address.to_string(),
    ] {
        let response = get(web, &format!("lb={value}"));
        assert_eq!(response.status, 200);
        assert!(cookie(&response).starts_with("lb="));
        expect_backend(web, &format!("lb={value}; {own}"), "b", 2);
    }
    for other in [format!("LB={id}"), format!("xlb={id}"), format!("lb2={id}")] {
        cookie(&get(web, &other));
    }
}

#[test]
fn a_client_of_a_dead_backend_gets_another_one_and_stays_there_when_the_old_one_returns() {
    let mut peers = backends(2);
    let checks = "health_check: {interval: 100ms, fall: 1, rise: 1}";
    let text = config(&peers, checks).replace("health_check: none, ", "");
    let daemon = TestDaemon::start(&text);
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let dead = peers.pop().unwrap();
    let address = dead.address;
    drop(dead);
    // At first the attempt fails, and the retry gets the other one; later the backend is down.
    let moved = get(web, &own);
    assert_eq!(moved.text(), "a");
    let second = cookie(&moved);
    let up = format!("balancer_backend_up{{pool=\"app\",backend=\"{address}\"}}");
    daemon.wait_for_metric(&up, |up| up == 0.0);
    let again = get(web, &own);
    assert_eq!(
        (again.text(), cookie(&again)),
        ("a".to_owned(), second.clone())
    );
    assert!(daemon.metric("balancer_sticky_total{result=\"fallback\"}") >= 2.0);

    let _back = ScriptedPeer::start_at(address, closing("b"));
    daemon.wait_for_metric(&up, |up| up == 1.0);
    expect_backend(web, &second, "a", 5);
    expect_backend(web, &own, "b", 2);
}

#[test]
fn errors_of_backends_set_the_cookie_and_errors_of_our_own_do_not() {
    let broken = [ScriptedPeer::saying(
        "HTTP/1.1 500 Internal Server Error\r\nSet-Cookie: lb=theirs\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n",
    )];
    let daemon = TestDaemon::start(&config(&broken, ""));
    let response = get(daemon.address("@web"), "");
    assert_eq!(response.status, 500);
    assert_eq!(response.count("set-cookie"), 2, "{response:?}");
    assert_eq!(response.header("set-cookie"), Some("a=1"));

    let gone = crate::harness::peer::refused().to_string();
    let daemon = TestDaemon::start(&config_of(&gone, ""));
    let response = get(daemon.address("@web"), "");
    assert_eq!((response.status, response.count("set-cookie")), (502, 0));
}

#[test]
fn a_client_waits_for_its_own_backend_while_it_is_full() {
    let gate = Gate::new();
    let peers = [
        ScriptedPeer::slow(&gate, "a"),
        ScriptedPeer::slow(&gate, "b"),
    ];
    let daemon = TestDaemon::start(&config(&peers, "limits: {connections_per_backend: 1}"));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let slow = format!("GET /slow HTTP/1.1\r\nHost: test\r\nCookie: {own}\r\n\r\n");
    let before = peers[1].requests.all().len();
    let mut holder = daemon.client("@web");
    holder.send(&slow);
    peers[1].wait_for_requests(before + 1);
    let mut waiting = daemon.client("@web");
    waiting.send(&slow);
    daemon.wait_for_metric("balancer_queue_length", |length| length == 1.0);
    gate.open();
    assert_eq!(holder.response().unwrap().text(), "b");
    assert_eq!(waiting.response().unwrap().text(), "b");
}

#[test]
fn without_a_queue_a_full_backend_gives_its_client_to_another_one() {
    let gate = Gate::new();
    let peers = [
        ScriptedPeer::slow(&gate, "a"),
        ScriptedPeer::slow(&gate, "b"),
    ];
    let limits = "limits: {connections_per_backend: 1, queue: 0}";
    let daemon = TestDaemon::start(&config(&peers, limits));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    // A client has its response a moment before the backend is free again.
    let in_flight = || daemon.status()["pools"][0]["backends"][1]["in_flight"].clone();
    poll(|| (in_flight() == 0).then_some(())).expect("a free backend");
    let before = peers[1].requests.all().len();
    let mut holder = daemon.client("@web");
    holder.send(format!(
        "GET /slow HTTP/1.1\r\nHost: test\r\nCookie: {own}\r\n\r\n"
    ));
    peers[1].wait_for_requests(before + 1);
    let other = get(web, &own);
    assert_eq!(other.text(), "a");
    cookie(&other);
    gate.open();
    assert_eq!(holder.response().unwrap().text(), "b");
}

#[test]
fn a_restart_keeps_sessions_by_the_key_in_the_state_directory() {
    let peers = backends(4);
    let text = config(&peers, "");
    let state = TempDir::new();
    let directory = state.path().join("deep/state");
    let daemon = TestDaemon::start_by(|| with_state(&directory), "run", &text);
    let own = cookie_for(daemon.address("@web"), "c");
    let key = directory.join("sticky.key");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let made = fs::read(&key).unwrap();
    let secret = String::from_utf8(made.clone()).unwrap();
    assert!(!daemon.status().to_string().contains(&secret));
    drop(daemon);

    let daemon = TestDaemon::start_by(|| with_state(&directory), "run", &text);
    expect_backend(daemon.address("@web"), &own, "c", 8);
    assert_eq!(fs::read(&key).unwrap(), made);
    drop(daemon);

    fs::remove_file(&key).unwrap();
    let daemon = TestDaemon::start_by(|| with_state(&directory), "run", &text);
    cookie(&get(daemon.address("@web"), &own));
}

#[test]
fn without_a_state_directory_there_is_a_warning_and_sessions_live_as_long_as_the_daemon() {
    let peers = backends(2);
    let state = TempDir::new();
    let directory = state.path().join("file");
    fs::write(&directory, "no directory").unwrap();
    let text = config(&peers, "");
    let mut daemon = TestDaemon::start_by(|| with_state(&directory), "run", &text);
    daemon.wait_for_log(|line| line.contains("sticky.key") && line.contains("warn"));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let report = daemon.reload(&config(&peers, "policy: random_two"));
    assert_eq!(report.status, 200, "{}", report.text());
    assert!(
        report.text().contains("sessions end with this process"),
        "{}",
        report.text()
    );
    expect_backend(web, &own, "b", 4);
}

#[test]
fn check_and_pools_without_sticky_make_no_key() {
    let state = TempDir::new();
    let directory = state.path().join("state");
    let file = state.path().join("balancer.yaml");
    let text = config_of("127.0.0.1:9", "").replace("@web", "127.0.0.1:8080");
    let text = text.replace("health_check: none, ", "");
    fs::write(&file, text).unwrap();
    let checked = with_state(&directory)
        .arg("check")
        .arg(&file)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let probed = with_state(&directory)
        .args(["check", "--probe"])
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&probed.stdout).into_owned();
    assert!(text.contains("127.0.0.1:9"), "{probed:?}");
    let plain =
        "listeners: {web: {bind: \"@web\", pool: app}}\npools: {app: {backends: [127.0.0.1:9]}}";
    let daemon = TestDaemon::start_by(|| with_state(&directory), "run", plain);
    assert_eq!(daemon.get("@web", "/").unwrap().count("set-cookie"), 0);
    assert!(!directory.exists());
}

#[test]
fn two_daemons_with_one_secret_agree_and_another_secret_moves_clients() {
    let peers = backends(4);
    let files = TempDir::new();
    let secret = files.path().join("secret");
    fs::write(&secret, "a secret of two machines\n").unwrap();
    let sticky = format!(
        "sticky: {{cookie: lb, secret_file: \"{}\"}}",
        secret.display()
    );
    let text = config(&peers, &sticky);
    let first = TestDaemon::start(&text);
    let mut second = TestDaemon::start(&text);
    for body in ["a", "d"] {
        let own = cookie_for(first.address("@web"), body);
        expect_backend(second.address("@web"), &own, body, 4);
    }
    let own = cookie_for(first.address("@web"), "b");
    fs::write(&secret, "another secret of one of them").unwrap();
    let report = second.reload(&text);
    assert!(
        report.text().contains("pool app: sticky changed"),
        "{}",
        report.text()
    );
    cookie(&get(second.address("@web"), &own));
    fs::write(&secret, "short").unwrap();
    let refused = second.reload(&text);
    assert!(
        refused.text().contains("shorter than 16 bytes"),
        "{}",
        refused.text()
    );
}

#[test]
fn a_reload_keeps_sessions_when_the_backend_is_renamed_or_moved() {
    let mut peers = backends(3);
    let mut daemon = TestDaemon::start(&config(&peers, ""));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let address = peers[1].address;
    let renamed = format!(
        "{}, {{address: \"{address}\", name: other, weight: 0}}",
        peers[2].address
    );
    let reloaded = daemon.reload(&config_of(&renamed, "policy: least_connections"));
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    expect_backend(web, &own, "b", 6);
    let others: Vec<String> = (0..6).map(|_| get(web, "").text()).collect();
    assert!(
        others.iter().all(|body| body == "c"),
        "weight 0 gets no new clients: {others:?}"
    );

    peers.swap_remove(1);
    let removed = daemon.reload(&config(&peers, ""));
    assert_eq!(removed.status, 200, "{}", removed.text());
    let moved = get(web, &own);
    assert_ne!(moved.text(), "b");
    expect_backend(web, &cookie(&moved), &moved.text(), 4);
}

#[test]
fn upgrades_and_streams_set_the_cookie() {
    let upgrading = || {
        ScriptedPeer::start(|mut connection| {
            let Some(request) = connection.request() else {
                return;
            };
            if request.target == "/ws" {
                connection.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                );
                connection.wait_for_end();
            } else {
                connection.send(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
                );
                connection.wait_for_end();
            }
        })
    };
    let peers = [upgrading(), upgrading()];
    let daemon = TestDaemon::start(&config(&peers, ""));
    for fields in [
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
        "GET /events HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut client = daemon.client("@web");
        client.send(fields);
        let (status, headers) = client.head().unwrap();
        let cookies = headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let cookies: Vec<_> = cookies.collect();
        assert!(matches!(status, 101 | 200), "{status}");
        assert!(
            cookies.len() == 1 && cookies[0].1.starts_with("lb="),
            "{headers:?}"
        );
    }
}

#[test]
fn clients_with_http2_stay_too_also_when_their_cookies_come_in_parts() {
    let peers = backends(3);
    let daemon = TestDaemon::start(&config(&peers, ""));
    let address = daemon.address("@web");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let (mut sender, driver) = h2::connect(address).await;
            let mut ask = async |fields: &[(&str, &str)]| {
                let request = h2::request(Method::GET, "/", fields);
                let sent = sender.send_request(request, true).unwrap().0;
                h2::whole(sent).await.unwrap()
            };
            let first = ask(&[]).await;
            let own = first
                .header("set-cookie")
                .unwrap()
                .split(';')
                .next()
                .unwrap();
            for _ in 0..5 {
                let parts = [("cookie", "a=1"), ("cookie", own), ("cookie", "b=2")];
                let next = ask(&parts).await;
                assert_eq!(next.body, first.body);
                assert_eq!(next.header("set-cookie"), None);
            }
            let other = ask(&[("cookie", "lb=none")]).await;
            assert!(other.header("set-cookie").is_some());
            driver.abort();
        });
}

#[test]
fn the_cookie_is_secure_for_clients_with_tls() {
    let peers = backends(1);
    let authority = TestAuthority::new();
    authority.sign("web", &["app.test"]);
    let web = format!(
        "listeners: {{web: {{bind: \"@web\", pool: app, tls: {{{}}}}}, plain: {{bind: \"@plain\", pool: app}}}}",
        authority.pair("web")
    );
    let text = config(&peers, "").replace("listeners: {web: {bind: \"@web\", pool: app}}", &web);
    let daemon = TestDaemon::start(&format!("trusted_proxies: [127.0.0.1]\n{text}"));
    let mut client = tls::connect(
        daemon.address("@web"),
        &authority.client(None, false),
        "app.test",
    );
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n");
    let secure = "; Path=/; HttpOnly; SameSite=Lax; Secure";
    let response = client.response().unwrap();
    assert!(
        response.header("set-cookie").unwrap().ends_with(secure),
        "{response:?}"
    );

    let plain = |fields: &str| {
        let mut client = daemon.client("@plain");
        client.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n"));
        let response = client.response().unwrap();
        response.header("set-cookie").unwrap().ends_with("; Secure")
    };
    assert!(!plain(""));
    assert!(!plain("X-Forwarded-Proto: http\r\n"));
    assert!(
        plain("X-Forwarded-Proto: https\r\n"),
        "from a trusted proxy"
    );
}

#[test]
fn a_client_stays_in_its_pool_of_a_split_until_that_has_no_share() {
    let peers = backends(4);
    let pool = |members: &[ScriptedPeer]| {
        format!(
            "{{backends: [{}, {}], health_check: none, sticky: {{cookie: lb}}}}",
            members[0].address, members[1].address
        )
    };
    let split = |shares: &str| {
        format!(
            "listeners: {{web: {{bind: \"@web\"}}}}\nroutes: [{{split: {{{shares}}}}}]\n\
             pools: {{stable: {}, canary: {}}}\n",
            pool(&peers[..2]),
            pool(&peers[2..])
        )
    };
    let mut daemon = TestDaemon::start(&split("stable: 1, canary: 1"));
    let web = daemon.address("@web");
    let own: Vec<(&str, String)> = ["b", "c"].map(|body| (body, cookie_for(web, body))).into();
    for (body, own) in &own {
        expect_backend(web, own, body, 12);
    }
    let reloaded = daemon.reload(&split("stable: 1, canary: 0"));
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let moved = get(web, &own[1].1);
    assert!(["a", "b"].contains(&moved.text().as_str()), "{moved:?}");
    expect_backend(web, &cookie(&moved), &moved.text(), 4);
    expect_backend(web, &own[0].1, "b", 4);
}

#[test]
fn a_draining_backend_keeps_its_clients_and_one_in_maintenance_does_not() {
    let peers = backends(3);
    let daemon = TestDaemon::start(&config(&peers, ""));
    let web = daemon.address("@web");
    let own = cookie_for(web, "b");
    let target = format!("app/{}", peers[1].address);
    let set = |state: &str| {
        let done = daemon.command(&["backend", state, &target]);
        assert!(done.status.success(), "{done:?}");
    };
    set("drain");
    expect_backend(web, &own, "b", 5);
    let of_new = (0..20).filter(|_| get(web, "").text() == "b").count();
    assert_eq!(of_new, 0, "new clients go elsewhere");
    set("maintenance");
    let moved = get(web, &own);
    assert_ne!(moved.text(), "b");
    let next = cookie(&moved);
    set("ready");
    expect_backend(web, &next, &moved.text(), 5);
}
