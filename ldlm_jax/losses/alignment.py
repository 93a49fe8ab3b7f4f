"""Alignment with a teacher's features.

Shape letters: B rows, N latents, H feature width.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.diffusion.objective import masked_mean

# Sites that are a block of the denoiser.
IN_DIT = ("dit", "clean_pass")


@dataclass(frozen=True)
class AlignmentConfig:
    """What of the student is aligned with its teacher; the weight stands in the phases.

    Attributes:
      site: ``"encoder"``: features of the encoder's trunk (TextLDM, arXiv 2605.07748);
        ``"latents"``: the posterior's means; ``"dit"``: a block of the denoiser, on noisy latents
        (REPA: Yu et al. 2024, arXiv 2410.06940); ``"clean_pass"``: the same block in the prefill of
        a model with blocks. What that is to predict, a causal teacher knows.
      block: with the last two, after which block of the DiT, from 1.
      projection: from the student's width to the teacher's: ``"linear"``, or ``"mlp"`` with two
        hidden layers.
    """

    site: Literal["encoder", "latents", "dit", "clean_pass"] = "encoder"
    block: Annotated[int, "[1, inf)"] = 2
    projection: Literal["linear", "mlp"] = "linear"


def alignment_loss(mapped_BxNxH, teacher_BxNxH, segments_BxN) -> jax.Array:
    """One minus the cosine of two sets of features, mean over positions that the teacher has.

    Args:
      mapped_BxNxH: the student's, projected.
      teacher_BxNxH: the teacher's; zeros where it has none. Each channel is brought to mean 0 and
        variance 1 over the others.
      segments_BxN: document number, 0 for empty space.
    """
    mapped, teacher = mapped_BxNxH.astype(jnp.float32), teacher_BxNxH.astype(jnp.float32)
    valid_BxN = (segments_BxN > 0) & jnp.any(teacher != 0, axis=-1)
    cosine_BxN = optax.cosine_similarity(mapped, _standardised(teacher, valid_BxN), epsilon=1e-6)
    return masked_mean(1 - cosine_BxN, valid_BxN)


def _standardised(x_BxNxH, valid_BxN) -> jax.Array:
    # A few channels of a language model's hidden states are a hundred times as large as others and
    # nearly constant (Sun et al. 2024, "Massive Activations"): to a cosine they would be all.
    valid_BxNx1 = valid_BxN[..., None]
    count = jnp.maximum(jnp.sum(valid_BxN), 1)
    mean_H = jnp.sum(jnp.where(valid_BxNx1, x_BxNxH, 0), axis=(0, 1)) / count
    centred_BxNxH = jnp.where(valid_BxNx1, x_BxNxH - mean_H, 0)
    variance_H = jnp.sum(jnp.square(centred_BxNxH), axis=(0, 1)) / count
    return centred_BxNxH * jax.lax.rsqrt(variance_H + 1e-6)
