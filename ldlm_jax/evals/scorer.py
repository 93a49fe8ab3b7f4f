"""A frozen causal model that reads texts: how surprised it is, and what it makes of the whole."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldlm_jax.errors import UserError
from ldlm_jax.models.dense import matmul
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.pretrained import decoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig
from ldlm_jax.pretrained.hf_config import start_token
from ldlm_jax.pretrained.load import Pretrained, load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import checksum, find_model

# Texts are read in rows of a multiple of this many tokens, so that few shapes are compiled.
_ROUND = 16
# Longest text in tokens: verses and paragraphs are far below, and attention is square.
_LONGEST = 1024
_ROWS = 16


class Score(NamedTuple):
    """What a scorer made of one text.

    Attributes:
      ids: its tokens, without the start token.
      nll: surprise at each of them, in nats.
      features: hidden state of its last token, after the last norm, fp32.
    """

    ids: list[int]
    nll: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Scorer:
    """A frozen causal language model with its tokenizer.

    Attributes:
      name: under which it was asked for.
      model: its parameters, fp32.
      tokenizer: its tokenizer.
      checksum: of its files.
    """

    name: str
    model: Pretrained
    tokenizer: PretrainedTokenizer
    checksum: str

    @classmethod
    def load(cls, name: str) -> "Scorer":
        """A scorer by name (see ``pretrained.zoo``) or path, on one device.

        Raises:
          UserError: it is not installed or no causal language model.
        """
        path = find_model(name)
        mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
        model = load_pretrained(path, mesh=mesh, rules=AxisRules())
        tokenizer = PretrainedTokenizer.load(path)
        if not isinstance(model.config, DecoderConfig):
            raise UserError(f"the scorer {name!r} is no causal language model.")
        tokenizer.check_table(model.config.vocab_size, name)
        begins = tokenizer.encode(["a"])[0].spans[0].tolist() == [0, 0]
        if not begins and path.is_dir():
            tokenizer.start = start_token(path)
        elif not begins:
            raise UserError(f"the scorer {name!r} names no start token, so a text's first word "
                            "could not be scored; use a GGUF file.")  # fmt: skip
        return cls(name, model, tokenizer, checksum(path))

    def read(self, texts: Sequence[str]) -> list[Score]:
        """Read texts, the longest of them cut at 1,024 tokens, in their order."""
        encoded = [e.ids[:_LONGEST] for e in self.tokenizer.encode(texts)]
        scores: list = [None] * len(texts)
        # Texts of like length are read together.
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for first in range(0, len(order), _ROWS):
            chosen = order[first : first + _ROWS]
            longest = max(len(encoded[i]) for i in chosen)
            ids = np.zeros((_ROWS, -(-longest // _ROUND) * _ROUND), np.int32)
            mask = np.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, : len(encoded[i])], mask[row, : len(encoded[i])] = encoded[i], 1
            nll, features = _read(self.model.params, ids, mask, config=self.model.config)
            nll, features = np.asarray(nll), np.asarray(features)
            for row, i in enumerate(chosen):
                count = len(encoded[i]) - 1
                scores[i] = Score(encoded[i][1:], nll[row, :count], features[row])
        return scores

    def score_once(self, texts: Sequence[str], folder: Path) -> list[Score]:
        """``read`` for texts that every evaluation asks of: scores are kept in a folder."""
        asked = json.dumps([self.checksum, *texts]).encode()
        file = folder / f"scores-{hashlib.sha256(asked).hexdigest()[:16]}.npz"
        if not file.exists():
            ids, nll, features = zip(*self.read(texts), strict=True)
            folder.mkdir(parents=True, exist_ok=True)
            whole = file.with_suffix(".partial.npz")
            np.savez(
                whole, lengths=[len(i) for i in ids], ids=np.concatenate(ids).astype(np.int32),
                nll=np.concatenate(nll), features=np.stack(features),
            )  # fmt: skip
            whole.rename(file)
        with np.load(file) as kept:
            ends = np.cumsum(kept["lengths"])[:-1]
            columns = np.split(kept["ids"], ends), np.split(kept["nll"], ends), kept["features"]
        return [Score(ids.tolist(), nll, row) for ids, nll, row in zip(*columns, strict=True)]


@partial(jax.jit, static_argnames="config")
def _read(params, tokens_BxN, mask_BxN, *, config: DecoderConfig):
    """Surprise (B, N - 1) at every token but the first, and features (B, M) of the last."""
    (x_BxNxM,) = decoder_lm.hidden_states(
        params, tokens_BxN, mask_BxN, config=config, layers=(config.layers,)
    )
    head_MxV = decoder_lm.head(params, config)

    def surprise(row):  # row by row: all logits of a large vocabulary would be gigabytes
        x_NxM, tokens_N = row
        logits_NxV = matmul(x_NxM[:-1], head_MxV, jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits_NxV, tokens_N[1:])

    last_B = jnp.sum(mask_BxN, axis=1) - 1
    features_BxM = jnp.take_along_axis(x_BxNxM, last_B[:, None, None], axis=1)[:, 0]
    return jax.lax.map(surprise, (x_BxNxM, tokens_BxN)), features_BxM
