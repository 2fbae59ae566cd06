"""A cable between two namespaces that takes its time: ``python cable.py SECONDS SPACE LINK SPACE LINK``.

netem does so as well, in kernels that have it.
"""

import ctypes
import fcntl
import os
import select
import struct
import sys
from collections import deque
from contextlib import suppress
from time import monotonic

TUNSETIFF, IFF_TAP, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0002, 0x1000, 0x40000000
LARGEST = 1 << 16


def end_in(space: str, link: str) -> int:
    """Make a link in a namespace; return the file that frames sent through it are read from, and written to."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", link.encode(), IFF_TAP | IFF_NO_PI))
    return end


def carry(ends: tuple[int, int], delay: float) -> None:
    """Pass frames on until killed."""
    other = dict(zip(ends, ends[::-1], strict=True))
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        rest = max(0.0, under_way[0][0] - monotonic()) if under_way else None
        for end in select.select(ends, [], [], rest)[0]:
            under_way.append((monotonic() + delay, other[end], os.read(end, LARGEST)))
        while under_way and under_way[0][0] <= monotonic():
            _, end, frame = under_way.popleft()
            with suppress(OSError):  # the link is down: the frame is lost
                os.write(end, frame)


if __name__ == "__main__":
    both = end_in(*sys.argv[2:4]), end_in(*sys.argv[4:6])
    print("plugged in", flush=True)
    carry(both, float(sys.argv[1]))
