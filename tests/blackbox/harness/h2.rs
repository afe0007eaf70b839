//! Well-behaved peers that speak HTTP/2, by the h2 crate: clients, and a backend whose script is a
//! function.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, client, server};
use hyper::http::{HeaderMap, Method, Request, Response, request::Parts};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{PATIENCE, peer::Recorder};

/// Handle that starts requests on a connection.
pub type RequestSender = client::SendRequest<Bytes>;

/// A connection, and how it ends.
pub async fn connect(address: SocketAddr) -> (RequestSender, JoinHandle<Result<(), h2::Error>>) {
    connect_with(address, &client::Builder::new()).await
}

pub async fn connect_with(
    address: SocketAddr,
    builder: &client::Builder,
) -> (RequestSender, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    // As browsers and gRPC clients do: with Nagle small frames wait for a delayed ACK, 40 ms each.
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    (sender.ready().await.unwrap(), driver)
}

pub fn request(method: Method, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://test.example{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// A whole response.
pub struct H2Response {
    pub head: Response<()>,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl H2Response {
    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name)?.to_str().ok()
    }
}

/// Reads a response to its end, opening the windows as it goes.
pub async fn whole(response: client::ResponseFuture) -> Result<H2Response, h2::Error> {
    let (head, mut body) = patiently(response).await?.into_parts();
    let bytes = patiently(read(&mut body)).await?;
    let trailers = patiently(body.trailers()).await?;
    let head = Response::from_parts(head, ());
    Ok(H2Response {
        head,
        body: bytes,
        trailers,
    })
}

pub async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(bytes)
}

/// Sends `bytes` as far as the windows let it, and then the end.
pub async fn send(body: &mut h2::SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let room = patiently(room).await.unwrap().unwrap();
        let part = bytes.split_to(room.min(bytes.len()));
        body.send_data(part, bytes.is_empty()).unwrap();
    }
}

/// `length` bytes that differ from place to place.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|place| (place.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

pub async fn patiently<F: Future>(future: F) -> F::Output {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.expect("it takes too long")
}

/// Polls for things without an event, while the connections of this test go on.
pub async fn until(mut condition: impl FnMut() -> bool) {
    patiently(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub async fn get(sender: &RequestSender, path: &str) -> Result<H2Response, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, _) = sender.send_request(request(Method::GET, path, &[]), true)?;
    whole(response).await
}

/// One request as a backend sees it.
pub struct ReceivedRequest {
    pub head: Parts,
    pub body: RecvStream,
    pub respond: server::SendResponse<Bytes>,
    /// Number of the connection that carried it, in the order of arrival.
    pub connection: usize,
}

impl ReceivedRequest {
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// A whole response, with the head's fields.
    pub fn answer(mut self, fields: &[(&str, &str)], body: impl Into<Bytes>) {
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let body = body.into();
        let sent = self
            .respond
            .send_response(response.body(()).unwrap(), body.is_empty());
        if let Ok(mut stream) = sent
            && !body.is_empty()
        {
            // Fails only when the stream was reset, which the test sees at its other end.
            let _ = stream.send_data(body, true);
        }
    }
}

/// A backend that speaks HTTP/2 without TLS. Lives as long as the runtime of its test.
pub struct H2Backend {
    pub address: SocketAddr,
    /// Method and path of each request, and its fields.
    pub requests: Recorder<Parts>,
    connections: Arc<AtomicUsize>,
}

impl H2Backend {
    /// Runs `script` for every request, each in a task of its own.
    pub async fn start<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(ReceivedRequest) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(&server::Builder::new(), script).await
    }

    pub async fn start_with<F: Future<Output = ()> + Send + 'static>(
        builder: &server::Builder,
        script: impl Fn(ReceivedRequest) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Recorder::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let backend = Self {
            address,
            requests: requests.clone(),
            connections: Arc::clone(&connections),
        };
        let (builder, script) = (builder.clone(), Arc::new(script));
        drop(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let number = connections.fetch_add(1, SeqCst);
                let (builder, script) = (builder.clone(), Arc::clone(&script));
                let requests: Recorder<Parts> = requests.clone();
                drop(tokio::spawn(async move {
                    let Ok(mut connection) = builder.handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let (head, body) = request.into_parts();
                        requests.push(head.clone());
                        drop(tokio::spawn(script(ReceivedRequest {
                            head,
                            body,
                            respond,
                            connection: number,
                        })));
                    }
                }));
            }
        }));
        backend
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}
