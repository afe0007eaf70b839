//! An endpoint of etcd, by the JSON form of its v3 API over HTTP/1.1.
//!
//! Each call has a connection of its own: there is one at the start, and then the watch.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use super::{super::resolver::DnsResolver, keys::KeyChange};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::EtcdConfig,
    net::connect::connect_backend,
    pool::{BackendState, ResolvedAddresses},
};

/// Time to connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a call with its whole answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without news after which a watch is made again: an endpoint that is gone says nothing.
const WATCH_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest answer, and largest message of a watch, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Cause of the end of a session with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EtcdError {
    /// No news for a while: it goes on from the same revision.
    Quiet,
    /// The revision is older than what etcd keeps: all keys must be read again.
    Compacted,
    /// Anything else, for people.
    Failed(String),
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is for `map_err`, and for texts in place"
)]
fn failed(text: impl ToString) -> EtcdError {
    EtcdError::Failed(text.to_string())
}

/// All keys with the prefix.
pub(super) struct ListedKeys {
    pub(super) entries: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) revision: u64,
}

/// Changes that came together, with the revision that they lead to.
pub(super) struct WatchEvent {
    pub(super) changes: Vec<KeyChange>,
    pub(super) revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnswerHeader {
    /// A 64-bit number is a text in JSON.
    revision: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KeyValuePair {
    key: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RangeAnswer {
    header: AnswerHeader,
    kvs: Vec<KeyValuePair>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WatchMessage {
    result: WatchAnswer,
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WatchAnswer {
    header: AnswerHeader,
    canceled: bool,
    compact_revision: String,
    cancel_reason: String,
    events: Vec<WatchedChange>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WatchedChange {
    /// `DELETE`, or nothing for a put.
    #[serde(rename = "type")]
    kind: String,
    kv: KeyValuePair,
}

impl KeyValuePair {
    fn decode(&self) -> Result<(Vec<u8>, Vec<u8>), EtcdError> {
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(failed);
        Ok((bytes(&self.key)?, bytes(&self.value)?))
    }
}

impl AnswerHeader {
    fn revision(&self) -> Result<u64, EtcdError> {
        let missing = |_| failed("an answer without a revision: is this etcd?");
        self.revision.parse().map_err(missing)
    }
}

/// A client of one endpoint.
pub(super) struct EtcdClient<'a> {
    address: &'a BackendAddress,
    cluster: &'a EtcdConfig,
    resolver: &'a DnsResolver,
    token: Option<String>,
}

impl<'a> EtcdClient<'a> {
    pub(super) const fn new(
        address: &'a BackendAddress,
        cluster: &'a EtcdConfig,
        resolver: &'a DnsResolver,
    ) -> Self {
        Self {
            address,
            cluster,
            resolver,
            token: None,
        }
    }

    /// Gets a token, if the configuration has a user.
    pub(super) async fn log_in(&mut self) -> Result<(), EtcdError> {
        let Some((name, password)) = &self.cluster.login else {
            return Ok(());
        };
        let request = json!({"name": name, "password": password});
        let answer = self.call("/v3/auth/authenticate", &request).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(failed)?;
        let token = answer.get("token").and_then(Value::as_str);
        let token = token.ok_or_else(|| failed("no token in the answer to the login"))?;
        self.token = Some(token.to_owned());
        Ok(())
    }

    /// Reads all keys.
    pub(super) async fn list(&self) -> Result<ListedKeys, EtcdError> {
        let answer = self.call("/v3/kv/range", &self.range()).await?;
        let answer: RangeAnswer = serde_json::from_slice(&answer).map_err(failed)?;
        let entries = answer.kvs.iter().map(KeyValuePair::decode);
        Ok(ListedKeys {
            revision: answer.header.revision()?,
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// Watches the keys from `revision` on.
    pub(super) async fn watch(&self, revision: u64) -> Result<EtcdWatch, EtcdError> {
        let mut create = self.range();
        if let Some(fields) = create.as_object_mut() {
            fields.insert("start_revision".to_owned(), revision.to_string().into());
        }
        let request = json!({ "create_request": create });
        let answer = self.send("/v3/watch", &request);
        let (response, connection) = timeout(CALL_TIMEOUT, answer)
            .await
            .map_err(|_| self.late())??;
        let mut watch = EtcdWatch {
            body: response.into_body(),
            unread: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            _connection: connection,
        };
        // The first message says that the watch is there, or why not.
        let first = timeout(CALL_TIMEOUT, watch.message());
        let first = first.await.map_err(|_| self.late())??;
        if let Some(first) = first {
            watch.events.push_back(first);
        }
        Ok(watch)
    }

    /// The keys that begin with the prefix: up to the next text that does not.
    fn range(&self) -> Value {
        let key = self.cluster.prefix.as_bytes();
        let end = range_end(key);
        json!({"key": BASE64.encode(key), "range_end": BASE64.encode(&end)})
    }

    /// Makes a call, and reads its whole answer.
    async fn call(&self, path: &str, request: &Value) -> Result<Vec<u8>, EtcdError> {
        let call = async {
            let (response, _connection) = self.send(path, request).await?;
            read_body(response).await
        };
        timeout(CALL_TIMEOUT, call).await.map_err(|_| self.late())?
    }

    fn late(&self) -> EtcdError {
        failed(format!("{}: no answer in time", self.address))
    }

    /// Sends a request on a connection of its own, and reads the head of the response.
    async fn send(
        &self,
        path: &str,
        request: &Value,
    ) -> Result<(Response<Incoming>, ConnectionTask), EtcdError> {
        let at = |error: String| failed(format!("{}: {error}", self.address));
        let (mut sender, connection) = self.connect().await.map_err(at)?;
        let mut builder = Request::post(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            builder = builder.header(AUTHORIZATION, token);
        }
        let body = Full::new(Bytes::from(request.to_string()));
        let request = builder.body(body).map_err(failed)?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| at(described(&error)))?;
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let status = response.status();
        let text = read_body(response).await.unwrap_or_default();
        Err(at(format!("status {status}: {}", message_of(&text))))
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, ConnectionTask), String> {
        let now = clock::now();
        let state = BackendState::outside_pools("etcd", self.address, now);
        if let BackendAddress::Name { host, port } = self.address {
            let found = self.resolver.host(host, &[]).await?.answer;
            let found = found.iter().map(|ip| (*ip, *port).into()).collect();
            let resolved = ResolvedAddresses::new(found, None);
            state.resolved.store(Arc::new(resolved));
        }
        let tls = self.cluster.tls.as_ref();
        let stream = connect_backend(&state, None, tls, true, now + CONNECT_TIMEOUT).await;
        let stream = stream.map_err(|error| described(&error))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let task = spawn_local(async move {
            // The error is that of the request, too.
            let _ = connection.await;
        });
        Ok((sender, ConnectionTask(task.abort_handle())))
    }
}

/// An error with its causes.
fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// The task that drives a connection; closes it when dropped.
struct ConnectionTask(AbortHandle);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The end of the range of keys that begin with `prefix`: the first key behind them.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // All bytes are 255: up to the last key there is.
    vec![0]
}

async fn read_body(response: Response<Incoming>) -> Result<Vec<u8>, EtcdError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(failed)?.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(failed("the answer is larger than 64MiB"));
        }
    }
    Ok(bytes)
}

/// The message of an error in JSON, or the beginning of another text.
fn message_of(body: &[u8]) -> String {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = document.get("message").and_then(Value::as_str);
    let text = String::from_utf8_lossy(body);
    let text = message.unwrap_or(&text);
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

/// A watch that was begun.
pub(super) struct EtcdWatch {
    body: Incoming,
    unread: Vec<u8>,
    /// Bytes of `unread` that hold no end of a message.
    searched: usize,
    events: VecDeque<WatchEvent>,
    _connection: ConnectionTask,
}

impl EtcdWatch {
    /// The next changes; `None` if there were none for a while.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent>, EtcdError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        match timeout(WATCH_TIMEOUT, self.message()).await {
            Ok(Ok(None)) => Err(failed("the watch has ended")),
            Ok(message) => message,
            Err(_) => Ok(None),
        }
    }

    /// Reads one message: a line of JSON. `None` is the end of the watch.
    async fn message(&mut self) -> Result<Option<WatchEvent>, EtcdError> {
        loop {
            let new = self.unread.get(self.searched..).unwrap_or_default();
            if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=self.searched + end).collect();
                self.searched = 0;
                return watch_event(&line).map(Some);
            }
            self.searched = self.unread.len();
            if self.searched > MAX_ANSWER_BYTES {
                return Err(failed("a message of the watch is larger than 64MiB"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(failed(described(&error))),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.unread.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// Reads one message of a watch.
fn watch_event(line: &[u8]) -> Result<WatchEvent, EtcdError> {
    let message: WatchMessage = serde_json::from_slice(line).map_err(failed)?;
    if let Some(error) = message.error {
        return Err(failed(message_of(error.to_string().as_bytes())));
    }
    let answer = message.result;
    if !matches!(answer.compact_revision.as_str(), "" | "0") {
        return Err(EtcdError::Compacted);
    }
    if answer.canceled {
        return Err(failed(format!("watch refused: {}", answer.cancel_reason)));
    }
    let changes = answer.events.iter().map(|event| {
        let (key, value) = event.kv.decode()?;
        Ok((key, (event.kind != "DELETE").then_some(value)))
    });
    // A new watch tells the revision of the store, which says nothing of events to come.
    let revision = if answer.events.is_empty() {
        0
    } else {
        answer.header.revision()?
    };
    Ok(WatchEvent {
        changes: changes.collect::<Result<_, EtcdError>>()?,
        revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_the_first_key_without_the_prefix() {
        assert_eq!(range_end(b"/app/"), b"/app0");
        assert_eq!(range_end(&[b'a', 255, 255]), b"b");
        assert_eq!(range_end(&[255]), [0]);
    }

    #[test]
    fn messages_of_a_watch_are_changes_compactions_or_errors() {
        let event = watch_event(
            br#"{"result":{"header":{"revision":"9"},"events":[{"kv":{"key":"L2E=","value":"eA=="}},{"type":"DELETE","kv":{"key":"L2I="}}]}}"#,
        );
        let event = event.unwrap();
        assert_eq!(event.revision, 9);
        let expected = [
            (b"/a".to_vec(), Some(b"x".to_vec())),
            (b"/b".to_vec(), None),
        ];
        assert_eq!(event.changes, expected);
        let created = watch_event(br#"{"result":{"header":{"revision":"7"},"created":true}}"#);
        let created = created.unwrap();
        assert_eq!((created.revision, created.changes.len()), (0, 0));
        let error = |line: &[u8]| watch_event(line).err().unwrap();
        let compacted = br#"{"result":{"canceled":true,"compact_revision":"5"}}"#;
        assert_eq!(error(compacted), EtcdError::Compacted);
        for (line, cause) in [
            (
                r#"{"result":{"canceled":true,"cancel_reason":"no permission"}}"#,
                "no permission",
            ),
            (
                r#"{"error":{"code":16,"message":"invalid auth token"}}"#,
                "invalid auth token",
            ),
            (
                r#"{"result":{"header":{"revision":"5"},"events":[{"kv":{"key":"?"}}]}}"#,
                "invalid",
            ),
            (
                r#"{"result":{"events":[{"kv":{"key":"L2E="}}]}}"#,
                "without a revision",
            ),
            ("<html>", "expected value"),
        ] {
            let EtcdError::Failed(text) = error(line.as_bytes()) else {
                panic!("{line}")
            };
            assert!(text.contains(cause), "{text}");
        }
    }
}
