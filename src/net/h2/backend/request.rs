//! The HTTP/1.1 request head that the engine writes, as the head of an h2 stream: RFC 9113 section 8.3.1.

use std::{io, mem::MaybeUninit};

use h2::ext::Protocol;
use hyper::http::{
    HeaderValue, Method, Request, Uri,
    header::{self, HeaderMap},
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    super::{
        websocket,
        writer::{self, MAX_FIELDS, invalid},
    },
    response::Expected,
};
use crate::http1::body::Decoder;

/// What follows the head.
#[derive(Debug)]
pub(super) enum Content {
    Nothing,
    Body(Decoder),
    /// Another protocol.
    Raw,
}

/// A request, and what its answer can be.
#[derive(Debug)]
pub(super) struct Asked {
    pub request: Request<()>,
    pub content: Content,
    pub expected: Expected,
}

/// HTTP/2, or the library for it, has no such request.
fn inexpressible() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "a request that HTTP/2 cannot express",
    )
}

/// Reads the head in `bytes`.
pub(super) fn read(bytes: &[u8], is_secure: bool) -> io::Result<Asked> {
    let mut room = [MaybeUninit::uninit(); MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut head, bytes, &mut room);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (parsed, head.method, head.path)
    else {
        return Err(invalid("no request head"));
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| inexpressible())?;
    let value = |name: &str| {
        let mut fields = head.headers.iter();
        let found = fields.find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| field.value)
    };
    let (mut fields, decoder) = writer::fields(head.headers).map_err(|_| inexpressible())?;
    if value("te").is_some() {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let is_socket = value("upgrade").is_some();
    let uri = uri(&mut fields, target, is_secure)?;
    let mut request = Request::new(());
    let mut expected = Expected {
        is_head: method == Method::HEAD,
        accept: None,
    };
    let content = if is_socket {
        let key = fields.remove("sec-websocket-key");
        expected.accept = Some(websocket::accept(
            key.as_ref().map_or(b"", |key| key.as_bytes()),
        ));
        *request.method_mut() = Method::CONNECT;
        request
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        Content::Raw
    } else {
        *request.method_mut() = method;
        decoder.map_or(Content::Nothing, Content::Body)
    };
    *request.uri_mut() = uri;
    *request.headers_mut() = fields;
    Ok(Asked {
        request,
        content,
        expected,
    })
}

/// Scheme, authority and path. A host that cannot be an authority stays a field, which is as good (section 8.3.1).
fn uri(fields: &mut HeaderMap, target: &str, is_secure: bool) -> io::Result<Uri> {
    let path = PathAndQuery::try_from(target).map_err(|_| inexpressible())?;
    // Some characters are dropped or taken for something else: what does not come out as it went in is not sent.
    if path.as_str() != target {
        return Err(inexpressible());
    }
    let host = fields.get(header::HOST).map(HeaderValue::as_bytes);
    let authority = host.and_then(|host| Authority::try_from(host).ok());
    let mut parts = hyper::http::uri::Parts::default();
    parts.path_and_query = Some(path);
    if let Some(authority) = authority {
        fields.remove(header::HOST);
        parts.authority = Some(authority);
        parts.scheme = Some(if is_secure {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        });
    }
    Uri::from_parts(parts).map_err(|_| inexpressible())
}
