//! The configuration of the real servers and proxies that are compared.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use weir_tests::lab::command;

use super::mode::{Mode, TASK, TASK_BULK, TASK_ECHO, TASK_HTTP, Wire};

/// The web server of a task: one worker, and a connection may live as long as it likes.
pub fn nginx_task(dir: &Path) -> Result<Command> {
    let text = format!(
        "{}http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  \
         server {{\n    listen {TASK_HTTP} backlog=4096;\n    location / {{ return 200 \"web\\n\"; }}\n  \
         }}\n}}\n",
        nginx_head(dir, "task", 1)
    );
    nginx(dir, "task", &text)
}

/// nginx as a TCP proxy: a listener a worker, a worker a processor.
pub fn nginx_stream(dir: &Path) -> Result<Command> {
    let server = |wire, to| {
        let port = Mode::NginxStream.port(wire);
        format!("  server {{ listen {port} reuseport backlog=4096; proxy_pass {TASK}:{to}; }}\n")
    };
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{}stream {{\n{}{}}}\n",
        nginx_head(dir, "stream", 2),
        server(Wire::Http, TASK_HTTP),
        server(Wire::Bulk, TASK_BULK),
    );
    nginx(dir, "stream", &text)
}

/// HAProxy in TCP mode.
pub fn haproxy(dir: &Path) -> Result<Command> {
    let proxy = |name, wire, to| {
        let port = Mode::Haproxy.port(wire);
        format!("listen {name}\n  bind :{port} backlog 4096\n  server task {TASK}:{to}\n")
    };
    let text = format!(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  maxconn 4000\n  timeout connect 5s\n  \
         timeout client 1h\n  timeout server 1h\n{}{}",
        proxy("http", Wire::Http, TASK_HTTP),
        proxy("bulk", Wire::Bulk, TASK_BULK),
    );
    let path = dir.join("haproxy.cfg");
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(command("haproxy", &["-db", "-q", "-f", &path.display().to_string()]))
}

/// nftables' destination NAT, which brings connection tracking with it.
pub fn nft(dir: &Path) -> Result<Command> {
    let rule = |protocol, wire, to| {
        let port = Mode::Nftables.port(wire);
        format!("    {protocol} dport {port} dnat to {TASK}:{to}\n")
    };
    let text = format!(
        "table ip nat {{\n  chain prerouting {{\n    type nat hook prerouting priority -100; policy \
         accept;\n{}{}{}  }}\n}}\n",
        rule("tcp", Wire::Http, TASK_HTTP),
        rule("tcp", Wire::Bulk, TASK_BULK),
        rule("udp", Wire::Echo, TASK_ECHO),
    );
    let path = dir.join("nft.conf");
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(command("nft", &["-f", &path.display().to_string()]))
}

fn nginx_head(dir: &Path, name: &str, workers: usize) -> String {
    let dir = dir.display();
    format!(
        "daemon off;\nuser root;\nworker_processes {workers};\nworker_rlimit_nofile 65536;\n\
         pid {dir}/{name}.pid;\nerror_log {dir}/{name}-nginx.log;\n\
         events {{ worker_connections 4096; }}\n"
    )
}

fn nginx(dir: &Path, name: &str, text: &str) -> Result<Command> {
    let path = dir.join(format!("{name}-nginx.conf"));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    let error_log = format!("{}/{name}-nginx.log", dir.display());
    Ok(command("nginx", &["-e", &error_log, "-c", &path.display().to_string()]))
}
