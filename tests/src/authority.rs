//! Certificates for hosts that are linked without a Swarm, made by `weir ca` itself.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::agent::{AgentConfig, weir};
use crate::host::Host;
use crate::lab::Lab;

/// An operator's authority, on the first host of a lab. Every host has a certificate of a manager.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    peers: Vec<String>,
}

impl Authority {
    /// Makes it, and a certificate for each host.
    pub fn of(lab: &Lab) -> Result<Self> {
        let address = |host: &Host| host.addresses()[0].to_string();
        let peers = lab.hosts().iter().map(address).collect();
        let authority = Self { directory: lab.run_dir().join("authority"), peers };
        let dir = authority.directory.display().to_string();
        let run = |arguments: &[&str]| -> Result<()> {
            let output = weir(&lab.hosts()[0], arguments)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(&["ca", "init", "--dir", &dir])?;
        for host in lab.hosts() {
            let (name, address) = (host.name(), address(host));
            run(&[
                "ca",
                "issue",
                "--dir",
                &dir,
                "--node",
                name,
                "--address",
                &address,
                "--manager",
            ])?;
        }
        Ok(authority)
    }

    /// Links a host's agent to those of all hosts.
    pub fn link(&self, host: &str, config: &mut AgentConfig) {
        let file = |name: String| self.directory.join(name).display().to_string();
        config
            .set("link.ca", file("weir-ca.crt".into()))
            .set("link.certificate", file(format!("{host}.crt")))
            .set("link.key", file(format!("{host}.key")))
            .set("link.peers", self.peers.clone());
    }
}
