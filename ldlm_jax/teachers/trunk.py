"""A teacher of our own: the frozen encoder of an earlier run, trained as a masked language model.

A run whose only loss is reconstruction from heavily masked tokens (``configs/web_masked_lm.py``)
is a masked language model with a bottleneck; the features of its encoder's trunk are what another
run's latents can be aligned with. Same tokenizer, hence position by position.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.models.places import lay_out
from ldlm_jax.models.text_vae import TextVAE


@dataclass(frozen=True)
class TeacherConfig:
    """Whose features the latents are aligned with.

    Attributes:
      run: folder of a finished run with the same tokenizer and tokens_per_latent; empty for none.
    """

    run: str = ""


@dataclass(frozen=True)
class TrunkTeacher:
    """The frozen encoder of a run."""

    vae: TextVAE
    params: dict

    @property
    def width(self) -> int:
        """Width H of its features."""
        return self.vae.width

    def features(self, batch: dict) -> jax.Array:
        """Features (B, N, H) of every latent position, seeing whole documents, no gradient."""
        return _features(self.params, batch["tokens"], batch["segments"], vae=self.vae)


@partial(jax.jit, static_argnames="vae")
def _features(params, tokens_BxL, segments_BxL, *, vae: TextVAE) -> jax.Array:
    segments_BxN = segments_BxL[:, :: vae.tokens_per_latent]
    nothing_known = jnp.zeros(segments_BxN.shape, bool)
    posterior = vae.apply(
        {"params": params}, tokens_BxL, lay_out(segments_BxN), nothing_known, method="encode"
    )
    return jax.lax.stop_gradient(posterior.features_BxNxM)
