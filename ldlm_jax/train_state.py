"""The state of training, which is exactly what a checkpoint holds, and its creation on a mesh."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from ldlm_jax.models.networks import LatentStats, Networks
from ldlm_jax.parallel.sharding import (
    AxisRules,
    param_shardings,
    path_names,
    placements,
    replicated,
)


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: steps taken, skipped ones included.
      skipped: steps whose loss or gradient was not finite; they changed nothing else.
      params: ``text_vae``, ``dit`` and, with a teacher, ``align``.
      ema: averaged parameters.
      opt_state: of the optimizer.
      latents: running statistics of the latent channels.
    """

    step: jax.Array
    skipped: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState
    latents: LatentStats


@flax.struct.dataclass
class AveragedModel:
    """The part of a ``TrainState`` that sampling and evaluation need."""

    step: jax.Array
    ema: dict
    latents: LatentStats


def group_of(path) -> str:
    """Which of ``phases.GROUPS`` the parameter at a tree path belongs to."""
    names = path_names(path)
    return names[1] if names[0] == "text_vae" else names[0]


def create_state(networks: Networks, optimizer, seed: int, window: int) -> TrainState:
    """A fresh state; call under jit with the shardings of ``abstract_state``."""
    params = meta.unbox(networks.init(jax.random.key(seed), window))
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        latents=LatentStats.create(networks.vae.latent_channels),
    )


def _placed(shapes, boxed_params, mesh, rules: AxisRules):
    """Shapes with shardings: arrays whose path ends as a parameter's lie as that parameter does."""
    placements(boxed_params, mesh, rules)  # raises where a dimension does not divide
    of_params = param_shardings(boxed_params, mesh, rules)
    by_path = {path_names(path): s for path, s in jax.tree.leaves_with_path(of_params)}

    def place(path, shape):
        names = path_names(path)
        ends = (names[i:] for i in range(len(names)))
        sharding = next((by_path[end] for end in ends if end in by_path), replicated(mesh))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map_with_path(place, shapes)


def abstract_state(networks: Networks, optimizer, window: int, mesh, rules: AxisRules):
    """Shapes, dtypes and shardings of a ``TrainState``, without computing anything."""
    shapes = jax.eval_shape(lambda: create_state(networks, optimizer, 0, window))
    return _placed(shapes, networks.abstract(window), mesh, rules)


def abstract_average(networks: Networks, window: int, mesh, rules: AxisRules) -> AveragedModel:
    """Shapes, dtypes and shardings of an ``AveragedModel``."""
    boxed = networks.abstract(window)
    latents = jax.eval_shape(lambda: LatentStats.create(networks.vae.latent_channels))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return _placed(AveragedModel(step, meta.unbox(boxed), latents), boxed, mesh, rules)


def init_state(networks: Networks, optimizer, seed: int, window: int, mesh, rules) -> TrainState:
    """A fresh state, each part created where it will live."""
    abstract = abstract_state(networks, optimizer, window, mesh, rules)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    create = jax.jit(
        lambda: create_state(networks, optimizer, seed, window), out_shardings=shardings
    )
    # Without rules: the rows it runs the networks on to learn their shapes are too few to split.
    with nn.logical_axis_rules(()):
        return create()
