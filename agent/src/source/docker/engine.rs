//! What dockerd says of itself and of its place in a Swarm.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use weir_mesh::cluster::NodeId;

use super::model::Info;

/// A dockerd that is part of a Swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// This node, as Swarm knows it.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// The address at which Swarm's other nodes reach it.
    pub address: Option<IpAddr>,
    /// Whether it can speak for the Swarm.
    pub manager: bool,
    /// The Swarm; only managers know it.
    pub cluster: Option<String>,
    /// Where dockerd keeps its state, the Swarm's certificates among it.
    pub root: PathBuf,
    /// Managers and where they are reached, this node not included.
    pub managers: Vec<(NodeId, SocketAddr)>,
}

/// Why a dockerd is no part of a Swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSwarm {
    /// What it says.
    pub problem: String,
    /// What to do.
    pub remedy: &'static str,
}

impl Engine {
    /// What `/info` means.
    pub fn read(info: &Info) -> Result<Self, NoSwarm> {
        let swarm = &info.swarm;
        let (problem, remedy) = match swarm.local_node_state.as_str() {
            "active" if !swarm.node_id.is_empty() => {
                return Ok(Self::of(info));
            }
            "locked" => {
                ("this node's Swarm is locked".to_owned(), "unlock it: docker swarm unlock")
            }
            "pending" => (
                "this node is just joining a Swarm".to_owned(),
                "wait; if it lasts, look at dockerd's log",
            ),
            "error" => {
                (format!("this node's Swarm has failed: {}", swarm.error), "look at dockerd's log")
            }
            _ => (
                "dockerd is not part of a Swarm, and containers outside of one are not served"
                    .to_owned(),
                "docker swarm init or join, or describe the services in a mesh.toml and set \
                 source.file.path",
            ),
        };
        Err(NoSwarm { problem, remedy })
    }

    fn of(info: &Info) -> Self {
        let swarm = &info.swarm;
        let node = NodeId::new(&*swarm.node_id);
        let managers = swarm.remote_managers.iter().filter_map(|manager| {
            let id = NodeId::new(&*manager.node_id);
            Some((id, manager.addr.parse().ok()?)).filter(|(id, _)| *id != node)
        });
        let mut managers: Vec<_> = managers.collect();
        managers.sort();
        Self {
            managers,
            node,
            root: match &*info.docker_root_dir {
                "" => "/var/lib/docker".into(),
                root => root.into(),
            },
            hostname: info.name.clone(),
            address: swarm.node_addr.parse().ok().filter(usable),
            manager: swarm.control_available,
            cluster: Some(swarm.cluster.id.clone()).filter(|id| !id.is_empty()),
        }
    }
}

/// Swarm says `0.0.0.0` or `127.0.0.1` of a manager that was started without an address.
pub(super) fn usable(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(swarm: serde_json::Value) -> Result<Engine, NoSwarm> {
        let info = serde_json::json!({ "Name": "m1", "Swarm": swarm });
        Engine::read(&serde_json::from_value(info).unwrap())
    }

    #[test]
    fn a_manager_knows_its_cluster_and_the_other_managers() {
        let engine = read(serde_json::json!({
            "NodeID": "nodeone", "NodeAddr": "10.0.0.1", "LocalNodeState": "active",
            "ControlAvailable": true, "Error": "", "Nodes": 2, "Managers": 2,
            "RemoteManagers": [
                { "NodeID": "nodetwo", "Addr": "10.0.0.2:2377" },
                { "NodeID": "nodeone", "Addr": "10.0.0.1:2377" },
            ],
            "Cluster": { "ID": "thecluster" },
        }));
        let engine = engine.unwrap();
        assert!(engine.manager);
        assert_eq!(engine.cluster.as_deref(), Some("thecluster"));
        assert_eq!(engine.address, Some([10, 0, 0, 1].into()));
        let other = (NodeId::new("nodetwo"), "10.0.0.2:2377".parse().unwrap());
        assert_eq!(engine.managers, [other]);
    }

    #[test]
    fn a_docker_host_without_swarm_is_told_what_it_could_do() {
        let swarm = serde_json::json!({
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "RemoteManagers": null,
        });
        let error = read(swarm).unwrap_err();
        assert!(error.problem.contains("not part of a Swarm"), "{error:?}");
        assert!(error.remedy.contains("source.file.path"), "{error:?}");
        let locked = read(serde_json::json!({ "LocalNodeState": "locked" })).unwrap_err();
        assert!(locked.remedy.contains("docker swarm unlock"));
    }
}
