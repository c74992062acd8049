//! The command line: exit codes, and what it says when there is no agent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

fn weir(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// Answers on an admin socket as an agent would: the requests' first lines are what is asked.
fn stand_in(
    mut answer: impl FnMut(&str) -> serde_json::Value + Send + 'static,
) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            let request = String::from_utf8(request).unwrap();
            let body = answer(request.lines().next().unwrap());
            // Who asked may have gone.
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").ok();
        }
    });
    (directory, path.to_str().unwrap().to_owned())
}

fn status(pid: u32, uptime_seconds: u64) -> serde_json::Value {
    serde_json::json!({
        "version": "0", "node": "n1", "address": "10.0.0.1", "pid": pid,
        "uptime_seconds": uptime_seconds, "generation": 1, "wanted": 1, "stale": false,
        "condition": "ok", "subsystems": [], "source_faults": [], "problems": [], "hooks": {},
        "last_pass": {"operations": 0, "milliseconds": 0.0}, "drift": 0,
    })
}

#[test]
fn what_is_watched_as_json_is_one_line_for_each_answer() {
    let (_kept, socket) = stand_in(|request| match request.split(['/', ' ', '?']).nth(4) {
        Some("status") => status(7, 60),
        Some("nodes") => serde_json::json!({"generation": 1, "nodes": []}),
        Some("tasks") => serde_json::json!({"generation": 1, "tasks": []}),
        _ => serde_json::json!({"generation": 1, "counters_at_ms": 0, "services": []}),
    });
    for what in ["status", "nodes", "tasks", "services"] {
        let arguments = [what, "--watch=10ms", "-o", "json", "--socket", &socket];
        let mut child = command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines: Vec<String> = lines.take(2).map(Result::unwrap).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        for line in &lines {
            let answer: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(answer.get("generation").is_some(), "{what}: {line}");
        }
    }
}

#[test]
fn an_upgrade_that_was_given_up_is_noticed_by_how_long_the_agent_runs() {
    for up in [100, 0] {
        let mut begun = Instant::now();
        let mut upgrades = 0;
        let (_kept, socket) = stand_in(move |request| {
            if request.starts_with("POST /api/v1/upgrade ") {
                upgrades += 1;
                begun = Instant::now();
                // This very process: it is there, and will not go on as an agent.
                return serde_json::json!({"pid": std::process::id()});
            }
            let before = if upgrades == 0 { up } else { 0 };
            status(7, before + begun.elapsed().saturating_sub(Duration::from_millis(500)).as_secs())
        });
        let begun = Instant::now();
        let output = weir(&["upgrade", "--socket", &socket]);
        assert_eq!(code(&output), 2);
        let said = stderr(&output);
        assert!(said.contains("did not run, and the one before goes on"), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.toml");
    fs::write(&path, text).unwrap();
    (directory, path.to_str().unwrap().to_owned())
}

#[test]
fn a_good_desired_state_is_recognised_and_ends_with_0() {
    let (_kept, path) = file("[[service]]\nname = \"web\"\npublish = [\"80\"]\n");
    let output = weir(&["config", "check", &path]);
    assert_eq!(code(&output), 0);
    assert_eq!(stdout(&output), format!("{path}: ok (0 nodes, 1 services, 0 tasks)\n"));
}

#[test]
fn a_good_configuration_is_recognised_and_ends_with_0() {
    let (_kept, path) = file("[node]\nname = \"n1\"\n[tunnel]\nport = 7950\n");
    let output = weir(&["config", "check", &path]);
    assert_eq!(code(&output), 0);
    assert_eq!(stdout(&output), format!("{path}: ok (an agent's configuration)\n"));
}

#[test]
fn mistakes_are_listed_and_end_with_2() {
    let (_kept, path) = file("[tunnel]\nport = 0\nprt = 1\n");
    let output = weir(&["config", "check", &path]);
    assert_eq!(code(&output), 2);
    let expected = format!(
        "{path}:2: tunnel.port = 0: out of range; write a number from 1 to 65535\n\
         {path}:3: tunnel.prt: unknown key; did you mean \"port\"?\n\
         {path}: 2 mistakes\n"
    );
    assert_eq!(stdout(&output), expected);
}

#[test]
fn mistakes_as_json_have_their_line_key_value_problem_and_remedy() {
    let (_kept, path) = file("[tunnel]\nport = 0\n");
    let output = weir(&["config", "check", &path, "-o", "json"]);
    assert_eq!(code(&output), 2);
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "file": path, "kind": "agent", "ok": false, "found": "",
        "faults": [{
            "line": 2, "key": "tunnel.port", "value": "0", "problem": "out of range",
            "remedy": "write a number from 1 to 65535",
        }],
    });
    assert_eq!(verdict, expected);
}

#[test]
fn a_file_that_is_not_there_ends_with_2() {
    let output = weir(&["config", "check", "/nowhere/mesh.toml"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("/nowhere/mesh.toml cannot be read: No such file"));
}

#[test]
fn without_an_agent_the_socket_and_the_way_out_are_named() {
    let output = weir(&["status", "--socket", "/nowhere/weir.sock"]);
    assert_eq!(code(&output), 2);
    let expected = "weir: cannot reach the agent at /nowhere/weir.sock: no such file; start the \
                    agent (weir agent --config /etc/weir/weir.toml), or name the socket of a \
                    running one with --socket PATH\n";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn the_socket_of_a_dead_agent_is_told_from_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let output = weir(&["services", "--socket", path.to_str().unwrap()]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("nobody listens there any more"), "{}", stderr(&output));
}

#[test]
fn an_agent_with_a_bad_configuration_names_every_mistake_and_ends_with_2() {
    let (_kept, path) = file("[node]\nadress = \"x\"\n[dataplane]\nmode = \"ebfp\"\n");
    let output = weir(&["agent", "--config", &path, "--tunnel-port", "0"]);
    assert_eq!(code(&output), 2);
    let expected = format!(
        "weir: there are 3 mistakes in the configuration:\n  \
         --tunnel-port: tunnel.port = \"0\": out of range; write a number from 1 to 65535\n  \
         {path}:2: node.adress: unknown key; did you mean \"address\"?\n  \
         {path}:4: dataplane.mode = \"ebfp\": no such choice; did you mean \"ebpf\"? \
         (known: \"auto\", \"ebpf\", \"proxy\")\n"
    );
    assert_eq!(stderr(&output), expected);
}

#[test]
fn a_variable_sets_a_key() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(["agent", "--config", "/dev/null"]).env("WEIR_NODE_ADDRESS", "nowhere");
    let output = command.output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output)
            .contains("WEIR_NODE_ADDRESS: node.address = \"nowhere\": not an IP address"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_version_names_the_commit_and_the_kernel_object() {
    let output = weir(&["version", "-o", "json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(!version["commit"].as_str().unwrap().is_empty());
    let object = version["kernel_object"].as_str().unwrap();
    assert!(object.len() == 64 && object.bytes().all(|byte| byte.is_ascii_hexdigit()), "{object}");
}
