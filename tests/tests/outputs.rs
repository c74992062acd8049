//! What the commands print is what it was (`tests/golden`; `WEIR_BLESS=1` makes it what it is now), their
//! JSON is what `weir schema` says, and a report has no secret in it.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};
use weir_tests::agent::{agent_program, weir};
use weir_tests::lab::command;
use weir_tests::{
    Agent, Authority, FakeDockerd, How, Lab, Probe, Publish, Scene, State, eventually,
};

const SECOND: Duration = Duration::from_secs(1);

/// A scene with a bit of everything, so that most words that a command knows are printed.
fn scene() -> Scene {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", 8080);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.mesh.service("web").weight("web.2", 2);
    scene.service("guarded", 8081).set("deny", vec!["10.77.0.0/16"]).balance("maglev");
    scene.service("empty", 8083);
    scene.mesh.service("hosted").publish(Publish::host_mode(8082, 80, "tcp"));
    scene.mesh.network("blue", &["10.0.9.0/24"], &["10.96.0.0/16"]);
    let blue: toml::Value = vec!["blue"].into();
    scene.mesh.service("hosted").set("networks", blue);
    let Scene { mesh, tasks, .. } = &mut scene;
    mesh.service("guarded").task(&tasks["web.1"]).state("web.1", State::Draining);
    mesh.service("hosted").task(&tasks["web.2"]);
    mesh.service("hosted").on_network("web.2", "blue", &[[10, 0, 9, 12].into()]);
    let set = |_: &str, config: &mut weir_tests::AgentConfig| {
        config.set("dns.listen", vec!["127.0.0.1"]);
        config.set("dns.upstreams", vec!["192.0.2.53"]);
    };
    scene.start_with(set).unwrap();
    scene
}

/// Runs commands, keeps what they printed, and notes which have shown their JSON.
struct Book<'a> {
    scene: &'a Scene,
    agent: &'a Agent,
    changing: Vec<(Regex, &'static str)>,
    checked: BTreeSet<String>,
    wrong: Vec<String>,
}

impl<'a> Book<'a> {
    fn new(scene: &'a Scene, agent: &'a Agent) -> Self {
        let literal = |path: &Path| regex::escape(&path.display().to_string());
        let changing = [
            (literal(agent.host().run_dir()), "RUN"),
            (literal(scene.lab.run_dir()), "LAB"),
            (literal(agent.host().pin_dir()), "PINS"),
            (r"weir \d+\.\d+\.\d+".into(), "weir VERSION"),
            (r"commit \S+,".into(), "commit COMMIT,"),
            (r"\b[0-9a-f]{64}\b".into(), "DIGEST"),
            (r"\bpid \d+".into(), "pid PID"),
            (r"\bup \d+ (s|min)".into(), "up TIME"),
            (r"/proc/\d+/".into(), "/proc/PID/"),
            (r"\b\d+(\.\d+)? ms\b".into(), "TIME ms"),
            (r"\b\d+ s\b".into(), "TIME s"),
            (r"generation \d+".into(), "generation N"),
            (r"interface \d+".into(), "interface N"),
            (r"mark-\d+".into(), "mark-N"),
            (r"\b10\.77\.0\.101:\d+".into(), "10.77.0.101:PORT"),
            (r"\((tcx|clsact)\)".into(), "(HOOK)"),
            (r" {3,}".into(), "  "),
        ];
        let changing = changing.map(|(pattern, word)| (Regex::new(&pattern).unwrap(), word));
        let (checked, wrong) = (BTreeSet::new(), Vec::new());
        Self { scene, agent, changing: changing.into(), checked, wrong }
    }

    /// With `--socket` of the agent, unless the command is for hosts without one.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let alone = ["version", "check", "config", "ca", "schema", "uninstall"];
        if !alone.contains(&arguments[0]) {
            return self.agent.weir(arguments).unwrap();
        }
        let output = weir(self.agent.host(), arguments).unwrap();
        let text = [&output.stdout[..], &output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    fn steady(&self, text: &str) -> String {
        let replaced = |text: String, (pattern, word): &(Regex, &str)| {
            pattern.replace_all(&text, *word).into_owned()
        };
        self.changing.iter().fold(text.to_owned(), replaced)
    }

    /// Compares what commands print with the file of this name.
    fn golden(&mut self, name: &str, commands: &[&[&str]]) {
        let text = commands.iter().map(|arguments| {
            let (code, said) = self.run(arguments);
            format!("$ weir {}\n{said}# ends with {code}\n", arguments.join(" "))
        });
        let text = self.steady(&text.collect::<Vec<_>>().join("\n"));
        self.compare(name, &text);
    }

    fn compare(&mut self, name: &str, text: &str) {
        let path = golden_file(name);
        if std::env::var_os("WEIR_BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        if known != text {
            let path = path.display();
            self.wrong.push(format!("{path} says\n{known}\nand weir says\n{text}"));
        }
    }

    /// Compares the JSON of a command with its schema: what is there is described, and what is promised
    /// is there.
    fn json(&mut self, name: &str, arguments: &[&str]) -> Value {
        let (_, text) = self.run(&[arguments, &["-o", "json"]].concat());
        let answer = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
        self.fits(name, &answer);
        answer
    }

    fn fits(&mut self, name: &str, answer: &Value) {
        let asked: Vec<&str> = ["schema"].into_iter().chain(name.split(' ')).collect();
        let asked: Vec<&str> = match name.contains("--") {
            true => [&["schema", "--"], &asked[1..]].concat(),
            false => asked,
        };
        let (code, text) = self.run(&asked);
        assert_eq!(code, 0, "{asked:?}: {text}");
        let mut schema: Value = serde_json::from_str(&text).unwrap();
        forbid_others(&mut schema);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for error in validator.iter_errors(answer) {
            self.wrong.push(format!("weir {name} -o json, {}: {error}", error.instance_path()));
        }
        self.checked.insert(name.to_owned());
    }

    fn end(self) {
        assert!(self.wrong.is_empty(), "{}\n(WEIR_BLESS=1 makes it so)", self.wrong.join("\n\n"));
    }
}

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"))
}

/// Nothing that the schema does not describe.
fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(forbid_others);
            if object.get("properties").is_some_and(Value::is_object) && object.contains_key("type")
            {
                object.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(all) => all.iter_mut().for_each(forbid_others),
        _ => {}
    }
}

#[test]
fn what_every_command_prints_is_known_and_its_json_is_as_its_schema_says() {
    let scene = scene();
    let agent = scene.agent("n1").clone();
    let mut book = Book::new(&scene, &agent);
    let weir_toml = agent.host().run_dir().join("weir.toml").display().to_string();
    let mesh_toml = scene.lab.mesh_file().display().to_string();
    let bad = scene.lab.run_dir().join("bad.toml");
    fs::write(
        &bad,
        "[[service]]\nname = \"web\"\nbalanse = \"maglev\"\npublish = [\"80800:80\"]\n",
    )
    .unwrap();
    let bad = bad.display().to_string();
    let authority = scene.lab.run_dir().join("ca").display().to_string();

    book.golden("version", &[&["version"]]);
    book.golden("status", &[&["status"], &["status", "--wait", "1s"]]);
    book.golden(
        "services",
        &[
            &["services"],
            &["services", "web", "--stats"],
            &["services", "web", "--rate"],
            &["services", "web", "-o", "ipvsadm"],
            &["services", "wbe"],
        ],
    );
    book.golden("tasks", &[&["tasks"], &["tasks", "guarded"], &["tasks", "--node", "n2"]]);
    book.golden("nodes", &[&["nodes"]]);
    book.golden(
        "trace",
        &[
            &["trace", "10.77.0.101", "10.77.0.11:8080"],
            &["trace", "10.77.0.101", "10.77.0.11:8080/udp"],
            &["trace", "10.77.0.101", "10.77.0.11:8081"],
            &["trace", "10.77.0.101", "10.77.0.11:8082"],
            &["trace", "10.77.0.101", "10.77.0.11:8083"],
            &["trace", "fd77::101", "[fd77::11]:8080"],
        ],
    );
    book.golden(
        "drain",
        &[
            &["drain", "task", "web.2", "--service", "web"],
            &["drain", "node"],
            &["drain", "list"],
            &["undrain", "task", "web.2"],
            &["undrain", "node"],
            &["undrain", "all"],
        ],
    );
    book.golden("dns", &[&["dns", "query", "hosted"], &["dns", "records"], &["dns", "cache"]]);
    book.golden("state-diff", &[&["state", "diff", "--against", "docker", "--docker", "/nowhere"]]);
    book.golden(
        "config-check",
        &[
            &["config", "check", &mesh_toml, "--kind", "mesh"],
            &["config", "check", &weir_toml],
            &["config", "check", &bad],
        ],
    );
    book.golden(
        "ca",
        &[
            &["ca", "init", "--dir", &authority, "--cluster", "lab"],
            &["ca", "issue", "--dir", &authority, "--node", "n1", "--address", "10.77.0.11"],
        ],
    );
    book.golden("schema", &[&["schema"], &["schema", "agent"]]);
    // What a kernel can do is told by the kernel: only who is asked is always the same.
    let (code, text) = book.run(&["check", "--config", &weir_toml]);
    let lines =
        text.lines().filter_map(|line| Some(line.split("  ").nth(1)?.trim().to_owned() + "\n"));
    let text: String = lines.filter(|line| line.len() > 1).collect();
    book.compare("check", &format!("$ weir check\n{text}# ends with {code}\n"));

    flows(&mut book);
    top(&book);
    for (name, arguments) in [
        ("version", &["version"][..]),
        ("status", &["status"]),
        ("services", &["services"]),
        ("services --rate", &["services", "--rate"]),
        ("tasks", &["tasks"]),
        ("nodes", &["nodes"]),
        ("trace", &["trace", "10.77.0.101", "10.77.0.11:8080"]),
        ("trace", &["trace", "10.77.0.101:999", "10.77.0.11:9"]),
        ("drain task", &["drain", "task", "web.2", "--service", "web"]),
        ("drain node", &["drain", "node"]),
        ("drain list", &["drain", "list"]),
        ("undrain task", &["undrain", "task", "web.2"]),
        ("undrain node", &["undrain", "node"]),
        ("undrain all", &["undrain", "all"]),
        ("dns query", &["dns", "query", "hosted"]),
        ("dns records", &["dns", "records"]),
        ("dns cache", &["dns", "cache"]),
        ("dns upstreams", &["dns", "upstreams"]),
        ("state dump", &["state", "dump"]),
        ("check", &["check", "--config", &weir_toml]),
        ("config check", &["config", "check", &mesh_toml]),
        ("config check", &["config", "check", &bad]),
    ] {
        book.json(name, arguments);
    }
    agent.stop().unwrap();
    book.golden("no-agent", &[&["status"], &["monitor"], &["flows"]]);
    book.json("uninstall", &["uninstall", "--config", &weir_toml]);

    let (_, all) = book.run(&["schema"]);
    // Its answer is a status; state diff has a test of its own below.
    let elsewhere = ["upgrade", "state diff"];
    for name in all.lines().filter(|name| !elsewhere.contains(name)) {
        if !book.checked.contains(name) {
            book.wrong.push(format!("nobody looked at the JSON of weir {name}"));
        }
    }
    book.end();
    scene.lab.finish().unwrap();
}

/// One flow, from its beginning to its end; and what happens meanwhile.
fn flows(book: &mut Book<'_>) {
    let client = book.scene.lab.client("c1").netns();
    let target = std::net::SocketAddr::new(book.agent.host().addresses()[0], 8080);
    let talk = eventually("a flow with the task of this node", 10 * SECOND, || {
        let mut talk = Probe::new(How::Tcp, target).open_in(client)?;
        talk.ask().by("web.1")?;
        anyhow::Ok(talk)
    });
    let filter = ["--client", "10.77.0.101", "--state", "established", "--backend", "web.1"];
    book.golden("flows", &[&[&["flows"][..], &filter].concat(), &["flows", "--state", "open"]]);
    book.json("flows", &["flows"]);
    drop(talk);
    book.json("flows kill", &["flows", "kill", "--all"]);
    let seen = eventually("something to happen", 30 * SECOND, || {
        let agent = book.agent.clone();
        let watching = thread::spawn(move || agent.weir(&["monitor", "--for", "3s", "-o", "json"]));
        while !watching.is_finished() {
            book.scene.lab.client("c1").ask(&Probe::tcp(target));
            thread::sleep(SECOND / 10);
        }
        let (_, text) = watching.join().unwrap()?;
        anyhow::ensure!(!text.is_empty(), "nothing");
        Ok(text)
    });
    for line in seen.unwrap().lines() {
        book.fits("monitor", &serde_json::from_str(line).unwrap());
    }
}

/// On a terminal, until a key ends it; and without one.
fn top(book: &Book<'_>) {
    let (code, text) = book.run(&["top"]);
    assert!(code == 2 && text.contains("weir services --rate --watch"), "{code} {text}");
    let weir = agent_program().unwrap();
    let top = format!("{} top --socket {}", weir.display(), book.agent.socket().display());
    let line =
        format!("(sleep 3; printf q) | script -qec 'stty rows 24 cols 120; exec {top}' /dev/null");
    let output = book.agent.host().output(command("sh", &["-c", &line])).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    for word in ["web 8080/tcp 8080/udp", "web.1", "Conn/s", "pause"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn where_dockers_view_is_another_it_is_told_by_name() {
    let lab = Lab::builder().hosts(1).default_route().build().unwrap();
    let host = lab.host("n1");
    let mut tasks = Vec::new();
    let mut dockerd = |file: &str, services: &[(&str, u16, &str)]| {
        let socket = host.run_dir().join(file);
        let dockerd = FakeDockerd::start(&socket, "n1", host.addresses()[0]).unwrap();
        for (service, port, name) in services {
            let task = lab.task("n1", name).unwrap();
            dockerd.service(service, *port, json!({}));
            dockerd.runs(service, &task, json!({}));
            tasks.push(task);
        }
        (dockerd, socket.display().to_string())
    };
    let (_one, followed) = dockerd("docker.sock", &[("web", 8080, "web.1")]);
    let (_two, other) = dockerd("other.sock", &[("web", 9090, "web.2"), ("more", 7070, "more.1")]);
    let agent = lab.agent_with("n1", |config| {
        for key in ["node.name", "node.address", "source.file.path"] {
            config.unset(key);
        }
        config.set("source.docker.socket", followed.clone());
    });
    let agent = agent.unwrap();
    agent.wait_ready().unwrap();
    let diff = |socket: &str, more: &[&str]| {
        let arguments = ["state", "diff", "--against", "docker", "--docker", socket];
        agent.weir(&[&arguments[..], more].concat()).unwrap()
    };
    eventually("the agent to know it all", 20 * SECOND, || {
        let said = diff(&followed, &[]);
        let wanted = "no difference: services, ports, tasks and nodes of the Swarm\n";
        anyhow::ensure!(said == (0, wanted.to_owned()), "{said:?}");
        Ok(())
    })
    .unwrap();
    let (code, text) = diff(&other, &["-o", "json"]);
    let answer: Value = serde_json::from_str(&text).unwrap();
    let found: Vec<String> = answer["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let word = |key: &str| one[key].as_str().unwrap().to_owned();
            [word("kind"), word("subject"), word("docker"), word("weir")].join(" | ")
        })
        .collect();
    assert_eq!(code, 1);
    assert_eq!(
        found,
        [
            "port | more tcp/7070 to 80 | published | nothing",
            "port | web tcp/8080 to 80 | nothing | published",
            "port | web tcp/9090 to 80 | published | nothing",
            "task | more.1.task-more.1 | runs on n1 | nothing",
            "task | web.1.task-web.1 | does not run | active on n1",
            "task | web.1.task-web.2 | runs on n1 | nothing",
        ]
    );
    let output = weir(host, &["schema", "state", "diff"]).unwrap();
    let mut schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    forbid_others(&mut schema);
    jsonschema::validator_for(&schema).unwrap().validate(&answer).unwrap();
    drop(tasks);
    lab.finish().unwrap();
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn a_report_has_everything_but_secrets_and_is_made_without_an_agent_as_well() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", 8080);
    scene.task("web", "n1", "web.1").unwrap();
    let authority = Authority::of(&scene.lab).unwrap();
    scene.start_with(|host, config| authority.link(host, config)).unwrap();
    let agent = scene.agent("n1").clone();
    let dir = agent.host().run_dir().to_owned();
    let key = fs::read_to_string(scene.lab.run_dir().join("authority/n1.key")).unwrap();
    let config = fs::read_to_string(dir.join("weir.toml")).unwrap();
    fs::write(dir.join("report.toml"), format!("{config}\n# registry_password = \"hunter2\"\n"))
        .unwrap();
    let log = format!("{}\njoin --token SWMTKN-1-49nj1-xyz\n{key}\n", agent.log());
    fs::write(dir.join("report.log"), log).unwrap();

    let report = |name: &str| {
        let text = |path: &Path| path.display().to_string();
        let tar = dir.join(format!("{name}.tar"));
        let output = weir(
            agent.host(),
            &[
                "bugreport",
                "--config",
                &text(&dir.join("report.toml")),
                "--log",
                &text(&dir.join("report.log")),
                "--socket",
                &text(&agent.socket()),
                "--out",
                &text(&tar),
            ],
        );
        let output = output.unwrap();
        assert_eq!(fs::metadata(&tar).unwrap().permissions().mode() & 0o777, 0o600);
        let out = dir.join(name);
        fs::create_dir(&out).unwrap();
        let mut unpack = Command::new("tar");
        unpack.args(["--strip-components=1", "-xf"]).arg(&tar).arg("-C").arg(&out);
        assert!(unpack.status().unwrap().success());
        (output, out)
    };
    let (output, out) = report("whole");
    let told = said(&output);
    // There is no DNS server to ask here, and nobody does.
    assert!(output.status.code() == Some(0) && !told.contains(" missing: "), "{told}");
    let secrets = key.lines().filter(|line| !line.starts_with("---")).chain(["hunter2", "SWMTKN"]);
    let secrets: Vec<&str> = secrets.collect();
    let mut files = 0;
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        files += 1;
        assert!(!text.trim().is_empty(), "{}", path.display());
        for secret in &secrets {
            assert!(!text.contains(secret), "{}: {secret}", path.display());
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.txt" || told.contains(name), "{name} is not told of: {told}");
        if name.ends_with(".json") {
            serde_json::from_str::<Value>(&text).unwrap();
        }
    }
    assert!(files > 12, "{told}");
    for (file, has) in [
        ("weir.toml", "registry_password = \"[masked]\""),
        ("log.txt", "join --token [masked]"),
        ("metrics.txt", "weir_build_info{"),
        ("rights.txt", "CapEff:"),
        ("host.txt", "/proc/sys/kernel/osrelease"),
        ("services.json", "\"web.1\""),
        ("mesh.toml", "web.1"),
    ] {
        let text = fs::read_to_string(out.join(file)).unwrap();
        assert!(text.contains(has), "{file}: {text}");
    }

    agent.stop().unwrap();
    let (output, out) = report("dead");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told = said(&output);
    assert!(told.contains("status.json") && told.contains("cannot reach the agent"), "{told}");
    assert!(out.join("check.json").exists() && out.join("log.txt").exists(), "{told}");
    scene.lab.finish().unwrap();
}
