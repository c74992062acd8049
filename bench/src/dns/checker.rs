//! Asks all the time and reads every answer: that each is the right one.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use weir_dns::{name::from_text, wire};

use super::{DOMAIN, address};

/// Asks a server until it is told to stop.
pub struct Checker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Checked>>,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Questions.
    pub asked: usize,
    /// Those that were not answered within a second.
    pub lost: usize,
    /// Those whose answer was wrong.
    pub wrong: usize,
    /// The first of these, in words.
    pub first: Option<String>,
    /// The longest that an answer took, in microseconds.
    pub longest: f64,
}

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(1);

impl Checker {
    /// Begins to ask the server at this port for names below `names`, for names that are not there, and
    /// for types that those have not.
    pub fn start(port: u16, names: usize) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let body = move || check(&socket, names, &told);
        let thread = thread::Builder::new().name("checker".to_owned()).spawn(body)?;
        Ok(Self { stop, thread })
    }

    /// Stops, and says what it has seen.
    pub fn end(self) -> Result<Checked> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("the checker panicked"))?
    }
}

fn check(socket: &UdpSocket, names: usize, stop: &AtomicBool) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut buffer = [0; 2048];
    while !stop.load(Relaxed) {
        let at = checked.asked;
        checked.asked += 1;
        let number = at * 7919 % names;
        let there = address(number as u32);
        // Code, answers, and the end of the last answer.
        let (name, kind, code, found) = match at % 3 {
            0 => (format!("s{number}.{DOMAIN}"), wire::rtype::A, wire::rcode::NOERROR, Some(there)),
            1 => (format!("n{number}.{DOMAIN}"), wire::rtype::A, wire::rcode::NXDOMAIN, None),
            _ => (format!("s{number}.{DOMAIN}"), wire::rtype::AAAA, wire::rcode::NOERROR, None),
        };
        let question = question(at as u16, &name, kind);
        let begun = Instant::now();
        socket.send(&question)?;
        let answer = loop {
            match socket.recv(&mut buffer) {
                // One to a question before this, which was given up.
                Ok(length) if buffer.get(..2) != question.get(..2) && length > 2 => {}
                Ok(length) => break Some(&buffer[..length]),
                Err(_) => break None,
            }
        };
        let Some(answer) = answer else {
            checked.lost += 1;
            continue;
        };
        checked.longest = checked.longest.max(begun.elapsed().as_secs_f64() * 1e6);
        let said = read(answer, &question);
        if said != Some((code, found)) {
            checked.wrong += 1;
            checked.first.get_or_insert_with(|| format!("{name} {kind}: {said:?}"));
        }
        thread::sleep(PAUSE);
    }
    Ok(checked)
}

/// A question as a resolver would write it.
pub(super) fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend(b"\x01\0\0\x01\0\0\0\0\0\0");
    packet.extend(from_text(name).unwrap_or_default().iter());
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend(b"\0\x01");
    packet
}

/// The code and the one address of an answer to this question.
fn read(answer: &[u8], question: &[u8]) -> Option<(u16, Option<Ipv4Addr>)> {
    let end = wire::question_end(answer)?;
    if answer.get(12..end)? != question.get(12..)? {
        return None;
    }
    let code = wire::u16_at(answer, 2)? & 0xf;
    let places = wire::places(answer)?;
    let mut answers = places.iter().filter(|place| place.section == 0);
    let found = match answers.next() {
        Some(place) => {
            let address: [u8; 4] = answer.get(place.end - 4..place.end)?.try_into().ok()?;
            Some(address.into())
        }
        None => None,
    };
    answers.next().is_none().then_some((code, found))
}
