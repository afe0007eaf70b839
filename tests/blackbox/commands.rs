//! Output and exit codes of the commands that need no daemon; the admin API is a scripted peer.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
};

use crate::harness::{
    TempDir,
    daemon::{balancer, command},
    peer::{ScriptedPeer, refused},
};

const GOOD_CONFIG: &str = "listeners:\n  web: {bind: \":8080\", pool: app}\npools:\n  app:\n    backends: [127.0.0.1:9001, 127.0.0.1:9002]\n";

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An admin API that answers everything with `status` and `body`.
fn admin(status: &str, body: &str) -> ScriptedPeer {
    ScriptedPeer::saying(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// Runs `command` against the peer, with a token.
fn ask(command: &[&str], peer: &ScriptedPeer) -> Output {
    let directory = TempDir::new();
    let token = directory.path().join("token");
    fs::write(&token, "s3cret\n").unwrap();
    let address = peer.address.to_string();
    let mut arguments = command.to_vec();
    arguments.extend(["--admin", &address, "--token-file", token.to_str().unwrap()]);
    balancer(&arguments)
}

#[test]
fn wrong_usage_exits_with_2_and_help_and_version_with_0() {
    assert_eq!(code(&balancer(&["bogus"])), 2);
    assert_eq!(code(&balancer(&["status", "--admin", "nowhere"])), 2);
    let help = balancer(&["--help"]);
    assert_eq!(code(&help), 0);
    assert!(out(&help).contains("Examples:"));
    let version = balancer(&["version"]);
    assert_eq!(out(&version), out(&balancer(&["--version"])));
    assert_eq!(code(&version), 0);
}

#[test]
fn the_command_lines_of_other_products_are_answered_with_ours() {
    for (arguments, tip) in [
        (&["-t"] as &[&str], "`balancer check FILE`"),
        (&["app.yaml"], "`balancer run -c app.yaml`"),
        (&["run", "app.yaml"], "`-c app.yaml`"),
        (&["-s", "reload"], "`balancer reload`"),
    ] {
        let refused = balancer(arguments);
        assert_eq!(code(&refused), 2, "{arguments:?}");
        assert!(err(&refused).contains(tip), "{}", err(&refused));
    }
}

#[test]
fn schema_prints_the_file_that_is_shipped_beside_the_configuration() {
    let printed = balancer(&["schema"]);
    assert_eq!(code(&printed), 0);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/balancer.schema.json");
    assert_eq!(out(&printed), fs::read_to_string(shipped).unwrap());
    let configuration = concat!(env!("CARGO_MANIFEST_DIR"), "/balancer.yaml");
    let first = "# yaml-language-server: $schema=balancer.schema.json\n";
    assert!(
        fs::read_to_string(configuration)
            .unwrap()
            .starts_with(first)
    );
}

#[test]
fn check_tells_a_good_file_from_a_bad_one() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD_CONFIG).unwrap();
    let name = file.to_str().unwrap();
    let good = balancer(&["check", name]);
    assert_eq!(code(&good), 0, "{}", err(&good));
    assert_eq!(
        out(&good),
        format!("{name}: ok: 1 listener, 0 routes, 1 pool, 2 backends\n")
    );

    fs::write(&file, GOOD_CONFIG.replace("pool: app", "pool: ap")).unwrap();
    let bad = balancer(&["check", name]);
    assert_eq!((code(&bad), out(&bad).as_str()), (1, ""));
    assert!(err(&bad).contains(":2:"), "no place: {}", err(&bad));
    let json = balancer(&["check", name, "--json"]);
    assert_eq!(code(&json), 1);
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert_eq!(document["problems"][0]["line"], 2);

    assert_eq!(code(&balancer(&["check", "/nonexistent.yaml"])), 1);
}

#[test]
fn run_with_a_bad_file_exits_with_78() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, "listeners: {web: {bined: 1}}\n").unwrap();
    for command in ["run", "demo"] {
        let output = balancer(&[command, "-c", file.to_str().unwrap()]);
        assert_eq!(code(&output), 78, "{command}: {}", err(&output));
        assert!(err(&output).contains("bined"), "{}", err(&output));
    }
}

#[test]
fn a_daemon_that_is_not_there_exits_with_4_and_one_clear_line() {
    let address = refused().to_string();
    for command in ["status", "reload"] {
        let output = balancer(&[command, "--admin", &address]);
        assert_eq!(code(&output), 4);
        let line = format!("error: the daemon is not reachable at `{address}`: ");
        assert!(err(&output).starts_with(&line), "{}", err(&output));
        assert_eq!(err(&output).lines().count(), 1);
    }
    let output = balancer(&[
        "status",
        "--ready",
        "--admin",
        "unix:/nonexistent/admin.sock",
    ]);
    assert_eq!(code(&output), 4);
}

#[test]
fn reload_prints_what_changed() {
    let peer = admin(
        "200 OK",
        r#"{"changes":["pool app: changed","listener b: added"]}"#,
    );
    let output = ask(&["reload"], &peer);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(out(&output), "pool app: changed\nlistener b: added\n");
    let request = &peer.wait_for_requests(1)[0];
    assert_eq!((&*request.method, &*request.target), ("POST", "/v1/reload"));
    assert_eq!(request.header("authorization"), Some("Bearer s3cret"));

    let output = ask(&["reload"], &admin("200 OK", r#"{"changes":[]}"#));
    assert_eq!(
        (code(&output), out(&output).as_str()),
        (0, "nothing changed\n")
    );
}

#[test]
fn a_refused_reload_exits_with_1_and_shows_the_places() {
    let peer = admin(
        "422 Unprocessable Content",
        r#"{"error":{"code":422,"message":"m","details":"d"},"problems":[{}],"rendered":"error: pool `ap` is not defined\n --> a.yaml:2:3\n"}"#,
    );
    let output = ask(&["reload"], &peer);
    assert_eq!((code(&output), out(&output).as_str()), (1, ""));
    assert!(err(&output).contains("--> a.yaml:2:3"), "{}", err(&output));
}

#[test]
fn an_answer_that_is_not_ours_exits_with_4() {
    let output = ask(
        &["status"],
        &ScriptedPeer::saying("SSH-2.0-OpenSSH_9.2\r\n"),
    );
    assert_eq!(code(&output), 4, "{}", err(&output));
}

#[test]
fn a_backend_port_that_is_taken_is_named_by_the_demo() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    let peer = ScriptedPeer::answering("mine");
    fs::write(
        &file,
        GOOD_CONFIG
            .replace("127.0.0.1:9002", &peer.address.to_string())
            .replace("127.0.0.1:9001, ", ""),
    )
    .unwrap();
    let output = balancer(&["demo", "-c", file.to_str().unwrap()]);
    assert_eq!(code(&output), 1, "{}", err(&output));
    let wanted = format!("error: backend-1 cannot listen on {}: ", peer.address);
    assert!(err(&output).starts_with(&wanted), "{}", err(&output));
}

#[test]
fn the_demo_takes_no_addresses_of_other_machines() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD_CONFIG.replace("127.0.0.1:9002", "192.0.2.1:80")).unwrap();
    let output = balancer(&["demo", "-c", file.to_str().unwrap()]);
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(
        err(&output).contains("pool `app` has `192.0.2.1:80`"),
        "{}",
        err(&output)
    );
}

#[test]
fn check_takes_the_file_by_option_and_from_standard_input() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD_CONFIG).unwrap();
    let by_option = balancer(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!(code(&by_option), 0, "{}", err(&by_option));
    assert_eq!(code(&balancer(&["check", "a", "-c", "b"])), 2);
    let piped = |arguments: &[&str], text: &str| {
        let mut child = command()
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    for arguments in [
        &["check", "-"][..],
        &["check", "-c", "-"],
        &["check", "/dev/stdin"],
    ] {
        let good = piped(arguments, GOOD_CONFIG);
        assert_eq!(code(&good), 0, "{}", err(&good));
        assert!(
            out(&good).starts_with("<stdin>: ok: 1 listener"),
            "{}",
            out(&good)
        );
        let bad = piped(arguments, &GOOD_CONFIG.replace("pool: app", "pool: ap"));
        assert_eq!(code(&bad), 1);
        assert!(err(&bad).contains("<stdin>:2:"), "{}", err(&bad));
    }
    // Paths begin at the current directory.
    fs::write(directory.path().join("token"), "s3cret").unwrap();
    let token = format!("admin: {{bind: 9901, token_file: token}}\n{GOOD_CONFIG}");
    assert_eq!(code(&piped(&["check", "-"], &token)), 0);
}

#[test]
fn check_with_the_rights_of_a_user_finds_the_keys_that_it_cannot_read() {
    if !rustix::process::geteuid().is_root() {
        let refused = balancer(&["check", "--user", "root", "/nonexistent.yaml"]);
        assert!(err(&refused).contains("use sudo"), "{}", err(&refused));
        return;
    }
    let directory = TempDir::new();
    let folder = directory.path();
    for name in ["good.pem", "good.key"] {
        let from = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        fs::copy(from, folder.join(name)).unwrap();
    }
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let file = folder.join("a.yaml");
    let tls = "tls: {cert: good.pem, key: good.key}, pool: app";
    fs::write(
        &file,
        GOOD_CONFIG.replace("pool: app}", &format!("{tls}}}")),
    )
    .unwrap();
    let check = |user: &str| balancer(&["check", "--user", user, file.to_str().unwrap()]);
    mode("good.key", 0o644);
    assert_eq!(code(&check("daemon")), 0, "{}", err(&check("daemon")));
    mode("good.key", 0o600);
    let refused = check("daemon");
    assert_eq!(code(&refused), 1);
    let said = err(&refused);
    assert!(
        said.contains("cannot read `good.key`: permission denied"),
        "{said}"
    );
    assert!(said.contains("a.yaml:2:"), "{said}");
    assert_eq!(code(&check("root")), 0);
    let unknown = check("no-such-user-here");
    assert_eq!(code(&unknown), 1);
    assert!(err(&unknown).contains("there is no user `no-such-user-here`"));

    mode("good.key", 0o644);
    let log = format!("access_log: {{output: \"file:a.log\"}}\n{GOOD_CONFIG}");
    fs::write(&file, log).unwrap();
    let refused = check("daemon");
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("access_log.output: user `daemon` may not write to"));
}

#[test]
fn a_command_whose_output_is_lost_exits_with_1() {
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD_CONFIG).unwrap();
    let shell = |redirect: &str, arguments: &str| {
        let program = command().get_program().to_owned();
        let line = format!("{} {arguments} {redirect}", program.display());
        let output = std::process::Command::new("sh")
            .args(["-c", &line])
            .output();
        output.unwrap().status.code()
    };
    let check = format!("check {}", file.display());
    for arguments in [&*check, "version", "--version", "--help"] {
        assert_eq!(shell("> /dev/full", arguments), Some(1), "{arguments}");
        assert_eq!(shell(">&-", arguments), Some(1), "{arguments}");
        assert_eq!(shell("> /dev/null", arguments), Some(0), "{arguments}");
    }
}

#[test]
fn no_command_prints_colours_where_they_are_not_wanted() {
    if std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("no script(1) here: skipped");
        return;
    }
    let directory = TempDir::new();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD_CONFIG.replace("pool: app", "pool: ap")).unwrap();
    let on_terminal = |variables: &[(&str, &str)]| {
        let line = format!(
            "{} check {}",
            command().get_program().display(),
            file.display()
        );
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &line, "/dev/null"]);
        script.env_remove("NO_COLOR").env("TERM", "xterm");
        script.envs(variables.iter().copied());
        out(&script.stdin(Stdio::null()).output().unwrap())
    };
    assert!(on_terminal(&[]).contains('\u{1b}'));
    assert!(!on_terminal(&[("NO_COLOR", "1")]).contains('\u{1b}'));
    assert!(!on_terminal(&[("TERM", "dumb")]).contains('\u{1b}'));
}

#[test]
fn a_socket_that_cannot_be_opened_says_what_is_missing() {
    let output = balancer(&["status", "--admin", "unix:/nonexistent/admin.sock"]);
    assert_eq!(code(&output), 4);
    let said = err(&output);
    assert!(
        said.contains("is not reachable at `unix:/nonexistent/admin.sock`"),
        "{said}"
    );
    assert!(said.contains("`--admin unix:PATH`"), "{said}");
    let peer = admin(
        "401 Unauthorized",
        r#"{"error":{"code":401,"message":"Unauthorized","details":"The bearer token is needed."}}"#,
    );
    for command in ["status", "reload"] {
        let output = balancer(&[command, "--admin", &peer.address.to_string()]);
        assert_eq!(code(&output), 1);
        let said = err(&output);
        let wanted = "error: The bearer token is needed.\ngive the token with `--token-file FILE`";
        assert!(said.starts_with(wanted), "{said}");
    }
}

/// Runs `check --probe` on a file with these `pools`; with `more` arguments.
fn probe(pools: &str, more: &[&str]) -> Output {
    let directory = TempDir::new();
    let file = directory.path().join("balancer.yaml");
    let listener = "listeners: {web: {bind: \":8080\", pool: app}}\n";
    fs::write(&file, format!("{listener}pools:\n{pools}")).unwrap();
    let mut arguments = vec!["check", "--probe", file.to_str().unwrap()];
    arguments.extend(more);
    balancer(&arguments)
}

#[test]
fn check_with_probe_asks_every_backend_once_before_the_file_is_taken() {
    let good = ScriptedPeer::answering("good");
    let bad = ScriptedPeer::saying("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let (dead, unnamed) = (refused(), "no-such-host.invalid:80");
    let pools = format!(
        "  app: {{backends: [{{address: \"{}\", name: one}}, \"{}\", \"{dead}\", \"{unnamed}\"], \
         health_check: {{path: /h}}}}\n",
        good.address, bad.address
    );
    let found = probe(&pools, &[]);
    assert_eq!(code(&found), 0, "{}", err(&found));
    let text = out(&found);
    let line = |start: &str| {
        let mut lines = text.lines();
        let found = lines.find(|line| line.trim_start().starts_with(start));
        found
            .unwrap_or_else(|| panic!("{start}: {text}"))
            .to_owned()
    };
    assert!(line("app  one (").contains("  passed  "), "{text}");
    assert!(line("app  one (").contains("first byte "), "{text}");
    let failed = line(&format!("app  {}", bad.address));
    assert!(failed.contains("FAILED") && failed.ends_with("status 500, expected 200-399"));
    assert!(line(&format!("app  {dead}")).ends_with("connection refused"));
    assert!(line(&format!("app  {unnamed}")).contains("name does not resolve"));
    assert_eq!(good.wait_for_requests(1).len(), 1, "asked once");

    // A pool without a backend that passes; one of weight 0 gets no work. Unchecked ones do not
    // count.
    let pools = format!(
        "  app: {{backends: [\"{dead}\", {{address: \"{}\", weight: 0}}]}}\n  \
         other: {{backends: [\"{dead}\"], health_check: none}}\n",
        good.address
    );
    let found = probe(&pools, &[]);
    assert_eq!(code(&found), 1);
    assert!(err(&found).contains("error: pool `app` has no backend that passes"));
    assert!(out(&found).contains("other  not asked: `health_check: none`"));
    let found = probe(&pools, &["--json"]);
    assert_eq!(code(&found), 1);
    let document: serde_json::Value = serde_json::from_str(&out(&found)).unwrap();
    assert_eq!(document["ok"], true, "the file itself is fine");
    assert_eq!(document["probe"]["ok"], false);
    let app = &document["probe"]["pools"][0];
    assert_eq!(app["ok"], false);
    assert_eq!(app["backends"][0]["error"], "connection refused");
    assert_eq!(app["backends"][1]["ok"], true);
    assert!(app["backends"][1]["connected_seconds"].is_number());
    assert_eq!(document["probe"]["pools"][1]["asked"], false);
}

#[test]
fn check_with_probe_asks_nothing_of_a_broken_file() {
    let peer = ScriptedPeer::answering("good");
    let found = probe(
        &format!("  app: {{backends: [\"{}\"], nothing: 1}}\n", peer.address),
        &[],
    );
    assert_eq!(code(&found), 1);
    assert_eq!(peer.connections(), 0);
}
