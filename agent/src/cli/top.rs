//! `weir top`: services and their tasks with live rates, the busiest first.

mod view;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::view::{Key, View};
use super::{Failed, SocketArgs, client, parse_time};
use crate::{
    api::{Services, Status, rates},
    health::Condition,
};

/// Between looks at least, whatever is asked for.
const SOONEST: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Look so often; the agent reads counters at most once a second
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    every: Duration,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn top(args: &TopArgs) -> Result<Condition, Failed> {
    if !io::stdout().is_terminal() {
        return Err(
            "weir top draws on a terminal; weir services --rate --watch prints the same".into()
        );
    }
    // Before the screen is taken: what is wrong with the first answer can be read.
    let mut view = View::new(look(&args.socket)?);
    let terminal = ratatui::try_init().map_err(|error| format!("the terminal: {error}"))?;
    let ended = follow(args, &mut view, terminal);
    ratatui::restore();
    ended.map_err(|error| format!("the terminal: {error}"))?;
    Ok(Condition::Ok)
}

fn look(socket: &SocketArgs) -> Result<(Status, Services), Failed> {
    Ok((client::get(socket, "/api/v1/status")?, client::get(socket, "/api/v1/services")?))
}

fn follow(
    args: &TopArgs,
    view: &mut View,
    mut terminal: ratatui::DefaultTerminal,
) -> io::Result<()> {
    let mut due = Instant::now() + args.every;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(due.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    if (control && key.code == KeyCode::Char('c')) || !view.press(known(key.code)) {
                        return Ok(());
                    }
                }
                // A terminal of another size is drawn anew.
                _ => {}
            }
        }
        if Instant::now() >= due {
            due = Instant::now() + args.every.max(SOONEST);
            if view.is_paused() {
                continue;
            }
            match look(&args.socket) {
                Ok((status, services)) => {
                    let rates = rates(view.services(), &services);
                    view.answered(status, services, rates);
                }
                // An agent that is started anew comes back.
                Err(failed) => view.lost(failed),
            }
        }
    }
}

fn known(code: KeyCode) -> Key {
    match code {
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Back,
        KeyCode::Char(letter) => Key::Letter(letter),
        _ => Key::Other,
    }
}
