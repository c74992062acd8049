//! TCP and UDP echo on one port.

use std::io;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::{Server, listen};

pub async fn serve(server: Server, say_name: bool) -> Result<()> {
    let listener = listen::tcp(server.listen)?;
    let socket = listen::udp(server.listen)?;
    let end = listen::end_of_listening(listen::ending(server.on_term)?, server.linger);
    let name = say_name.then_some(server.name);
    tokio::select! {
        result = echo_udp(&socket, name.as_deref()) => Ok(result?),
        result = accept(&listener) => Ok(result?),
        () = end => Ok(()),
    }
}

/// An ICMP error of an earlier answer is reported by a later call and must not end the server.
async fn echo_udp(socket: &UdpSocket, name: Option<&str>) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let data = &buffer[..length];
        let _ = match name {
            Some(name) => {
                let said = format!("{name} {} ", listen::client(client));
                socket.send_to(&[said.as_bytes(), data].concat(), client).await
            }
            None => socket.send_to(data, client).await,
        };
    }
}

async fn accept(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo_tcp(stream));
    }
}

async fn echo_tcp(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}
