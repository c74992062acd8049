//! The demo for people: how to reach it, what to try, and a table that lives.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use anyhow::Result;
use weir_tests::interrupt;

use crate::demo::{Demo, ECHO, WEB};

/// Shows the mesh until somebody presses Ctrl-C.
pub fn run(demo: &Demo) -> Result<()> {
    let intro = introduction(demo)?;
    let screen = stdout().is_terminal();
    if !screen {
        println!("{intro}");
    }
    while !interrupt::asked() {
        let table = table(demo);
        let mut out = stdout().lock();
        if screen {
            // Home, text, clear the rest: no flicker.
            let lines = format!("{intro}\n{table}").replace('\n', "\x1b[K\n");
            write!(out, "\x1b[H{lines}\x1b[J")?;
        } else {
            writeln!(out, "{table}")?;
        }
        out.flush()?;
        drop(out);
        interrupt::sleep(Duration::from_secs(1));
    }
    println!("\ntaking it down");
    Ok(())
}

fn introduction(demo: &Demo) -> Result<String> {
    let pid =
        |name: &str| demo.shells().find(|(shell, _)| *shell == name).map_or(0, |(_, pid)| pid);
    let agent = demo.agent("n1")?;
    let enter = |name: &str| format!("nsenter --net=/proc/{}/ns/net", pid(name));
    Ok(format!(
        "weir-lab: hosts n1 n2 n3, client c1 (10.77.0.101), services web :{WEB} and echo :{ECHO}\n\
         \n\
         ask it        {client} curl http://10.77.0.11:{WEB}/\n\
         over IPv6     {client} curl 'http://[fd77::12]:{WEB}/'\n\
         on a host     sh -c 'echo $$ >{cgroup}/cgroup.procs; exec {host} curl http://127.0.0.1:{WEB}/'\n\
         kill an agent kill -9 {agent_pid}   and ask on: the kernel goes on without it\n\
         change it     edit {mesh} (state = \"draining\")\n\
         look inside   weir status --socket {socket}\n\
         end           Ctrl-C\n",
        client = enter("c1"),
        host = enter("n1"),
        cgroup = demo.lab.host("n1").cgroup().path().display(),
        agent_pid = agent.pid().unwrap_or(0),
        mesh = demo.mesh.path().display(),
        socket = agent.socket().display(),
    ))
}

/// What n1 says; the next agent when it does not answer.
fn table(demo: &Demo) -> String {
    let mut trouble = String::new();
    for agent in &demo.agents {
        let name = agent.host().name();
        match agent.cli(&["services"]) {
            Ok(text) => return format!("{trouble}weir services, as {name} sees it\n{text}"),
            Err(error) => trouble += &format!("{name} does not answer: {error:#}\n"),
        }
    }
    trouble
}
