"""From prompts to text: the one path used by the command line, the evaluations and the examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ldlm_jax.data.tokenizer import EOS, MASK, PAD, Tokenizer
from ldlm_jax.denoiser import DiffusionConfig
from ldlm_jax.diffusion.sampler import SOLVERS, Solver
from ldlm_jax.errors import UserError
from ldlm_jax.train_state import LatentStats, Models, TrainState
from ldlm_jax.write import Plan, Strength, write_tokens


@dataclass(frozen=True)
class SampleConfig:
    """How text is written.

    Attributes:
      steps: denoising steps of each block; more cost more and write better.
      solver: ``"euler"``, ``"heun"`` or ``"stochastic"``, see ``diffusion.sampler``.
      churn: noise of the stochastic solver; 0 is Euler.
      guidance: weight of the prompt; 1 is none, above 1 follows it more closely.
      self_guidance: weight of the model's own earlier estimate; 1 is none, above 1 makes text more
        coherent and less varied, at the price of a second evaluation a step (ELF, arXiv
        2605.10938, guides on the same condition).
      grid: where the steps stand: ``"law"`` (quantiles of the training times) or ``"uniform"``.
      temperature: of the tokens' distribution given their context; below 1 the text is more
        ordinary and less varied. Needs a model with ``diffusion.token_posterior``.
      lag: how far the beginning of a block is ahead of its end; 0 writes all of it together.
      batch_size: samples written at once.
    """

    steps: int = 50
    solver: str = "stochastic"
    churn: float = 1.0
    guidance: float = 1.0
    self_guidance: float = 1.0
    grid: str = "law"
    temperature: float = 1.0
    lag: float = 0.0
    batch_size: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps = {self.steps}: at least 1 denoising step is needed.")
        if self.solver not in SOLVERS:
            raise UserError(f"solver = {self.solver!r}: choose one of {', '.join(SOLVERS)}.")
        if self.grid not in ("law", "uniform"):
            raise UserError(f"grid = {self.grid!r}: choose 'law' or 'uniform'.")
        if min(self.churn, self.guidance, self.self_guidance, self.lag) < 0:
            raise UserError("churn, guidance, self_guidance and lag must not be negative.")
        if self.temperature <= 0:
            raise UserError(f"temperature = {self.temperature}: must be positive.")
        if self.batch_size < 1:
            raise UserError(f"batch_size = {self.batch_size}: at least 1.")


@dataclass(frozen=True)
class Writer:
    """A trained model, ready to write.

    Attributes:
      models: the networks.
      diffusion: how the denoiser was trained.
      params: parameters, averaged ones for best text.
      latents: statistics of the latent channels.
      tokenizer: of the training run.
      lengths: how many training documents have each length, 0 to the window.
    """

    models: Models
    diffusion: DiffusionConfig
    params: dict
    latents: LatentStats
    tokenizer: Tokenizer
    lengths: Sequence[int]

    @classmethod
    def of(cls, models: Models, diffusion, state: TrainState, tokenizer, lengths):
        """The averaged model of a training state."""
        return cls(models, diffusion, state.ema, state.latents, tokenizer, tuple(lengths))

    @property
    def window(self) -> int:
        """Tokens in a row."""
        return len(self.lengths) - 1


@dataclass(frozen=True)
class Sample:
    """One written text.

    Attributes:
      prompt: what was given.
      text: prompt and continuation.
      tokens: token ids, up to and with the end token if there is one.
      drafts: decoded estimates after the steps asked for, by step.
    """

    prompt: str
    text: str
    tokens: list[int]
    drafts: dict[int, str]


def generate(
    writer: Writer,
    config: SampleConfig,
    seed: int,
    *,
    num_samples: int = 1,
    prompt: str = "",
    draft_steps: tuple[int, ...] = (),
) -> Iterator[Sample]:
    """Write texts, batch by batch.

    Args:
      writer: the model.
      config: steps, solver, guidance.
      seed: of all randomness; the same seed writes the same texts.
      num_samples: how many.
      prompt: given beginning of every text, or empty.
      draft_steps: steps after which to keep a decoded draft.

    Raises:
      UserError: the prompt does not fit the window, guidance was asked of a model that never
        trained without its condition, or a draft step is beyond the steps.
    """
    if num_samples < 1:
        raise UserError(f"num_samples = {num_samples}: at least 1.")
    for step in draft_steps:
        if not 1 <= step <= config.steps:
            raise UserError(f"draft step {step} is not between 1 and steps = {config.steps}.")
    given = writer.tokenizer.encode([prompt])[0]
    per_latent = writer.models.vae.tokens_per_latent
    known = len(given) // per_latent
    if len(given) >= writer.window:
        raise UserError(
            f"the prompt has {len(given)} tokens; the model's window holds {writer.window}, of "
            "which at least one must be free. Shorten the prompt."
        )
    guided = config.guidance != 1.0 and known > 0
    if guided and (writer.diffusion.condition_dropout == 0 or writer.diffusion.prefix == 0):
        raise UserError(
            "guidance needs a model trained with diffusion.prefix and diffusion.condition_dropout "
            "above 0; use guidance 1."
        )
    if config.temperature != 1.0 and not writer.diffusion.token_posterior:
        raise UserError(
            "temperature needs a model trained with diffusion.token_posterior; use temperature 1."
        )
    self_guided = config.self_guidance != 1.0 and writer.diffusion.self_condition > 0
    plan = Plan(
        writer.models, writer.diffusion, Solver(config.solver, config.churn), config.steps,
        config.grid, guided, self_guided, tuple(draft_steps),
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    size = min(config.batch_size, num_samples)
    key = jax.random.key(seed)
    for index, start in enumerate(range(0, num_samples, size)):
        # A text written block by block ends where its end token falls.
        lengths = (
            np.full(size, writer.window)
            if writer.diffusion.block_size
            else draw_lengths(writer.lengths, len(given), size, rng)
        )
        tokens = np.full((size, writer.window), MASK, np.int32)
        tokens[:, : len(given)] = given
        places = np.arange(writer.window)
        latents = places[: writer.window // per_latent]
        written, drafts = write_tokens(
            writer.params, writer.latents, tokens,
            (places < lengths[:, None]).astype(np.int32),
            np.broadcast_to(latents < known, (size, len(latents))),
            jax.random.fold_in(key, index),
            Strength(
                config.guidance, config.self_guidance, config.temperature, config.lag
            ),
            plan=plan,
        )  # fmt: skip
        written, drafts = np.array(written), np.array(drafts)
        for row in range(min(size, num_samples - start)):
            ids = _finish(written[row], given, lengths[row])
            texts = {
                step: _text(writer.tokenizer, prompt, _finish(draft[row], given, lengths[row]),
                            len(given))
                for step, draft in zip(draft_steps, drafts, strict=True)
            }  # fmt: skip
            text = _text(writer.tokenizer, prompt, ids, len(given))
            yield Sample(prompt, text, ids, texts)


def draw_lengths(
    histogram: Sequence[int], minimum: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Lengths in tokens, end token included, as training documents have them.

    Args:
      histogram: training documents by length, from 0 to the window.
      minimum: the prompt's length; drawn lengths are larger.
      count: how many.
      rng: random generator.
    """
    weights = np.asarray(histogram, np.float64).copy()
    weights[: minimum + 1] = 0
    if not weights.any():  # no training text was ever that long
        return np.full(count, len(weights) - 1)
    return rng.choice(len(weights), size=count, p=weights / weights.sum())


def _finish(ids: np.ndarray, given: list[int], length: int) -> list[int]:
    """Put the prompt back word for word and stop at the end of the text."""
    ids = [*given, *map(int, ids[len(given) : length])]
    rest = ids[len(given) :]
    stop = next((i for i, token in enumerate(rest) if token in (EOS, PAD)), len(rest) - 1)
    return ids[: len(given) + stop + 1]


def _text(tokenizer: Tokenizer, prompt: str, ids: list[int], given: int) -> str:
    return prompt + tokenizer.decode(ids[given:])
