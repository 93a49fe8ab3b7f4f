"""What is asked of a writer: how to sample, and what to write."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.solvers import SOLVERS
from ldlm_jax.errors import UserError, check_shares, did_you_mean, fits_type
from ldlm_jax.sampling.spec import Dials
from ldlm_jax.sampling.template import Hole, Pieces, parse_template


@dataclass(frozen=True)
class SampleConfig:
    """How text is written.

    Attributes:
      steps: denoising steps of each block; more cost more and write better.
      solver: ``"euler"``, ``"heun"``, ``"multistep"``, ``"stochastic"`` or ``"ancestral"``, see
        ``diffusion.sampler``. The last needs a model with ``diffusion.token_posterior``.
      churn: noise of the last two; 0 is Euler.
      guidance: weight of the prompt; 1 is none, above 1 follows it more closely.
      self_guidance: weight of the model's own earlier estimate; 1 is none, above 1 makes text more
        coherent and less varied, at the price of a second evaluation a step (ELF, arXiv
        2605.10938, guides on the same condition).
      context_guidance: weight of all the context against what the neighbours alone would let
        expect; 1 is none, above 1 makes text hang together, at the price of a second evaluation a
        step (Malkin et al. 2022, "Coherence Boosting"). Needs a model with blocks and
        ``diffusion.token_posterior``.
      grid: where the steps stand: ``"law"`` (quantiles of the training times) or ``"uniform"``.
      temperature: of the tokens' distribution given their context; below 1 the text is more
        ordinary and less varied. Needs a model with ``diffusion.token_posterior``.
      top_p: probability of the tokens that the context may propose, the likeliest first; 1 admits
        all. It cuts off what is unlikely and leaves the rest as varied as it was. Likewise.
      block_size: latents that are written together; 0 for as many as in training. A model trained
        with ``diffusion.blocks_of_one`` writes better, and slower, in smaller ones.
      lag: how far the beginning of a block is ahead of its end; 0 writes all of it together.
      guidance_from: guide at times from this one on (Kynkaanniemi et al. 2024, arXiv 2404.07724:
        guidance harms where noise is high and does nothing where it is low).
      guidance_to: and up to this one.
      patience: a block is finished early once its tokens have stayed the same for so many steps; 0
        takes all steps.
      sure: and the least probable of them is at least so probable.
      strength: how much of a text to be revised is forgotten; 1 keeps nothing but its length.
      best_of: texts written for one that is asked for, of which one is chosen.
      choose: ``"likelihood"``: the one that the model itself finds likeliest, of fillings of a hole
        together with what follows (``choose.log_likelihood``). ``"consensus"``: the one most like
        the others (minimum Bayes risk under chrF).
      length: tokens of the longest text, end included; 0 for the model's window. Beyond the window,
        which is all that is remembered, goes only a model with blocks.
      batch_size: samples written at once.
    """

    steps: int = 50
    solver: str = "stochastic"
    churn: float = 1.0
    guidance: float = 1.0
    self_guidance: float = 1.0
    context_guidance: float = 1.0
    grid: str = "law"
    temperature: float = 1.0
    top_p: float = 1.0
    block_size: int = 0
    lag: float = 0.0
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    patience: int = 0
    sure: float = 0.9
    strength: float = 1.0
    best_of: int = 1
    choose: str = "likelihood"
    length: int = 0
    batch_size: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps = {self.steps}: at least 1 denoising step is needed.")
        if self.solver not in SOLVERS:
            raise UserError(f"solver = {self.solver!r}: choose one of {', '.join(SOLVERS)}.")
        if self.grid not in ("law", "uniform"):
            raise UserError(f"grid = {self.grid!r}: choose 'law' or 'uniform'.")
        if self.choose not in ("likelihood", "consensus"):
            raise UserError(f"choose = {self.choose!r}: choose 'likelihood' or 'consensus'.")
        amounts = (
            "churn", "guidance", "self_guidance", "context_guidance", "lag", "patience", "length",
            "block_size",
        )  # fmt: skip
        for name in amounts:
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: must not be negative.")
        check_shares("sample", self, ("guidance_from", "guidance_to", "sure"))
        if not 0 < self.strength <= 1:
            raise UserError(f"strength = {self.strength}: must be above 0 and at most 1.")
        if self.temperature <= 0:
            raise UserError(f"temperature = {self.temperature}: must be positive.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1.")
        for name in ("batch_size", "best_of"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: at least 1.")

    def check_fits(self, diffusion: DiffusionConfig) -> None:
        """Raise UserError unless a model that was trained so can be sampled so."""
        trained = diffusion.block_size
        if self.block_size and (not trained or trained % self.block_size):
            blocks = f"blocks of {trained}, which it must divide" if trained else "no blocks"
            raise UserError(
                f"sample.block_size = {self.block_size}: the model is trained with {blocks}."
            )
        if self.context_guidance != 1 and not (trained and diffusion.token_posterior):
            raise UserError(
                "sample.context_guidance needs a model trained with diffusion.block_size and "
                "diffusion.token_posterior; use 1."
            )
        if diffusion.token_posterior:
            return
        for name in ("temperature", "top_p"):
            if getattr(self, name) != 1.0:
                raise UserError(
                    f"sample.{name} needs a model trained with diffusion.token_posterior; use 1."
                )
        if self.solver == "ancestral":
            raise UserError(
                "sample.solver = 'ancestral' draws tokens from a posterior: it needs a model "
                "trained with diffusion.token_posterior; use 'stochastic'."
            )


# Settings in which the texts of one compiled call may differ.
DIALS = tuple(name.removesuffix("_B") for name in Dials._fields if name != "keys_B")
# What is said of each text alone, and what all of one call must agree on.
OWN = (*DIALS, "best_of", "choose")
SHARED = tuple(field.name for field in fields(SampleConfig) if field.name not in OWN)


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
      prompt: given beginning, or empty.
      seed: of all randomness: a request gives the same text whatever is written beside it.
      number: tells apart the texts of one seed.
      config: how to write it. The requests of one call may differ in ``OWN``.
      suffix: given end, or empty.
      template: instead of both: given text with holes, see ``outline.parse_template``.
      revise: instead of all these: pieces of a text, see ``outline.cut_spans``.
    """

    prompt: str = ""
    seed: int = 0
    number: int = 0
    config: SampleConfig = SampleConfig()
    suffix: str = ""
    template: str = ""
    revise: Pieces = ()

    def __post_init__(self):
        if self.template and (self.prompt or self.suffix):
            raise UserError("a template holds all that is given: leave prompt and suffix empty.")

    @property
    def pieces(self) -> Pieces:
        """Text and holes in turn."""
        if self.revise:
            return self.revise
        if self.template:
            return parse_template(self.template)
        hole = Hole(last=not self.suffix)
        return tuple(piece for piece in (self.prompt, hole, self.suffix) if piece)

    def several(self, count: int) -> list["Request"]:
        """This text and others of its seed, ``count`` in all."""
        if count < 1:
            raise UserError(f"num_samples = {count}: at least 1.")
        return [replace(self, number=number) for number in range(count)]


_EXAMPLE = '{"prompt": "The king", "steps": 20}'


def read_requests(path: str, config: SampleConfig, seed: int) -> list[Request]:
    """Requests from a JSONL file, one a line.

    Args:
      path: the file. A line may hold ``prompt``, ``suffix``, ``template``, ``seed``, ``number``
        and any of ``OWN``.
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
    names = ("prompt", "suffix", "template", "seed", "number")
    types = {field.name: field.type for field in fields(Request) if field.name in names}
    types |= {field.name: field.type for field in fields(SampleConfig) if field.name in OWN}
    for name, value in said.items():
        if name not in types:
            raise UserError(f"unknown field {name!r}; {did_you_mean(name, types)}")
        if not fits_type(value, types[name]):
            raise UserError(f"{name} = {value!r} is not of type {types[name].__name__}.")
    dials = {name: value for name, value in said.items() if name in OWN}
    own = {name: value for name, value in said.items() if name not in OWN}
    return replace(default, **own, config=replace(default.config, **dials))
