"""Ends this process when another one of the run is gone, in one line and with an exit code of ours.

jax's own service takes minutes to notice, and then aborts with a stack of C++. Here every process
keeps a connection to process 0. Where a process dies, however it does, its system closes the
connection, and the others learn of it at once; a machine that vanishes is known by its silence.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldlm_jax.errors import TRY_AGAIN

# Seconds between two signs of life, and of silence after which a process counts as gone: less than
# jax's service waits (``distributed.join``).
_EVERY, _SILENT = 5.0, 30.0
# A message is a letter and a process' number: it lives, it ends as it should, it is gone.
_ALIVE, _BYE, _GONE = b"a", b"b", b"g"
_SECRET = 16


@contextlib.contextmanager
def lifeline() -> Iterator[None]:
    """Inside, no process of the run outlives another one that ended badly.

    All processes enter it together. Where they cannot connect, jax's service is left to notice.
    """
    if jax.process_count() == 1:
        yield
        return
    peers = _connections()
    for index, peer in peers.items():
        threading.Thread(target=_watch, args=(peer, index, peers), daemon=True).start()
    closed = threading.Event()
    threading.Thread(target=_signs_of_life, args=(peers, closed), daemon=True).start()
    yield
    # Reached only where all went well: an error's message is its own process' affair, and the
    # others learn of it by the connection's end.
    closed.set()
    _tell(peers, _BYE, jax.process_index())


def _connections() -> dict[int, socket.socket]:
    """Connections by the number at their other end: process 0 has all, the others have its."""
    main, count = jax.process_index() == 0, jax.process_count()
    server = socket.create_server(("", 0), backlog=count) if main else None
    address = np.zeros(4 + 1 + _SECRET, np.int32)
    if main:
        own = [*socket.inet_aton(_own_address()), server.getsockname()[1]]
        address[:] = [*own, *secrets.token_bytes(_SECRET)]
    address = np.asarray(multihost_utils.broadcast_one_to_all(address))
    host, port = socket.inet_ntoa(bytes(address[:4].tolist())), int(address[4])
    secret = bytes(address[5:].tolist())
    if main:
        with server:
            return dict(_callers(server, secret, count))
    try:
        caller = socket.create_connection((host, port), timeout=_SILENT)
        caller.sendall(secret + jax.process_index().to_bytes(4))
    except OSError:
        return {}
    return {0: caller}


def _callers(server: socket.socket, secret: bytes, count: int) -> Iterator[tuple]:
    """Processes that report with the secret; those that do not in time are done without."""
    deadline, missing = time.monotonic() + _SILENT, count - 1
    while missing and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.suppress(OSError):
            caller, _ = server.accept()
            caller.settimeout(min(left, 5.0))
            said = _receive(caller, _SECRET + 4)
            if said[:_SECRET] == secret:
                missing -= 1
                yield int.from_bytes(said[_SECRET:]), caller
            else:
                caller.close()


def _own_address() -> str:
    """The address by which other machines reach this one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: any route will do
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _receive(peer: socket.socket, count: int) -> bytes:
    """So many bytes; fewer where the connection ends before."""
    said = b""
    while len(said) < count and (part := peer.recv(count - len(said))):
        said += part
    return said


def _signs_of_life(peers: dict[int, socket.socket], closed: threading.Event) -> None:
    while not closed.wait(_EVERY):
        _tell(peers, _ALIVE, jax.process_index())


def _tell(peers: dict[int, socket.socket], letter: bytes, number: int) -> None:
    for peer in peers.values():
        with contextlib.suppress(OSError):
            peer.sendall(letter + number.to_bytes(4))


def _watch(peer: socket.socket, index: int, peers: dict[int, socket.socket]) -> None:
    """Read what one process says until it ends."""
    peer.settimeout(_SILENT)
    while True:
        try:
            letter, number = (said := _receive(peer, 5))[:1], int.from_bytes(said[1:])
        except TimeoutError:
            _end(index, f"has given no sign for {_SILENT:.0f} s", peers)
        except OSError:
            letter = b""
        if letter == _BYE:
            return
        if letter != _ALIVE:
            _end(number if letter == _GONE else index, "is gone", peers)


def _end(index: int, how: str, peers: dict[int, socket.socket]) -> None:
    if jax.process_index() == 0:
        _tell(peers, _GONE, index)
    print(
        f"error: process {index} of {jax.process_count()} {how}; what it printed tells why. "
        "The run goes on from its last checkpoint when it is started again on all hosts "
        f"(--max-restarts N does so by itself); exit code {TRY_AGAIN}.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(TRY_AGAIN)
