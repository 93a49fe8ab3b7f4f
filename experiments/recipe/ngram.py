"""A trigram scorer: a rough, fast measure of local fluency for choosing between recipes.

It does not replace a neural scorer. It sees three tokens at a time and likes repetition, so it must
be read beside distinct-n.
"""

import math
from collections import Counter
from collections.abc import Iterable

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.texts import read_texts
from ldlm_jax.evals.text_metrics import text_statistics


class Trigram:
    """Interpolated trigram model over token ids, fitted on training text."""

    def __init__(self, documents: Iterable[list[int]], vocab_size: int):
        self._n = [Counter(), Counter(), Counter()]
        self._context = [Counter(), Counter(), Counter()]
        self._vocab_size = vocab_size
        for ids in documents:
            for order, gram in self._grams(ids):
                self._n[order][gram] += 1
                self._context[order][gram[:-1]] += 1

    @staticmethod
    def _grams(ids):
        padded = [-1, -1, *ids]
        for i in range(2, len(padded)):
            for order in range(3):
                yield order, tuple(padded[i - order : i + 1])

    def _probability(self, gram: tuple) -> float:
        p = 1.0 / self._vocab_size
        for order in range(3):
            part = gram[2 - order :]
            seen = self._context[order][part[:-1]]
            # Witten-Bell-like: trust a context in proportion to how often it was seen.
            trust = seen / (seen + 5.0)
            if seen:
                p = trust * self._n[order][part] / seen + (1 - trust) * p
        return p

    def perplexity(self, documents: Iterable[list[int]]) -> float:
        """Perplexity per token of a set of documents."""
        nll, count = 0.0, 0
        for ids in documents:
            padded = [-1, -1, *ids]
            for i in range(2, len(padded)):
                nll -= math.log(self._probability(tuple(padded[i - 2 : i + 1])))
                count += 1
        return math.exp(nll / max(1, count))


class TrigramScorer:
    """The trigram model of the demo's training text. It scores all texts in the demo's tokens."""

    def __init__(self):
        prepared = prepare(resolve(load_config("configs/web_cpu.py")).data)
        self._tokenizer = prepared.tokenizer
        self.held_out = list(read_texts(prepared.text, "validation"))
        train_ids = self._tokenizer.encode(list(read_texts(prepared.text, "train")))
        self._trigram = Trigram(train_ids, self._tokenizer.vocab_size)

    def __call__(self, texts: list[str]) -> dict:
        """Trigram perplexity, and the statistics that must be read beside it."""
        perplexity = self._trigram.perplexity(self._tokenizer.encode(texts))
        statistics = {k: round(v, 3) for k, v in text_statistics(texts).items()}
        return {"trigram_perplexity": round(perplexity, 1), **statistics}
