//! The server on `metrics.bind`: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever decides about traffic.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use hyper::{Method, Request, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::Mutex};

use super::{http, scrape};
use crate::snapshot::Daemon;

/// Serves until dropped.
pub async fn serve_metrics(listener: TcpListener, daemon: Arc<Daemon>) {
    let mut gate = http::Gate::new();
    // One scrape at a time: with many backends a page is large, and all of them would read the same counters.
    let turn = Arc::new(Mutex::new(()));
    loop {
        let place = gate.place().await;
        let Some(stream) = gate.admit(listener.accept().await).await else {
            continue;
        };
        let (daemon, turn) = (Arc::clone(&daemon), Arc::clone(&turn));
        tokio::spawn(async move {
            let answer = |request| answer(request, Arc::clone(&daemon), Arc::clone(&turn));
            http::converse(stream, answer).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    daemon: Arc<Daemon>,
    turn: Arc<Mutex<()>>,
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
            let _turn = turn.lock().await;
            // Off the control thread: with 10,000 backends a page takes long enough to make checks late.
            match tokio::task::spawn_blocking(move || scrape::page(&daemon)).await {
                Ok(page) => http::exposition(page),
                Err(_) => http::error(
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
