"""What the text before tells of a token: cross-entropy of held-out text in pure noise."""

from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import PAD
from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, places_of, segments_of
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.models.token_layout import positions_of
from ldlm_jax.train_state import Models

# Where what was written earlier in the same block stands: nearly clean.
WRITTEN = 0.1


@partial(jax.jit, static_argnames=("models", "diffusion", "hole"))
def nats_at(
    params, latents, batch, key, turn, *, models: Models, diffusion: DiffusionConfig, hole: int = 0
):  # fmt: skip
    """Summed cross-entropy of the tokens whose turn it is, and their number.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      batch: ``tokens`` and ``segments`` (B, L).
      key: random key.
      turn: place in the block, of which those before are written and the rest is pure noise; below
        0 it is every place's turn, and nothing is written.
      models: the networks.
      diffusion: how the denoiser was trained, and in which blocks it is asked.
      hole: give all of a text but so many latents in its middle, and ask for them alone; 0 gives
        nothing that comes later.
    """
    segments_BxN = segments_of(batch["segments"], models)
    known_BxN = jnp.zeros(segments_BxN.shape, bool)
    if hole:
        known_BxN = ~_middle(segments_BxN, hole) & (segments_BxN > 0)
    places = places_of(batch["segments"], models, diffusion, known_BxN)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    z_0_BxNxD = denoiser.encode(batch["tokens"], places, known_BxN)
    place_BxN = places.positions_BxN % diffusion.block_size
    t_BxN = jnp.where(known_BxN, 0.0, jnp.where(place_BxN < turn, WRITTEN, 1.0))
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(key, z_0_BxNxD.shape), t_BxN)
    said = denoiser(
        z_t_BxNxD, t_BxN, jnp.where(known_BxN, KNOWN, UNKNOWN), jnp.zeros_like(z_0_BxNxD), places,
        denoiser.remember(z_0_BxNxD, jnp.full(known_BxN.shape, KNOWN), places), batch["tokens"],
    )  # fmt: skip
    # What fills a text's last block up is no part of it, and no feat to tell.
    asked_BxN = ((place_BxN == turn) | (turn < 0)) & ~known_BxN & (batch["tokens"] != PAD)
    return jnp.sum(said.scores.loss_BxL * asked_BxN), jnp.sum(asked_BxN)


def _middle(segments_BxN, size: int):
    """True in the middle one of a document's blocks of ``size``, if it has three or more."""
    same_BxNxN = segments_BxN[:, :, None] == segments_BxN[:, None, :]
    blocks_BxN = jnp.sum(same_BxNxN, axis=-1) // size
    return (positions_of(segments_BxN) // size == blocks_BxN // 2) & (blocks_BxN > 2)


def evaluate(context: EvalContext) -> Results:
    """Nats a token, ends included, of a model with blocks and ``diffusion.token_posterior``.

    ``context/nats``: one place of a block after the other, each after the clean text before it, as
    an autoregressive model reads; its loss is the number to compare with. ``context/nats_at_once``:
    all places of a block from pure noise; what lies between the two is what the steps of the
    sampler must find out. ``context/nats_blocks_of_one``: with every latent a block of its own.

    Of a model that fills holes also ``context/nats_hole`` and ``context/nats_hole_blocks_of_one``:
    the middle block of a text of which all else is given, one place after the other.

    Raises:
      UserError: the model writes whole texts, or is no model of tokens.
    """
    writer, diffusion = context.writer, context.writer.diffusion
    if not (diffusion.block_size and diffusion.token_posterior):
        raise UserError(
            "evaluator context needs a model with diffusion.block_size and "
            "diffusion.token_posterior; leave it out."
        )
    size, single = diffusion.block_size, writer.in_blocks(1)
    ways = {
        "nats": (writer, range(size), 0),
        "nats_at_once": (writer, (-1,), 0),
        "nats_blocks_of_one": (single, (-1,), 0),
    }
    if diffusion.fills_holes:
        ways["nats_hole"] = writer, range(size), size
        ways["nats_hole_blocks_of_one"] = single, (-1,), size
    results = {}
    for name, (asked, turns, hole) in ways.items():
        sums = [
            nats_at(
                asked.params, asked.latents, batch, jax.random.fold_in(context.key, i), turn,
                models=asked.models, diffusion=asked.diffusion, hole=hole,
            )
            for i, batch in enumerate(context.batches)
            for turn in turns
        ]  # fmt: skip
        nats, count = (float(sum(x)) for x in zip(*sums, strict=True))
        if count:  # no held-out text may be long enough for a hole
            results[f"context/{name}"] = nats / count
    return results
