//! Checks of servers that do not speak HTTP: steps, Redis, MySQL, PostgreSQL, mail.

use std::{
    fs,
    io::{Read as _, Write as _},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac, pbkdf2};

use super::verdicts;
use crate::harness::{
    TempDir,
    daemon::TestDaemon,
    peer::{PeerConnection, Recorder, ScriptedPeer},
    tls::TestAuthority,
};

/// A server that sends `greeting` and then answers each line by `answer`; none ends the connection.
fn lines(greeting: &'static str, answer: fn(&str) -> Option<&'static str>) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        connection.send(greeting);
        while let Some(line) = connection.until(b"\r\n") {
            match answer(String::from_utf8_lossy(&line).trim_end()) {
                Some(answer) => connection.send(answer),
                None => return,
            };
        }
    })
}

/// Sends `greeting` and then nothing, until the other side ends.
fn saying(greeting: &'static str) -> ScriptedPeer {
    lines(greeting, |_| Some(""))
}

#[test]
fn a_check_in_steps_gets_what_it_expects_and_says_what_came_instead() {
    let echo = lines("hello world\r\n", |line| match line {
        "PING" => Some("+PONG\r\n"),
        "TWO" => Some("one two\r\n"),
        _ => Some("-ERR no\r\n"),
    });
    let closing = lines("hello\r\n", |_| None);
    let silent = saying("");
    let flood = ScriptedPeer::start(|mut connection| while connection.send([b'x'; 4096]) {});
    let slow = ", timeout: 300ms";
    let steps = |steps: &str, more: &str| format!("{{steps: [{steps}]{more}}}");
    let rows = [
        (&echo, steps(r"{expect: hello}", ""), ""),
        (
            &echo,
            steps(r#"{expect: "hello"}, {expect: " world\r\n"}"#, ""),
            "",
        ),
        (
            &echo,
            steps(r"{expect: hello}, {expect: hello}", slow),
            "step 2: expected `hello`, found ` world\\r\\n` within 300ms",
        ),
        // What came before a send is no answer to it.
        (
            &echo,
            steps(
                r"{expect: hello}, {send: 'PING\r\n', expect: {regex: '^\+(PONG|OK)\r\n$'}}",
                "",
            ),
            "",
        ),
        (
            &echo,
            steps(
                r#"{send: {hex: "54 57 4f 0d 0a"}, expect: {hex: "74:77:6F"}}, {expect: '\x0d\n'}"#,
                "",
            ),
            "",
        ),
        (
            &echo,
            steps(r#"{expect: world}, {send: "NO\r\n", expect: "+OK"}"#, slow),
            "step 2: expected `+OK`, found ",
        ),
        (
            &closing,
            steps(
                r#"{expect: hello}, {send: "BYE\r\n", expect: {regex: "2[0-9]+"}}"#,
                "",
            ),
            "step 2: expected a match of `2[0-9]+`, found nothing and the end of the connection",
        ),
        (
            &silent,
            steps(r"{expect: hello}", slow),
            "step 1: expected `hello`, found nothing within 300ms",
        ),
        (&flood, steps(r"{expect: hello}", ""), "xxx...` and more"),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(peer, check, cause)| ("steps", *peer, check.as_str(), *cause))
        .collect();
    verdicts(&rows);
}

#[test]
fn a_secret_of_a_step_is_sent_and_never_shown_and_a_reload_reads_it_again() {
    let directory = TempDir::new();
    let file = directory.path().join("secret");
    fs::write(&file, "open sesame\n").unwrap();
    let seen = Recorder::default();
    let record = seen.clone();
    let peer = ScriptedPeer::start(move |mut connection: PeerConnection| {
        while let Some(line) = connection.until(b"\n") {
            record.push(String::from_utf8_lossy(&line).into_owned());
            // Repeats what it was sent.
            connection.send(&line);
        }
    });
    let config = format!(
        "log: {{format: json}}\nlisteners: {{web: {{bind: \"@web\", pool: app}}}}\npools:\n  app:\n    \
         backends: [\"{}\"]\n    health_check:\n      timeout: 300ms\n      interval: 1h\n      steps: \
         [{{send: \"AUTH \"}}, {{send: {{secret_file: {}}}}}, {{send: \"\\n\", expect: \"+OK\"}}]\n",
        peer.address,
        file.display()
    );
    let mut daemon = TestDaemon::start(&config);
    let line = daemon.wait_for_log(|line| line.contains("backend is down"));
    let cause = "step 3: expected `+OK`, found 17 bytes, not shown after a secret, within 300ms";
    assert!(line.contains(cause), "{line}");
    let first = seen.wait_for(|all| all.first().cloned()).unwrap();
    assert_eq!(first, "AUTH open sesame\n");
    let status = daemon.status().to_string();
    assert!(!status.contains("sesame"), "{status}");
    fs::write(&file, "another").unwrap();
    assert_eq!(daemon.reload(&config).status, 200);
    let second = seen.wait_for(|all| all.get(1).cloned()).unwrap();
    assert_eq!(second, "AUTH another\n");
    assert!(!daemon.stderr.all().concat().contains("another"));
    fs::remove_file(&file).unwrap();
    let refused = daemon.reload(&config);
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("cannot read"), "{}", refused.text());
    assert!(refused.text().contains("secret_file"), "{}", refused.text());
}

#[test]
fn an_smtp_check_greets_the_server_and_quits() {
    fn polite(line: &str) -> &'static str {
        match line {
            "EHLO check.test" => "250-mail.test\r\n250-SIZE 1000\r\n250 HELP\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "501 who are you\r\n",
        }
    }
    let good = lines("220-mail.test\r\n220 ESMTP\r\n", |line| Some(polite(line)));
    let busy = saying("421 too many connections\r\n");
    let other = saying("+OK pop\r\n");
    let cut = lines("220 mail.test\r\n", |_| None);
    let endless = ScriptedPeer::start(|mut connection| {
        connection.send("220 x\r\n");
        while connection.send("250-more\r\n") {}
    });
    let check = "{type: smtp, host: check.test}";
    verdicts(&[
        ("good", &good, check, ""),
        (
            "our address",
            &good,
            "{type: smtp}",
            "expected 250, found `501 who are you`",
        ),
        (
            "busy",
            &busy,
            check,
            "expected 220, found `421 too many connections`",
        ),
        ("pop", &other, check, "expected 220, found `+OK pop`"),
        ("cut", &cut, check, "closed before the whole answer"),
        ("endless", &endless, check, "more than 100 lines"),
    ]);
}

/// A Redis server: reads the arrays of a client, and answers each command by `answer`.
fn redis(answer: fn(&[String]) -> &'static str) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        let mut words = Vec::new();
        let line = |connection: &mut PeerConnection| {
            let line = connection.until(b"\r\n")?;
            Some(String::from_utf8_lossy(&line).trim_end().to_owned())
        };
        while let Some(count) = line(&mut connection) {
            words.clear();
            for _ in 0..count[1..].parse().unwrap() {
                let length = line(&mut connection).unwrap()[1..].parse().unwrap();
                let word = connection.exactly(length).unwrap();
                connection.exactly(2).unwrap();
                words.push(String::from_utf8(word).unwrap());
            }
            connection.send(answer(&words));
        }
    })
}

/// True for the words of this command.
fn is(words: &[String], command: &str) -> bool {
    words.join("|") == command
}

#[test]
fn a_redis_check_needs_pong_and_the_role() {
    let master = redis(|words| match words {
        _ if is(words, "PING") => "+PONG\r\n",
        _ if is(words, "ROLE") => "*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n",
        _ => "-ERR unknown command\r\n",
    });
    let replica = redis(|words| match words {
        _ if is(words, "PING") => "+PONG\r\n",
        _ => "*5\r\n$5\r\nslave\r\n$1\r\na\r\n:1\r\n$4\r\nsync\r\n:1\r\n",
    });
    let bad_role = redis(|words| match words {
        _ if is(words, "PING") => "+PONG\r\n",
        _ => "*1\r\n$999999999\r\n",
    });
    let loading = redis(|_| "-LOADING Redis is loading the dataset in memory\r\n");
    let not_redis = redis(|_| "HTTP/1.1 400 Bad Request\r\n\r\n");
    let plain = "{type: redis}";
    let (of_master, of_replica) = (
        "{type: redis, role: master}",
        "{type: redis, role: replica}",
    );
    verdicts(&[
        ("ping", &master, plain, ""),
        ("master", &master, of_master, ""),
        ("replica", &replica, of_replica, ""),
        (
            "not a replica",
            &master,
            of_replica,
            "the server is a master, expected a replica",
        ),
        (
            "not a master",
            &replica,
            of_master,
            "the server is a replica, expected a master",
        ),
        (
            "malformed",
            &bad_role,
            of_master,
            "the server's role is malformed",
        ),
        (
            "loading",
            &loading,
            plain,
            "the server is loading its data (LOADING)",
        ),
        (
            "another server",
            &not_redis,
            plain,
            "expected `+PONG`, found `HTTP/1.1 400 Bad Request`",
        ),
    ]);
}

#[test]
fn a_redis_check_logs_in_and_shows_no_password() {
    let directory = TempDir::new();
    let file = directory.path().join("password");
    fs::write(&file, "p w\r\n").unwrap();
    let closed = redis(|words| match words {
        _ if is(words, "AUTH|p w") || is(words, "AUTH|me|p w") => "+OK\r\n",
        _ if words[0] == "AUTH" => "-WRONGPASS invalid p w\r\n",
        _ => "-NOAUTH Authentication required.\r\n",
    });
    let open = redis(|words| match words {
        _ if is(words, "AUTH|me|p w") => "+OK\r\n",
        _ => "+PONG\r\n",
    });
    let wrong = redis(|_| "-WRONGPASS invalid p w\r\n");
    let login = format!("{{type: redis, password_file: {}}}", file.display());
    let of_user = format!(
        "{{type: redis, user: me, password_file: {}}}",
        file.display()
    );
    // The login passes, and then this server says what it always says.
    let wants_more = "the server wants a password (NOAUTH): set `password_file`";
    let daemon = verdicts(&[
        ("no password", &closed, "{type: redis}", wants_more),
        ("login", &closed, &login, wants_more),
        ("login of a user", &open, &of_user, ""),
        ("wrong", &wrong, &login, "login failed: WRONGPASS"),
    ]);
    let told = daemon.stderr.all().concat();
    assert!(!told.contains("p w"), "{told}");
}

fn mysql_packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len().to_le_bytes();
    [&length[..3], &[number], payload].concat()
}

fn mysql_error(number: u8, code: u16, text: &str) -> Vec<u8> {
    let payload = [&[0xff], &code.to_le_bytes()[..], text.as_bytes()].concat();
    mysql_packet(number, &payload)
}

/// A greeting of protocol 10 with the `flags`.
fn mysql_greeting(flags: u32) -> Vec<u8> {
    let [a, b, c, d] = flags.to_le_bytes();
    let mut payload = b"\x0a8.0.36\0\x07\0\0\0saltsalt\0".to_vec();
    payload.extend([a, b, 33, 2, 0, c, d, 21]);
    payload.extend([0; 10]);
    payload.extend(b"saltsaltsalt\0caching_sha2_password\0");
    mysql_packet(0, &payload)
}

fn read_mysql(connection: &mut PeerConnection) -> Option<Vec<u8>> {
    let header = connection.exactly(4)?;
    let length = usize::from(header[0]) | usize::from(header[1]) << 8;
    connection.exactly(length)
}

/// Flags of a server without TLS.
const MYSQL_FLAGS: u32 = 0x8_8200;
/// The flag for TLS.
const MYSQL_TLS: u32 = 0x800;

/// A MySQL server: greets, reads a login, and answers it; the packets of the client are recorded.
fn mysql(answers: Vec<Vec<u8>>) -> (ScriptedPeer, Recorder<Vec<u8>>) {
    let packets = Recorder::default();
    let record = packets.clone();
    let peer = ScriptedPeer::start(move |mut connection| {
        connection.send(mysql_greeting(MYSQL_FLAGS));
        for answer in &answers {
            let Some(packet) = read_mysql(&mut connection) else {
                return;
            };
            record.push(packet);
            connection.send(answer);
        }
        while let Some(packet) = read_mysql(&mut connection) {
            record.push(packet);
        }
    });
    (peer, packets)
}

#[test]
fn a_mysql_check_is_up_by_the_greeting_and_completes_the_handshake() {
    let ok = mysql_packet(2, &[0, 0, 0, 2, 0, 0, 0]);
    let denied = mysql_error(2, 1045, "#28000Access denied");
    let switch = |plugin: &str| {
        let payload = [b"\xfe", plugin.as_bytes(), b"\0saltsaltsalt\0"].concat();
        mysql_packet(2, &payload)
    };
    let after_switch = mysql_error(4, 1045, "#28000Access denied");
    let (open, of_open) = mysql(vec![ok]);
    let (closed, _) = mysql(vec![denied]);
    let (sha2, of_sha2) = mysql(vec![switch("caching_sha2_password"), after_switch.clone()]);
    let (native, of_native) = mysql(vec![switch("mysql_native_password"), after_switch]);
    let check = "{type: mysql, user: probe}";
    verdicts(&[
        ("open", &open, check, ""),
        ("closed", &closed, check, ""),
        ("sha2", &sha2, check, ""),
        ("native", &native, "{type: mysql}", ""),
    ]);
    let packets = |of: &Recorder<Vec<u8>>| {
        of.wait_for(|all| (all.len() >= 2).then(|| all.to_vec()))
            .unwrap_or_else(|| panic!("{:?}", of.all()))
    };
    let [login, quit] = &packets(&of_open)[..] else {
        panic!("{:?}", of_open.all());
    };
    assert_eq!(login[32..], *b"probe\0\0mysql_native_password\0");
    assert_eq!(quit, b"\x01", "it leaves in order");
    // Each way has its own answer for "no password": a wrong one would count against us.
    assert_eq!(packets(&of_sha2)[1], b"\0");
    assert_eq!(packets(&of_native)[1], b"");
    assert!(packets(&of_native)[0][32..].starts_with(b"balancer\0"));
}

#[test]
fn a_mysql_check_is_down_when_the_server_is_not_for_clients() {
    let (stopping, _) = mysql(vec![mysql_error(
        2,
        1053,
        "#08S01Server shutdown in progress",
    )]);
    let first = |packet: Vec<u8>| {
        ScriptedPeer::start(move |mut connection| {
            connection.send(&packet);
            connection.wait_for_end();
        })
    };
    let blocked = first(mysql_error(0, 1129, "Host '10.0.0.9' is blocked"));
    let old = first(mysql_packet(0, b"\x093.23\0"));
    let garbage = first(b"SSH-2.0-OpenSSH_9\r\n".to_vec());
    let cut = ScriptedPeer::start(|mut connection| {
        connection.send(&mysql_greeting(MYSQL_FLAGS)[..20]);
    });
    let check = "{type: mysql}";
    verdicts(&[
        (
            "stopping",
            &stopping,
            check,
            "the server says 1053: Server shutdown in progress",
        ),
        (
            "blocked",
            &blocked,
            check,
            "the server says 1129: Host '10.0.0.9' is blocked",
        ),
        (
            "old",
            &old,
            check,
            "the server speaks protocol 9, expected 10",
        ),
        (
            "garbage",
            &garbage,
            check,
            "answer is not a packet of MySQL",
        ),
        ("cut", &cut, check, "closed before the whole answer"),
    ]);
}

#[test]
fn a_mysql_check_with_tls_logs_in_under_it() {
    let authority = TestAuthority::new();
    authority.sign("app", &["app.test"]);
    let config = authority.server("app", false);
    let logins = Recorder::default();
    let record = logins.clone();
    let secure = ScriptedPeer::start(move |mut connection| {
        connection.send(mysql_greeting(MYSQL_FLAGS | MYSQL_TLS));
        let request = connection.exactly(36).unwrap();
        assert_eq!(request[..4], [32, 0, 0, 1]);
        let flags = u32::from_le_bytes(request[4..8].try_into().unwrap());
        assert_eq!(flags & MYSQL_TLS, MYSQL_TLS);
        let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, connection.into_stream());
        let mut header = [0; 4];
        if stream.read_exact(&mut header).is_ok() {
            let mut login = vec![0; usize::from(header[0])];
            stream.read_exact(&mut login).unwrap();
            record.push((header[3], login));
            let _ = stream.write_all(&mysql_error(3, 1045, "#28000Access denied"));
        }
    });
    let (plain, of_plain) = mysql(vec![mysql_error(2, 1045, "#28000Access denied")]);
    let check = format!(
        "{{type: mysql, tls: {{ca: {}, server_name: app.test}}}}",
        authority.ca()
    );
    verdicts(&[
        ("tls", &secure, &check, ""),
        ("no tls", &plain, &check, "the server does not offer TLS"),
    ]);
    let (number, login) = logins.wait_for(|all| all.first().cloned()).unwrap();
    assert_eq!(number, 2, "the number goes on over TLS");
    assert!(login[32..].starts_with(b"balancer\0"));
    // The handshake was completed all the same: a broken one would count against us.
    assert!(of_plain.wait_for(|all| all.first().cloned()).is_some());
}

fn pg(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind], &length[..], body].concat()
}

fn pg_auth(kind: u32, rest: &[u8]) -> Vec<u8> {
    pg(b'R', &[&kind.to_be_bytes(), rest].concat())
}

fn pg_error(code: &str, text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    pg(b'E', body.as_bytes())
}

/// Reads a message of a client behind its first; `None` at its end.
fn read_pg(connection: &mut PeerConnection) -> Option<(u8, Vec<u8>)> {
    let header = connection.exactly(5)?;
    let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
    Some((header[0], connection.exactly(length - 4)?))
}

/// Reads the first message of a client.
fn read_startup(connection: &mut PeerConnection) -> Option<Vec<u8>> {
    let length = connection.exactly(4)?;
    let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
    connection.exactly(length - 4)
}

/// A PostgreSQL server that says `first`, and ends.
fn postgres_saying(first: Vec<u8>) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        if read_startup(&mut connection).is_some() {
            connection.send(&first);
            connection.wait_for_end();
        }
    })
}

/// A PostgreSQL server that logs in by `login`, and answers the query with `in_recovery`.
fn postgres(
    login: fn(&mut PeerConnection) -> Option<bool>,
    in_recovery: &'static str,
) -> ScriptedPeer {
    ScriptedPeer::start(move |mut connection| {
        let startup = read_startup(&mut connection).unwrap();
        let startup = String::from_utf8_lossy(&startup).into_owned();
        if !startup.contains("user\0me\0database\0shop\0") {
            connection.send(pg_error("28000", "another user"));
        } else if login(&mut connection) == Some(true) {
            connection.send(pg_auth(0, b""));
            connection.send(pg(b'S', b"server_version\x0016\0"));
            connection.send(pg(b'Z', b"I"));
            if let Some((b'Q', query)) = read_pg(&mut connection) {
                assert_eq!(query, b"SELECT pg_catalog.pg_is_in_recovery()\0");
                let row = [&[0, 1, 0, 0, 0, 1], in_recovery.as_bytes()].concat();
                connection.send(pg(b'T', b"\0\0"));
                connection.send(pg(b'D', &row));
                connection.send(pg(b'Z', b"I"));
            }
        } else {
            connection.send(pg_error("28P01", "password authentication failed"));
        }
        connection.wait_for_end();
    })
}

/// Sends a notice before the login, which is no answer.
fn trust(connection: &mut PeerConnection) -> Option<bool> {
    connection
        .send(pg(b'N', b"SNOTICE\0Mhello\0\0"))
        .then_some(true)
}

fn cleartext(connection: &mut PeerConnection) -> Option<bool> {
    connection.send(pg_auth(3, b""));
    Some(read_pg(connection)? == (b'p', b"pencil\0".to_vec()))
}

fn md5_login(connection: &mut PeerConnection) -> Option<bool> {
    connection.send(pg_auth(5, b"salt"));
    // md5 of (md5 of "pencilme") and "salt", computed by md5sum(1).
    let expected = b"md58d3428d144a1e8453484b4ee8bb330e9\0".to_vec();
    Some(read_pg(connection)? == (b'p', expected))
}

/// The server's side of SCRAM-SHA-256; the password is `pencil`.
fn scram(connection: &mut PeerConnection) -> Option<bool> {
    scram_as(connection, b"pencil")
}

/// A server that does not know the password.
fn scram_of_a_stranger(connection: &mut PeerConnection) -> Option<bool> {
    scram_as(connection, b"guess")
}

fn scram_as(connection: &mut PeerConnection, password: &[u8]) -> Option<bool> {
    connection.send(pg_auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"));
    let (_, first) = read_pg(connection)?;
    let first = first.strip_prefix(b"SCRAM-SHA-256\0")?;
    let bare = std::str::from_utf8(&first[4..]).ok()?.strip_prefix("n,,")?;
    let nonce = format!("{}server", bare.strip_prefix("n=,r=")?);
    let challenge = format!("r={nonce},s={},i=4096", STANDARD.encode("salty"));
    connection.send(pg_auth(11, challenge.as_bytes()));
    let (_, last) = read_pg(connection)?;
    let last = String::from_utf8(last).ok()?;
    let (without, proof) = last.split_once(",p=")?;
    assert_eq!(without, format!("c=biws,r={nonce}"));
    let mut salted = [0; 32];
    let count = 4096.try_into().unwrap();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        count,
        b"salty",
        password,
        &mut salted,
    );
    let salted = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let signed = format!("{bare},{challenge},{without}");
    let client_key = hmac::sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client_key.as_ref());
    let stored = hmac::Key::new(hmac::HMAC_SHA256, stored.as_ref());
    let signature = hmac::sign(&stored, signed.as_bytes());
    let pairs = client_key.as_ref().iter().zip(signature.as_ref());
    let expected: Vec<u8> = pairs.map(|(key, signature)| key ^ signature).collect();
    let is_right = STANDARD.decode(proof).ok()? == expected;
    let server_key = hmac::sign(&salted, b"Server Key");
    let server_key = hmac::Key::new(hmac::HMAC_SHA256, server_key.as_ref());
    let signature = STANDARD.encode(hmac::sign(&server_key, signed.as_bytes()));
    // A stranger says yes to everything.
    let accepts = is_right || password == b"guess";
    if accepts {
        connection.send(pg_auth(12, format!("v={signature}").as_bytes()));
    }
    Some(accepts)
}

#[test]
fn a_postgres_check_without_a_login_is_up_when_the_server_takes_sessions() {
    let asks = postgres_saying(pg_auth(10, b"SCRAM-SHA-256\0\0"));
    let unknown = postgres_saying(pg_error("28000", "no pg_hba.conf entry"));
    let no_database = postgres_saying(pg_error("3D000", "database does not exist"));
    let starting = postgres_saying(pg_error("57P03", "the database system is starting up"));
    let full = postgres_saying(pg_error("53300", "sorry, too many clients already"));
    let other = postgres_saying(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    let cut = postgres_saying(b"R\0\0".to_vec());
    let long = postgres_saying(b"E\x7f\xff\xff\xff".to_vec());
    let check = "{type: postgres, timeout: 500ms}";
    verdicts(&[
        ("asks", &asks, check, ""),
        ("unknown", &unknown, check, ""),
        ("no database", &no_database, check, ""),
        (
            "starting",
            &starting,
            check,
            "the server says FATAL 57P03: the database system is starting up",
        ),
        ("full", &full, check, "FATAL 53300: sorry"),
        (
            "another server",
            &other,
            check,
            "answer is not that of PostgreSQL",
        ),
        ("cut", &cut, check, "no answer within 500ms"),
        ("long", &long, check, "answer is not that of PostgreSQL"),
    ]);
}

#[test]
fn a_postgres_check_logs_in_each_way_and_asks_for_the_state() {
    let directory = TempDir::new();
    let file = directory.path().join("password");
    fs::write(&file, "pencil\n").unwrap();
    let wrong = directory.path().join("wrong");
    fs::write(&wrong, "pen\n").unwrap();
    let check = |more: &str| {
        format!("{{type: postgres, user: me, database: shop, timeout: 10s, interval: 1h, {more}}}")
    };
    let password = format!("password_file: {}", file.display());
    let with_wrong = format!("password_file: {}", wrong.display());
    let with = |target: &str| check(&format!("{password}, target: {target}"));
    let [trusting, clear, md5, by_scram, stranger] = [
        postgres(trust, "f"),
        postgres(cleartext, "f"),
        postgres(md5_login, "t"),
        postgres(scram, "t"),
        postgres(scram_of_a_stranger, "t"),
    ];
    let gssapi = postgres_saying(pg_auth(7, b""));
    let rows = [
        ("trust", &trusting, check("target: primary"), ""),
        ("clear", &clear, with("primary"), ""),
        ("md5", &md5, with("standby"), ""),
        ("scram", &by_scram, with("standby"), ""),
        ("login alone", &by_scram, check(&password), ""),
        (
            "no standby",
            &clear,
            with("standby"),
            "the server is a primary, expected a standby",
        ),
        (
            "no primary",
            &by_scram,
            with("primary"),
            "the server is a standby, expected a primary",
        ),
        (
            "no password",
            &by_scram,
            check("target: primary"),
            "the server wants a password: set `password_file`",
        ),
        (
            "wrong password",
            &by_scram,
            check(&with_wrong),
            "FATAL 28P01: password authentication failed",
        ),
        (
            "stranger",
            &stranger,
            check(&password),
            "the server is not trusted: it does not know the password itself",
        ),
        (
            "gssapi",
            &gssapi,
            check(&password),
            "a way to log in that balancer does not have",
        ),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, peer, check, cause)| (*name, *peer, check.as_str(), *cause))
        .collect();
    let daemon = verdicts(&rows);
    assert!(!daemon.stderr.all().concat().contains("pencil"));
}
