//! One question after another to a server, for what its answers say from moment to moment.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weir_dns::wire;

use super::checker::question;

/// Asks one server. Belongs to the network namespace of the thread that makes it.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
    id: u16,
}

impl Asker {
    /// For the server at this address.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self { socket, id: 0 })
    }

    /// The IPv4 addresses of a name.
    pub fn addresses(&mut self, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
        self.id = self.id.wrapping_add(1);
        let question = question(self.id, name, wire::rtype::A);
        self.socket.send(&question)?;
        let mut buffer = [0; 2048];
        let answer = loop {
            let length = self.socket.recv(&mut buffer).context("no answer")?;
            // Another one is to a question that was given up.
            if buffer.get(..2) == question.get(..2) {
                break &buffer[..length];
            }
        };
        let end = wire::question_end(answer).context("an answer without a question")?;
        ensure!(answer.get(12..end) == question.get(12..), "an answer to another question");
        let places = wire::places(answer).context("an answer that is not whole")?;
        let addresses = places.iter().filter(|it| it.section == 0 && it.rtype == wire::rtype::A);
        let address = |place: &wire::Place| {
            let bytes: [u8; 4] = answer.get(place.end - 4..place.end)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        Ok(addresses.filter_map(address).collect())
    }
}
