"""What the text before tells of a token: cross-entropy of held-out text in pure noise."""

import math

import jax
import jax.numpy as jnp

from ldlm_jax.data.special_ids import PAD
from ldlm_jax.diffusion.conditioning import document_lengths
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, latent_layout, latent_segments
from ldlm_jax.models.dit import GENERATED, OBSERVED, NoisyInputs
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import Networks
from ldlm_jax.models.token_layout import positions_in

# The time at which what was generated earlier in the same block stands: nearly clean.
GENERATED_TIME = 0.1


@jit(static_argnames=("networks", "diffusion", "hole"))
def nats_at(
    params, latents, batch, key, turn, *, networks: Networks, diffusion: DiffusionConfig,
    hole: int = 0,
):  # fmt: skip
    """Summed cross-entropy of the tokens whose turn it is, and their number.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      batch: ``tokens`` and ``segments`` (B, L).
      key: random key.
      turn: place in the block, of which those before are nearly clean and the rest is pure noise;
        below 0 it is every place's turn, and all is noise.
      networks: the networks.
      diffusion: how the denoiser was trained, and in which blocks it is asked.
      hole: observe all of a text but so many latents in its middle, and score them alone; 0
        observes nothing that comes later.
    """
    segments_BxN = latent_segments(batch["segments"], networks)
    observed_BxN = jnp.zeros(segments_BxN.shape, bool)
    if hole:
        observed_BxN = ~_middle(segments_BxN, hole) & (segments_BxN > 0)
    layout = latent_layout(batch["segments"], networks, diffusion, observed_BxN)
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    z_0_BxNxD = denoiser.encode(batch["tokens"], layout, observed_BxN)
    place_BxN = layout.positions_BxN % diffusion.block_size
    t_BxN = jnp.where(place_BxN < turn, GENERATED_TIME, 1.0)
    t_BxN = jnp.where(observed_BxN, 0.0, t_BxN)
    noise_BxNxD = jax.random.normal(key, z_0_BxNxD.shape)
    z_t_BxNxD = diffusion.noise.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
    cache = denoiser.prefill(z_0_BxNxD, jnp.full(observed_BxN.shape, OBSERVED), layout).cache
    conditioning_BxN = jnp.where(observed_BxN, OBSERVED, GENERATED)
    blank_BxNxD = jnp.zeros_like(z_0_BxNxD)
    inputs = NoisyInputs(z_t_BxNxD, t_BxN, conditioning_BxN, blank_BxNxD, layout)
    prediction = denoiser.denoise(inputs, cache, batch["tokens"])
    # What fills a text's last block up is no part of it, and easily predicted.
    scored_BxN = ((place_BxN == turn) | (turn < 0)) & ~observed_BxN & (batch["tokens"] != PAD)
    return jnp.sum(prediction.metrics.loss_BxL * scored_BxN), jnp.sum(scored_BxN)


def _middle(segments_BxN, size: int):
    """True in the middle one of a document's blocks of ``size``, if it has three or more."""
    blocks_BxN = document_lengths(segments_BxN) // size
    return (positions_in(segments_BxN) // size == blocks_BxN // 2) & (blocks_BxN > 2)


def evaluate(context: EvalContext) -> Results:
    """Nats a token, ends included, of a model with blocks and ``diffusion.token_posterior``.

    ``context/nats``: one place of a block after the other, each after the clean text before it, as
    an autoregressive model reads; its loss is the number to compare with. ``context/nats_at_once``:
    all places of a block from pure noise; what lies between the two is what the steps of the
    sampler must find out. ``context/nats_blocks_of_one``: with every latent a block of its own.

    Of a model that infills also ``context/nats_hole`` and ``context/nats_hole_blocks_of_one``: the
    middle block of a text of which all else is observed, one place after the other.

    Raises:
      UserError: the model generates whole texts, or has no token posterior.
    """
    generator, diffusion = context.generator, context.generator.diffusion
    if not (diffusion.block_size and diffusion.token_posterior):
        raise UserError(
            "evaluator context needs a model with diffusion.block_size and "
            "diffusion.token_posterior; leave it out."
        )
    size, single = diffusion.block_size, generator.in_blocks(1)
    ways = {
        "nats": (generator, range(size), 0),
        "nats_at_once": (generator, (-1,), 0),
        "nats_blocks_of_one": (single, (-1,), 0),
    }
    if diffusion.infills:
        ways["nats_hole"] = generator, range(size), size
        ways["nats_hole_blocks_of_one"] = single, (-1,), size
    results = {}
    for name, (asked, turns, hole) in ways.items():

        def all_turns(*args, turns=turns, hole=hole, **static):
            sums = [nats_at(*args, turn, hole=hole, **static) for turn in turns]
            return [tuple(map(sum, zip(*sums, strict=True)))]

        (nats,) = context.mean_over_batches(all_turns, generator=asked)
        if not math.isnan(nats):  # no held-out text may be long enough for a hole
            results[f"context/{name}"] = nats
    return results
