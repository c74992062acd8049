//! One proxy goes on in place of another, of this process or of another one.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use socket2::SockRef;
use tracing::{debug, warn};
use weir_mesh::Protocol;

use super::{Listening, Proxy, ProxyError, listen_for_nodes};
use crate::{
    backend::Backend,
    door::{Dispatch, Door},
    handover::{Handover, HandoverError, Left, LeftSession, Place, State, Word},
    port::Port,
    settings::Settings,
    udp::Inherited,
};

/// Sockets of the proxy before that are not yet in use again.
#[derive(Debug, Default)]
pub(super) struct Heirlooms(HashMap<Place, Vec<Left>>);

/// A proxy that has left its sockets to another one. Its connections go on until it is dropped.
pub struct Remains(Proxy);

/// Workers are between two batches at most; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

impl Remains {
    /// How many connections there are still.
    pub fn connections(&self) -> usize {
        self.0.shared.connections()
    }
}

impl Proxy {
    /// Goes on with what another proxy has left: what it served is served at once.
    ///
    /// # Errors
    /// As [`Proxy::start`], and when the state cannot be read.
    pub fn take_over(
        settings: Settings,
        handover: Handover,
        dispatch: Option<Box<dyn Dispatch>>,
    ) -> Result<Self, ProxyError> {
        let (State { installed, wishes, .. }, left) = handover.unpack()?;
        let mut heirlooms = Heirlooms::new(left);
        let address = SocketAddr::new(settings.address, settings.relay_port);
        heirlooms.keep_relay_at(address);
        let mut proxy = Self::begin(settings, heirlooms)?;
        proxy.open_door(dispatch);
        {
            let mut directory = proxy.shared.directory.write();
            directory.nodes = installed.nodes.iter().map(|(at, it)| (*at, it.address)).collect();
        }
        for (index, record) in &installed.backends {
            proxy.set_backend(*index, record);
        }
        {
            let mut directory = proxy.shared.directory.write();
            for (key, index) in &installed.tags {
                if let Some(backend) = proxy.backends.get(index) {
                    directory.tags.insert(*key, backend.clone());
                }
            }
        }
        for (ident, wishes) in wishes {
            proxy.services.entry(ident).or_default().wishes.store(Arc::new(wishes));
        }
        let ports: Vec<_> = installed.ports.iter().map(|(at, slot)| (*at, *slot)).collect();
        proxy.installed = installed;
        for (frontend, slot) in ports {
            proxy.publish(frontend, slot);
        }
        // Of a port without tasks sessions may still go on.
        let ports: Vec<_> = proxy.shared.directory.write().ports.values().cloned().collect();
        for port in ports {
            if proxy.heirlooms.has(&port) {
                proxy.open(&port);
            }
        }
        // Other nodes hand over what is published: only now that is known.
        proxy.listen_for_nodes_again()?;
        proxy.settled();
        let unused = proxy.heirlooms.forget();
        debug!(unused, "a proxy goes on in place of another");
        Ok(proxy)
    }

    /// Stops to take new flows, and leaves everything that another proxy needs to go on. What clients
    /// send from now on waits for it in the sockets.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn hand_over(mut self) -> Result<(Handover, Remains), HandoverError> {
        let (heir, left) = mpsc::channel();
        let listening = std::mem::take(&mut self.listeners).into_values();
        let mut listeners: Vec<_> = listening
            .filter_map(|listening| match listening {
                Listening::Apart(word) => Some(word),
                Listening::AtDoor => None,
            })
            .collect();
        listeners.push(std::mem::take(&mut self.relay));
        let mut all = Vec::new();
        if let Some(Door { dispatch, word, .. }) = self.door.take() {
            listeners.push(word);
            let files = dispatch.into_files().into_iter();
            all.extend(files.map(|file| Left {
                place: Place::Dispatch,
                socket: file,
                sessions: Vec::new(),
            }));
        }
        for word in listeners.drain(..) {
            word.send_replace(Word::Leave(heir.clone()));
        }
        drop(heir);
        loop {
            match left.recv_timeout(PATIENCE) {
                Ok(left) => all.push(left),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    warn!("a worker hangs, and its sockets are not left to anybody");
                    break;
                }
            }
        }
        let wishes = self.services.iter().map(|(ident, it)| (*ident, (**it.wishes.load()).clone()));
        let handover = Handover::pack(self.installed.clone(), wishes.collect(), all)?;
        Ok((handover, Remains(self)))
    }

    fn listen_for_nodes_again(&mut self) -> Result<(), ProxyError> {
        let listeners = self.heirlooms.listeners(Place::Relay(Protocol::Tcp));
        let sockets = self.heirlooms.sockets(Place::Relay(Protocol::Udp));
        let sockets = sockets.map(|all| self.inherit(all, None));
        self.relay = listen_for_nodes(&self.shared, &self.workers, listeners, sockets)?;
        Ok(())
    }

    /// What sessions mean here. One whose task is not known any more is left out: its client's next
    /// datagram begins another.
    pub(super) fn inherit(
        &self,
        sockets: Vec<(UdpSocket, Vec<LeftSession>)>,
        port: Option<&Arc<Port>>,
    ) -> Vec<(UdpSocket, Vec<Inherited>)> {
        let known: HashMap<_, &Arc<Backend>> = self
            .backends
            .values()
            .map(|backend| ((backend.ident, backend.record().generation), backend))
            .collect();
        let inherit = |session: LeftSession| {
            let backend = (*known.get(&session.state.task)?).clone();
            Some(Inherited::new(session, backend, port))
        };
        let each = sockets.into_iter();
        each.map(|(socket, left)| (socket, left.into_iter().filter_map(inherit).collect()))
            .collect()
    }
}

impl Heirlooms {
    fn new(left: Vec<Left>) -> Self {
        let mut places = HashMap::<Place, Vec<Left>>::new();
        for one in left {
            places.entry(one.place).or_default().push(one);
        }
        Self(places)
    }

    /// Sockets between nodes are of use only where nodes look for them.
    fn keep_relay_at(&mut self, address: SocketAddr) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let place = Place::Relay(protocol);
            let there = |left: &Left| {
                let bound = SockRef::from(&left.socket).local_addr().ok();
                bound.and_then(|bound| bound.as_socket()) == Some(address)
            };
            if self.0.get(&place).is_some_and(|all| !all.iter().all(there)) {
                self.0.remove(&place);
            }
        }
    }

    fn has(&self, port: &Port) -> bool {
        self.0.contains_key(&Place::Port(port.frontend))
    }

    fn forget(&mut self) -> usize {
        std::mem::take(&mut self.0).len()
    }

    pub(super) fn listeners(&mut self, place: Place) -> Option<Vec<TcpListener>> {
        let left = self.0.remove(&place)?;
        Some(left.into_iter().map(|left| left.socket.into()).collect())
    }

    /// Files of the dispatch before.
    pub(super) fn dispatch(&mut self) -> Option<Vec<OwnedFd>> {
        let left = self.0.remove(&Place::Dispatch)?;
        Some(left.into_iter().map(|left| left.socket).collect())
    }

    pub(super) fn sockets(&mut self, place: Place) -> Option<Vec<(UdpSocket, Vec<LeftSession>)>> {
        let left = self.0.remove(&place)?;
        Some(left.into_iter().map(|left| (left.socket.into(), left.sessions)).collect())
    }
}
