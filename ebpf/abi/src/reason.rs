//! Why a packet was not forwarded: one list for the kernel counters, metric labels, API and docs.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $label:literal;)*) => {
        /// Why a packet was not forwarded. Numbers are never given to another meaning: they are
        /// positions in a pinned map, and labels of metrics.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[doc = $doc])* $name = $number,)*
        }

        impl DropReason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The metric label.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

reasons! {
    /// No active task: the client got a reset or an ICMP error; not over UDP by another node.
    NoBackend = 1, "no_backend";
    /// The flow's task is gone: the client got a reset.
    BackendGone = 2, "backend_gone";
    /// A packet on the tunnel came from an address that is no node of the mesh.
    UnknownSender = 3, "unknown_sender";
    /// A packet on the tunnel was for a port that is not published here.
    NotPublished = 4, "not_published";
    /// A flow was forwarded once already and this node has no task for it either.
    HopLimit = 5, "hop_limit";
    /// A reply came back through the tunnel for a flow that this node does not know.
    UnknownFlow = 6, "unknown_flow";
    /// No free source port was found for a flow whose source must be translated.
    NoSourcePort = 7, "no_source_port";
    /// The packet's header is broken (length, offset or version).
    Malformed = 8, "malformed";
    /// A fragment whose first fragment was not seen.
    Fragment = 9, "fragment";
    /// The time to live ran out.
    TimeToLive = 10, "time_to_live";
    /// The kernel refused to rewrite or redirect the packet.
    Rewrite = 11, "rewrite";
    /// A flow table refused a new entry.
    FlowTable = 12, "flow_table";
    /// The task has no interface that leads to it.
    Unreachable = 13, "unreachable";
    /// The node of the task is not known (any more).
    UnknownNode = 14, "unknown_node";
    /// Sent to another task because the first choice was draining or gone. Not a loss.
    SecondChance = 15, "second_chance";
    /// The service does not admit the client's address.
    Denied = 16, "denied";
}

/// Cells of the drop counter map.
pub const REASONS: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_fit_the_map() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position + 1, "{reason:?} is out of order");
            assert!((*reason as u32) < REASONS);
        }
    }
}
