"""A batch laid out for the losses: which latents are observed, and where each stands.

Shape letters: B rows, L tokens, N latents.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.conditioning import draw_observed
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.models.denoiser import latent_layout, latent_segments
from ldlm_jax.models.dit import GENERATED, HIDDEN, OBSERVED
from ldlm_jax.models.networks import Networks
from ldlm_jax.models.token_layout import TokenLayout, positions_in


class Batch(NamedTuple):
    """A batch laid out.

    Attributes:
      tokens_BxL: the tokens.
      valid_BxL: which of them are text.
      observed_BxN: latents that are given beforehand.
      single_B: rows of single-token blocks, or None for no such rows.
      layout: where each latent stands.
    """

    tokens_BxL: jax.Array
    valid_BxL: jax.Array
    observed_BxN: jax.Array
    single_B: jax.Array | None
    layout: TokenLayout

    @property
    def valid_BxN(self) -> jax.Array:
        """Which latents are of text."""
        return self.layout.in_document_BxN

    def conditioning(self, key, hide: float) -> jax.Array:
        """Conditioning (B, N); in a share ``hide`` of the rows the observed part is hidden."""
        hidden_Bx1 = jax.random.bernoulli(key, hide, (len(self.observed_BxN), 1))
        observed_BxN = jnp.where(hidden_Bx1, HIDDEN, OBSERVED)
        return jnp.where(self.observed_BxN, observed_BxN, GENERATED)


def lay_out(
    key, batch: dict, networks: Networks, config: DiffusionConfig, language_model: bool = False
) -> Batch:
    """Draw what is observed and which rows have single-token blocks.

    Args:
      key: random key.
      batch: ``tokens`` and ``segments`` (B, L), int32.
      networks: the networks.
      config: how often what is observed.
      language_model: nothing is observed, and every latent is a block of its own.
    """
    chex.assert_rank([batch["tokens"], batch["segments"]], 2)
    chex.assert_equal_shape([batch["tokens"], batch["segments"]])
    segments_BxL = batch["segments"]
    segments_BxN = latent_segments(segments_BxL, networks)
    single_B, share = None, config.single_token_blocks
    if language_model:
        observed_BxN, share = jnp.zeros(segments_BxN.shape, bool), 1.0
    else:
        positions_BxN = positions_in(segments_BxN)
        observed_BxN = draw_observed(key, segments_BxN, positions_BxN, config.observed)
    if share:
        single_key = jax.random.fold_in(key, 1)
        single_B = jax.random.bernoulli(single_key, share, (len(segments_BxL),))
    layout = latent_layout(segments_BxL, networks, config, observed_BxN, single_B)
    return Batch(batch["tokens"], segments_BxL > 0, observed_BxN, single_B, layout)
