"""Frozen teachers as the fused step sees them: features for every latent position of a batch.

A teacher is an open model (``decoder_lm``, ``encoder_lm``), which reads the text in tokens of its
own.

Shape letters: B rows, L tokens, N latents, T teacher tokens, H feature width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from ldlm_jax.errors import UserError
from ldlm_jax.models.kernels.splash import LANES
from ldlm_jax.models.lowering import Dtype
from ldlm_jax.pretrained import decoder_lm, encoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig
from ldlm_jax.pretrained.encoder_lm import EncoderConfig
from ldlm_jax.pretrained.load import Pretrained
from ldlm_jax.validate import Natural, fits_type


@dataclass(frozen=True)
class TeacherConfig:
    """Whose features the latents are aligned with; nobody's without a ``model``.

    Attributes:
      model: a named model (``pretrained.zoo``), a folder with ``config.json`` and safetensors, or
        a ``.gguf`` file.
      layer: hidden state of the model, 0 (embeddings) up to its number of blocks; negative ones
        count from the last. The third from last is TextLDM's choice (arXiv 2605.07748). Or several,
        whose features then stand side by side, each of unit mean square.
      dtype: in which the model is kept and computes.
      cached: read the model's features from what ``ldlm data --teacher`` wrote, instead of running
        it in the step.
      window: tokens of the model in a row; 0 allows a quarter more than the data's window.
      attention: of a causal model in the step: ``"xla"``, or ``"splash"``, the kernel for TPUs
        (``models.kernels.splash``).
    """

    model: str = ""
    layer: int | tuple[int, ...] = -3
    dtype: Dtype = "float32"
    cached: bool = False
    window: Natural = 0
    attention: Literal["xla", "splash"] = "xla"

    def __post_init__(self):
        if not self.layers or not all(fits_type(layer, int) for layer in self.layers):
            raise UserError(
                f"teacher.layer = {self.layer!r}: give a whole number, or several as (3, -3)."
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, one or several."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def tokens(self, window: int) -> int:
        """Teacher tokens beside a row of ``window`` tokens."""
        step = LANES if self.attention == "splash" else 8
        return self.window or -(-int(1.25 * window + 4) // step) * step


def carry_over(features_BxTxH, teacher_spans_BxTx2, spans_BxNx2) -> jax.Array:
    """Features (B, N, H) of positions: means over the teacher's tokens, weighted by common bytes.

    Positions that share no byte with any teacher token get zeros.
    """
    first, last = spans_BxNx2[..., 0, None], spans_BxNx2[..., 1, None]
    teacher_first, teacher_last = (teacher_spans_BxTx2[:, None, :, i] for i in (0, 1))
    common_BxNxT = jnp.minimum(last, teacher_last) - jnp.maximum(first, teacher_first)
    common_BxNxT = jnp.maximum(common_BxNxT, 0).astype(jnp.float32)
    total_BxNx1 = jnp.sum(common_BxNxT, axis=-1, keepdims=True)
    weights_BxNxT = common_BxNxT / jnp.maximum(total_BxNx1, 1)
    return jnp.einsum("bnt,bth->bnh", weights_BxNxT, features_BxTxH.astype(jnp.float32))


@dataclass(frozen=True)
class PretrainedTeacher:
    """Hidden layers of an open model. Hashable: a static argument.

    Attributes:
      config: the model's shape, cut above the highest layer.
      dtype: of its products.
      tokens_per_latent: of the student.
      layers: which, see ``decoder_lm.resolve_layers``.
      attention: see ``TeacherConfig``.
    """

    config: DecoderConfig | EncoderConfig
    dtype: str
    tokens_per_latent: int
    layers: tuple[int, ...] = (-1,)
    attention: str = "xla"

    @classmethod
    def of(cls, setting: TeacherConfig, model: Pretrained, tokens_per_latent: int):
        """The teacher that a config names, of weights that are there or only planned.

        Raises:
          UserError: the kernel was asked for, but the model is no causal one.
        """
        if setting.attention != "xla" and not isinstance(model.config, DecoderConfig):
            raise UserError(
                f"teacher.attention = {setting.attention!r} is for causal models; {setting.model} "
                "is an encoder: use 'xla'."
            )
        return cls(model.config, setting.dtype, tokens_per_latent, model.layers, setting.attention)

    @property
    def width(self) -> int:
        """Width H of the features, those of all layers together."""
        return self.config.width * len(self.layers)

    def features(self, params, batch: dict) -> jax.Array:
        """Features (B, N, H), no gradient, of a batch that ``AddTeacherTokens`` prepared."""
        run = partial(encoder_lm.hidden_states, config=self.config)
        if isinstance(self.config, DecoderConfig):
            run = partial(decoder_lm.hidden_states, config=self.config, attention=self.attention)
        states = run(
            params, batch["teacher_tokens"], batch["teacher_segments"], layers=self.layers,
            dtype=jnp.dtype(self.dtype),
        )  # fmt: skip
        if len(states) > 1:
            # Hidden states grow from block to block: the last would be all that counts.
            states = [x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) for x in states]
        hidden_BxTxH = jnp.concatenate(states, axis=-1)
        spans_BxLx2, step = batch["spans"], self.tokens_per_latent
        # Bytes of all tokens of a latent; a token without bytes stands at (0, 0).
        first_BxNxP, last_BxNxP = (
            spans_BxLx2[..., i].reshape(len(spans_BxLx2), -1, step) for i in (0, 1)
        )
        first_BxN = jnp.min(jnp.where(last_BxNxP > 0, first_BxNxP, 2**30), axis=-1)
        spans_BxNx2 = jnp.stack([first_BxN, jnp.max(last_BxNxP, axis=-1)], axis=-1)
        carried = carry_over(hidden_BxTxH, batch["teacher_spans"], spans_BxNx2)
        return jax.lax.stop_gradient(carried)
