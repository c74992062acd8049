//! One question to a service over a real socket, and all that the asking program could see.
//!
//! A probe runs in our own process, in a namespace ([`Probe::ask`], [`Probe::open`]), or as a
//! program in a host's or task's cgroup ([`crate::Host::probe`], [`crate::Task::probe`]), where
//! weir's connect-time programs see it. Both run the same code.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::lab::command;
use crate::netns::Netns;
use crate::task::task_program;

/// An answer that takes longer is no answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What kind of socket asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// HTTP over TCP.
    Tcp,
    /// `sendto` and `recvfrom`.
    Udp,
    /// `connect`, `send` and `recv`.
    UdpConnected,
}

/// What to ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probe {
    how: How,
    to: String,
    from: Option<SocketAddr>,
    checksum: bool,
    times: u32,
    pause: Duration,
}

/// What was seen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The name of the task that answered.
    pub task: Option<String>,
    /// The client's address as the task saw it.
    pub client: Option<SocketAddr>,
    /// Our own address, by getsockname.
    pub local: Option<SocketAddr>,
    /// The other's address, by getpeername.
    pub peer: Option<SocketAddr>,
    /// Where a datagram came from, by recvfrom.
    pub source: Option<SocketAddr>,
    /// What went wrong, if no answer came.
    pub error: Option<String>,
    /// Its number.
    pub errno: Option<i32>,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

impl Probe {
    /// A probe of `host:port`; a name is resolved where the probe runs.
    pub fn new(how: How, to: impl ToString) -> Self {
        let (from, checksum) = (None, true);
        Self { how, to: to.to_string(), from, checksum, times: 1, pause: Duration::ZERO }
    }

    /// HTTP over TCP.
    pub fn tcp(to: impl ToString) -> Self {
        Self::new(How::Tcp, to)
    }

    /// An unconnected UDP socket.
    pub fn udp(to: impl ToString) -> Self {
        Self::new(How::Udp, to)
    }

    /// From this address and port, which another socket may have too.
    pub fn from(self, address: SocketAddr) -> Self {
        Self { from: Some(address), ..self }
    }

    /// Asks so many times over one socket, with pauses.
    pub fn times(self, times: u32, pause: Duration) -> Self {
        Self { times, pause, ..self }
    }

    /// Without a UDP checksum.
    pub fn without_checksum(self) -> Self {
        Self { checksum: false, ..self }
    }

    /// Asks once, on the current thread, with a socket of its own.
    pub fn ask(&self) -> Seen {
        let start = Instant::now();
        match self.open() {
            Ok(mut talk) => talk.ask(),
            Err(error) => Seen::default().failed(&error, start),
        }
    }

    /// Asks as often as it is to, over one socket.
    pub fn ask_all(&self) -> Vec<Seen> {
        let start = Instant::now();
        let mut talk = match self.open() {
            Ok(talk) => talk,
            Err(error) => return vec![Seen::default().failed(&error, start)],
        };
        let ask = |round| {
            if round > 0 {
                std::thread::sleep(self.pause);
            }
            talk.ask()
        };
        (0..self.times).map(ask).collect()
    }

    /// Opens the socket on the current thread.
    pub fn open(&self) -> io::Result<Talk> {
        let to = self.to.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
        let kind = if self.how == How::Tcp { Type::STREAM } else { Type::DGRAM };
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        if !self.checksum {
            leave_out_the_checksum(&socket, to)?;
        }
        let line = match self.how {
            How::Tcp => {
                socket.connect_timeout(&to.into(), TIMEOUT)?;
                socket.set_tcp_nodelay(true)?;
                Line::Tcp(socket.into())
            }
            How::Udp => {
                if self.from.is_none() {
                    let any: IpAddr = match to {
                        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                    };
                    socket.bind(&SocketAddr::new(any, 0).into())?;
                }
                Line::Udp(socket.into(), to)
            }
            How::UdpConnected => {
                socket.connect(&to.into())?;
                Line::Connected(socket.into())
            }
        };
        line.set_timeout()?;
        Ok(Talk { line, asked: 0 })
    }

    /// Opens the socket in a namespace.
    pub fn open_in(&self, netns: &Netns) -> Result<Talk> {
        netns.run(|| self.open()).with_context(|| self.to_string())
    }

    /// The probe as an argument of the task program.
    pub(crate) fn command(probes: &[Self]) -> Result<std::process::Command> {
        let text = serde_json::to_string(probes)?;
        Ok(command(task_program()?, &["probe", &text]))
    }

    /// What the task program said.
    pub(crate) fn seen(output: &std::process::Output) -> Result<Vec<Seen>> {
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "probe: {} {}", output.status, error.trim());
        serde_json::from_slice(&output.stdout).context("what the probe said")
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Tcp => "tcp",
            How::Udp => "udp, sendto,",
            How::UdpConnected => "udp, connected,",
        };
        write!(f, "{how} to {}", self.to)?;
        match self.from {
            Some(from) => write!(f, " from {from}"),
            None => Ok(()),
        }
    }
}

/// An open socket that can ask again and again.
#[derive(Debug)]
pub struct Talk {
    line: Line,
    asked: u64,
}

#[derive(Debug)]
enum Line {
    Tcp(TcpStream),
    Udp(UdpSocket, SocketAddr),
    Connected(UdpSocket),
}

impl Talk {
    /// Asks, and waits for the answer.
    pub fn ask(&mut self) -> Seen {
        self.asked += 1;
        let start = Instant::now();
        let mut seen = Seen { local: self.line.local(), peer: self.line.peer(), ..Seen::default() };
        let text = format!("<{}.{}>", std::process::id(), self.asked);
        match self.line.exchange(&text, &mut seen.source) {
            Ok(answer) => {
                let mut words = answer.split_ascii_whitespace();
                seen.task = words.next().map(str::to_owned);
                seen.client = words.next().and_then(|word| word.parse().ok());
                seen.millis = millis(start);
                seen
            }
            Err(error) => seen.failed(&error, start),
        }
    }

    /// Sends another address's question over the same UDP socket.
    pub fn ask_at(&mut self, to: SocketAddr) -> Seen {
        if let Line::Udp(_, target) = &mut self.line {
            *target = to;
        }
        self.ask()
    }

    /// Sends bytes over UDP to an echo server and gives what came back.
    pub fn echo(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        let length = match &self.line {
            Line::Tcp(_) => return Err(io::ErrorKind::Unsupported.into()),
            Line::Udp(socket, to) => {
                socket.send_to(data, to)?;
                socket.recv(&mut buffer)?
            }
            Line::Connected(socket) => {
                socket.send(data)?;
                socket.recv(&mut buffer)?
            }
        };
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl Line {
    fn set_timeout(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(TIMEOUT)),
            Self::Udp(socket, _) | Self::Connected(socket) => {
                socket.set_read_timeout(Some(TIMEOUT))
            }
        }
    }

    fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Udp(socket, _) | Self::Connected(socket) => socket.local_addr().ok(),
        }
    }

    fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Udp(..) => None,
            Self::Connected(socket) => socket.peer_addr().ok(),
        }
    }

    fn exchange(&mut self, text: &str, source: &mut Option<SocketAddr>) -> io::Result<String> {
        match self {
            Self::Tcp(stream) => http(stream),
            Self::Udp(socket, to) => {
                socket.send_to(text.as_bytes(), *to)?;
                datagram(socket, text, source)
            }
            Self::Connected(socket) => {
                socket.send(text.as_bytes())?;
                datagram(socket, text, source)
            }
        }
    }
}

/// Answers to earlier questions are skipped.
fn datagram(socket: &UdpSocket, text: &str, source: &mut Option<SocketAddr>) -> io::Result<String> {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        if let Some(said) = answer.strip_suffix(text) {
            *source = Some(from);
            return Ok(said.to_owned());
        }
    }
}

/// A small request on a connection that stays open, and the body of its answer.
fn http(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n")?;
    let mut received = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend(&buffer[..length]);
        let text = String::from_utf8_lossy(&received);
        // The task program's bodies end with their only newline.
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Some(body) = body.strip_suffix('\n')
        {
            return Ok(body.to_owned());
        }
    }
}

fn leave_out_the_checksum(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    const UDP_NO_CHECK6_TX: libc::c_int = 101; // linux/udp.h
    let (level, option) = match to {
        SocketAddr::V4(_) => (libc::SOL_SOCKET, libc::SO_NO_CHECK),
        SocketAddr::V6(_) => (libc::SOL_UDP, UDP_NO_CHECK6_TX),
    };
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value lives until the call returns.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Seen {
    fn failed(self, error: &io::Error, since: Instant) -> Self {
        let (text, errno) = (Some(error.to_string()), error.raw_os_error());
        Self { error: text, errno, millis: millis(since), ..self }
    }

    /// That this task answered.
    pub fn by(&self, task: &str) -> Result<&Self> {
        ensure!(self.task.as_deref() == Some(task), "expected {task}, saw {self}");
        Ok(self)
    }

    /// That the task saw our own address and port.
    pub fn client_kept(&self, own: IpAddr) -> Result<&Self> {
        let port = self.local.map(|local| local.port());
        let expected = port.map(|port| SocketAddr::new(own, port));
        ensure!(self.client == expected, "expected client {expected:?}, saw {self}");
        Ok(self)
    }

    /// That this address answered, as far as the program can know.
    pub fn answered_from(&self, asked: SocketAddr) -> Result<&Self> {
        for (call, address) in [("getpeername", self.peer), ("recvfrom", self.source)] {
            ensure!(address.is_none_or(|seen| seen == asked), "{call} is not {asked}: {self}");
        }
        ensure!(self.peer.is_some() || self.source.is_some(), "no address: {self}");
        Ok(self)
    }

    /// That it was refused, at once.
    pub fn refused_at_once(&self) -> Result<&Self> {
        ensure!(self.errno == Some(libc::ECONNREFUSED), "expected a refusal, saw {self}");
        // A SYN that was not answered is repeated after a second.
        ensure!(self.millis < 900, "refused, but late: {self}");
        Ok(self)
    }

    /// Whether the connection was reset.
    pub fn is_reset(&self) -> bool {
        matches!(self.errno, Some(libc::ECONNRESET | libc::EPIPE))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.task, &self.error) {
            (Some(task), _) => write!(f, "{task}")?,
            (None, Some(error)) => write!(f, "\"{error}\"")?,
            (None, None) => write!(f, "nothing")?,
        }
        let addresses = [
            ("client", self.client),
            ("own", self.local),
            ("peer", self.peer),
            ("source", self.source),
        ];
        for (name, address) in addresses {
            if let Some(address) = address {
                write!(f, ", {name} {address}")?;
            }
        }
        write!(f, " after {} ms", self.millis)
    }
}
