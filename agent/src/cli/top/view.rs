//! What is on the screen, and what keys do to it. No terminal and no agent.

use std::cmp::Ordering;

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Cell, Row, Table, TableState},
};

use weir_mesh::PublishMode;

use crate::{
    api::{Rate, Rates, ServiceRates, ServiceView, Services, Status, TaskView},
    health::Condition,
};

/// A key, as far as it means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Back,
    Letter(char),
    Other,
}

/// By what services are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Connections,
    Bytes,
    Name,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Connections => Self::Bytes,
            Self::Bytes => Self::Name,
            Self::Name => Self::Connections,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Bytes => "bytes",
            Self::Name => "name",
        }
    }
}

const PAGE: usize = 10;
const KEYS: &str = "q quit  up/down move  s sort  t tasks  / filter  p pause";

/// The screen.
pub(super) struct View {
    status: Status,
    services: Services,
    rates: Option<Rates>,
    lost: Option<String>,
    sort: Sort,
    with_tasks: bool,
    filter: String,
    typing: bool,
    paused: bool,
    table: TableState,
}

/// A service with what happens to it.
struct Busy<'a> {
    service: &'a ServiceView,
    rates: Option<&'a ServiceRates>,
    total: Rate,
}

impl View {
    pub(super) fn new((status, services): (Status, Services)) -> Self {
        Self {
            status,
            services,
            rates: None,
            lost: None,
            sort: Sort::Connections,
            with_tasks: true,
            filter: String::new(),
            typing: false,
            paused: false,
            table: TableState::new().with_selected(0),
        }
    }

    /// The newest answer.
    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    /// The agent has answered. `rates` are `None` while it has not read the counters again.
    pub(super) fn answered(&mut self, status: Status, services: Services, rates: Option<Rates>) {
        self.lost = None;
        self.status = status;
        let began_anew = services.counters_at_ms < self.services.counters_at_ms;
        if rates.is_none() && !began_anew {
            return;
        }
        self.services = services;
        self.rates = rates;
    }

    /// It has not; what it said last stays.
    pub(super) fn lost(&mut self, failed: String) {
        self.lost = Some(failed);
    }

    /// A key was pressed; answers whether the screen stays.
    pub(super) fn press(&mut self, key: Key) -> bool {
        if self.typing {
            match key {
                Key::Enter => self.typing = false,
                Key::Escape => {
                    self.typing = false;
                    self.filter.clear();
                }
                Key::Back => drop(self.filter.pop()),
                Key::Letter(letter) => self.filter.push(letter),
                _ => {}
            }
            return true;
        }
        match key {
            Key::Letter('q') => return false,
            Key::Escape if self.filter.is_empty() => return false,
            Key::Escape => self.filter.clear(),
            Key::Up | Key::Letter('k') => self.table.select_previous(),
            Key::Down | Key::Letter('j') => self.table.select_next(),
            Key::PageUp => self.table.scroll_up_by(PAGE as u16),
            Key::PageDown => self.table.scroll_down_by(PAGE as u16),
            Key::Letter('s') => self.sort = self.sort.next(),
            Key::Letter('t') => self.with_tasks = !self.with_tasks,
            Key::Letter('p' | ' ') => self.paused = !self.paused,
            Key::Letter('/') => self.typing = true,
            _ => {}
        }
        true
    }

    /// Whether what is asked is shown.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let parts = [Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)];
        let [head, body, foot] = Layout::vertical(parts).areas(frame.area());
        frame.render_widget(self.head(), head);
        let rows = self.rows();
        let widths = [
            Constraint::Min(20),
            Constraint::Length(10),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(12),
        ];
        let titles =
            ["Service / task", "Node", "Active", "Conn/s", "In p/s", "In B/s", "Out B/s", "State"];
        let table = Table::new(rows, widths)
            .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, body, &mut self.table);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> Line<'static> {
        let Status { node, version, condition, subsystems, .. } = &self.status;
        if let Some(lost) = &self.lost {
            return Line::styled(format!("{node}: {lost}"), Style::new().fg(Color::Red));
        }
        let trouble = subsystems.iter().find(|one| one.condition == *condition);
        let (text, colour) = match (condition, trouble) {
            (Condition::Ok, _) | (_, None) => ("all is well".to_owned(), Color::Green),
            (Condition::Degraded, Some(one)) => {
                (format!("{}: {}", one.name, one.reason), Color::Yellow)
            }
            (Condition::Failed, Some(one)) => (format!("{}: {}", one.name, one.reason), Color::Red),
        };
        let paused = if self.paused { " (paused)" } else { "" };
        let by = self.sort.as_str();
        let line = format!("weir {version} on {node}, by {by}{paused} - {text}");
        Line::styled(line, Style::new().fg(colour))
    }

    fn foot(&self) -> Line<'static> {
        match (self.typing, self.filter.as_str()) {
            (true, filter) => Line::raw(format!("filter: {filter}_  Enter keeps it, Esc ends it")),
            (false, "") => Line::raw(KEYS),
            (false, filter) => Line::raw(format!("filter: {filter}  (Esc ends it)  {KEYS}")),
        }
    }

    fn rows(&self) -> Vec<Row<'static>> {
        let mut busy: Vec<Busy<'_>> =
            self.services.services.iter().map(|it| self.busy(it)).collect();
        busy.retain(|it| self.filter.is_empty() || shown(it.service, &self.filter));
        busy.sort_by(|one, other| self.order(one, other));
        let mut rows = Vec::new();
        for one in &busy {
            rows.push(service_row(one));
            if self.with_tasks {
                let rates = one.rates.map(|it| it.tasks.as_slice()).unwrap_or_default();
                rows.extend(one.service.tasks.iter().map(|task| {
                    let same =
                        rates.iter().find(|it| (&it.name, &it.node) == (&task.name, &task.node));
                    task_row(task, same.map(|it| it.rate).unwrap_or_default())
                }));
            }
        }
        rows
    }

    fn busy<'a>(&'a self, service: &'a ServiceView) -> Busy<'a> {
        let all = self.rates.as_ref().map(|it| it.services.as_slice()).unwrap_or_default();
        let rates = all.iter().find(|it| it.name == service.name);
        let ports = rates.map(|it| it.ports.as_slice()).unwrap_or_default();
        let total = ports.iter().fold(Rate::default(), |sum, port| add(sum, port.rate));
        Busy { service, rates, total }
    }

    fn order(&self, one: &Busy<'_>, other: &Busy<'_>) -> Ordering {
        let bytes = |it: &Busy<'_>| it.total.rx_bytes + it.total.tx_bytes;
        let busiest = match self.sort {
            Sort::Connections => other.total.connections.total_cmp(&one.total.connections),
            Sort::Bytes => bytes(other).total_cmp(&bytes(one)),
            Sort::Name => Ordering::Equal,
        };
        busiest.then_with(|| one.service.name.cmp(&other.service.name))
    }
}

fn shown(service: &ServiceView, filter: &str) -> bool {
    let name = service.name.as_str().contains(filter);
    name || service
        .tasks
        .iter()
        .any(|task| task.name.as_str().contains(filter) || task.node.as_str().contains(filter))
}

fn service_row(one: &Busy<'_>) -> Row<'static> {
    let Busy { service, total, .. } = one;
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{}/{}", port.published, port.protocol)).collect();
    let active = service.tasks.iter().map(|task| task.active).sum();
    let well = service.tasks.iter().filter(|task| task.kernel == "active").count();
    let all = service.tasks.len();
    let state = format!("{well} of {all}");
    // Tasks of host mode are none of this node's business, where they are another's.
    let meshed = service.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    let colour = match well {
        0 if meshed => Color::Red,
        well if well < all && meshed => Color::Yellow,
        _ => Color::Reset,
    };
    let name = format!("{} {}", service.name, ports.join(" "));
    row([name.trim_end().to_owned(), String::new()], active, *total, (state, colour))
        .style(Style::new().add_modifier(Modifier::BOLD))
}

fn task_row(task: &TaskView, rate: Rate) -> Row<'static> {
    let colour = if task.kernel == "active" { Color::Reset } else { Color::Yellow };
    let names = [format!("  {}", task.name), task.node.to_string()];
    row(names, task.active, rate, (task.kernel.clone(), colour))
}

fn row(names: [String; 2], active: u64, rate: Rate, state: (String, Color)) -> Row<'static> {
    let Rate { connections, rx_packets, rx_bytes, tx_bytes, .. } = rate;
    let [name, node] = names;
    let numbers = [connections, rx_packets, rx_bytes, tx_bytes].map(short);
    let [connections, rx_packets, rx_bytes, tx_bytes] = numbers;
    let (state, colour) = state;
    let cells = [name, node, active.to_string(), connections, rx_packets, rx_bytes, tx_bytes];
    let cells = cells.map(Cell::from).into_iter();
    Row::new(cells.chain([Cell::from(state).style(Style::new().fg(colour))]))
}

fn add(one: Rate, other: Rate) -> Rate {
    Rate {
        connections: one.connections + other.connections,
        rx_packets: one.rx_packets + other.rx_packets,
        tx_packets: one.tx_packets + other.tx_packets,
        rx_bytes: one.rx_bytes + other.rx_bytes,
        tx_bytes: one.tx_bytes + other.tx_bytes,
    }
}

/// At most five characters: `0`, `12.3`, `999`, `1.2k`, `34M`.
fn short(number: f64) -> String {
    let mut number = number;
    for unit in ["", "k", "M", "G", "T"] {
        if number < 999.5 || unit == "T" {
            return match number < 99.95 && number != 0.0 && (number < 9.95 || unit.is_empty()) {
                true => format!("{number:.1}{unit}"),
                false => format!("{number:.0}{unit}"),
            };
        }
        number /= 1000.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::rates;

    fn counters(connections: u64) -> Value {
        json!({
            "connections": connections, "rx_packets": connections * 10, "rx_bytes": connections * 1500,
            "tx_packets": connections * 20, "tx_bytes": connections * 300_000,
        })
    }

    fn services(at: u64, web: u64, db: u64) -> Services {
        let service = |name: &str, port: u16, count: u64, tasks: Vec<Value>| {
            json!({
                "name": name, "balance": "round-robin", "timeouts": weir_mesh::Timeouts::default(),
                "ports": [{
                    "protocol": "tcp", "published": port, "target": 80, "mode": "ingress",
                    "state": "served", "counters": counters(count),
                }],
                "tasks": tasks,
            })
        };
        let task = |name: &str, node: &str, kernel: &str, count: u64| {
            json!({
                "name": name, "node": node, "addresses": [], "weight": 1, "state": "active",
                "kernel": kernel, "via": null, "active": 3, "counters": counters(count),
            })
        };
        serde_json::from_value(json!({
            "generation": 1, "counters_at_ms": at, "services": [
                service("db", 5432, db, vec![task("db.1", "n2", "active", db)]),
                service("web", 8080, web, vec![
                    task("web.1", "n1", "active", web), task("web.2", "n2", "draining", 0),
                ]),
            ],
        }))
        .unwrap()
    }

    fn status() -> Status {
        serde_json::from_value(json!({
            "version": "1.0.0", "node": "n1", "address": "10.0.0.1", "pid": 1, "uptime_seconds": 1,
            "generation": 1, "wanted": 1, "stale": false, "condition": "ok", "subsystems": [],
            "source_faults": [], "problems": [], "hooks": {},
            "last_pass": { "operations": 0, "milliseconds": 0.0 }, "drift": 0,
        }))
        .unwrap()
    }

    fn view() -> View {
        let mut view = View::new((status(), services(0, 0, 0)));
        let (before, after) = (services(0, 0, 0), services(2000, 5000, 2));
        let rates = rates(&before, &after);
        view.answered(status(), after, rates);
        view
    }

    fn drawn(view: &mut View) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(96, 9)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end().to_owned()).collect()
    }

    #[test]
    fn the_busiest_service_is_first_and_each_task_has_its_rates() {
        let wanted = [
            "weir 1.0.0 on n1, by connections - all is well",
            "Service / task                 Node       Active  Conn/s  In p/s  In B/s   Out B/s  State",
            "web 8080/tcp                              6       2.5k    25k     3.8M     750M     1 of 2",
            "  web.1                        n1         3       2.5k    25k     3.8M     750M     active",
            "  web.2                        n2         3       0       0       0        0        draining",
            "db 5432/tcp                               3       1.0     10.0    1.5k     300k     1 of 1",
            "  db.1                         n2         3       1.0     10.0    1.5k     300k     active",
            "",
            "q quit  up/down move  s sort  t tasks  / filter  p pause",
        ];
        assert_eq!(drawn(&mut view()), wanted);
    }

    #[test]
    fn keys_sort_filter_and_fold() {
        let mut view = view();
        let press = |view: &mut View, letters: &str| {
            letters.chars().for_each(|letter| assert!(view.press(Key::Letter(letter))));
        };
        press(&mut view, "sst");
        assert!(drawn(&mut view)[0].contains("by name"));
        let lines = drawn(&mut view);
        assert!(lines[2].starts_with("db ") && lines[3].starts_with("web "), "{lines:#?}");
        // A q in a filter is a letter.
        press(&mut view, "/qn1");
        assert!(drawn(&mut view)[8].starts_with("filter: qn1_"));
        (0..3).for_each(|_| assert!(view.press(Key::Back)));
        press(&mut view, "n1");
        assert!(view.press(Key::Enter));
        let lines = drawn(&mut view);
        assert!(lines[2].starts_with("web ") && lines[3].is_empty(), "{lines:#?}");
        assert!(view.press(Key::Escape) && drawn(&mut view)[3].starts_with("web "));
        assert!(!view.press(Key::Letter('q')) && !view.press(Key::Escape));
    }

    #[test]
    fn an_agent_that_is_lost_is_told_and_what_it_said_stays() {
        let mut view = view();
        view.lost("cannot reach the agent".to_owned());
        let lines = drawn(&mut view);
        assert_eq!(lines[0], "n1: cannot reach the agent");
        assert!(lines[2].starts_with("web 8080/tcp"));
        // Counters that were not read again change nothing.
        view.answered(status(), services(2000, 5000, 2), None);
        assert!(drawn(&mut view)[2].contains("2.5k"));
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (12.34, "12.3"),
            (999.4, "999"),
            (1234.0, "1.2k"),
            (34e6, "34M"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
