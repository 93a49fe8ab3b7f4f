"""The baselines' network: tokens in, logits out, one token after another or all at once.

The same transformer as the DiT's, without latents or times. Seen causally it is an autoregressive
model; seen from both sides, with masked tokens among its inputs, a masked diffusion model (Sahoo et
al. 2024, "Simple and Effective Masked Diffusion Language Models"), which needs no time either.

Shape letters: B rows, N tokens, M width, V vocabulary.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.layers import Dense, Transformer
from ldlm_jax.models.token_layout import Places, see_memory_and_own_block, see_up_to_block


class Cache(NamedTuple):
    """Keys and values (layers, B, R, heads, head width) of earlier tokens, and their places."""

    keys_and_values: tuple[jax.Array, jax.Array]
    places: Places


class Prediction(NamedTuple):
    """What a ``TokenTransformer`` says of its tokens.

    Attributes:
      logits_BxNxV: of the tokens asked for, fp32.
      keys_and_values: of this call, for a ``Cache``.
      tapped_BxNxM: what came out of block ``tap``; None without one.
    """

    logits_BxNxV: jax.Array
    keys_and_values: tuple[jax.Array, jax.Array]
    tapped_BxNxM: jax.Array | None


class TokenTransformer(nn.Module):
    """Logits of tokens.

    Attributes:
      vocab_size: tokens V, special tokens included.
      width: model width M.
      heads: attention heads; the head width must be even.
      layers: transformer blocks.
      mlp_ratio: feed-forward width over model width.
      dtype: compute dtype, ``"float32"`` or ``"bfloat16"``.
      offset_radius: see ``DiT``.
      tap: see ``layers.Transformer``.
      dropout: see ``layers.Transformer``.
    """

    vocab_size: int
    width: int = 256
    heads: int = 4
    layers: int = 6
    mlp_ratio: float = 2.5
    dtype: str = "float32"
    offset_radius: int = 0
    tap: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens_BxN, places: Places, cache: Cache | None = None) -> Prediction:
        """Say what is to be expected.

        Args:
          tokens_BxN: token ids.
          places: where each stands. With blocks of one token (``lay_out(segments, 1)``) the model
            is causal, without blocks it sees whole documents.
          cache: of tokens before these; then of this call's each sees itself alone.
        """
        dtype = jnp.dtype(self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        table_VxM = self.param("embed", init, (self.vocab_size, self.width), jnp.float32)
        sight, remembered = see_up_to_block(places), None
        if cache is not None:
            sight = see_memory_and_own_block(places, cache.places)
            remembered = cache.keys_and_values
        trunk = Transformer(
            self.layers, self.heads, self.mlp_ratio, dtype,
            offset_radius=self.offset_radius, tap=self.tap, dropout=self.dropout, name="trunk",
        )  # fmt: skip
        x_BxNxM = jnp.take(table_VxM, tokens_BxN, axis=0)
        x_BxNxM, own, tapped_BxNxM = trunk(x_BxNxM, sight, places.positions_BxN, memory=remembered)
        logits = Dense(self.vocab_size, ("embed", "vocab"), dtype, name="head")(x_BxNxM)
        return Prediction(logits.astype(jnp.float32), own, tapped_BxNxM)
