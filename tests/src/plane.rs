//! The data planes, for tests of what both promise.

/// A data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Plane {
    /// The kernel's programs, which `auto` chooses here.
    #[default]
    Ebpf,
    /// The userspace proxy.
    Proxy,
}

impl Plane {
    /// The value of `dataplane.mode`.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Ebpf => "auto",
            Self::Proxy => "proxy",
        }
    }

    /// Whether tasks see the client's own address: see `docs/proxy.md`.
    pub fn keeps_client(self) -> bool {
        self == Self::Ebpf
    }
}

/// Makes two tests of each function that takes a [`Plane`].
#[macro_export]
macro_rules! on_both_planes {
    ($($name:ident)*) => {
        mod ebpf {
            $(#[test]
            fn $name() {
                super::$name($crate::Plane::Ebpf);
            })*
        }
        mod proxy {
            $(#[test]
            fn $name() {
                super::$name($crate::Plane::Proxy);
            })*
        }
    };
}
