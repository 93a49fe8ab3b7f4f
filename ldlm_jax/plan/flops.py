"""Floating-point operations of the fused step, counted from the shapes of its products.

A product of (m, k) by (k, n) counts 2 m k n; norms, softmax and the like are left out. Of attention
the pairs that the masks let see each other count, as if every row were one document. Recomputation
(remat) is not counted: these are the FLOPs of model FLOPs utilisation (PaLM, Chowdhery et al. 2022,
appendix B).

Shape letters: B rows, L tokens, N latents, M width, V vocabulary.
"""

from dataclasses import dataclass

from ldlm_jax.models.dit import DiT
from ldlm_jax.models.layers import mlp_width
from ldlm_jax.models.text_vae import TextVAE
from ldlm_jax.phases import Phase
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.train_step import Recipe


@dataclass(frozen=True)
class Stack:
    """A transformer's shape; see ``models.layers.Transformer``."""

    layers: int
    width: int
    mlp_ratio: float
    adaln: bool = False

    def forward(self, rows: int, positions: int, pairs: float) -> float:
        """FLOPs of a forward pass.

        Args:
          rows: of the batch.
          positions: of a row.
          pairs: of a query and a key that see each other, in a row.
        """
        M, F = self.width, mlp_width(self.width, self.mlp_ratio)
        kernels = 4 * M * M + 3 * M * F + (6 * M * M if self.adaln else 0)
        return self.layers * rows * (2 * positions * kernels + 4 * pairs * M)


def up_to_block(positions: int, block: int) -> float:
    """Pairs that see each other when each position sees its block and those before it."""
    block = block or positions
    return positions * (positions + block) / 2


def before_block(positions: int, block: int) -> float:
    """Pairs of a position and a remembered one of an earlier block."""
    return positions * (positions - block) / 2


@dataclass(frozen=True)
class Counter:
    """Counts for one recipe at a batch size.

    Attributes:
      recipe: see ``train_step``.
      rows: B.
      window: L.
    """

    recipe: Recipe
    rows: int
    window: int

    @property
    def _vae(self) -> TextVAE:
        return self.recipe.models.vae

    @property
    def _dit(self) -> DiT:
        return self.recipe.models.dit

    @property
    def _positions(self) -> int:
        return self.window // self._vae.tokens_per_latent

    def encode(self) -> float:
        """The encoder, forward."""
        vae, block = self._vae, self.recipe.diffusion.block_size
        stack = Stack(vae.encoder_layers, vae.width, vae.mlp_ratio)
        total = stack.forward(self.rows, self._positions, up_to_block(self._positions, block))
        tokens = self.rows * self.window
        if vae.foundation is not None:
            total += 2 * tokens * vae.foundation.width * vae.width
        if vae.tokens_per_latent > 1:
            total += 2 * tokens * vae.width**2
        return total + 2 * self.rows * self._positions * vae.width * 2 * vae.latent_channels

    def codes(self) -> float:
        """Latents of all tokens alone, forward; see ``diffusion.token_posterior``."""
        vae = self._vae
        if not self.recipe.diffusion.token_posterior:
            return 0.0
        stack = Stack(vae.encoder_layers, vae.width, vae.mlp_ratio)
        return stack.forward(vae.vocab_size, 1, 1) + (
            2 * vae.vocab_size * vae.width * vae.latent_channels
        )

    def read(self) -> float:
        """From what the decoder reads to logits, forward."""
        vae, tokens = self._vae, self.rows * self.window
        block = self.recipe.diffusion.block_size
        out = vae.vocab_size if vae.foundation is None else vae.foundation.width
        total = 2.0 * tokens * vae.width * out
        if vae.decoder_layers:
            stack = Stack(vae.decoder_layers, vae.width, vae.mlp_ratio)
            total += stack.forward(self.rows, self._positions, up_to_block(self._positions, block))
            total += 2 * self.rows * self._positions * vae.latent_channels * vae.width
        if vae.tokens_per_latent > 1:
            total += 2 * tokens * vae.width**2
        return total

    def observe(self) -> float:
        """The posterior of the tokens, forward: the noisy latents with the codes, and the mean."""
        vae, tokens = self._vae, self.rows * self.window
        if not self.recipe.diffusion.token_posterior:
            return 0.0
        return 2 * 2 * tokens * vae.latent_channels * vae.vocab_size

    def founded(self, above: bool) -> float:
        """What the foundation reads, or (``above``) says, forward; 0 without one."""
        foundation = self._vae.foundation
        if foundation is None:
            return 0.0
        return self.rows * foundation.forward_flops(self.window, above)

    def denoise(self, remembering: bool = False) -> float:
        """One pass of the DiT, forward: over noisy latents, or over the clean ones to remember."""
        dit, N, block = self._dit, self._positions, self.recipe.diffusion.block_size
        stack = Stack(dit.layers, dit.width, dit.mlp_ratio, dit.conditioning == "adaln")
        pairs = up_to_block(N, 1 if remembering else block)
        if block and not remembering:
            pairs = before_block(N, block) + N * block
        total = stack.forward(self.rows, N, pairs)
        ends = 2 * dit.latent_channels + 64 + dit.width
        ends += 0 if remembering else dit.latent_channels
        return total + 2 * self.rows * N * dit.width * ends

    def step(self, phase: Phase) -> dict[str, float]:
        """FLOPs of one training step in a phase, forward and backward, by part."""
        recipe, diffusion = self.recipe, self.recipe.diffusion
        parts: dict[str, float] = {}

        def add(name: str, forward: float, trained: bool) -> None:
            parts[name] = parts.get(name, 0.0) + forward * (3 if trained else 1)

        def encode(trained: bool) -> None:
            add("encoder", self.encode(), trained)
            add("foundation", self.founded(above=False), False)

        def read(trained: bool = True, times: float = 1.0, observe: bool = True) -> None:
            forward = self.read() + (self.observe() if observe else 0)
            add("decoder", times * forward, trained)
            # Frozen: the gradient goes through it, to no weight of it.
            add("foundation", (2 if trained else 1) * times * self.founded(above=True), False)

        encodes = phase.has("reconstruction") or phase.has("kl") or phase.has("alignment")
        masked = recipe.autoencoding.token_mask > 0 and encodes
        denoises = phase.has("diffusion") or phase.has("next_token")
        by_diffusion = denoises and phase.has("encoder_gradient")
        trains = "encoder" in phase.train
        encode(trains and (encodes or by_diffusion))
        shares = self._vae.decoder_layers == 0
        if phase.has("reconstruction"):
            read()
            if shares:
                add("denoiser", self.denoise(), True)
        if denoises:
            if masked:
                encode(trains and by_diffusion)
            if diffusion.block_size:
                add("denoiser", self.denoise(remembering=True), True)
        if phase.has("next_token"):
            read(observe=False)
        if phase.has("diffusion"):
            add("denoiser", self.denoise(), True)
            add("denoiser", diffusion.self_condition * self.denoise(), False)
            if diffusion.token_loss > 0 or diffusion.token_posterior:
                read()
            if diffusion.token_posterior:
                read(False, diffusion.self_condition)
        if phase.has("diffusion") or (phase.has("reconstruction") and shares):
            add("encoder", self.codes(), trains)
        if phase.has("alignment") and recipe.teacher is not None:
            add("teacher", teacher_forward(recipe.teacher, self.rows, self.window), False)
        return {name: count for name, count in parts.items() if count}


def teacher_forward(teacher: PretrainedTeacher, rows: int, tokens: int) -> float:
    """FLOPs of a frozen teacher's forward pass over as many tokens as the student's."""
    return rows * teacher.config.forward_flops(tokens)
