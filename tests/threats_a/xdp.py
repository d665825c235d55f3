"""Sends one frame from an AF_XDP socket (threat 2): xdp.py LINK.

Documentation/networking/af_xdp.rst, include/uapi/linux/if_xdp.h.
"""

import ctypes
import mmap
import os
import socket
import struct
import sys

LINK = sys.argv[1]
AF_XDP, SOL_XDP = 44, 283
MMAP_OFFSETS, TX_RING, UMEM_REG, FILL_RING, COMPLETION_RING = 1, 3, 4, 5, 6
PGOFF_TX_RING = 0x80000000
COPY = 1 << 1
FRAMES, SIZE = 16, 4096

payload = b"killswitch-canary:xdp;"
frame = b"\xff" * 6 + b"\x02\0\0\0\0\x50" + b"\x88\xb6" + payload + bytes(40)

sock = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
memory = mmap.mmap(-1, FRAMES * SIZE)
memory[: len(frame)] = frame
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
sock.setsockopt(SOL_XDP, UMEM_REG, struct.pack("@QQIIII", address, FRAMES * SIZE, SIZE, 0, 0, 0))
for ring in (FILL_RING, COMPLETION_RING, TX_RING):
    sock.setsockopt(SOL_XDP, ring, struct.pack("@i", FRAMES))
offsets = struct.unpack("@16Q", sock.getsockopt(SOL_XDP, MMAP_OFFSETS, 128))
# struct xdp_mmap_offsets: rx, tx, fr, cr; each producer, consumer, desc, flags.
producer, _, descriptors, _ = offsets[4:8]
ring = mmap.mmap(sock.fileno(), descriptors + FRAMES * 16, offset=PGOFF_TX_RING)
ring[descriptors : descriptors + 16] = struct.pack("@QII", 0, len(frame), 0)

where = struct.pack("@HHIII", AF_XDP, COPY, socket.if_nametoindex(LINK), 0, 0)
libc = ctypes.CDLL(None, use_errno=True)
if libc.bind(sock.fileno(), where, len(where)) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
ring[producer : producer + 4] = struct.pack("@I", 1)
if libc.sendto(sock.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0) != 0:
    print(os.strerror(ctypes.get_errno()))
