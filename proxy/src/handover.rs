//! What a proxy leaves to the process that goes on in its place: what it has installed, its sockets, and
//! its UDP sessions. Connections stay where they are.
//!
//! A port has a group of sockets among which the kernel spreads clients. The whole group is left, so
//! that nobody is spread anew: what waits in a queue of one of them is met by its next owner there.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::mpsc,
};

use serde::{Deserialize, Serialize};
use weir_mesh::{
    Ident, Installed, Protocol, Timeouts,
    install::{BackendGeneration, Frontend},
    proxied::Proxied,
};

/// All that a proxy leaves.
#[derive(Debug)]
pub struct Handover {
    /// What only a proxy can read.
    pub state: Vec<u8>,
    /// Open files that the state refers to by their order.
    pub files: Vec<OwnedFd>,
}

/// Why nothing could be made of a [`Handover`].
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It could not be written or read.
    #[error("the state of the agent before is unreadable: {0}")]
    Unreadable(String),
    /// There are fewer files than the state names, or more.
    #[error("the state of the agent before names {named} files, and there are {found}")]
    Files {
        /// As many are named.
        named: usize,
        /// As many came.
        found: usize,
    },
}

/// Raised with every change of the state that an older reader would not understand. Whoever is to go on
/// names the format that it reads before anything is left to it.
pub const FORMAT: u32 = 3;

/// What the listeners of a proxy are told.
#[derive(Clone, Debug, Default)]
pub(crate) enum Word {
    #[default]
    Go,
    /// Nobody goes on.
    Stop,
    /// Somebody goes on, and takes the socket.
    Leave(mpsc::Sender<Left>),
}

impl Word {
    pub(crate) fn is_go(&self) -> bool {
        matches!(self, Self::Go)
    }
}

/// Where a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Place {
    /// At a published port.
    Port(Frontend),
    /// Where other nodes hand over.
    Relay(Protocol),
    /// Behind many published ports.
    Door,
    /// What leads there: no sockets, but files of a [`Dispatch`](crate::Dispatch), in its order.
    Dispatch,
}

/// A socket that is left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) place: Place,
    pub(crate) socket: OwnedFd,
    /// None of a listener.
    pub(crate) sessions: Vec<LeftSession>,
}

/// A UDP session that is left, with the socket towards its task.
#[derive(Debug)]
pub(crate) struct LeftSession {
    pub(crate) state: SessionState,
    pub(crate) socket: OwnedFd,
}

/// What is known of a UDP session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionState {
    pub(crate) client: SocketAddr,
    pub(crate) asked: IpAddr,
    pub(crate) speaks_for: Option<SocketAddr>,
    /// Whether its client has one with each task.
    #[serde(default)]
    pub(crate) alone: bool,
    pub(crate) task: (Ident, BackendGeneration),
    pub(crate) peer: SocketAddr,
    pub(crate) header: Vec<u8>,
    pub(crate) timeouts: Timeouts,
    pub(crate) silent_ms: u64,
    pub(crate) answered: bool,
}

/// What is known of a proxy, without its sockets.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) installed: Installed,
    pub(crate) wishes: Vec<(Ident, Proxied)>,
    /// Each with one file for itself and one for each of its sessions.
    sockets: Vec<(Place, Vec<SessionState>)>,
}

impl Handover {
    pub(crate) fn pack(
        installed: Installed,
        wishes: Vec<(Ident, Proxied)>,
        left: Vec<Left>,
    ) -> Result<Self, HandoverError> {
        let (mut sockets, mut files) = (Vec::new(), Vec::new());
        for Left { place, socket, sessions } in left {
            files.push(socket);
            let known = sessions.into_iter().map(|LeftSession { state, socket }| {
                files.push(socket);
                state
            });
            sockets.push((place, known.collect()));
        }
        let state = State { installed, wishes, sockets };
        // With names: what has no value is left out, which would shift a list of values.
        let state = rmp_serde::to_vec_named(&state).map_err(unreadable)?;
        Ok(Self { state, files })
    }

    pub(crate) fn unpack(self) -> Result<(State, Vec<Left>), HandoverError> {
        let state: State = rmp_serde::from_slice(&self.state).map_err(unreadable)?;
        let named = state.sockets.iter().map(|(_, sessions)| 1 + sessions.len()).sum();
        if named != self.files.len() {
            return Err(HandoverError::Files { named, found: self.files.len() });
        }
        let mut files = self.files.into_iter();
        let mut left = Vec::new();
        for (place, sessions) in &state.sockets {
            let Some(socket) = files.next() else { break };
            let sessions = sessions.iter().cloned().zip(files.by_ref());
            let sessions = sessions.map(|(state, socket)| LeftSession { state, socket });
            left.push(Left { place: *place, socket, sessions: sessions.collect() });
        }
        Ok((state, left))
    }
}

fn unreadable(error: impl ToString) -> HandoverError {
    HandoverError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use weir_mesh::PublishedPort;

    use super::*;

    fn socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    fn session(client: &str) -> LeftSession {
        let state = SessionState {
            client: client.parse().unwrap(),
            asked: [10, 0, 0, 1].into(),
            speaks_for: None,
            alone: false,
            task: (Ident(7), BackendGeneration(2)),
            peer: "172.18.0.2:53".parse().unwrap(),
            header: vec![1, 2, 3],
            timeouts: Timeouts::default(),
            silent_ms: 12,
            answered: true,
        };
        LeftSession { state, socket: socket() }
    }

    fn handover() -> Handover {
        let port = PublishedPort::new(53).unwrap();
        let place = Place::Port(Frontend { protocol: Protocol::Udp, port });
        let left = vec![
            Left {
                place,
                socket: socket(),
                sessions: vec![session("[::1]:1"), session("[::1]:2")],
            },
            Left { place: Place::Relay(Protocol::Tcp), socket: socket(), sessions: vec![] },
            Left { place, socket: socket(), sessions: vec![session("127.0.0.1:3")] },
        ];
        Handover::pack(Installed::default(), vec![(Ident(1), Proxied::default())], left).unwrap()
    }

    #[test]
    fn what_is_left_is_read_again_each_session_with_its_own_socket() {
        let whole = handover();
        let numbers = |handover: &Handover| -> Vec<_> {
            let sockets =
                handover.files.iter().map(|file| UdpSocket::from(file.try_clone().unwrap()));
            sockets.map(|socket| socket.local_addr().unwrap().port()).collect()
        };
        let before = numbers(&whole);
        let (state, left) = whole.unpack().unwrap();
        assert_eq!(left.iter().map(|left| left.sessions.len()).collect::<Vec<_>>(), [2, 0, 1]);
        let clients = left.iter().flat_map(|left| &left.sessions).map(|it| it.state.client.port());
        assert_eq!(clients.collect::<Vec<_>>(), [1, 2, 3]);
        let again = Handover::pack(state.installed, state.wishes, left).unwrap();
        assert_eq!(numbers(&again), before);
    }

    #[test]
    fn a_file_too_few_and_a_state_that_is_cut_off_are_refused() {
        let mut short = handover();
        short.files.pop();
        assert!(matches!(short.unpack(), Err(HandoverError::Files { named: 6, found: 5 })));
        let mut cut = handover();
        cut.state.truncate(30);
        assert!(matches!(cut.unpack(), Err(HandoverError::Unreadable(_))));
    }
}
