"""Sends one packet of each kind named on the command line, each with its own canary.

send.py LINK KIND...

An error is the kernel's refusal, which is what a lock is for: it is printed, and the next kind is
tried. That nothing was refused without the lock is for the caller to see, on the wire.
"""

import ctypes
import fcntl
import socket
import struct
import sys
import time

LINK = sys.argv[1]
GATEWAY = "192.168.1.1"
V4 = "1.1.1.1"
V6 = "2606:4700:4700::1111"
OWN4 = "192.168.1.50"
OWN6 = "2001:db8:1::50"
INDEX = socket.if_nametoindex(LINK)

# Of include/uapi/linux: in.h, in6.h, if_packet.h, if_ether.h, udp.h
IP_OPTIONS, IP_TRANSPARENT, IP_UNICAST_IF, IP_HDRINCL = 4, 19, 50, 3
IPV6_TRANSPARENT, IPV6_UNICAST_IF, IPV6_HDRINCL = 75, 76, 36
SOL_PACKET, PACKET_QDISC_BYPASS, PACKET_VNET_HDR = 263, 20, 15
# ethtool.h, sockios.h
ETHTOOL_STXCSUM, SIOCETHTOOL = 0x17, 0x8946
UDP_SEGMENT, IPPROTO_UDPLITE, IPPROTO_MPTCP = 103, 136, 262

kinds = {}
held = []


def kind(function):
    kinds[function.__name__] = function
    return function


def canary(name):
    return b"killswitch-canary:" + name.encode() + b";"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def udp(port, payload):
    # RFC 768: checksum 0 is none; for IPv6 the wire does not mind.
    return struct.pack("!4H", 40000, port, 8 + len(payload), 0) + payload


def ipv4(protocol, payload, source=OWN4, to=V4):
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(to),
    )
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return header + payload


def ipv6(protocol, payload, source=OWN6, to=V6):
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


def datagram(name, to, options=(), family=None, port=443, payload=None, protocol=0, source=None):
    v6 = ":" in to
    inet = socket.AF_INET6 if v6 else socket.AF_INET
    sock = socket.socket(family or inet, socket.SOCK_DGRAM, protocol)
    for level, option, value in options:
        sock.setsockopt(level, option, value)
    if source:
        sock.bind((source, 0))
    held.append(sock)
    sock.sendto(payload or canary(name), (to, port))


def stream(port, to, protocol=0, options=()):
    sock = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_STREAM, protocol)
    for level, option, value in options:
        sock.setsockopt(level, option, value)
    sock.setblocking(False)
    held.append(sock)
    error = sock.connect_ex((to, port))
    if error not in (0, 115):
        raise OSError(error, "connect")


def raw(name, protocol, to=V4, payload=None, header=False):
    v6 = ":" in to
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    if header:
        level, option = (socket.IPPROTO_IPV6, IPV6_HDRINCL) if v6 else (socket.IPPROTO_IP, IP_HDRINCL)
        sock.setsockopt(level, option, 1)
    held.append(sock)
    sock.sendto(payload or canary(name), (to, 0))


def packet(frame, options=()):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    for level, option, value in options:
        sock.setsockopt(level, option, value)
    sock.bind((LINK, 0))
    held.append(sock)
    sock.send(b"\xff" * 6 + sock.getsockname()[4] + frame)


BOUND = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LINK.encode())]
BROADCAST = [(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]


@kind
def udp4(name):
    datagram(name, V4)


@kind
def udp6(name):
    datagram(name, V6)


@kind
def dns4(name):
    datagram(name, "8.8.8.8", port=53)


@kind
def udp4_bound(name):
    datagram(name, V4, BOUND)


@kind
def udp6_bound(name):
    datagram(name, V6, BOUND)


@kind
def udp4_unicast_if(name):
    datagram(name, V4, [(socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", INDEX))])


@kind
def udp6_unicast_if(name):
    datagram(name, V6, [(socket.IPPROTO_IPV6, IPV6_UNICAST_IF, struct.pack("!I", INDEX))])


@kind
def udp4_pktinfo(name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    info = struct.pack("@i4s4s", INDEX, bytes(4), bytes(4))
    sock.sendmsg([canary(name)], [(socket.IPPROTO_IP, 8, info)], 0, (V4, 443))


@kind
def udp6_pktinfo(name):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    info = bytes(16) + struct.pack("@I", INDEX)
    sock.sendmsg([canary(name)], [(socket.IPPROTO_IPV6, 50, info)], 0, (V6, 443))


@kind
def udp4_transparent(name):
    datagram(name, V4, [(socket.IPPROTO_IP, IP_TRANSPARENT, 1)], source="198.18.0.5")


@kind
def udp6_transparent(name):
    datagram(name, V6, [(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)], source="2001:db8:18::5")


@kind
def udp4_source_route(name):
    # LSRR by way of the router (RFC 791).
    route = b"\x83\x07\x04" + socket.inet_aton(GATEWAY) + b"\0"
    datagram(name, V4, [(socket.IPPROTO_IP, IP_OPTIONS, route)])


@kind
def udp4_fragments(name):
    datagram(name, V4, payload=canary(name) + bytes(4000))


@kind
def udp6_fragments(name):
    datagram(name, V6, payload=canary(name) + bytes(4000))


@kind
def udp4_segments(name):
    options = [(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)]
    datagram(name, V4, options, payload=canary(name) + bytes(3000))


@kind
def udp4_corked(name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((V4, 443))
    sock.send(canary(name), socket.MSG_MORE)
    sock.send(b"end")


@kind
def udplite4(name):
    datagram(name, V4, protocol=IPPROTO_UDPLITE)


@kind
def udp4_mark_elsewhere(name):
    datagram(name, V4, [(socket.SOL_SOCKET, socket.SO_MARK, 0x6B73)])


@kind
def udp4_clear_to_server(name):
    datagram(name, "198.51.100.7", port=51820)


@kind
def udp4_to_neighbour(name):
    datagram(name, "192.168.1.20", port=443)


@kind
def dns4_of_the_router(name):
    datagram(name, GATEWAY, port=53)


@kind
def tcp4(_):
    stream(7001, V4)


@kind
def tcp6(_):
    stream(7002, V6)


@kind
def tcp4_bound(_):
    stream(7003, V4, options=BOUND)


@kind
def tcp6_bound(_):
    stream(7004, V6, options=BOUND)


@kind
def mptcp4(_):
    stream(7005, V4, IPPROTO_MPTCP)


@kind
def tcp4_fast_open(_):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    held.append(sock)
    try:
        sock.sendto(b"early", socket.MSG_FASTOPEN, (V4, 7006))
    except BlockingIOError:
        pass


@kind
def ping4(name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.sendto(b"\x08\0\0\0\0\0\0\x01" + canary(name), (V4, 0))


@kind
def ping6(name):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    sock.sendto(b"\x80\0\0\0\0\0\0\x01" + canary(name), (V6, 0))


@kind
def icmp4_raw(name):
    body = b"\x08\0\0\0\0\0\0\x01" + canary(name)
    raw(name, socket.IPPROTO_ICMP, payload=body[:2] + struct.pack("!H", checksum(body)) + body[4:])


@kind
def icmp6_raw(name):
    raw(name, socket.IPPROTO_ICMPV6, V6, b"\x80\0\0\0\0\0\0\x01" + canary(name))


@kind
def router_advertisement(name):
    raw(name, socket.IPPROTO_ICMPV6, "ff02::1%" + LINK, bytes([134, 0, 0, 0]) + bytes(12) + canary(name))


@kind
def header4(name):
    raw(name, socket.IPPROTO_RAW, payload=ipv4(17, udp(443, canary(name))), header=True)


@kind
def header4_spoofed(name):
    frame = ipv4(17, udp(443, canary(name)), source="10.9.8.7")
    raw(name, socket.IPPROTO_RAW, payload=frame, header=True)


@kind
def header4_from_tunnel(name):
    frame = ipv4(17, udp(443, canary(name)), source="10.64.0.2")
    raw(name, socket.IPPROTO_RAW, payload=frame, header=True)


@kind
def header4_like_server(name):
    # A server's address and port, but the source of nobody and no mark.
    frame = ipv4(17, udp(51820, b"\x01\0\0\0" + canary(name)), to="198.51.100.7")
    raw(name, socket.IPPROTO_RAW, to="198.51.100.7", payload=frame, header=True)


@kind
def header6_spoofed(name):
    frame = ipv6(17, udp(443, canary(name)), source="2001:db8:bad::7")
    raw(name, socket.IPPROTO_RAW, V6, frame, header=True)


@kind
def gre4(name):
    raw(name, 47)


@kind
def esp4(name):
    raw(name, 50)


@kind
def ah4(name):
    raw(name, 51)


@kind
def ipip4(name):
    raw(name, 4, payload=ipv4(17, udp(443, canary(name))))


@kind
def sit4(name):
    raw(name, 41, payload=ipv6(17, udp(443, canary(name))))


@kind
def sctp4(name):
    raw(name, 132)


@kind
def ospf4(name):
    raw(name, 89, "224.0.0.5")


@kind
def gre6(name):
    raw(name, 47, V6)


@kind
def unknown6(name):
    raw(name, 253, V6)


@kind
def multicast4(name):
    options = [(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(OWN4))]
    datagram(name, "239.1.2.3", options)


@kind
def mdns4(name):
    options = [(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(OWN4))]
    datagram(name, "224.0.0.251", options, port=5353)


@kind
def mdns6(name):
    datagram(name, "ff02::fb%" + LINK, port=5353)


@kind
def broadcast4(name):
    datagram(name, "255.255.255.255", BROADCAST + BOUND)


@kind
def broadcast4_net(name):
    datagram(name, "192.168.1.255", BROADCAST)


@kind
def loopback4(name):
    datagram(name, "127.0.0.1", port=9999)


@kind
def inner4(name):
    datagram(name, "10.200.0.2", port=443)


@kind
def marked_like_wireguard(name):
    mark = [(socket.SOL_SOCKET, socket.SO_MARK, 0x6B73)]
    datagram(name, "198.51.100.7", mark, port=51820, payload=b"\x01\0\0\0" + canary(name))


@kind
def marked_to_server(name):
    mark = [(socket.SOL_SOCKET, socket.SO_MARK, 0x6B73)]
    datagram(name, "198.51.100.7", mark, port=53)


@kind
def packet_marked_to_server(name):
    frame = ipv4(17, udp(53, canary(name)), to="198.51.100.7")
    packet(b"\x08\x00" + frame, [(socket.SOL_SOCKET, socket.SO_MARK, 0x6B73)])


@kind
def syn4_spoofed(name):
    # To 1.1.1.1 from nobody: what is refused must not be told to that nobody by way of the wire.
    syn = struct.pack("!HHIIBBHHH", 40000, 7007, 1, 0, 0x50, 2, 1000, 0, 0)
    pseudo = socket.inet_aton("203.0.113.99") + socket.inet_aton(V4) + struct.pack("!HH", 6, 20)
    syn = syn[:16] + struct.pack("!H", checksum(pseudo + syn)) + syn[18:]
    frame = ipv4(6, syn, source="203.0.113.99")
    raw(name, socket.IPPROTO_RAW, payload=frame, header=True)


@kind
def udp4_spoofed(name):
    frame = ipv4(17, udp(7008, canary(name)), source="203.0.113.99")
    raw(name, socket.IPPROTO_RAW, payload=frame, header=True)


@kind
def udp6_spoofed(name):
    frame = ipv6(17, udp(7008, canary(name)), source="2001:db8:ffff::99")
    raw(name, socket.IPPROTO_RAW, V6, frame, header=True)


@kind
def packet_udp(name):
    packet(b"\x08\x00" + ipv4(17, udp(443, canary(name))))


@kind
def packet_udp6(name):
    packet(b"\x86\xdd" + ipv6(17, udp(443, canary(name))))


@kind
def packet_bypass(name):
    bypass = [(SOL_PACKET, PACKET_QDISC_BYPASS, 1)]
    packet(b"\x08\x00" + ipv4(17, udp(443, canary(name))), bypass)


@kind
def packet_vlan(name):
    packet(b"\x81\x00\x00\x07\x08\x00" + ipv4(17, udp(443, canary(name))))


@kind
def packet_two_vlans(name):
    tags = b"\x88\xa8\x00\x07\x81\x00\x00\x08\x08\x00"
    packet(tags + ipv4(17, udp(443, canary(name))))


@kind
def packet_vlan_like_arp(name):
    packet(b"\x81\x00\x00\x07\x08\x06" + canary(name))


def disguised(protocol, frame):
    """A frame of one type, told to the kernel as one of another."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((LINK, 0))
    sock.sendto(b"\xff" * 6 + sock.getsockname()[4] + frame, (LINK, protocol))


@kind
def packet_ip_as_arp(name):
    disguised(0x0806, b"\x08\x00" + ipv4(17, udp(443, canary(name))))


@kind
def packet_ip6_as_arp(name):
    disguised(0x0806, b"\x86\xdd" + ipv6(17, udp(443, canary(name))))


@kind
def packet_ip_as_8021x(name):
    disguised(0x888E, b"\x08\x00" + ipv4(17, udp(443, canary(name))))


@kind
def packet_tagged_as_arp(name):
    disguised(0x0806, b"\x81\x00\x00\x00\x08\x00" + ipv4(17, udp(443, canary(name))))


@kind
def packet_ip6_as_ip_to_the_lan(name):
    # Where IPv4 has its destination, IPv6 has a part of its source: an address of the LAN.
    frame = bytearray(ipv6(17, udp(443, canary(name))))
    frame[16:20] = socket.inet_aton("192.168.1.77")
    disguised(0x0800, b"\x86\xdd" + bytes(frame))


@kind
def packet_tagged_as_ip_to_the_lan(name):
    # As the tag shifts the header by four bytes, its source is taken for its destination.
    frame = ipv4(17, udp(443, canary(name)), source="192.168.1.77")
    disguised(0x0800, b"\x81\x00\x40\x00\x08\x00" + frame)


@kind
def packet_tagged_arp_for_the_tunnel(name):
    # As the tag shifts the header by four bytes, the sender's address is not where it is looked for.
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, bytes(6),
                      socket.inet_aton("10.64.0.2"), bytes(6), socket.inet_aton(GATEWAY))
    disguised(0x0806, b"\x81\x00\x00\x05\x08\x06" + arp + canary(name))


def without_ethernet(protocol, header):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.sendto(header, (LINK, protocol))


@kind
def packet_ip6_as_ip_without_ethernet(name):
    # As IPv4: a later fragment to an address of the LAN.
    frame = bytearray(ipv6(17, udp(53, canary(name))))
    frame[16:20] = socket.inet_aton("192.168.1.77")
    without_ethernet(0x0800, bytes(frame))


@kind
def packet_ip_as_ip6_without_ethernet(name):
    # As IPv6: a fragment header, and behind it an address of the LAN.
    payload = socket.inet_pton(socket.AF_INET6, "2001:db8:1::77") + b"\x11\x00\xff\xf8" + canary(name)
    frame = bytearray(ipv4(17, bytes(4) + payload))
    frame[6:8] = b"\x2c\x00"
    without_ethernet(0x86DD, bytes(frame))


@kind
def packet_checksum_over_address(name):
    # Judged as a lease request to 10.9.9.9; the checksum, which is filled in behind the guard, makes
    # that 1.1.9.9. Off, so that a veth link fills it in as hardware would.
    off = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP", LINK.encode(), ctypes.addressof(off)))
    bootp = b"\x01" + bytes(235) + b"\x63\x82\x53\x63" + canary(name)
    bootp += bytes(len(bootp) % 2 + 2)
    request = struct.pack("!4H", 68, 67, 8 + len(bootp), 0) + bootp
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.bind((LINK, 0))
    frame = b"\xff" * 6 + sock.getsockname()[4] + b"\x08\x00"
    frame += ipv4(17, request, to="1.1.9.9")
    frame = frame[:30] + b"\x0a\x09" + frame[32:]
    # The last two bytes are free: with them the sum from the source address on is 1.1.
    last = (checksum(frame[26:]) - 0x0101) % 0xFFFF
    frame = frame[:-2] + struct.pack("!H", last)
    # struct virtio_net_hdr: VIRTIO_NET_HDR_F_NEEDS_CSUM, from byte 26, into the fourth after it.
    sock.send(struct.pack("=BBHHHH", 1, 0, 0, 0, 26, 4) + frame)


@kind
def packet_unknown_type(name):
    packet(b"\x88\xb5" + canary(name))


@kind
def packet_802_3(name):
    body = b"\xaa\xaa\x03" + canary(name)
    packet(struct.pack("!H", len(body)) + body)


@kind
def packet_dgram(name):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    sock.sendto(ipv4(17, udp(443, canary(name))), (LINK, 0x0800, 0, 0, b"\xff" * 6))


@kind
def packet_like_server(name):
    frame = ipv4(17, udp(51820, b"\x01\0\0\0" + canary(name)), to="198.51.100.7")
    packet(b"\x08\x00" + frame)


@kind
def packet_fragment(name):
    frame = bytearray(ipv4(17, udp(443, canary(name))))
    frame[6:8] = b"\x20\x00"
    frame[10:12] = b"\0\0"
    frame[10:12] = struct.pack("!H", checksum(bytes(frame[:20])))
    packet(b"\x08\x00" + bytes(frame))


def main():
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
        file.write("0 0")
    for name in sys.argv[2:]:
        try:
            kinds[name](name)
        except OSError as error:
            print(f"{name}: {error}")
    # What the kernel sends on behalf of an open socket goes out before it is closed.
    time.sleep(0.1)


main()
