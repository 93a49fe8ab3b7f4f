"""A trained model, ready to generate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.models.networks import LatentStats, Networks
from ldlm_jax.sampling.config import SampleConfig


@dataclass(frozen=True)
class Generator:
    """A trained model, ready to generate.

    Attributes:
      networks: the networks.
      diffusion: how the denoiser was trained.
      params: parameters, averaged ones for best text; a backbone's weights among them.
      latents: statistics of the latent channels.
      tokenizer: of the training run.
      lengths: how many training documents have each length, 0 to the window.
    """

    networks: Networks
    diffusion: DiffusionConfig
    params: dict
    latents: LatentStats
    tokenizer: Tokenizer
    lengths: Sequence[int]

    @property
    def window(self) -> int:
        """Tokens in a row of training."""
        return len(self.lengths) - 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; of a latent where whole texts are generated."""
        return max(1, self.diffusion.block_size) * self.networks.vae.tokens_per_latent

    def in_blocks(self, size: int) -> "Generator":
        """The same model, generating ``size`` latents at once; 0 for as many as in training."""
        return replace(self, diffusion=self.diffusion.in_blocks(size))

    def row_length(self, config: SampleConfig) -> int:
        """Tokens in a row that is generated, whole blocks."""
        return -(-(config.length or self.window) // self.block_tokens) * self.block_tokens
