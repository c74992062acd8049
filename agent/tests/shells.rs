//! What is made of the definitions of the commands: completion, man pages, and an example for each.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use clap::CommandFactory as _;
use weir::cli::Cli;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

fn printed(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    // What users have set for themselves changes lines and adds warnings.
    for name in ["MANOPT", "MANPAGER", "PAGER", "COLUMNS", "BASH_ENV", "LANGUAGE"] {
        command.env_remove(name);
    }
    command.args(arguments).env("WEIR", WEIR).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "400");
    let output = command.output().unwrap_or_else(|error| {
        panic!("{program}: {error}; .ci/packages --swarm installs it");
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command that is shown to users, with the words that lead to it, groups of commands as well.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    let mut all = Vec::new();
    let mut next = vec![(Vec::new(), Cli::command())];
    while let Some((words, command)) = next.pop() {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            next.push(([&words[..], &[sub.get_name().to_owned()]].concat(), sub.clone()));
        }
        all.push((words, command));
    }
    assert!(all.len() > 30, "{}", all.len());
    all
}

#[test]
fn every_command_has_help_with_an_example() {
    for (words, command) in commands() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = printed(WEIR, &[&words[..], &["--help"]].concat());
        // What only leads to others has its examples there.
        let group = command.has_subcommands() && command.is_subcommand_required_set();
        assert!(group || text.contains("Example"), "weir {words:?} has no example:\n{text}");
    }
}

/// What bash offers after these words.
fn offered(words: &[&str]) -> Vec<String> {
    let last = words.len() - 1;
    let script = format!(
        "source <(\"$WEIR\" completion bash) && complete -p weir >/dev/null && COMP_CWORD={last} && \
         COMP_WORDS=({}) && _weir weir '{}' '{}' && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}' ")).collect::<String>(),
        words[last],
        words[last - 1],
    );
    printed("bash", &["--norc", "-c", &script]).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_their_commands_options_and_values() {
    assert_eq!(offered(&["weir", "sta"]), ["status", "state"]);
    assert_eq!(offered(&["weir", "drain", "t"]), ["task"]);
    assert_eq!(offered(&["weir", "services", "--st"]), ["--stats"]);
    assert_eq!(offered(&["weir", "status", "-o", ""]), ["table", "json"]);
}

#[test]
fn every_shell_is_told_of_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(WEIR, &["completion", shell]);
        for (words, _) in commands() {
            let name = words.last().map_or("weir", String::as_str);
            assert!(script.contains(name), "{shell}: {words:?}");
        }
    }
}

#[test]
fn every_command_has_a_man_page_that_man_understands() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    printed(WEIR, &["man", "--dir", dir]);
    for (words, command) in commands() {
        let name = [&["weir".to_owned()][..], &words].concat().join("-");
        let path = directory.path().join(format!("{name}.1"));
        assert!(path.exists(), "{name}: {:?}", fs::read_dir(directory.path()).unwrap().count());
        // Prints on standard error what troff does not understand.
        let path = path.to_str().unwrap();
        let shown = printed("man", &["--local-file", "--warnings", "--encoding=utf8", path]);
        let about = command.get_about().unwrap().to_string();
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        // Dashes and quotes are set in type.
        let plain = about.split(['\'', '-', '"', '`']).next().unwrap();
        assert!(words(&shown).contains(&words(plain)), "{name}: {about}\n{shown}");
    }
}
