//! The promises of routing, and the slow matcher that says what the fast one has to find.

use super::*;
use crate::{base::rng::Random, config::model::Listener};

fn listener(protocol: ListenerProtocol) -> Listener {
    Listener {
        protocol,
        ..Listener::named("web")
    }
}

/// A route for these hosts (`*.a` is a suffix) and this path (`=` exact, `~` expression, empty any, else prefix).
fn route(hosts: &[&str], path: &str) -> Route {
    let hosts = hosts.iter().map(|host| match host.strip_prefix("*.") {
        Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
        None => HostMatch::Exact((*host).to_owned()),
    });
    let path = match (path.split_at_checked(1), path) {
        (Some(("=", exact)), _) => PathMatch::Exact(exact.to_owned()),
        (Some(("~", regex)), _) => PathMatch::Regex(Regex::new(regex).unwrap()),
        (None, _) => PathMatch::Any,
        (_, prefix) => PathMatch::Prefix(prefix.to_owned()),
    };
    Route {
        hosts: hosts.collect(),
        path,
        ..Route::named("route")
    }
}

fn header(name: &str, value: Option<&str>) -> HeaderMatch {
    HeaderMatch {
        name: name.to_owned(),
        value: value.map(str::to_owned),
    }
}

fn configuration(routes: Vec<Route>) -> Config {
    Config {
        listeners: vec![
            listener(ListenerProtocol::Http),
            listener(ListenerProtocol::Http),
            listener(ListenerProtocol::Tcp),
        ],
        routes,
        ..Config::default()
    }
}

struct Request<'a> {
    host: &'a str,
    path: &'a str,
    method: &'a str,
    fields: &'a [(&'a str, &'a str)],
}

fn has(fields: &[(&str, &str)], name: &str, test: &dyn Fn(&[u8]) -> bool) -> bool {
    let mut fields = fields.iter();
    fields.any(|(field, value)| *field == name && test(value.as_bytes()))
}

fn find(router: &Router, listener: usize, request: &Request<'_>) -> Result<Option<usize>, Reason> {
    router.find(
        listener,
        request.host.as_bytes(),
        request.path.as_bytes(),
        request.method.as_bytes(),
        &|name, test| has(request.fields, name, test),
    )
}

fn get(router: &Router, host: &str, path: &str) -> Result<Option<usize>, Reason> {
    let request = Request {
        host,
        path,
        method: "GET",
        fields: &[],
    };
    find(router, 0, &request)
}

fn router(routes: &[(&[&str], &str)]) -> Router {
    let routes = routes.iter().map(|(hosts, path)| route(hosts, path));
    Router::new(&configuration(routes.collect()))
}

#[test]
fn an_exact_host_beats_a_suffix_and_the_longest_suffix_wins() {
    let router = router(&[
        (&[], ""),
        (&["*.com"], ""),
        (&["*.example.com"], ""),
        (&["api.example.com", "[::1]"], ""),
    ]);
    for (host, expected) in [
        ("API.example.com.:8080", 3),
        ("[0:0::1]:80", 3),
        ("x.api.example.com", 2),
        ("example.com", 1),
        ("example.org", 0),
        ("com", 0),
        ("", 0),
    ] {
        assert_eq!(get(&router, host, "/"), Ok(Some(expected)), "{host}");
    }
}

#[test]
fn a_host_whose_paths_do_not_match_leaves_the_request_to_the_next() {
    let router = router(&[(&["a.b"], "/x"), (&["*.b"], "/y"), (&[], "/z")]);
    assert_eq!(get(&router, "a.b", "/x"), Ok(Some(0)));
    assert_eq!(get(&router, "a.b", "/y"), Ok(Some(1)));
    assert_eq!(get(&router, "a.b", "/z"), Ok(Some(2)));
    assert_eq!(get(&router, "a.b", "/"), Ok(None));
}

#[test]
fn exact_beats_expression_beats_the_longest_prefix_by_whole_segments() {
    let router = router(&[
        (&[], ""),
        (&[], "/"),
        (&[], "/api"),
        (&[], "/api/v1/"),
        (&[], "=/api/v1/users"),
        (&[], r"~/api/v1/\d+|/api/v1/\d+/x"),
    ]);
    for (path, expected) in [
        ("/api/v1/users", 4),
        ("/api/v1/users/", 3),
        ("/api/v1/77", 5),
        ("/api/v1/77/x?y", 5),
        ("/api/v1/77/y", 3),
        ("/api/v1", 3),
        ("/api/v10", 2),
        ("/api/", 2),
        ("/apis", 1),
        ("/", 1),
        ("*", 0),
        ("/%61pi/./v1/x/../users", 4),
        ("//api//v1", 3),
    ] {
        assert_eq!(get(&router, "h", path), Ok(Some(expected)), "{path}");
    }
}

#[test]
fn configured_paths_may_be_written_encoded() {
    let router = router(&[(&[], "/caf%C3%A9"), (&[], "=/a b")]);
    assert_eq!(get(&router, "h", "/caf\u{e9}/x"), Ok(Some(0)));
    assert_eq!(get(&router, "h", "/a%20b"), Ok(Some(1)));
}

#[test]
fn an_encoded_slash_neither_hides_nor_fakes_a_segment() {
    let router = router(&[
        (&[], "/"),
        (&[], "/admin"),
        (&[], "/projects"),
        (&[], "/admin/open"),
    ]);
    assert_eq!(get(&router, "h", "/projects/group%2Fname"), Ok(Some(2)));
    for path in [
        "/admin%2fsecret",
        "/%2fadmin",
        "/x%2f..%2Fadmin",
        "/admin/..%2fprojects",
        "/admin/x%2f..%2fopen",
    ] {
        assert_eq!(get(&router, "h", path), Err(Reason::RequestError), "{path}");
    }
    assert_eq!(get(&router, "h", "/projects%252f..%252fadmin"), Ok(Some(0)));
    assert_eq!(get(&router, "h", "/admin%00"), Err(Reason::RequestError));
}

#[test]
fn method_comes_before_the_number_of_headers_before_the_file() {
    let mut routes: Vec<_> = (0..5).map(|_| route(&[], "/a")).collect();
    routes[1].headers = vec![header("x-a", None), header("x-b", Some("2"))];
    routes[2].headers = vec![header("x-a", None)];
    routes[3].methods = vec!["POST".to_owned(), "PUT".to_owned()];
    let router = Router::new(&configuration(routes));
    for (method, fields, expected) in [
        ("GET", &[][..], 0),
        ("GET", &[("x-a", "1")], 2),
        ("GET", &[("x-a", "1"), ("x-b", "1"), ("x-b", "2")], 1),
        ("GET", &[("x-a", "1"), ("x-b", "3")], 2),
        ("PUT", &[("x-a", "1"), ("x-b", "2")], 3),
        ("put", &[], 0),
    ] {
        let request = Request {
            host: "h",
            path: "/a",
            method,
            fields,
        };
        assert_eq!(
            find(&router, 0, &request),
            Ok(Some(expected)),
            "{method} {fields:?}"
        );
    }
}

#[test]
fn a_route_may_be_for_some_listeners_only() {
    let mut routes = vec![route(&[], "/"), route(&[], "/a")];
    routes[1].listeners = vec![1];
    let router = Router::new(&configuration(routes));
    let request = Request {
        host: "h",
        path: "/a",
        method: "GET",
        fields: &[],
    };
    let found = [0, 1, 2, 9].map(|listener| find(&router, listener, &request));
    assert_eq!(found, [Ok(Some(0)), Ok(Some(1)), Ok(None), Ok(None)]);
}

#[test]
fn bytes_that_are_not_text_hide_nothing_from_an_expression() {
    let router = router(&[(&[], ""), (&[], "~/admin/.*")]);
    assert_eq!(get(&router, "h", "/admin/%ff"), Ok(Some(1)));
}

#[test]
fn a_path_of_thousands_of_segments_is_cut_to_the_deepest_prefix() {
    let path = "/a".repeat(10_000);
    assert_eq!(prefixes(path.as_bytes(), 3).count(), 4);
    assert_eq!(get(&router(&[(&[], "/a/a")]), "h", &path), Ok(Some(0)));
}

/// The rank of a route that matches, the greatest wins; written as the contract says it, in no hurry.
fn rank(route: &Route, request: &Request<'_>, path: &str) -> Option<[usize; 4]> {
    let host = request.host;
    let hosts = route.hosts.iter().filter_map(|wanted| match wanted {
        HostMatch::Exact(name) => (name == host).then_some(usize::MAX),
        HostMatch::Suffix(name) => host.ends_with(&format!(".{name}")).then_some(name.len()),
    });
    let host_rank = if route.hosts.is_empty() {
        0
    } else {
        hosts.max()?
    };
    let path_rank = match &route.path {
        PathMatch::Any => 0,
        PathMatch::Exact(wanted) => (wanted == path).then_some(usize::MAX)?,
        PathMatch::Regex(regex) => {
            let whole = Regex::new(&format!("^(?:{regex})$")).unwrap();
            whole.is_match(path).then_some(usize::MAX - 1)?
        }
        PathMatch::Prefix(wanted) if wanted == "/" => path.starts_with('/').then_some(1)?,
        PathMatch::Prefix(wanted) => {
            let below = path == wanted || path.starts_with(&format!("{wanted}/"));
            below.then_some(1 + wanted.len())?
        }
    };
    let method = route.methods.iter().any(|method| method == request.method);
    if !method && !route.methods.is_empty() {
        return None;
    }
    let all = route.headers.iter().all(|wanted| {
        let mut fields = request.fields.iter();
        fields.any(|(name, value)| {
            *name == wanted.name && wanted.value.as_ref().is_none_or(|one| one == value)
        })
    });
    all.then_some([
        host_rank,
        path_rank,
        usize::from(method),
        route.headers.len(),
    ])
}

fn slow_find(config: &Config, listener: usize, request: &Request<'_>) -> Option<usize> {
    let path = String::from_utf8(normal_path(request.path.as_bytes()).into_owned()).unwrap();
    let mut best: Option<([usize; 4], usize)> = None;
    for (index, route) in config.routes.iter().enumerate() {
        if !route.listeners.is_empty() && !route.listeners.contains(&listener) {
            continue;
        }
        if let Some(rank) = rank(route, request, &path)
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, index));
        }
    }
    best.map(|(_, index)| index)
}

fn one_of<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.below(of.len())]
}

fn random_route(random: &mut Random) -> Route {
    let host = one_of(random, &["a", "b.a", "c.b.a", "*.a", "*.b.a", "*.c.b.a"]);
    let other = one_of(random, &["d", "*.d"]);
    let hosts: &[&str] = match random.below(4) {
        0 => &[],
        1 => &[host, other],
        _ => &[host],
    };
    let paths = [
        "", "/", "/x", "/x/y", "/x/y/z", "/xy", "=/x", "=/x/y", "=/x/", "~/x.*", "~/x/[yz]", "~x",
    ];
    let mut route = route(hosts, one_of(random, &paths));
    if random.below(3) == 0 {
        route.methods = vec![one_of(random, &["GET", "PUT"]).to_owned()];
    }
    for name in ["k", "l"] {
        if random.below(4) == 0 {
            let value = (random.below(2) == 0).then_some("1");
            route.headers.push(header(name, value));
        }
    }
    if random.below(4) == 0 {
        route.listeners = vec![random.below(2)];
    }
    route
}

#[test]
fn the_slow_matcher_and_the_fast_one_agree() {
    for seed in 0..150 {
        let mut random = Random::seeded(seed);
        let routes = (0..=random.below(30)).map(|_| random_route(&mut random));
        let config = configuration(routes.collect::<Vec<_>>());
        let router = Router::new(&config);
        for _ in 0..50 {
            let hosts = ["a", "b.a", "c.b.a", "d.c.b.a", "x.d", "d", "e"];
            let paths = [
                "/", "/x", "/x/", "/x/y", "/x/y/z/w", "/xyz", "/xy", "/x/../xy", "/%78/z", "*",
            ];
            let value = one_of(&mut random, &["1", "2"]);
            let both = [("k", value), ("l", "1")];
            let request = Request {
                host: one_of(&mut random, &hosts),
                path: one_of(&mut random, &paths),
                method: one_of(&mut random, &["GET", "PUT"]),
                fields: &both[random.below(2)..=random.below(2)],
            };
            let listener = random.below(2);
            assert_eq!(
                find(&router, listener, &request),
                Ok(slow_find(&config, listener, &request)),
                "seed {seed}: {} {} {} {:?}",
                request.method,
                request.host,
                request.path,
                request.fields
            );
        }
    }
}
