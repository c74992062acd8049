//! A dockerd that answers as it is told to: for answers that a real one cannot be brought to give.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::task::Task;

/// A manager alone in its Swarm, with what [`FakeDockerd::service`] and [`FakeDockerd::runs`] have
/// added. Its socket goes when this is dropped.
#[derive(Debug)]
pub struct FakeDockerd {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

/// How it answers everything, when it is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// 403, as by a plugin that forbids.
    Forbids,
    /// Never.
    Hangs,
    /// The head of an answer and a part of its body.
    CutsOff,
    /// 200, and no JSON.
    TalksNonsense,
}

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<String, Value>,
    trouble: Option<Trouble>,
    services: BTreeMap<String, Value>,
    /// Connections that have no end: events, and questions that are never answered.
    open: Vec<UnixStream>,
}

const NODE: &str = "thenode";
const INGRESS: &str = "theingress";

impl FakeDockerd {
    /// Listens at `socket`, and says that its node is called `name` and reached at `address`.
    pub fn start(socket: &Path, name: &str, address: IpAddr) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let state = Arc::new(Mutex::new(State::manager(name, address)));
        let serving = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up early is no concern of a daemon.
                serve(stream, &serving).ok();
            }
        });
        Ok(Self { socket: socket.to_owned(), state })
    }

    /// A service that publishes `port` for the tasks' port 80 over TCP, as if it were declared now.
    pub fn service(&self, name: &str, port: u16, labels: Value) {
        let service = json!({
            "ID": format!("service-{name}"),
            "Spec": { "Name": name, "Labels": labels, "TaskTemplate": {},
                      "EndpointSpec": { "Mode": "vip" } },
            "Endpoint": {
                "Spec": { "Mode": "vip" },
                "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port,
                            "PublishMode": "ingress" }],
                "VirtualIPs": [],
            },
        });
        let mut state = self.lock();
        state.services.insert(name.to_owned(), service);
        let all: Vec<Value> = state.services.values().cloned().collect();
        state.answers.insert("/services".to_owned(), all.into());
    }

    /// A task of a service, which runs from the beginning on this node.
    pub fn runs(&self, service: &str, task: &Task, labels: Value) {
        let (id, container) = (format!("task-{}", task.name()), format!("box-{}", task.name()));
        let mut all = json!({
            "com.docker.swarm.node.id": NODE,
            "com.docker.swarm.service.id": format!("service-{service}"),
            "com.docker.swarm.service.name": service,
            "com.docker.swarm.task": "",
            "com.docker.swarm.task.id": id,
            "com.docker.swarm.task.name": format!("{service}.1.{id}"),
        });
        for (name, value) in labels.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let inspected = json!({
            "Id": container,
            "State": { "Status": "running", "Running": true, "Paused": false },
            "Config": { "Labels": all, "StopSignal": "SIGTERM" },
            "NetworkSettings": { "Networks": {}, "Ports": {} },
        });
        let address = |wanted: fn(&IpAddr) -> bool, length: u8| {
            let found = task.addresses().iter().find(|address| wanted(address));
            found.map_or(String::new(), |address| format!("{address}/{length}"))
        };
        let attached = json!({
            "Name": "gateway", "IPv4Address": address(IpAddr::is_ipv4, 24),
            "IPv6Address": address(IpAddr::is_ipv6, 64),
        });
        let task = json!({
            "ID": id, "ServiceID": format!("service-{service}"), "NodeID": NODE, "Slot": 1,
            "DesiredState": "running", "Status": { "State": "running" },
        });
        let mut state = self.lock();
        state.push("/tasks", task);
        state.push("/containers/json", json!({ "Id": container }));
        state.answers.insert(format!("/containers/{container}/json"), inspected);
        if let Some(gateway) = state.answers.get_mut("/networks/docker_gwbridge") {
            gateway["Containers"][&container] = attached;
        }
    }

    /// From now on everything is answered so; `None`: as it should be. Connections that are open
    /// are cut.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        let mut state = self.lock();
        state.trouble = trouble;
        for stream in state.open.drain(..) {
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for FakeDockerd {
    fn drop(&mut self) {
        // Its thread waits for somebody who asks until the test's process ends.
        std::fs::remove_file(&self.socket).ok();
        self.lock().open.clear();
    }
}

impl State {
    fn manager(name: &str, address: IpAddr) -> Self {
        let address = address.to_string();
        let networks = json!([{
            "Id": INGRESS, "Name": "ingress", "Scope": "swarm", "Driver": "overlay", "Ingress": true,
        }]);
        let answers = [
            ("/version", json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" })),
            (
                "/info",
                json!({
                    "Name": name, "DockerRootDir": "/nowhere",
                    "Swarm": {
                        "NodeID": NODE, "NodeAddr": address, "LocalNodeState": "active",
                        "ControlAvailable": true, "Error": "", "RemoteManagers": null,
                        "Cluster": { "ID": "thecluster" },
                    },
                }),
            ),
            (
                "/nodes",
                json!([{
                    "ID": NODE, "Description": { "Hostname": name },
                    "Spec": { "Availability": "active" },
                    "Status": { "State": "ready", "Addr": address },
                }]),
            ),
            ("/networks", networks),
            (
                "/networks/docker_gwbridge",
                json!({ "Id": "thegateway", "Name": "docker_gwbridge", "Driver": "bridge",
                        "Containers": {} }),
            ),
            ("/services", json!([])),
            ("/tasks", json!([])),
            ("/containers/json", json!([])),
        ];
        let answers = answers.map(|(question, answer)| (question.to_owned(), answer));
        Self { answers: answers.into(), ..Self::default() }
    }

    fn push(&mut self, list: &str, entry: Value) {
        let list = self.answers.entry(list.to_owned()).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(entry);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    let question = path.split('?').next().unwrap_or_default();
    let question = question.strip_prefix("/v1.41").unwrap_or(question);
    let mut state = lock(state);
    let body = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let text = match state.trouble {
        Some(Trouble::Forbids) => {
            let message = "authorization denied by plugin no-one: not you";
            body("403 Forbidden", &json!({ "message": message }).to_string())
        }
        Some(Trouble::Hangs) => {
            state.open.push(stream);
            return Ok(());
        }
        Some(Trouble::CutsOff) => "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[{".to_owned(),
        Some(Trouble::TalksNonsense) => body("200 OK", "<html>hello</html>"),
        None if question == "/events" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            // Nothing ever happens.
            state.open.push(stream);
            return Ok(());
        }
        None => match state.answers.get(question) {
            Some(answer) => body("200 OK", &answer.to_string()),
            None => body("404 Not Found", &json!({ "message": "page not found" }).to_string()),
        },
    };
    stream.write_all(text.as_bytes())
}
