"""Byte-level BPE with three special tokens; lossless on any UTF-8 text."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from ldlm_jax.data.special_ids import EOS, SPECIAL_TOKENS
from ldlm_jax.errors import UserError


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters: printable bytes stand for themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def _without_prefix_space(pre_tokenizer: dict) -> dict:
    """The same, with no space put before a text."""
    parts = [_without_prefix_space(part) for part in pre_tokenizer.get("pretokenizers", ())]
    changed = {"pretokenizers": parts} if parts else {}
    if pre_tokenizer["type"] == "ByteLevel":
        changed["add_prefix_space"] = False
    return pre_tokenizer | changed


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
        cut_into_bytes = '"ByteLevel"' in json.dumps(fields["pre_tokenizer"])
        if model["type"] != "BPE" or model.get("byte_fallback") or not cut_into_bytes:
            raise UserError(
                f"the tokenizer of {name!r} is no byte-level BPE (such as those of SmolLM, Qwen or "
                "Llama 3), and would not give every text back; set data.tokenizer='' to train one."
            )
        if [backend.id_to_token(number) for number in range(room)] == list(SPECIAL_TOKENS):
            return cls(backend)
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
        backend = tokenizers.Tokenizer.from_str(json.dumps(fields))
        backend.decoder = tokenizers.decoders.ByteLevel()
        adopted = cls(backend)
        adopted._check_round_trip(name, [token["content"] for token in of_model])
        return adopted

    def _check_round_trip(self, name: str, added: list[str]) -> None:
        missing = set(_byte_alphabet()) - set(self._backend.get_vocab())
        words = "".join(f" a{word}\u00fc  {word} \n" for word in added[:256])
        letters = "".join(map(chr, range(1, 0x250))) + "\u4e2d\u6587 \U0001f642\t \r\n  it's 1234 "
        for text in (letters, words):
            if missing or self.decode(self.encode([text])[0]) != text:
                raise UserError(
                    f"the tokenizer of {name!r} does not give every text back"
                    + (f" (it lacks {len(missing)} of the 256 bytes)" if missing else "")
                    + "; set data.tokenizer='' to train one."
                )

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
            added = self._backend.get_added_tokens_decoder()
            self._bytes = [
                bytes(alphabet[c] for c in self._backend.id_to_token(i)) if i not in added
                else b"" if added[i].special else added[i].content.encode()
                for i in range(self.vocab_size)
            ]  # fmt: skip
        return self._bytes[int(token)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end token; special tokens are dropped."""
        ids = list(map(int, ids))
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
