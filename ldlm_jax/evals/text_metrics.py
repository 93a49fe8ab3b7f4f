"""What can be counted in a set of texts: variety, repetition, length, and what was copied."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np


def ngrams(tokens: Sequence, n: int) -> list[tuple]:
    """All runs of n tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """Diversity and repetition of a set of texts, over words.

    Returns:
      ``distinct_n``: different n-grams over all n-grams of the set (n = 1, 2, 3); ``seq_rep_4``:
      mean share of 4-grams in a text that occurred in it before (Welleck et al. 2020);
      ``loop_rate``: share of texts with a 4-gram three times or more; ``entropy``: of the set's
      words, in nats; ``words``: mean length. A quantity that has no n-gram to count is left out.
    """
    words = [text.split() for text in texts]
    results = {}
    for n in (1, 2, 3):
        grams = [gram for text in words for gram in ngrams(text, n)]
        if grams:
            results[f"distinct_{n}"] = len(set(grams)) / len(grams)
    fours = [Counter(ngrams(text, 4)) for text in words if len(text) >= 4]
    if fours:
        repeated = [1 - len(count) / count.total() for count in fours]
        results["seq_rep_4"] = sum(repeated) / len(repeated)
        results["loop_rate"] = sum(max(c.values()) >= 3 for c in fours) / len(texts)
    counts = Counter(word for text in words for word in text)
    if counts:
        total = counts.total()
        results["entropy"] = -sum(c / total * math.log(c / total) for c in counts.values())
        results["words"] = total / len(texts)
    return results


def entropy(documents: Iterable[Sequence]) -> float:
    """Unigram entropy of the tokens of all documents together, in nats."""
    counts = Counter(token for document in documents for token in document)
    total = counts.total()
    return -sum(c / total * math.log(c / total) for c in counts.values())


def seen_before(tokens: Sequence, n: int = 4) -> np.ndarray:
    """For each token whether the n tokens that end with it stood in the document before."""
    seen, repeated = set(), np.zeros(len(tokens), bool)
    for i, gram in enumerate(ngrams(tokens, n)):
        repeated[i + n - 1] = gram in seen
        seen.add(gram)
    return repeated


def length_distance(texts: Sequence[str], reference: Sequence[str]) -> float:
    """Wasserstein distance between the lengths of two sets of texts, in words."""
    shares = np.linspace(0, 1, 513)
    quantiles = (np.quantile([len(t.split()) for t in s], shares) for s in (texts, reference))
    a, b = quantiles
    return float(np.abs(a - b).mean())


class TrainingText:
    """The words of a training split, to find what a model copied from it."""

    # Shorter runs are not worth calling copies.
    _SHORTEST = 3

    def __init__(self, documents: Iterable[str]):
        self._words: list[str | None] = []
        for document in documents:
            self._words += [*document.split(), None]
        self._places: dict[tuple, list[int]] = {}
        for place, gram in enumerate(ngrams(self._words, self._SHORTEST)):
            self._places.setdefault(gram, []).append(place)

    def longest(self, text: str) -> int:
        """Words of the longest run of a text that stands in training text; 0 if below three."""
        words, best = [*text.split(), ""], 0  # the empty word stands nowhere
        for start, gram in enumerate(ngrams(words, self._SHORTEST)):
            for place in self._places.get(gram, ()):
                if (
                    words[start + best : start + best + 1]
                    != self._words[place + best : place + best + 1]
                ):
                    continue  # no longer than the best so far
                length = self._SHORTEST
                while words[start + length] == self._words[place + length]:
                    length += 1
                best = max(best, length)
        return best

    def share(self, texts: Iterable[str], n: int = 8) -> float | None:
        """Share of the runs of n words that stand in training text; None if there are no runs."""
        grams = [gram for text in texts for gram in ngrams(text.split(), n)]
        if not grams:
            return None
        return sum(self._holds(gram) for gram in grams) / len(grams)

    def _holds(self, gram: tuple) -> bool:
        places = self._places.get(gram[: self._SHORTEST], ())
        return any(tuple(self._words[p : p + len(gram)]) == gram for p in places)


def self_bleu(texts: Sequence[str], count: int = 100) -> float:
    """Mean BLEU (0 to 100) of each of the first ``count`` texts against the others of them.

    Zhu et al. 2018, "Texygen"; high where texts are alike.
    """
    import sacrebleu

    texts = [text for text in texts if text.strip()][:count]
    bleu = sacrebleu.BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)
