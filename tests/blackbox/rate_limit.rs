//! `rate_limit`: the response to a client with too many requests; others are not affected.

use crate::harness::{
    answers::expect_error, client::HttpClient, daemon::TestDaemon, peer::ScriptedPeer,
};

/// An hour per request: in the time of a test nothing is added to a bucket.
const SLOW_LIMIT: &str = "rate_limit: {per_client: 1/h, burst: 3}";

fn config(global: &str, listener: &str, routes: &str, backend: &ScriptedPeer) -> String {
    format!(
        "{global}access_log: {{when: {{sample: 100%}}}}\nlisteners:\n  web: {{bind: \"@web\", pool: app, {listener}}}\nroutes: [{routes}]\npools:\n  app: {{health_check: none, backends: [{}]}}\n",
        backend.address
    )
}

fn status(daemon: &TestDaemon, target: &str) -> u16 {
    daemon.get("@web", target).unwrap().status
}

#[test]
fn a_request_over_the_rate_is_429_with_the_true_wait_and_the_connection_goes_on() {
    let backend = ScriptedPeer::answering("here");
    let daemon = TestDaemon::start(&config("", SLOW_LIMIT, "", &backend));
    let mut client = daemon.client("@web");
    for _ in 0..3 {
        assert_eq!(client.request("GET", "/").unwrap().text(), "here");
    }
    let refused = client.request("GET", "/over").unwrap();
    let id = expect_error(&refused, 429, "rate_limited");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    let line = daemon.access_of(&id);
    assert_eq!(
        (&line["reason"], &line["status"]),
        (&"rate_limited".into(), &429.into())
    );

    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello");
    let whole = client.response().unwrap();
    assert_eq!(
        (whole.status, whole.header("connection")),
        (429, Some("keep-alive"))
    );
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 50\r\n\r\nhello");
    let unread = client.response().unwrap();
    assert_eq!(
        (unread.status, unread.header("connection")),
        (429, Some("close"))
    );
    assert_eq!(client.rest().unwrap(), b"");

    assert_eq!(backend.requests.all().len(), 3);
    let count = daemon.metric("balancer_rate_limited_total{listener=\"web\"}") as u64;
    assert_eq!(count, 3);
    let errors = "balancer_errors_total{pool=\"-\",reason=\"rate_limited\",code=\"429\"}";
    assert_eq!(daemon.metric(errors) as u64, 3);
}

#[test]
fn after_the_wait_one_more_is_allowed() {
    let backend = ScriptedPeer::answering("here");
    let limit = "rate_limit: {per_client: 1/s, burst: 1}";
    let daemon = TestDaemon::start(&config("", limit, "", &backend));
    assert_eq!(status(&daemon, "/"), 200);
    // On a machine that stands still between the two this one may pass; then the next is refused.
    let refused = crate::harness::poll(|| {
        Some(daemon.get("@web", "/").unwrap()).filter(|one| one.status == 429)
    });
    assert_eq!(refused.unwrap().header("retry-after"), Some("1"));
    assert!(crate::harness::poll(|| (status(&daemon, "/") == 200).then_some(())).is_some());
}

#[test]
fn the_limit_is_one_for_all_workers() {
    let backend = ScriptedPeer::answering("here");
    let limit = "rate_limit: {per_client: 1/h, burst: 40}";
    let daemon = TestDaemon::start(&config("workers: 4\n", limit, "", &backend));
    let mut clients: Vec<HttpClient> = (0..60).map(|_| daemon.client("@web")).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    let answers = clients
        .iter_mut()
        .map(|client| client.response().unwrap().status);
    assert_eq!(answers.filter(|status| *status == 200).count(), 40);
}

#[test]
fn a_route_has_a_limit_of_its_own_or_none() {
    let backend = ScriptedPeer::answering("here");
    let routes = "{path: /login, pool: app, rate_limit: {per_client: 1/h, burst: 1}}, {path: /free, pool: app, rate_limit: none}, {path: /fixed, respond: {body: x}}";
    let daemon = TestDaemon::start(&config("", SLOW_LIMIT, routes, &backend));
    assert_eq!(
        [status(&daemon, "/login"), status(&daemon, "/login/2")],
        [200, 429]
    );
    let all = ["/", "/fixed", "/"].map(|target| status(&daemon, target));
    assert_eq!(all, [200; 3], "the route took nothing from the listener's");
    assert_eq!([status(&daemon, "/"), status(&daemon, "/fixed")], [429; 2]);
    assert!((0..10).all(|_| status(&daemon, "/free") == 200));
}

#[test]
fn a_reload_keeps_what_was_taken_and_a_changed_limit_starts_fresh() {
    let backend = ScriptedPeer::answering("here");
    let login = "{path: /login, pool: app, rate_limit: {per_client: 1/h, burst: 1}}";
    let mut daemon = TestDaemon::start(&config("", SLOW_LIMIT, login, &backend));
    assert_eq!(
        ["/login", "/", "/"].map(|target| status(&daemon, target)),
        [200; 3]
    );
    let moved = format!("{{path: /other, pool: app}}, {login}");
    assert_eq!(
        daemon
            .reload(&config("", SLOW_LIMIT, &moved, &backend))
            .status,
        200
    );
    let after = ["/login", "/", "/"].map(|target| status(&daemon, target));
    assert_eq!(after, [429, 200, 429]);
    let wider = SLOW_LIMIT.replace('3', "2");
    assert_eq!(
        daemon.reload(&config("", &wider, &moved, &backend)).status,
        200
    );
    let after = ["/login", "/", "/", "/"].map(|target| status(&daemon, target));
    assert_eq!(after, [429, 200, 200, 429]);
    assert_eq!(daemon.metric("balancer_rate_limited_total") as u64, 4);
}

#[test]
fn behind_a_trusted_proxy_the_client_it_names_is_counted() {
    let backend = ScriptedPeer::answering("here");
    let asks = |daemon: &TestDaemon, client: &str| {
        let mut connection = daemon.client("@web");
        connection.send(format!(
            "GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.9, {client}\r\n\r\n"
        ));
        connection.response().unwrap().status
    };
    let daemon = TestDaemon::start(&config(
        "trusted_proxies: [127.0.0.1]\n",
        SLOW_LIMIT,
        "",
        &backend,
    ));
    assert!((0..3).all(|_| asks(&daemon, "192.0.2.1") == 200));
    assert_eq!(asks(&daemon, "192.0.2.1"), 429);
    assert_eq!(asks(&daemon, "192.0.2.2"), 200, "another client");
    let daemon = TestDaemon::start(&config("", SLOW_LIMIT, "", &backend));
    let asked = [1, 2, 3, 4].map(|n| asks(&daemon, &format!("192.0.2.{n}")));
    assert_eq!(asked, [200, 200, 200, 429], "anybody can write the header");
}
