//! A server of somebody else's, that answers as a test wants.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::sleep,
};

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Answers with an address and this TTL.
    Answer(u32),
    /// The name does not exist, with an SOA of this TTL.
    Nothing(u32),
    /// The name does not exist, and nobody says for how long.
    NothingUnsaid,
    /// Fails.
    Fail,
    /// Says nothing.
    Silent,
    /// Answers after so many milliseconds.
    Slow(u64),
    /// Lies first, with another id, then another name, and then answers.
    LieFirst,
    /// Does not know EDNS.
    WithoutEdns,
    /// Answers with so many records, cut over UDP.
    Many(u16),
}

/// A server on loopback.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    pub asked: Arc<AtomicUsize>,
    pub ports: Arc<Mutex<Vec<u16>>>,
    mood: Arc<Mutex<Mood>>,
}

impl Upstream {
    pub async fn start(mood: Mood) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same number may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let mood = Arc::new(Mutex::new(mood));
        let upstream = Self { address, asked: Arc::default(), ports: Arc::default(), mood };
        tokio::spawn(upstream.clone().by_datagram(Arc::new(udp)));
        tokio::spawn(upstream.clone().by_stream(tcp));
        upstream
    }

    pub fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn times_asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    async fn by_datagram(self, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            self.ports.lock().unwrap().push(client.port());
            let (this, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                for answer in this.answers(&question, false).await {
                    socket.send_to(&answer, client).await.unwrap();
                }
            });
        }
    }

    async fn by_stream(self, listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut buffer = vec![0; usize::from(length)];
            stream.read_exact(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer).unwrap();
            for answer in self.answers(&question, true).await {
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    }

    async fn answers(&self, question: &Message, tcp: bool) -> Vec<Vec<u8>> {
        self.asked.fetch_add(1, SeqCst);
        let mood = *self.mood.lock().unwrap();
        let mut answer = question.clone();
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.recursion_available = true;
        let name = question.queries[0].name().clone();
        let address = |ttl, last| {
            Record::from_rdata(name.clone(), ttl, RData::A(rdata::A::new(203, 0, 113, last)))
        };
        match mood {
            Mood::Answer(ttl) => drop(answer.add_answer(address(ttl, 1))),
            Mood::Nothing(ttl) => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let own = Name::from_ascii("example.").unwrap();
                let soa = rdata::SOA::new(own.clone(), own.clone(), 1, 2, 3, 4, ttl);
                answer.add_authority(Record::from_rdata(own, 86_400, RData::SOA(soa)));
            }
            Mood::NothingUnsaid => answer.metadata.response_code = ResponseCode::NXDomain,
            Mood::Fail => answer.metadata.response_code = ResponseCode::ServFail,
            Mood::Silent => return Vec::new(),
            Mood::Slow(milliseconds) => {
                sleep(Duration::from_millis(milliseconds)).await;
                answer.add_answer(address(60, 1));
            }
            Mood::LieFirst => {
                answer.add_answer(address(60, 66));
                let mut wrong_id = answer.clone();
                wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
                let mut wrong_name = answer.clone();
                wrong_name.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                answer.answers = vec![address(60, 1)];
                return [wrong_id, wrong_name, answer].map(|one| one.to_vec().unwrap()).into();
            }
            Mood::WithoutEdns if question.edns.is_some() => {
                answer.edns = None;
                answer.metadata.response_code = ResponseCode::FormErr;
            }
            Mood::WithoutEdns => drop(answer.add_answer(address(60, 1))),
            Mood::Many(count) => {
                answer.metadata.truncation = !tcp;
                for at in 0..if tcp { count } else { 1 } {
                    answer.add_answer(address(60, (at % 250) as u8));
                }
            }
        }
        vec![answer.to_vec().unwrap()]
    }
}
