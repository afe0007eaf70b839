//! A scripted etcd: the calls of the JSON gateway that balancer makes, for what a real one cannot
//! be made to do at will.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
};

use serde_json::{Value, json};

use super::{
    PATIENCE,
    peer::{PeerConnection, Recorder, ScriptedPeer},
};

/// A change: the revision, the key, and its value unless it was removed.
type Change = (u64, String, Option<String>);

#[derive(Default)]
struct Store {
    revision: u64,
    keys: BTreeMap<String, String>,
    changes: Vec<Change>,
    /// Watches from before this revision are cancelled.
    compacted: u64,
    /// Watches of before this number end.
    cut: usize,
    watches: usize,
    login: Option<(String, String)>,
}

type SharedStore = Arc<(Mutex<Store>, Condvar)>;

/// A running server.
pub struct ScriptedEtcd {
    store: SharedStore,
    peer: ScriptedPeer,
    /// Revisions at which watches began, and the paths of other calls.
    pub calls: Recorder<String>,
}

impl ScriptedEtcd {
    /// Starts without keys, at revision 1.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts with a user that must log in.
    pub fn start_with(login: Option<(&str, &str)>) -> Self {
        let store = SharedStore::default();
        {
            let mut store = store.0.lock().unwrap();
            store.revision = 1;
            store.login = login.map(|(name, password)| (name.to_owned(), password.to_owned()));
        }
        let calls = Recorder::default();
        let (own, recorded) = (Arc::clone(&store), calls.clone());
        let peer = ScriptedPeer::start(move |connection| serve(connection, &own, &recorded));
        Self { store, peer, calls }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.peer.address
    }

    /// Sets a key.
    pub fn put(&self, key: &str, value: &str) {
        self.change(key, Some(value));
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) {
        self.change(key, None);
    }

    fn change(&self, key: &str, value: Option<&str>) {
        let mut store = self.store.0.lock().unwrap();
        store.revision += 1;
        match value {
            Some(value) => store.keys.insert(key.to_owned(), value.to_owned()),
            None => store.keys.remove(key),
        };
        let change = (store.revision, key.to_owned(), value.map(str::to_owned));
        store.changes.push(change);
        self.store.1.notify_all();
    }

    /// Ends all watches, as an endpoint that restarts.
    pub fn cut(&self) {
        let mut store = self.store.0.lock().unwrap();
        store.cut = store.watches;
        self.store.1.notify_all();
    }

    /// Changes a key that no watch will tell of: it was compacted meanwhile.
    pub fn change_unseen(&self, key: &str, value: &str) {
        let mut store = self.store.0.lock().unwrap();
        store.revision += 1;
        store.keys.insert(key.to_owned(), value.to_owned());
        store.changes.clear();
        store.compacted = store.revision + 1;
        store.cut = store.watches;
        self.store.1.notify_all();
    }
}

fn serve(mut connection: PeerConnection, store: &SharedStore, calls: &Recorder<String>) {
    let Some(request) = connection.request() else {
        return;
    };
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let is_allowed = {
        let store = store.0.lock().unwrap();
        store.login.is_none() || request.header("authorization") == Some("token-1")
    };
    match request.target.as_str() {
        "/v3/auth/authenticate" => {
            calls.push("login".to_owned());
            let login = store.0.lock().unwrap().login.clone();
            let (name, password) = login.unwrap();
            if body == json!({"name": name, "password": password}) {
                answer(
                    &mut connection,
                    "200 OK",
                    &json!({"header": {}, "token": "token-1"}),
                );
            } else {
                let message = "etcdserver: authentication failed, invalid user ID or password";
                let error = json!({"error": message, "code": 3, "message": message});
                answer(&mut connection, "400 Bad Request", &error);
            }
        }
        _ if !is_allowed => {
            let error = json!({"code": 16, "message": "etcdserver: invalid auth token"});
            answer(&mut connection, "401 Unauthorized", &error);
        }
        "/v3/kv/range" => {
            calls.push("range".to_owned());
            assert_eq!(body["key"], base64("/app/"));
            assert_eq!(body["range_end"], base64("/app0"));
            let document = {
                let store = store.0.lock().unwrap();
                let pair = |(key, value): (&String, &String)| json!({"key": base64(key), "value": base64(value), "mod_revision": "1"});
                let pairs: Vec<_> = store.keys.iter().map(pair).collect();
                let count = pairs.len().to_string();
                json!({"header": {"revision": store.revision.to_string()}, "kvs": pairs, "count": count})
            };
            answer(&mut connection, "200 OK", &document);
        }
        "/v3/watch" => watch(&mut connection, &body["create_request"], store, calls),
        other => panic!("unexpected call of {other}"),
    }
}

fn answer(connection: &mut PeerConnection, status: &str, document: &Value) {
    let text = document.to_string();
    connection.send(format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    ));
}

fn watch(
    connection: &mut PeerConnection,
    create: &Value,
    store: &SharedStore,
    calls: &Recorder<String>,
) {
    let start = create["start_revision"].as_str().unwrap();
    calls.push(format!("watch {start}"));
    let mut next: u64 = start.parse().unwrap();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let (lock, changed) = &**store;
    let mut held = lock.lock().unwrap();
    held.watches += 1;
    let number = held.watches;
    let header = json!({"revision": held.revision.to_string()});
    send_message(
        connection,
        &json!({"result": {"header": header, "created": true}}),
    );
    if next < held.compacted {
        let compacted = held.compacted.to_string();
        let end =
            json!({"result": {"header": header, "canceled": true, "compact_revision": compacted}});
        send_message(connection, &end);
        return;
    }
    loop {
        let events: Vec<Value> = held
            .changes
            .iter()
            .filter(|(revision, ..)| *revision >= next)
            .map(|(_, key, value)| match value {
                Some(value) => json!({"kv": {"key": base64(key), "value": base64(value)}}),
                None => json!({"type": "DELETE", "kv": {"key": base64(key)}}),
            })
            .collect();
        if !events.is_empty() {
            next = held.revision + 1;
            let header = json!({"revision": held.revision.to_string()});
            let message = json!({"result": {"header": header, "events": events}});
            if !send_message(connection, &message) {
                return;
            }
        }
        if held.cut >= number {
            return;
        }
        let wait = changed.wait_timeout(held, PATIENCE).unwrap();
        if wait.1.timed_out() {
            return;
        }
        held = wait.0;
    }
}

/// Sends one line as a chunk.
fn send_message(connection: &mut PeerConnection, message: &Value) -> bool {
    let line = format!("{message}\n");
    connection.send(format!("{:x}\r\n{line}\r\n", line.len()))
}

/// Base64 as of RFC 4648 section 4.
pub fn base64(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for part in text.as_bytes().chunks(3) {
        let mut bits = 0_u32;
        for (index, byte) in part.iter().enumerate() {
            bits |= u32::from(*byte) << (16 - 8 * index);
        }
        for index in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * index)) as usize & 63];
            encoded.push(if index <= part.len() {
                letter as char
            } else {
                '='
            });
        }
    }
    encoded
}
