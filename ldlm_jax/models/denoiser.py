"""The denoiser as a function of latents, and the tokens read from it.

Shape letters: B rows, L tokens, N latents, D latent channels, M width, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.data.tokenizer import EOS, PAD
from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.guidance import guide_by_context
from ldlm_jax.models.dit import UNKNOWN, Denoised, Foreseen, Memory
from ldlm_jax.models.layers import matmul
from ldlm_jax.models.token_layout import Places, just_before, largest_beside, lay_out
from ldlm_jax.train_state import LatentStats, Models


def segments_of(segments_BxL: jax.Array, models: Models) -> jax.Array:
    """The document number (B, N) of each latent from that of each token."""
    return segments_BxL[:, :: models.vae.tokens_per_latent]


def places_of(
    segments_BxL: jax.Array, models: Models, config: DiffusionConfig, known_BxN=None, single_B=None
) -> Places:
    """Where the latents of a batch stand, from the document number of each token.

    A model that fills holes reads all that is known before it writes the first block. In rows
    where ``single_B`` is true every latent is a block of its own.
    """
    first_BxN = known_BxN if config.fills_holes else None
    return lay_out(segments_of(segments_BxL, models), config.block_size, first_BxN, single_B)


def nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits of which only the likeliest tokens are left, the others 30 nats below.

    The fewest tokens whose probabilities add up to ``top_p`` (Holtzman et al. 2020, "The Curious
    Case of Neural Text Degeneration"). Their least likely one is found by halving an interval:
    sorting a vocabulary takes a CPU longer than the network does.

    Args:
      logits: (..., V).
      top_p: probability to keep, broadcastable to (..., 1); 1 keeps all.
    """
    probability = jax.nn.softmax(logits)

    def halve(interval, _):
        low, high = interval
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(probability >= middle, probability, 0), -1, keepdims=True)
        return jax.tree.map(
            lambda a, b: jnp.where(enough >= top_p, a, b), (middle, high), (low, middle)
        ), None

    interval = jnp.zeros_like(probability[..., :1]), jnp.max(probability, -1, keepdims=True)
    (least, _), _ = jax.lax.scan(halve, interval, length=30)
    return jnp.where(probability >= least, logits, logits - _OUTSIDE)


# Nats by which tokens outside the nucleus are held less likely. None is ever drawn, but what a
# noisy latent itself says can overrule it: else a drawn token would be another in the next step.
_OUTSIDE = 30.0
# The logit of what must not be.
_IMPROBABLE = -1e4


class Scores(NamedTuple):
    """How well tokens are told: their cross-entropy, and whether they are the likeliest."""

    loss_BxL: jax.Array
    hit_BxL: jax.Array

    @classmethod
    def of(cls, logits_BxLxV: jax.Array, tokens_BxL: jax.Array) -> "Scores":
        """The scores of tokens under these logits."""
        loss_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, tokens_BxL)
        of_token_BxL = jnp.take_along_axis(logits_BxLxV, tokens_BxL[..., None], axis=-1)[..., 0]
        # The largest logit is known from the loss; where it stands would take another pass.
        return cls(loss_BxL, of_token_BxL >= jnp.max(logits_BxLxV, axis=-1))


def by_parts(function, parts: int, arrays):
    """``function(arrays)`` position by position, with only a part of the positions at a time.

    For functions with something large inside, such as logits: it exists for one part at a time, and
    is computed again in the backward pass.

    Args:
      function: maps a tree of arrays (B, L / parts, ...) to another.
      parts: into which the positions are dealt in turn, so that a split row stays split.
      arrays: tree of (B, L, ...).
    """
    if parts == 1:
        return function(arrays)
    dealt = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, parts, *x.shape[2:]), 2, 0), arrays
    )
    done = jax.lax.map(jax.checkpoint(function), dealt)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:]), done)


class Estimate(NamedTuple):
    """What the denoiser says of noisy latents.

    Attributes:
      clean_BxNxD: estimate of the clean latents, fp32.
      logits_BxLxV: of the tokens, fp32; None where reading them takes a decoder of its own, or
        where they were scored in parts.
      scores: of the tokens that were given, or None.
      mean_BxNxD: that part of ``clean`` which is the mean of the tokens' latents under their
        posterior; None without one.
      tapped_BxNxM: what came out of the DiT's block ``tap``; None without one.
    """

    clean_BxNxD: jax.Array
    logits_BxLxV: jax.Array | None
    scores: Scores | None
    mean_BxNxD: jax.Array | None
    tapped_BxNxM: jax.Array | None


class Near(NamedTuple):
    """What guides by context: the memory of a model that sees next to nothing, or None where
    nothing is remembered, and the weight; see ``guidance.guide_by_context``."""

    memory: Memory | None
    weight: jax.Array


@dataclass(frozen=True)
class Denoiser:
    """DiT and decoder with their parameters. Made inside a jitted function; not a pytree.

    Attributes:
      models: the networks.
      params: their parameters.
      config: how the denoiser is trained.
      latents: statistics of the latent channels.
      codes_VxD: normalised latent of every token alone, with ``config.token_posterior``.
      temperature: divides the logits that the network draws from the context.
      top_p: probability of the tokens that the context may propose, the likeliest first; None for
        all of them.
      parts: see ``by_parts``, for everything as wide as the vocabulary.
      inside_BxL: true where the text cannot end, as known text follows; None where it may
        anywhere.
      dropout_key: of the DiT's dropout and of the share ``config.foresight``; None drops nothing.
    """

    models: Models
    params: dict
    config: DiffusionConfig
    latents: LatentStats
    codes_VxD: jax.Array | None = None
    temperature: float | jax.Array = 1.0
    top_p: jax.Array | None = None
    parts: int = 1
    inside_BxL: jax.Array | None = None
    dropout_key: jax.Array | None = None

    @classmethod
    def create(
        cls,
        models: Models,
        params,
        config: DiffusionConfig,
        latents: LatentStats,
        temperature=1.0,
        top_p=None,
        parts: int = 1,
    ) -> "Denoiser":
        """The denoiser of latents with these statistics."""
        codes_VxD = None
        if config.token_posterior:
            codes_VxD = models.text_vae(params, method="codes")
            codes_VxD = latents.normalise(codes_VxD)
        return cls(models, params, config, latents, codes_VxD, temperature, top_p, parts)

    @property
    def shares_trunk(self) -> bool:
        """Whether tokens are read off the DiT's features."""
        return self.models.vae.decoder_layers == 0

    def __call__(
        self,
        z_BxNxD,
        t_BxN,
        state_BxN,
        earlier_BxNxD,
        places: Places,
        memory=None,
        tokens_BxL=None,
        near: Near | None = None,
    ) -> Estimate:
        """One evaluation of the DiT; arguments as its own, and tokens to be scored, if any.

        With ``near``, which needs ``config.token_posterior``, there is a second one.
        """
        seen_BxNxD = z_BxNxD
        if self.codes_VxD is not None:
            # Next to nothing of pure noise, which would drown what positions tell each other.
            seen_BxNxD = path.linear_estimate(z_BxNxD, t_BxN)

        inputs = seen_BxNxD, t_BxN, state_BxN, earlier_BxNxD, places
        said = self._look(*inputs, memory)
        clean_BxNxD = self.config.objective.clean(said.output_BxNxD, z_BxNxD, t_BxN)
        if not self.shares_trunk:
            scores = None if tokens_BxL is None else self.score(clean_BxNxD, places, tokens_BxL)
            return Estimate(clean_BxNxD, None, scores, None, said.tapped_BxNxM)
        features_BxLxM = self._token_features(said.features_BxNxM, places)
        noisy = None if self.codes_VxD is None else (z_BxNxD, t_BxN)
        beside = None
        if near is not None:
            of_near_BxNxM = self._look(*inputs, near.memory, near=True).features_BxNxM
            of_near_BxLxM = self._token_features(of_near_BxNxM, places)
            beside = of_near_BxLxM, jnp.broadcast_to(near.weight, (*of_near_BxLxM.shape[:2], 1))
        told = by_parts(self._tell, self.parts, (features_BxLxM, beside, noisy, tokens_BxL))
        mean_BxNxD, logits, scores = told
        if mean_BxNxD is not None:
            clean_BxNxD += mean_BxNxD
        return Estimate(clean_BxNxD, logits, scores, mean_BxNxD, said.tapped_BxNxM)

    def _look(self, z_BxNxD, t_BxN, state_BxN, earlier_BxNxD, places, memory, **how) -> Denoised:
        """The DiT's pass over noisy latents, which are told what is foreseen of them."""
        foreseen = None
        if memory is not None and self.models.dit.foresight:
            foreseen = self._foreseen(places, memory, t_BxN)
        inputs = z_BxNxD, t_BxN, state_BxN, earlier_BxNxD, places, memory, foreseen
        if foreseen is None or places.block_size != 1 or self.dropout_key is not None:
            return self._dit(*inputs, **how)
        # Nothing stands beside a latent in a block of one: what is foreseen of it remains, but
        # where known text follows of which the one before it has not heard.
        settled_BxN = foreseen.told_BxN & ~foreseen.blind_BxN
        settled_BxN |= (state_BxN != UNKNOWN) | (places.segments_BxN == 0)
        return jax.lax.cond(
            jnp.all(settled_BxN),
            lambda: self._dit(*inputs, only_foreseen=True),
            lambda: self._dit(*inputs, **how)._replace(memory=None, tapped_BxNxM=None),
        )

    def _foreseen(self, places: Places, memory: Memory, t_BxN) -> Foreseen:
        """Features of the clean latent just before each, which tell what comes next.

        Noisy latents beside a position can tell it more than that one has, and so can known text
        after it that was not yet read there; what its own says is left to ``_evidence``. In
        training only a share of the positions is told (``config.foresight``), as the later ones of
        a block never are.
        """
        index_BxN, told_BxN, blind_BxN = just_before(places, memory.places)
        if self.dropout_key is not None:
            key = jax.random.fold_in(self.dropout_key, 1)
            told_BxN &= jax.random.bernoulli(key, self.config.foresight, told_BxN.shape)
        before_BxNxM = jnp.take_along_axis(memory.features_BxRxM, index_BxN[..., None], axis=1)
        news_BxN = largest_beside(places, 1 - t_BxN)
        features_BxNxM = jnp.where(told_BxN[..., None], before_BxNxM, 0.0)
        return Foreseen(features_BxNxM, told_BxN, news_BxN, blind_BxN)

    def _tell(self, inputs):
        """From features, what stands beside them, noisy latents and tokens, of which all but the
        first may be None: the mean of the tokens' latents under their posterior, its logits if they
        exist all at once, and scores."""
        features_BxLxM, beside, noisy, tokens_BxL = inputs
        logits_BxLxV, mean_BxNxD = self._context(features_BxLxM, beside), None
        if noisy is not None:
            logits_BxLxV += self._evidence(*noisy)
            mean_BxNxD = self._mean(logits_BxLxV)
        scores = None if tokens_BxL is None else Scores.of(logits_BxLxV, tokens_BxL)
        return mean_BxNxD, logits_BxLxV if self.parts == 1 else None, scores

    def _mean(self, logits_BxNxV):
        """Mean (B, N, D) of the tokens' codes under these logits."""
        # Codes that learned from the squared error would all become one.
        codes_VxD = jax.lax.stop_gradient(self.codes_VxD)
        return matmul(jax.nn.softmax(logits_BxNxV), codes_VxD, jnp.dtype(self.models.dit.dtype))

    def _context(self, features_BxLxM, beside=None):
        """Logits of what the network says, guided and made sharper as was asked for."""
        logits_BxLxV = self._vae(features_BxLxM, method="read")
        ends_V = jnp.isin(jnp.arange(logits_BxLxV.shape[-1]), jnp.array([EOS, PAD]))
        if beside is not None:
            of_near_BxLxM, weight_BxLx1 = beside
            near_BxLxV = self._vae(of_near_BxLxM, method="read")
            logits_BxLxV = guide_by_context(logits_BxLxV, near_BxLxV, weight_BxLx1, ends_V)
        logits_BxLxV /= self.temperature
        if self.inside_BxL is not None:
            logits_BxLxV = jnp.where(self.inside_BxL[..., None] & ends_V, _IMPROBABLE, logits_BxLxV)
        return logits_BxLxV if self.top_p is None else nucleus(logits_BxLxV, self.top_p)

    def _vae(self, *args, method: str):
        return self.models.text_vae(self.params, *args, method=method)

    def _token_features(self, inputs, places: Places):
        return self._vae(inputs, places, method="token_features")

    def _dit(self, *args, **how) -> Denoised:
        rngs = None if self.dropout_key is None else {"dropout": self.dropout_key}
        return self.models.dit.apply({"params": self.params["dit"]}, *args, **how, rngs=rngs)

    def _evidence(self, z_BxNxD, t_BxN):
        """Log-likelihood (B, N, V) of noisy latents under each token, up to a constant.

        A latent of token v is N(c_v, s^2), hence on the path (path.py, equation 1)

            z_t | v ~ N((1 - t) c_v, t^2 + (1 - t)^2 s^2)

        The factors that are alike for all tokens stand before the product, where the array is
        small.
        """
        t = t_BxN[..., None]
        precision = 1 / (t**2 + (1 - t) ** 2 * self.config.token_variance)
        square_V = jnp.sum(jnp.square(self.codes_VxD), axis=-1)
        # In fp32: near the data these numbers are in the thousands, and their differences decide.
        dots_BxNxV = ((1 - t) * precision * z_BxNxD) @ self.codes_VxD.T
        return dots_BxNxV - 0.5 * (1 - t) ** 2 * precision * square_V

    def draw(self, logits_BxNxV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Latents (B, N, D) of tokens drawn by these logits, each row by its own key.

        By one uniform number a position and a running sum: a number for every token of the
        vocabulary would cost more than the network.
        """
        reached_BxNxV = jnp.cumsum(jax.nn.softmax(logits_BxNxV), axis=-1)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, logits_BxNxV.shape[1:2]))(keys_B)
        goal_BxNx1 = uniform[..., None] * reached_BxNxV[..., -1:]
        token_BxN = jnp.sum(reached_BxNxV <= goal_BxNx1, axis=-1)
        return self.codes_VxD[token_BxN]

    def encode(self, tokens_BxL, places: Places, known_BxN) -> jax.Array:
        """Normalised posterior means (B, N, D) of a text."""
        posterior = self._vae(tokens_BxL, places, known_BxN, method="encode")
        return self.latents.normalise(posterior.mean_BxNxD)

    def recall(self, z_BxNxD, state_BxN, places: Places, memory=None, near=False) -> Denoised:
        """The DiT's pass over clean latents, each after those before it, or (``near``) alone."""
        t_BxN, blank_BxNxD = jnp.zeros(state_BxN.shape), jnp.zeros_like(z_BxNxD)
        return self._dit(
            z_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory, reading=True, near=near
        )

    def remember(self, z_BxNxD, state_BxN, places: Places, memory=None, near=False) -> Memory:
        """What the DiT remembers of clean latents, for the blocks after them."""
        return self.recall(z_BxNxD, state_BxN, places, memory, near).memory

    def _renoised(self, z_BxNxD, sigma_BxN, places: Places, memory, tokens_BxL=None) -> Estimate:
        """What a denoiser that shares its trunk says of latents with additive noise.

        It is told sigma as the time at which the path has that ratio of noise to data (path.py,
        equation 1): t = sigma/(1 + sigma).
        """
        t_BxN = sigma_BxN / (1 + sigma_BxN)
        scaled_BxNxD = (1 - t_BxN)[..., None] * z_BxNxD
        state_BxN, blank_BxNxD = jnp.full(t_BxN.shape, UNKNOWN), jnp.zeros_like(z_BxNxD)
        return self(scaled_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory, tokens_BxL)

    def token_logits(self, z_BxNxD, sigma_BxN, places: Places, memory=None) -> jax.Array:
        """Logits (B, L, V), fp32, of latents with additive noise of standard deviation ``sigma``.

        A decoder with a trunk of its own is not told sigma; one that shares the DiT's is. Only the
        latter has a memory of earlier blocks.
        """
        if self.shares_trunk:
            return self._renoised(z_BxNxD, sigma_BxN, places, memory).logits_BxLxV
        return self.read(z_BxNxD, places)

    def token_scores(self, z_BxNxD, sigma_BxN, places: Places, tokens_BxL) -> Scores:
        """How well tokens are told from latents; otherwise as ``token_logits``."""
        if self.shares_trunk:
            return self._renoised(z_BxNxD, sigma_BxN, places, None, tokens_BxL).scores
        return self.score(z_BxNxD, places, tokens_BxL)

    def read(self, inputs, places: Places) -> jax.Array:
        """Logits (B, L, V), fp32, of what the decoder reads: latents, or features of the DiT."""
        return self._context(self._token_features(inputs, places))

    def score(self, inputs, places: Places, tokens_BxL) -> Scores:
        """How well tokens are told by what ``read`` reads."""
        features_BxLxM = self._token_features(inputs, places)
        return by_parts(self._tell, self.parts, (features_BxLxM, None, None, tokens_BxL))[2]
