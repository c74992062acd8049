//! The command line: exit codes, and what it says when there is no agent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Output},
};

fn weir(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
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
