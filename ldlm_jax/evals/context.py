"""What the text before tells of a token: cross-entropy of held-out text in pure noise."""

from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import PAD
from ldlm_jax.denoiser import Denoiser, places_of
from ldlm_jax.diffusion import path
from ldlm_jax.diffusion_config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.train_state import Models

# Where what was written earlier in the same block stands: nearly clean.
WRITTEN = 0.1


@partial(jax.jit, static_argnames=("models", "diffusion"))
def nats_at(params, latents, batch, key, turn, *, models: Models, diffusion: DiffusionConfig):
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
    """
    places = places_of(batch["segments"], models, diffusion)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    shape = places.segments_BxN.shape
    z_0_BxNxD = denoiser.encode(batch["tokens"], places, jnp.zeros(shape, bool))
    place_BxN = places.positions_BxN % diffusion.block_size
    t_BxN = jnp.where(place_BxN < turn, WRITTEN, 1.0)
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(key, z_0_BxNxD.shape), t_BxN)
    said = denoiser(
        z_t_BxNxD, t_BxN, jnp.full(shape, UNKNOWN), jnp.zeros_like(z_0_BxNxD), places,
        denoiser.remember(z_0_BxNxD, jnp.full(shape, KNOWN), places), batch["tokens"],
    )  # fmt: skip
    # What fills a text's last block up is no part of it, and no feat to tell.
    asked_BxN = ((place_BxN == turn) | (turn < 0)) & (batch["tokens"] != PAD)
    return jnp.sum(said.scores.loss_BxL * asked_BxN), jnp.sum(asked_BxN)


def evaluate(context: EvalContext) -> Results:
    """Nats a token, ends included, of a model with blocks and ``diffusion.token_posterior``.

    ``context/nats``: one place of a block after the other, each after the clean text before it, as
    an autoregressive model reads; its loss is the number to compare with. ``context/nats_at_once``:
    all places of a block from pure noise; what lies between the two is what the steps of the
    sampler must find out. ``context/nats_blocks_of_one``: with every latent a block of its own.

    Raises:
      UserError: the model writes whole texts, or is no model of tokens.
    """
    writer, diffusion = context.writer, context.writer.diffusion
    if not (diffusion.block_size and diffusion.token_posterior):
        raise UserError(
            "evaluator context needs a model with diffusion.block_size and "
            "diffusion.token_posterior; leave it out."
        )
    ways = {
        "nats": (writer, range(diffusion.block_size)),
        "nats_at_once": (writer, (-1,)),
        "nats_blocks_of_one": (writer.in_blocks(1), (-1,)),
    }
    results = {}
    for name, (asked, turns) in ways.items():
        sums = [
            nats_at(
                asked.params, asked.latents, batch, jax.random.fold_in(context.key, i), turn,
                models=asked.models, diffusion=asked.diffusion,
            )
            for i, batch in enumerate(context.batches)
            for turn in turns
        ]  # fmt: skip
        nats, count = (float(sum(x)) for x in zip(*sums, strict=True))
        results[f"context/{name}"] = nats / count
    return results
