//! A dockerd that answers only after the agent has begun, and says where other nodes reach this one.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Agent, Lab, eventually};

/// Answers as the dockerd of a manager alone that is called `called` and is reached at `address`. Ends
/// with the test's process.
fn dockerd(socket: &Path, called: &str, address: IpAddr) {
    let listener = UnixListener::bind(socket).unwrap();
    let info = json!({
        "Name": called, "DockerRootDir": "/nowhere",
        "Swarm": {
            "NodeID": "thenode", "NodeAddr": address.to_string(), "LocalNodeState": "active",
            "ControlAvailable": true, "Error": "", "RemoteManagers": null,
            "Cluster": { "ID": "thecluster" },
        },
    });
    let nodes = json!([{
        "ID": "thenode", "Description": { "Hostname": called }, "Spec": { "Availability": "active" },
        "Status": { "State": "ready", "Addr": address.to_string() },
    }]);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let question = path.split('?').next().unwrap_or_default();
            match question.trim_start_matches("/v1.41") {
                "/version" => {
                    say(&mut stream, &json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" }))
                }
                "/info" => say(&mut stream, &info),
                "/nodes" => say(&mut stream, &nodes),
                "/events" => {
                    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).ok();
                    // Nothing ever happens: the stream stays open.
                    std::mem::forget(stream);
                }
                "/services" | "/tasks" | "/networks" | "/containers/json" => {
                    say(&mut stream, &json!([]));
                }
                _ => {
                    let absent = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
                    stream.write_all(absent.as_bytes()).ok();
                }
            }
        }
    });
}

fn say(stream: &mut UnixStream, answer: &Value) {
    let body = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok();
}

fn status(agent: &Agent) -> Result<Value> {
    Ok(serde_json::from_str(&agent.http("/api/v1/status")?.body)?)
}

#[test]
fn an_agent_begins_anew_when_dockerd_says_another_address_of_its_node() {
    let lab = Lab::builder().hosts(1).default_route().build().unwrap();
    let host = lab.host("n1");
    let socket = host.run_dir().join("docker.sock");
    let (first, other) = (host.addresses()[0], *host.addresses().last().unwrap());
    assert_ne!(first, other);
    let agent = lab
        .agent_with("n1", |config| {
            for key in ["node.name", "node.address", "source.file.path"] {
                config.unset(key);
            }
            config.set("source.docker.socket", socket.display().to_string());
        })
        .unwrap();
    eventually("the agent to go on without dockerd", Duration::from_secs(15), || {
        let status = status(&agent)?;
        ensure!(status["address"] == first.to_string(), "{status}");
        Ok(())
    })
    .unwrap();
    dockerd(&socket, "called", other);
    eventually("the agent to be where dockerd says", Duration::from_secs(20), || {
        let status = status(&agent)?;
        ensure!(status["address"] == other.to_string() && status["node"] == "called", "{status}");
        ensure!(status["generation"].is_number() && status["problems"] == json!([]), "{status}");
        Ok(())
    })
    .unwrap();
    agent.stop().unwrap();
    lab.finish().unwrap();
}
