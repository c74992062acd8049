//! Answers of the Docker API, as far as they are read. Everything may be missing or of a kind that
//! is not known here: what is new in dockerd must not stop the rest from being read.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};

/// `null` and nothing are both the default.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! model {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            $(#[serde(default, deserialize_with = "lenient")] $(#[$attr])* pub $field: $kind,)*
        }
    )*};
}

model! {
    /// `/info`
    Info { name: String, docker_root_dir: String, swarm: SwarmInfo }
    SwarmInfo {
        #[serde(rename = "NodeID")] node_id: String,
        node_addr: String,
        local_node_state: String,
        control_available: bool,
        error: String,
        remote_managers: Vec<RemoteManager>,
        cluster: Cluster,
    }
    RemoteManager { #[serde(rename = "NodeID")] node_id: String, addr: String }
    Cluster { #[serde(rename = "ID")] id: String }

    /// An entry of `/events`
    Event { #[serde(rename = "Type")] kind: String, action: String, actor: Actor }
    Actor { #[serde(rename = "ID")] id: String, attributes: HashMap<String, String> }

    /// An entry of `/containers/json`
    Listed { id: String }
    /// `/containers/{id}/json`
    Container {
        id: String,
        state: ContainerState,
        config: ContainerConfig,
        network_settings: NetworkSettings,
    }
    ContainerState { running: bool, paused: bool, health: Option<Health> }
    Health { status: String }
    ContainerConfig { hostname: String, labels: HashMap<String, String>, stop_signal: String }
    NetworkSettings {
        sandbox_key: String,
        networks: HashMap<String, Endpoint>,
        ports: HashMap<String, Option<Vec<Binding>>>,
    }
    Endpoint {
        #[serde(rename = "NetworkID")] network_id: String,
        #[serde(rename = "IPAddress")] ipv4: String,
        #[serde(rename = "GlobalIPv6Address")] ipv6: String,
        aliases: Vec<String>,
        #[serde(rename = "DNSNames")] dns_names: Vec<String>,
    }
    Binding { host_port: String }

    /// An entry of `/networks`, or `/networks/{id}`
    Network {
        id: String,
        name: String,
        scope: String,
        driver: String,
        ingress: bool,
        internal: bool,
        #[serde(rename = "IPAM")] ipam: Ipam,
        containers: HashMap<String, Attached>,
        services: HashMap<String, Gossiped>,
    }
    Ipam { config: Vec<IpamConfig> }
    IpamConfig { subnet: String }
    Attached {
        #[serde(rename = "IPv4Address")] ipv4: String,
        #[serde(rename = "IPv6Address")] ipv6: String,
    }
    /// What `?verbose=true` adds to a network.
    Gossiped { #[serde(rename = "VIP")] vip: String, ports: Vec<String>, tasks: Vec<GossipedTask> }
    GossipedTask {
        name: String,
        #[serde(rename = "EndpointIP")] address: String,
        info: HashMap<String, String>,
    }

    /// An entry of `/nodes`
    Node {
        #[serde(rename = "ID")] id: String,
        spec: NodeSpec,
        description: NodeDescription,
        status: NodeStatus,
        manager_status: Option<ManagerStatus>,
    }
    NodeSpec { availability: String }
    NodeDescription { hostname: String }
    NodeStatus { state: String, addr: String }
    ManagerStatus { addr: String }

    /// An entry of `/services`
    Service {
        #[serde(rename = "ID")] id: String,
        spec: ServiceSpec,
        endpoint: ServiceEndpoint,
        update_status: UpdateStatus,
    }
    ServiceSpec {
        name: String,
        labels: HashMap<String, String>,
        task_template: TaskSpec,
        networks: Vec<Attachment>,
        endpoint_spec: EndpointSpec,
    }
    TaskSpec { networks: Vec<Attachment> }
    Attachment { target: String, aliases: Vec<String> }
    ServiceEndpoint {
        ports: Vec<PortConfig>,
        #[serde(rename = "VirtualIPs")] virtual_ips: Vec<VirtualIp>,
    }
    EndpointSpec { mode: String }
    PortConfig { protocol: String, target_port: u16, published_port: u16, publish_mode: String }
    VirtualIp { #[serde(rename = "NetworkID")] network_id: String, addr: String }
    UpdateStatus { state: String }

    /// An entry of `/tasks`
    Task {
        #[serde(rename = "ID")] id: String,
        #[serde(rename = "ServiceID")] service_id: String,
        #[serde(rename = "NodeID")] node_id: String,
        slot: u64,
        desired_state: String,
        status: TaskStatus,
        networks_attachments: Vec<TaskNetwork>,
    }
    TaskStatus { state: String }
    TaskNetwork { network: TaskNetworkOf, addresses: Vec<String> }
    TaskNetworkOf { #[serde(rename = "ID")] id: String }
}
