"""From prompts to text: the one path used by the command line, the evaluations and the examples.

Shape letters: B rows, L tokens, N latents, D latent channels, K steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.tokenizer import EOS, MASK, PAD, Tokenizer
from ldlm_jax.diffusion import time
from ldlm_jax.diffusion.guidance import guide
from ldlm_jax.diffusion.known import places_to_write, positions_in_segments
from ldlm_jax.diffusion.sampler import SOLVERS, Solver, sample
from ldlm_jax.diffusion.time import local_progress
from ldlm_jax.errors import UserError
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN
from ldlm_jax.train_state import LatentStats, Models
from ldlm_jax.train_step import DiffusionConfig, denoise, token_logits


@dataclass(frozen=True)
class SampleConfig:
    """How text is written.

    Attributes:
      steps: denoising steps; more cost more and write better.
      solver: ``"euler"``, ``"heun"`` or ``"stochastic"``, see ``diffusion.sampler``.
      churn: noise of the stochastic solver; 0 is Euler.
      guidance: weight of the prompt; 1 is none, above 1 follows it more closely.
      self_guidance: weight of the model's own earlier estimate; 1 is none, above 1 makes text more
        coherent and less varied, at the price of a second evaluation a step (ELF, arXiv
        2605.10938, guides on the same condition).
      grid: where the steps stand: ``"law"`` (quantiles of the training times) or ``"uniform"``.
      ramp: wave of noise from the beginning of a text to its end; -1 takes the largest that the
        model was trained with, 0 denoises all positions together.
      batch_size: samples written at once.
    """

    steps: int = 50
    solver: str = "stochastic"
    churn: float = 1.0
    guidance: float = 1.0
    self_guidance: float = 1.0
    grid: str = "law"
    ramp: float = -1.0
    batch_size: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps = {self.steps}: at least 1 denoising step is needed.")
        if self.solver not in SOLVERS:
            raise UserError(f"solver = {self.solver!r}: choose one of {', '.join(SOLVERS)}.")
        if self.grid not in ("law", "uniform"):
            raise UserError(f"grid = {self.grid!r}: choose 'law' or 'uniform'.")
        if self.ramp < 0 and self.ramp != -1:
            raise UserError(f"ramp = {self.ramp}: at least 0, or -1 for the trained one.")
        if min(self.churn, self.guidance, self.self_guidance) < 0:
            raise UserError("churn, guidance and self_guidance must not be negative.")
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


@partial(
    jax.jit,
    static_argnames=(
        "models",
        "diffusion",
        "solver",
        "steps",
        "grid",
        "guided",
        "self_guided",
        "draft_steps",
    ),
)
def write_tokens(
    params,
    latents: LatentStats,
    tokens_BxL,
    segments_BxL,
    known_BxN,
    key,
    guidance,
    self_guidance,
    ramp,
    *,
    models: Models,
    diffusion: DiffusionConfig,
    solver: Solver,
    steps: int,
    grid: str,
    guided: bool,
    self_guided: bool = False,
    draft_steps: tuple[int, ...] = (),
):
    """Denoise and decode one batch; everything in one jitted function, one scan over the steps.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      tokens_BxL: known tokens; what stands elsewhere is not looked at.
      segments_BxL: 1 within the text to be written, 0 beyond its length.
      known_BxN: true where latents are known.
      key: random key.
      guidance: weight of the known part, used if ``guided``.
      self_guidance: weight of the earlier estimate, used if ``self_guided``.
      ramp: wave of noise from the beginning of a text to its end.
      models: the networks.
      diffusion: how the denoiser was trained.
      solver: how to step.
      steps: number of steps K.
      grid: see ``SampleConfig``.
      guided: evaluate the denoiser also without the known part.
      self_guided: evaluate the denoiser also without its earlier estimate.
      draft_steps: steps (1 to K) after which the estimate is decoded too.

    Returns:
      tokens (B, L), and drafts (len(draft_steps), B, L).
    """
    per_latent = models.vae.tokens_per_latent
    segments_BxN = segments_BxL[:, ::per_latent]
    context = (segments_BxN, positions_in_segments(segments_BxN))
    known_BxL = jnp.repeat(known_BxN, per_latent, axis=1)
    vae = {"params": params["text_vae"]}
    posterior = models.vae.apply(
        vae, jnp.where(known_BxL, tokens_BxL, MASK), *context, known_BxN, method="encode"
    )
    given_BxNxD = latents.normalise(posterior.mean_BxNxD)
    known_BxNx1 = known_BxN[..., None]

    def denoiser(z_BxNxD, t_BxN, earlier_BxNxD):
        z_BxNxD = jnp.where(known_BxNx1, given_BxNxD, z_BxNxD)
        if diffusion.self_condition == 0:
            earlier_BxNxD = jnp.zeros_like(earlier_BxNxD)

        def estimate(mark, earlier_BxNxD):
            state_BxN = jnp.where(known_BxN, mark, UNKNOWN)
            return denoise(
                models, params, diffusion, z_BxNxD, t_BxN, state_BxN, earlier_BxNxD, context
            ).output_BxNxD

        clean_BxNxD = with_both_BxNxD = estimate(KNOWN, earlier_BxNxD)
        if guided:
            without_BxNxD = estimate(DROPPED, earlier_BxNxD)
            clean_BxNxD += guide(with_both_BxNxD, without_BxNxD, guidance) - with_both_BxNxD
        if self_guided:
            without_BxNxD = estimate(KNOWN, jnp.zeros_like(earlier_BxNxD))
            clean_BxNxD += guide(with_both_BxNxD, without_BxNxD, self_guidance) - with_both_BxNxD
        return jnp.where(known_BxNx1, given_BxNxD, clean_BxNxD)

    def decode(z_BxNxD):
        z_BxNxD = jnp.where(known_BxNx1, given_BxNxD, z_BxNxD)
        logits = token_logits(models, params, z_BxNxD, jnp.zeros(known_BxN.shape), context)
        # A text never holds a masked token, nor padding before its end.
        return jnp.argmax(logits.at[..., MASK].set(-jnp.inf), axis=-1)

    noise_key, solver_key = jax.random.split(key)
    noise_BxNxD = jax.random.normal(noise_key, given_BxNxD.shape)
    places_BxN = places_to_write(segments_BxN, known_BxN)
    progress = local_progress(time.grid(steps)[:, None, None], places_BxN, ramp)
    law = diffusion.law(models.vae.latent_channels)
    times = jnp.where(known_BxN, 0.0, law.quantile(progress) if grid == "law" else progress)
    z_BxNxD, estimates = sample(
        denoiser,
        noise_BxNxD,
        times,
        solver_key,
        solver,
        keep_estimates=bool(draft_steps),
    )
    chosen = [estimates[step - 1] for step in draft_steps]
    drafts = jnp.stack([decode(z) for z in chosen]) if chosen else jnp.zeros((0, *tokens_BxL.shape))
    return decode(z_BxNxD), drafts


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
    self_guided = config.self_guidance != 1.0 and writer.diffusion.self_condition > 0
    ramp = max(writer.diffusion.ramps) if config.ramp == -1 else config.ramp
    rng = np.random.default_rng(seed)
    size = min(config.batch_size, num_samples)
    key = jax.random.key(seed)
    for index, start in enumerate(range(0, num_samples, size)):
        lengths = draw_lengths(writer.lengths, len(given), size, rng)
        tokens = np.full((size, writer.window), MASK, np.int32)
        tokens[:, : len(given)] = given
        places = np.arange(writer.window)
        written, drafts = write_tokens(
            writer.params, writer.latents, tokens,
            (places < lengths[:, None]).astype(np.int32),
            np.broadcast_to(places[: writer.window // per_latent] < known, (size,
                            writer.window // per_latent)),
            jax.random.fold_in(key, index), config.guidance, config.self_guidance, ramp,
            models=writer.models, diffusion=writer.diffusion,
            solver=Solver(config.solver, config.churn), steps=config.steps, grid=config.grid,
            guided=guided, self_guided=self_guided, draft_steps=tuple(draft_steps),
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
