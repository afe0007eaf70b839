//! A scripted DNS server on 127.0.0.1, over UDP and TCP: it answers what the test has put into it.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

/// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// Response codes.
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
/// Most bytes of an answer over UDP without an extension; longer ones are asked for again by TCP.
const MAX_UDP_BYTES: usize = 512;

/// The answer to a question.
#[derive(Clone)]
enum Scripted {
    Records(Vec<Vec<u8>>, u32),
    Code(u8),
    /// None at all.
    Silence,
}

type Zone = Arc<Mutex<HashMap<(String, u16), Scripted>>>;

/// A running server; it ends with the test program.
pub struct DnsServer {
    /// Its address.
    pub address: SocketAddr,
    zone: Zone,
}

impl DnsServer {
    /// Starts without names: each is answered with NXDOMAIN.
    pub fn start() -> Self {
        let (udp, tcp) = bind();
        let address = udp.local_addr().unwrap();
        let zone = Zone::default();
        let own = Arc::clone(&zone);
        thread::spawn(move || serve_udp(&udp, &own));
        let own = Arc::clone(&zone);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let _ = serve_tcp(stream, &own);
            }
        });
        Self { address, zone }
    }

    /// Sets the addresses of `name`.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        for (kind, is_v4) in [(A, true), (AAAA, false)] {
            let of_kind = addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
            let records = of_kind.map(|ip| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            });
            self.put(name, kind, Scripted::Records(records.collect(), ttl));
        }
    }

    /// Sets the records of a service: priority, weight, port, host.
    pub fn set_service(&self, name: &str, records: &[(u16, u16, u16, &str)], ttl: u32) {
        let record = |(priority, weight, port, host): &(u16, u16, u16, &str)| {
            let mut bytes = Vec::new();
            for number in [priority, weight, port] {
                bytes.extend(number.to_be_bytes());
            }
            bytes.extend(labels(host));
            bytes
        };
        let records = records.iter().map(record).collect();
        self.put(name, SRV, Scripted::Records(records, ttl));
    }

    /// Answers everything about `name` with SERVFAIL.
    pub fn fail(&self, name: &str) {
        for kind in [A, AAAA, SRV] {
            self.put(name, kind, Scripted::Code(SERVFAIL));
        }
    }

    /// Answers nothing about `name`.
    pub fn silence(&self, name: &str) {
        for kind in [A, AAAA, SRV] {
            self.put(name, kind, Scripted::Silence);
        }
    }

    /// Forgets `name`: it does not exist.
    pub fn remove(&self, name: &str) {
        let mut zone = self.zone.lock().unwrap();
        zone.retain(|(known, _), _| known != name);
    }

    fn put(&self, name: &str, kind: u16, scripted: Scripted) {
        let mut zone = self.zone.lock().unwrap();
        zone.insert((name.to_owned(), kind), scripted);
    }
}

/// Sockets of both kinds on one port.
fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

fn serve_udp(socket: &UdpSocket, zone: &Zone) {
    let mut buffer = [0; 4096];
    while let Ok((count, client)) = socket.recv_from(&mut buffer) {
        if let Some(mut answer) = answer(&buffer[..count], zone) {
            if answer.len() > MAX_UDP_BYTES {
                // Truncated: no records, and the bit that says so.
                let end = question_end(&answer);
                answer.truncate(end);
                answer[2] |= 2;
                answer[6..8].fill(0);
            }
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_tcp(mut stream: TcpStream, zone: &Zone) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    if let Some(answer) = answer(&query, zone) {
        let length = u16::try_from(answer.len()).unwrap();
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// The end of the one question in a message, behind its header.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] > 0 {
        at += 1 + usize::from(message[at]);
    }
    at + 5
}

/// The answer to a query; `None` for silence.
fn answer(query: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let end = question_end(query);
    let mut name = Vec::new();
    let mut at = 12;
    while query[at] > 0 {
        let next = at + 1 + usize::from(query[at]);
        name.push(String::from_utf8_lossy(&query[at + 1..next]).to_lowercase());
        at = next;
    }
    let key = (
        name.join("."),
        u16::from_be_bytes([query[end - 4], query[end - 3]]),
    );
    let known = zone.lock().unwrap().get(&key).cloned();
    let (code, records, ttl) = match known {
        None => (NXDOMAIN, Vec::new(), 0),
        Some(Scripted::Code(code)) => (code, Vec::new(), 0),
        Some(Scripted::Records(records, ttl)) => (0, records, ttl),
        Some(Scripted::Silence) => return None,
    };
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let mut message = query[..2].to_vec();
    // A response that may recurse, with one question.
    message.extend([0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
    message.extend(&query[12..end]);
    for record in records {
        // The name is that of the question.
        message.extend([0xc0, 12]);
        message.extend(key.1.to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(record.len()).unwrap().to_be_bytes());
        message.extend(record);
    }
    Some(message)
}

/// A name as its labels.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}
