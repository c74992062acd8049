//! `weir-lab` from outside: it ends in order, whatever ends it. With a stand-in for `weir` that is
//! always ready and forwards nothing, so every promise of `--check` must be found broken.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_tests::eventually;

struct Demo {
    child: Child,
    _stand_in: tempfile::TempDir,
}

fn demo(arguments: &[&str]) -> Demo {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir");
    let task = env!("CARGO_BIN_EXE_weir-lab-task");
    let agent = format!("exec {task} http --name fake --listen 9950");
    fs::write(&path, format!("#!/bin/sh\ncase $1 in agent) {agent};; *) echo \"$@\";; esac\n"))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab"));
    command.args(arguments).env("WEIR_BIN", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    Demo { child: command.spawn().unwrap(), _stand_in: dir }
}

impl Demo {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    fn wait_for_services(&self) {
        let cgroup = self.cgroup();
        // The last thing that starts is the helper on n3: an agent and a sleep.
        eventually("the demo to run", Duration::from_secs(20), || {
            let text = fs::read_to_string(cgroup.join("n3/cgroup.procs")).unwrap_or_default();
            if text.lines().count() >= 2 { Ok(()) } else { Err(text) }
        })
        .unwrap();
    }

    fn cgroup(&self) -> PathBuf {
        weir_tests::cgroup::cgroup2_root().unwrap().join(format!("weir-lab-{}-1", self.pid()))
    }

    fn run_dir(&self) -> PathBuf {
        std::env::temp_dir().join(format!("weir-lab-{}-1", self.pid()))
    }
}

fn processes_below(cgroup: &Path) -> usize {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok);
    let below = below.filter(|entry| entry.path().is_dir());
    own.lines().count() + below.map(|entry| processes_below(&entry.path())).sum::<usize>()
}

#[test]
fn check_finds_a_mesh_that_forwards_nothing_and_leaves_nothing() {
    let demo = demo(&["--check"]);
    let (cgroup, run_dir) = (demo.cgroup(), demo.run_dir());
    let output = demo.child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED  tcp  n1 10.77.0.11:8080: 0 ok, 30 failed"), "{text}");
    assert!(text.contains("FAILED  udp  n3 [fd77::13]:5353"), "{text}");
    assert!(text.contains("FAILED  a drained task loses nothing"), "{text}");
    assert!(text.contains("25 checks, 25 failed"), "{text}");
    assert!(!cgroup.exists() && !run_dir.exists());
}

#[test]
fn ctrl_c_takes_the_demo_down_in_order() {
    let demo = demo(&[]);
    let (cgroup, run_dir) = (demo.cgroup(), demo.run_dir());
    demo.wait_for_services();
    demo.signal(Signal::SIGINT);
    let output = demo.child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("curl http://10.77.0.11:8080/"), "{text}");
    assert!(!cgroup.exists() && !run_dir.exists());
}

#[test]
fn after_sigkill_nothing_is_left() {
    let mut demo = demo(&[]);
    let (cgroup, run_dir) = (demo.cgroup(), demo.run_dir());
    demo.wait_for_services();
    assert!(processes_below(&cgroup) > 4);
    demo.signal(Signal::SIGKILL);
    demo.child.wait().unwrap();
    eventually("all of it to be gone", Duration::from_secs(20), || {
        let left = (processes_below(&cgroup), cgroup.exists(), run_dir.exists());
        if left == (0, false, false) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .unwrap();
}
