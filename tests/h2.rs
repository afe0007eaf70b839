//! HTTP/2 from clients: what a backend gets of it, the way back, and what clients may not do.
//!
//! Well-behaved clients are the h2 crate; the others write frames by hand (`h2/raw.rs`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken expectation is a failed test"
)]

#[path = "h2/calls.rs"]
mod calls;
#[path = "h2/floods.rs"]
mod floods;
#[path = "h2/messages.rs"]
mod messages;
#[path = "h2/raw.rs"]
mod raw;
#[path = "h2/rules.rs"]
mod rules;
#[path = "h2/secured.rs"]
mod secured;
#[path = "h2/streams.rs"]
mod streams;

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, client};
use hyper::http::{HeaderMap, Method, Request, Response};
use support::{PATIENCE, daemon::Daemon};
use tokio::{net::TcpStream, task::JoinHandle};

/// A daemon with one listener, `@web`, in front of one backend. `more` is added to the listener.
fn front(backend: SocketAddr, more: &str) -> Daemon {
    Daemon::start(&format!(
        "workers: 1\naccess_log: {{when: {{min_status: 100}}}}\nlisteners: {{web: {{bind: \"@web\", pool: app, {more}}}}}\npools: {{app: {{backends: [{backend}], health_check: none}}}}\n"
    ))
}

type Sender = client::SendRequest<Bytes>;

/// A connection, and how it ends.
async fn connect(address: SocketAddr) -> (Sender, JoinHandle<Result<(), h2::Error>>) {
    connect_with(address, &client::Builder::new()).await
}

async fn connect_with(
    address: SocketAddr,
    builder: &client::Builder,
) -> (Sender, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    (sender.ready().await.unwrap(), driver)
}

fn request(method: Method, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://test.example{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// A whole response.
struct Answer {
    head: Response<()>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name)?.to_str().ok()
    }
}

/// Reads a response to its end, opening the windows as it goes.
async fn whole(response: client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = patiently(response).await?.into_parts();
    let bytes = patiently(read(&mut body)).await?;
    let trailers = patiently(body.trailers()).await?;
    let head = Response::from_parts(head, ());
    Ok(Answer {
        head,
        body: bytes,
        trailers,
    })
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(bytes)
}

async fn patiently<F: Future>(future: F) -> F::Output {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.expect("it takes too long")
}

/// Waits for what nobody announces, while the connections of this test go on.
async fn until(condition: impl Fn() -> bool) {
    patiently(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn get(sender: &Sender, path: &str) -> Result<Answer, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, _) = sender.send_request(request(Method::GET, path, &[]), true)?;
    whole(response).await
}
