"""What is asked of a writer: how to sample, and what to write."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ldlm_jax.diffusion.sampler import SOLVERS
from ldlm_jax.errors import UserError, did_you_mean, fits_type


@dataclass(frozen=True)
class SampleConfig:
    """How text is written.

    Attributes:
      steps: denoising steps of each block; more cost more and write better.
      solver: ``"euler"``, ``"heun"``, ``"multistep"`` or ``"stochastic"``, see
        ``diffusion.sampler``.
      churn: noise of the stochastic solver; 0 is Euler.
      guidance: weight of the prompt; 1 is none, above 1 follows it more closely.
      self_guidance: weight of the model's own earlier estimate; 1 is none, above 1 makes text more
        coherent and less varied, at the price of a second evaluation a step (ELF, arXiv
        2605.10938, guides on the same condition).
      grid: where the steps stand: ``"law"`` (quantiles of the training times) or ``"uniform"``.
      temperature: of the tokens' distribution given their context; below 1 the text is more
        ordinary and less varied. Needs a model with ``diffusion.token_posterior``.
      top_p: probability of the tokens that the context may propose, the likeliest first; 1 admits
        all. It cuts off what is unlikely and leaves the rest as varied as it was. Likewise.
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
    top_p: float = 1.0
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
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1.")
        if self.batch_size < 1:
            raise UserError(f"batch_size = {self.batch_size}: at least 1.")


# Settings in which the texts of one compiled call may differ, and those in which they may not.
DIALS = ("steps", "guidance", "self_guidance", "temperature", "top_p", "lag")
SHARED = tuple(field.name for field in fields(SampleConfig) if field.name not in DIALS)


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
      prompt: given beginning, or empty.
      seed: of all randomness: a request gives the same text whatever is written beside it.
      number: tells apart the texts of one seed.
      config: how to write it. The requests of one call may differ in ``DIALS``.
    """

    prompt: str = ""
    seed: int = 0
    number: int = 0
    config: SampleConfig = SampleConfig()

    @classmethod
    def several(cls, count: int, prompt: str, seed: int, config: SampleConfig) -> list["Request"]:
        """``count`` texts of one seed."""
        if count < 1:
            raise UserError(f"num_samples = {count}: at least 1.")
        return [cls(prompt, seed, number, config) for number in range(count)]


_EXAMPLE = '{"prompt": "The king", "steps": 20}'


def read_requests(path: str, config: SampleConfig, seed: int) -> list[Request]:
    """Requests from a JSONL file, one a line.

    Args:
      path: the file. A line may hold ``prompt``, ``seed``, ``number`` and any of ``steps``,
        ``guidance``, ``self_guidance``, ``temperature``, ``top_p`` and ``lag``.
      config: for what a line does not say.
      seed: likewise; the number of a line is then its place in the file.

    Raises:
      UserError: the file cannot be read, or a line is not such an object; names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read requests from {path}: {error}.") from error
    requests = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            requests.append(_parse(json.loads(line), Request("", seed, number, config)))
        except (json.JSONDecodeError, UserError) as error:
            raise UserError(f"{path}:{number + 1}: {error}") from error
    if not requests:
        raise UserError(f"{path} holds no request; a line is such as {_EXAMPLE}.")
    return requests


def _parse(said: dict, default: Request) -> Request:
    if not isinstance(said, dict):
        raise UserError(f"not a JSON object such as {_EXAMPLE}.")
    of_request = {field.name: field.type for field in fields(Request) if field.name != "config"}
    types = of_request | {
        field.name: field.type for field in fields(SampleConfig) if field.name in DIALS
    }
    for name, value in said.items():
        if name not in types:
            raise UserError(f"unknown field {name!r}; {did_you_mean(name, types)}")
        if not fits_type(value, types[name]):
            raise UserError(f"{name} = {value!r} is not of type {types[name].__name__}.")
    dials = {name: value for name, value in said.items() if name in DIALS}
    own = {name: value for name, value in said.items() if name not in DIALS}
    return replace(default, **own, config=replace(default.config, **dials))
