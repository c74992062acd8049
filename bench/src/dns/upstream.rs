//! The server that the others ask: prompt, slow, silent, or both by turns.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// At once.
    Prompt,
    /// After two seconds.
    Late,
    /// Never.
    Silent,
    /// At once for one second, not at all for the next.
    Flapping,
}

/// A server on loopback. Its thread ends with it.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is asked.
    pub address: SocketAddr,
    mood: Arc<AtomicU8>,
}

const LATE: Duration = Duration::from_secs(2);
const ENDED: u8 = u8::MAX;

impl Mood {
    /// All.
    pub const ALL: [Self; 4] = [Self::Prompt, Self::Late, Self::Silent, Self::Flapping];

    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Late => "2 s late",
            Self::Silent => "silent",
            Self::Flapping => "flapping",
        }
    }
}

impl Upstream {
    /// Starts it, prompt.
    pub fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let address = socket.local_addr()?;
        let mood = Arc::new(AtomicU8::new(Mood::Prompt as u8));
        let told = mood.clone();
        thread::Builder::new().name("upstream".to_owned()).spawn(move || serve(&socket, &told))?;
        Ok(Self { address, mood })
    }

    /// Answers so from now on.
    pub fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Relaxed);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.mood.store(ENDED, Relaxed);
    }
}

fn serve(socket: &UdpSocket, mood: &AtomicU8) {
    let begun = Instant::now();
    let mut late = VecDeque::<(Instant, SocketAddr, Vec<u8>)>::new();
    let mut buffer = [0; 2048];
    loop {
        let mood = mood.load(Relaxed);
        if mood == ENDED {
            return;
        }
        let now = Instant::now();
        while late.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, client, answer)) = late.pop_front() {
                // Whoever asked may have given up.
                socket.send_to(&answer, client).ok();
            }
        }
        let (length, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                continue;
            }
            // Of an answer to somebody who has gone.
            Err(_) => continue,
        };
        let Some(answer) = answer(&buffer[..length]) else { continue };
        let even = begun.elapsed().as_secs().is_multiple_of(2);
        if mood == Mood::Late as u8 {
            late.push_back((now + LATE, client, answer));
        } else if mood == Mood::Prompt as u8 || (mood == Mood::Flapping as u8 && even) {
            socket.send_to(&answer, client).ok();
        }
    }
}

/// One address for an hour for every name; nothing of other types.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let end = weir_dns::wire::question_end(question)?;
    let kind = weir_dns::wire::u16_at(question, end - 4)?;
    let answers = u8::from(kind == weir_dns::wire::rtype::A);
    let mut answer = question.get(..end)?.to_vec();
    // An answer, recursion as asked for and available; one question, no EDNS.
    answer[2] = 0x80 | answer[2] & 1;
    answer[3] = 0x80;
    answer[6..12].copy_from_slice(&[0, answers, 0, 0, 0, 0]);
    if answers == 1 {
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\x0e\x10\0\x04\xc6\x33\x64\x07");
    }
    Some(answer)
}
