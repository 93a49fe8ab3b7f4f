"""The state of training, which is exactly what a checkpoint holds, and its creation on a mesh."""

from dataclasses import dataclass

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from ldlm_jax.losses.alignment import Projection
from ldlm_jax.models.dit import DiT, Foreseen
from ldlm_jax.models.text_vae import TextVAE
from ldlm_jax.models.token_layout import lay_out
from ldlm_jax.parallel.sharding import AxisRules, param_shardings, placements, replicated


@flax.struct.dataclass
class LatentStats:
    """Running mean and variance of each latent channel, fp32 (D,)."""

    mean_D: jax.Array
    var_D: jax.Array
    updates: jax.Array

    # Share of the past once enough of it is there.
    DECAY = 0.99

    @classmethod
    def create(cls, channels: int) -> "LatentStats":
        """Statistics of standard normal latents."""
        return cls(jnp.zeros(channels), jnp.ones(channels), jnp.int32(0))

    def normalise(self, z_BxNxD: jax.Array) -> jax.Array:
        """Latents with unit variance and zero mean per channel."""
        return (z_BxNxD - self.mean_D) * jax.lax.rsqrt(self.var_D + 1e-6)

    def update(self, mean_D: jax.Array, square_D: jax.Array) -> "LatentStats":
        """Move towards one batch's mean and mean square; the first few count in full."""
        share = jnp.maximum(1 - self.DECAY, 1 / (1 + self.updates))
        old_square_D = self.var_D + self.mean_D**2
        new_mean_D = self.mean_D + share * (mean_D - self.mean_D)
        new_square_D = old_square_D + share * (square_D - old_square_D)
        return LatentStats(
            new_mean_D, jnp.maximum(new_square_D - new_mean_D**2, 1e-6), self.updates + 1
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


@dataclass(frozen=True)
class Models:
    """The networks of one experiment. Hashable: a static argument of jitted functions.

    Attributes:
      vae: the autoencoder.
      dit: the denoiser.
      align: map from what is aligned to teacher features, or None.
      aligned_width: width of what is aligned.
    """

    vae: TextVAE
    dit: DiT
    align: Projection | None = None
    aligned_width: int = 0

    def text_vae(self, params: dict, *args, method: str):
        """A method of the autoencoder; ``params`` may hold a ``foundation``'s weights as well."""
        variables = {"params": params["text_vae"]}
        if FOUNDATION in params:
            variables[FOUNDATION] = {"weights": params[FOUNDATION]}
        return self.vae.apply(variables, *args, method=method)

    def init(self, key: jax.Array, window: int) -> dict:
        """Parameters, boxed with their logical axis names."""
        vae_key, dit_key, align_key = jax.random.split(key, 3)
        latents = window // self.vae.tokens_per_latent
        tokens = jnp.zeros((1, window), jnp.int32)
        ints = jnp.zeros((1, latents), jnp.int32)
        places = lay_out(ints)
        z = jnp.zeros((1, latents, self.vae.latent_channels))
        channels = self.dit.width if self.vae.decoder_layers == 0 else self.vae.latent_channels
        decoder_inputs = jnp.zeros((1, latents, channels))
        foreseen = None
        if self.dit.foresight:
            foreseen = Foreseen(jnp.zeros((1, latents, self.dit.width)), ints > 0, ints, ints > 0)
        params = {
            "text_vae": self.vae.init(vae_key, tokens, places, decoder_inputs)["params"],
            "dit": self.dit.init(dit_key, z, z[..., 0], ints, z, places, None, foreseen)["params"],
        }
        if self.align is not None:
            aligned = jnp.zeros((1, latents, self.aligned_width))
            params["align"] = self.align.init(align_key, aligned)["params"]
        return params

    def abstract(self, window: int) -> dict:
        """What ``init`` would return, as shapes."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0), window))


FOUNDATION = "foundation"


def with_foundation(params: dict, weights: dict | None) -> dict:
    """Parameters together with the weights of a frozen foundation, if there is one."""
    return params if weights is None else params | {FOUNDATION: weights}


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", entry)) for entry in path)


def group_of(path) -> str:
    """Which of ``phases.GROUPS`` the parameter at a tree path belongs to."""
    names = _names(path)
    return names[1] if names[0] == "text_vae" else names[0]


def create_state(models: Models, optimizer, seed: int, window: int) -> TrainState:
    """A fresh state; call under jit with the shardings of ``state_shardings``."""
    params = meta.unbox(models.init(jax.random.key(seed), window))
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        latents=LatentStats.create(models.vae.latent_channels),
    )


def abstract_state(models: Models, optimizer, window: int, mesh, rules: AxisRules) -> TrainState:
    """Shapes, dtypes and shardings of a state, without computing anything."""
    boxed = models.abstract(window)
    placements(boxed, mesh, rules)  # raises where a dimension does not divide
    of_params = param_shardings(boxed, mesh, rules)
    shapes = jax.eval_shape(lambda: create_state(models, optimizer, 0, window))
    by_path = {_names(path): s for path, s in jax.tree.leaves_with_path(of_params)}
    everywhere = replicated(mesh)

    def like_its_parameter(path, _):
        """Moments lie as their parameter does: the end of their path is the parameter's path."""
        names = _names(path)
        return next((by_path[names[i:]] for i in range(len(names)) if names[i:] in by_path),
                    everywhere)  # fmt: skip

    shardings = jax.tree.map_with_path(like_its_parameter, shapes)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(models: Models, optimizer, seed: int, window: int, mesh, rules) -> TrainState:
    """A fresh state, each part created where it will live."""
    abstract = abstract_state(models, optimizer, window, mesh, rules)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    create = jax.jit(lambda: create_state(models, optimizer, seed, window), out_shardings=shardings)
    # Without rules: the rows it runs the networks on to learn their shapes are too few to split.
    with nn.logical_axis_rules(()):
        return create()
