//! The metrics: what the documents say is what there is, and what is shipped for Prometheus and
//! Grafana works on a real Prometheus that scrapes three agents.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::lab::command;
use weir_tests::prometheus::Prometheus;
use weir_tests::traffic::HttpLoad;
use weir_tests::{Authority, Lab, Probe, Scene, eventually};

const PORT: u16 = 8080;

/// Linked hosts that serve DNS, and tell metrics by all names that there are.
fn scene(hosts: usize) -> Scene {
    let mut scene = Scene::new(Lab::builder().hosts(hosts)).unwrap();
    scene.service("web", PORT);
    for host in (1..=hosts).map(|number| format!("n{number}")) {
        scene.task("web", &host, &format!("web.{host}")).unwrap();
    }
    let authority = Authority::of(&scene.lab).unwrap();
    let started = scene.start_with(|host, config| {
        authority.link(host, config);
        config.set("dns.listen", vec!["127.0.0.1"]);
        // Nobody is there: an upstream that is down is worth a series, too.
        config.set("dns.upstreams", vec!["192.0.2.53"]);
        config.set("compat.ipvs_metrics", true);
    });
    started.unwrap();
    scene
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The families that docs/metrics.md lists: their names, and their types in the first word.
fn documented() -> BTreeMap<String, String> {
    let text = fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let kind = cells.next()?.split(',').next()?.to_owned();
        (name.starts_with("weir_") || name.starts_with("node_")).then_some((name, kind))
    });
    rows.collect()
}

/// The families that a scrape tells of, as they are to be looked up: counters end in `_total`.
fn exported(scrape: &str) -> BTreeMap<String, String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| match kind {
            "counter" => (format!("{name}_total"), kind.to_owned()),
            _ => (name.to_owned(), kind.to_owned()),
        })
        .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let scene = scene(1);
    let scrape = scene.agent("n1").http("/metrics").unwrap().body;
    let (documented, exported) = (documented(), exported(&scrape));
    assert!(documented.len() > 60, "the tables of docs/metrics.md were not understood");
    let only = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>| -> Vec<String> {
        let missing = one.iter().filter(|(name, kind)| other.get(*name) != Some(kind));
        missing.map(|(name, kind)| format!("{name} ({kind})")).collect()
    };
    let none: Vec<String> = vec![];
    assert_eq!(
        (only(&exported, &documented), only(&documented, &exported)),
        (none.clone(), none),
        "exported but not documented; documented but not exported"
    );
}

#[test]
fn dashboards_made_for_ipvs_find_what_they_look_for() {
    let scene = scene(1);
    for probe in scene.lab.host("n1").targets(PORT).into_iter().map(Probe::tcp) {
        assert!(scene.lab.client("c1").ask(&probe).task.is_some());
    }
    let scrape = || scene.agent("n1").http("/metrics").map(|answer| answer.body);
    eventually("the connections to be counted", Duration::from_secs(10), || {
        let scrape = scrape()?;
        let total = scrape.lines().find_map(|it| it.strip_prefix("node_ipvs_connections_total "));
        ensure!(total.context("no total")?.parse::<u64>()? >= 2, "{total:?}");
        Ok(())
    })
    .unwrap();
    let weight = "node_ipvs_backend_weight{local_address=\"\",local_port=\"0\",remote_address=";
    let scrape = scrape().unwrap();
    let line = scrape.lines().find(|line| line.starts_with(weight)).unwrap();
    assert!(line.ends_with(",proto=\"FWM\",local_mark=\"web\"} 1"), "{line}");
}

/// The expressions of the dashboard, with everything chosen.
fn panels() -> Vec<String> {
    let text = fs::read_to_string(repository("deploy/monitoring/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let chosen = |text: &str| {
        let text = text.replace("$instance", ".*").replace("$service", ".*");
        text.replace("$__rate_interval", "30s")
    };
    targets.map(|target| chosen(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn a_prometheus_that_scrapes_three_agents_answers_every_question_of_the_dashboard() {
    let mut scene = scene(3);
    let client = scene.lab.client("c1").clone();
    let targets =
        ["n1", "n2", "n3"].map(|host| format!("{}:9950", scene.lab.host(host).addresses()[0]));
    let rules = repository("deploy/monitoring/weir.rules.yml").canonicalize().unwrap();
    let prometheus = Prometheus::start(client.netns(), &rules, &targets).unwrap();
    eventually("three agents to be scraped", Duration::from_secs(30), || {
        let up = prometheus.query("sum(up{job=\"weir\"})")?;
        ensure!(up.first().is_some_and(|(_, up)| *up == 3.0), "{up:?}");
        Ok(())
    })
    .unwrap();

    let entries = ["n1", "n2", "n3"].map(|host| scene.lab.host(host).targets(PORT)[0]);
    let load = HttpLoad::new(client.netns(), entries).rate(50).start().unwrap();
    let answered = eventually("all panels to have data", Duration::from_secs(60), || {
        // Something to be seen besides connections: a change, and questions to the DNS servers.
        scene.apply()?;
        for host in scene.lab.hosts() {
            host.output(command("dig", &["+tries=1", "+short", "@127.0.0.1", "web"]))?;
        }
        for panel in panels() {
            let found = prometheus.query(&panel)?;
            ensure!(found.iter().any(|(_, value)| value.is_finite()), "{panel}: {found:?}");
        }
        let counted = prometheus.query("sum(weir_service_connections_total)")?;
        ensure!(counted.first().is_some_and(|(_, count)| *count > 0.0), "{counted:?}");
        Ok(())
    });
    let report = load.stop().unwrap();
    answered.unwrap();
    report.assert_clean();

    // And the rules say so when an agent is gone.
    assert!(!prometheus.alerts().unwrap().contains(&"WeirAgentDown".to_owned()));
    scene.agent("n2").kill9();
    eventually("the alert", Duration::from_secs(30), || {
        let alerts = prometheus.alerts()?;
        ensure!(alerts.contains(&"WeirAgentDown".to_owned()), "{alerts:?}");
        Ok(())
    })
    .unwrap();
    scene.agent("n2").launch().unwrap();
    scene.agent("n2").wait_ready().unwrap();
}

#[test]
fn the_alert_rules_fire_when_they_should_and_for_metrics_that_there_are() {
    let promtool = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("promtool");
        let output = command.args(arguments).current_dir(repository("deploy/monitoring")).output();
        let output =
            output.context("promtool is missing; .ci/packages --prometheus installs it")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&said));
        Ok(())
    };
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"]).unwrap();
    promtool(&["test", "rules", "weir.rules.test.yml"]).unwrap();

    let read = |path: &str| fs::read_to_string(repository(path)).unwrap();
    let (rules, tests) =
        (read("deploy/monitoring/weir.rules.yml"), read("deploy/monitoring/weir.rules.test.yml"));
    let documented = documented();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for word in words.filter(|word| word.starts_with("weir_")) {
        assert!(documented.contains_key(word.trim_end_matches("_bucket")), "{word}");
    }
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {alert},")), "{alert} is not tested");
    }
}
