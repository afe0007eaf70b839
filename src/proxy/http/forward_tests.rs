//! A rewritten request is a valid request, and means the same to the backend as to us.

use super::*;
use crate::{
    config::model::{
        Config, ListenerConfig, PathMatch, PathPiece, PathRewrite, RewriteConfig, RouteConfig,
    },
    route::Router,
};

fn parsed(text: &str) -> Option<RequestHead> {
    let mut head = RequestHead::default();
    head.bytes.extend_from_slice(text.as_bytes());
    let limits = crate::http::rules::HeadLimits {
        fields: 100,
        bytes: 65_536,
    };
    matches!(crate::http1::request::parse(&mut head, limits), Ok(true)).then_some(head)
}

fn routes(path: PathMatch, rewrite: PathRewrite) -> Config {
    let route = RouteConfig {
        path,
        rewrite: RewriteConfig {
            path: rewrite,
            host: Some("inner.example:81".to_owned()),
        },
        ..RouteConfig::named("route")
    };
    Config {
        listeners: vec![ListenerConfig::named("web")],
        routes: vec![route],
        ..Config::default()
    }
}

/// The head for the backend, of a request that a route takes and that has one meaning.
fn sent(config: &Config, router: &Router, mut head: RequestHead) -> Option<String> {
    let path = head.text(head.path);
    let found = router.find(0, b"h", path, b"GET", &|_, _| false).ok()??;
    let target = router.rewrite(found, head.text(head.target)).ok()?;
    let origin = RequestOrigin::default();
    let changes = RequestChanges {
        target: target.as_deref(),
        host: config.routes[found].rewrite.host.as_deref(),
        edits: Some(&config.routes[found].request_headers),
    };
    let mut out = Vec::new();
    let rules = &config.forwarded;
    request_head(
        &mut out,
        &mut head,
        rules,
        origin,
        "id",
        changes,
        NextHop::KeepAlive,
    );
    Some(String::from_utf8(out).unwrap())
}

#[test]
fn a_rewritten_request_reads_as_a_request_for_the_rewritten_path() {
    let group = |text: &str| vec![PathPiece::Text(text.to_owned()), PathPiece::Group(1)];
    let configs = [
        routes(PathMatch::Any, PathRewrite::Strip("/api".to_owned())),
        routes(
            PathMatch::Prefix("/api".to_owned()),
            PathRewrite::Replace("/new".to_owned()),
        ),
        routes(
            PathMatch::Regex(regex::Regex::new("/(?:api)?(.*)").unwrap()),
            PathRewrite::Expand(group("/")),
        ),
    ];
    let pieces = [
        "/", "/", "api", "/api/", "%61pi", "..", ".", "%2e", "%2f", "%0d%0a", "%20", "a", "\"",
        "|", "?", "%", "%3f", "://", "@", "\\",
    ];
    for (seed, config) in configs.iter().enumerate() {
        let router = Router::new(config);
        let mut random = Random::seeded(seed as u64);
        let mut seen = 0;
        for _ in 0..3_000 {
            let mut target = ["/", "/api", "http://h/api/", "*"][random.below(4)].to_owned();
            for _ in 0..random.below(7) {
                target.push_str(pieces[random.below(pieces.len())]);
            }
            let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n");
            let Some(out) = parsed(&request).and_then(|head| sent(config, &router, head)) else {
                continue;
            };
            seen += 1;
            let head = parsed(&out).unwrap_or_else(|| panic!("seed {seed}: {target}: {out}"));
            assert_eq!(head.len, out.len(), "seed {seed}: {target}: {out}");
            assert_eq!(head.text(head.host), b"inner.example:81", "{out}");
            assert_eq!(
                head.fields.values("x-forwarded-host", &head.bytes).next(),
                Some(&b"h"[..])
            );
            assert_eq!(head.fields.values("x-a", &head.bytes).count(), 1, "{out}");
            let sent_query = target.split_once('?').map(|(_, query)| query);
            let got = String::from_utf8_lossy(head.text(head.target));
            assert_eq!(
                got.split_once('?').map(|(_, query)| query),
                sent_query,
                "{target}"
            );
        }
        assert!(seen > 500, "seed {seed}: {seen}");
    }
}
