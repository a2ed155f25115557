//! Links, addresses and routes of the world, by netlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::time::Instant;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{DEADLINE, HOST, OTHER_RESOLVERS, RESOLVER, ROUTER};
use crate::netns::Netns;

/// Smaller than usual, to see that links take it.
pub const MTU: u32 = 1400;
/// The host's end of the link to the internet.
pub const UPLINK: &str = "up0";
const WAN: &str = "wan0";
/// The length of the network between host and router.
const PREFIX: u8 = 24;

/// Does something with netlink in `namespace`.
pub fn netlink<T: Send, F: Future<Output = Result<T, rtnetlink::Error>>>(
    namespace: &Netns,
    work: impl FnOnce(Handle) -> F + Send,
) -> T {
    namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            work(handle).await.expect("netlink request")
        })
    })
}

/// A link by its name.
pub async fn find(handle: &Handle, name: &str) -> LinkMessage {
    let found = handle.link().get().match_name(name).execute().try_next().await;
    found.unwrap_or_else(|e| panic!("find the link {name}: {e}")).expect("the link")
}

/// Turns a link on; its number.
pub async fn up(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let index = find(handle, name).await.header.index;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

/// Gives a link an address.
pub async fn address(handle: &Handle, index: u32, address: IpAddr, prefix: u8) -> Result<(), rtnetlink::Error> {
    handle.address().add(index, address, prefix).execute().await
}

/// A pair of links: `here` in the namespace of `handle`, `there` in that of the descriptor.
pub async fn pair(handle: &Handle, here: &str, there: &str, fd: RawFd) -> Result<(), rtnetlink::Error> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(there).mtu(MTU).setns_by_fd(fd).build();
    let link = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(here).mtu(MTU);
    handle.link().add(link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()).execute().await
}

/// A default route.
pub async fn default_route(handle: &Handle, gateway: Ipv4Addr) -> Result<(), rtnetlink::Error> {
    handle.route().add(RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build()).execute().await
}

/// Waits until the kernel has noticed that an end of a pair is connected; until then it drops what that end should send.
pub fn wait_until_up(namespace: &Netns, name: &'static str) {
    netlink(namespace, move |handle| async move {
        let begun = Instant::now();
        loop {
            let link = find(&handle, name).await;
            if link.attributes.iter().any(|a| matches!(a, LinkAttribute::OperState(State::Up))) {
                return Ok(());
            }
            assert!(begun.elapsed() < DEADLINE, "{name} does not come up");
            std::thread::yield_now();
        }
    });
}

/// Names of the links of a namespace, without its loopback.
#[must_use]
pub fn names(namespace: &Netns) -> Vec<String> {
    netlink(namespace, |handle| async move {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let name = |link: &LinkMessage| {
            link.attributes
                .iter()
                .find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
        };
        Ok(links.iter().filter_map(name).filter(|name| name != "lo").collect())
    })
}

/// Sets a `sysctl` of a namespace.
pub fn set_sysctl(namespace: &Netns, name: &str, value: &str) {
    let path = format!("/proc/sys/{name}");
    namespace.run(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("write {path}: {e}"));
}

/// Reads a `sysctl` of a namespace.
#[must_use]
pub fn sysctl(namespace: &Netns, name: &str) -> String {
    let path = format!("/proc/sys/{name}");
    let text = namespace.run(|| std::fs::read_to_string(&path)).unwrap_or_else(|e| panic!("read {path}: {e}"));
    text.trim().to_owned()
}

/// Connects the host with the internet, which is there for every address.
pub(super) fn connect(host: &Netns, internet: &Netns) {
    // A new namespace may begin with the settings of the machine's.
    for namespace in [host, internet] {
        set_sysctl(namespace, "net/ipv4/ip_forward", "0");
    }
    let there = internet.raw_fd();
    netlink(host, move |handle| async move {
        pair(&handle, UPLINK, WAN, there).await?;
        up(&handle, "lo").await?;
        let index = up(&handle, UPLINK).await?;
        address(&handle, index, HOST.into(), PREFIX).await
    });
    netlink(internet, |handle| async move {
        let lo = up(&handle, "lo").await?;
        let index = up(&handle, WAN).await?;
        address(&handle, index, ROUTER.into(), PREFIX).await?;
        address(&handle, index, RESOLVER.into(), 32).await?;
        for resolver in OTHER_RESOLVERS {
            address(&handle, lo, resolver.into(), 32).await?;
        }
        // All other addresses of IPv4 are this namespace's, too, and all documentation addresses of IPv6.
        let any = RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::Local).scope(RouteScope::Host);
        handle.route().add(any.output_interface(lo).build()).execute().await?;
        let any = RouteMessageBuilder::<Ipv6Addr>::new().kind(RouteType::Local).output_interface(lo);
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);
        handle.route().add(any.destination_prefix(documentation, 32).build()).execute().await
    });
    wait_until_up(host, UPLINK);
    netlink(host, |handle| async move { default_route(&handle, ROUTER).await });
}
