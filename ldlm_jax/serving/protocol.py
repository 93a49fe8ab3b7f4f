"""The completions protocol of OpenAI: what a body asks for, and what each choice answers."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.candidates import Sample
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.likelihood import TOP, Likelihood, is_exact
from ldlm_jax.sampling.request import Request, request_from
from ldlm_jax.sampling.template import Template
from ldlm_jax.validate import Natural, check_value

# What the protocol has and this server has not, with the value that asks for nothing.
_NOT_HERE = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}
_READ = {
    "model", "prompt", "n", "seed", "stop", "echo", "max_tokens", "logprobs", "stream",
    "stream_options", "user",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A checked body.

    Attributes:
      requests: one for each choice.
      model: the name that was asked for, or empty.
      seed: of all choices; drawn if the body names none.
      stream: send pieces.
      usage: end a stream with the numbers of tokens.
      drafts: send what a text would be by now, too.
      echo: begin with the prompt.
      stop: strings at which a text is cut.
      max_tokens: at which a continuation is cut; 0 for as many as there are.
      logprobs: likeliest tokens to tell at each place; None for no probabilities.
    """

    requests: list[Request]
    model: str
    seed: int
    stream: bool = False
    usage: bool = False
    drafts: bool = False
    echo: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int = 0
    logprobs: int | None = None


def parse(body: bytes, generator: Generator, config: SampleConfig, most: int) -> Asked:
    """Read a body.

    Args:
      body: JSON.
      generator: the model.
      config: sampling defaults.
      most: choices that one body may ask for.

    Raises:
      UserError: it is no such object, or asks for what this server does not do; names the field.
    """
    try:
        row = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError('the body is no JSON object such as {"prompt": "The king"}.')
    row = {name: value for name, value in row.items() if value is not None}
    for name, nothing in _NOT_HERE.items():
        if row.pop(name, nothing) != nothing:
            raise UserError(f"{name}: this server has no such thing; leave it out.")
    prompts = _prompts(row.pop("prompt", ""))
    n, seed = row.pop("n", 1), row.pop("seed", secrets.randbelow(2**31))
    check_value("n", int, n)
    check_value("seed", int, seed)
    if not 1 <= n * len(prompts) <= most:
        raise UserError(f"n = {n}: a request may ask for 1 to {most} texts, over all prompts.")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed = {seed}: must be from 0 to {2**31 - 1}.")
    protocol = {name: row.pop(name) for name in [*row] if name in _READ}
    for prompt in prompts if row.get("template") else ():
        if prompt:
            raise UserError("a template holds all that is given: leave prompt empty.")
    default = Request(seed=seed, config=config)
    requests = []
    for prompt in prompts:
        given = {} if row.get("template") else {"prompt": prompt}
        requests += request_from(row | given, default).several(n)
    asked = Asked(requests, str(protocol.get("model", "")), seed, **_options(protocol))
    if asked.drafts and generator.diffusion.block_size:
        raise UserError("include_drafts: only of models that write whole texts; leave it out.")
    if asked.logprobs is not None and not is_exact(generator.diffusion):
        raise UserError(
            "logprobs: this model tells no probabilities of single tokens; leave it out. Models "
            "with diffusion.block_size and diffusion.token_posterior do."
        )
    if asked.logprobs is not None and (asked.stream or row.get("template") or row.get("suffix")):
        raise UserError("logprobs: not with stream, template or suffix; leave one of them out.")
    return asked


def _prompts(prompt) -> list[str]:
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError("prompt: give a string or a list of strings; token ids are not taken.")
    return prompts


def _options(row: dict) -> dict:
    for name in ("stream", "echo"):
        check_value(name, bool, row.get(name, False))
    stop = row.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(
        isinstance(text, str) and text for text in stop
    ):  # fmt: skip
        raise UserError("stop: give a string or up to four, none of them empty.")
    check_value("max_tokens", Natural, row.get("max_tokens", 1))
    if row.get("max_tokens", 1) < 1:
        raise UserError("max_tokens = 0: must be at least 1; leave it out for the whole text.")
    if "logprobs" in row:
        check_value("logprobs", int, row["logprobs"])
        if not 0 <= row["logprobs"] <= TOP:
            raise UserError(f"logprobs = {row['logprobs']}: must be from 0 to {TOP}.")
    options = row.get("stream_options", {})
    if not isinstance(options, dict):
        raise UserError('stream_options: give an object such as {"include_usage": true}.')
    return {
        "stream": row.get("stream", False), "usage": bool(options.get("include_usage")),
        "drafts": bool(options.get("include_drafts")),
        "echo": row.get("echo", False), "stop": tuple(stop),
        "max_tokens": row.get("max_tokens", 0), "logprobs": row.get("logprobs"),
    }  # fmt: skip


@dataclass
class Choice:
    """One text of an answer, as far as it has come.

    Attributes:
      generator: the model.
      request: what is generated.
      asked: the body.
      text: sent so far.
      finish_reason: ``"stop"``, ``"length"``, or None while there may be more.
      completion_tokens: that were generated.
      logprobs: of its tokens, if asked for.
    """

    generator: Generator
    request: Request
    asked: Asked
    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0
    logprobs: dict | None = None
    _tokens: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.template = Template.of(self.request.pieces, self.generator.tokenizer)
        # Only a continuation grows from its beginning to its end.
        self.continues = self.template.continues and not self.template.infills
        self.grows = (
            self.continues
            and self.generator.diffusion.block_size > 0
            and self.request.config.best_of == 1
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were given."""
        return sum(
            len(ids)
            for piece, ids in zip(self.template.pieces, self.template.tokens, strict=True)
            if isinstance(piece, str)
        )

    def add(self, tokens_T: Sequence[int]) -> str:
        """The text that a finished block adds."""
        if not self.grows or self.finish_reason:
            return ""
        self._tokens += tokens_T
        if len(self._tokens) <= self.template.fixed_tokens:
            return ""
        text, ended = self._cut(self._tokens)
        if not ended:
            # The end may be half a character, or the beginning of a stop string.
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((_begun(text, stop) for stop in self.asked.stop),
                                          default=0)]  # fmt: skip
        return self._advance(text, ended)

    def draft(self, text: str) -> str:
        """The completion of a text that is not finished."""
        return self._until_stop(self._completion(text))

    def finish(self, sample: Sample, likelihood: Likelihood | None) -> str:
        """What is left of the finished text."""
        if self.finish_reason:
            return ""
        if self.continues:
            text, ended = self._cut(sample.tokens)
        else:
            text, ended = self._until_stop(self._completion(sample.text)), None
            self.completion_tokens = len(sample.tokens) - self.prompt_tokens
        if likelihood is not None:
            self.logprobs = self._logprobs(likelihood)
        return self._advance(text, ended or ("length" if sample.cut else "stop"))

    def _cut(self, tokens: Sequence[int]) -> tuple[str, str | None]:
        """The completion so far, and why it is over, if it is."""
        given, most = self.template.fixed_tokens, self.asked.max_tokens
        reason = None
        if most and len(tokens) >= given + most:
            tokens, reason = tokens[: given + most], "length"
        end = next((i for i, t in enumerate(tokens) if i >= given and t in (EOS, PAD)), None)
        if end is not None:
            tokens, reason = tokens[: end + 1], "stop"
        whole = self._text_of(tokens)
        text = self._until_stop(whole)
        if len(text) < len(whole):
            reason = "stop"
            while len(tokens) > given and len(self._text_of(tokens[:-1])) >= len(text):
                tokens = tokens[:-1]
        self.completion_tokens = len(tokens) - given
        return text, reason

    def _text_of(self, tokens: Sequence[int]) -> str:
        _, text = self.template.from_row(tokens, len(tokens), self.generator.tokenizer)
        return self._completion(text)

    def _completion(self, text: str) -> str:
        """Without what was given, unless it is to be echoed."""
        if self.asked.echo or self.request.template:
            return text
        end = len(text) - len(self.request.suffix)
        return text[len(self.request.prompt) : end]

    def _until_stop(self, text: str) -> str:
        start = len(self.request.prompt) if self.asked.echo else 0
        places = [at for stop in self.asked.stop if (at := text.find(stop, start)) >= 0]
        return text[: min(places)] if places else text

    def _advance(self, text: str, ended: str | None) -> str:
        new, self.text = text[len(self.text) :], text
        self.finish_reason = ended
        return new

    def _logprobs(self, likelihood: Likelihood) -> dict:
        """In the protocol's layout, of as many tokens as the text has."""
        given = self.template.fixed_tokens
        first = 0 if self.asked.echo else given
        last = given + self.completion_tokens
        tokenizer = self.generator.tokenizer
        words = [
            tokenizer.bytes_of(token).decode("utf-8", "replace")
            for token in likelihood.tokens[first:last]
        ]
        top = [
            {
                tokenizer.bytes_of(token).decode("utf-8", "replace"): value
                for token, value in list(best.items())[: self.asked.logprobs]
            }
            for best in likelihood.top[first:last]
        ]
        offsets, at = [], 0 if self.asked.echo else len(self.request.prompt)
        for word in words:
            offsets.append(at)
            at += len(word)
        return {
            "tokens": words, "token_logprobs": likelihood.token_log_probs[first:last],
            "top_logprobs": top if self.asked.logprobs else None, "text_offset": offsets,
        }  # fmt: skip


def _begun(text: str, stop: str) -> int:
    """How many of a stop string's characters, but not all, end a text."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
