"""A frozen causal model that reads for the TextVAE's encoder and speaks for its decoder.

Its lower blocks read the text; a small bottleneck makes latents of their hidden states. The decoder
hands hidden states made of latents to its upper blocks and its head. Only the bottleneck and the
DiT are trained.

Shape letters: B rows, L tokens, H width of the model, V its vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import EOS, SPECIAL_TOKENS
from ldlm_jax.errors import UserError
from ldlm_jax.models.layers import matmul
from ldlm_jax.models.token_layout import Places
from ldlm_jax.pretrained import decoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig
from ldlm_jax.pretrained.hf_config import start_token
from ldlm_jax.pretrained.load import abstract_pretrained, config_of, load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model, fingerprint

# Tokens, evenly spaced over the vocabulary, of which hidden states are told their usual size.
_PROBES = 256


@dataclass(frozen=True)
class FoundationConfig:
    """The model between whose blocks the latents stand; none if ``model`` is empty.

    Attributes:
      model: a named model (``teachers.named``), a folder with ``config.json`` and safetensors, or
        a ``.gguf`` file; ``data.tokenizer`` must name the same.
      layer: blocks that read; those above speak.
      dtype: in which the model is kept and computes.
    """

    model: str = ""
    layer: int = 12
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"foundation.dtype = {self.dtype!r}: choose 'float32' or 'bfloat16'.")
        if self.layer < 1:
            raise UserError(f"foundation.layer = {self.layer}: at least 1 block reads.")


@dataclass(frozen=True)
class Foundation:
    """The model as the TextVAE sees it: pure functions of its weights. Hashable.

    Our token ids are the model's plus three, for our special tokens. The end of a text is to the
    model what stands before one; the others it does not know: it reads zeros, and never says them.

    Attributes:
      config: the whole model.
      layer: see ``FoundationConfig``.
      start: the model's token before a text.
      dtype: of its products.
    """

    config: DecoderConfig
    layer: int
    start: int
    dtype: str

    @property
    def width(self) -> int:
        """Width H of the hidden states."""
        return self.config.width

    @property
    def specials(self) -> int:
        """Our special tokens, which stand before the model's."""
        return len(SPECIAL_TOKENS)

    def _part(self, above: bool) -> DecoderConfig:
        cut = slice(self.layer, None) if above else slice(self.layer)
        windows = self.config.windows[cut]
        return replace(self.config, layers=len(windows), windows=windows)

    def forward_flops(self, tokens: int, above: bool) -> float:
        """FLOPs of the products of one row, read or (``above``) said, its start included."""
        total = self._part(above).forward_flops(tokens + 1)
        return total + (2.0 * tokens * self.width * self.config.vocab_size if above else 0)

    def _run(self, weights, x_BxLxH, places: Places, above: bool):
        """Blocks over texts, each of which begins after the first column of ``x``."""
        front = jnp.zeros_like(places.segments_BxN[:, :1])
        segments = jnp.concatenate([front - 1, places.segments_BxN], axis=1)
        positions = jnp.concatenate([front, places.positions_BxN + 1], axis=1)
        related = segments[:, :, None] == segments[:, None, :]
        related |= (segments == -1)[:, None, :]
        part = self._part(above)
        states = decoder_lm.run_blocks(
            weights["above" if above else "below"], x_BxLxH,
            decoder_lm.looking_back(related, positions), positions, config=part,
            wanted=(part.layers,), dtype=jnp.dtype(self.dtype),
        )  # fmt: skip
        return states[part.layers]

    def _hidden(self, weights, tokens_BxL, places: Places):
        """Hidden states (B, 1 + L, H) after the lower blocks, of the start token and the text."""
        theirs_BxL = jnp.where(tokens_BxL == EOS, self.start, tokens_BxL - self.specials)
        theirs = jnp.pad(theirs_BxL, ((0, 0), (1, 0)), constant_values=self.start)
        x = decoder_lm.embed(weights, jnp.maximum(theirs, 0), self.config)
        x = jnp.where((theirs < 0)[..., None], 0.0, x)
        return self._run(weights, x, places, above=False)

    def read(self, weights: dict, tokens_BxL, places: Places) -> jax.Array:
        """What the lower blocks make of texts: (B, L, H), fp32, no gradient.

        Args:
          weights: from ``load_foundation``.
          tokens_BxL: our token ids.
          places: of the tokens; texts do not see each other.

        Returns:
          Hidden states, of mean 0 and variance 1 a channel over tokens said alone.
        """
        states = self._hidden(weights, tokens_BxL, places)[:, 1:]
        return jax.lax.stop_gradient((states - weights["mean"]) / weights["deviation"])

    def speak(self, weights: dict, states_BxLxH, places: Places) -> jax.Array:
        """What the upper blocks make of hidden states as ``read`` gives them, (B, L, H)."""
        rows, _, H = states_BxLxH.shape
        states_BxLxH = states_BxLxH * weights["deviation"] + weights["mean"]
        start_Bx1xH = jnp.broadcast_to(weights["begun"], (rows, 1, H))
        x = jnp.concatenate([start_Bx1xH, states_BxLxH], axis=1)
        y = self._run(weights, x, places, above=True)[:, 1:]
        return decoder_lm.last_norm(weights, y, self.config)

    def logits(self, weights: dict, features_BxLxH, specials_HxS, vocab_size: int) -> jax.Array:
        """Logits (B, L, V) of our tokens, fp32, of what ``speak`` returned.

        Args:
          weights: from ``load_foundation``.
          features_BxLxH: from ``speak``.
          specials_HxS: adds to what the model says of our special tokens.
          vocab_size: V, our special tokens included.
        """
        head_HxV = decoder_lm.head(weights, self.config)
        dtype = jnp.dtype(self.dtype)
        theirs = matmul(features_BxLxH, head_HxV, dtype).astype(jnp.float32)
        ours = matmul(features_BxLxH, specials_HxS, dtype).astype(jnp.float32)
        ours = ours.at[..., EOS].add(theirs[..., self.start])
        return jnp.concatenate([ours, theirs], axis=-1)[..., :vocab_size]


class Founded(NamedTuple):
    """A foundation, its weights on the mesh and its files' fingerprint; empty without one."""

    foundation: Foundation | None = None
    weights: dict | None = None
    fingerprint: str = ""


def load_foundation(said: FoundationConfig, mesh, rules) -> Founded:
    """Read a foundation, if one is named, onto a mesh.

    Raises:
      UserError: it cannot be had, is no causal model, or has no such layer.
    """
    if not said.model:
        return Founded()
    path = find_model(said.model)
    config, tokenizer = config_of(path), PretrainedTokenizer.load(path)
    count = tokenizer.backend.get_vocab_size()
    if count > config.vocab_size:
        raise UserError(
            f"{path}: its tokenizer has {count} tokens, more than its table of {config.vocab_size}."
        )
    start = start_token(path) if tokenizer.start is None else tokenizer.start
    foundation = _foundation(said, config, start)
    model = load_pretrained(path, mesh=mesh, rules=rules, dtype=jnp.dtype(said.dtype))
    blocks = model.params.pop("blocks")
    weights = model.params | {"below": {}, "above": {}}
    for name in [*blocks]:
        # Each is let go as soon as it is cut, so that the model is never held twice.
        whole = blocks.pop(name)
        weights["below"][name], weights["above"][name] = whole[: said.layer], whole[said.layer :]
    return Founded(foundation, weights | _usual(foundation, weights), fingerprint(path))


def abstract_foundation(said: FoundationConfig, mesh, rules) -> Founded:
    """What ``load_foundation`` would return, its weights as shapes: for plans."""
    if not said.model:
        return Founded()
    path = find_model(said.model)
    model = abstract_pretrained(path, mesh=mesh, rules=rules, dtype=jnp.dtype(said.dtype))
    is_file = path.suffix == ".gguf"
    start = PretrainedTokenizer.load(path).start if is_file else start_token(path)
    foundation = _foundation(said, model.config, start)

    def cut(layers: int) -> dict:
        return {
            name: jax.ShapeDtypeStruct((layers, *x.shape[1:]), x.dtype, sharding=x.sharding)
            for name, x in blocks.items()
        }

    blocks = model.params.pop("blocks")
    weights = model.params | {
        "below": cut(said.layer), "above": cut(model.config.layers - said.layer)
    }  # fmt: skip
    return Founded(foundation, weights | jax.eval_shape(partial(_usual, foundation), weights))


def _foundation(said: FoundationConfig, config, start: int) -> Foundation:
    if not isinstance(config, DecoderConfig):
        raise UserError(f"foundation.model = {said.model!r} is no causal language model.")
    if said.layer >= config.layers:
        raise UserError(
            f"foundation.layer = {said.layer}: the model has {config.layers} blocks, and at least "
            "the last must speak."
        )
    return Foundation(config, said.layer, start, said.dtype)


def _usual(foundation: Foundation, weights: dict) -> dict:
    """Mean and deviation (H,) of hidden states, over tokens said alone, and that of the start."""
    count = min(_PROBES, foundation.config.vocab_size)
    tokens = jnp.linspace(0, foundation.config.vocab_size - 1, count).astype(jnp.int32)[:, None]
    ones = jnp.ones_like(tokens)
    hidden = jax.jit(foundation._hidden)(
        weights, tokens + foundation.specials, Places(ones, 0 * ones, 0 * ones)
    )
    begun, alone = hidden[:1, :1], hidden[:, 1]
    return {
        "begun": begun, "mean": jnp.mean(alone, axis=0), "deviation": jnp.std(alone, axis=0) + 1e-3,
    }  # fmt: skip
