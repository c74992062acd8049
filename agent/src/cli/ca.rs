//! `weir ca`: the operator's own authority, for clusters without Swarm or with autolock.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};

use super::Failed;
use crate::{
    health::Condition,
    link::{
        ca::{self, Request},
        identity::Role,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Make an authority: one for the whole cluster
    #[command(after_help = "Example:\n  weir ca init --dir /root/weir-ca")]
    Init {
        /// Where it is kept; whoever can read it can join the cluster
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name of the cluster [default: drawn by chance]
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
    },
    /// Issue a certificate for a node
    #[command(
        after_help = "Example:\n  weir ca issue --dir /root/weir-ca --node n1 --manager --address \
                      10.0.0.11"
    )]
    Issue(IssueArgs),
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// Where the authority is kept
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The node's name in mesh.toml; in a Swarm its node ID
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Others may name this node in link.peers
    #[arg(long)]
    manager: bool,
    /// An address of the node; may be given more than once
    #[arg(long, value_name = "ADDRESS", required = true)]
    address: Vec<IpAddr>,
    /// How long it is good for
    #[arg(long, value_name = "DAYS", default_value_t = 825)]
    days: u32,
}

pub(super) fn run(command: CaCommand) -> Result<Condition, Failed> {
    match command {
        CaCommand::Init { dir, cluster } => {
            let made = ca::init(&dir, cluster.as_deref()).map_err(|error| error.to_string())?;
            println!("the authority is {}; keep its key secret", made.display());
            println!("next: weir ca issue --dir {} --node NAME --address IP", dir.display());
        }
        CaCommand::Issue(IssueArgs { dir, node, manager, address, days }) => {
            let role = if manager { Role::Manager } else { Role::Worker };
            let request = Request { node, role, addresses: address, days };
            let files = ca::issue(&dir, &request).map_err(|error| error.to_string())?;
            println!("copy these three to {} and name them in its weir.toml:", request.node);
            println!("[link]");
            println!("ca = {:?}", files.ca);
            println!("certificate = {:?}", files.certificate);
            println!("key = {:?}", files.key);
        }
    }
    Ok(Condition::Ok)
}
