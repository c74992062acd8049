//! Which address a socket towards a task, or towards its node, has.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::Socket;

use crate::{service::Service, shared::Shared, sys};

/// Where a socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Whatever the kernel's routes say.
    Route,
    /// This node's own address, by which other nodes know it.
    Node(IpAddr),
    /// The client's: the task sees it.
    Client(IpAddr),
}

impl Source {
    /// Towards a task of this node.
    pub(crate) fn towards_task(shared: &Shared, service: &Service, client: IpAddr) -> Self {
        match shared.transparent && service.wishes.load().transparent {
            true => Self::Client(client),
            false => Self::Route,
        }
    }

    /// Binds a socket before it is connected. One of the other address family stays as it is.
    pub(crate) fn bind(self, socket: &Socket, peer: SocketAddr) -> io::Result<()> {
        let address = match self {
            Self::Route => return Ok(()),
            Self::Node(address) | Self::Client(address) => address,
        };
        if address.is_ipv4() != peer.is_ipv4() {
            return Ok(());
        }
        if matches!(self, Self::Client(_)) {
            sys::be_transparent(socket, peer.is_ipv6())?;
        }
        sys::choose_port_late(socket)?;
        socket.bind(&SocketAddr::new(address, 0).into())
    }
}
