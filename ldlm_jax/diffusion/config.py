"""How the denoiser is trained: the section ``diffusion`` of a config."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from ldlm_jax.diffusion.conditioning import ObservedShares
from ldlm_jax.diffusion.objective import Objective
from ldlm_jax.diffusion.schedule import SCHEDULES, Schedule
from ldlm_jax.diffusion.time_sampling import LogitNormal

Share = Annotated[float, "[0, 1]"]
Positive = Annotated[float, "(0, inf)"]


@dataclass(frozen=True)
class DiffusionConfig:
    """How the denoiser is trained.

    Attributes:
      schedule: how data turns into noise, see ``diffusion.schedule``.
      prediction: ``"x"`` or ``"v"``, see ``diffusion.objective``.
      loss_space: ``"x"`` or ``"v"``.
      time_location: location of the logit-normal distribution of times; None takes the fit for the
        latent width (``LogitNormal.for_channels``).
      time_scale: its scale.
      self_condition: share of steps in which the denoiser is given its own previous estimate
        (Chen et al. 2023, "Analog Bits").
      prefix: share of documents trained as continuations of an observed prefix.
      suffix: share of documents trained as what comes before an observed end.
      infill: share of documents trained as the filling of one span.
      random_spans: share of documents of which a random subset of positions is observed.
      condition_dropout: share of documents whose observed part is hidden, for guidance.
      token_posterior: estimate the clean latents as the mean of the tokens' own latents under the
        posterior of the tokens; see ``models.token_posterior``.
      token_variance: what the posterior takes for the variance of a token's latents around the
        latent of that token alone; the more the encoder adds of the context, the larger.
      per_token_times: share of rows in which every position draws a time of its own; in the others
        the positions of a block stand at one (Chen et al. 2024, "Diffusion Forcing").
      block_size: latents that are generated together, each block after the clean ones before it
        (block-causal diffusion: Arriola et al. 2025, "Block Diffusion"); 0 writes whole texts.
      single_token_blocks: share of rows trained with every latent a block of its own. Each of them
        then learns from all the clean text before it, where within a block only the first does.
      next_token_prior: share of positions that are given in training the features of the clean
        latent just before them, see ``models.next_token_prior``. A sampler gives all that it can.
        0 trains no prior.
    """

    schedule: Literal["rectified_flow", "cosine"] = "rectified_flow"
    prediction: Literal["x", "v"] = "x"
    loss_space: Literal["x", "v"] = "x"
    time_location: float | None = None
    time_scale: Positive = 1.0
    self_condition: Share = 0.5
    prefix: Share = 0.2
    suffix: Share = 0.0
    infill: Share = 0.1
    random_spans: Share = 0.0
    condition_dropout: Share = 0.1
    per_token_times: Share = 0.0
    block_size: Annotated[int, "[0, inf)"] = 0
    single_token_blocks: Share = 0.0
    next_token_prior: Share = 0.0
    token_posterior: bool = False
    token_variance: Positive = 0.02

    def in_blocks(self, size: int) -> "DiffusionConfig":
        """The same with ``size`` latents generated at once; 0 for as many as in training."""
        return replace(self, block_size=size or self.block_size)

    @property
    def observed(self) -> ObservedShares:
        """What training gives of documents."""
        return ObservedShares(self.prefix, self.suffix, self.infill, self.random_spans)

    @property
    def infills(self) -> bool:
        """Whether it is trained to generate what observed text follows."""
        return self.suffix + self.infill + self.random_spans > 0

    @property
    def noise(self) -> Schedule:
        """The noise schedule."""
        return SCHEDULES[self.schedule]

    @property
    def objective(self) -> Objective:
        """Prediction and loss."""
        return Objective(self.noise, self.prediction, self.loss_space)

    def times(self, channels: int) -> LogitNormal:
        """Distribution of times for latents of that width."""
        if self.time_location is None:
            return LogitNormal.for_channels(channels, self.time_scale)
        return LogitNormal(self.time_location, self.time_scale)
