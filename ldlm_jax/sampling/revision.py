"""Rewriting spans of a text, whose paragraphs are documents of their own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import cut_spans
from ldlm_jax.validate import finite_file

Spans = list[tuple[int, int]]


def read_text(path: str) -> str:
    """The text of a file, to the last byte.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return finite_file(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}.") from error


def find_phrase(text: str, phrase: str) -> Spans:
    """Every place of a text, in characters, where a phrase stands.

    Raises:
      UserError: it stands nowhere.
    """
    spans = [found.span() for found in re.finditer(re.escape(phrase), text)] if phrase else []
    if not spans:
        raise UserError(f"the text does not hold {phrase!r}; give a phrase as it stands there.")
    return spans


@dataclass(frozen=True)
class Revision:
    """A text file of which spans are rewritten. A paragraph is a document of its own.

    Attributes:
      parts: paragraphs and what stands between them, in turn.
      requests: for the paragraphs that a span touches, by their place in ``parts``.
    """

    parts: tuple[str, ...]
    requests: dict[int, Request]

    @classmethod
    def of(cls, text: str, spans: Spans, config: SampleConfig, seed: int) -> "Revision":
        """The revision of a text's spans of characters, in order.

        Raises:
          UserError: a span is outside of the text or crosses paragraphs.
        """
        cut_spans(text, spans)  # raises where one is outside
        parts, requests, at = re.split(r"(\n\s*\n)", text), {}, 0
        for place, part in enumerate(parts):
            end = at + len(part)
            inside = [(b - at, e - at) for b, e in spans if b < end and e > at]
            if inside and (place % 2 or inside[0][0] < 0 or inside[-1][1] > len(part)):
                wrong = inside[0] if place % 2 or inside[0][0] < 0 else inside[-1]
                raise UserError(
                    f"span {wrong[0] + at}:{wrong[1] + at} crosses paragraphs: give one for each."
                )
            if inside:
                pieces = cut_spans(part, inside)
                requests[place] = Request(seed=seed, config=config, revise=pieces)
            at = end
        return cls(tuple(parts), requests)

    @property
    def original(self) -> str:
        """The file as it was."""
        return "".join(self.parts)

    def texts(self, generator: Generator, count: int) -> Iterator[str]:
        """The file with its spans rewritten, ``count`` times."""
        groups = [request.several(count) for request in self.requests.values()]
        samples = generate_requests(
            generator, [request for turn in zip(*groups, strict=True) for request in turn]
        )
        for _ in range(count):
            new = {place: next(samples).text for place in self.requests}
            yield "".join(new.get(place, part) for place, part in enumerate(self.parts))
