"""The networks of one experiment, and the running statistics of their latents.

Shape letters: B rows, N latents, D latent channels.
"""

from dataclasses import dataclass

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.dense import Dense
from ldlm_jax.models.dit import DiT, NoisyInputs
from ldlm_jax.models.masks import block_causal
from ldlm_jax.models.next_token_prior import PriorFeatures
from ldlm_jax.models.text_vae import TextVAE
from ldlm_jax.models.token_layout import token_layout

# The entry of a tree of parameters that holds the weights of a frozen backbone, if there is one.
BACKBONE = "backbone"


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


class Projection(nn.Module):
    """From the student's features to the teacher's width; ``kind`` is ``"linear"`` or ``"mlp"``."""

    width: int
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x (..., in)`` to ``(..., width)``, fp32."""
        for i in range(2 if self.kind == "mlp" else 0):
            x = nn.silu(Dense(self.width, ("embed", "mlp"), name=f"hidden_{i}")(x))
        return Dense(self.width, ("embed", "feature"), name="output")(x)


@dataclass(frozen=True)
class Networks:
    """The networks of one experiment. Hashable: a static argument of jitted functions.

    Attributes:
      vae: the autoencoder.
      dit: the denoiser.
      align: map from the aligned features to the teacher's, or None.
      aligned_width: width of the aligned features.
      has_prior: whether the DiT takes a next-token prior.
    """

    vae: TextVAE
    dit: DiT
    align: Projection | None = None
    aligned_width: int = 0
    has_prior: bool = False

    def text_vae(self, params: dict, *args, method: str):
        """A method of the autoencoder; ``params`` may hold a backbone's weights as well."""
        variables = {"params": params["text_vae"]}
        if BACKBONE in params:
            variables[BACKBONE] = {"weights": params[BACKBONE]}
        return self.vae.apply(variables, *args, method=method)

    def init(self, key: jax.Array, window: int) -> dict:
        """Parameters, boxed with their logical axis names."""
        vae_key, dit_key, align_key = jax.random.split(key, 3)
        N, M = window // self.vae.tokens_per_latent, self.dit.width
        tokens, ints = jnp.zeros((1, window), jnp.int32), jnp.zeros((1, N), jnp.int32)
        layout, z = token_layout(ints), jnp.zeros((1, N, self.vae.latent_channels))
        decoder_inputs = jnp.zeros((1, N, M)) if self.vae.decoder_layers == 0 else z
        prior = None
        if self.has_prior:
            prior = PriorFeatures(jnp.zeros((1, N, M)), ints > 0, ints, ints > 0)
        inputs = NoisyInputs.clean(z, ints, layout), block_causal(layout), None, prior
        params = {
            "text_vae": self.vae.init(vae_key, tokens, layout, decoder_inputs)["params"],
            "dit": self.dit.init(dit_key, *inputs)["params"],
        }
        if self.align is not None:
            features = jnp.zeros((1, N, self.aligned_width))
            params["align"] = self.align.init(align_key, features)["params"]
        return params

    def abstract(self, window: int) -> dict:
        """What ``init`` would return, as shapes."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0), window))


def with_backbone(params: dict, weights: dict | None) -> dict:
    """Parameters together with the weights of a frozen backbone, if there is one."""
    return params if weights is None else params | {BACKBONE: weights}
