//! The server on `metrics.bind`: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever decides about traffic.

use std::sync::{
    Arc, Mutex as StdMutex, PoisonError, Weak,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use hyper::{Method, Request, StatusCode, body::Incoming};
use tokio::{net::TcpListener, sync::Mutex};

use super::{http, scrape::MetricsExporter};
use crate::{net::limits::control_connections, snapshot::Daemon};

/// Most pages in memory: while clients read that many slowly, others get the newest of them.
const MAX_PAGES: usize = 4;

/// Serves until dropped.
pub async fn serve_metrics(listener: TcpListener, daemon: Arc<Daemon>) {
    let mut places = http::ConnectionSlots::new(control_connections());
    let scrape = StdMutex::new(MetricsExporter::new(Arc::clone(&daemon)));
    let pages = Arc::new(PageCache::new(move || {
        let scrape = scrape.lock().unwrap_or_else(PoisonError::into_inner);
        Some(scrape.page().ok()?.into_bytes())
    }));
    loop {
        let accepted = listener.accept().await;
        if let Some(stream) = places.accepted(accepted).await {
            let (daemon, pages) = (Arc::clone(&daemon), Arc::clone(&pages));
            let answer = move |request| answer(request, Arc::clone(&daemon), Arc::clone(&pages));
            places.serve(stream, answer).await;
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    daemon: Arc<Daemon>,
    pages: Arc<PageCache>,
) -> http::AdminResponse {
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
        _ => match pages.get().await {
            Some(page) => http::exposition(page),
            None => http::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The metrics could not be gathered.",
            ),
        },
    }
}

/// Makes pages, one at a time: all requests that come while one is made share the next one.
struct PageCache {
    make: Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
    /// How often a page was asked for.
    asked: AtomicU64,
    /// How many wait for their turn.
    waiting: AtomicUsize,
    made: Arc<Mutex<CachedPages>>,
}

#[derive(Default)]
struct CachedPages {
    /// The last page, while somebody waits who may share it.
    last: Option<MetricsPage>,
    /// Those who asked up to this number are served by it.
    covers: u64,
    /// The pages that clients are being sent, in their order.
    sent: Vec<Weak<Vec<u8>>>,
}

/// One page; its memory is shared by all answers with it.
#[derive(Clone)]
struct MetricsPage(Arc<Vec<u8>>);

impl AsRef<[u8]> for MetricsPage {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One who waits for a turn, until dropped.
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
            asked: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            made: Arc::default(),
        }
    }

    /// A page made after the call, unless too many older ones are still being read.
    async fn get(self: Arc<Self>) -> Option<Bytes> {
        let number = self.asked.fetch_add(1, Relaxed) + 1;
        self.waiting.fetch_add(1, Relaxed);
        let waiting = WaiterGuard(&self.waiting);
        let mut made = Arc::clone(&self.made).lock_owned().await;
        drop(waiting);
        made.sent.retain(|page| page.strong_count() > 0);
        let shared = made.last.clone().filter(|_| made.covers >= number);
        let newest = || made.sent.last()?.upgrade().map(MetricsPage);
        let old = shared.or_else(|| newest().filter(|_| made.sent.len() >= MAX_PAGES));
        if self.waiting.load(Relaxed) == 0 {
            made.last = None;
        }
        if let Some(page) = old {
            return Some(Bytes::from_owner(page));
        }
        let pages = Arc::clone(&self);
        // Off the control thread: with 10,000 backends a page takes long enough to make checks late. The turn ends with the
        // page, not with a client that left before.
        let page = tokio::task::spawn_blocking(move || {
            let covers = pages.asked.load(Relaxed);
            let page = MetricsPage(Arc::new((pages.make)()?));
            made.covers = covers;
            made.sent.push(Arc::downgrade(&page.0));
            made.last = (pages.waiting.load(Relaxed) > 0).then(|| page.clone());
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
        let ask = || tokio::spawn(Arc::clone(&pages).get());
        let first = ask();
        begun.notified().await;
        let others: Vec<_> = (0..20).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        for _ in 0..2 {
            finish.send(()).unwrap();
        }
        let first = first.await.unwrap().unwrap();
        assert_eq!(&first[..], b"1");
        let mut held = vec![first];
        for other in others {
            let page = other.await.unwrap().unwrap();
            assert_eq!(&page[..], b"2", "asked before it was made");
            held.push(page);
        }
        assert!(pages.made.lock().await.last.is_none(), "no request waits");
        for number in 3..=4 {
            finish.send(()).unwrap();
            let page = ask().await.unwrap().unwrap();
            assert_eq!(page, number.to_string());
            held.push(page);
        }
        let page = ask().await.unwrap().unwrap();
        assert_eq!(&page[..], b"4", "four are being read: the newest again");
        drop((held, page));
        finish.send(()).unwrap();
        assert_eq!(&ask().await.unwrap().unwrap()[..], b"5");
        assert_eq!(count.load(Relaxed), 5);
    }
}
