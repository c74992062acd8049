//! A proxy as one writes it in an afternoon.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use tokio::net::{TcpListener, TcpStream};

/// `copy LISTEN TARGET LISTEN TARGET …`: what one writes in an afternoon.
pub fn serve(first: &str, rest: impl Iterator<Item = String>) -> Result<()> {
    let all: Vec<SocketAddr> = std::iter::once(first.to_owned())
        .chain(rest)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for pair in all.chunks(2) {
            let &[listen, target] = pair else { bail!("a listener without a target") };
            let listener = TcpListener::bind(listen).await?;
            tokio::spawn(async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        client.set_nodelay(true)?;
                        let mut task = TcpStream::connect(target).await?;
                        task.set_nodelay(true)?;
                        tokio::io::copy_bidirectional(&mut client, &mut task).await
                    });
                }
            });
        }
        std::future::pending().await
    })
}
