"""The baselines' network: it reads tokens and returns logits, with or without a cache.

It is the transformer of the DiT, without latents and times. With a causal mask it is an
autoregressive model. With a mask over the whole document, and masked tokens among its inputs, it is
a masked diffusion model (Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language
Models"). That model needs no time either.

Shape letters: B rows, N tokens, R cached tokens, M width, V vocabulary.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.layers import Dense, Transformer
from ldlm_jax.models.masks import denoising_mask
from ldlm_jax.models.token_layout import TokenLayout


class Cache(NamedTuple):
    """Keys and values of earlier tokens.

    Attributes:
      keys_and_values: each (layers, B, R, heads, head width).
      layout: of these tokens.
    """

    keys_and_values: tuple[jax.Array, jax.Array]
    layout: TokenLayout

    def put(self, keys_and_values: tuple[jax.Array, jax.Array], index) -> "Cache":
        """The cache with these keys and values from position ``index`` on."""
        updated = jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
                whole, new.astype(whole.dtype), index, axis=2
            ),
            self.keys_and_values, keys_and_values,
        )  # fmt: skip
        return self._replace(keys_and_values=updated)


class Prediction(NamedTuple):
    """What a ``TokenTransformer`` returns.

    Attributes:
      logits_BxNxV: fp32.
      keys_and_values: of the tokens of this call, for a ``Cache``.
      hidden_BxNxM: output of block ``hidden_layer``; None without one.
    """

    logits_BxNxV: jax.Array
    keys_and_values: tuple[jax.Array, jax.Array]
    hidden_BxNxM: jax.Array | None


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
      hidden_layer: block (from 1) whose output is returned as well; 0 for none.
      dropout: see ``layers.Transformer``.
    """

    vocab_size: int
    width: int = 256
    heads: int = 4
    layers: int = 6
    mlp_ratio: float = 2.5
    dtype: str = "float32"
    offset_radius: int = 0
    hidden_layer: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens_BxN, layout: TokenLayout, cache: Cache | None = None) -> Prediction:
        """Predict tokens.

        Args:
          tokens_BxN: token ids.
          layout: with blocks of one token (``token_layout(segments, 1)``) the model is causal;
            without blocks it attends to whole documents.
          cache: of the tokens before these. Each token of this call then attends to the cache and
            to itself.
        """
        dtype = jnp.dtype(self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        table_VxM = self.param("embed", init, (self.vocab_size, self.width), jnp.float32)
        mask = denoising_mask(layout, cache.layout if cache else None)
        trunk = Transformer(
            self.layers, self.heads, self.mlp_ratio, dtype, offset_radius=self.offset_radius,
            hidden_layer=self.hidden_layer, dropout=self.dropout, name="trunk",
        )  # fmt: skip
        x_BxNxM = jnp.take(table_VxM, tokens_BxN, axis=0)
        x_BxNxM, own, hidden_BxNxM = trunk(
            x_BxNxM, mask, layout.positions_BxN, cache=cache.keys_and_values if cache else None
        )
        logits = Dense(self.vocab_size, ("embed", "vocab"), dtype, name="head")(x_BxNxM)
        return Prediction(logits.astype(jnp.float32), own, hidden_BxNxM)


def empty_cache(model: TokenTransformer, params: dict, layout: TokenLayout) -> Cache:
    """A cache of zeros for the tokens of a layout, in the dtype that the model computes in."""
    tokens_BxN = jnp.zeros_like(layout.segment_ids_BxN)
    prediction = jax.eval_shape(model.apply, {"params": params}, tokens_BxN, layout)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, model.dtype), prediction.keys_and_values)
    return Cache(zeros, layout)
