"""From noise to data: solvers of the path's ODE, with or without fresh noise, under one scan."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion import schedule as path

SOLVERS = ("euler", "heun", "multistep", "stochastic", "ancestral")


class Guess(NamedTuple):
    """What a denoiser says of noisy latents.

    Attributes:
      clean: the mean of the clean latents.
      said: whatever else is to be kept of it (any tree of arrays).
      drawn: one draw of the clean latents, for ``"ancestral"``; None from a denoiser that knows
        their mean only.
    """

    clean: jax.Array
    said: Any = ()
    drawn: jax.Array | None = None


# (z_t, t, earlier estimate of the clean latents, random keys of the rows) -> Guess
Denoiser = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Guess]


@dataclass(frozen=True)
class Solver:
    """How to take one step.

    Attributes:
      name: ``"euler"``: first order, one evaluation a step. ``"heun"``: second order, two
        evaluations (the step to 0 is an Euler step). ``"multistep"``: second order with one
        evaluation a step, from the estimates of two steps (DPM-Solver++(2M), Lu et al. 2022).
        ``"stochastic"``: an Euler step beyond the goal, then forward noise back to it.
        ``"ancestral"``: the same towards a draw of the clean latents in place of their mean. If
        the draw is from their law given z_t, then z_s has the path's own law however long the
        step, where a step towards the mean is right for short ones only (x_0 drawn from the
        model as in discrete diffusion: Austin et al. 2021, arXiv 2107.03006, equation 4).
      churn: how far beyond, as a share of the step; 0 makes ``"stochastic"`` equal ``"euler"``.
    """

    name: str = "euler"
    churn: float = 1.0

    def __post_init__(self):
        if self.name not in SOLVERS:
            raise ValueError(f"solver {self.name!r}: choose one of {', '.join(SOLVERS)}.")
        if self.churn < 0:
            raise ValueError(f"churn = {self.churn}: must not be negative.")


class Step(NamedTuple):
    """Noisy latents, the latest estimate of the clean ones, its time, and what else it said."""

    z: jax.Array
    clean: jax.Array
    seen_at: jax.Array
    said: Any


class Watch(NamedTuple):
    """When to stop before the last step, row by row.

    Attributes:
      start: state before the first step.
      look: (state, what an estimate said) -> (state, bool (B,): true where no further step is
        needed). The row's latents are then its estimate of the clean ones.
    """

    start: Any
    look: Callable[[Any, Any], tuple[Any, jax.Array]]


def _drop_channels(t: jax.Array) -> jax.Array:
    return t[..., 0]


def row_keys(keys: jax.Array, index) -> jax.Array:
    """Fresh keys (B,) from those of B rows."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)


def row_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal (B, *shape), each row by its own key: whatever stands beside it."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _euler(denoise: Denoiser, at: Step, t, s, keys, churn) -> Step:
    del churn
    guess = denoise(at.z, _drop_channels(t), at.clean, keys)
    return Step(path.move(at.z, guess.clean, t, s), guess.clean, t, guess.said)


def _heun(denoise: Denoiser, at: Step, t, s, keys, churn) -> Step:
    """Heun's method (Karras et al. 2022, algorithm 1) in time t."""
    there = _euler(denoise, at, t, s, keys, churn)
    clean, said, _ = denoise(there.z, _drop_channels(s), there.clean, keys)
    slope = (at.z - there.clean) / jnp.maximum(t, 1e-6) + (there.z - clean) / jnp.maximum(s, 1e-6)
    # At s = 0 the slope is 0/0; there Euler's step is exact for the estimate at hand.
    z = jnp.where((s > 0) & (s < t), at.z + (s - t) * slope / 2, there.z)
    kept = jnp.where(s > 0, clean, there.clean)
    return Step(z, kept, s, said)


def _log_snr(t: jax.Array) -> jax.Array:
    """Logarithm of data over noise, (1 - t) / t, finite at both ends."""
    t = jnp.clip(t, 1e-5, 1 - 1e-5)
    return jnp.log1p(-t) - jnp.log(t)


def _multistep(denoise: Denoiser, at: Step, t, s, keys, churn) -> Step:
    """An Euler step towards an estimate carried on in l = log((1 - t) / t) by half a step:

    (6)  z_0' = z_0 + (l_s - l_t) / (2 (l_t - l_before)) (z_0 - z_0,before)

    (Lu et al. 2022, "DPM-Solver++", algorithm 2, for the straight path). The first step, which has
    none before it, and the one to 0, where l ends, are Euler steps.
    """
    del churn
    clean, said, _ = denoise(at.z, _drop_channels(t), at.clean, keys)
    past, ahead = _log_snr(t) - _log_snr(at.seen_at), _log_snr(s) - _log_snr(t)
    carry = (past > 0) & (at.seen_at < 1) & (s > 0)
    share = jnp.where(carry, ahead / jnp.where(past > 0, 2 * past, 1.0), 0.0)
    ahead_of_it = clean + share * (clean - at.clean)
    return Step(path.move(at.z, ahead_of_it, t, s), clean, t, said)


def _beyond_and_back(z_t, clean, t, s, keys, churn) -> jax.Array:
    """Euler to s' = s - churn (t - s), then the forward process of equation (1) from s' to s:

    (5)  z_s = a z_s' + sqrt(s^2 - a^2 s'^2) eps,   a = (1 - s) / (1 - s')

    which leaves the marginal law at s as it was, whatever the churn.
    """
    beyond = jnp.maximum(s - churn * (t - s), 0.0)
    z = path.move(z_t, clean, t, beyond)
    a = jnp.where(s == beyond, 1.0, (1 - s) / jnp.maximum(1 - beyond, 1e-6))
    spread = jnp.sqrt(jnp.maximum(s**2 - (a * beyond) ** 2, 0.0))
    return a * z + spread * row_noise(keys, z.shape[1:])


def _stochastic(denoise: Denoiser, at: Step, t, s, keys, churn) -> Step:
    clean, said, _ = denoise(at.z, _drop_channels(t), at.clean, keys)
    return Step(_beyond_and_back(at.z, clean, t, s, keys, churn), clean, t, said)


def _ancestral(denoise: Denoiser, at: Step, t, s, keys, churn) -> Step:
    # The mean is what the denoiser is told of its earlier estimate, as in training.
    clean, said, drawn = denoise(at.z, _drop_channels(t), at.clean, row_keys(keys, 0))
    return Step(_beyond_and_back(at.z, drawn, t, s, row_keys(keys, 1), churn), clean, t, said)


_STEPS = {
    "euler": _euler,
    "heun": _heun,
    "multistep": _multistep,
    "stochastic": _stochastic,
    "ancestral": _ancestral,
}


# Evaluations of the model that a step takes.
EVALUATIONS = {"euler": 1, "heun": 2, "multistep": 1, "stochastic": 1, "ancestral": 1}


class Sampled(NamedTuple):
    """What a solver found.

    Attributes:
      z: the clean latents.
      said: what every step's estimate said besides, stacked as (steps, ...).
      steps_B: steps that each row took; those after it stopped say what its last one said.
    """

    z: jax.Array
    said: Any
    steps_B: jax.Array


def sample(
    denoise: Denoiser,
    start: jax.Array,
    times: jax.Array,
    keys: jax.Array,
    solver: Solver,
    watch: Watch | None = None,
) -> Sampled:
    """Solve from noise to data.

    Args:
      denoise: the model; guidance, known positions and the like are its own business.
      start: latents at the first time, (B, ..., D).
      times: (steps + 1, ...) with the dimensions of ``start`` but its last (or 1), descending;
        rows and positions may stand at different times, and all end at 0; one that is there
        early stays as it is.
      keys: random keys (B,), one for each row.
      solver: how to step.
      watch: when to stop early. A row's result does not depend on the others'; the model is no
        longer evaluated once all have stopped.
    """
    step = _STEPS[solver.name]
    times = jnp.broadcast_to(times[..., None], (len(times), *start.shape[:-1], 1))
    said = jax.eval_shape(denoise, start, _drop_channels(times[0]), start, keys).said
    said = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), said)

    def body(carry, inputs):
        at, watched, stopped_B = carry
        t, s, index = inputs

        def take_step(at: Step) -> Step:
            return step(denoise, at, t, s, row_keys(keys, index), solver.churn)

        if watch is None:
            at = take_step(at)
            return (at, watched, stopped_B), (at.said, ~stopped_B)
        new = jax.lax.cond(jnp.all(stopped_B), lambda at: at, take_step, at)
        at = jax.tree.map(partial(_where_rows, stopped_B), at, new)
        watched, enough_B = watch.look(watched, at.said)
        stops_B = enough_B & ~stopped_B
        at = at._replace(z=_where_rows(stops_B, at.clean, at.z))
        return (at, watched, stopped_B | stops_B), (at.said, ~stopped_B)

    first = Step(start, jnp.zeros_like(start), times[0], said)
    carry = first, watch.start if watch else None, jnp.zeros(len(start), bool)
    inputs = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    (last, *_), (said, took_KxB) = jax.lax.scan(body, carry, inputs)
    return Sampled(last.z, said, jnp.sum(took_KxB, 0))


def _where_rows(rows_B: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(rows_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)
