//! The lab's handling of the agent, with a stand-in for `weir` that only answers `/readyz`.
//!
//! One test, because the path of the stand-in is an environment variable of the process.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use weir_tests::task::task_program;
use weir_tests::{Lab, Offloads};

fn stand_in(dir: &Path, uninstall: &str) {
    let program = task_program().unwrap();
    let path = dir.join("weir");
    let text = format!(
        "#!/bin/sh\ncase $1 in\n\
         agent) echo \"started $*\"; exec {} http --name fake --listen 9950;;\n\
         services) echo \"services $*\";;\n\
         uninstall) {uninstall};;\nesac\n",
        program.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_agent_is_started_killed_restarted_and_uninstalled() {
    let dir = tempfile::tempdir().unwrap();
    stand_in(dir.path(), "exit 0");
    // SAFETY: the only test of this binary, before it starts a thread.
    unsafe { std::env::set_var("WEIR_BIN", dir.path().join("weir")) };

    let lab = Lab::builder().hosts(1).offloads(Offloads::On).build().unwrap();
    lab.mesh().write().unwrap();
    let agent = lab.agent_with("n1", |config| {
        config.set("dataplane.mode", "proxy").set("health.interval", "1s");
    });
    let agent = agent.unwrap();
    agent.wait_ready().unwrap();
    let file = fs::read_to_string(lab.host("n1").run_dir().join("weir.toml")).unwrap();
    let config: toml::Table = toml::from_str(&file).unwrap();
    assert_eq!(config["dataplane"]["mode"].as_str(), Some("proxy"));
    assert_eq!(config["health"]["interval"].as_str(), Some("1s"));
    assert_eq!(config["node"]["addresses"][1].as_str(), Some("fd77::11"));
    assert_eq!(config["source"]["file"]["path"].as_str(), lab.mesh_file().to_str());
    assert!(agent.cli(&["services"]).unwrap().contains("--socket"));

    let first = agent.pid().unwrap();
    agent.kill9();
    assert!(!agent.is_running());
    assert!(agent.http("/readyz").is_err());
    agent.launch().unwrap();
    agent.wait_ready().unwrap();
    agent.restart().unwrap();
    agent.wait_ready().unwrap();
    assert_ne!(agent.pid(), Some(first));
    assert_eq!(agent.log().matches("started agent --config").count(), 3);
    drop(agent);
    lab.finish().unwrap();

    stand_in(dir.path(), "echo 'pins are stuck' >&2; exit 3");
    let lab = Lab::builder().hosts(1).build().unwrap();
    lab.mesh().write().unwrap();
    lab.agent("n1").unwrap().wait_ready().unwrap();
    lab.host("n1").netns().add_bridge("weir0", 1500, &[]).unwrap();
    let problems = lab.finish().unwrap_err().to_string();
    assert!(problems.contains("n1: weir uninstall: exit status: 3: pins are stuck"), "{problems}");
    assert!(problems.contains("there is still the interface weir0"), "{problems}");
}
