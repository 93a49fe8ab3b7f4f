"""Checkpoints: the only file that imports orbax."""

import hashlib
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    EveryNSteps,
    LatestN,
)

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.distributed import main_process_first

log = logging.getLogger(__name__)
_CHECKSUMS = "checksums"


def _without_wildcards(folder: Path) -> Path:
    """The folder, by a link if its path holds wildcards: orbax would read it as a pattern, and
    leave out a part of every save without an error."""
    folder = folder.resolve()
    if not set("[]*?\\") & set(str(folder)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    link = Path(tempfile.gettempdir()) / f"ldlm-checkpoints-{name}"
    if not link.is_symlink() or link.resolve() != folder:
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)
    return link


def _quiet_about_closed_loops() -> None:
    """Leave out what threads say of reads that nobody waits for any more.

    The first part of a checkpoint that cannot be read ends orbax's event loop; every part after it
    then reports to a loop that is closed, with a traceback each.
    """
    for name in ("excepthook", "unraisablehook"):
        shown = getattr(sys, name)
        if getattr(shown, "is_quiet", False):
            continue

        def hook(*arguments, shown=shown):
            error = arguments[1] if len(arguments) > 1 else arguments[0].exc_value
            if not (isinstance(error, RuntimeError) and "Event loop is closed" in str(error)):
                shown(*arguments)

        hook.is_quiet = True
        setattr(sys, name, hook)


class DamagedError(Exception):
    """What was read is not what was saved."""


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """A number of 32 bits that any single flipped bit changes, whatever holds which part of it.

    The bits of every element times an odd number of its own, added up modulo 2^32.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    width = np.dtype(x.dtype).itemsize * 8
    bits = jax.lax.bitcast_convert_type(x, f"uint{width}") if x.dtype != bool else x
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def _checksums(state) -> dict[str, int]:
    """The checksum of each array by its path."""
    leaves = {jax.tree_util.keystr(path): _checksum(x)
              for path, x in jax.tree_util.tree_leaves_with_path(state)}  # fmt: skip
    return {path: int(np.asarray(x.addressable_data(0))) for path, x in leaves.items()}


class Checkpoints:
    """Saves and restores training states under one folder.

    A save is asynchronous and becomes visible only when it is complete; ``close`` waits for it.
    """

    def __init__(
        self, folder: Path, *, keep_last: int = 1, keep_every: int = 0, best_metric: str = ""
    ):
        keep = [LatestN(keep_last)]
        if keep_every:
            keep.append(EveryNSteps(keep_every))
        if best_metric:
            keep.append(
                BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(keep), create=True
        )
        self._folder = folder
        try:
            self._manager = ocp.CheckpointManager(
                _without_wildcards(folder),
                options=options,
                item_handlers=ocp.PyTreeCheckpointHandler(),
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {folder}: {error.strerror}.") from error

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state, metrics: dict | None = None) -> None:
        """Start saving; ``metrics`` decide which checkpoint is the best.

        Raises:
          UserError: the disk is too full; earlier checkpoints are untouched.
        """
        if step in self._manager.all_steps():
            return
        # A save that fails half-way in orbax's threads may never return: look before.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < 1.1 * needed:
            raise UserError(
                f"no checkpoint of step {step}: {self._folder} has {free / 1e6:.1f} MB left and "
                f"{1.1 * needed / 1e6:.1f} MB are needed; earlier checkpoints are untouched. Free "
                "some space and start the same command again to resume."
            )
        self._manager.save(
            step, args=ocp.args.PyTreeSave(state), metrics=metrics,
            custom_metadata={_CHECKSUMS: _checksums(state)},
        )  # fmt: skip

    def reached_preemption(self, step: int) -> bool:
        """Whether the machine is about to be taken away, which all processes learn at one step."""
        return self._manager.reached_preemption(step)

    def restore(self, abstract, step: int | None = None):
        """The newest state that can be read, or None if there is none at all.

        Args:
          abstract: tree of ``jax.ShapeDtypeStruct`` with shardings: of the whole state, or of the
            parts of it that are wanted. No other part is read.
          step: a certain step instead of the newest.

        Raises:
          UserError: there are checkpoints, but none can be read, or not the one asked for.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self._folder}: no checkpoint of step {step}; there are: {known}.")
        if not steps:
            return None
        _quiet_about_closed_loops()
        for candidate in [step] if step is not None else reversed(steps):
            try:
                return self._restore(candidate, abstract)
            except Exception as error:  # a damaged file raises whatever its reader meets
                reason = str(error).strip().splitlines()[0][:200]
                log.warning("checkpoint of step %d cannot be read (%s)", candidate, reason)
        raise UserError(
            f"{self._folder}: no checkpoint can be read. If the config changed since, use the one "
            "the run was started with; otherwise start anew in another folder."
        )

    def _restore(self, step: int, abstract):
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True)
        restored = self._manager.restore(step, args=args)
        chex.assert_trees_all_equal_shapes_and_dtypes(restored, abstract)
        # Checkpoints of version 0.1 have no checksums.
        saved = (self._manager.metadata(step).custom_metadata or {}).get(_CHECKSUMS, {})
        for path, found in _checksums(restored).items():
            if saved.get(path, found) != found:
                raise DamagedError(f"{path} is not what was saved: its file is damaged")
        return restored

    def set_aside_after(self, step: int) -> None:
        """Move checkpoints newer than a step, which could not be read, to ``unreadable`` beside.

        They may be readable again: a network's disk can fail for a moment.
        """
        later = [s for s in self.steps() if s > step]
        aside = self._folder.parent / "unreadable"

        def move():
            for number in later:
                folder = self._folder / str(number)
                if folder.exists():
                    aside.mkdir(exist_ok=True)
                    folder.rename(aside / f"{number}-{time.time_ns()}")
                    log.warning("moved checkpoint of step %d to %s", number, aside)

        if later:
            main_process_first("unreadable checkpoints", move)
            self._manager.reload()

    def close(self) -> None:
        """Wait for the save under way and release the folder."""
        self._manager.wait_until_finished()
        self._manager.close()
