"""A text with spans to be generated: how it is spelled, laid out in tokens, and read back."""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError


@dataclass(frozen=True)
class Span:
    """A part of a text that is to be generated.

    Attributes:
      tokens: how many; 0 leaves that open.
      original: text that stands there now, to be revised; empty for none.
      open_end: nothing comes after it, so that the text ends within it, wherever it likes.
      keeps_space: a space before it stays, whatever it is filled with.
    """

    tokens: int = 0
    original: str = ""
    open_end: bool = False
    keeps_space: bool = False

    @property
    def open_length(self) -> bool:
        """Whether its length must be chosen before it is generated."""
        return self.tokens == 0 and not self.original and not self.open_end


Pieces = tuple[str | Span, ...]
# What no space stands before.
_CLOSING = frozenset(",.;:!?%'\u2019)]}")
_SPAN = re.compile(r"_{3,}(?:\{(\d+)\})?")


def parse_template(template: str) -> Pieces:
    """Text and spans of a template: three or more underscores mark a span.

    ``The king ____ the gates`` leaves the span's length open, ``The king ____{3} the gates`` asks
    for three tokens. A template that ends with a span of open length is continued to wherever the
    text ends.

    Raises:
      UserError: there is no span, or one of no tokens.
    """
    pieces, at = [], 0
    for found in _SPAN.finditer(template):
        if found[1] and (len(found[1]) > 6 or not int(found[1])):
            size = "of no tokens" if len(found[1]) <= 6 else "longer than any window"
            raise UserError(f"template {template[:80]!r}: {found[0][:40]} is a span {size}.")
        last = found.end() == len(template) and not found[1]
        pieces += [template[at : found.start()], Span(int(found[1] or 0), open_end=last)]
        at = found.end()
    if not pieces:
        raise UserError(f"template {template!r} has no span: write ____ or ____{{5}} where one is.")
    return tuple(piece for piece in (*pieces, template[at:]) if piece)


def parse_spans(spec: str) -> list[tuple[int, int]]:
    """Spans ``begin:end`` of characters, separated by commas, in order.

    Raises:
      UserError: it is not so written, a span is empty, or two overlap.
    """
    spans = []
    for part in spec.split(","):
        found = re.fullmatch(r"\s*(\d+):(\d+)\s*", part)
        if not found:
            raise UserError(f"spans {spec!r}: write characters such as 10:25 or 10:25,40:52.")
        spans.append((int(found[1]), int(found[2])))
    spans.sort()
    for i, (begin, end) in enumerate(spans):
        if begin >= end:
            raise UserError(f"span {begin}:{end} is empty.")
        if i and begin < spans[i - 1][1]:
            raise UserError(f"spans {spans[i - 1][0]}:{spans[i - 1][1]} and {begin}:{end} overlap.")
    return spans


def cut_spans(text: str, spans: list[tuple[int, int]]) -> Pieces:
    """A text of which some spans (see ``parse_spans``) are to be revised.

    Raises:
      UserError: a span ends outside the text.
    """
    if spans and spans[-1][1] > len(text):
        begin, end = spans[-1]
        raise UserError(f"span {begin}:{end} ends outside the text of {len(text)} characters.")
    pieces, at = [], 0
    for begin, end in spans:
        pieces += [text[at:begin], Span(original=text[begin:end])]
        at = end
    return tuple(piece for piece in (*pieces, text[at:]) if piece)


class TokenRow(NamedTuple):
    """A text laid out in a window of L tokens.

    Attributes:
      tokens_L: observed tokens, what is to be revised, and masks elsewhere.
      segments_L: 1 within the text, 0 beyond its length.
      observed_L: true where tokens are observed.
      no_end_L: true where the text cannot end.
    """

    tokens_L: np.ndarray
    segments_L: np.ndarray
    observed_L: np.ndarray
    no_end_L: np.ndarray


@dataclass(frozen=True)
class Template:
    """Pieces of a text with their tokens; every span but a last one has its length.

    Attributes:
      pieces: text and spans in turn.
      tokens: of each piece; masks in a span that holds nothing yet.
    """

    pieces: Pieces
    tokens: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pieces: Pieces, tokenizer: Tokenizer) -> "Template":
        """The template of these pieces, free spans with no tokens yet."""
        tokens = []
        for i, piece in enumerate(pieces):
            if isinstance(piece, Span):
                ids = (
                    _encode(tokenizer, piece.original) if piece.original else [MASK] * piece.tokens
                )
            else:
                # Words bring the space before them along: one at the end belongs to the span.
                follows = i + 1 < len(pieces)
                ids = _encode(tokenizer, piece.removesuffix(" ") if follows else piece)
            tokens.append(tuple(ids))
        return cls(pieces, tuple(tokens))

    @property
    def open_spans(self) -> list[int]:
        """Which pieces are spans of open length."""
        return [i for i, p in enumerate(self.pieces) if isinstance(p, Span) and p.open_length]

    def with_lengths(self, lengths: dict[int, int]) -> "Template":
        """The same with so many tokens in these pieces."""
        tokens = list(self.tokens)
        for i, length in lengths.items():
            tokens[i] = (MASK,) * length
        return replace(self, tokens=tuple(tokens))

    @property
    def continues(self) -> bool:
        """Whether the text ends wherever it likes."""
        return isinstance(self.pieces[-1], Span) and self.pieces[-1].open_end

    @property
    def infills(self) -> bool:
        """Whether observed text, if only its end, follows what is to be generated."""
        return any(isinstance(piece, Span) and not piece.open_end for piece in self.pieces)

    @property
    def fixed_tokens(self) -> int:
        """How many tokens are observed, or have their place."""
        return sum(map(len, self.tokens))

    def to_row(
        self, window: int, length: int, pad_to_multiple: int, tokens_per_latent: int
    ) -> TokenRow:
        """The text in a row of ``window`` tokens.

        Args:
          window: L.
          length: of a text that goes on, end token included.
          pad_to_multiple: texts end at multiples of this.
          tokens_per_latent: tokens of a latent, which is observed if all of them are.
        """
        tokens, observed = [], []
        for piece, ids in zip(self.pieces, self.tokens, strict=True):
            tokens += ids
            observed += [not isinstance(piece, Span)] * len(ids)
        if not self.continues:
            tokens.append(EOS)
            tokens += [PAD] * (-len(tokens) % pad_to_multiple)
            observed += [True] * (len(tokens) - len(observed))
            length = len(tokens)
        rest = window - len(tokens)
        no_end_L = np.array([not o for o in observed] + [False] * rest)
        observed_L = np.array(observed + [False] * rest).reshape(-1, tokens_per_latent).all(axis=1)
        return TokenRow(
            np.array(tokens + [MASK] * rest, np.int32),
            (np.arange(window) < length).astype(np.int32),
            np.repeat(observed_L, tokens_per_latent),
            no_end_L,
        )

    def from_row(self, generated_L: np.ndarray, length: int, tokenizer: Tokenizer):
        """Token ids and text of a finished row, observed text as it was given.

        Args:
          generated_L: the row.
          length: of a text that goes on; it ends before, at its end token.
          tokenizer: of the model.

        Returns:
          Token ids, up to and with the end token if there is one, and the text. Of observed text
          one space is left out where a span after it begins with a comma or the like.
        """
        ids, text = [], ""
        for piece, given in zip(self.pieces, self.tokens, strict=True):
            if not isinstance(piece, Span):
                ids += given
                text += piece
                continue
            end = length if piece.open_end else len(ids) + len(given)
            filled = [int(token) for token in generated_L[len(ids) : end]]
            if piece.open_end:
                stop = next((i for i, t in enumerate(filled) if t in (EOS, PAD)), len(filled) - 1)
                filled = filled[: stop + 1]
            ids += filled
            text = _joined(text, tokenizer.decode(filled), piece.keeps_space or piece.open_end)
        if not self.continues:
            ids.append(EOS)
        return ids, text


def _joined(text: str, words: str, keeps_space: bool) -> str:
    """Text with words after it, which bring their own space along, if they want one.

    A model that fills ``The ____ said`` with "'s" means "The's said".
    """
    if not text.endswith(" "):
        return text + words
    if words[:1] in _CLOSING and not keeps_space:
        return text[:-1] + words
    return text + words.removeprefix(" ")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0]
