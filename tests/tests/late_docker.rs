//! A dockerd that answers only after the agent has begun, and says where other nodes reach this one.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Agent, FakeDockerd, Lab, eventually};

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
    let _dockerd = FakeDockerd::start(&socket, "called", other).unwrap();
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
