"""The denoiser as a function of latents, and the tokens read from it.

Shape letters: B rows, L tokens, N latents, D latent channels, M width, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.objective import Objective
from ldlm_jax.diffusion.time import LogitNormal
from ldlm_jax.errors import UserError, check_shares
from ldlm_jax.models.dit import KNOWN, Denoised, Memory
from ldlm_jax.models.places import Places, lay_out
from ldlm_jax.train_state import Models


@dataclass(frozen=True)
class DiffusionConfig:
    """How the denoiser is trained.

    Attributes:
      prediction: ``"x"`` or ``"v"``, see ``diffusion.objective``.
      loss_space: ``"x"`` or ``"v"``.
      time_location: location of the logit-normal law of times; None takes the fit for the latent
        width (``LogitNormal.for_channels``).
      time_scale: its scale.
      self_condition: share of steps in which the denoiser is given its own earlier estimate
        (Chen et al. 2023, "Analog Bits").
      prefix: share of documents trained as continuations of a known prefix.
      infill: share of documents trained as the filling of one hole.
      condition_dropout: share of documents whose known part is hidden, for guidance.
      block_size: latents that are written together, each block after the clean ones before it
        (block-causal diffusion: Arriola et al. 2025, "Block Diffusion"); 0 writes whole texts.
      token_loss: weight, within the diffusion loss, of the cross-entropy of the tokens decoded
        from the denoiser's estimate. It tells the denoiser which errors change the text, and
        the decoder (where it trains) what the denoiser's estimates look like.
    """

    prediction: str = "x"
    loss_space: str = "x"
    time_location: float | None = None
    time_scale: float = 1.0
    self_condition: float = 0.5
    prefix: float = 0.2
    infill: float = 0.1
    condition_dropout: float = 0.1
    block_size: int = 0
    token_loss: float = 0.0

    def __post_init__(self):
        for name in ("prediction", "loss_space"):
            if getattr(self, name) not in ("x", "v"):
                raise UserError(f"diffusion.{name} = {getattr(self, name)!r}: choose 'x' or 'v'.")
        shares = ("self_condition", "prefix", "infill", "condition_dropout")
        check_shares("diffusion", self, shares)
        if self.prefix + self.infill > 1:
            raise UserError("diffusion.prefix + diffusion.infill must not exceed 1.")
        if self.block_size < 0:
            raise UserError(f"diffusion.block_size = {self.block_size}: at least 0 (whole texts).")
        if self.token_loss < 0:
            raise UserError(f"diffusion.token_loss = {self.token_loss}: at least 0.")
        if self.time_scale <= 0:
            raise UserError(f"diffusion.time_scale = {self.time_scale}: must be positive.")

    @property
    def objective(self) -> Objective:
        """Prediction and loss."""
        return Objective(self.prediction, self.loss_space)

    def law(self, channels: int) -> LogitNormal:
        """Law of times for latents of that width."""
        if self.time_location is None:
            return LogitNormal.for_channels(channels, self.time_scale)
        return LogitNormal(self.time_location, self.time_scale)


def places_of(segments_BxL: jax.Array, models: Models, config: DiffusionConfig) -> Places:
    """Where the latents of a batch stand, from the document number of each token."""
    return lay_out(segments_BxL[:, :: models.vae.tokens_per_latent], config.block_size)


def denoise(
    models: Models,
    params,
    config: DiffusionConfig,
    z_BxNxD,
    t_BxN,
    state_BxN,
    estimate_BxNxD,
    places: Places,
    memory: Memory | None = None,
) -> Denoised:
    """One evaluation of the DiT: its output is made an estimate of the clean latents (fp32)."""
    said = models.dit.apply(
        {"params": params["dit"]}, z_BxNxD, t_BxN, state_BxN, estimate_BxNxD, places, memory
    )
    return said._replace(output_BxNxD=config.objective.clean(said.output_BxNxD, z_BxNxD, t_BxN))


def remember(
    models: Models, params, z_BxNxD, state_BxN, places: Places, memory: Memory | None = None
) -> Memory:
    """What the denoiser remembers of clean latents, for the blocks after them."""
    said = models.dit.apply(
        {"params": params["dit"]}, z_BxNxD, jnp.zeros(state_BxN.shape), state_BxN,
        jnp.zeros_like(z_BxNxD), places, memory,
    )  # fmt: skip
    return said.memory


def token_logits(
    models: Models, params, z_BxNxD, sigma_BxN, places: Places, memory: Memory | None = None
) -> jax.Array:
    """Logits (B, L, V), fp32, from latents with additive noise of standard deviation ``sigma``.

    A decoder with a trunk of its own is not told sigma; one that shares the DiT's is, as the time
    at which the path has that ratio of noise to data (path.py, equation 1): t = sigma/(1 + sigma).
    Only the latter has a memory of earlier blocks.
    """
    inputs = z_BxNxD
    if models.vae.decoder_layers == 0:
        t_BxN = sigma_BxN / (1 + sigma_BxN)
        scaled_BxNxD = (1 - t_BxN)[..., None] * z_BxNxD
        known_BxN = jnp.full(t_BxN.shape, KNOWN)
        inputs = models.dit.apply(
            {"params": params["dit"]}, scaled_BxNxD, t_BxN, known_BxN,
            jnp.zeros_like(z_BxNxD), places, memory,
        ).features_BxNxM  # fmt: skip
    return read_tokens(models, params, inputs, places)


def read_tokens(models: Models, params, inputs, places: Places) -> jax.Array:
    """Logits (B, L, V), fp32, of what the decoder reads: latents, or features of the DiT."""
    logits_BxLxV = models.vae.apply({"params": params["text_vae"]}, inputs, places, method="decode")
    return logits_BxLxV.astype(jnp.float32)
