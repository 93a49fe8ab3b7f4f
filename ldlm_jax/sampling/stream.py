"""The text of one request while it is generated, block by block."""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from ldlm_jax.sampling.candidates import Sample
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Template


class InOrder:
    """Shows the blocks of one batch in the order of their numbers, whatever order they come in."""

    def __init__(self, show: Callable[[np.ndarray], None]):
        self._show, self._next, self._early = show, 0, {}
        self._turn = threading.Lock()

    def __call__(self, index: int, tokens_BxT: np.ndarray) -> None:
        """A finished block."""
        with self._turn:
            self._early[int(index)] = tokens_BxT
            while self._next in self._early:
                self._show(self._early.pop(self._next))
                self._next += 1


class TextStream:
    """What each finished block adds to a text.

    Only a continuation by a model with blocks grows from its beginning to its end; every other text
    comes whole, at the end.
    """

    def __init__(self, generator: Generator, request: Request):
        template = Template.of(request.pieces, generator.tokenizer)
        by_blocks = generator.diffusion.block_size and request.config.best_of == 1
        self._template = template if template.continues and not template.infills else None
        if not by_blocks:
            self._template = None
        self._tokenizer, self._tokens, self._text = generator.tokenizer, [], ""

    def add(self, tokens_T: Sequence[int]) -> str:
        """The text that a block's tokens add."""
        if self._template is None:
            return ""
        self._tokens += map(int, tokens_T)
        if len(self._tokens) <= self._template.fixed_tokens:
            return ""
        _, text = self._template.from_row(self._tokens, len(self._tokens), self._tokenizer)
        # Half a character comes out as the replacement mark; the rest of it is in the next block.
        new = text.rstrip("\ufffd")[len(self._text) :]
        self._text += new
        return new

    def rest(self, sample: Sample) -> str:
        """What is left of the finished text."""
        return sample.text[len(self._text) :]
