"""Prefill, denoise, decode: DiT and decoder as one function of noisy latents.

Shape letters: B rows, L tokens, N latents, D latent channels, M width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.models.dit import GENERATED, DiTOutput, KVCache, NoisyInputs, output_head
from ldlm_jax.models.masks import AttentionMask, denoising_mask, prefill_mask
from ldlm_jax.models.networks import LatentStats, Networks
from ldlm_jax.models.next_token_prior import PriorFeatures, gather_prior
from ldlm_jax.models.token_layout import TokenLayout, token_layout
from ldlm_jax.models.token_metrics import TokenMetrics, in_chunks
from ldlm_jax.models.token_posterior import TokenPosterior


def latent_segments(segments_BxL: jax.Array, networks: Networks) -> jax.Array:
    """The document number (B, N) of each latent from that of each token."""
    return segments_BxL[:, :: networks.vae.tokens_per_latent]


def latent_layout(
    segments_BxL: jax.Array,
    networks: Networks,
    config: DiffusionConfig,
    observed_BxN=None,
    single_B=None,
) -> TokenLayout:
    """Where the latents of a batch stand, from the document number of each token.

    A model that infills reads all observed text before it generates the first block. In rows where
    ``single_B`` is true every latent is a block of its own.
    """
    first_BxN = observed_BxN if config.infills else None
    segments_BxN = latent_segments(segments_BxL, networks)
    return token_layout(segments_BxN, config.block_size, first_BxN, single_B)


class Prediction(NamedTuple):
    """What a denoiser makes of noisy latents.

    Attributes:
      clean_BxNxD: estimate of the clean latents, fp32.
      logits_BxLxV: of the tokens, fp32; None where they take a decoder of its own, or where
        tokens were scored in chunks.
      metrics: of the tokens that were given, or None.
      mean_BxNxD: the part of ``clean`` that is the mean of the token posterior; None without one.
      hidden_BxNxM: output of the DiT's ``hidden_layer``; None without one.
    """

    clean_BxNxD: jax.Array
    logits_BxLxV: jax.Array | None
    metrics: TokenMetrics | None
    mean_BxNxD: jax.Array | None
    hidden_BxNxM: jax.Array | None


@dataclass(frozen=True)
class Denoiser:
    """DiT and decoder with their parameters. Made inside a jitted function; not a pytree.

    Attributes:
      networks: the networks.
      params: their parameters.
      config: how the denoiser is trained.
      latents: statistics of the latent channels.
      posterior: with ``config.token_posterior``.
      logit_chunks: see ``in_chunks``, for everything as wide as the vocabulary.
      logits_processor: changes the logits that the network draws from the context, before anything
        else is made of them; None leaves them.
      dropout_key: of the DiT's dropout and of the prior's; None drops nothing.
    """

    networks: Networks
    params: dict
    config: DiffusionConfig
    latents: LatentStats
    posterior: TokenPosterior | None = None
    logit_chunks: int = 1
    logits_processor: Callable[[jax.Array], jax.Array] | None = None
    dropout_key: jax.Array | None = None

    @classmethod
    def create(
        cls, networks: Networks, params, config: DiffusionConfig, latents: LatentStats, **options
    ) -> "Denoiser":
        """The denoiser of latents with these statistics; ``options`` are further attributes."""
        posterior = None
        if config.token_posterior:
            embeddings_VxD = networks.text_vae(params, method="token_embeddings")
            posterior = TokenPosterior(
                latents.normalise(embeddings_VxD), config.token_variance, config.noise,
                jnp.dtype(networks.dit.dtype),
            )  # fmt: skip
        return cls(networks, params, config, latents, posterior, **options)

    @property
    def shares_trunk(self) -> bool:
        """Whether tokens are read off the DiT's features."""
        return self.networks.vae.decoder_layers == 0

    def encode(self, tokens_BxL, layout: TokenLayout, observed_BxN) -> jax.Array:
        """Normalised posterior means (B, N, D) of a text."""
        posterior = self._vae(tokens_BxL, layout, observed_BxN, method="encode")
        return self.latents.normalise(posterior.mean_BxNxD)

    def prefill(
        self, z_BxNxD, conditioning_BxN, layout: TokenLayout, cache=None, window: int | None = None
    ) -> DiTOutput:
        """The DiT's pass over clean latents, each after those before it: its ``cache`` serves the
        blocks after them, its features predict what comes next.

        Args:
          z_BxNxD: clean latents.
          conditioning_BxN: OBSERVED or HIDDEN.
          layout: of these latents.
          cache: of earlier ones.
          window: how many positions away each attends at most.
        """
        mask = prefill_mask(layout, cache.layout if cache else None).replace(window=window)
        return self._dit(NoisyInputs.clean(z_BxNxD, conditioning_BxN, layout), mask, cache)

    def denoise(self, inputs: NoisyInputs, cache=None, tokens_BxL=None) -> Prediction:
        """One evaluation: clean latents, and the tokens' logits or metrics where they come with it.

        Args:
          inputs: noisy latents and what is known of each.
          cache: of the clean text, for models with blocks.
          tokens_BxL: tokens to be scored, or None.
        """
        out, layout = self.forward(inputs, cache), inputs.layout
        objective = self.config.objective
        clean_BxNxD = objective.clean(out.output_BxNxD, inputs.z_BxNxD, inputs.t_BxN)
        if not self.shares_trunk:
            metrics = None if tokens_BxL is None else self.score(clean_BxNxD, layout, tokens_BxL)
            return Prediction(clean_BxNxD, None, metrics, None, out.hidden_BxNxM)
        features_BxLxM = self._token_features(out.features_BxNxM, layout)
        noisy = None if self.posterior is None else (inputs.z_BxNxD, inputs.t_BxN)
        arrays = features_BxLxM, noisy, tokens_BxL
        mean_BxNxD, logits, metrics = in_chunks(self._tokens, self.logit_chunks, arrays)
        if mean_BxNxD is not None:
            clean_BxNxD += mean_BxNxD
        return Prediction(clean_BxNxD, logits, metrics, mean_BxNxD, out.hidden_BxNxM)

    def forward(self, inputs: NoisyInputs, cache=None, window: int | None = None) -> DiTOutput:
        """The DiT's pass over noisy latents, with the next-token prior where there is one."""
        layout = inputs.layout
        prior = self._prior(inputs, cache) if cache and self.networks.has_prior else None
        if self.posterior is not None:
            # Next to nothing of pure noise, which would drown what positions tell each other.
            scaled = self.config.noise.linear_estimate(inputs.z_BxNxD, inputs.t_BxN)
            inputs = inputs._replace(z_BxNxD=scaled)
        mask = denoising_mask(layout, cache.layout if cache else None).replace(window=window)
        if prior is None or layout.block_size != 1 or self.dropout_key is not None:
            return self._dit(inputs, mask, cache, prior)
        # Nothing stands beside a latent in a block of one: its prior remains, unless that is stale.
        decided_BxN = prior.has_prior_BxN & ~prior.stale_BxN
        decided_BxN |= (inputs.conditioning_BxN != GENERATED) | ~layout.in_document_BxN
        return jax.lax.cond(
            jnp.all(decided_BxN),
            lambda: self._project(prior.features_BxNxM),
            lambda: self._dit(inputs, mask, cache, prior)._replace(cache=None, hidden_BxNxM=None),
        )

    def _prior(self, inputs: NoisyInputs, cache: KVCache) -> PriorFeatures:
        """In training only a share of the positions is given one, as the later ones of a block
        never are."""
        prior = gather_prior(inputs.layout, cache, self.config.noise.alpha(inputs.t_BxN))
        if self.dropout_key is None:
            return prior
        return prior.drop(jax.random.fold_in(self.dropout_key, 1), self.config.next_token_prior)

    def _tokens(self, arrays):
        """From features, noisy latents and tokens, of which the last two may be None: the mean of
        the token posterior, its logits if they exist all at once, and the tokens' metrics."""
        features_BxLxM, noisy, tokens_BxL = arrays
        logits_BxLxV, mean_BxNxD = self.context_logits(features_BxLxM), None
        if noisy is not None:
            logits_BxLxV += self.posterior.log_likelihood(*noisy)
            mean_BxNxD = self.posterior.mean(logits_BxLxV)
        metrics = None if tokens_BxL is None else TokenMetrics.of(logits_BxLxV, tokens_BxL)
        return mean_BxNxD, logits_BxLxV if self.logit_chunks == 1 else None, metrics

    def context_logits(self, features_BxLxM) -> jax.Array:
        """Logits (B, L, V) of the tokens given their context, fp32."""
        logits_BxLxV = self._vae(features_BxLxM, method="logits")
        return (
            logits_BxLxV if self.logits_processor is None else self.logits_processor(logits_BxLxV)
        )

    def decode(self, z_BxNxD, sigma_BxN, layout: TokenLayout, cache=None) -> jax.Array:
        """Logits (B, L, V), fp32, of latents with additive noise of standard deviation ``sigma``.

        A decoder with a trunk of its own is not told sigma; one that shares the DiT's is. Only the
        latter takes a cache of earlier blocks.
        """
        if self.shares_trunk:
            return self.denoise(self._with_noise(z_BxNxD, sigma_BxN, layout), cache).logits_BxLxV
        return self.read(z_BxNxD, layout)

    def decode_metrics(self, z_BxNxD, sigma_BxN, layout: TokenLayout, tokens_BxL) -> TokenMetrics:
        """Metrics of tokens decoded from latents; otherwise as ``decode``."""
        if self.shares_trunk:
            inputs = self._with_noise(z_BxNxD, sigma_BxN, layout)
            return self.denoise(inputs, None, tokens_BxL).metrics
        return self.score(z_BxNxD, layout, tokens_BxL)

    def _with_noise(self, z_BxNxD, sigma_BxN, layout: TokenLayout) -> NoisyInputs:
        """Latents with additive noise as the DiT knows them: at the time at which the schedule has
        that ratio of noise to data."""
        t_BxN = self.config.noise.time_at(sigma_BxN)
        scaled_BxNxD = self.config.noise.alpha(t_BxN)[..., None] * z_BxNxD
        generated_BxN = jnp.full(t_BxN.shape, GENERATED)
        return NoisyInputs(scaled_BxNxD, t_BxN, generated_BxN, jnp.zeros_like(z_BxNxD), layout)

    def read(self, inputs, layout: TokenLayout) -> jax.Array:
        """Logits (B, L, V), fp32, of what the decoder reads: latents, or features of the DiT."""
        return self.context_logits(self._token_features(inputs, layout))

    def score(self, inputs, layout: TokenLayout, tokens_BxL) -> TokenMetrics:
        """Metrics of tokens under what ``read`` would return."""
        arrays = self._token_features(inputs, layout), None, tokens_BxL
        return in_chunks(self._tokens, self.logit_chunks, arrays)[2]

    def _vae(self, *args, method: str):
        return self.networks.text_vae(self.params, *args, method=method)

    def _token_features(self, inputs, layout: TokenLayout):
        return self._vae(inputs, layout, method="token_features")

    def _dit(self, inputs: NoisyInputs, mask: AttentionMask, cache=None, prior=None) -> DiTOutput:
        rngs = None if self.dropout_key is None else {"dropout": self.dropout_key}
        variables = {"params": self.params["dit"]}
        return self.networks.dit.apply(variables, inputs, mask, cache, prior, rngs=rngs)

    def _project(self, features_BxNxM) -> DiTOutput:
        """What the DiT would return if these were its trunk's features."""
        head = output_head(self.networks.dit)
        output = head.apply({"params": self.params["dit"]["output"]}, features_BxNxM)
        return DiTOutput(output, features_BxNxM, None, None)
