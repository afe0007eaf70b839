//! Sources against a scripted DNS server on 127.0.0.1, and files. Time is real; every wait is for
//! an event.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::{net::UdpSocket, task::LocalSet};

use super::{
    answer::{DnsAnswer, ServiceHost},
    *,
};
use crate::{
    base::fixture::ScratchPath,
    config::{RealFiles, load_through},
};

/// A directory that goes with the test.
struct TestFolder(ScratchPath);

impl TestFolder {
    fn new(name: &str) -> Self {
        Self(ScratchPath::directory(&format!("discovery-{name}")))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// The files of a system's resolver, of which this test has written some.
    fn resolver_files(&self) -> ResolverFiles {
        ResolverFiles {
            resolv_conf: self.0.join("resolv.conf"),
            hosts: self.0.join("hosts"),
            if_inet6: self.0.join("if_inet6"),
        }
    }
}

/// Answers by question; what is not listed does not exist.
type Zone = Rc<RefCell<BTreeMap<(String, RecordType), Result<(Vec<RData>, u32), ResponseCode>>>>;

/// Starts a server for `zone`. Returns its address, and the questions that it got.
async fn serve(zone: &Zone) -> (SocketAddr, Rc<RefCell<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (zone, seen) = (Rc::clone(zone), Rc::new(RefCell::new(Vec::new())));
    let questions = Rc::clone(&seen);
    spawn_local(async move {
        let mut buffer = [0; 1500];
        loop {
            let (count, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..count]).unwrap();
            let question = query.queries[0].clone();
            let name = question.name().to_ascii();
            let kind = question.query_type();
            questions.borrow_mut().push(format!("{name} {kind}"));
            let mut reply = Message::response(query.id, query.op_code);
            reply.add_query(question.clone());
            let found = zone.borrow().get(&(name, kind)).cloned();
            match found {
                None => reply.metadata.response_code = ResponseCode::NXDomain,
                Some(Err(code)) => reply.metadata.response_code = code,
                Some(Ok((records, ttl))) => {
                    reply.add_answers(
                        records
                            .into_iter()
                            .map(|data| Record::from_rdata(question.name().clone(), ttl, data)),
                    );
                }
            }
            let bytes = reply.to_vec().unwrap();
            socket.send_to(&bytes, client).await.unwrap();
        }
    });
    (address, seen)
}

fn v4(text: &str) -> RData {
    RData::A(A(text.parse().unwrap()))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn put(zone: &Zone, name: &str, kind: RecordType, records: Vec<RData>, ttl: u32) {
    let key = (name.to_owned(), kind);
    zone.borrow_mut().insert(key, Ok((records, ttl)));
}

#[tokio::test]
async fn the_search_list_and_both_families_are_used_as_the_system_does() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("search");
            folder.write("resolv.conf", "search one.test two.test\noptions ndots:2\n");
            folder.write("hosts", "10.9.9.9 listed.test alias\n");
            folder.write(
                "if_inet6",
                "20010db8000000000000000000000001 02 40 00 80 eth0\n",
            );
            let zone = Zone::default();
            put(
                &zone,
                "app.two.test.",
                RecordType::A,
                vec![v4("10.0.0.2"), v4("10.0.0.1")],
                7,
            );
            let aaaa = RData::AAAA(AAAA("2001:db8::1".parse().unwrap()));
            put(&zone, "app.two.test.", RecordType::AAAA, vec![aaaa], 5);
            let (server, seen) = serve(&zone).await;
            let resolver = DnsResolver::new(folder.resolver_files(), &[server]).unwrap();
            let found = resolver.host("app", &[]).await.unwrap();
            let expected = ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(ip);
            assert_eq!(found.answer, expected);
            assert_eq!(found.ttl, Duration::from_secs(5));
            let asked = seen.borrow().clone();
            assert!(asked.contains(&"app.one.test. A".to_owned()), "{asked:?}");
            assert!(
                !asked.contains(&"app.one.test. AAAA".to_owned()),
                "{asked:?}"
            );
            // The hosts file goes first, and nothing is asked.
            seen.borrow_mut().clear();
            let listed = resolver.host("alias", &[]).await.unwrap();
            assert_eq!(listed.answer, [ip("10.9.9.9")]);
            assert_eq!(*seen.borrow(), [] as [String; 0]);
            // It is read again when it changes.
            folder.write("hosts", "10.9.9.8 alias\n");
            assert!(resolver.update(&[server]));
            assert!(!resolver.update(&[server]));
            let listed = resolver.host("alias", &[]).await.unwrap();
            assert_eq!(listed.answer, [ip("10.9.9.8")]);
            // Without an address of its own beyond the link, IPv6 is of no use.
            folder.write(
                "if_inet6",
                "fe800000000000000000000000000001 02 40 20 80 eth0\n",
            );
            let found = resolver.host("app", &[]).await.unwrap();
            assert_eq!(found.answer, ["10.0.0.1", "10.0.0.2"].map(ip));
        })
        .await;
}

#[tokio::test]
async fn each_failure_of_a_name_has_its_cause() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("causes");
            let zone = Zone::default();
            put(&zone, "empty.test.", RecordType::A, Vec::new(), 5);
            for (name, code) in [
                ("servfail.test.", ResponseCode::ServFail),
                ("refused.test.", ResponseCode::Refused),
            ] {
                let key = (name.to_owned(), RecordType::A);
                zone.borrow_mut().insert(key, Err(code));
            }
            let (server, _) = serve(&zone).await;
            let resolver = DnsResolver::new(folder.resolver_files(), &[server]).unwrap();
            for (name, cause) in [
                ("none.test", "NXDOMAIN"),
                ("empty.test", "no addresses"),
                ("servfail.test", "DNS server says"),
                ("refused.test", "DNS server says"),
            ] {
                let error = resolver.host(name, &[ip("10.0.0.1")]).await.unwrap_err();
                assert!(error.contains(cause), "{name}: {error}");
            }
        })
        .await;
}

#[tokio::test]
async fn a_service_has_the_addresses_of_its_hosts() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("service");
            let zone = Zone::default();
            let srv = |priority, weight, port, host: &str| {
                RData::SRV(SRV::new(
                    priority,
                    weight,
                    port,
                    Name::from_ascii(host).unwrap(),
                ))
            };
            let records = vec![
                srv(20, 5, 8080, "B.test."),
                srv(10, 1, 8081, "a.test."),
                srv(10, 1, 0, "nowhere.test."),
                srv(10, 1, 80, "."),
                srv(10, 1, 80, "missing.test."),
            ];
            put(&zone, "_http._tcp.test.", RecordType::SRV, records, 60);
            put(&zone, "a.test.", RecordType::A, vec![v4("10.0.0.1")], 9);
            put(
                &zone,
                "b.test.",
                RecordType::A,
                vec![v4("10.0.0.2"), v4("10.0.0.3")],
                60,
            );
            let (server, _) = serve(&zone).await;
            let resolver = DnsResolver::new(folder.resolver_files(), &[server]).unwrap();
            let found = resolver.service("_http._tcp.test", &[]).await.unwrap();
            let host = |priority, host: &str, port, weight, addresses: &[&str]| ServiceHost {
                priority,
                host: host.to_owned(),
                port,
                weight,
                addresses: addresses.iter().map(|text| ip(text)).collect(),
            };
            let expected = [
                host(10, "a.test", 8081, 1, &["10.0.0.1"]),
                host(20, "b.test", 8080, 5, &["10.0.0.2", "10.0.0.3"]),
            ];
            assert_eq!(found.answer, expected);
            assert_eq!(found.ttl, Duration::from_secs(9));
            let none = resolver.service("_other._tcp.test", &[]).await;
            assert_eq!(none.unwrap_err(), "no such name (NXDOMAIN)");
        })
        .await;
}

/// Starts a server that tells clients to ask again by TCP for `long.test`, where it accepts and
/// never answers, and sends nonsense for `raw.test`. `app.test` is 10.0.0.1.
async fn serve_badly() -> (SocketAddr, tokio::net::TcpListener) {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    spawn_local(async move {
        let mut buffer = [0; 1500];
        loop {
            let (count, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..count]).unwrap();
            let question = query.queries[0].clone();
            let mut reply = Message::response(query.id, query.op_code);
            reply.add_query(question.clone());
            let name = question.name().to_ascii();
            match name.as_str() {
                "long.test." => reply.metadata.truncation = true,
                _ if question.query_type() == RecordType::A => {
                    let record = Record::from_rdata(question.name().clone(), 1, v4("10.0.0.1"));
                    reply.add_answers([record]);
                }
                _ => {}
            }
            let mut bytes = reply.to_vec().unwrap();
            if name == "raw.test." {
                bytes.truncate(14);
            }
            socket.send_to(&bytes, client).await.unwrap();
        }
    });
    (address, tcp)
}

#[tokio::test]
async fn a_server_that_hangs_on_one_name_holds_up_no_other() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("hangs");
            let (server, _tcp) = serve_badly().await;
            let resolver = DnsResolver::new(folder.resolver_files(), &[server]).unwrap();
            let bad = ["long.test", "raw.test"].map(|name| {
                let resolver = resolver.clone();
                spawn_local(async move { resolver.host(name, &[]).await.is_err() })
            });
            while bad.iter().any(|one| !one.is_finished()) {
                let found = resolver.host("app.test", &[]).await;
                assert_eq!(found.unwrap().answer, [ip("10.0.0.1")]);
            }
            for one in bad {
                assert!(one.await.unwrap());
            }
        })
        .await;
}

/// Loads a configuration with these pools.
fn config(folder: &TestFolder, pools: &str) -> Arc<Config> {
    let text = format!("listeners: {{web: {{bind: ':80', redirect: https}}}}\n{pools}\n");
    folder.write("balancer.yaml", &text);
    let path = folder.0.join("balancer.yaml");
    let loaded = load_through(&path, &RealFiles::default());
    Arc::new(
        loaded
            .unwrap_or_else(|problems| panic!("{}", problems.render()))
            .config,
    )
}

fn names(discovery: &MemberDiscovery, config: &Config) -> Vec<String> {
    let members = discovery.members(&config.pools[0]);
    members.iter().map(|one| one.name.to_string()).collect()
}

/// Waits until the members of the first pool are `wanted`.
async fn until(discovery: &mut MemberDiscovery, config: &Config, wanted: &[&str]) {
    let reached = async {
        while names(discovery, config) != wanted {
            discovery.changed().await;
            discovery.take_changes();
        }
    };
    let limit = Duration::from_secs(20);
    let timely = tokio::time::timeout(limit, reached).await;
    assert!(timely.is_ok(), "{:?}", names(discovery, config));
}

#[tokio::test]
async fn answers_become_members_and_a_failure_keeps_them() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("names");
            let zone = Zone::default();
            put(&zone, "app.test.", RecordType::A, vec![v4("10.0.0.1")], 1);
            let (server, _) = serve(&zone).await;
            let pools = |more: &str| {
                config(
                    &folder,
                    &format!(
                        "resolvers: ['{server}']\npools: {{app: {{backends: [app.test:80{more}]}}}}"
                    ),
                )
            };
            let table: Arc<SourceTable> = Arc::default();
            let mut discovery =
                MemberDiscovery::with_files(Arc::clone(&table), folder.resolver_files()).unwrap();
            let first = pools("");
            assert_eq!(
                names(&discovery, &first),
                ["app.test:80"],
                "not looked up yet"
            );
            discovery.apply(&first);
            until(&mut discovery, &first, &["app.test:80/10.0.0.1"]).await;
            put(
                &zone,
                "app.test.",
                RecordType::A,
                vec![v4("10.0.0.2"), v4("10.0.0.1")],
                1,
            );
            let both = ["app.test:80/10.0.0.1", "app.test:80/10.0.0.2"];
            until(&mut discovery, &first, &both).await;
            // A failure is told, and changes nothing.
            zone.borrow_mut().clear();
            let (key, source) = table.all().remove(0);
            assert_eq!(key, (MemberSourceKind::Dns, "app.test".into()));
            while !source.is_failing() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(names(&discovery, &first), both);
            let view = source.view();
            assert_eq!(view.error.as_deref(), Some("no such name (NXDOMAIN)"));
            assert_eq!(view.answer, ["10.0.0.1", "10.0.0.2"]);
            // A reload keeps the answer, and knows it at once in any pool.
            let second = pools(", {address: 'app.test:81', name: other}");
            let all = [both[0], both[1], "other/10.0.0.1", "other/10.0.0.2"];
            assert_eq!(names(&discovery, &second), all);
            discovery.apply(&second);
            assert_eq!(names(&discovery, &second), all);
            assert_eq!(table.all().len(), 1);
            discovery.apply(&config(&folder, "pools: {app: {backends: [10.0.0.1:80]}}"));
            assert_eq!(table.all().len(), 0);
        })
        .await;
}

/// Replaces a file as a whole.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_a_broken_one_keeps_its_members() {
    LocalSet::new()
        .run_until(async {
            let folder = TestFolder::new("file");
            let path = folder.0.join("members.yaml");
            fs::write(&path, "[10.0.0.1:80]").unwrap();
            let pool = "pools: {app: {discover: {file: members.yaml}}}";
            let config = config(&folder, pool);
            let table: Arc<SourceTable> = Arc::default();
            let mut discovery =
                MemberDiscovery::with_files(Arc::clone(&table), folder.resolver_files()).unwrap();
            // Known from the start on.
            assert_eq!(names(&discovery, &config), ["10.0.0.1:80"]);
            discovery.apply(&config);
            replace(
                &path,
                r#"[{"address": "10.0.0.2:80", "weight": 5}, "10.0.0.3:80"]"#,
            );
            until(&mut discovery, &config, &["10.0.0.2:80", "10.0.0.3:80"]).await;
            // In place, with the same length.
            fs::write(
                &path,
                r#"[{"address": "10.0.0.4:80", "weight": 5}, "10.0.0.3:80"]"#,
            )
            .unwrap();
            until(&mut discovery, &config, &["10.0.0.4:80", "10.0.0.3:80"]).await;
            let source = table.all().remove(0).1;
            for broken in ["[10.0.0.1", "", "[10.0.0.1:80, 10.0.0.1:80]", "{a: 1}"] {
                let failed = source.failed.load(std::sync::atomic::Ordering::Relaxed);
                replace(&path, broken);
                while source.failed.load(std::sync::atomic::Ordering::Relaxed) == failed {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert!(source.is_failing());
                discovery.take_changes();
                assert_eq!(names(&discovery, &config), ["10.0.0.4:80", "10.0.0.3:80"]);
            }
            fs::remove_file(&path).unwrap();
            while !source
                .view()
                .error
                .unwrap_or_default()
                .contains("No such file")
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(names(&discovery, &config), ["10.0.0.4:80", "10.0.0.3:80"]);
            // A symbolic link to another place, as of a mounted map of files.
            for version in ["one", "two"] {
                let directory = folder.0.join(version);
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join("list"), format!("[{version}.test:80]")).unwrap();
                let link = folder.0.join("link");
                std::os::unix::fs::symlink(directory.join("list"), &link).unwrap();
                fs::rename(&link, &path).unwrap();
                let name = format!("{version}.test:80");
                until(&mut discovery, &config, &[&name]).await;
                // Names in the list are looked up too.
                let kinds: Vec<_> = table.all().into_iter().map(|(key, _)| key.1).collect();
                assert_eq!(kinds, [format!("{version}.test").into(), Arc::from("app")]);
            }
            // An empty list is meant.
            replace(&path, "[]");
            until(&mut discovery, &config, &[]).await;
            assert!(!source.is_failing());
            assert_eq!(table.all().len(), 1);
        })
        .await;
}

#[test]
fn an_answer_of_one_kind_is_none_of_the_other() {
    let host = DnsAnswer::Host(vec![ip("10.0.0.1")]);
    assert_eq!((host.host().len(), host.service().len()), (1, 0));
}
