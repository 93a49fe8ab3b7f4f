"""From noise to data: solvers of the probability-flow ODE, with or without fresh noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.rows import row_keys, row_noise, where_rows
from ldlm_jax.diffusion.schedule import RectifiedFlow, Schedule


class Estimate(NamedTuple):
    """What a denoiser makes of noisy latents.

    Attributes:
      clean: the mean of the clean latents.
      extra: whatever else is to be kept of each step (any tree of arrays).
      drawn: one draw of the clean latents, for ``"ancestral"``; None from a denoiser that knows
        their mean only.
    """

    clean: jax.Array
    extra: Any = ()
    drawn: jax.Array | None = None


# (z_t, t, previous estimate of the clean latents, random keys of the rows) -> Estimate
Denoise = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Estimate]


@dataclass(frozen=True)
class Solver:
    """How to take one step.

    Attributes:
      name: ``"euler"``: first order. ``"stochastic"``: an Euler step beyond the goal, then forward
        noise back to it. ``"ancestral"``: the same towards a draw of the clean latents in place of
        their mean: right for steps of any length (Austin et al. 2021, arXiv 2107.03006, equation
        4).
      churn: how far beyond, as a share of the step; 0 makes ``"stochastic"`` equal ``"euler"``.
      schedule: of the noise.
    """

    name: str = "euler"
    churn: float = 1.0
    schedule: Schedule = RectifiedFlow()

    def __post_init__(self):
        if self.name not in SOLVERS:
            raise ValueError(f"solver {self.name!r}: choose one of {', '.join(SOLVERS)}.")
        if self.churn < 0:
            raise ValueError(f"churn = {self.churn}: must not be negative.")


class Interval(NamedTuple):
    """A step's two times, t down to s, and the random keys of the rows in it."""

    t: jax.Array
    s: jax.Array
    keys: jax.Array


class SolverState(NamedTuple):
    """Noisy latents, the latest estimate of the clean ones, and its ``extra``."""

    z: jax.Array
    clean: jax.Array
    extra: Any


class EarlyStop(NamedTuple):
    """When to stop before the last step, row by row.

    Attributes:
      init: state before the first step.
      update: (state, ``extra`` of an estimate) -> (state, bool (B,): true where no further step is
        needed). The row's latents are then its estimate of the clean ones.
    """

    init: Any
    update: Callable[[Any, Any], tuple[Any, jax.Array]]


def _euler(denoise: Denoise, solver: Solver, at: SolverState, now: Interval) -> SolverState:
    clean, extra, _ = denoise(at.z, now.t, at.clean, now.keys)
    return SolverState(solver.schedule.step(at.z, clean, now.t, now.s), clean, extra)


def _beyond_and_back(solver: Solver, z_t, clean, now: Interval) -> jax.Array:
    """Euler to r = s - churn (t - s), then forward noise from r to s (schedule.py, equation 6),
    which leaves the marginal distribution at s as it was, whatever the churn."""
    r = jnp.maximum(now.s - solver.churn * (now.t - now.s), 0.0)
    z_r = solver.schedule.step(z_t, clean, now.t, r)
    return solver.schedule.add_noise(z_r, row_noise(now.keys, z_r.shape[1:]), r, now.s)


def _stochastic(denoise: Denoise, solver: Solver, at: SolverState, now: Interval) -> SolverState:
    clean, extra, _ = denoise(at.z, now.t, at.clean, now.keys)
    return SolverState(_beyond_and_back(solver, at.z, clean, now), clean, extra)


def _ancestral(denoise: Denoise, solver: Solver, at: SolverState, now: Interval) -> SolverState:
    # The mean is what the denoiser is given as its previous estimate, as in training.
    clean, extra, drawn = denoise(at.z, now.t, at.clean, row_keys(now.keys, 0))
    now = now._replace(keys=row_keys(now.keys, 1))
    return SolverState(_beyond_and_back(solver, at.z, drawn, now), clean, extra)


SOLVERS = {"euler": _euler, "stochastic": _stochastic, "ancestral": _ancestral}


class Progress(NamedTuple):
    """How far a batch has come.

    Attributes:
      at: latents and estimates.
      watched: state of the early stop; None without one.
      stopped_B: rows that take no further step.
      steps_B: steps that each row took.
    """

    at: SolverState
    watched: Any
    stopped_B: jax.Array
    steps_B: jax.Array


def begin(
    denoise: Denoise, start: jax.Array, keys: jax.Array, early_stop: EarlyStop | None
) -> Progress:
    """A batch before its first step; arguments as of ``solve``."""
    t = jnp.zeros(start.shape[:-1])
    extra = jax.eval_shape(denoise, start, t, start, keys).extra
    extra = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), extra)
    first = SolverState(start, jnp.zeros_like(start), extra)
    stopped_B, steps_B = jnp.zeros(len(start), bool), jnp.zeros(len(start), int)
    return Progress(first, early_stop.init if early_stop else None, stopped_B, steps_B)


def advance(
    denoise: Denoise,
    progress: Progress,
    now: Interval,
    solver: Solver,
    early_stop: EarlyStop | None = None,
) -> Progress:
    """One step of every row that has not stopped; arguments as of ``solve``."""
    at, watched, stopped_B, steps_B = progress
    step = partial(SOLVERS[solver.name], denoise, solver)
    if early_stop is None:
        return Progress(step(at, now), watched, stopped_B, steps_B + 1)
    new = jax.lax.cond(jnp.all(stopped_B), lambda at: at, lambda at: step(at, now), at)
    at = jax.tree.map(partial(where_rows, stopped_B), at, new)
    watched, enough_B = early_stop.update(watched, at.extra)
    at = at._replace(z=where_rows(enough_B & ~stopped_B, at.clean, at.z))
    return Progress(at, watched, stopped_B | enough_B, steps_B + ~stopped_B)


def solve(
    denoise: Denoise,
    start: jax.Array,
    times: jax.Array,
    keys: jax.Array,
    solver: Solver,
    early_stop: EarlyStop | None = None,
) -> tuple[Progress, Any]:
    """Solve from noise to data.

    Args:
      denoise: the model; guidance, observed positions and the like are its own business.
      start: latents at the first time, (B, ..., D).
      times: (steps + 1, ...) with the dimensions of ``start`` but its last (or 1), descending;
        rows and positions may stand at different times, and all end at 0; one that is there
        early stays as it is.
      keys: random keys (B,), one for each row.
      solver: how to step.
      early_stop: when to stop early. A row's result does not depend on the others'; the model is
        no longer evaluated once all have stopped.

    Returns:
      Where the rows ended, and ``extra`` of every step's estimate, stacked as (steps, ...); the
      last one of a row that stopped is repeated.
    """
    times = jnp.broadcast_to(times, (len(times), *start.shape[:-1]))

    def body(progress, inputs):
        t, s, index = inputs
        now = Interval(t, s, row_keys(keys, index))
        progress = advance(denoise, progress, now, solver, early_stop)
        return progress, progress.at.extra

    inputs = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(body, begin(denoise, start, keys, early_stop), inputs)
