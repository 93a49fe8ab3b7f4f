"""What is asked of a generator: one text, or a file of unlike ones."""

import json
from dataclasses import dataclass, fields, replace
from typing import Annotated

from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.sampling.config import REQUEST, ROW, SampleConfig, knobs, old_names
from ldlm_jax.sampling.template import Pieces, Span, parse_template
from ldlm_jax.validate import check_value, finite_file

# Texts of one request; more are other seeds.
Samples = Annotated[int, "[1, 1000000]"]
# What the generators of random numbers take.
Seed = Annotated[int, "[0, 9223372036854775807]"]
_RANGES = {"seed": Seed, "number": Annotated[int, "[0, 4294967295]"]}


@dataclass(frozen=True)
class Request:
    """One text to generate.

    Attributes:
      prompt: given beginning, or empty.
      seed: of all randomness: a request gives the same text whatever is generated beside it, as
        far as rounding does (``sampling/README.md``).
      number: tells apart the texts of one seed.
      config: how to generate it; requests of one call agree on the knobs of a CALL.
      suffix: given end, or empty.
      template: instead of both: text with spans, see ``template.parse_template``.
      revise: instead of all these: pieces of a text, see ``template.cut_spans``.
    """

    prompt: str = ""
    seed: int = 0
    number: int = 0
    config: SampleConfig = SampleConfig()
    suffix: str = ""
    template: str = ""
    revise: Pieces = ()

    def __post_init__(self):
        for name in ("seed", "number"):
            check_value(name, _RANGES[name], getattr(self, name))
        for name in ("prompt", "suffix", "template"):
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError as error:  # half of a character, or bytes of another encoding
                raise UserError(f"{name}: not Unicode text ({error.reason}).") from error
        if self.template and (self.prompt or self.suffix):
            raise UserError("a template holds all that is given: leave prompt and suffix empty.")

    @property
    def pieces(self) -> Pieces:
        """Text and spans in turn."""
        if self.revise:
            return self.revise
        if self.template:
            return parse_template(self.template)
        # A client finds what was generated behind as many characters as the prompt has.
        span = Span(open_end=not self.suffix, keeps_space=True)
        return tuple(piece for piece in (self.prompt, span, self.suffix) if piece)

    def several(self, count: int) -> list["Request"]:
        """This text and others of its seed, ``count`` in all."""
        check_value("num_samples", Samples, count)
        return [replace(self, number=number) for number in range(count)]


_EXAMPLE = '{"prompt": "The king", "steps": 20}'


def read_requests(path: str, config: SampleConfig, seed: int) -> list[Request]:
    """Requests from a JSONL file, one a line.

    Args:
      path: the file. A line may hold ``prompt``, ``suffix``, ``template``, ``seed``, ``number``
        and any knob of a ROW or a REQUEST.
      config: for what a line does not say.
      seed: likewise; the number of a line is then its place in the file.

    Raises:
      UserError: the file cannot be read, or a line is not such an object; names the line.
    """
    try:
        lines = finite_file(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read requests from {path}: {error}.") from error
    requests = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            requests.append(request_from(json.loads(line), Request("", seed, number, config)))
        # Of numbers of too many digits json raises a plain ValueError.
        except (ValueError, RecursionError, UserError) as error:
            raise UserError(f"{path}:{number + 1}: {error}") from error
    if not requests:
        raise UserError(f"{path} holds no request; a line is such as {_EXAMPLE}.")
    return requests


def request_from(row: dict, default: Request) -> Request:
    """A request from the fields of a JSON object, see ``read_requests``.

    Args:
      row: the object.
      default: holds what the object does not.

    Raises:
      UserError: it is no such object; names the field and what it may be.
    """
    if not isinstance(row, dict):
        raise UserError(f"not a JSON object such as {_EXAMPLE}.")
    texts = ("prompt", "suffix", "template", "seed", "number")
    types = {field.name: field.type for field in fields(Request) if field.name in texts}
    types |= {name: knob.type for name, knob in knobs(ROW, REQUEST).items()}
    row = {old_names().get(name, name): value for name, value in row.items()}
    for name, value in row.items():
        if name not in types:
            raise UserError(f"unknown field {name!r}; {did_you_mean(name, types)}")
        check_value(name, types[name], value)
    options = {name: value for name, value in row.items() if name not in texts}
    own = {name: value for name, value in row.items() if name in texts}
    return replace(default, **own, config=replace(default.config, **options))
