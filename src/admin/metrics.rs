//! The server on `metrics.bind`: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever decides about traffic.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use hyper::{Method, Request, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::Mutex};

use super::{http, scrape::Scrape};
use crate::snapshot::Daemon;

/// Serves until dropped.
pub async fn serve_metrics(listener: TcpListener, daemon: Arc<Daemon>) {
    let mut gate = http::Gate::new();
    // One scrape at a time: with many backends it takes memory, and all of them would read the same counters.
    let scrape = Arc::new(Mutex::new(Scrape::new(Arc::clone(&daemon))));
    loop {
        let place = gate.place().await;
        let Some(stream) = gate.admit(listener.accept().await).await else {
            continue;
        };
        let (daemon, scrape) = (Arc::clone(&daemon), Arc::clone(&scrape));
        tokio::spawn(async move {
            let answer = |request| answer(request, Arc::clone(&daemon), Arc::clone(&scrape));
            http::converse(stream, answer).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    daemon: Arc<Daemon>,
    scrape: Arc<Mutex<Scrape>>,
) -> http::Answer {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/livez" | "/readyz") {
        return http::error(
            StatusCode::NOT_FOUND,
            "There are /metrics, /livez and /readyz here.",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::method_not_allowed("GET, HEAD");
    }
    match path {
        "/livez" => http::text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&daemon),
        _ => {
            // The turn ends with the page, not with a client that left before.
            let scrape = scrape.lock_owned().await;
            // Off the control thread: with 10,000 backends a page takes long enough to make checks late.
            match tokio::task::spawn_blocking(move || scrape.page()).await {
                Ok(Ok(page)) => http::exposition(page),
                _ => http::error(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "The metrics could not be gathered.",
                ),
            }
        }
    }
}

fn ready(daemon: &Daemon) -> http::Answer {
    if daemon.is_ready() {
        http::text(StatusCode::OK, "ready\n")
    } else if daemon.draining.load(Relaxed) {
        http::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        http::text(StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}
