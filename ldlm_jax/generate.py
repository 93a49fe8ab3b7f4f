"""From prompts to text: the one path used by the command line, the evaluations and the examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ldlm_jax.data.tokenizer import EOS, MASK, PAD, Tokenizer
from ldlm_jax.denoiser import DiffusionConfig
from ldlm_jax.diffusion.sampler import Solver
from ldlm_jax.errors import UserError
from ldlm_jax.request import DIALS, SHARED, Request, SampleConfig
from ldlm_jax.train_state import LatentStats, Models, TrainState
from ldlm_jax.write import Dials, Plan, write_tokens


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
    """Write several texts of one seed; see ``answer``.

    Args:
      writer: the model.
      config: steps, solver, guidance.
      seed: of all randomness; the same seed writes the same texts.
      num_samples: how many.
      prompt: given beginning of every text, or empty.
      draft_steps: steps after which to keep a decoded draft.
    """
    return answer(writer, Request.several(num_samples, prompt, seed, config), draft_steps)


def answer(
    writer: Writer, requests: Sequence[Request], draft_steps: tuple[int, ...] = ()
) -> Iterator[Sample]:
    """Write the texts that were asked for, in order, batch by batch.

    A batch is one compiled call whatever its requests have of their own; it takes as many steps as
    the one that asked for most.

    Args:
      writer: the model.
      requests: what to write.
      draft_steps: steps after which to keep a decoded draft.

    Raises:
      UserError: a prompt does not fit the window, guidance was asked of a model that never trained
        without its condition, a draft step is beyond the steps, or the requests differ in what
        must be alike.
    """
    if not requests:
        return
    prompts = [writer.tokenizer.encode([request.prompt])[0] for request in requests]
    for request, given in zip(requests, prompts, strict=True):
        _check(writer, request, given, draft_steps)
    plan = _plan(writer, requests, prompts, draft_steps)
    size = min(requests[0].config.batch_size, len(requests))
    for start in range(0, len(requests), size):
        part = slice(start, start + size)
        yield from _answer_batch(writer, plan, size, requests[part], prompts[part])


def _check(writer: Writer, request: Request, given: list[int], draft_steps) -> None:
    config, diffusion = request.config, writer.diffusion
    for step in draft_steps:
        if not 1 <= step <= config.steps:
            raise UserError(f"draft step {step} is not between 1 and steps = {config.steps}.")
    if len(given) >= writer.window:
        raise UserError(
            f"the prompt has {len(given)} tokens; the model's window holds {writer.window}, of "
            "which at least one must be free. Shorten the prompt."
        )
    trained = diffusion.condition_dropout > 0 and diffusion.prefix > 0
    if config.guidance != 1.0 and given and not trained:
        raise UserError(
            "guidance needs a model trained with diffusion.prefix and diffusion.condition_dropout "
            "above 0; use guidance 1."
        )
    for name in ("temperature", "top_p"):
        if getattr(config, name) != 1.0 and not diffusion.token_posterior:
            raise UserError(
                f"{name} needs a model trained with diffusion.token_posterior; use {name} 1."
            )


def _plan(writer: Writer, requests, prompts, draft_steps) -> Plan:
    """What all requests have in common."""
    configs = [request.config for request in requests]
    for name in SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise UserError(f"requests written together must agree on {name}, not {values}.")
    asked = zip(configs, prompts, strict=True)
    return Plan(
        writer.models,
        writer.diffusion,
        Solver(configs[0].solver, configs[0].churn),
        max(config.steps for config in configs),
        configs[0].grid,
        guided=any(config.guidance != 1.0 and given for config, given in asked),
        self_guided=writer.diffusion.self_condition > 0
        and any(config.self_guidance != 1.0 for config in configs),
        truncated=any(config.top_p < 1.0 for config in configs),
        draft_steps=tuple(draft_steps),
    )


def _answer_batch(writer: Writer, plan: Plan, size: int, requests, prompts) -> Iterator[Sample]:
    """Texts of one batch, filled up to ``size`` rows with copies of its last request."""
    count = len(requests)
    requests = [*requests, *[requests[-1]] * (size - count)]
    prompts = [*prompts, *[prompts[-1]] * (size - count)]
    places = np.arange(writer.window)
    per_latent = writer.models.vae.tokens_per_latent
    lengths = np.array([_length(writer, r, len(p)) for r, p in zip(requests, prompts, strict=True)])
    tokens = np.full((size, writer.window), MASK, np.int32)
    for row, given in zip(tokens, prompts, strict=True):
        row[: len(given)] = given
    known = np.array([[len(given) // per_latent] for given in prompts])
    written, drafts = write_tokens(
        writer.params,
        writer.latents,
        tokens,
        (places < lengths[:, None]).astype(np.int32),
        places[: writer.window // per_latent] < known,
        _dials(requests),
        plan=plan,
    )
    written, drafts = np.array(written), np.array(drafts)
    for row in range(count):
        request, given = requests[row], prompts[row]

        def read(ids, row=row, request=request, given=given):
            ids = _finish(ids, given, lengths[row])
            return ids, request.prompt + writer.tokenizer.decode(ids[len(given) :])

        ids, text = read(written[row])
        texts = {
            step: read(draft[row])[1] for step, draft in zip(plan.draft_steps, drafts, strict=True)
        }
        yield Sample(request.prompt, text, ids, texts)


def _dials(requests: Sequence[Request]) -> Dials:
    keys = [
        jax.random.fold_in(jax.random.key(request.seed), request.number) for request in requests
    ]
    columns = (
        np.array([getattr(request.config, name) for request in requests], np.float32)
        for name in DIALS
    )
    return Dials(jax.numpy.stack(keys), *columns)  # whose fields stand in the order of DIALS


def _length(writer: Writer, request: Request, given: int) -> int:
    """Tokens to write: a text written block by block ends where its end token falls."""
    if writer.diffusion.block_size:
        return writer.window
    rng = np.random.default_rng((request.seed, request.number))
    return int(draw_lengths(writer.lengths, given, 1, rng)[0])


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
