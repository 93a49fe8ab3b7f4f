"""How the denoiser is trained: the section ``diffusion`` of a config."""

from dataclasses import dataclass, replace

from ldlm_jax.diffusion.conditioning import Shares
from ldlm_jax.diffusion.objective import Objective
from ldlm_jax.diffusion.time_sampling import LogitNormal
from ldlm_jax.errors import UserError, check_shares


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
      suffix: share of documents trained as what comes before a known end.
      infill: share of documents trained as the filling of one hole.
      spans: share of documents trained as the filling of many holes.
      condition_dropout: share of documents whose known part is hidden, for guidance.
      token_posterior: estimate the clean latents as the mean of the tokens' own latents under the
        posterior of the tokens, to which the network contributes what the context says and Bayes'
        rule, in closed form, what the noisy latent itself says (after the output prior and the
        categorical reparameterisation of Gulrajani & Hashimoto 2023, "Likelihood-Based Diffusion
        Language Models"); the DiT's own output is added. The network then learns context from
        the first step on. It sees noisy latents scaled to the best linear estimate of clean ones.
      token_variance: what the posterior takes for the variance of a token's latents around the
        latent of that token alone; the more the encoder adds of the context, the larger.
      own_times: share of rows in which every position draws a time of its own; in the others the
        positions of a block stand at one (Chen et al. 2024, "Diffusion Forcing").
      block_size: latents that are written together, each block after the clean ones before it
        (block-causal diffusion: Arriola et al. 2025, "Block Diffusion"); 0 writes whole texts.
      blocks_of_one: share of rows trained with every latent a block of its own. Each of them then
        learns from all the clean text before it, where within a block only the first does; what
        they learn serves the blocks as well, and the sampler may take smaller ones.
      foresight: share of positions that are told in training what the clean latent just before
        them, of an earlier block, says of the next token (``next_token.next_token_loss``), by its
        features; the others learn from what they see alone, as the later places of a block and all
        that known text follows must. A sampler tells all that it can: the first place of a block,
        and every block of one, then begins with what an autoregressive model knows. 0 tells none.
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
    suffix: float = 0.0
    infill: float = 0.1
    spans: float = 0.0
    condition_dropout: float = 0.1
    own_times: float = 0.0
    block_size: int = 0
    blocks_of_one: float = 0.0
    foresight: float = 0.0
    token_loss: float = 0.0
    token_posterior: bool = False
    token_variance: float = 0.02

    def __post_init__(self):
        for name in ("prediction", "loss_space"):
            if getattr(self, name) not in ("x", "v"):
                raise UserError(f"diffusion.{name} = {getattr(self, name)!r}: choose 'x' or 'v'.")
        known = ("prefix", "suffix", "infill", "spans")
        others = (
            "self_condition", "condition_dropout", "own_times", "blocks_of_one",
            "foresight",
        )  # fmt: skip
        check_shares("diffusion", self, known + others)
        if sum(getattr(self, name) for name in known) > 1:
            raise UserError(f"diffusion.{' + diffusion.'.join(known)} must not exceed 1.")
        if self.block_size < 0:
            raise UserError(f"diffusion.block_size = {self.block_size}: at least 0 (whole texts).")
        for name in ("blocks_of_one", "foresight"):
            if getattr(self, name) and not self.block_size:
                raise UserError(
                    f"diffusion.{name} = {getattr(self, name)}: whole texts have no blocks; set "
                    f"diffusion.block_size, or diffusion.{name}=0."
                )
        if self.token_loss < 0:
            raise UserError(f"diffusion.token_loss = {self.token_loss}: at least 0.")
        for name in ("time_scale", "token_variance"):
            if getattr(self, name) <= 0:
                raise UserError(f"diffusion.{name} = {getattr(self, name)}: must be positive.")

    def in_blocks(self, size: int) -> "DiffusionConfig":
        """The same with ``size`` latents written at once; 0 for as many as in training."""
        return replace(self, block_size=size or self.block_size)

    @property
    def known(self) -> Shares:
        """What training gives of documents."""
        return Shares(self.prefix, self.suffix, self.infill, self.spans)

    @property
    def fills_holes(self) -> bool:
        """Whether it is trained to write what known text follows."""
        return self.suffix + self.infill + self.spans > 0

    @property
    def objective(self) -> Objective:
        """Prediction and loss."""
        return Objective(self.prediction, self.loss_space)

    def law(self, channels: int) -> LogitNormal:
        """Law of times for latents of that width."""
        if self.time_location is None:
            return LogitNormal.for_channels(channels, self.time_scale)
        return LogitNormal(self.time_location, self.time_scale)
