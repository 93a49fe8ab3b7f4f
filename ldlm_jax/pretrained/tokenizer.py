"""Tokenizers of pretrained models: ids, and which bytes of the text each stands for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.weights import Gguf


class Encoded(NamedTuple):
    """A tokenised text.

    Attributes:
      ids: token ids.
      spans: first and last-plus-one byte of the text (tokens, 2); (0, 0) for special tokens.
    """

    ids: list[int]
    spans: np.ndarray


class PretrainedTokenizer:
    """The tokenizer that a model was trained with.

    Attributes:
      backend: the tokenizer itself.
      start: token that every text begins with, or None. A causal model says nothing of a first
        token, and much less of the next ones, without one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, start: int | None):
        # A model's file may ask for texts of one length; here every text is as long as it is.
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.start = start

    @classmethod
    def load(cls, path: Path) -> "PretrainedTokenizer":
        """From a model's folder (``tokenizer.json``) or GGUF file.

        Raises:
          UserError: there is none, or it is of a kind that is not supported.
        """
        if path.suffix == ".gguf":
            return _from_gguf(Gguf(path))
        file = path / "tokenizer.json"
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)), None)
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{file} cannot be read ({error}).") from error

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text with the special ones its model expects around it."""
        encoded = []
        for text, e in zip(texts, self.backend.encode_batch(list(texts)), strict=True):
            # Offsets are counted in characters.
            lengths = np.array([len(c.encode()) for c in text], np.int64)
            ends = np.concatenate([[0], np.cumsum(lengths)])
            spans = ends[np.array(e.offsets, np.int64).reshape(-1, 2)]
            ids = e.ids
            if self.start is not None:
                ids, spans = [self.start, *ids], np.concatenate([[[0, 0]], spans])
            encoded.append(Encoded(ids, spans))
        return encoded


# Models whose GGUF names no start token fit for plain text, by pre-tokenizer: SmolLM2's documents
# were joined by <|endoftext|>, while its file names the first token of a chat.
_STARTS = {"smollm": "<|endoftext|>"}
# What a GGUF file calls its control tokens.
_CONTROL = 3


def _from_gguf(weights: Gguf) -> PretrainedTokenizer:
    kind, pre = weights.field("tokenizer.ggml.model"), weights.field("tokenizer.ggml.pre")
    tokens = weights.field("tokenizer.ggml.tokens") or []
    ids = {token: i for i, token in enumerate(tokens)}
    if kind == "gpt2" and pre in ("smollm", "gpt-2"):
        merges = [tuple(pair.split(" ")) for pair in weights.field("tokenizer.ggml.merges")]
        backend = tokenizers.Tokenizer(models.BPE(ids, merges))
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "llama" and not weights.field("tokenizer.ggml.add_space_prefix", True):
        merges = _merges(ids, weights.field("tokenizer.ggml.scores"))
        backend = tokenizers.Tokenizer(
            models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
        )
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        raise UserError(
            f"{weights.where}: its tokenizer ({kind}, {pre}) is not supported from GGUF; use the "
            "model's folder with tokenizer.json."
        )
    # Control tokens are no text, and text that looks like one is text.
    controls = zip(tokens, weights.field("tokenizer.ggml.token_type") or [], strict=False)
    backend.add_special_tokens([token for token, kind in controls if kind == _CONTROL])
    backend.encode_special_tokens = True
    start = ids.get(_STARTS.get(pre), weights.field("tokenizer.ggml.bos_token_id"))
    return PretrainedTokenizer(backend, start)


def _merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Merges of a SentencePiece BPE: every way to put a piece together, best scores first."""
    found = []
    for piece, number in ids.items():
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        whole = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        whole.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(scores[number], len(a), len(b), a, b) for a, b in whole]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(a, b) for *_, a, b in found]
