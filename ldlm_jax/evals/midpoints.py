"""Texts halfway between two texts: is the space between latents of text also text?

Shape letters: B rows, L tokens, N latents, D latent channels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.denoiser import Denoiser, places_of
from ldlm_jax.diffusion_config import DiffusionConfig
from ldlm_jax.generate import Writer
from ldlm_jax.outline import Outline
from ldlm_jax.train_state import Models

_ROWS = 64


@partial(jax.jit, static_argnames=("models", "diffusion"))
def _encode(params, latents, tokens_BxL, segments_BxL, *, models: Models, diffusion):
    places = places_of(segments_BxL, models, diffusion)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    z_BxNxD = denoiser.encode(tokens_BxL, places, jnp.zeros(places.segments_BxN.shape, bool))
    return jnp.where(places.segments_BxN[..., None] > 0, z_BxNxD, 0.0)


@partial(jax.jit, static_argnames=("models", "diffusion"))
def _decode(params, latents, z_BxNxD, segments_BxL, *, models, diffusion: DiffusionConfig):
    places = places_of(segments_BxL, models, diffusion)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    return jnp.argmax(denoiser.token_logits(z_BxNxD, jnp.zeros(z_BxNxD.shape[:2]), places), -1)


def decode_midpoints(writer: Writer, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each text decoded from its own latents, and from midpoints with those of its neighbour.

    The neighbour is the text with the nearest latents, place by place, where a text has none as
    zeros; the midpoint has the text's own length. MAUVE of the latter is iMAUVE, which in one study
    told generation quality beforehand where reconstruction did not.

    Args:
      writer: the model.
      texts: at least two that fit its window.
    """
    per_latent = writer.models.vae.tokens_per_latent
    shape = writer.window, 0, writer.block_tokens, per_latent
    rows = [Outline.of((text,), writer.tokenizer).lay_out(*shape) for text in texts]
    tokens, segments = (np.stack(x) for x in ([r.tokens_L for r in rows],
                                              [r.segments_L for r in rows]))  # fmt: skip
    run = {"models": writer.models, "diffusion": writer.diffusion}

    def by_rows(function, array) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), _ROWS):
            part = slice(start, start + _ROWS)
            missing = _ROWS - len(array[part])
            own, of_row = (np.pad(x[part], [(0, missing)] + [(0, 0)] * (x.ndim - 1))
                           for x in (array, segments))  # fmt: skip
            done = function(writer.params, writer.latents, own, of_row, **run)
            parts.append(np.asarray(done)[: _ROWS - missing])
        return np.concatenate(parts)

    z = by_rows(_encode, tokens)
    flat = z.reshape(len(z), -1)
    square = np.sum(flat**2, axis=1)
    distance = square[:, None] + square[None] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    other = z[np.argmin(distance, axis=1)]
    # Where the neighbour has ended the text stays its own.
    between = np.where(np.any(other, axis=-1, keepdims=True), (z + other) / 2, z)

    def read(latents) -> list[str]:
        ids = by_rows(_decode, latents)
        ends = segments.sum(1)
        return [writer.tokenizer.decode(row[:end]) for row, end in zip(ids, ends, strict=True)]

    return read(z), read(between)
