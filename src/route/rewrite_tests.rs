//! The promises of rewriting: tables, and random paths against the normal form.

use std::path::Path;

use regex::Regex;

use super::{
    Router, normal_path,
    path::{self, EncodedSlash},
};
use crate::{
    base::rng::Random,
    config::model::{
        Config, ListenerConfig, ListenerProtocol, PathMatch, PathPiece, PathRewrite, RewriteConfig,
        RouteConfig,
    },
    config::{NoFiles, parse},
    reason::Reason,
};

const REFUSED_TARGET: Result<Option<&str>, Reason> = Err(Reason::RequestError);

fn route(path: PathMatch, rewrite: PathRewrite) -> RouteConfig {
    RouteConfig {
        path,
        rewrite: RewriteConfig {
            path: rewrite,
            host: None,
        },
        ..RouteConfig::named("route")
    }
}

fn router(path: PathMatch, rewrite: PathRewrite) -> Router {
    let listener = ListenerConfig {
        protocol: ListenerProtocol::Http,
        ..ListenerConfig::named("web")
    };
    Router::new(&Config {
        listeners: vec![listener],
        routes: vec![route(path, rewrite)],
        ..Config::default()
    })
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn expression(regex: &str) -> PathMatch {
    PathMatch::Regex(Regex::new(regex).unwrap())
}

fn strip(path: &str) -> PathRewrite {
    PathRewrite::Strip(path.to_owned())
}

fn replace(path: &str) -> PathRewrite {
    PathRewrite::Replace(path.to_owned())
}

/// `/a/$1`: digits are groups.
fn pieces(text: &str) -> PathRewrite {
    let mut parts = text.split('$');
    let mut pieces = vec![PathPiece::Text(parts.next().unwrap().to_owned())];
    for part in parts {
        let (group, rest) = part.split_at(1);
        pieces.push(PathPiece::Group(group.parse().unwrap()));
        pieces.push(PathPiece::Text(rest.to_owned()));
    }
    PathRewrite::Expand(pieces)
}

/// Looks `target` up and rewrites it. `None` if it is forwarded unchanged.
fn sent(router: &Router, target: &str) -> Result<Option<String>, Reason> {
    let found = router.find(0, b"h", target.as_bytes(), b"GET", &|_, _| false)?;
    let Some(route) = found else {
        return Ok(None);
    };
    let target = router.rewrite(route, target.as_bytes())?;
    Ok(target.map(|target| String::from_utf8(target).unwrap()))
}

fn check(router: &Router, table: &[(&str, Result<Option<&str>, Reason>)]) {
    for (target, expected) in table {
        let got = sent(router, target);
        assert_eq!(
            got.as_ref().map(Option::as_deref),
            expected.as_ref().copied(),
            "{target}"
        );
    }
}

#[test]
fn a_prefix_is_removed_by_whole_segments_and_the_other_bytes_are_unchanged() {
    let table = [
        ("/api", Ok(Some("/"))),
        ("/api/", Ok(Some("/"))),
        ("/api?q=/api", Ok(Some("/?q=/api"))),
        ("/api/x?q", Ok(Some("/x?q"))),
        ("/api/x/", Ok(Some("/x/"))),
        ("/api/api/x", Ok(Some("/api/x"))),
        ("/api/x?q=%00/../%2f?#", Ok(Some("/x?q=%00/../%2f?#"))),
        (
            "/api/a%20b/caf%c3%a9%3F;v=1",
            Ok(Some("/a%20b/caf%c3%a9%3F;v=1")),
        ),
        ("/api/%41/a,b%2Cc/\"|", Ok(Some("/%41/a,b%2Cc/\"|"))),
        ("/api/%252e%252e/x", Ok(Some("/%252e%252e/x"))),
        ("/api/...", Ok(Some("/..."))),
        ("/%61pi/x", Ok(Some("/x"))),
        ("/%61%70%69", Ok(Some("/"))),
        ("/apix", Ok(None)),
        ("/apix//y", Ok(None)),
        ("/API/x", Ok(None)),
        ("/", Ok(None)),
        ("/x/api", Ok(None)),
        ("//x/./y", Ok(None)),
        ("*", Ok(None)),
    ];
    check(&router(PathMatch::Any, strip("/api")), &table);
    check(&router(prefix("/api"), strip("/api")), &table);
    check(&router(PathMatch::Any, strip("/%61pi/")), &table);
}

#[test]
fn a_path_that_is_not_plain_is_sent_in_its_normal_form() {
    let table = [
        ("//api/x", Ok(Some("/x"))),
        ("/api//evil.example/x", Ok(Some("/evil.example/x"))),
        ("/api//", Ok(Some("/"))),
        ("/api/./x", Ok(Some("/x"))),
        ("/api/x/../y?q", Ok(Some("/y?q"))),
        ("/api/%2e%2E/api/x", Ok(Some("/x"))),
        ("/x/../api/y", Ok(Some("/y"))),
        ("/x/%2e./api/y", Ok(Some("/y"))),
        ("/api/x/..", Ok(Some("/"))),
        ("/api/.", Ok(Some("/"))),
        ("/api//a%20b%7c", Ok(Some("/a%20b%7C"))),
        ("/api//%c3%a9%ff%0d%0a", Ok(Some("/%C3%A9%FF%0D%0A"))),
        ("/api//%2541", Ok(Some("/%2541"))),
        ("/api/100%", Ok(Some("/100%25"))),
        ("/api/%zz%2", Ok(Some("/%25zz%252"))),
        ("/api/../x", Ok(None)),
        ("/api/%2e%2e/x", Ok(None)),
        ("/api/..", Ok(None)),
    ];
    check(&router(PathMatch::Any, strip("/api")), &table);
    check(&router(prefix("/api"), strip("/api")), &table);
}

#[test]
fn an_encoded_slash_is_kept_if_both_readings_agree_and_refused_if_not() {
    let table = [
        ("/api/group%2Fname", Ok(Some("/group%2Fname"))),
        ("/api/group%2fname/x", Ok(Some("/group%2fname/x"))),
        ("/api//group%2fname", Ok(Some("/group%2Fname"))),
        ("/api/x%2f", Ok(Some("/x%2f"))),
        ("/api%2fx", REFUSED_TARGET),
        ("/api%2f", REFUSED_TARGET),
        ("/%2fapi/x", REFUSED_TARGET),
        ("/api/%2fevil.example", REFUSED_TARGET),
        ("/api/x%2f..%2fy", REFUSED_TARGET),
        ("/api/x%2f%2e%2e/y", REFUSED_TARGET),
        ("/api/x%2f/y", REFUSED_TARGET),
        ("/api/a%2fb/../x", REFUSED_TARGET),
        ("/x%2f../api/y", REFUSED_TARGET),
        ("/x%2f..%2fapi/y", REFUSED_TARGET),
        ("/api/%00", REFUSED_TARGET),
        ("/other/group%2Fname", Ok(None)),
        ("/other/x%2f..%2fy", Ok(None)),
        ("/apix%2fy", Ok(None)),
        ("/api%2f../x", Ok(None)),
    ];
    check(&router(PathMatch::Any, strip("/api")), &table);
    // The same with a route for the prefix only: the two readings find different routes.
    for (target, expected) in table {
        if expected == REFUSED_TARGET {
            let router = router(prefix("/api"), strip("/api"));
            assert_eq!(sent(&router, target), Err(Reason::RequestError), "{target}");
        }
    }
}

#[test]
fn a_path_replaces_what_the_route_has_matched() {
    for with in ["/new/v2", "/new/v2/"] {
        check(
            &router(prefix("/old/v1"), replace(with)),
            &[
                ("/old/v1", Ok(Some("/new/v2"))),
                ("/old/v1/", Ok(Some("/new/v2/"))),
                ("/old/v1/x%20y?q", Ok(Some("/new/v2/x%20y?q"))),
                ("//old/./v1/x", Ok(Some("/new/v2/x"))),
                ("/old/v1/../x", Ok(None)),
                ("/old/v1/x/../../../v1", Ok(None)),
                ("/old/v1/a%2Fb", Ok(Some("/new/v2/a%2Fb"))),
                ("/old/v1/..%2Fv1/x", REFUSED_TARGET),
            ],
        );
    }
    check(
        &router(prefix("/old"), replace("/")),
        &[("/old", Ok(Some("/"))), ("/old/x", Ok(Some("/x")))],
    );
    for all in [PathMatch::Any, prefix("/")] {
        check(
            &router(all, replace("/new")),
            &[
                ("/", Ok(Some("/new/"))),
                ("/x?q", Ok(Some("/new/x?q"))),
                ("/../x", Ok(Some("/new/x"))),
                ("//x", Ok(Some("/new/x"))),
                ("*", Ok(None)),
            ],
        );
    }
    check(
        &router(PathMatch::Exact("/status".to_owned()), replace("/health/")),
        &[
            ("/status", Ok(Some("/health/"))),
            ("/x/../%73tatus?q", Ok(Some("/health/?q"))),
            ("/status/", Ok(None)),
        ],
    );
}

#[test]
fn groups_of_an_expression_are_forwarded_unchanged() {
    check(
        &router(
            expression(r"/v(\d+)/(?:user|(item))/(.*)"),
            pieces("/$3/v$1$2"),
        ),
        &[
            ("/v1/user/a%20b,%2C?q", Ok(Some("/a%20b,%2C/v1?q"))),
            ("/v2/item/x", Ok(Some("/x/v2item"))),
            ("/v2/item/", Ok(Some("/v2item"))),
            (
                "/v2/user/caf%c3%a9/%ff%FE",
                Ok(Some("/caf%c3%a9/%ff%FE/v2")),
            ),
            ("/v2/user/%F0%9f%98%80", Ok(Some("/%F0%9f%98%80/v2"))),
            ("/v2/user/a%2Fb", Ok(Some("/a%2Fb/v2"))),
            ("/v2/user//a/./b", Ok(Some("/a/b/v2"))),
            ("/v2/user/%", Ok(Some("/%25/v2"))),
            ("/v2/user/%2fa", REFUSED_TARGET),
            ("/v2/user/a%2f..%2fb", REFUSED_TARGET),
            ("/v2/other/x", Ok(None)),
        ],
    );
    check(
        &router(expression("/api(/.*)?"), pieces("/$1")),
        &[
            ("/api", Ok(Some("/"))),
            ("/api/x", Ok(Some("/x"))),
            ("/api//x", Ok(Some("/x"))),
            ("/api%2fx", REFUSED_TARGET),
        ],
    );
    check(
        &router(expression("/(.*)"), pieces("$0")),
        &[("/a/b?c", Ok(Some("/a/b?c"))), ("/", Ok(Some("/")))],
    );
}

#[test]
fn groups_cannot_make_dots_or_escapes_of_their_own() {
    check(
        &router(expression("/(.)/(.*)"), pieces("/in/$1$2")),
        &[
            ("/x/y", Ok(Some("/in/xy"))),
            ("/%/2e", Ok(Some("/in/%252e"))),
            ("/%25/2e", Ok(Some("/in/%252e"))),
        ],
    );
    check(
        &router(expression("/a(\\.*)x"), pieces("/in/$1/y")),
        &[
            ("/a..x", REFUSED_TARGET),
            ("/a.x", REFUSED_TARGET),
            ("/a%2e%2ex", REFUSED_TARGET),
            ("/a...x", Ok(Some("/in/.../y"))),
            ("/ax", Ok(Some("/in/y"))),
        ],
    );
}

#[test]
fn a_target_that_grows_without_end_is_refused() {
    let many = pieces(&"/$1".repeat(200));
    let router = router(expression("/(.*)"), many);
    let long = format!("/{}", "a".repeat(400));
    assert_eq!(sent(&router, &long), Err(Reason::RequestUriTooLong));
    assert!(sent(&router, "/a").unwrap().is_some());
}

/// The contract: the segments of `path` after `prefix`, behind those of `with`.
fn model(path: &str, prefix: &str, with: &str) -> Option<String> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    let path = format!("{}{rest}", with.trim_end_matches('/'));
    Some(if path.is_empty() {
        "/".to_owned()
    } else {
        path
    })
}

fn random_target(random: &mut Random, slashes: bool) -> String {
    let pieces = [
        "/", "/", "/", "/", "a", "b", "api", "%61", "%61pi", "/api", "/api/", ".", "..", "%2e",
        "/..", "%", "%4", "%25", "%252f", "%c3%a9", "%ff", "+", "|", "%0d", "%2f", "%2F",
    ];
    let known = if slashes {
        pieces.len()
    } else {
        pieces.len() - 2
    };
    let mut target = "/".to_owned();
    for _ in 0..random.below(9) {
        target.push_str(pieces[random.below(known)]);
    }
    if random.below(3) == 0 {
        target.push_str("?x=/../%2f");
    }
    target
}

fn assert_sound(target: &str, new: &str) {
    assert!(
        new.starts_with('/') && !new.starts_with("//"),
        "{target}: {new}"
    );
    assert_eq!(
        new.split_once('?').map(|split| split.1),
        target.split_once('?').map(|split| split.1)
    );
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    assert!(new.bytes().all(fits), "{target}: {new}");
    // In both readings of `%2F` there is no empty or dot segment, so no backend resolves any.
    for slash in [EncodedSlash::Separates, EncodedSlash::Marked] {
        let path = path::without_query(new.as_bytes());
        let decoded = path::decoded(path, slash);
        assert_eq!(path::normal(path, slash), decoded, "{target}: {new}");
    }
}

#[test]
fn the_normal_form_of_a_rewritten_path_is_the_rewritten_normal_form() {
    let ways = [
        ("/", "/api", ""),
        ("/api", "/api", ""),
        ("/api", "/api", "/new/v2"),
        ("/a", "/a", "/api"),
        ("/", "/", "/new"),
    ];
    for (seed, (matched, taken, with)) in ways.into_iter().enumerate() {
        let rewrite = if with.is_empty() {
            strip(taken)
        } else {
            replace(with)
        };
        let router = router(prefix(matched), rewrite);
        let mut random = Random::seeded(seed as u64);
        let (mut rewritten, mut refused) = (0, 0);
        for round in 0..5_000 {
            let target = random_target(&mut random, round % 2 == 0);
            let normal = normal_path(target.as_bytes());
            let normal = String::from_utf8_lossy(&normal);
            let expected = model(&normal, taken, with);
            match sent(&router, &target) {
                Ok(Some(new)) => {
                    rewritten += 1;
                    let got = normal_path(new.as_bytes());
                    let got = String::from_utf8_lossy(&got);
                    assert_eq!(
                        Some(&*got),
                        expected.as_deref(),
                        "seed {seed}: {target} → {new}"
                    );
                    assert_sound(&target, &new);
                }
                Ok(None) => assert_eq!(expected, None, "seed {seed}: {target}"),
                Err(_) => {
                    refused += 1;
                    let encoded = target.to_lowercase().contains("%2f");
                    assert!(encoded, "seed {seed}: {target} has one reading only");
                }
            }
        }
        assert!(
            rewritten > 100 && refused > 10,
            "seed {seed}: {rewritten} {refused}"
        );
    }
}

#[test]
fn expressions_rewrite_the_normal_form_too() {
    let ways = [
        ("/(.*)", "/$1"),
        ("/api(/.*)?", "/in/$1"),
        ("/([^/]*)/?(.*)", "/$2/x/$1"),
        ("/(a|b|api)*(.*)", "/$1$2"),
    ];
    for (seed, (regex, with)) in ways.into_iter().enumerate() {
        let router = router(expression(regex), pieces(with));
        let whole = Regex::new(&format!(r"\A(?:{regex})\z")).unwrap();
        let mut random = Random::seeded(100 + seed as u64);
        let mut rewritten = 0;
        for round in 0..5_000 {
            let target = random_target(&mut random, round % 2 == 0);
            let Ok(Some(new)) = sent(&router, &target) else {
                continue;
            };
            rewritten += 1;
            assert_sound(&target, &new);
            let normal = normal_path(target.as_bytes());
            let normal = String::from_utf8_lossy(&normal);
            let groups = whole.captures(&normal).unwrap();
            let mut expected = String::new();
            groups.expand(&with.replace("$1", "${1}"), &mut expected);
            let got = normal_path(new.as_bytes());
            assert_eq!(
                String::from_utf8_lossy(&got),
                expected.replace("//", "/"),
                "seed {seed}: {target} → {new}"
            );
        }
        assert!(rewritten > 100, "seed {seed}: {rewritten}");
    }
}

#[test]
fn every_path_that_a_file_may_write_gives_plain_targets() {
    let pieces = [
        "/", "/", "a", ".", "..", "%2e", "%2f", "%41", "%", "%4", "$1", "$2", "${n}", "$$", "$",
        " ", "?", "#", "é", "|", "\\", ";v=1",
    ];
    let matches = [
        "path: /m",
        "path_exact: /m",
        "path_regex: '/m/?(.?)(?<n>.*)'",
        "path: /",
    ];
    let mut random = Random::seeded(77);
    let (mut taken, mut rewritten) = (0, 0);
    for _ in 0..1_500 {
        let mut path = "/".to_owned();
        for _ in 0..random.below(5) {
            path.push_str(pieces[random.below(pieces.len())]);
        }
        let key = ["path", "strip_prefix"][random.below(2)];
        let matched = matches[random.below(matches.len())];
        let text = format!(
            "listeners: {{web: {{bind: ':80', pool: a}}}}\nroutes: [{{{matched}, pool: a, rewrite: {{{key}: '{path}'}}}}]\npools: {{a: {{backends: [h:1]}}}}\n"
        );
        let Ok(loaded) = parse(Path::new("test.yaml"), &text, &NoFiles) else {
            continue;
        };
        taken += 1;
        let router = Router::new(&loaded.config);
        for _ in 0..8 {
            let mut target = ["/m", "/m/", ""][random.below(3)].to_owned();
            target.push_str(&random_target(&mut random, true));
            if let Ok(Some(new)) = sent(&router, &target) {
                rewritten += 1;
                assert_sound(&target, &new);
            }
        }
    }
    assert!(taken > 150 && rewritten > 150, "{taken} {rewritten}");
}

#[test]
fn a_route_without_a_rewrite_leaves_every_target_alone() {
    let router = router(PathMatch::Any, PathRewrite::Keep);
    for target in ["/", "//a/../%2f..", "*", "/100%"] {
        assert_eq!(router.rewrite(0, target.as_bytes()), Ok(None));
    }
    assert_eq!(router.rewrite(7, b"/"), Ok(None));
}
