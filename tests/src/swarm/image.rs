//! Images for a Swarm without a registry, made from the programs that were built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::agent_program;
use crate::swarm::repository;
use crate::task::task_program;

/// The tag of weir's image: what `deploy/stack.yml` asks for.
const WEIR: &str = "weir:latest";
/// A task that serves HTTP at 80, echo at 53 (TCP and UDP) and says `v1`.
pub const TASK_V1: &str = "task:v1";
/// The same, and says `v2`.
pub const TASK_V2: &str = "task:v2";
/// A task with a HEALTHCHECK: `docker exec TASK /weir-lab-task sick` makes it fail, `well` ends that.
pub const TASK_HEALTH: &str = "task:health";

/// An archive for `docker load`.
#[derive(Debug, Clone)]
pub struct Image {
    archive: PathBuf,
}

impl Image {
    /// The archive.
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// Made once; again when the program is newer.
    fn of(program: &Path, tag: &str, config: &Value) -> Result<Self> {
        let beside = program.parent().context("the program has no directory")?;
        let archive = beside.join("images").join(format!("{}.tar", tag.replace(':', "-")));
        let mut script = Command::new(repository("deploy/image.sh"));
        script.arg(&archive).arg(tag).arg(config.to_string()).arg(program);
        let output = script.output().context("run deploy/image.sh")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "deploy/image.sh {tag}: {}", error.trim());
        Ok(Self { archive })
    }
}

/// The image of the `weir` under test.
pub fn weir_image() -> Result<Image> {
    let config = std::fs::read_to_string(repository("deploy/image.json"))?;
    Image::of(&agent_program()?, WEIR, &serde_json::from_str(&config)?)
}

/// [`TASK_V1`], [`TASK_V2`] and [`TASK_HEALTH`].
pub fn task_images() -> Result<Vec<Image>> {
    let program = task_program()?;
    let own = |version: &str| {
        json!({
            "Entrypoint": ["/weir-lab-task"],
            "Cmd": ["serve"],
            "Env": [format!("VERSION={version}")],
        })
    };
    let mut checked = own("v1");
    // Nanoseconds.
    checked["Healthcheck"] = json!({
        "Test": ["CMD", "/weir-lab-task", "health"],
        "Interval": 500_000_000,
        "Timeout": 2_000_000_000,
        "Retries": 1,
        "StartPeriod": 30_000_000_000_u64,
    });
    [(TASK_V1, own("v1")), (TASK_V2, own("v2")), (TASK_HEALTH, checked)]
        .into_iter()
        .map(|(tag, config)| Image::of(&program, tag, &config))
        .collect()
}
