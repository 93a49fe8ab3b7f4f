"""From prompts to text: the one path used by the command line, the evaluations and the examples.

Shape letters: B rows, L tokens, N latents, S latents of a block, D latent channels, K steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.tokenizer import EOS, MASK, PAD, Tokenizer
from ldlm_jax.denoiser import Denoiser, DiffusionConfig, places_of
from ldlm_jax.diffusion import time
from ldlm_jax.diffusion.guidance import guide
from ldlm_jax.diffusion.sampler import SOLVERS, Solver, sample
from ldlm_jax.errors import UserError
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN, Memory
from ldlm_jax.models.layers import activation_dtype
from ldlm_jax.models.places import Places
from ldlm_jax.train_state import LatentStats, Models


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
      temperature: standard deviation of the initial and of the fresh noise; below 1 the text is
        more ordinary and less varied.
      batch_size: samples written at once.
    """

    steps: int = 50
    solver: str = "stochastic"
    churn: float = 1.0
    guidance: float = 1.0
    self_guidance: float = 1.0
    grid: str = "law"
    temperature: float = 1.0
    batch_size: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps = {self.steps}: at least 1 denoising step is needed.")
        if self.solver not in SOLVERS:
            raise UserError(f"solver = {self.solver!r}: choose one of {', '.join(SOLVERS)}.")
        if self.grid not in ("law", "uniform"):
            raise UserError(f"grid = {self.grid!r}: choose 'law' or 'uniform'.")
        if min(self.churn, self.temperature, self.guidance, self.self_guidance) < 0:
            raise UserError("churn, temperature, guidance and self_guidance must not be negative.")
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
        "models", "diffusion", "solver", "steps", "grid", "guided", "self_guided", "draft_steps",
    ),
)  # fmt: skip
def write_tokens(
    params,
    latents: LatentStats,
    tokens_BxL,
    segments_BxL,
    known_BxN,
    key,
    guidance,
    self_guidance,
    temperature,
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
    """Denoise and decode one batch, block after block; all of it in one jitted function.

    An outer scan runs over the blocks (a single one where whole texts are written), an inner scan
    over the steps. A finished block is decoded and read back by the encoder: what later blocks
    remember are the latents of its tokens, as in training.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      tokens_BxL: known tokens; what stands elsewhere is not looked at.
      segments_BxL: 1 within the text to be written, 0 beyond its length.
      known_BxN: true where latents are known.
      key: random key.
      guidance: weight of the known part, used if ``guided``.
      self_guidance: weight of the earlier estimate, used if ``self_guided``.
      temperature: standard deviation of all noise.
      models: the networks.
      diffusion: how the denoiser was trained.
      solver: how to step.
      steps: number of steps K of each block.
      grid: see ``SampleConfig``.
      guided: evaluate the denoiser also without the known part.
      self_guided: evaluate the denoiser also without its earlier estimate.
      draft_steps: steps (1 to K) after which the estimate is decoded too.

    Returns:
      tokens (B, L), and drafts (len(draft_steps), B, L).
    """
    per_latent = models.vae.tokens_per_latent
    places = places_of(segments_BxL, models, diffusion)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    B, N = known_BxN.shape
    S = diffusion.block_size or N
    progress_K = time.grid(steps)
    law = diffusion.law(models.vae.latent_channels)
    times_K = law.quantile(progress_K) if grid == "law" else progress_K
    tokens_BxL = jnp.where(jnp.repeat(known_BxN, per_latent, axis=1), tokens_BxL, MASK)
    # Guidance compares what is said with the known part in mind with what is said without.
    marks = (KNOWN, DROPPED) if guided else (KNOWN,)

    def read(tokens_BxL):
        posterior = models.vae.apply(
            {"params": params["text_vae"]}, tokens_BxL, places, known_BxN, method="encode"
        )
        return latents.normalise(posterior.mean_BxNxD)

    def remember_block(memories, start, z_BxNxD):
        """Add the finished block at ``start`` to what is remembered."""
        z_BxSxD, known_BxS = _cut(z_BxNxD, start, S), _cut(known_BxN, start, S)
        block, added = places.cut(start, S), []
        for mark, memory in zip(marks, memories, strict=True):
            state_BxS = jnp.where(known_BxS, mark, KNOWN)
            new = denoiser.remember(z_BxSxD, state_BxS, block, memory).keys_and_values
            grown = jax.tree.map(
                lambda all_, own: jax.lax.dynamic_update_slice_in_dim(all_, own, start, axis=2),
                memory.keys_and_values, new,
            )  # fmt: skip
            added.append(memory._replace(keys_and_values=grown))
        return tuple(added)

    def write_block(carry, index):
        tokens_BxL, memories = carry
        start = index * S
        z_BxNxD = read(tokens_BxL)
        if memories:
            # The block before this one. The first has none, and sees nothing of what this adds.
            memories = remember_block(memories, jnp.maximum(start - S, 0), z_BxNxD)
        block, known_BxS = places.cut(start, S), _cut(known_BxN, start, S)
        given_BxSxD = _cut(z_BxNxD, start, S)
        known_BxSx1 = known_BxS[..., None]

        def guided_estimate(z_BxSxD, t_BxS, earlier_BxSxD):
            z_BxSxD = jnp.where(known_BxSx1, given_BxSxD, z_BxSxD)
            if diffusion.self_condition == 0:
                earlier_BxSxD = jnp.zeros_like(earlier_BxSxD)

            def estimate(which, earlier_BxSxD):
                state_BxS = jnp.where(known_BxS, marks[which], UNKNOWN)
                memory = memories[which] if memories else None
                return denoiser(z_BxSxD, t_BxS, state_BxS, earlier_BxSxD, block, memory).clean_BxNxD

            clean_BxSxD = with_both_BxSxD = estimate(0, earlier_BxSxD)
            if guided:
                less_BxSxD = estimate(1, earlier_BxSxD)
                clean_BxSxD += guide(with_both_BxSxD, less_BxSxD, guidance) - with_both_BxSxD
            if self_guided:
                less_BxSxD = estimate(0, jnp.zeros_like(earlier_BxSxD))
                clean_BxSxD += guide(with_both_BxSxD, less_BxSxD, self_guidance) - with_both_BxSxD
            return jnp.where(known_BxSx1, given_BxSxD, clean_BxSxD)

        def decode(z_BxSxD):
            z_BxSxD = jnp.where(known_BxSx1, given_BxSxD, z_BxSxD)
            clean_BxS = jnp.zeros(known_BxS.shape)
            memory = memories[0] if memories else None
            logits = denoiser.token_logits(z_BxSxD, clean_BxS, block, memory)
            # A text never holds a masked token.
            return jnp.argmax(logits.at[..., MASK].set(-jnp.inf), axis=-1)

        noise_key, solver_key = jax.random.split(jax.random.fold_in(key, index))
        z_BxSxD, estimates = sample(
            guided_estimate,
            temperature * jax.random.normal(noise_key, given_BxSxD.shape),
            jnp.where(known_BxS, 0.0, times_K[:, None, None]),
            solver_key,
            solver,
            temperature=temperature,
            keep_estimates=bool(draft_steps),
        )
        written = jnp.where(
            jnp.repeat(known_BxS, per_latent, axis=1),
            _cut(tokens_BxL, start * per_latent, S * per_latent),
            decode(z_BxSxD),
        )
        tokens_BxL = jax.lax.dynamic_update_slice_in_dim(
            tokens_BxL, written, start * per_latent, axis=1
        )
        drafts = [decode(estimates[step - 1]) for step in draft_steps]
        return (tokens_BxL, memories), jnp.stack(drafts) if drafts else None

    memories = tuple(_blank_memory(models, places) for _ in marks) if S < N else ()
    (tokens_BxL, _), drafts = jax.lax.scan(write_block, (tokens_BxL, memories), jnp.arange(N // S))
    if drafts is None:
        return tokens_BxL, jnp.zeros((0, *tokens_BxL.shape), tokens_BxL.dtype)
    return tokens_BxL, jnp.moveaxis(drafts, 0, 2).reshape(len(draft_steps), *tokens_BxL.shape)


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _blank_memory(models: Models, places: Places) -> Memory:
    """A memory of the whole window, with nothing in it yet."""
    dit = models.dit
    shape = (dit.layers, *places.segments_BxN.shape, dit.heads, dit.width // dit.heads)
    blank = jnp.zeros(shape, activation_dtype(jnp.dtype(dit.dtype)))
    return Memory((blank, blank), places)


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
        written, drafts = write_tokens(
            writer.params, writer.latents, tokens,
            (places < lengths[:, None]).astype(np.int32),
            np.broadcast_to(places[: writer.window // per_latent] < known, (size,
                            writer.window // per_latent)),
            jax.random.fold_in(key, index), config.guidance, config.self_guidance,
            config.temperature,
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
