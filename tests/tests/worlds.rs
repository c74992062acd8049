//! Worlds in which something is broken: `weir check` and `weir status` name the trouble, the reason and the
//! way out. Ports that a process holds, two agents on a host, and a dockerd that is not well have tests of
//! their own (`host.rs`, `docker_faults.rs`).

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::Value;
use weir_tests::agent::{agent_program, weir};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::{Agent, AgentConfig, Authority, Cases, Host, Lab, Probe, Scene, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// Of RFC 5737: nobody has it, and the lab has no way to it.
const NOBODY: &str = "192.0.2.53";

/// What `weir check` says of a host with this configuration, by way of a program that runs another.
fn checked(host: &Host, wrapper: &[&str], change: impl FnOnce(&mut AgentConfig)) -> Result<Value> {
    let config = Agent::configuration(host, "check.toml", change)?.display().to_string();
    let weir = agent_program()?.display().to_string();
    let words = [wrapper, &[&weir, "check", "--config", &config, "-o", "json"]].concat();
    let output = host.output(command(words[0], &words[1..]))?;
    let error = String::from_utf8_lossy(&output.stderr);
    let lines: Value = serde_json::from_slice(&output.stdout)?;
    let all = lines.as_array().into_iter().flatten();
    let worst = match all.clone().any(|line| line["condition"] == "failed") {
        true => 2,
        false => i32::from(all.clone().any(|line| line["condition"] == "degraded")),
    };
    ensure!(output.status.code() == Some(worst), "{:?} {error} {lines}", output.status);
    Ok(lines)
}

/// Of the thing of this name it says that it is so, why, and what to do.
fn names(said: &Value, name: &str, condition: &str, reason: &str, way_out: &str) -> Result<()> {
    let all = said.as_array().into_iter().flatten();
    let found = all.clone().any(|line| {
        let word = |key: &str| line[key].as_str().unwrap_or_default();
        line["name"] == name
            && line["condition"] == condition
            && (word("found").contains(reason) || word("reason").contains(reason))
            && (word("remedy").contains(way_out) || word("hint").contains(way_out))
    });
    ensure!(found, "{name} is not {condition}, {reason:?}, {way_out:?}: {said:#}");
    Ok(())
}

/// A certificate of n1 that ended an hour ago, beside its key.
fn expired(directory: &Path) -> [String; 2] {
    let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "n1");
    params.distinguished_name.push(DnType::OrganizationalUnitName, "weir-worker");
    params.distinguished_name.push(DnType::OrganizationName, "lab");
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::hours(2);
    params.not_after = now - time::Duration::hours(1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let files = ["old.crt", "old.key"].map(|file| directory.join(file));
    for (path, text) in files.iter().zip([certificate.pem(), key.serialize_pem()]) {
        fs::write(path, text).unwrap();
    }
    files.map(|path| path.display().to_string())
}

/// An authority of its own, and the certificate and key that it gives to n1.
fn issued(host: &Host, directory: &Path) -> [String; 3] {
    let directory = directory.display().to_string();
    for arguments in [
        &["ca", "init", "--dir", &directory][..],
        &["ca", "issue", "--dir", &directory, "--node", "n1", "--address", "10.77.0.11"],
    ] {
        let output = weir(host, arguments).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    ["weir-ca.crt", "n1.crt", "n1.key"].map(|file| format!("{directory}/{file}"))
}

#[test]
fn check_names_what_a_host_lacks_and_how_to_mend_it() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    lab.mesh().write().unwrap();
    let host = lab.host("n1");
    let run = host.run_dir();
    let mut cases = Cases::default();
    let mut world = |name: &str, said: Result<Value>, line: [&str; 4]| {
        let [subject, condition, reason, way_out] = line;
        cases.note(name, said.and_then(|said| names(&said, subject, condition, reason, way_out)));
    };

    let well = checked(host, &[], |_| ());
    world("all is well", well, ["uplink", "ok", "eth0 is up", ""]);

    let task = task_program().unwrap().display().to_string();
    let refusing = [task.as_str(), "refuse-programs", "--"];
    let kernel = |config: &mut AgentConfig| {
        config.set("dataplane.mode", "ebpf");
    };
    let said = checked(host, &refusing, kernel);
    world("no BPF", said, ["bpf", "failed", "the kernel takes no", "CONFIG_BPF_SYSCALL"]);
    let said = checked(host, &refusing, |_| ());
    world(
        "no BPF, and the proxy",
        said,
        ["data-plane", "degraded", "the userspace proxy takes its place", "docs/proxy.md"],
    );

    let said = checked(host, &[], |config| {
        config.unset("source.file.path");
        config.set("source.docker.socket", "/nowhere/docker.sock");
    });
    world(
        "no dockerd",
        said,
        ["source-docker", "degraded", "/nowhere/docker.sock: no such file", "start dockerd"],
    );

    let broken = run.join("broken.toml");
    fs::write(&broken, "[[service]]\nname = 7\n").unwrap();
    let said = checked(host, &[], |config| {
        config.set("source.file.path", broken.display().to_string());
    });
    world(
        "a file with a mistake",
        said,
        ["source-file", "degraded", "1 mistakes in", "weir config check"],
    );

    let [certificate, key] = expired(run);
    let said = checked(host, &[], |config| {
        config.set("link.ca", certificate.clone()).set("link.certificate", certificate);
        config.set("link.key", key).set("link.peers", vec!["10.77.0.12"]);
    });
    world(
        "an old certificate",
        said,
        ["certificate", "degraded", "old.crt has expired", "weir ca issue --node n1"],
    );

    let [ours, theirs] = ["ours", "theirs"].map(|name| issued(host, &run.join(name)));
    for (name, ca, key, reason) in [
        ("another's certificate", &theirs[0], &ours[2], "was not issued by the authority of"),
        ("another's key", &ours[0], &theirs[2], "is not the key of"),
    ] {
        let said = checked(host, &[], |config| {
            config.set("link.ca", ca.clone()).set("link.certificate", ours[1].clone());
            config.set("link.key", key.clone()).set("link.peers", vec!["10.77.0.12"]);
        });
        world(name, said, ["certificate", "degraded", reason, "weir ca issue"]);
    }
    let said = checked(host, &[], |config| {
        config.set("link.ca", ours[0].clone()).set("link.certificate", ours[1].clone());
        config.set("link.key", ours[2].clone()).set("link.peers", vec!["10.77.0.12"]);
    });
    world("files of one maker", said, ["certificate", "ok", "is that of n1, good for", ""]);

    let thief = host.run(|| TcpListener::bind("0.0.0.0:9950")).unwrap();
    let said = checked(host, &[], |_| ());
    world(
        "a port that is taken",
        said,
        ["http-listen", "failed", "Address already in use", "http.listen"],
    );
    drop(thief);

    let mtu = |mtu: &str| {
        let output = host.output(command("ip", &["link", "set", "eth0", "mtu", mtu])).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    mtu("1300");
    let said = checked(host, &[], |_| ());
    world(
        "a small MTU",
        said,
        ["uplink", "degraded", "eth0 has an MTU of 1300", "ip link set eth0 mtu 1330"],
    );
    mtu("1500");

    let said = checked(host, &[], |config| {
        config.set("dns.listen", vec!["127.0.0.1"]).set("dns.upstreams", vec![NOBODY]);
    });
    world(
        "no name server",
        said,
        ["name-servers", "degraded", "no answer from 192.0.2.53:53", "dns.upstreams"],
    );

    // A file system of its own goes with the process that mounted it.
    let full = run.join("full");
    fs::create_dir(&full).unwrap();
    let fill = format!(
        "mount -t tmpfs -o size=2m none {0} && {{ head -c 4m /dev/zero >{0}/zeros 2>/dev/null; \"$@\"; }}",
        full.display()
    );
    let said = checked(host, &["unshare", "-m", "sh", "-c", &fill, "sh"], |config| {
        config.set("state.path", full.join("state.json").display().to_string());
    });
    world("a full disk", said, ["state-directory", "degraded", "full", "make room there"]);

    cases.all_well().unwrap();
    lab.finish().unwrap();
}

/// What `weir status` says of its subsystems.
fn status(agent: &Agent) -> Result<Value> {
    let (_, text) = agent.weir(&["status", "-o", "json"])?;
    Ok(serde_json::from_str::<Value>(&text)?["subsystems"].take())
}

fn says(agent: &Agent, name: &str, reason: &str, way_out: &str) {
    eventually(&format!("{name} to be degraded: {reason}"), 20 * SECOND, || {
        names(&status(agent)?, name, "degraded", reason, way_out)
    })
    .unwrap();
}

#[test]
fn status_names_what_is_broken_and_clients_are_served_all_the_same() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", 8080);
    scene.task("web", "n1", "web.1").unwrap();
    let authority = Authority::of(&scene.lab).unwrap();
    scene
        .start_with(|host, config| {
            authority.link(host, config);
            config.set("dns.listen", vec!["127.0.0.1"]).set("dns.upstreams", vec![NOBODY]);
        })
        .unwrap();
    let agent = scene.agent("n1").clone();
    let target = scene.lab.host("n1").targets(8080)[0];
    let served = |scene: &Scene| {
        scene.lab.client("c1").ask(&Probe::tcp(target)).by("web.1").unwrap();
    };

    // Nobody is asked for other names before somebody asks.
    for name in ["one.example", "two.example", "three.example"] {
        agent.weir(&["dns", "query", name]).unwrap();
    }
    says(
        &agent,
        "dns",
        "no server answers for other names",
        "names of services are answered all the same",
    );
    served(&scene);

    scene.lab.unplug("n2").unwrap();
    let other = scene.lab.host("n2").addresses()[0];
    says(
        &agent,
        "cluster link",
        &format!("the agent of the manager at {other}:7951 is not reached"),
        "heard",
    );
    served(&scene);
    scene.lab.plug("n2").unwrap();

    fs::write(scene.lab.mesh_file(), "[[service]]\nname = 7\n").unwrap();
    says(&agent, "source file", "mesh.toml", "the last good state (generation");
    served(&scene);
    // What it knew is on disk for the next one.
    agent.restart().unwrap();
    says(&agent, "source file", "mesh.toml", "the state on disk (generation");
    served(&scene);
    scene.lab.finish().unwrap();
}

#[test]
fn a_state_that_cannot_be_kept_is_told_to_whoever_drains() {
    let mut scene = Scene::new(Lab::builder().hosts(1)).unwrap();
    scene.service("web", 8080);
    scene.task("web", "n1", "web.1").unwrap();
    // A directory that nobody can write to, root neither.
    scene
        .start_with(|_, config| {
            config.set("state.path", "/proc/nowhere/state.json");
        })
        .unwrap();
    let (code, text) = scene.agent("n1").weir(&["drain", "task", "web.1"]).unwrap();
    assert!(
        code == 2
            && text.contains("cannot be written")
            && text.contains("make room, or set state.path"),
        "{code} {text}"
    );
    scene.lab.finish().unwrap();
}
