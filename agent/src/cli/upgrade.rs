//! `weir upgrade`.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    AgentArgs, Failed, Format, client,
    table::{print, print_json},
};
use crate::{
    api::{Status, Upgrade},
    health::Condition,
};

/// The new agent says why it cannot begin well before that.
const CALL: Duration = Duration::from_secs(45);
/// Longer than the agent before waits for the new one.
const RUNS: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn run(agent: &AgentArgs) -> Result<Condition, Failed> {
    let before: Status = client::get(&agent.socket, "/api/v1/status")?;
    let asked = Instant::now();
    let Upgrade { pid } = client::post_patiently(&agent.socket, "/api/v1/upgrade", CALL)?;
    let until = Instant::now() + RUNS;
    let mut was_silent = false;
    let status = loop {
        let passed = asked.elapsed().as_secs();
        match client::get::<Status>(&agent.socket, "/api/v1/status") {
            Ok(status) if status.pid == pid && status.condition != Condition::Failed => {
                break status;
            }
            // An agent that has begun anew has run for less than the time that has passed.
            Ok(status)
                if status.pid == before.pid
                    && (was_silent || status.uptime_seconds < before.uptime_seconds + passed) =>
            {
                return Err(format!(
                    "the new agent (pid {pid}) did not run, and the one before goes on; its log says \
                     why"
                ));
            }
            Err(_) => was_silent = true,
            Ok(_) => {}
        }
        if Instant::now() > until {
            return Err(format!(
                "the new agent (pid {pid}) does not run after {} s; look at its log",
                RUNS.as_secs()
            ));
        }
        thread::sleep(PAUSE);
    };
    if agent.output.output == Format::Json {
        print_json(&status)?;
    } else {
        let (old, new) = (&before.version, &status.version);
        print(&format!(
            "weir {new} (pid {pid}) goes on in place of weir {old} (pid {})\n",
            before.pid
        ));
    }
    Ok(Condition::Ok)
}
