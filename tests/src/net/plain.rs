//! A namespace in the place of a box: linked to the host and allowed everything. What a box must not do is done from here
//! to see that it would work.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output, Stdio};

use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::links::{self, UPLINK, netlink, pair, set_sysctl, up, wait_until_up};
use super::{HOST, World};
use crate::netns::Netns;

/// Its own address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The host's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 0);
const PREFIX: u8 = 24;
const PREFIX_V6: u8 = 64;
const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 2);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1);
const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2);
/// Another one of the router, since each address is given once.
const ROUTER_V6_2: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 3);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1);

impl World {
    /// A namespace that is linked to the host without any rules. Turns on the host's forwarding, so this is for a world
    /// without `iceboxd`.
    #[must_use]
    pub fn plain(&self) -> Netns {
        let plain = Netns::new();
        let there = plain.raw_fd();
        netlink(&self.host, move |handle| async move {
            pair(&handle, "plain0", "eth0", there).await?;
            let index = up(&handle, "plain0").await?;
            links::address(&handle, index, GATEWAY.into(), PREFIX).await
        });
        netlink(&plain, |handle| async move {
            up(&handle, "lo").await?;
            let index = up(&handle, "eth0").await?;
            links::address(&handle, index, ADDRESS.into(), PREFIX).await
        });
        wait_until_up(&plain, "eth0");
        wait_until_up(&self.host, "plain0");
        netlink(&plain, |handle| async move { links::default_route(&handle, GATEWAY).await });
        netlink(&self.internet, |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(NETWORK, PREFIX).gateway(HOST);
            handle.route().add(route.build()).execute().await
        });
        self.plain_v6(&plain);
        set_sysctl(&plain, "net/ipv4/ping_group_range", "0 65535");
        for name in ["plain0", UPLINK] {
            set_sysctl(&self.host, &format!("net/ipv4/conf/{name}/forwarding"), "1");
            // Packets that choose their own way, and those that lie about where they come from.
            set_sysctl(&self.host, &format!("net/ipv4/conf/{name}/accept_source_route"), "1");
            set_sysctl(&self.host, &format!("net/ipv4/conf/{name}/rp_filter"), "0");
        }
        set_sysctl(&self.host, "net/ipv4/conf/all/accept_source_route", "1");
        set_sysctl(&self.host, "net/ipv4/conf/all/rp_filter", "0");
        plain
    }

    /// The same behind a bridge on the host, as Docker connects its containers: the bridge has the address.
    #[must_use]
    pub fn bridged(&self, bridge: &'static str) -> Netns {
        let inside = Netns::new();
        let there = inside.raw_fd();
        netlink(&self.host, move |handle| async move {
            handle.link().add(LinkBridge::new(bridge).build()).execute().await?;
            let index = up(&handle, bridge).await?;
            links::address(&handle, index, GATEWAY.into(), PREFIX).await?;
            pair(&handle, "port0", "eth0", there).await?;
            let port = links::find(&handle, "port0").await.header.index;
            let joins = LinkUnspec::new_with_index(port).controller(index).up().build();
            handle.link().set(joins).execute().await
        });
        netlink(&inside, |handle| async move {
            up(&handle, "lo").await?;
            let index = up(&handle, "eth0").await?;
            links::address(&handle, index, ADDRESS.into(), PREFIX).await
        });
        wait_until_up(&inside, "eth0");
        wait_until_up(&self.host, bridge);
        netlink(&inside, |handle| async move { links::default_route(&handle, GATEWAY).await });
        set_sysctl(&self.host, "net/ipv4/ip_forward", "1");
        inside
    }

    /// The same with IPv6, which no box has.
    fn plain_v6(&self, plain: &Netns) {
        let give = |namespace: &Netns,
                    name: &'static str,
                    address: Ipv6Addr,
                    gateway: Option<Ipv6Addr>,
                    to: Ipv6Addr,
                    length| {
            // An address is usable at once without duplicate address detection.
            set_sysctl(namespace, &format!("net/ipv6/conf/{name}/accept_dad"), "0");
            netlink(namespace, move |handle| async move {
                let index = links::find(&handle, name).await.header.index;
                links::address(&handle, index, address.into(), PREFIX_V6).await?;
                let Some(gateway) = gateway else { return Ok(()) };
                let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).destination_prefix(to, length);
                handle.route().add(route.build()).execute().await
            });
        };
        let all = Ipv6Addr::UNSPECIFIED;
        give(&self.host, "plain0", GATEWAY_V6, None, all, 0);
        give(&self.internet, "wan0", ROUTER_V6, None, all, 0);
        give(&self.host, UPLINK, HOST_V6, Some(ROUTER_V6), all, 0);
        give(&self.internet, "wan0", ROUTER_V6_2, Some(HOST_V6), NETWORK_V6, PREFIX_V6);
        give(plain, "eth0", ADDRESS_V6, Some(GATEWAY_V6), all, 0);
        set_sysctl(&self.host, "net/ipv6/conf/all/forwarding", "1");
    }
}

/// Runs Python in a namespace, with the world's resolver if it asks for names.
#[must_use]
pub fn python(namespace: &Netns, code: &str) -> Output {
    namespace.run(|| {
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start python3");
        child.stdin.take().expect("a pipe").write_all(code.as_bytes()).expect("write the code");
        child.wait_with_output().expect("wait for python3")
    })
}
