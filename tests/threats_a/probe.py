"""Provokes the kernel of another machine: one kind for each name on the command line.

probe.py LINK TARGET4 TARGET6 KIND...
"""

import socket
import struct
import subprocess
import sys
import time

LINK, TARGET4, TARGET6 = sys.argv[1:4]
OPEN_PORT, CLOSED_PORT = 8000, 8001
held = []


def connect(address, port):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    held.append(sock)
    sock.connect_ex((address, port))


def raw(address, protocol, payload, options=()):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LINK.encode())
    for level, option, value in options:
        sock.setsockopt(level, option, value)
    held.append(sock)
    sock.sendto(payload, (address, 0))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def summed(message):
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def ping(address):
    subprocess.run(["ping", "-c1", "-W1", address], stdout=subprocess.DEVNULL, check=False)


def datagram(address):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"anybody there", (address, CLOSED_PORT))


def who_has(address):
    # RFC 826
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((LINK, 0))
    me = sock.getsockname()[4]
    ask = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + me + socket.inet_aton("192.168.1.1")
    ask += bytes(6) + socket.inet_aton(address)
    sock.send(b"\xff" * 6 + me + b"\x08\x06" + ask)


def wrong_option():
    # A timestamp option (RFC 791) with a pointer below its least value.
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    options = b"\x44\x08\x01\x00" + bytes(4)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x47, 0, 36, 7, 0, 64, 17, 0,
        socket.inet_aton("192.168.1.1"), socket.inet_aton(TARGET4),
    )
    sock.sendto(header + options + struct.pack("!4H", 9, 9, 8, 0), (TARGET4, 0))


def wrong_option6():
    # Option 0x9e: "discard and report" where unknown (RFC 8200, 4.2); the kernel does so before
    # any hook of netfilter.
    options = bytes([59, 0, 0x9E, 4]) + bytes(4)
    ends = [socket.inet_pton(socket.AF_INET6, end) for end in ("2001:db8:1::1", TARGET6)]
    header = struct.pack("!IHBB", 6 << 28, len(options), 0, 64) + b"".join(ends)
    raw(TARGET6, socket.IPPROTO_RAW, header + options, [(socket.IPPROTO_IPV6, 36, 1)])


def membership_query():
    # RFC 3376, to be answered within 0.1 s.
    alert = (socket.IPPROTO_IP, 4, b"\x94\x04\0\0")
    raw("224.0.0.1", 2, summed(struct.pack("!BBH4sBBH", 0x11, 1, 0, bytes(4), 2, 10, 0)), [alert])


def listener_query():
    # RFC 3810, to be answered within 0.1 s.
    options = [(socket.IPPROTO_IPV6, 18, 1), (socket.IPPROTO_IPV6, 54, bytes([0, 0, 5, 2, 0, 0, 1, 0]))]
    raw("ff02::1", 58, struct.pack("!BBHHH16sBBH", 130, 0, 0, 100, 0, bytes(16), 2, 10, 0), options)


kinds = {
    "echo4": lambda: ping(TARGET4),
    "echo6": lambda: ping(TARGET6),
    "open4": lambda: connect(TARGET4, OPEN_PORT),
    "open6": lambda: connect(TARGET6, OPEN_PORT),
    "closed4": lambda: connect(TARGET4, CLOSED_PORT),
    "closed6": lambda: connect(TARGET6, CLOSED_PORT),
    "udp4": lambda: datagram(TARGET4),
    "udp6": lambda: datagram(TARGET6),
    "protocol4": lambda: raw(TARGET4, 253, b"\0" * 8),
    "timestamp4": lambda: raw(TARGET4, 1, summed(bytes([13, 0, 0, 0]) + bytes(16))),
    "option4": wrong_option,
    "option6": wrong_option6,
    "igmp": membership_query,
    "mld": listener_query,
    "arp": lambda: who_has(TARGET4),
}

for name in sys.argv[4:]:
    kinds[name]()
# Answers, late ones too, come while the sockets are open.
time.sleep(0.5)
