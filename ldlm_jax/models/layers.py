"""Building blocks shared by every network: matrix product, norms, attention, transformer stack.

Shape letters: B batch, N positions, M width, H heads, K head width (in masks: keys), F feed-forward
width, R cached positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ldlm_jax.models.attention import attend, neighbour_bias, rotary_frequencies, rotate
from ldlm_jax.models.dense import Dense, ParallelDense, activation_dtype, materialise_gradient
from ldlm_jax.models.lowering import constrain
from ldlm_jax.models.masks import AttentionMask

# Stacks of up to so many blocks compile block by block: a loop would copy every activation into and
# out of stacked arrays (a tenth of the demo's step, a quarter of Sudoku's on a GPU). Deeper ones
# keep the loop, which compiles in constant time.
UNROLLED_LAYERS = 12

# What the forward pass of a block keeps for the backward pass.
_ATTENTION = jax.checkpoint_policies.save_only_these_names("attended")
REMAT = {
    "none": None,  # everything
    "dots": jax.checkpoint_policies.save_from_both_policies(  # products, and what attention gave
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENTION
    ),
    "attention": _ATTENTION,  # the block's input, and what attention gave
    "full": jax.checkpoint_policies.nothing_saveable,  # the block's input alone
}


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32 (Zhang & Sennrich 2019); ``use_scale=False`` learns nothing."""

    use_scale: bool = True
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last dimension of ``x``; the result has the dtype of ``x``."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)
        if self.use_scale:
            init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
            y = y * self.param("scale", init, (x.shape[-1],), jnp.float32)
        return y.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with RoPE, QK-norm and a zero-initialised output projection.

    With ``offset_radius`` R above 0 a learned bias by offset (Raffel et al. 2020) is added; to it
    offsets of R and more are alike; see ``attention.neighbour_bias``.
    """

    heads: int
    dtype: jnp.dtype
    offset_radius: int = 0
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x_BxNxM, mask: AttentionMask, positions_BxN, cache=None):
        """Attend to what the mask allows.

        With a ``cache``, a pair of keys and values (B, R, H, K) that an earlier call returned,
        the keys are first the R cached ones and then this call's own.

        Returns:
          (B, N, M), and this call's own keys and values.
        """
        width = x_BxNxM.shape[-1]
        shape = (*x_BxNxM.shape[:2], self.heads, width // self.heads)
        project = ParallelDense(3, width, ("embed", "heads"), self.dtype, name="qkv")
        q_BxNxHxK, k_BxNxHxK, v_BxNxHxK = (
            constrain(y.reshape(shape), "batch", "sequence", "heads", None)
            for y in project(x_BxNxM)
        )
        frequencies = rotary_frequencies(width // self.heads)
        q_BxNxHxK, k_BxNxHxK = (
            rotate(RMSNorm(axis="head_dim", name=name)(x), positions_BxN, frequencies)
            for name, x in (("query_norm", q_BxNxHxK), ("key_norm", k_BxNxHxK))
        )
        own = keys, values = k_BxNxHxK, v_BxNxHxK
        parts = ((keys,), (values,)) if cache is None else tuple(zip(cache, own, strict=True))
        bias = None
        if self.offset_radius:
            init = nn.with_logical_partitioning(neighbour_bias, ("heads", None))
            shape = (self.heads, 2 * self.offset_radius + 1)
            bias = self.param("offset_bias", init, shape, jnp.float32)
        out_BxNxHxK = attend(q_BxNxHxK, *parts, mask, bias, self.implementation)
        out_BxNxHxK = checkpoint_name(out_BxNxHxK, "attended")
        out = Dense(width, ("heads", "embed"), self.dtype, nn.initializers.zeros, name="out")
        return out(out_BxNxHxK.reshape(x_BxNxM.shape)), own


def mlp_width(width: int, ratio: float) -> int:
    """Feed-forward width: a multiple of the width, rounded up to a multiple of 16."""
    return -(-int(ratio * width) // 16) * 16


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020) with a zero-initialised output projection."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxNxM: jax.Array) -> jax.Array:
        """Map ``x`` through the gate."""
        project = ParallelDense(2, self.hidden, ("embed", "mlp"), self.dtype, name="gate_up")
        gate_BxNxF, up_BxNxF = (materialise_gradient(y) for y in project(x_BxNxM))
        width, zeros = x_BxNxM.shape[-1], nn.initializers.zeros
        down = Dense(width, ("mlp", "embed"), self.dtype, zeros, name="down")
        return down(constrain(nn.silu(gate_BxNxF) * up_BxNxF, "batch", "sequence", "mlp"))


class Dropout(nn.Module):
    """Features set to zero, the same ones at all positions of a row, wherever a key is given.

    One mask a row (Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in
    Recurrent Neural Networks") costs next to nothing; a number for every activation would take a
    CPU a good part of the step. Without a key named ``dropout`` nothing is dropped.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BxNxM: jax.Array) -> jax.Array:
        """Drop a share ``rate`` of the features and scale up the others."""
        idle = not self.has_rng("dropout")
        return nn.Dropout(self.rate, broadcast_dims=(1,), deterministic=idle)(x_BxNxM)


class Block(nn.Module):
    """Pre-norm transformer block; with a condition its norms are modulated (adaLN-zero).

    adaLN-zero: Peebles & Xie, "Scalable Diffusion Models with Transformers" (2023), section 3.2.
    """

    heads: int
    hidden: int
    dtype: jnp.dtype
    offset_radius: int = 0
    attention: str = "xla"
    keep: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxNxM, cache, mask: AttentionMask, positions_BxN, condition_BxNxC=None):
        """Returns ``(x, ((keys, values), x or None))``, carry and output of a scan over layers."""
        x_BxNxM = constrain(x_BxNxM, "batch", "sequence", None)
        attention = Attention(
            self.heads, self.dtype, self.offset_radius, self.attention, name="attention"
        )
        mlp, drop = SwiGLU(self.hidden, self.dtype, name="mlp"), Dropout(self.dropout)
        y_BxNxM = RMSNorm(name="attention_norm")(x_BxNxM)
        if condition_BxNxC is None:
            attended_BxNxM, own = attention(y_BxNxM, mask, positions_BxN, cache)
            x_BxNxM += drop(attended_BxNxM)
            x_BxNxM += drop(mlp(RMSNorm(name="mlp_norm")(x_BxNxM)))
            return x_BxNxM, (own, x_BxNxM if self.keep else None)

        width, zeros = 6 * x_BxNxM.shape[-1], nn.initializers.zeros
        modulate = Dense(width, ("cond", "mlp"), self.dtype, zeros, name="modulation")
        parts = jnp.split(modulate(nn.silu(condition_BxNxC)), 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        # The output projections start at zero already; a gate that starts at zero as well would
        # leave neither with a gradient, so gates start at one.
        y_BxNxM = y_BxNxM * (1 + scale_a) + shift_a
        attended_BxNxM, own = attention(y_BxNxM, mask, positions_BxN, cache)
        x_BxNxM += (1 + gate_a) * drop(attended_BxNxM)
        y_BxNxM = RMSNorm(name="mlp_norm")(x_BxNxM) * (1 + scale_m) + shift_m
        x_BxNxM += (1 + gate_m) * drop(mlp(y_BxNxM))
        return x_BxNxM, (own, x_BxNxM if self.keep else None)


class Transformer(nn.Module):
    """A stack of blocks under one scan, and a final norm.

    Attributes:
      layers: number of blocks.
      heads: attention heads; must divide the width of the input into even parts.
      mlp_ratio: feed-forward width as a multiple of the width, rounded up to a multiple of 16.
      dtype: compute dtype; parameters are fp32.
      remat: what blocks keep for the backward pass, by a name of ``REMAT``.
      offset_radius: see ``Attention``.
      attention: implementation, see ``attention.attend``.
      hidden_layer: also return what comes out of this block (from 1); 0 for none.
      dropout: share of features dropped from the input and from what each layer adds, see
        ``Dropout``.
    """

    layers: int
    heads: int
    mlp_ratio: float
    dtype: jnp.dtype
    remat: str = "none"
    offset_radius: int = 0
    attention: str = "xla"
    hidden_layer: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x_BxNxM, mask: AttentionMask, positions_BxN, condition_BxNxC=None, cache=None
    ):
        """Run the stack.

        Args:
          x_BxNxM: inputs.
          mask: which keys each query attends to; cached keys first, see ``Attention``.
          positions_BxN: for the rotary embedding.
          condition_BxNxC: condition of adaLN-zero, or None.
          cache: keys and values (layers, B, R, H, K) of an earlier call, or None.

        Returns:
          (B, N, M); this call's keys and values (layers, B, N, H, K); and the output (B, N, M) of
          block ``hidden_layer`` or None.
        """
        hidden = mlp_width(x_BxNxM.shape[-1], self.mlp_ratio)
        policy, block = REMAT[self.remat], Block
        if policy is not None:
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        shallow = self.layers <= UNROLLED_LAYERS and policy is None
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.layers,
            unroll=self.layers if shallow else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        blocks = stack(
            self.heads, hidden, self.dtype, self.offset_radius, self.attention,
            self.hidden_layer > 0, self.dropout, name="blocks",
        )  # fmt: skip
        x_BxNxM = Dropout(self.dropout)(x_BxNxM.astype(activation_dtype(self.dtype)))
        x_BxNxM, (own, outputs) = blocks(x_BxNxM, cache, mask, positions_BxN, condition_BxNxC)
        hidden_BxNxM = outputs[self.hidden_layer - 1] if self.hidden_layer else None
        return RMSNorm(name="norm")(x_BxNxM), own, hidden_BxNxM
