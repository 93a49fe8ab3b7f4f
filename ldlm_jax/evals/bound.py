"""Nats a held-out token of a model that writes whole texts: a bound, as it has no exact value."""

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


@jit(static_argnames=("networks", "diffusion"))
def nats_of(
    params, latents, batch, key, length_nats_L, *, networks: Networks, diffusion: DiffusionConfig
):  # fmt: skip
    """Sums over a batch of both parts of the bound and of ``length_nats_L`` of each document's
    length, each with the number of tokens."""
    scored_BxL = batch["segments"] > 0
    rows = ScoredRow(
        batch["tokens"], batch["segments"], jnp.zeros_like(scored_BxL), scored_BxL
    )  # fmt: skip
    keys_B = jax.random.split(key, len(scored_BxL))
    parts = bound_parts(params, latents, rows, keys_B, networks=networks, diffusion=diffusion)
    # Each of a document's tokens bears an equal share of the cost of its length.
    lengths_BxL = jnp.maximum(document_lengths(batch["segments"]), 1)
    of_length_BxL = scored_BxL * length_nats_L[lengths_BxL] / lengths_BxL
    return [(jnp.sum(part), jnp.sum(scored_BxL)) for part in (*parts, of_length_BxL)]


def evaluate(context: EvalContext) -> Results:
    """``bound/nats``: at most so many nats a token, ends included, of a text of known length.

    It is the sum of ``bound/decoder``, what the decoder misses where noise is half the data, and
    ``bound/diffusion``, what the denoiser does until then (``sampling.likelihood``).
    ``bound/length`` is the cost of the length by the corpus' histogram: an autoregressive model's
    loss pays for it in its end tokens, so compare that loss with the sum of ``bound/nats`` and
    ``bound/length``.

    Raises:
      UserError: the model's likelihood is exact.
    """
    generator = context.generator
    if is_exact(generator.diffusion):
        raise UserError("a model of blocks with a token posterior is exact: use evaluator context.")
    # Every length may come, if only one of the corpus' documents in so many has it.
    counts_L = np.asarray(generator.lengths) + 1.0
    length_nats_L = -np.log(counts_L / counts_L.sum())
    decoder, diffusion, length = context.mean_over_batches(nats_of, length_nats_L)
    return {
        "bound/nats": decoder + diffusion,
        "bound/decoder": decoder,
        "bound/diffusion": diffusion,
        "bound/length": length,
    }
