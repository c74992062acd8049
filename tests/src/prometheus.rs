//! A real Prometheus in a namespace: Debian's, as `.ci/packages --prometheus` installs it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::Process;
use crate::wait::eventually;

const PROGRAM: &str = "/usr/bin/prometheus";
const PORT: u16 = 9090;

/// Scrapes every second; ends, with what it has stored, on drop.
#[derive(Debug)]
pub struct Prometheus {
    netns: Netns,
    _process: Process,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it with the rules of a file and these targets of the job `weir`.
    pub fn start(netns: &Netns, rules: &Path, targets: &[String]) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing; .ci/packages --prometheus installs it"
        );
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("prometheus.json");
        let settings = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [{ "job_name": "weir", "static_configs": [{ "targets": targets }] }],
        });
        // JSON is YAML.
        fs::write(&config, settings.to_string())?;
        let mut command = Command::new(PROGRAM);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .arg("--log.level=warn");
        let process = Process::spawn(command, netns, None)?;
        let started = Self { netns: netns.clone(), _process: process, _directory: directory };
        eventually("Prometheus to answer", Duration::from_secs(30), || {
            started.get("/-/ready").map(drop)
        })?;
        Ok(started)
    }

    /// The series that an expression gives now, with their values.
    pub fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>> {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.api(&format!("/api/v1/query?query={query}"))?;
        let found = answer["result"].as_array().with_context(|| format!("{answer}"))?;
        let series = found.iter().map(|series| {
            let value = series["value"][1].as_str().context("no value")?.parse()?;
            Ok((series["metric"].clone(), value))
        });
        series.collect::<Result<_>>().with_context(|| expression.to_owned())
    }

    /// What the rules make of it: the names of alerts that are pending or firing.
    pub fn alerts(&self) -> Result<Vec<String>> {
        let answer = self.api("/api/v1/alerts")?;
        let alerts = answer["alerts"].as_array().with_context(|| format!("{answer}"))?;
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().map(str::to_owned);
        Ok(alerts.iter().filter_map(name).collect())
    }

    fn api(&self, path: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&self.get(path)?)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    fn get(&self, path: &str) -> Result<String> {
        let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        let answer = self.netns.http_get(here, path)?;
        // A query that cannot be understood is answered 400, with the reason.
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body.trim());
        Ok(answer.body)
    }
}
