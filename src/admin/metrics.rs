//! The server on `metrics.bind`: `/metrics` for Prometheus, `/livez` and `/readyz` for load
//! balancers and orchestrators in front.
//!
//! A page for 10,000 backends costs half a second of CPU and 100 MB of memory. So pages are made
//! one at a time and shared by the clients that wait. Read next: `scrape.rs`, which makes a page.

use std::sync::{
    Arc, Mutex as StdMutex, PoisonError, Weak,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use hyper::{Method, Request, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::Mutex};

use super::{http, scrape::MetricsExporter};
use crate::{net::limits::control_connections, snapshot::Daemon};

/// Maximum number of pages in memory. While clients read this many, others get the newest one.
const MAX_PAGES: usize = 4;

/// Serves requests until it is dropped.
pub async fn serve_metrics(listener: TcpListener, daemon: Arc<Daemon>) {
    let mut slots = http::ConnectionSlots::new(control_connections());
    let scrape = StdMutex::new(MetricsExporter::new(Arc::clone(&daemon)));
    let pages = Arc::new(PageCache::new(move || {
        let scrape = scrape.lock().unwrap_or_else(PoisonError::into_inner);
        Some(scrape.page().ok()?.into_bytes())
    }));
    loop {
        let accepted = listener.accept().await;
        if let Some(stream) = slots.accepted(accepted).await {
            let (daemon, pages) = (Arc::clone(&daemon), Arc::clone(&pages));
            let service = move |request| respond(request, Arc::clone(&daemon), Arc::clone(&pages));
            slots.serve(stream, service).await;
        }
    }
}

async fn respond(
    request: Request<Incoming>,
    daemon: Arc<Daemon>,
    pages: Arc<PageCache>,
) -> http::AdminResponse {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/livez" | "/readyz") {
        return http::error(
            StatusCode::NOT_FOUND,
            "The paths are /metrics, /livez and /readyz.",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::method_not_allowed("GET, HEAD");
    }
    match path {
        "/livez" => http::text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&daemon),
        _ => match pages.get().await {
            Some(page) => http::exposition(page),
            None => http::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The metrics could not be encoded.",
            ),
        },
    }
}

/// Pages of metrics, made one at a time.
///
/// All requests that arrive while a page is being made share the next one. So every client gets a
/// page that was made after its request, and the cost does not grow with the number of clients.
struct PageCache {
    make: Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
    /// Number of requests so far.
    requested: AtomicU64,
    /// Number of requests that wait for the lock of `cached`.
    waiting: AtomicUsize,
    cached: Arc<Mutex<CachedPages>>,
}

#[derive(Default)]
struct CachedPages {
    /// Last page, kept only while a request waits that may share it.
    last: Option<MetricsPage>,
    /// Number of the last request that may get this page.
    covers: u64,
    /// Pages that clients are still reading, the oldest first.
    sent: Vec<Weak<Vec<u8>>>,
}

/// One page. All responses with it share its memory.
#[derive(Clone)]
struct MetricsPage(Arc<Vec<u8>>);

impl AsRef<[u8]> for MetricsPage {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Counts a request in `waiting` until it is dropped, also if the client disconnects.
struct WaiterGuard<'a>(&'a AtomicUsize);

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl PageCache {
    fn new(make: impl Fn() -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self {
            make: Box::new(make),
            requested: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            cached: Arc::default(),
        }
    }

    /// Returns a page that was made after the call, or an older one if too many are being read.
    ///
    /// `None` if the page cannot be encoded.
    async fn get(self: Arc<Self>) -> Option<Bytes> {
        // Wait for the lock: only one request makes a page.
        let number = self.requested.fetch_add(1, Relaxed) + 1;
        self.waiting.fetch_add(1, Relaxed);
        let waiting = WaiterGuard(&self.waiting);
        let mut cached = Arc::clone(&self.cached).lock_owned().await;
        drop(waiting);
        // Use an existing page if one is recent enough, or if there are too many.
        cached.sent.retain(|page| page.strong_count() > 0);
        let shared = cached.last.clone().filter(|_| cached.covers >= number);
        let newest = || cached.sent.last()?.upgrade().map(MetricsPage);
        let existing = shared.or_else(|| newest().filter(|_| cached.sent.len() >= MAX_PAGES));
        if self.waiting.load(Relaxed) == 0 {
            cached.last = None;
        }
        if let Some(page) = existing {
            return Some(Bytes::from_owner(page));
        }
        let pages = Arc::clone(&self);
        // On another thread: a page for 10,000 backends would delay health checks. The task owns
        // the lock, so a client that disconnects does not start a second page beside this one.
        let page = tokio::task::spawn_blocking(move || {
            let covers = pages.requested.load(Relaxed);
            let page = MetricsPage(Arc::new((pages.make)()?));
            cached.covers = covers;
            cached.sent.push(Arc::downgrade(&page.0));
            cached.last = (pages.waiting.load(Relaxed) > 0).then(|| page.clone());
            Some(page)
        });
        page.await.ok().flatten().map(Bytes::from_owner)
    }
}

fn ready(daemon: &Daemon) -> http::AdminResponse {
    if daemon.is_ready() {
        http::text(StatusCode::OK, "ready\n")
    } else if daemon.draining.load(Relaxed) {
        http::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        http::text(StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn pages_are_fresh_made_one_at_a_time_shared_by_those_who_wait_and_few_in_memory() {
        let (finish, finishes) = channel::<()>();
        let finishes = StdMutex::new(finishes);
        let begun = Arc::new(tokio::sync::Notify::new());
        let begins = Arc::clone(&begun);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let pages = Arc::new(PageCache::new(move || {
            begins.notify_one();
            finishes.lock().unwrap().recv().ok()?;
            let number = counted.fetch_add(1, Relaxed) + 1;
            Some(number.to_string().into_bytes())
        }));
        let get_page = || tokio::spawn(Arc::clone(&pages).get());
        let first = get_page();
        begun.notified().await;
        let others: Vec<_> = (0..20).map(|_| get_page()).collect();
        tokio::task::yield_now().await;
        for _ in 0..2 {
            finish.send(()).unwrap();
        }
        let first = first.await.unwrap().unwrap();
        assert_eq!(&first[..], b"1");
        let mut held = vec![first];
        for other in others {
            let page = other.await.unwrap().unwrap();
            assert_eq!(&page[..], b"2", "requested before it was made");
            held.push(page);
        }
        assert!(pages.cached.lock().await.last.is_none(), "no request waits");
        for number in 3..=4 {
            finish.send(()).unwrap();
            let page = get_page().await.unwrap().unwrap();
            assert_eq!(page, number.to_string());
            held.push(page);
        }
        let page = get_page().await.unwrap().unwrap();
        assert_eq!(&page[..], b"4", "four are being read: the newest again");
        drop((held, page));
        finish.send(()).unwrap();
        assert_eq!(&get_page().await.unwrap().unwrap()[..], b"5");
        assert_eq!(count.load(Relaxed), 5);
    }
}
