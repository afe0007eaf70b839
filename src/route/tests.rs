//! The promises of routing, and a slow matcher to compare the fast one with.

use regex::Regex;

use super::{table::prefixes, *};
use crate::{
    base::rng::Random,
    config::model::{HeaderMatch, HostMatch, PathMatch, RedirectConfig},
};

fn listener(protocol: ListenerProtocol) -> ListenerConfig {
    ListenerConfig {
        protocol,
        ..ListenerConfig::named("web")
    }
}

/// A route for these hosts (`*.a` is a suffix) and this path (`=` exact, `~` expression, empty any,
/// else prefix).
fn route(hosts: &[&str], path: &str) -> RouteConfig {
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
    RouteConfig {
        hosts: hosts.collect(),
        path,
        ..RouteConfig::named("route")
    }
}

fn header(name: &str, value: Option<&str>) -> HeaderMatch {
    HeaderMatch {
        name: name.to_owned(),
        value: value.map(str::to_owned),
    }
}

fn configuration(routes: Vec<RouteConfig>) -> Config {
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

struct RouteRequest<'a> {
    host: &'a str,
    path: &'a str,
    method: &'a str,
    fields: &'a [(&'a str, &'a str)],
}

fn has(fields: &[(&str, &str)], name: &str, test: &dyn Fn(&[u8]) -> bool) -> bool {
    let mut fields = fields.iter();
    fields.any(|(field, value)| *field == name && test(value.as_bytes()))
}

fn find(
    router: &Router,
    listener: usize,
    request: &RouteRequest<'_>,
) -> Result<Option<usize>, Reason> {
    router.find(
        listener,
        request.host.as_bytes(),
        request.path.as_bytes(),
        request.method.as_bytes(),
        &|name, test| has(request.fields, name, test),
    )
}

fn get(router: &Router, host: &str, path: &str) -> Result<Option<usize>, Reason> {
    let request = RouteRequest {
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
        let request = RouteRequest {
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
    let request = RouteRequest {
        host: "h",
        path: "/a",
        method: "GET",
        fields: &[],
    };
    let found = [0, 1, 2, 9].map(|listener| find(&router, listener, &request));
    assert_eq!(found, [Ok(Some(0)), Ok(Some(1)), Ok(None), Ok(None)]);
}

#[test]
fn routes_that_are_first_go_before_all_others_in_the_order_of_the_file() {
    let mut routes = vec![
        route(&["a.b"], "=/x"),
        route(&[], "/"),
        route(&["*.b"], "/x"),
        route(&[], "~/x.*"),
        route(&[], "=/y"),
    ];
    routes[0].listeners = vec![0];
    (routes[2].first, routes[3].first) = (true, true);
    (routes[4].first, routes[4].methods) = (true, vec!["PUT".to_owned()]);
    let router = Router::new(&configuration(routes));
    for (host, path, expected) in [
        ("a.b", "/x", 2),
        ("a.b", "/x/", 2),
        ("a.b", "/xy", 3),
        ("b", "/x", 3),
        ("b", "/y", 1),
    ] {
        assert_eq!(get(&router, host, path), Ok(Some(expected)), "{host}{path}");
    }
}

#[test]
fn a_route_that_names_the_listener_goes_before_those_of_all_listeners() {
    let mut routes = vec![
        route(&["a"], "=/x"),
        route(&[], "/x"),
        route(&["a"], "/x/y"),
    ];
    (routes[1].listeners, routes[2].listeners) = (vec![0], vec![1, 0]);
    let router = Router::new(&configuration(routes));
    for (path, expected) in [("/x", 1), ("/x/y", 2), ("/x/z", 1), ("/", usize::MAX)] {
        let expected = Some(expected).filter(|route| *route != usize::MAX);
        assert_eq!(get(&router, "a", path), Ok(expected), "{path}");
    }
}

#[test]
fn the_redirect_of_a_listener_leaves_the_routes_that_name_it_and_those_that_are_first() {
    let mut routes = vec![
        route(&["a"], ""),
        route(&[], "/named"),
        route(&[], "/first"),
    ];
    routes[1].listeners = vec![0];
    routes[2].first = true;
    let mut config = configuration(routes);
    config.listeners[0].redirect = Some(RedirectConfig::Https {
        port: 443,
        status: 308,
    });
    let router = Router::new(&config);
    for (path, on_redirecting, on_other) in [
        ("/", None, Some(0)),
        ("/named", Some(1), Some(0)),
        ("/first", Some(2), Some(2)),
    ] {
        let found = [0, 1].map(|listener| {
            let request = RouteRequest {
                host: "a",
                path,
                method: "GET",
                fields: &[],
            };
            find(&router, listener, &request)
        });
        assert_eq!(found, [Ok(on_redirecting), Ok(on_other)], "{path}");
    }
}

#[test]
fn of_regular_expressions_the_first_in_the_file_is_taken() {
    let mut routes = vec![
        route(&[], "~/x/.*"),
        route(&[], "~/x/[a-z]"),
        route(&[], "~/x/.*"),
    ];
    routes[1].methods = vec!["GET".to_owned()];
    routes[2].headers = vec![header("k", None)];
    let router = Router::new(&configuration(routes));
    assert_eq!(get(&router, "h", "/x/a"), Ok(Some(0)));
    let request = RouteRequest {
        host: "h",
        path: "/x/a",
        method: "GET",
        fields: &[("k", "1")],
    };
    let same_expression = find(&router, 0, &request);
    assert_eq!(same_expression, Ok(Some(2)), "more headers");
}

#[test]
fn no_byte_hides_a_path_from_an_expression() {
    for expression in ["~/admin/.*", "~(?mi)^/ADMIN/.*$"] {
        let router = router(&[(&[], ""), (&[], expression)]);
        for byte in 0..=u8::MAX {
            for path in [
                format!("/admin/%{byte:02x}"),
                format!("/admin/%{byte:02X}secret"),
                format!("/admin/secret%{byte:02x}"),
                format!("/admin/se%{byte:02x}%{byte:02x}cret"),
                format!("/admin/secret%0a%{byte:02x}x"),
            ] {
                let found = get(&router, "h", &path);
                let refused = byte == 0 && found == Err(Reason::RequestError);
                assert!(
                    found == Ok(Some(1)) || refused,
                    "{expression} {path} {found:?}"
                );
            }
        }
        for path in [
            "/admin/%e2%80%a8x",
            "/admin/%c2%85",
            "/admin/%0d%0a",
            "/admin/%f0%9f",
        ] {
            assert_eq!(get(&router, "h", path), Ok(Some(1)), "{expression} {path}");
        }
    }
}

#[test]
fn a_header_of_one_hop_matches_by_its_words_without_case() {
    for (name, wanted, sent, holds) in [
        ("upgrade", "websocket", "WebSocket", true),
        ("upgrade", "websocket", "foo/1, websocket", true),
        ("upgrade", "websocket", "websockets", false),
        ("connection", "Upgrade", "keep-alive, upgrade", true),
        ("te", "trailers", "trailers", true),
        ("x-a", "b", "B", false),
        ("x-a", "b", "a, b", false),
        ("x-a", "a, b", "a, b", true),
    ] {
        let found = header(name, Some(wanted)).holds(sent.as_bytes());
        assert_eq!(found, holds, "{name}: {wanted} in {sent}");
    }
    assert!(header("upgrade", None).holds(b""));
}

#[test]
fn a_path_of_thousands_of_segments_is_cut_to_the_deepest_prefix() {
    let path = "/a".repeat(10_000);
    assert_eq!(prefixes(path.as_bytes(), 3).count(), 4);
    assert_eq!(get(&router(&[(&[], "/a/a")]), "h", &path), Ok(Some(0)));
}

/// The rank of a route that matches; the greatest wins. Written as the contract says it, and slow.
fn rank(
    config: &Config,
    index: usize,
    listener: usize,
    request: &RouteRequest<'_>,
    path: &str,
) -> Option<[usize; 7]> {
    let route = &config.routes[index];
    let is_named = route.listeners.contains(&listener);
    if !is_named && !route.listeners.is_empty() {
        return None;
    }
    if !route.first && !is_named && config.listeners[listener].redirect.is_some() {
        return None;
    }
    let (host_rank, host) = host_rank(route, request.host)?;
    let path_rank = path_rank(config, index, listener, host, path)?;
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
    if !all {
        return None;
    }
    let before = config.routes.len() - index;
    if route.first {
        return Some([1, 0, 0, 0, 0, 0, before]);
    }
    Some([
        0,
        usize::from(is_named),
        host_rank,
        path_rank,
        usize::from(method),
        route.headers.len(),
        before,
    ])
}

/// The rank of the best host that matches, and that host; `None` if none does.
fn host_rank<'a>(route: &'a RouteConfig, host: &str) -> Option<(usize, Option<&'a HostMatch>)> {
    if route.hosts.is_empty() {
        return Some((0, None));
    }
    let ranks = route.hosts.iter().filter_map(|wanted| match wanted {
        HostMatch::Exact(name) => (name == host).then_some((usize::MAX, Some(wanted))),
        HostMatch::Suffix(name) => host
            .ends_with(&format!(".{name}"))
            .then_some((name.len(), Some(wanted))),
    });
    ranks.max_by_key(|(rank, _)| *rank)
}

/// The rank of the path of a route that matches by `host`; `None` if the path does not match.
fn path_rank(
    config: &Config,
    index: usize,
    listener: usize,
    host: Option<&HostMatch>,
    path: &str,
) -> Option<usize> {
    let route = &config.routes[index];
    match &route.path {
        PathMatch::Any => Some(0),
        PathMatch::Exact(wanted) => (wanted == path).then_some(usize::MAX),
        PathMatch::Regex(regex) => {
            // The same expression again, of the same host and listener, ranks as the first one.
            let place = config.routes.iter().position(|other| {
                other.path == route.path
                    && other.first == route.first
                    && other.listeners.is_empty() == route.listeners.is_empty()
                    && (other.listeners.is_empty() || other.listeners.contains(&listener))
                    && match host {
                        None => other.hosts.is_empty(),
                        Some(host) => other.hosts.contains(host),
                    }
            });
            let found = regex.find(path);
            let is_whole = found.is_some_and(|found| found.len() == path.len());
            is_whole.then_some(usize::MAX - 1 - place.unwrap())
        }
        PathMatch::Prefix(wanted) if wanted == "/" => path.starts_with('/').then_some(1),
        PathMatch::Prefix(wanted) => {
            let below = path == wanted || path.starts_with(&format!("{wanted}/"));
            below.then_some(1 + wanted.len())
        }
    }
}

fn slow_find(config: &Config, listener: usize, request: &RouteRequest<'_>) -> Option<usize> {
    let path = String::from_utf8(normal_path(request.path.as_bytes()).into_owned()).unwrap();
    (0..config.routes.len())
        .filter_map(|index| Some((rank(config, index, listener, request, &path)?, index)))
        .max()
        .map(|(_, index)| index)
}

fn one_of<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.below(of.len())]
}

fn random_route(random: &mut Random) -> RouteConfig {
    let host = one_of(random, &["a", "b.a", "c.b.a", "*.a", "*.b.a", "*.c.b.a"]);
    let other = one_of(random, &["d", "*.d"]);
    let hosts: &[&str] = match random.below(4) {
        0 => &[],
        1 => &[host, other],
        _ => &[host],
    };
    let paths = [
        "", "/", "/x", "/x/y", "/x/y/z", "/xy", "=/x", "=/x/y", "=/x/", "~/x.*", "~/x/[yz]", "~x",
        "~/x/.*",
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
    route.first = random.below(8) == 0;
    route
}

#[test]
fn the_slow_matcher_and_the_fast_one_agree() {
    for seed in 0..100 {
        let mut random = Random::seeded(seed);
        let routes = (0..=random.below(30)).map(|_| random_route(&mut random));
        let mut config = configuration(routes.collect::<Vec<_>>());
        if random.below(2) == 0 {
            config.listeners[1].redirect = Some(RedirectConfig::Https {
                port: 443,
                status: 308,
            });
        }
        let router = Router::new(&config);
        for _ in 0..50 {
            let hosts = ["a", "b.a", "c.b.a", "d.c.b.a", "x.d", "d", "e"];
            let paths = [
                "/", "/x", "/x/", "/x/y", "/x/y/z/w", "/xyz", "/xy", "/x/../xy", "/%78/z", "*",
            ];
            let value = one_of(&mut random, &["1", "2"]);
            let both = [("k", value), ("l", "1")];
            let request = RouteRequest {
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
