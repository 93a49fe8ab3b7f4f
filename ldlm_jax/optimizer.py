"""Optimizers, learning-rate schedules and which parameters they treat how."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.parallel.sharding import path_names
from ldlm_jax.validate import Natural, NotNegative, Positive, Share


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    Attributes:
      name: ``"adamw"``, or ``"muon"`` (Jordan et al. 2024) for the matrices inside transformer
        blocks and AdamW for everything else.
      learning_rate: peak, of both kinds: Muon's updates are scaled to AdamW's typical size.
      warmup_steps: steps of linear warm-up.
      schedule: after the warm-up: ``"constant"``, ``"linear"`` or ``"cosine"`` to
        ``final_fraction`` of the peak at the last step.
      final_fraction: where the schedule ends, as a share of the peak.
      weight_decay: decoupled, on matrices only.
      beta1: AdamW's first momentum (Muon's is 0.95).
      beta2: AdamW's second momentum.
      clip_norm: global gradient norm above which gradients are scaled down.
      ema_decay: decay of the averaged parameters used for evaluation and sampling; it warms up as
        (1 + step) / (10 + step).
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: Positive = 2e-3
    warmup_steps: Natural = 100
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    final_fraction: Share = 0.1
    weight_decay: NotNegative = 0.01
    beta1: Share = 0.9
    beta2: Share = 0.95
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, "[0, 1)"] = 0.999


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step."""
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    steps = max(1, num_steps - config.warmup_steps)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, steps),
        "cosine": optax.cosine_decay_schedule(peak, steps, config.final_fraction),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    # Step 0 would otherwise have rate 0 and teach nothing.
    joined = optax.join_schedules([warmup, after], [config.warmup_steps])
    return lambda step: joined(step + 1)


def _is_matrix(path, leaf) -> bool:
    return leaf.ndim >= 2 and "scale" not in path_names(path)


def _muon_dimensions(params):
    """Kernels in scanned blocks stack matrices, (layers, in, ..., out); the rest is Adam's."""

    def dimensions(path, leaf):
        if "blocks" in path_names(path) and _is_matrix(path, leaf):
            return optax.contrib.MuonDimensionNumbers(1, leaf.ndim - 1)
        return None

    return jax.tree.map_with_path(dimensions, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The gradient transformation that a config describes."""
    rate = learning_rate(config, num_steps)

    def decay_mask(params):
        return jax.tree.map_with_path(_is_matrix, params)

    if config.name == "adamw":
        optimizer = optax.adamw(
            rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decay_mask
        )
    else:
        optimizer = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            weight_decay_mask=decay_mask,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            # Updates with the root-mean-square of AdamW's (Liu et al. 2025, "Muon is scalable").
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def ema_step_size(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """Share of the new parameters that enters the average at a step."""
    warm = (1.0 + step) / (10.0 + step)
    return 1.0 - jnp.minimum(config.ema_decay, warm)
