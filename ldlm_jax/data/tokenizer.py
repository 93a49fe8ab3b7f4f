"""Byte-level BPE with three special tokens; lossless on any UTF-8 text."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers

from ldlm_jax.data.byte_alphabet import byte_alphabet, lost_characters, missing_bytes, rare
from ldlm_jax.data.special_ids import EOS, SPECIAL_TOKENS
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.tokenizer import read_backend


def _without_prefix_space(pre_tokenizer: dict) -> dict:
    """The same, with no space put before a text."""
    parts = [_without_prefix_space(part) for part in pre_tokenizer.get("pretokenizers", ())]
    changed = {"pretokenizers": parts} if parts else {}
    if pre_tokenizer["type"] == "ByteLevel":
        changed["add_prefix_space"] = False
    return pre_tokenizer | changed


def _cuts_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Whether no token reaches over a space that stands before a word."""
    fields = json.loads(backend.to_str())
    cut = fields["pre_tokenizer"] or {}
    ours = cut.get("type") == "ByteLevel" and cut.get("use_regex") and not cut["add_prefix_space"]
    changed = fields["normalizer"] or fields["post_processor"]
    return bool(ours and not changed and all(t["special"] for t in fields["added_tokens"]))


# What may cut a text before it is cut into bytes: all of it stays.
_KEEP_ALL = {"Sequence", "ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts"}


def _parts(pre_tokenizer: dict) -> list[dict]:
    """A pre-tokenizer and all that it is made of."""
    inner = pre_tokenizer.get("pretokenizers") or ()
    return [pre_tokenizer, *(part for one in inner for part in _parts(one))]


def _keeps_all(parts: list[dict]) -> bool:
    kinds = {part.get("type") for part in parts}
    return kinds <= _KEEP_ALL and all(part.get("behavior") != "Removed" for part in parts)


def _integers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)


class _Numbers(dict):
    """Numbers of words, from 0 on in the order in which they were first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class _WordTable:
    """Tokens of the words that were met before, so that most words are looked up.

    A word begins with the space before it. Where several spaces stand together, or other white
    space, byte-level BPE cuts before the last of them.
    """

    _MARK = "\0"
    # A space that no word follows is no cut; nor is one before another.
    _NO_CUT = re.compile(r"\0 (?=[\0\s]|$)")
    _MOST_WORDS = 2**20

    def __init__(self, encode):
        self._encode = encode
        self._clear()

    def _clear(self) -> None:
        self._number = _Numbers()
        self._ids, self._start, self._length = (_integers([]) for _ in range(3))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See ``Tokenizer.encode_flat``."""
        words, counts = [], []
        for text in texts:
            parts = self._words_of(text)
            words += parts
            counts.append(len(parts))
        if len(self._number) > self._MOST_WORDS:
            self._clear()
        number = np.fromiter(map(self._number.__getitem__, words), np.int64, len(words))
        self._add(list(islice(self._number, len(self._length), None)))
        length = self._length[number]
        ends = np.cumsum(length)
        at = np.repeat(self._start[number] - (ends - length), length) + np.arange(length.sum())
        of_texts = np.append(0, ends)[np.append(0, np.cumsum(_integers(counts)))]
        return self._ids[at], np.diff(of_texts)

    def _words_of(self, text: str) -> list[str]:
        if self._MARK in text:
            return [text]
        marked = text.replace(" ", self._MARK + " ")
        return self._NO_CUT.sub(" ", marked).split(self._MARK)

    def _add(self, words: list[str]) -> None:
        ids = self._encode(words)
        length = _integers(map(len, ids))
        start = len(self._ids) + np.cumsum(length) - length
        self._start = np.append(self._start, start)
        self._length = np.append(self._length, length)
        self._ids = np.concatenate([self._ids, *map(_integers, ids)])


class Tokenizer:
    """A trained tokenizer, its vocabulary size and the fingerprint that checkpoints carry."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        # A text that happens to hold "<eos>" means those five characters.
        backend.encode_special_tokens = True
        self._bytes = None
        self._words = _WordTable(self._ids_of) if _cuts_at_spaces(backend) else None
        # A letter that the vocabulary lacks would vanish without a word.
        self._lost = lost_characters(backend.get_vocab())
        self.vocab_size = backend.get_vocab_size()
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE; the whole byte alphabet is in, so nothing is unknown."""
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def adopt(cls, backend: tokenizers.Tokenizer, name: str) -> "Tokenizer":
        """The vocabulary of a pretrained model, its ids moved up to make room for ours. One of
        ours, as in an exported model, is taken as it is.

        Args:
          backend: the model's tokenizer.
          name: of the model, for messages.

        Raises:
          UserError: it is no byte-level BPE, so that text would not come back as it was.
        """
        fields = json.loads(backend.to_str())
        model, room = fields["model"], len(SPECIAL_TOKENS)
        parts = _parts(fields["pre_tokenizer"] or {})
        cut_into_bytes = any(part.get("type") == "ByteLevel" for part in parts)
        if model["type"] != "BPE" or model.get("byte_fallback") or not cut_into_bytes:
            raise UserError(
                f"the tokenizer of {name!r} is no byte-level BPE (such as those of SmolLM, Qwen or "
                "Llama 3), and would not give every text back; set data.tokenizer='' to train one."
            )
        if not _keeps_all(parts):
            raise UserError(
                f"the tokenizer of {name!r} does not give every text back; set data.tokenizer='' "
                "to train one."
            )
        if [backend.id_to_token(number) for number in range(room)] == list(SPECIAL_TOKENS):
            return cls(backend)
        model["dropout"] = None
        model["vocab"] = {word: number + room for word, number in model["vocab"].items()}
        of_model = [token | {"id": token["id"] + room} for token in fields["added_tokens"]]
        ours = [
            {"id": number, "content": word, "special": True, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}
            for number, word in enumerate(SPECIAL_TOKENS)
        ]  # fmt: skip
        model["vocab"] |= {token["content"]: token["id"] for token in ours}
        # Nothing may change the text on its way in, or add to it.
        fields |= {"added_tokens": ours + of_model, "normalizer": None, "post_processor": None,
                 "truncation": None, "padding": None,
                 "pre_tokenizer": _without_prefix_space(fields["pre_tokenizer"])}  # fmt: skip
        for token in fields["added_tokens"]:  # nor swallow spaces around it
            token |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(fields))
        except Exception as error:  # as where two tokens had one number
            reason = " ".join(str(error).split())
            raise UserError(f"the tokenizer of {name!r} is malformed ({reason}).") from error
        backend.decoder = tokenizers.decoders.ByteLevel()
        adopted = cls(backend)
        adopted._check_round_trip(name, [token["content"] for token in of_model])
        return adopted

    def _check_round_trip(self, name: str, added: list[str]) -> None:
        vocabulary, alphabet = self._backend.get_vocab(), byte_alphabet()
        plain = set(vocabulary) - {
            t.content for t in self._backend.get_added_tokens_decoder().values()
        }
        missing = {byte for byte in missing_bytes(vocabulary) if not rare(byte)}
        if max(vocabulary.values()) >= self.vocab_size:
            raise UserError(
                f"the ids of the tokenizer of {name!r} have gaps; set data.tokenizer='' to train "
                "one."
            )
        foreign = next((word for word in plain if not set(word) <= set(alphabet)), None)
        if foreign is not None:
            raise UserError(
                f"the tokenizer of {name!r} holds {foreign!r}, which stands for no bytes; set "
                "data.tokenizer='' to train one."
            )
        words = "".join(f" a{word}\u00fc  {word} \n" for word in added[:256])
        letters = "".join(map(chr, range(1, 0x250))) + "\u4e2d\u6587 \U0001f642\t \r\n  it's 1234 "
        letters = self._lost.sub("", letters) if self._lost else letters
        for text in (letters, words):
            if missing or self.decode(self.encode([text])[0]) != text:
                raise UserError(
                    f"the tokenizer of {name!r} does not give every text back"
                    + (f" (it lacks {len(missing)} of the 256 bytes)" if missing else "")
                    + "; set data.tokenizer='' to train one."
                )

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Raises:
          UserError: it is damaged.
        """
        try:
            return cls(read_backend(path))
        except UserError as error:
            raise UserError(
                f"{error} Delete it, and what was prepared with it, and start the same command "
                "again."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what ``to_json`` wrote."""
        return cls(tokenizers.Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The contents of a ``tokenizer.json``."""
        return self._backend.to_str()

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        self._backend.save(str(partial))
        partial.replace(path)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without an end token.

        Raises:
          UserError: a text has a character that an adopted vocabulary has no tokens for.
        """
        self._check_none_lost(texts)
        return self._ids_of(texts)

    def _check_none_lost(self, texts: Sequence[str]) -> None:
        found = self._lost and next(filter(None, map(self._lost.search, texts)), None)
        if found:
            raise UserError(
                f"the tokenizer has no token for U+{ord(found[0]):04X}, which stands after "
                f"{found.string[max(0, found.start() - 20) : found.start()]!r}; take it out of "
                "the text, or set data.tokenizer='' to train a tokenizer that has all."
            )

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts one after another, and how many are of each; int64 both.

        The same ids and errors as ``encode``, several times as fast where words come again.
        """
        self._check_none_lost(texts)
        if self._words is None:
            ids = self._ids_of(texts)
            return np.concatenate([*map(_integers, ids), _integers([])]), _integers(map(len, ids))
        return self._words.encode(texts)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for special tokens."""
        if self._bytes is None:
            alphabet = byte_alphabet()
            added = self._backend.get_added_tokens_decoder()
            self._bytes = [
                bytes(alphabet[c] for c in self._backend.id_to_token(i)) if i not in added
                else b"" if added[i].special else added[i].content.encode()
                for i in range(self.vocab_size)
            ]  # fmt: skip
        return self._bytes[int(token)]

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(len(self.bytes_of(token)) for token in range(self.vocab_size))

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end token; special tokens are dropped."""
        ids = list(map(int, ids))
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
