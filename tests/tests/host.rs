//! What a host may do to weir, and what weir may do to a host.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::firewall::{IngressPort, tcp, udp};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::traffic::HttpLoad;
use weir_tests::{Agent, AgentConfig, Cases, Host, How, Lab, Probe, Process, Scene, eventually};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

/// `web.1` on n1 and `web.2` on n2, not started.
fn scene() -> Scene {
    scene_with(&[tcp(PORT), udp(PORT)])
}

/// The same with Docker's rules for these published ports.
fn scene_with(published: &[IngressPort]) -> Scene {
    let builder = Lab::builder().docker_firewall(published.iter().copied());
    let mut scene = Scene::new(builder).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene
}

/// Each task answers through each address, over TCP and UDP.
fn all_is_well(scene: &Scene) -> Result<()> {
    let client = scene.lab.client("c1");
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        for probe in [Probe::tcp(target), Probe::udp(target)] {
            let tasks = [client.ask(&probe), client.ask(&probe)].map(|seen| seen.to_string());
            for task in ["web.1", "web.2"] {
                let found = tasks.iter().any(|seen| seen.starts_with(task));
                ensure!(found, "{probe}: no answer by {task}: {tasks:?}\n{}", scene.drops());
            }
        }
    }
    Ok(())
}

fn wait_until_all_is_well(scene: &Scene) {
    eventually("every task to answer at every address", 15 * SECOND, || all_is_well(scene))
        .unwrap();
}

fn status(scene: &Scene, host: &str) -> String {
    scene.agent(host).api("/api/v1/status").unwrap().body
}

fn own_server(scene: &Scene, host: &str) -> Process {
    let listen = PORT.to_string();
    let arguments = ["http", "--name", "own", "--listen", &listen];
    let program = command(task_program().unwrap(), &arguments);
    let process = scene.lab.host(host).spawn(program).unwrap();
    let target = SocketAddr::new([127, 0, 0, 1].into(), PORT);
    eventually("the host's own server", 5 * SECOND, || {
        scene.lab.host(host).netns().http_get(target, "/")
    })
    .unwrap();
    process
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Without the proxy, which `auto` would take.
fn in_the_kernel(config: &mut AgentConfig) {
    config.set("dataplane.mode", "ebpf");
}

/// It ended by itself with exit code 2, and said all of these.
fn refused(output: &Output, said: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for words in said {
        assert!(text.contains(words), "no {words:?} in: {text}");
    }
}

#[test]
fn an_agent_whose_only_uplink_is_missing_names_it_and_serves_when_it_appears() {
    let mut scene = scene();
    scene.lab.unplug("n1").unwrap();
    scene.mesh.write().unwrap();
    for host in ["n1", "n2"] {
        scene.agents.push(scene.lab.agent(host).unwrap());
    }
    scene.agent("n2").wait_ready().unwrap();
    eventually("n1 to say that there is no eth0", 15 * SECOND, || {
        let answer = scene.agent("n1").http("/readyz")?;
        ensure!(answer.body.contains("eth0"), "{} {}", answer.status, answer.body);
        Ok(())
    })
    .unwrap();
    scene.lab.plug("n1").unwrap();
    scene.agent("n1").wait_ready().unwrap();
    wait_until_all_is_well(&scene);
}

#[test]
fn a_second_uplink_that_is_missing_is_named_and_served_when_it_appears() {
    let mut scene = scene();
    let host = scene.lab.host("n1").clone();
    // Only the interface that has an address shall say so.
    host.netns().sysctl(&[("ipv4/conf/all/arp_ignore", "1")]).unwrap();
    scene
        .start_with(|_, config| {
            config.set("node.uplinks", vec!["eth0", "eth1"]);
        })
        .unwrap();
    all_is_well(&scene).unwrap();
    assert!(status(&scene, "n1").contains("eth1"), "{}", status(&scene, "n1"));
    let client = scene.lab.client("c1");
    client.netns().set_up("eth0", &[("10.78.0.101".parse().unwrap(), 16)]).unwrap();
    scene.lab.plug_second("n1", &[("10.78.0.11".parse().unwrap(), 16)]).unwrap();
    let mut tasks = BTreeSet::new();
    eventually("both tasks to answer at eth1", 10 * SECOND, || {
        for probe in [Probe::tcp("10.78.0.11:8080"), Probe::udp("10.78.0.11:8080")] {
            let seen = client.ask(&probe);
            seen.client_kept("10.78.0.101".parse()?)?;
            tasks.extend(seen.task);
        }
        ensure!(tasks.len() == 2, "{tasks:?}");
        Ok(())
    })
    .unwrap();
    let status = status(&scene, "n1");
    assert!(status.contains("nic_in@eth1"), "{status}");
}

#[test]
fn an_uplink_that_goes_away_and_comes_back_is_served_again() {
    let mut scene = scene();
    scene.start().unwrap();
    let index = |scene: &Scene| {
        let links = scene.lab.host("n1").netns().links().unwrap();
        links.into_iter().find(|(name, _)| name == "eth0").map(|(_, index)| index)
    };
    let before = index(&scene);
    scene.lab.unplug("n1").unwrap();
    // What does not need it goes on.
    let own = [(); 4].map(|()| Probe::tcp("127.0.0.1:8080"));
    let seen = scene.lab.host("n1").probe(&own).unwrap();
    assert!(seen.iter().any(|seen| seen.task.as_deref() == Some("web.1")), "{seen:?}");
    eventually("n1 to say that there is no eth0", 10 * SECOND, || {
        let answer = scene.agent("n1").http("/readyz")?;
        ensure!(answer.status != 200 && answer.body.contains("eth0"), "{}", answer.body);
        Ok(())
    })
    .unwrap();
    assert!(scene.agent("n1").is_running());
    scene.lab.plug("n1").unwrap();
    assert_ne!(index(&scene), before);
    wait_until_all_is_well(&scene);
}

#[test]
fn a_process_that_listens_on_a_published_port_keeps_it_until_it_ends() {
    // Docker would take the packets for the port before any process.
    let mut scene = scene_with(&[]);
    let own = own_server(&scene, "n1");
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.host("n1").targets(PORT) {
        for _ in 0..3 {
            let seen = client.ask(&Probe::tcp(target));
            cases.note(format!("{target} is the process's"), seen.by("own"));
        }
        // Nobody has the UDP port.
        let seen = client.ask(&Probe::udp(target));
        cases.note(format!("{target}, UDP, is the mesh's"), seen.answered_from(target));
    }
    let local =
        ["127.0.0.1", "[::1]", "10.77.0.11"].map(|name| Probe::tcp(format!("{name}:{PORT}")));
    for (probe, seen) in local.iter().zip(scene.lab.host("n1").probe(&local).unwrap()) {
        cases.note(format!("on the host, {probe}"), seen.by("own"));
    }
    let (text, pid) = (status(&scene, "n1"), format!("(pid {})", own.pid()));
    let named = || {
        ensure!(text.contains(&pid) && text.contains("weir-lab-task"), "{text}");
        Ok(())
    };
    cases.note("status names the process", named());
    cases.end(&scene).unwrap();
    drop(own);
    wait_until_all_is_well(&scene);
    assert!(!status(&scene, "n1").contains(&pid));
}

#[test]
fn a_port_that_a_process_keeps_on_one_node_serves_its_task_through_the_other_nodes() {
    let mut scene = scene_with(&[]);
    let _own = own_server(&scene, "n1");
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.host("n2").targets(PORT) {
        let mut tasks = BTreeSet::new();
        for _ in 0..4 {
            let seen = client.ask(&Probe::tcp(target));
            cases.note(format!("{target} is the mesh's"), seen.answered_from(target));
            tasks.extend(seen.task);
        }
        let both = || {
            ensure!(tasks == BTreeSet::from(["web.1", "web.2"].map(str::to_owned)), "{tasks:?}");
            Ok(())
        };
        cases.note(format!("{target} reaches both tasks"), both());
    }
    cases.end(&scene).unwrap();
}

#[test]
fn a_second_agent_on_a_host_is_refused_and_told_who_the_first_is() {
    let mut scene = scene();
    scene.start().unwrap();
    let pid = scene.agent("n1").pid().unwrap().to_string();
    let output = Agent::attempt(scene.lab.host("n1"), &[], |_| ()).unwrap();
    refused(&output, &["another agent", &pid]);
    // In a container, with a /run of its own.
    let own_run = ["unshare", "-m", "sh", "-c", "mount -t tmpfs run /run && exec \"$@\"", "sh"];
    let output = Agent::attempt(scene.lab.host("n1"), &own_run, |config| {
        config.set("socket.path", "/run/weir.sock");
    });
    let lock = format!("{}-lock", scene.lab.host("n1").pin_dir().display());
    refused(&output.unwrap(), &["another agent", &lock]);
    assert!(scene.agent("n1").is_running());
    all_is_well(&scene).unwrap();
}

#[test]
fn an_agent_without_capabilities_says_which_and_how_to_get_them() {
    let lab = Lab::builder().hosts(1).clients(0).build().unwrap();
    lab.mesh().write().unwrap();
    for lost in ["net_admin", "bpf"] {
        // CAP_SYS_ADMIN includes CAP_BPF.
        let bounding = format!("--bounding-set=-{lost},-sys_admin");
        let wrapper = ["setpriv", &bounding, "--inh-caps=-all"];
        let output = Agent::attempt(lab.host("n1"), &wrapper, in_the_kernel).unwrap();
        refused(&output, &[&format!("CAP_{}", lost.to_uppercase())]);
    }
    assert!(!lab.host("n1").pin_dir().exists(), "a refused agent has pinned something");
}

#[test]
fn an_agent_whose_kernel_refuses_programs_says_what_it_needs_and_leaves_nothing() {
    let lab = Lab::builder().hosts(1).clients(0).build().unwrap();
    lab.mesh().write().unwrap();
    let task = task_program().unwrap();
    let wrapper = [task.to_str().unwrap(), "refuse-programs", "--"];
    let output = Agent::attempt(lab.host("n1"), &wrapper, in_the_kernel).unwrap();
    refused(&output, &["the kernel takes no classifier programs", "CONFIG_BPF_SYSCALL"]);
    assert!(!lab.host("n1").pin_dir().exists(), "a refused agent has pinned something");
}

#[test]
fn an_agent_whose_pins_would_not_be_on_a_bpf_file_system_says_how_to_mount_one() {
    let lab = Lab::builder().hosts(1).clients(0).build().unwrap();
    lab.mesh().write().unwrap();
    let pin = lab.host("n1").run_dir().join("pins");
    let output = Agent::attempt(lab.host("n1"), &[], |config| {
        in_the_kernel(config);
        config.set("dataplane.pin", pin.to_str().unwrap());
    });
    refused(&output.unwrap(), &["mount -t bpf", pin.to_str().unwrap()]);
}

#[test]
fn pins_of_an_old_layout_are_removed_and_forwarding_works() {
    let mut scene = scene();
    let old = scene.lab.host("n1").pin_dir().join("v0");
    fs::create_dir_all(old.join("maps")).unwrap();
    fs::create_dir_all(old.join("links")).unwrap();
    pin_a_map(&old.join("maps/FLOWS"));
    scene.start().unwrap();
    all_is_well(&scene).unwrap();
    eventually("the old layout to be gone", 5 * SECOND, || match old.exists() {
        true => Err("it is there"),
        false => Ok(()),
    })
    .unwrap();
}

/// Makes a small array map and pins it: linux/bpf.h, BPF_MAP_CREATE and BPF_OBJ_PIN.
fn pin_a_map(path: &Path) {
    let create = [2_u32, 4, 4, 1];
    let map = bpf(0, create.as_ptr().cast(), size_of_val(&create));
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let pin = [path.as_ptr() as u64, u64::try_from(map).unwrap()];
    bpf(6, pin.as_ptr().cast(), 12);
}

fn bpf(command: libc::c_int, attributes: *const u8, size: usize) -> i64 {
    // SAFETY: the attributes, and what they point to, live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    assert!(result >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    result
}

#[test]
fn with_clsact_filters_all_is_as_with_tcx_and_nothing_is_left() {
    let mut scene = scene();
    scene
        .start_with(|_, config| {
            config.set("dataplane.attach", "clsact");
        })
        .unwrap();
    assert!(status(&scene, "n1").contains("clsact"), "{}", status(&scene, "n1"));
    all_is_well(&scene).unwrap();
    let host = scene.lab.host("n1");
    let mut cases = Cases::default();
    for name in ["127.0.0.1", "[::1]", "10.77.0.11", "[fd77::11]"] {
        for how in [How::Tcp, How::Udp, How::UdpConnected] {
            // The service has a task here and one there.
            let probes = vec![Probe::new(how, format!("{name}:{PORT}")); 4];
            for seen in host.probe(&probes).unwrap() {
                let target = format!("{name}:{PORT}").parse().unwrap();
                cases.note(format!("c: {}", probes[0]), seen.answered_from(target));
            }
        }
    }
    cases.end(&scene).unwrap();

    let targets: Vec<_> = scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)).collect();
    let netns = scene.lab.client("c1").netns();
    let load = HttpLoad::new(netns, targets).timeout(5 * SECOND).rate(500);
    let fresh = load.clone().connections(4).start().unwrap();
    let kept = load.keep_alive().start().unwrap();
    for agent in &scene.agents {
        agent.kill9();
        thread::sleep(SECOND / 4);
        agent.launch().unwrap();
        agent.wait_ready().unwrap();
        agent.restart().unwrap();
        agent.wait_ready().unwrap();
    }
    thread::sleep(SECOND / 2);
    fresh.stop().unwrap().assert_clean();
    kept.stop().unwrap().assert_clean();

    for agent in &scene.agents {
        assert_eq!(agent.uninstall(), Vec::<String>::new());
        let left = agent.host().netns().clsact().unwrap();
        assert!(left.is_empty(), "{}: clsact on {left:?}", agent.host().name());
    }
}

#[test]
fn uninstall_leaves_nothing_and_ends_forwarding() {
    let mut scene = scene();
    scene.start().unwrap();
    all_is_well(&scene).unwrap();
    let state = |host: &Host| host.run_dir().join("state");
    for agent in &scene.agents {
        agent.cli(&["drain", "node"]).unwrap();
        let state = state(agent.host());
        // As in a Swarm, and as when the agent is killed in the middle of writing.
        for name in ["state.peers.json", "state.1.new"] {
            fs::write(state.join(name), "").unwrap();
        }
        for name in ["state.json", "state.drained.json"] {
            assert!(state.join(name).exists(), "{name}");
        }
    }
    for agent in &scene.agents {
        assert_eq!(agent.uninstall(), Vec::<String>::new());
        assert_eq!(fs::read_dir(state(agent.host())).unwrap().count(), 0);
        assert!(!agent.host().pin_dir().exists());
    }
    for host in scene.lab.hosts() {
        host.flush_firewall().unwrap();
        for target in host.targets(PORT) {
            let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
            seen.refused_at_once().unwrap();
        }
        let pin = host.pin_dir().display().to_string().replace('/', "-");
        let lock = Path::new("/run/weir").join(format!("pin{pin}.lock"));
        assert!(!lock.exists(), "{} is left", lock.display());
    }
}
