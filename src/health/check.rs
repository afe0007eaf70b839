//! One probe of one backend: what is asked, and what counts as a good answer. A new type of check is one arm in [`run`] and
//! one function. The error of a probe is the cause that logs and the status page show.

use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout_at;

use crate::{
    base::{address::BackendAddress, clock},
    config::model::{CheckKind, HealthCheck, PoolTls, ProxyVersion},
    net::{
        connect::{connect, connect_port, introduce},
        proxy_protocol,
        stream::Stream,
        tls::secure,
    },
    pool::BackendState,
    reason::Reason,
};

/// How much of a body is searched for the expected text.
const BODY_SEARCHED: usize = 64 * 1024;

/// Probes once, within the definition's timeout. With `send_proxy`, which says that the connection is our own, unless
/// another port is asked: what is there is another service.
pub(super) async fn run(
    backend: &BackendState,
    check: &HealthCheck,
    tls: Option<&PoolTls>,
    send_proxy: Option<ProxyVersion>,
) -> Result<(), String> {
    let deadline = clock::now() + check.timeout;
    let header = send_proxy.filter(|_| check.port.is_none());
    let header = header.map(proxy_protocol::encode_local);
    let stream = open(backend, check, tls, header.as_deref(), deadline).await?;
    match &check.kind {
        // In order, so that the header arrives: a connection that ends without one looks like a fault there.
        CheckKind::Tcp if header.is_some() => Ok(()),
        CheckKind::Tcp => {
            // A reset instead of an end: no TIME_WAIT here, and the server is not asked to serve anybody.
            stream.set_reset_on_close();
            Ok(())
        }
        CheckKind::Grpc { .. } => Err("no such check".to_owned()),
        CheckKind::Http { .. } => timeout_at(deadline.into(), http(stream, backend, check))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout))),
    }
}

async fn open(
    backend: &BackendState,
    check: &HealthCheck,
    tls: Option<&PoolTls>,
    header: Option<&[u8]>,
    deadline: Instant,
) -> Result<Stream, String> {
    let connected = match check.port {
        None => connect(backend, deadline).await,
        Some(port) => connect_port(backend, port, deadline).await,
    };
    let more_follows = tls.is_some() || !matches!(check.kind, CheckKind::Tcp);
    let introduced = connected.and_then(|stream| introduce(stream, header, more_follows));
    let secured = match introduced {
        Ok(stream) => secure(stream, tls, &backend.address, deadline).await,
        Err(error) => Err(error),
    };
    secured.map_err(|error| match error.reason {
        Reason::ConnectionTimeout => format!("no connection within {:?}", check.timeout),
        Reason::ConnectionRefused
            if error.source.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            "connection refused".to_owned()
        }
        _ => error.source.to_string(),
    })
}

async fn http(stream: Stream, backend: &BackendState, check: &HealthCheck) -> Result<(), String> {
    let CheckKind::Http { expect, body, .. } = &check.kind else {
        return Ok(());
    };
    let request = request(backend, check).map_err(|error| format!("cannot ask: {error}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| describe(&error))?;
        let status = response.status().as_u16();
        if !expect
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&status))
        {
            return Err(format!("status {status}, expected {}", ranges(expect)));
        }
        match body {
            None => Ok(()),
            Some(text) => contains(response, text).await,
        }
    };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The end of the connection may be the end of the answer, which the exchange still has to read.
        _ = &mut connection => exchange.await,
    }
}

fn request(
    backend: &BackendState,
    check: &HealthCheck,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let (path, method, host) = match &check.kind {
        CheckKind::Http {
            path, method, host, ..
        } => (path.as_str(), method.as_str(), host.as_deref()),
        _ => ("/", "GET", None),
    };
    let host = host.map_or_else(|| default_host(backend, check.port), str::to_owned);
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(USER_AGENT, HeaderValue::from_static("balancer-check"))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::new())
}

fn default_host(backend: &BackendState, port: Option<u16>) -> String {
    match (&backend.address, port) {
        (BackendAddress::Unix(_), _) => "localhost".to_owned(),
        (BackendAddress::Ip(address), Some(port)) => {
            std::net::SocketAddr::new(address.ip(), port).to_string()
        }
        (BackendAddress::Name { host, .. }, Some(port)) => format!("{host}:{port}"),
        (address, None) => address.to_string(),
    }
}

async fn contains(response: Response<Incoming>, text: &str) -> Result<(), String> {
    let mut body = response.into_body();
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| describe(&error))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let room = BODY_SEARCHED - seen.len();
        seen.extend_from_slice(data.get(..room).unwrap_or(data));
        if memchr::memmem::find(&seen, text.as_bytes()).is_some() {
            return Ok(());
        }
        if seen.len() >= BODY_SEARCHED {
            break;
        }
    }
    Err(format!("body does not contain `{text}`"))
}

fn describe(error: &hyper::Error) -> String {
    if error.is_parse() {
        format!("answer is not valid HTTP: {error}")
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "connection closed before the whole answer".to_owned()
    } else {
        error.to_string()
    }
}

fn ranges(expect: &[(u16, u16)]) -> String {
    let words: Vec<_> = expect
        .iter()
        .map(|(low, high)| {
            if low == high {
                low.to_string()
            } else {
                format!("{low}-{high}")
            }
        })
        .collect();
    words.join(", ")
}
