//! A dockerd that says what it is told to say.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::broadcast,
    task::JoinHandle,
};

/// How a question is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    Json(Value),
    Status(u16, &'static str),
    /// The head of an answer and half of its body.
    Cut,
    /// 200, and no JSON.
    Nonsense,
    /// Not even HTTP.
    Noise,
    /// Never.
    Hang,
}

/// The daemon. Its connections end with it.
pub struct Dockerd {
    socket: PathBuf,
    script: Arc<Mutex<BTreeMap<String, Answer>>>,
    events: broadcast::Sender<String>,
    asked: Arc<Mutex<Vec<String>>>,
    serving: Option<JoinHandle<()>>,
}

impl Dockerd {
    /// One node of a Swarm, a manager, with nothing on it.
    pub fn manager(socket: &Path) -> Self {
        let (events, _) = broadcast::channel(64);
        let mut dockerd = Self {
            socket: socket.to_owned(),
            script: Arc::default(),
            events,
            asked: Arc::default(),
            serving: None,
        };
        dockerd.say("/version", json!({ "ApiVersion": "1.41", "MinAPIVersion": "1.12" }));
        dockerd.say("/info", info(true));
        for list in ["/nodes", "/services", "/tasks", "/networks", "/containers/json"] {
            dockerd.say(list, json!([]));
        }
        dockerd.answer("/networks/docker_gwbridge", Answer::Status(404, "no such network"));
        dockerd.answer("/networks/ingress", Answer::Status(404, "no such network"));
        dockerd.start();
        dockerd
    }

    pub fn say(&self, question: &str, answer: Value) {
        self.answer(question, Answer::Json(answer));
    }

    pub fn answer(&self, question: &str, answer: Answer) {
        lock(&self.script).insert(question.to_owned(), answer);
    }

    /// An event about a container.
    pub fn event(&self, action: &str, container: &str, attributes: Value) {
        let event = json!({
            "Type": "container", "Action": action, "scope": "local",
            "Actor": { "ID": container, "Attributes": attributes },
        });
        self.events.send(format!("{event}\n")).expect("a test's own words");
    }

    /// An event about the Swarm.
    pub fn stir(&self, kind: &str) {
        let event = json!({ "Type": kind, "Action": "update", "Actor": { "ID": "x" } });
        self.events.send(format!("{event}\n")).expect("a test's own words");
    }

    /// How often something was asked.
    pub fn asked(&self, question: &str) -> usize {
        lock(&self.asked).iter().filter(|asked| *asked == question).count()
    }

    /// It stops: the socket goes and every connection with it.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        let (events, _) = broadcast::channel(64);
        self.events = events;
        std::fs::remove_file(&self.socket).ok();
    }

    pub fn start(&mut self) {
        let listener = UnixListener::bind(&self.socket).expect("a test's own words");
        let (script, events) = (self.script.clone(), self.events.clone());
        let asked = self.asked.clone();
        self.serving = Some(tokio::spawn(async move {
            // Dropped with this task, and then they end.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, events) = (script.clone(), events.subscribe());
                connections.spawn(serve(stream, script, events, asked.clone()));
            }
        }));
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a test's own words")
}

async fn serve(
    mut stream: UnixStream,
    script: Arc<Mutex<BTreeMap<String, Answer>>>,
    mut events: broadcast::Receiver<String>,
    asked: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_ascii_whitespace();
    assert_eq!(words.next(), Some("GET"), "the source only reads");
    let path = words.next().expect("a test's own words").split('?').next().expect("a path");
    // Everything but the first question names the version that was agreed on.
    let question = path.strip_prefix("/v1.41").unwrap_or(path).to_owned();
    lock(&asked).push(question.clone());
    if question == "/events" {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        while let Ok(event) = events.recv().await {
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            stream.write_all(chunk.as_bytes()).await?;
        }
        return stream.write_all(b"0\r\n\r\n").await;
    }
    let answer = lock(&script).get(&question).cloned();
    let answer = answer.unwrap_or(Answer::Status(404, "page not found"));
    let (status, body) = match answer {
        Answer::Json(value) => (200, value.to_string()),
        Answer::Status(status, message) => (status, json!({ "message": message }).to_string()),
        Answer::Nonsense => (200, "<html>hello</html>".to_owned()),
        Answer::Noise => return stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await,
        Answer::Cut => {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[{").await;
        }
        Answer::Hang => return std::future::pending().await,
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await
}

/// `/info` of node `nodeone`.
pub fn info(manager: bool) -> Value {
    json!({
        "Name": "m1",
        "Swarm": {
            "NodeID": "nodeone", "NodeAddr": "10.0.0.1", "LocalNodeState": "active",
            "ControlAvailable": manager, "Error": "",
            "RemoteManagers": [{ "NodeID": "nodeone", "Addr": "10.0.0.1:2377" }],
            "Cluster": if manager { json!({ "ID": "thecluster" }) } else { Value::Null },
        },
    })
}

/// `/nodes` with that node alone.
pub fn nodes() -> Value {
    json!([{
        "ID": "nodeone",
        "Spec": { "Labels": {}, "Role": "manager", "Availability": "active" },
        "Description": { "Hostname": "m1" },
        "Status": { "State": "ready", "Addr": "10.0.0.1" },
        "ManagerStatus": { "Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377" },
    }])
}

/// A service that publishes 8080 for 80, and these labels.
pub fn service(labels: Value) -> Value {
    json!({
        "ID": "serviceone",
        "Spec": {
            "Name": "web", "Labels": labels,
            "TaskTemplate": { "ContainerSpec": { "Image": "web:1" }, "ForceUpdate": 0 },
            "Mode": { "Replicated": { "Replicas": 1 } },
            "EndpointSpec": { "Mode": "vip" },
        },
        "Endpoint": {
            "Spec": { "Mode": "vip" },
            "Ports": [{
                "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080,
                "PublishMode": "ingress",
            }],
            "VirtualIPs": [{ "NetworkID": "ingressnet", "Addr": "10.11.0.2/24" }],
        },
    })
}

/// A task of that service on that node.
pub fn task(id: &str, desired: &str, state: &str) -> Value {
    json!({
        "ID": id, "ServiceID": "serviceone", "NodeID": "nodeone", "Slot": 1,
        "DesiredState": desired, "Status": { "State": state },
        "NetworksAttachments": [{
            "Network": { "ID": "ingressnet" }, "Addresses": ["10.11.0.3/24"],
        }],
    })
}

/// The labels by which Swarm's containers are known, with others.
pub fn labels(task: &str, others: &Value) -> Value {
    let mut labels = json!({
        "com.docker.swarm.node.id": "nodeone",
        "com.docker.swarm.service.id": "serviceone",
        "com.docker.swarm.service.name": "web",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task,
        "com.docker.swarm.task.name": format!("web.1.{task}"),
    });
    for (name, value) in others.as_object().expect("a test's own words") {
        labels[name] = value.clone();
    }
    labels
}

/// `/containers/{id}/json` of a running container of that task.
pub fn container(id: &str, task: &str) -> Value {
    json!({
        "Id": id,
        "State": { "Status": "running", "Running": true, "Paused": false },
        "Config": { "Labels": labels(task, &json!({})), "StopSignal": "SIGTERM" },
        "NetworkSettings": {
            "Networks": { "ingress": {
                "NetworkID": "ingressnet", "IPAddress": "10.11.0.3", "GlobalIPv6Address": "",
            } },
            "Ports": {},
        },
    })
}

/// `/networks/docker_gwbridge` with these containers at `172.18.0.3` and up.
pub fn gateway(containers: &[&str]) -> Value {
    let attached = |(at, id): (usize, &&str)| {
        let address = format!("172.18.0.{}/16", at + 3);
        (
            (*id).to_owned(),
            json!({ "Name": "gateway_x", "IPv4Address": address, "IPv6Address": "" }),
        )
    };
    let containers: serde_json::Map<_, _> = containers.iter().enumerate().map(attached).collect();
    json!({ "Id": "gwbridge", "Name": "docker_gwbridge", "Driver": "bridge",
            "Containers": containers })
}
