"""What of the student is aligned with a teacher's features, and how likeness is measured.

Shape letters: B rows, N latents, H feature width.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.errors import UserError
from ldlm_jax.models.layers import Dense

SITES = ("encoder", "latents", "dit", "reading")
# Those that are a block of the denoiser.
IN_DIT = ("dit", "reading")
PROJECTIONS = ("linear", "mlp")


@dataclass(frozen=True)
class AlignmentConfig:
    """How the student is aligned with its teacher; the weight stands in the phases.

    Attributes:
      site: ``"encoder"``: features of the encoder's trunk (TextLDM, arXiv 2605.07748);
        ``"latents"``: the posterior's means; ``"dit"``: a block of the denoiser, which reads noisy
        latents (REPA: Yu et al. 2024, arXiv 2410.06940); ``"reading"``: the same block when it
        reads the clean text that a model with blocks remembers. What it is asked to foretell, a
        causal teacher knows.
      block: with the last two, after which block of the DiT, from 1.
      projection: from the student's width to the teacher's: ``"linear"``, or ``"mlp"`` with two
        hidden layers.
    """

    site: str = "encoder"
    block: int = 2
    projection: str = "linear"

    def __post_init__(self):
        for name, known in (("site", SITES), ("projection", PROJECTIONS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"alignment.{name} = {getattr(self, name)!r}: choose one of {', '.join(known)}."
                )
        if self.block < 1:
            raise UserError(f"alignment.block = {self.block}: blocks count from 1.")


class Projection(nn.Module):
    """From the student's features to the teacher's width."""

    width: int
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x (..., in)`` to ``(..., width)``, fp32."""
        for i in range(2 if self.kind == "mlp" else 0):
            x = nn.silu(Dense(self.width, ("embed", "mlp"), name=f"hidden_{i}")(x))
        return Dense(self.width, ("embed", "feature"), name="output")(x)


def alignment_loss(mapped_BxNxH, teacher_BxNxH, segments_BxN) -> jax.Array:
    """One minus the cosine of two sets of features, mean over positions that the teacher has.

    Args:
      mapped_BxNxH: the student's, projected.
      teacher_BxNxH: the teacher's; zeros where it has none. Each channel is brought to mean 0 and
        variance 1 over these positions.
      segments_BxN: document number, 0 for empty space.
    """
    mapped, teacher = mapped_BxNxH.astype(jnp.float32), teacher_BxNxH.astype(jnp.float32)
    valid_BxN = (segments_BxN > 0) & jnp.any(teacher != 0, axis=-1)
    teacher = _standardised(teacher, valid_BxN)
    loss_BxN = 1 - optax.cosine_similarity(mapped, teacher, epsilon=1e-6)
    return masked_mean(loss_BxN, valid_BxN)


def _standardised(x_BxNxH, valid_BxN) -> jax.Array:
    # A few channels of a language model's hidden states are a hundred times as large as others and
    # nearly constant (Sun et al. 2024, "Massive Activations"): to a cosine they would be all.
    valid_BxNx1 = valid_BxN[..., None]
    count = jnp.maximum(jnp.sum(valid_BxN), 1)
    mean_H = jnp.sum(jnp.where(valid_BxNx1, x_BxNxH, 0), axis=(0, 1)) / count
    centred_BxNxH = jnp.where(valid_BxNx1, x_BxNxH - mean_H, 0)
    variance_H = jnp.sum(jnp.square(centred_BxNxH), axis=(0, 1)) / count
    return centred_BxNxH * jax.lax.rsqrt(variance_H + 1e-6)
