"""A network cable to a namespace that is another host: it delays packets, holds them back, loses them, resets streams.

The cable is this process: each end is a device of which the kernel hands over every packet. Root and Linux only.
"""

import fcntl
import heapq
import itertools
import os
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

HERE, THERE = "198.18.77.1", "198.18.77.2"
"""The addresses of its ends, of a range that is meant for tests of networks."""

_TUNSETIFF, _TUN, _NO_INFORMATION = 0x400454CA, 0x0001, 0x1000
_RESET, _ACKNOWLEDGED = 0x04, 0x10
_MTU = 1500


def ip(*words: str) -> bool:
    """Run ``ip``, and return whether it succeeded."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


def may_lay_cables() -> bool:
    """Whether this process may make a network namespace and devices of which it handles the packets."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"mlxk-t{os.getpid()}"
    made = ip("netns", "add", name)
    ip("netns", "del", name)
    try:
        os.close(_end(name[:15]))
    except OSError:
        return False
    return made


class Cable:
    """Connects this machine with a namespace for the length of a block."""

    def __init__(self) -> None:
        self.namespace = f"mlxk{os.getpid()}"
        """Its name, for ``ip netns exec``."""
        self.delay = 0.0
        """Of each packet, seconds."""
        self._held = False
        self._is_cut = False
        self._reset_but: int | None = None
        self._over = threading.Event()
        self._packets: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._carry, name="cable", daemon=True)

    def __enter__(self) -> Self:
        here, there = f"{self.namespace}h", f"{self.namespace}t"
        inside = ("-n", self.namespace)
        assert ip("netns", "add", self.namespace)
        self._ends = (_end(here), _end(there))
        for words in (
            ("addr", "add", f"{HERE}/30", "dev", here),
            ("link", "set", here, "up", "mtu", str(_MTU)),
            ("link", "set", there, "netns", self.namespace),
            (*inside, "addr", "add", f"{THERE}/30", "dev", there),
            (*inside, "link", "set", there, "up", "mtu", str(_MTU)),
            (*inside, "link", "set", "lo", "up"),
        ):
            assert ip(*words), words
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for each in self._ends:
            os.close(each)
        ip("netns", "del", self.namespace)

    def hold(self) -> None:
        """Deliver nothing until ``release``, and lose nothing."""
        self._held = True

    def release(self) -> None:
        """Deliver what was held back, and go on."""
        self._held = False

    def cut(self) -> None:
        """Lose everything from now on, without a word to either end."""
        self._is_cut = True

    def mend(self) -> None:
        """Deliver again."""
        self._is_cut = False
        self._reset_but = None

    def reset_but(self, port: int) -> None:
        """Answer every packet of a connection with its reset, but those of a port."""
        self._reset_but = port

    def _carry(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, end in enumerate(self._ends):
                selector.register(end, selectors.EVENT_READ, index)
            while not self._over.is_set():
                for key, _ in selector.select(self._wait()):
                    self._take(key.data)
                while self._packets and not self._held and self._packets[0][0] <= time.monotonic():
                    _, _, end, packet = heapq.heappop(self._packets)
                    os.write(end, packet)

    def _wait(self) -> float:
        if not self._packets or self._held:
            return 0.02
        return min(0.02, max(0.0, self._packets[0][0] - time.monotonic()))

    def _take(self, index: int) -> None:
        packet = os.read(self._ends[index], 65536)
        if self._is_cut:
            return
        if self._reset_but is not None and (answers := _resets(packet, self._reset_but)):
            for end, answer in zip((self._ends[index], self._ends[1 - index]), answers, strict=True):
                os.write(end, answer)
            return
        due = time.monotonic() + self.delay
        heapq.heappush(self._packets, (due, next(self._numbers), self._ends[1 - index], packet))


def _end(name: str) -> int:
    """Return the descriptor of a new device of that name, which lasts as long as the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_INFORMATION))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _resets(packet: bytes, spared: int) -> tuple[bytes, bytes] | None:
    """Return what resets the connection of a TCP packet: for its sender, and for its receiver."""
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    begin = (packet[0] & 15) * 4
    source, target = packet[12:16], packet[16:20]
    ours, theirs, sequence, acknowledged, _, flags = struct.unpack(">HHIIBB", packet[begin : begin + 14])
    if spared in (ours, theirs) or not flags & _ACKNOWLEDGED:
        return None
    return (
        _reset(target, source, theirs, ours, acknowledged),
        _reset(source, target, ours, theirs, sequence),
    )


def _reset(source: bytes, target: bytes, ours: int, theirs: int, sequence: int) -> bytes:
    def segment(checksum: int) -> bytes:
        return struct.pack(">HHIIBBHHH", ours, theirs, sequence, 0, 5 << 4, _RESET, 0, checksum, 0)

    def header(checksum: int) -> bytes:
        return struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, checksum) + source + target

    pseudo = source + target + struct.pack(">BBH", 0, socket.IPPROTO_TCP, 20)
    return header(_checksum(header(0))) + segment(_checksum(pseudo + segment(0)))


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
