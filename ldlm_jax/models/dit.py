"""Diffusion transformer over latents, with a time and a conditioning mark per position.

Shape letters: B batch, N latents, D latent channels, M width, T in-context time tokens, R cached
latents.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.dense import Dense
from ldlm_jax.models.layers import Transformer
from ldlm_jax.models.lowering import Dtype
from ldlm_jax.models.masks import AttentionMask, with_front
from ldlm_jax.models.next_token_prior import PriorFeatures
from ldlm_jax.models.token_layout import TokenLayout

# So many positions of a text have an embedding each; those after them share one.
FIRST_POSITIONS = 8
# Conditioning of each position: to be generated, observed, or observed but hidden from the model
# (the null condition of classifier-free guidance).
GENERATED, OBSERVED, HIDDEN = 0, 1, 2


class NoisyInputs(NamedTuple):
    """What a denoiser is given.

    Attributes:
      z_BxNxD: noisy latents; observed positions carry their clean latent.
      t_BxN: time of each position, 0 (data, and every observed position) to 1 (noise).
      conditioning_BxN: GENERATED, OBSERVED or HIDDEN.
      self_condition_BxNxD: a previous estimate of the clean latents, or zeros.
      layout: where each position stands.
    """

    z_BxNxD: jax.Array
    t_BxN: jax.Array
    conditioning_BxN: jax.Array
    self_condition_BxNxD: jax.Array
    layout: TokenLayout

    @classmethod
    def clean(cls, z_BxNxD, conditioning_BxN, layout: TokenLayout) -> "NoisyInputs":
        """Clean latents."""
        t_BxN = jnp.zeros(conditioning_BxN.shape)
        return cls(z_BxNxD, t_BxN, conditioning_BxN, jnp.zeros_like(z_BxNxD), layout)


class KVCache(NamedTuple):
    """Keys and values of every layer for clean latents, the trunk's features, and their layout."""

    keys_and_values: tuple[jax.Array, jax.Array]  # each (layers, B, R, heads, head width)
    features_BxRxM: jax.Array
    layout: TokenLayout


class DiTOutput(NamedTuple):
    """What the DiT returns.

    Attributes:
      output_BxNxD: clean latents or velocity, as trained; fp32.
      features_BxNxM: the trunk's, from which a TextVAE without a decoder trunk of its own reads the
        tokens.
      cache: of these positions, for the blocks after them.
      hidden_BxNxM: output of block ``hidden_layer``; None without one.
    """

    output_BxNxD: jax.Array
    features_BxNxM: jax.Array
    cache: KVCache | None
    hidden_BxNxM: jax.Array | None


def time_features(t: jax.Array, features: int) -> jax.Array:
    """Sinusoids of ``t`` in [0, 1] (Vaswani et al. 2017 with wavelengths from 1e-3 to 6), fp32."""
    frequency = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), features // 2))
    angle = t[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class DiT(nn.Module):
    """Predicts the clean latents (or the velocity) from noisy ones.

    Attributes:
      latent_channels: D.
      width: model width M.
      heads: attention heads; the head width must be even.
      layers: transformer blocks.
      mlp_ratio: feed-forward width over model width.
      conditioning: how time reaches the blocks, besides each position's own in its input.
        ``"in_context"``: ``time_tokens`` tokens of the running time stand before the sequence (ELF,
        arXiv 2605.10938); ``"adaln"``: per-position adaLN-zero (Peebles & Xie 2023).
      time_tokens: number of in-context tokens; 0, as blocks need it, leaves each its own time.
      dtype: compute dtype.
      remat: what blocks keep for the backward pass, see ``layers.REMAT``.
      attention: implementation of attention, see ``attention.attend``.
      offset_radius: reach of a learned attention bias by offset that starts with heads looking at
        their neighbours; 0 for none.
      hidden_layer: block (from 1) whose output is returned as well, to be aligned; 0 for none.
      dropout: see ``layers.Transformer``.
    """

    latent_channels: int
    width: int = 256
    heads: int = 4
    layers: int = 6
    mlp_ratio: float = 2.5
    conditioning: Literal["in_context", "adaln"] = "in_context"
    time_tokens: int = 4
    dtype: Dtype = "float32"
    remat: Literal["none", "dots", "attention", "full"] = "none"
    attention: Literal["xla", "cudnn", "splash", "ring"] = "xla"
    offset_radius: int = 0
    hidden_layer: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        inputs: NoisyInputs,
        mask: AttentionMask,
        cache: KVCache | None = None,
        prior: PriorFeatures | None = None,
    ) -> DiTOutput:
        """Predict from noisy latents.

        Args:
          inputs: noisy latents and what is known of each.
          mask: which keys each position attends to; with a cache, the cached ones first.
          cache: of the clean text, from an earlier call.
          prior: taken for the trunk's features where there is one, see ``PriorFeatures.combine``.
        """
        layout, conditioning_BxN = inputs.layout, inputs.conditioning_BxN
        z_BxNxD = jnp.where((conditioning_BxN == HIDDEN)[..., None], 0.0, inputs.z_BxNxD)
        pair = jnp.concatenate([z_BxNxD, inputs.self_condition_BxNxD], axis=-1)
        x_BxNxM, time_BxNxM = self._embed(pair, inputs)
        if prior is not None:
            told_M = self._vector("told")
            x_BxNxM += jnp.where(prior.has_prior_BxN[..., None], told_M, 0).astype(x_BxNxM.dtype)
        trunk = Transformer(
            self.layers, self.heads, self.mlp_ratio, jnp.dtype(self.dtype), self.remat,
            self.offset_radius, self.attention, self.hidden_layer, self.dropout, name="trunk",
        )  # fmt: skip
        if self.conditioning == "adaln" or self.time_tokens == 0:
            condition = time_BxNxM if self.conditioning == "adaln" else None
            cached = None if cache is None else cache.keys_and_values
            outputs = trunk(x_BxNxM, mask, layout.positions_BxN, condition, cached)
        else:
            # One running time a row: the mean over what is being generated.
            generated_BxN = (conditioning_BxN == GENERATED) & layout.in_document_BxN
            count_B = jnp.maximum(jnp.sum(generated_BxN, 1), 1)
            running_B = jnp.sum(inputs.t_BxN * generated_BxN, 1) / count_B
            outputs = self._with_time_tokens(trunk, x_BxNxM, running_B, mask)
        y_BxNxM, keys_and_values, hidden_BxNxM = outputs
        if prior is not None:
            y_BxNxM = prior.combine(y_BxNxM, self._vector("told_scale"))
        return DiTOutput(
            output_head(self)(y_BxNxM), y_BxNxM, KVCache(keys_and_values, y_BxNxM, layout),
            hidden_BxNxM,
        )  # fmt: skip

    def _vector(self, name: str) -> jax.Array:
        """A parameter (M,) that starts at zero."""
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        return self.param(name, init, (self.width,), jnp.float32)

    def _embedding(self, name: str, init, rows: int, index_BxN) -> jax.Array:
        """Rows (B, N, M) of a learned table."""
        init = nn.with_logical_partitioning(init, (None, "embed"))
        table = self.param(name, init, (rows, self.width), jnp.float32)
        return jnp.take(table, index_BxN, axis=0).astype(self.dtype)

    def _embed(self, pair_BxNx2D, inputs: NoisyInputs):
        """What the blocks read (B, N, M), and the embedded times."""
        dtype = jnp.dtype(self.dtype)
        x_BxNxM = Dense(self.width, ("latent", "embed"), dtype, name="input")(pair_BxNx2D)
        time = Dense(self.width, ("time", "embed"), dtype, name="time")
        time_BxNxM = nn.silu(time(time_features(inputs.t_BxN, 64)))
        normal, zeros = nn.initializers.normal(0.5), nn.initializers.zeros
        x_BxNxM += self._embedding("state", normal, 3, inputs.conditioning_BxN)
        # Rotary positions are relative: without these the first block, which attends to nothing
        # before it, does not know that a text begins here.
        first_BxN = jnp.minimum(inputs.layout.positions_BxN, FIRST_POSITIONS)
        x_BxNxM += self._embedding("begin", zeros, FIRST_POSITIONS + 1, first_BxN)
        x_BxNxM += Dense(self.width, ("embed", "mlp"), dtype, name="position_time")(time_BxNxM)
        return x_BxNxM, time_BxNxM

    def _with_time_tokens(self, trunk, x_BxNxM, running_B, mask: AttentionMask):
        """Run the trunk with time tokens in front, to which all attend, and drop them."""
        T, dtype = self.time_tokens, jnp.dtype(self.dtype)
        embed = Dense(self.width, ("time", "embed"), dtype, name="running_time")
        features = nn.silu(embed(time_features(running_B, 64)))
        shift_BxTM = Dense(T * self.width, ("embed", "mlp"), dtype, name="tokens")(features)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), (None, "embed"))
        learned_TxM = self.param("time_token", init, (T, self.width), jnp.float32)
        tokens_BxTxM = shift_BxTM.reshape(-1, T, self.width) + learned_TxM.astype(shift_BxTM.dtype)
        x = jnp.concatenate([tokens_BxTxM, x_BxNxM], axis=1)
        mask = with_front(mask, T)
        y, keys_and_values, hidden = trunk(x, mask, mask.query.positions_BxN)
        keys_and_values = jax.tree.map(lambda kv: kv[:, :, T:], keys_and_values)
        return y[:, T:], keys_and_values, None if hidden is None else hidden[:, T:]


def output_head(dit: DiT) -> Dense:
    """The map from the trunk's features to the output; its parameters are ``output``."""
    init = nn.initializers.zeros
    return Dense(dit.latent_channels, ("embed", "latent"), kernel_init=init, name="output")
