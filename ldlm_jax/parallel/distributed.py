"""Several processes as one program: how they find each other, and what only one of them does."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from ldlm_jax.errors import UserError

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """How this process finds the others; all None leaves it to the cluster.

    Attributes:
      coordinator: host:port of process 0.
      count: number of processes.
      index: this one's number.
      timeout: seconds to wait for all to join.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: int = 300


# Seconds without a sign of a process after which jax's service ends the others, some at half of it;
# ``lifeline`` should be sooner. A lone process would end itself where the machine was suspended, or
# too busy, for so long.
_HEARTBEAT, _NEVER = 120, 10**8


def join(processes: Processes) -> None:
    """Join the other processes, before any device is used; a lone process joins itself.

    Cloud TPU, SLURM, GKE and Open MPI are recognised. A lone process needs this too: the notice of
    preemption, upon which a last checkpoint is saved, comes through the same service.

    Raises:
      UserError: the flags are incomplete, or not all processes joined in time; names those missing.
    """
    flags = (processes.coordinator, processes.count, processes.index)
    if any(x is None for x in flags) and any(x is not None for x in flags):
        raise UserError("--coordinator, --num-processes and --process-id belong together.")
    if jax.distributed.is_initialized():
        return
    if flags[0] is not None:
        _check_numbers(processes)
        rendezvous(processes)
        alone = processes.count == 1
        jax.distributed.initialize(
            *flags, initialization_timeout=processes.timeout,
            heartbeat_timeout_seconds=_NEVER if alone else _HEARTBEAT,
        )  # fmt: skip
        return
    try:
        jax.distributed.initialize(
            initialization_timeout=processes.timeout, heartbeat_timeout_seconds=_HEARTBEAT
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        # No cluster that jax knows.
        jax.distributed.initialize(
            f"localhost:{_free_port()}", 1, 0, heartbeat_timeout_seconds=_NEVER
        )
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        log.info("devices are in use already: no notice of preemption in this process")


def _check_numbers(processes: Processes) -> None:
    if processes.count < 1 or not 0 <= processes.index < processes.count:
        raise UserError(
            f"--process-id {processes.index} of --num-processes {processes.count}: numbers run "
            "from 0 to one less than their count."
        )
    host, colon, port = processes.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator {processes.coordinator}: write host:port of process 0.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def interrupt_as_preemption(report: Callable[[str], None]) -> Iterator[None]:
    """Inside, Ctrl-C counts as the notice that the machine is taken away: the loop then saves.

    A second one stops at once. Elsewhere than in the main thread nothing changes.

    Args:
      report: takes the line that says so.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not (ours and jax.distributed.is_initialized()):
        yield
        return

    def notice(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        report("interrupted: stopping after this step, with a checkpoint; again to stop at once")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------- roll call

# Between two tries to reach process 0, in seconds.
_PAUSE = 0.2


def rendezvous(processes: Processes) -> None:
    """Wait until all processes have reported to process 0, so that an absence can be told.

    jax's own service ends a process that waits in vain, without saying for whom.

    Raises:
      UserError: some did not report in time, or process 0 cannot be reached.
    """
    if processes.count == 1:
        return
    deadline = time.monotonic() + processes.timeout
    host, _, port = processes.coordinator.rpartition(":")
    if processes.index == 0:
        missing = _listen(int(port), processes.count, deadline)
    else:
        missing = _report(host, int(port), processes, deadline)
    if missing:
        names = ", ".join(map(str, missing))
        raise UserError(
            f"process {names} of {processes.count} did not join within {processes.timeout} s. "
            "Start the same command on every host, with the same --coordinator and "
            "--num-processes; --join-timeout waits longer."
        )


def _listen(port: int, count: int, deadline: float) -> list[int]:
    """Numbers that have not reported by the deadline; everybody present is told them."""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {port}: {error.strerror}; choose another port "
                "for --coordinator."
            ) from error
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError, ValueError):
                caller, _ = server.accept()
                stack.enter_context(caller)
                caller.settimeout(5)
                present[int(caller.recv(64))] = caller
        missing = sorted(set(range(1, count)) - set(present))
        for caller in present.values():
            with contextlib.suppress(OSError):
                caller.sendall(json.dumps(missing).encode())
    return missing


def _report(host: str, port: int, processes: Processes, deadline: float) -> list[int]:
    """Report to process 0; the numbers it misses."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as caller:
                caller.sendall(str(processes.index).encode())
                caller.settimeout(max(0.1, deadline - time.monotonic()) + 5)
                answer = caller.recv(1 << 16)
            if answer:
                return json.loads(answer)
        except OSError:
            pass
        time.sleep(_PAUSE)
    return [0]


# ---------------------------------------------------------------------------- one for all


def is_main_process() -> bool:
    """Whether this process writes what is to be written once."""
    return jax.process_index() == 0


def main_process_first(name: str, work: Callable[[], Result]) -> Result:
    """Do some work in the first process, and then in the others, which find it done.

    Args:
      name: of the place where they wait for the first.
      work: idempotent, on a file system that all share.
    """
    if jax.process_count() == 1:
        return work()
    if is_main_process():
        try:
            return work()
        finally:
            multihost_utils.sync_global_devices(name)
    multihost_utils.sync_global_devices(name)
    return work()
