"""Log-likelihood of given text: exact for blocks of one token, else a Monte-Carlo bound.

A model with blocks and a token posterior predicts each token from the clean text before it; the
product over a text is its exact probability under single-token blocks. Of every other model only a
lower bound can be had:

    log p(x) >= E log p(x | z_t) - KL(q(z_t | x) || p(z_t))

with t where noise is half the data; the first part is the decoder's, the second the denoiser's
(``diffusion.bound``).

Shape letters: B rows, L tokens, N latents, V vocabulary, K likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.diffusion.bound import diffusion_nats
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.rows import row_keys, row_noise
from ldlm_jax.errors import UserError
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.dit import GENERATED, OBSERVED, NoisyInputs
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import LatentStats, Networks
from ldlm_jax.parallel.sharding import replicate, row_multiple
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.rerank import one_by_one

# Noise over data where the decoder takes over from the denoiser. One for all texts of all models,
# so that a text's value does not depend on what is scored beside it.
RATIOS = (0.5,)
# Evaluations of the denoiser in one draw of the bound.
TIMES = 8
# Likeliest tokens that are kept at each position.
TOP = 5


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a text, in nats.

    Attributes:
      log_likelihood: of its tokens after what was given: exact, or a lower bound.
      standard_error: of the bound's estimate; 0 where exact.
      tokens: the scored token ids.
      exact: whether it is the model's own probability.
      token_log_probs: of each token, in order; empty for a bound.
      top: the likeliest tokens at each place with their log-probabilities; empty for a bound.
    """

    log_likelihood: float
    standard_error: float
    tokens: list[int]
    exact: bool
    token_log_probs: list[float]
    top: list[dict[int, float]]


class ScoredRow(NamedTuple):
    """A text in a row of the window.

    Attributes:
      tokens_L: tokens, padded.
      segments_L: 1 within the text.
      observed_L: what was given.
      scored_L: what counts.
    """

    tokens_L: np.ndarray
    segments_L: np.ndarray
    observed_L: np.ndarray
    scored_L: np.ndarray


def is_exact(diffusion: DiffusionConfig) -> bool:
    """Whether such a model tells the exact probability of a text."""
    return diffusion.block_size > 0 and diffusion.token_posterior


def log_likelihoods(
    generator: Generator,
    asked: Sequence[tuple[str, str]],
    *,
    ends: bool = True,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Likelihood]:
    """Log-likelihood of each text after what is given, of the text given its number of tokens.

    Args:
      generator: the model.
      asked: pairs of given text, which may be empty, and text.
      ends: whether the end of the text counts, too. A bound is of a text that ends there in any
        case, as the model knows of no other.
      draws: of the bound; its standard error falls with their square root.
      seed: of the draws.
      batch_size: texts scored at once.

    Raises:
      UserError: a text does not fit the window, or holds no token to score.
    """
    rows = [_row(generator, *encoded(generator, *pair), ends) for pair in asked]
    return _in_batches(generator, rows, draws, seed, batch_size)


def token_likelihoods(
    generator: Generator,
    asked: Sequence[tuple[list[int], list[int]]],
    *,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 1,
) -> list[Likelihood]:
    """The same of token ids, given and to be scored, without an end."""
    rows = [_row(generator, *pair, False) for pair in asked]
    return _in_batches(generator, rows, draws, seed, batch_size)


def _in_batches(
    generator: Generator, rows: list["ScoredRow"], draws: int, seed: int, batch_size: int
) -> list[Likelihood]:
    found: list[Likelihood] = []
    size = -(-min(batch_size, max(1, len(rows))) // row_multiple()) * row_multiple()
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        full = batch + [batch[-1]] * (size - len(batch))
        arrays = ScoredRow(*(np.stack(x) for x in zip(*full, strict=True)))
        if is_exact(generator.diffusion):
            found += _exact(generator, arrays, len(batch))
        else:
            keys = [jax.random.fold_in(jax.random.key(seed), start + i) for i in range(size)]
            found += _bounds(generator, arrays, jnp.stack(keys), draws, len(batch))
    return found


def encoded(generator: Generator, given: str, text: str) -> list[list[int]]:
    """Token ids of given text and of the text after it."""
    # A space between the two is the beginning of the next token.
    if given.endswith(" ") and not text.startswith(" "):
        given, text = given[:-1], " " + text
    return generator.tokenizer.encode([given, text])


def _row(generator: Generator, before: list[int], after: list[int], ends: bool) -> ScoredRow:
    count, window = len(before) + len(after) + ends, generator.window
    # Nothing of an exact model depends on what comes later.
    tokens = [*before, *after, *([EOS] if ends or not is_exact(generator.diffusion) else [])]
    if len(tokens) > window:
        raise UserError(
            f"the text takes {len(tokens)} tokens, and the model's window holds {window}; split it."
        )
    if count == len(before):
        raise UserError("there is no token to score: the text is empty.")
    length = -(-len(tokens) // generator.block_tokens) * generator.block_tokens
    per_latent, place_L = generator.networks.vae.tokens_per_latent, np.arange(window)
    # A latent is given if all of its tokens are.
    observed_L = place_L < len(before) // per_latent * per_latent
    return ScoredRow(
        np.array(tokens + [PAD] * (window - len(tokens)), np.int32),
        (place_L < length).astype(np.int32),
        observed_L,
        ~observed_L & (place_L < count),
    )


@jit(static_argnames=("networks", "diffusion"))
def _one_by_one(
    params, latents: LatentStats, rows: ScoredRow, *, networks: Networks, diffusion: DiffusionConfig
):
    """Log-probabilities (B, L) of the tokens and (B, L, K) of the likeliest, and these."""
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    layout = latent_layout(rows.segments_L, networks, diffusion)
    logits_BxLxV = one_by_one(denoiser, rows.tokens_L, layout).logits_BxLxV
    log_probs_BxLxV = jax.nn.log_softmax(logits_BxLxV)
    of_token = jnp.take_along_axis(log_probs_BxLxV, rows.tokens_L[..., None], axis=-1)[..., 0]
    return jax.tree.map(replicate, (of_token, *jax.lax.top_k(log_probs_BxLxV, TOP)))


def _exact(generator: Generator, rows: ScoredRow, count: int) -> list[Likelihood]:
    scored = _one_by_one(
        generator.params, generator.latents, rows, networks=generator.networks,
        diffusion=generator.diffusion,
    )  # fmt: skip
    log_probs, values, ids = jax.device_get(scored)
    found = []
    for i in range(count):
        where = np.flatnonzero(rows.scored_L[i])
        own = log_probs[i, where].astype(float).tolist()
        top = [
            dict(zip(map(int, ids[i, at]), map(float, values[i, at]), strict=True)) for at in where
        ]
        tokens = rows.tokens_L[i, where].tolist()
        found.append(Likelihood(sum(own), 0.0, tokens, True, own, top))
    return found


@jit(static_argnames=("networks", "diffusion"))
def bound_parts(
    params, latents: LatentStats, rows: ScoredRow, keys_B, *, networks: Networks,
    diffusion: DiffusionConfig, ratios: tuple[float, ...] = RATIOS,
):  # fmt: skip
    """One draw of both parts of a bound on minus the log-likelihood, in nats a row.

    Args:
      params: of the networks.
      latents: statistics of the latent channels.
      rows: texts (B, L).
      keys_B: random keys.
      networks: the networks.
      diffusion: how the denoiser was trained.
      ratios: R ratios of noise to data at which the decoder may take over; each is a bound.

    Returns:
      What the decoder misses (R, B), and what the denoiser does (R, B).
    """
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    observed_BxN = rows.observed_L[:, :: networks.vae.tokens_per_latent]
    layout = latent_layout(rows.segments_L, networks, diffusion, observed_BxN)
    z_0_BxNxD, cache = denoiser.encode(rows.tokens_L, layout, observed_BxN), None
    if layout.block_size:
        cache = denoiser.prefill(z_0_BxNxD, jnp.full(observed_BxN.shape, OBSERVED), layout).cache
    conditioning_BxN = jnp.where(observed_BxN, OBSERVED, GENERATED)

    def denoise(z_BxNxD, t_BxN):
        z_BxNxD = jnp.where(observed_BxN[..., None], z_0_BxNxD, z_BxNxD)
        t_BxN = jnp.where(observed_BxN, 0.0, t_BxN)
        clean_BxNxD = jnp.zeros_like(z_BxNxD)
        for _ in range(2 if diffusion.self_condition > 0 else 1):
            inputs = NoisyInputs(z_BxNxD, t_BxN, conditioning_BxN, clean_BxNxD, layout)
            clean_BxNxD = denoiser.denoise(inputs, cache).clean_BxNxD
        return clean_BxNxD

    nats_RxBxN = diffusion_nats(
        denoise, z_0_BxNxD, diffusion.noise, ratios, row_keys(keys_B, 0), TIMES
    )
    generated_BxN = layout.in_document_BxN & ~observed_BxN
    noise_BxNxD = row_noise(row_keys(keys_B, 1), z_0_BxNxD.shape[1:])

    def decoder(ratio):
        sigma_BxN = jnp.where(observed_BxN, 0.0, ratio)
        z_BxNxD = z_0_BxNxD + sigma_BxN[..., None] * noise_BxNxD
        log_probs_BxLxV = jax.nn.log_softmax(denoiser.decode(z_BxNxD, sigma_BxN, layout, cache))
        read_BxL = jnp.take_along_axis(log_probs_BxLxV, rows.tokens_L[..., None], axis=-1)[..., 0]
        return -jnp.sum(read_BxL * rows.scored_L, axis=1)

    decoder_RxB = jax.lax.map(decoder, jnp.asarray(ratios))
    return replicate(decoder_RxB), replicate(jnp.sum(nats_RxBxN * generated_BxN, axis=2))


def _bounds(generator: Generator, rows: ScoredRow, keys_B, draws: int, count: int):
    if draws < 2:
        raise UserError(f"draws = {draws}: a standard error needs at least 2.")
    drawn = [
        bound_parts(
            generator.params, generator.latents, rows, row_keys(keys_B, draw),
            networks=generator.networks, diffusion=generator.diffusion,
        )
        for draw in range(draws)
    ]  # fmt: skip
    drawn = -np.sum(jax.device_get(drawn), axis=1)[:, 0].astype(np.float64)  # (draws, B)
    means, errors = drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / np.sqrt(draws)
    return [
        Likelihood(
            float(means[i]), float(errors[i]),
            rows.tokens_L[i, rows.scored_L[i]].tolist(), False, [], [],
        )
        for i in range(count)
    ]  # fmt: skip
