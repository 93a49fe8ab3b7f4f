"""Byte-level BPE with three special tokens; lossless on any UTF-8 text."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

PAD, MASK, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<mask>", "<eos>")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters: printable bytes stand for themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """A trained tokenizer, its vocabulary size and the fingerprint that checkpoints carry."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        # A text that happens to hold "<eos>" means those five characters.
        backend.encode_special_tokens = True
        self._bytes = None
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
    def load(cls, path: Path) -> "Tokenizer":
        """Read a ``tokenizer.json``."""
        return cls(tokenizers.Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        self._backend.save(str(path))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without an end token."""
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for special tokens."""
        if self._bytes is None:
            alphabet = _byte_alphabet()
            words = (self._backend.id_to_token(i) for i in range(self.vocab_size))
            self._bytes = [
                b"" if word in SPECIAL_TOKENS else bytes(alphabet[c] for c in word)
                for word in words
            ]
        return self._bytes[int(token)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end token; special tokens are dropped."""
        ids = list(map(int, ids))
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        return self._backend.decode(ids, skip_special_tokens=True)
