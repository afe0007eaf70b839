//! The same corpus through nginx and HAProxy, where they are installed, judged by the same
//! function; writes docs/comparison.md.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{
    corpus::CorpusCase,
    daemon,
    fixture::ProxyFixture,
    oracle::{self, Judgement, OutcomeKind},
    requests, responses,
};
use crate::harness::{TempDir, poll};

/// Time that client and scripts wait for a proxy; one that needs longer hangs.
const PROXY_TIMEOUT: Duration = Duration::from_secs(2);

const NGINX_CONFIG: &str = include_str!("nginx.conf");
const HAPROXY_CONFIG: &str = include_str!("haproxy.cfg");

/// Another proxy; killed when dropped.
struct ForeignProxy {
    child: Child,
    front: SocketAddr,
    _directory: TempDir,
}

impl Drop for ForeignProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `program` with `config`, in which `FRONT`, `BACK` and `DIR` stand for what they are.
fn start(program: &str, arguments: &[&str], config: &str, backend: SocketAddr) -> ForeignProxy {
    let directory = TempDir::new();
    let front = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    let text = config
        .replace("FRONT", &front.to_string())
        .replace("BACK", &backend.to_string())
        .replace("DIR", &directory.path().display().to_string());
    let file = directory.path().join("config");
    fs::write(&file, text).unwrap();
    let child = Command::new(program)
        .args(arguments)
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    poll(|| TcpStream::connect(front).ok()).expect("the proxy listens");
    ForeignProxy {
        child,
        front,
        _directory: directory,
    }
}

/// Version that a program prints; `None` if it is not installed.
fn version(program: &str) -> Option<String> {
    let said = Command::new(program).arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    let word = |text: &str| text.split_whitespace().nth(2).map(str::to_owned);
    word(text.lines().next()?)
}

/// Runs `use_front` with a proxy in front of `backend`.
fn with_proxy<R>(name: &str, backend: SocketAddr, use_front: impl FnOnce(SocketAddr) -> R) -> R {
    match name {
        "nginx" => {
            let proxy = start("nginx", &["-e", "stderr", "-c"], NGINX_CONFIG, backend);
            use_front(proxy.front)
        }
        "haproxy" => {
            let proxy = start("haproxy", &["-db", "-f"], HAPROXY_CONFIG, backend);
            use_front(proxy.front)
        }
        _ => {
            let daemon = daemon(backend);
            use_front(daemon.address("@web"))
        }
    }
}

fn judge_requests(name: &str, cases: &[CorpusCase]) -> Vec<Judgement> {
    let stage = ProxyFixture::new(Vec::new(), PROXY_TIMEOUT);
    with_proxy(name, stage.backend, |front| {
        let judged = cases.iter().map(|case| {
            let (seen, events) = stage.play_request(front, case, 1);
            oracle::of_request(case, &seen, &events)
        });
        judged.collect()
    })
}

fn judge_responses(name: &str, cases: &[CorpusCase]) -> Vec<Judgement> {
    let stage = ProxyFixture::new(cases.to_vec(), PROXY_TIMEOUT);
    with_proxy(name, stage.backend, |front| {
        let judged = cases.iter().enumerate().map(|(number, case)| {
            let (first, second, events) = stage.play_response(front, number, case);
            oracle::of_response(case, number, &first, second.as_ref(), &events)
        });
        judged.collect()
    })
}

/// One column of a table: what one proxy made of all cases.
struct Column {
    name: &'static str,
    judged: Vec<Judgement>,
}

impl Column {
    /// Refused, cut, canonical, equal, hung, dangerous; each case counts once.
    fn cell(&self, of: impl Fn(usize) -> bool) -> String {
        let mut counts = [0_u32; 5];
        for (_, judgement) in self.judged.iter().enumerate().filter(|(at, _)| of(*at)) {
            let place = match judgement.kind {
                _ if !judgement.dangers.is_empty() => 4,
                OutcomeKind::Refused => 0,
                OutcomeKind::Cut | OutcomeKind::Hung => 1,
                OutcomeKind::Canonical => 2,
                OutcomeKind::Equal => 3,
            };
            counts[place] += 1;
        }
        let [refused, cut, canonical, equal, dangerous] = counts;
        let dangerous = match dangerous {
            0 => "0".to_owned(),
            some => format!("**{some}**"),
        };
        format!("{refused} · {cut} · {canonical} · {equal} · {dangerous}")
    }
}

fn table(page: &mut String, cases: &[CorpusCase], columns: &[Column]) {
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    writeln!(page, "| class | cases | {} |", names.join(" | ")).unwrap();
    writeln!(page, "|---|---|{}", "---|".repeat(names.len())).unwrap();
    let mut classes: Vec<&str> = cases.iter().map(|case| case.class.as_str()).collect();
    classes.dedup();
    for class in classes {
        let of = |at: usize| cases[at].class == class;
        let count = (0..cases.len()).filter(|at| of(*at)).count();
        let cells: Vec<String> = columns.iter().map(|column| column.cell(of)).collect();
        writeln!(page, "| `{class}` | {count} | {} |", cells.join(" | ")).unwrap();
    }
    let cells: Vec<String> = columns.iter().map(|column| column.cell(|_| true)).collect();
    writeln!(page, "| all | {} | {} |\n", cases.len(), cells.join(" | ")).unwrap();
}

/// The dangerous cases of one proxy, by what is dangerous about them.
fn list(page: &mut String, cases: &[CorpusCase], column: &Column) {
    let mut by_danger: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (case, judgement) in cases.iter().zip(&column.judged) {
        if let Some(danger) = judgement.dangers.first() {
            let danger = danger.split(": ").next().unwrap_or(danger);
            by_danger.entry(danger).or_default().push(case.id());
        }
    }
    for (danger, names) in by_danger {
        writeln!(page, "- {danger}: `{}`", names.join("`, `")).unwrap();
    }
}

fn page(versions: &str, cases: [&[CorpusCase]; 2], columns: [&[Column]; 2]) -> String {
    let mut page = include_str!("comparison_head.md").replace("VERSIONS", versions);
    let titles = ["## Requests\n", "## Responses\n"];
    for place in 0..2 {
        writeln!(page, "{}", titles[place]).unwrap();
        table(&mut page, cases[place], columns[place]);
        for column in columns[place] {
            let dangerous = column
                .judged
                .iter()
                .any(|judgement| !judgement.dangers.is_empty());
            if dangerous {
                writeln!(page, "Dangerous with {}:\n", column.name).unwrap();
                list(&mut page, cases[place], column);
                page.push('\n');
            }
        }
    }
    writeln!(page, "## Configurations\n").unwrap();
    writeln!(page, "nginx:\n\n```nginx\n{NGINX_CONFIG}```\n").unwrap();
    writeln!(page, "HAProxy:\n\n```haproxy\n{HAPROXY_CONFIG}```").unwrap();
    page
}

#[test]
#[ignore = "needs nginx and haproxy; writes docs/comparison.md"]
fn other_proxies_are_given_the_same_messages() {
    let (Some(nginx), Some(haproxy)) = (version("nginx"), version("haproxy")) else {
        eprintln!("skipped: nginx and haproxy are not both installed");
        return;
    };
    let (requests, responses) = (requests(), responses());
    let names = ["balancer", "nginx", "haproxy"];
    let asked = names.map(|name| Column {
        name,
        judged: judge_requests(name, &requests),
    });
    let answered = names.map(|name| Column {
        name,
        judged: judge_responses(name, &responses),
    });
    let versions = format!(
        "balancer {}, {nginx}, HAProxy {haproxy}",
        env!("CARGO_PKG_VERSION")
    );
    let page = page(&versions, [&requests, &responses], [&asked, &answered]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/comparison.md");
    fs::write(path, page).unwrap();
    for judgement in asked[0].judged.iter().chain(&answered[0].judged) {
        assert_eq!(judgement.dangers, [""; 0]);
    }
}

#[test]
fn the_comparison_was_made_with_these_cases() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/comparison.md");
    let page = fs::read_to_string(path).unwrap();
    let mut written = BTreeMap::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let class = cells[0].trim_end_matches('`').to_owned();
        written.insert(class, cells[1].parse::<usize>().unwrap());
    }
    let mut counted = BTreeMap::new();
    for case in requests().into_iter().chain(responses()) {
        *counted.entry(case.class).or_insert(0) += 1;
    }
    assert_eq!(
        written, counted,
        "docs/comparison.md is out of date: cargo test --test blackbox differential -- --ignored"
    );
}
