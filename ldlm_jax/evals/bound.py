"""Nats a held-out token of a model that writes whole texts: a bound, as it has no exact value."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.diffusion.conditioning import document_lengths
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import Networks
from ldlm_jax.sampling.likelihood import ScoredRow, bound_parts, is_exact

# Noise over data where the decoder may take over.
RATIOS = (0.125, 0.25, 0.5, 1.0, 2.0)


@jit(static_argnames=("networks", "diffusion"))
def nats_of(
    params, latents, batch, key, length_nats_L, *, networks: Networks, diffusion: DiffusionConfig
):  # fmt: skip
    """Sums over a batch, each with the number of tokens: of ``length_nats_L`` of each document's
    length, and of both parts of the bound for each of ``RATIOS``."""
    scored_BxL = batch["segments"] > 0
    rows = ScoredRow(batch["tokens"], batch["segments"], jnp.zeros_like(scored_BxL), scored_BxL)
    keys_B = jax.random.split(key, len(scored_BxL))
    parts = bound_parts(
        params, latents, rows, keys_B, networks=networks, diffusion=diffusion, ratios=RATIOS
    )
    length = cost_of_lengths(batch["segments"], length_nats_L)
    sums = [length, *(jnp.sum(part_B) for part_RxB in parts for part_B in part_RxB)]
    return [(value, jnp.sum(scored_BxL)) for value in sums]


def length_nats(histogram: Sequence[int]) -> np.ndarray:
    """What each length costs: nats by the number of documents that have it."""
    # Every length may come, if only one of the corpus' documents in so many has it.
    counts_L = np.asarray(histogram) + 1.0
    return -np.log(counts_L / counts_L.sum())


def cost_of_lengths(segments_BxL: jax.Array, length_nats_L) -> jax.Array:
    """The sum over documents of ``length_nats_L`` of their lengths."""
    # Each of a document's tokens bears an equal share.
    lengths_BxL = jnp.maximum(document_lengths(segments_BxL), 1)
    return jnp.sum((segments_BxL > 0) * jnp.asarray(length_nats_L)[lengths_BxL] / lengths_BxL)


def evaluate(context: EvalContext) -> Results:
    """``bound/nats``: at most so many nats a token, ends included, of a text of known length.

    It is the sum of ``bound/decoder``, what the decoder misses of latents with noise of the size
    ``bound/noise``, and ``bound/diffusion``, what the denoiser does until then
    (``sampling.likelihood``). Of several such sizes it is the one with the least sum: where latents
    hold more than the text needs, the decoder had better take over early.

    ``bound/length`` is the cost of the length by the corpus' histogram: an autoregressive model's
    loss pays for it in its end tokens, so compare that loss with the sum of ``bound/nats`` and
    ``bound/length``.

    Raises:
      UserError: the model's likelihood is exact.
    """
    generator = context.generator
    if is_exact(generator.diffusion):
        raise UserError("a model of blocks with a token posterior is exact: use evaluator context.")
    length, *parts = context.mean_over_batches(nats_of, length_nats(generator.lengths))
    decoder_R, diffusion_R = np.reshape(parts, (2, len(RATIOS)))
    best = int(np.argmin(decoder_R + diffusion_R))
    return {
        "bound/nats": float(decoder_R[best] + diffusion_R[best]),
        "bound/decoder": float(decoder_R[best]),
        "bound/diffusion": float(diffusion_R[best]),
        "bound/noise": RATIOS[best],
        "bound/length": length,
    }
