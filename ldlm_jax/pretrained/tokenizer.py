"""Tokenizers of pretrained models: ids, and which bytes of the text each stands for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

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


# Beyond any vocabulary.
_LARGEST_ID = 2**24


def read_backend(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json``.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exceptions, and where it panics something that is not even one.
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} cannot be read ({reason}).") from error
    largest = max(backend.get_vocab().values(), default=0)
    if largest > _LARGEST_ID:  # the library counts up to it
        raise UserError(f"{file} cannot be read (it numbers a token {largest:,}).")
    return backend


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
        if getattr(backend.model, "dropout", None):  # of training: the same text, other tokens
            backend.model.dropout = None
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
        return cls(read_backend(path / "tokenizer.json"), None)

    def check_table(self, rows: int, model: str) -> None:
        """Raise UserError unless a model's embedding table has a row for every token."""
        largest = max([*self.backend.get_vocab().values(), self.start or 0])
        if largest >= rows:
            raise UserError(
                f"{model}: its tokenizer has ids up to {largest}, but its embedding table has "
                f"{rows} rows; give the tokenizer that belongs to the model."
            )

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
# What a GGUF file calls its control tokens, and the pieces that are found in the raw text.
_CONTROL, _USER_DEFINED = 3, 4

# How byte-level BPEs cut a text before they merge, by the name of their pre-tokenizer in GGUF: the
# patterns of the models' own tokenizer.json files.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|" + (
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = {
    "llama-bpe": _WORDS.format(digits=r"\p{N}{1,3}"),
    "qwen2": _WORDS.format(digits=r"\p{N}"),
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}*{_CASED[1]}+|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}+{_CASED[1]}*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def _from_gguf(weights: Gguf) -> PretrainedTokenizer:
    try:
        return _built(weights)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{weights.where}: its tokenizer is malformed ({reason}); fetch it again."
        ) from error


def _built(weights: Gguf) -> PretrainedTokenizer:
    kind, pre = weights.field("tokenizer.ggml.model"), weights.field("tokenizer.ggml.pre")
    tokens = weights.field("tokenizer.ggml.tokens") or []
    ids = {token: i for i, token in enumerate(tokens)}
    if kind == "gpt2" and (pre in ("smollm", "gpt-2") or pre in _PATTERNS):
        merges = [tuple(pair.split(" ")) for pair in weights.field("tokenizer.ggml.merges")]
        # These two take a whole word that is a token as it is.
        whole_words = pre in ("llama-bpe", "tekken")
        backend = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=whole_words))
        backend.pre_tokenizer = _byte_level(pre)
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
    elif kind == "llama":
        merges = _merges(ids, weights.field("tokenizer.ggml.scores"))
        backend = tokenizers.Tokenizer(
            models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
        )
        backend.normalizer = normalizers.Replace(" ", "▁")
        if weights.field("tokenizer.ggml.add_space_prefix", True):
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), backend.normalizer]
            )
    else:
        raise UserError(
            f"{weights.where}: its tokenizer ({kind}, {pre}) is not supported from GGUF; use the "
            "model's folder with tokenizer.json."
        )
    # Control tokens are no text, and text that looks like one is text.
    types = weights.field("tokenizer.ggml.token_type") or []
    by_type = list(zip(tokens, types, strict=False))
    backend.add_special_tokens([token for token, kind in by_type if kind == _CONTROL])
    found_whole = [token for token, kind in by_type if kind == _USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in found_whole])
    backend.encode_special_tokens = True
    start = ids.get(_STARTS.get(pre), weights.field("tokenizer.ggml.bos_token_id"))
    return PretrainedTokenizer(backend, start)


def _byte_level(pre: str):
    if pre in _PATTERNS:
        pattern = tokenizers.Regex(_PATTERNS[pre])
        parts = [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        parts = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return pre_tokenizers.Sequence(parts)


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
