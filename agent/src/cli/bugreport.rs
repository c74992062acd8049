//! `weir bugreport`: what somebody needs who was not there, in one file, with keys and passwords masked.

mod host;
mod mask;

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use serde_json::Value;
use time::{OffsetDateTime, macros::format_description};

use super::{
    ConfigArgs, Failed, SocketArgs, check, client, show,
    table::{json, print},
};
use crate::{
    config::{Config, DEFAULT_PATH, SourceConfig},
    health::Condition,
};

/// Of a log, its end.
const MOST_LOG_BYTES: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(super) struct BugreportArgs {
    /// The file to write [default: weir-bugreport-TIME.tar in this directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A file that the agent logs to [default: ask journalctl]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What the agent is asked for.
const ASKED: [(&str, &str, &str); 11] = [
    ("status.json", "/api/v1/status", "subsystems, and what is wrong with each"),
    ("services.json", "/api/v1/services", "services, ports, tasks, counters"),
    ("tasks.json", "/api/v1/tasks", "how each task stands, and why"),
    ("nodes.json", "/api/v1/nodes", "the nodes of the mesh"),
    ("drops.json", "/api/v1/drops", "packets that were not forwarded, by reason"),
    ("drained.json", "/api/v1/drained", "what is drained by hand"),
    ("dns.json", "/api/v1/dns", "the DNS server"),
    ("dns-records.json", "/api/v1/dns/records", "names of services and tasks"),
    ("dns-upstreams.json", "/api/v1/dns/upstreams", "servers that are asked for other names"),
    ("state.json", "/api/v1/state", "what the kernel's maps hold, flows left out"),
    ("metrics.txt", "/metrics", "all metrics"),
];

/// What is put into the file, or why it is not there.
struct Piece {
    name: String,
    about: &'static str,
    body: Result<String, Failed>,
}

pub(super) fn bugreport(args: &BugreportArgs) -> Result<Condition, Failed> {
    let now = OffsetDateTime::now_utc();
    let stamp = now
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .map_err(|error| error.to_string())?;
    let name = format!("weir-bugreport-{stamp}");
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
    let mut pieces = pieces(args);
    for piece in &mut pieces {
        piece.body = std::mem::replace(&mut piece.body, Ok(String::new()))
            .map(|body| mask::masked(&body))
            .map_err(|failed| mask::masked(&failed));
    }
    let contents = contents(&name, &pieces);
    write(&path, &name, &contents, &pieces, now.unix_timestamp()).map_err(|error| {
        format!("{} cannot be written: {error}; name another file with --out", path.display())
    })?;
    print(&format!("{contents}\nwritten to {}\n", path.display()));
    let missing = pieces.iter().any(|piece| piece.body.is_err());
    Ok(if missing { Condition::Degraded } else { Condition::Ok })
}

fn pieces(args: &BugreportArgs) -> Vec<Piece> {
    let piece = |name: &str, about, body| Piece { name: name.to_owned(), about, body };
    let mut all = vec![piece("version.json", "this program", json(&show::this_version(), false))];
    let config = args.config.load();
    let configured = config.as_ref().ok().map(|config| config.socket.clone());
    let socket = SocketArgs { socket: args.socket.socket.clone().or(configured) };
    let mut status: Option<Value> = None;
    for (name, path, about) in ASKED {
        if name.starts_with("dns") && !status.as_ref().is_none_or(serves_names) {
            continue;
        }
        let body = client::text(&socket, path);
        if let ("status.json", Ok(body)) = (name, &body) {
            status = serde_json::from_str(body).ok();
        }
        all.push(piece(name, about, body.map(|body| pretty(name, body))));
    }
    let pid = status.and_then(|status| u32::try_from(status["pid"].as_u64()?).ok());
    let checked = config.as_ref().map_err(Clone::clone).map(check::lines);
    let checked = checked.and_then(|lines| json(&lines, false));
    all.push(piece("check.json", "what this host can do (weir check)", checked));
    let written = args.config.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    if args.config.config.is_some() || written.exists() {
        all.push(piece("weir.toml", "the configuration, secrets masked", file(written)));
    }
    let set = env::vars().filter(|(name, _)| name.starts_with("WEIR_"));
    let set: String = set.map(|(name, value)| format!("{name}={value}\n")).collect();
    if !set.is_empty() {
        all.push(piece("environment.txt", "what sets keys besides, secrets masked", Ok(set)));
    }
    if let Ok(Config { source: SourceConfig::File(source), .. }) = &config {
        all.push(piece("mesh.toml", "the desired state, secrets masked", file(&source.path)));
    }
    all.push(piece("host.txt", "kernel, settings, interfaces, mounts", Ok(host::host())));
    all.push(piece(
        "rights.txt",
        "capabilities and limits, of the agent as well",
        Ok(host::rights(pid)),
    ));
    all.push(piece(
        "log.txt",
        "the end of the agent's log, secrets masked",
        log(args.log.as_deref()),
    ));
    all
}

/// Whether an agent of this status has a DNS server.
fn serves_names(status: &Value) -> bool {
    let subsystems = status["subsystems"].as_array();
    subsystems.is_some_and(|all| all.iter().any(|one| one["name"] == "dns"))
}

/// JSON that can be read by people as well.
fn pretty(name: &str, body: String) -> String {
    if !name.ends_with(".json") {
        return body;
    }
    let value = serde_json::from_str::<Value>(&body).ok();
    value.and_then(|value| json(&value, false).ok()).unwrap_or(body)
}

fn file(path: &Path) -> Result<String, Failed> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn log(path: Option<&Path>) -> Result<String, Failed> {
    if let Some(path) = path {
        return end_of(path).map_err(|error| format!("{}: {error}", path.display()));
    }
    let remedy = "name a file with --log; of a Swarm's agent: docker service logs weir_agent";
    let asked = Command::new("journalctl")
        .args(["--unit", "weir", "--lines", "5000", "--no-pager", "--output", "short-iso-precise"])
        .output()
        .map_err(|error| format!("journalctl: {error}; {remedy}"))?;
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    match asked.status.success() && text.lines().any(|line| !line.starts_with("-- ")) {
        true => Ok(text),
        false => Err(format!("the journal has nothing of the unit weir; {remedy}")),
    }
}

/// Whole lines at the end of a file.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(MOST_LOG_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(MOST_LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // Of a line that is cut off at its beginning nobody can say what it is.
    let whole = if from == 0 { &text[..] } else { text.split_once('\n').map_or("", |it| it.1) };
    Ok(whole.to_owned())
}

/// What the report says of itself.
fn contents(name: &str, pieces: &[Piece]) -> String {
    let mut text = format!(
        "{name}\n\nNames and addresses of services, tasks and nodes are in it. Private keys, tokens and \
         passwords are masked, flows of clients are left out. Look through it before you pass it on.\n\n"
    );
    for Piece { name, about, body } in pieces {
        match body {
            Ok(body) => text.push_str(&format!("{name:<20} {about} ({} bytes)\n", body.len())),
            Err(failed) => text.push_str(&format!("{name:<20} missing: {failed}\n")),
        }
    }
    text
}

fn write(path: &Path, name: &str, contents: &str, pieces: &[Piece], time: i64) -> io::Result<()> {
    // Only for whoever made it: what is in it is not for everybody.
    // One that is there already would keep its mode.
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    let mut add = |file: &str, body: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(time).unwrap_or_default());
        archive.append_data(&mut header, format!("{name}/{file}"), body.as_bytes())
    };
    add("README.txt", contents)?;
    for Piece { name, body, .. } in pieces {
        if let Ok(body) = body {
            add(name, body)?;
        }
    }
    use io::Write as _;
    archive.into_inner()?.flush()
}
