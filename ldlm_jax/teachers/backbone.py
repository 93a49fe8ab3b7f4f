"""A frozen causal model around the latents of the TextVAE.

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

from ldlm_jax.data.special_ids import EOS, SPECIAL_TOKENS
from ldlm_jax.errors import UserError
from ldlm_jax.models.dense import matmul
from ldlm_jax.models.lowering import Dtype
from ldlm_jax.models.token_layout import TokenLayout
from ldlm_jax.pretrained import decoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig
from ldlm_jax.pretrained.hf_config import start_token
from ldlm_jax.pretrained.load import abstract_pretrained, config_of, load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import checksum, find_model
from ldlm_jax.validate import Count

# Tokens, evenly spaced over the vocabulary, of which hidden states are told their usual size.
_PROBES = 256


@dataclass(frozen=True)
class BackboneConfig:
    """The model between whose blocks the latents stand; none if ``model`` is empty.

    Attributes:
      model: a named model (``pretrained.zoo``), a folder with ``config.json`` and safetensors, or
        a ``.gguf`` file; ``data.tokenizer`` must name the same.
      layer: blocks that read; those above predict tokens.
      dtype: in which the model is kept and computes.
    """

    model: str = ""
    layer: Count = 12
    dtype: Dtype = "bfloat16"


@dataclass(frozen=True)
class Backbone:
    """The model as the TextVAE sees it: pure functions of its weights. Hashable.

    Our token ids are the model's plus three, for our special tokens. The end of a text is to the
    model what stands before one; the others it does not know: it reads zeros, and never says them.

    Attributes:
      config: the whole model.
      layer: see ``BackboneConfig``.
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

    def _run(self, weights, x_BxLxH, layout: TokenLayout, above: bool):
        """Blocks over texts, each of which begins after the first column of ``x``."""
        front = jnp.zeros_like(layout.segment_ids_BxN[:, :1])
        segments = jnp.concatenate([front - 1, layout.segment_ids_BxN], axis=1)
        positions = jnp.concatenate([front, layout.positions_BxN + 1], axis=1)
        related = segments[:, :, None] == segments[:, None, :]
        related |= (segments == -1)[:, None, :]
        part = self._part(above)
        states = decoder_lm.run_blocks(
            weights["above" if above else "below"], x_BxLxH,
            decoder_lm.causal_attention(related, positions), positions, config=part,
            wanted=(part.layers,), dtype=jnp.dtype(self.dtype),
        )  # fmt: skip
        return states[part.layers]

    def _hidden(self, weights, tokens_BxL, layout: TokenLayout):
        """Hidden states (B, 1 + L, H) after the lower blocks, of the start token and the text."""
        theirs_BxL = jnp.where(tokens_BxL == EOS, self.start, tokens_BxL - self.specials)
        theirs = jnp.pad(theirs_BxL, ((0, 0), (1, 0)), constant_values=self.start)
        x = decoder_lm.embed(weights, jnp.maximum(theirs, 0), self.config)
        x = jnp.where((theirs < 0)[..., None], 0.0, x)
        return self._run(weights, x, layout, above=False)

    def read(self, weights: dict, tokens_BxL, layout: TokenLayout) -> jax.Array:
        """What the lower blocks make of texts: (B, L, H), fp32, no gradient.

        Args:
          weights: from ``load_backbone``.
          tokens_BxL: our token ids.
          layout: of the tokens; texts do not see each other.

        Returns:
          Hidden states, of mean 0 and variance 1 a channel over tokens alone.
        """
        states = self._hidden(weights, tokens_BxL, layout)[:, 1:]
        return jax.lax.stop_gradient((states - weights["mean"]) / weights["deviation"])

    def predict(self, weights: dict, states_BxLxH, layout: TokenLayout) -> jax.Array:
        """What the upper blocks make of hidden states as ``read`` gives them, (B, L, H)."""
        rows, _, H = states_BxLxH.shape
        states_BxLxH = states_BxLxH * weights["deviation"] + weights["mean"]
        start_Bx1xH = jnp.broadcast_to(weights["begun"], (rows, 1, H))
        x = jnp.concatenate([start_Bx1xH, states_BxLxH], axis=1)
        y = self._run(weights, x, layout, above=True)[:, 1:]
        return decoder_lm.last_norm(weights, y, self.config)

    def logits(self, weights: dict, features_BxLxH, specials_HxS, vocab_size: int) -> jax.Array:
        """Logits (B, L, V) of our tokens, fp32, of what ``predict`` returned.

        Args:
          weights: from ``load_backbone``.
          features_BxLxH: from ``predict``.
          specials_HxS: adds to what the model says of our special tokens.
          vocab_size: V, our special tokens included.
        """
        head_HxV = decoder_lm.head(weights, self.config)
        dtype = jnp.dtype(self.dtype)
        theirs = matmul(features_BxLxH, head_HxV, dtype).astype(jnp.float32)
        ours = matmul(features_BxLxH, specials_HxS, dtype).astype(jnp.float32)
        ours = ours.at[..., EOS].add(theirs[..., self.start])
        return jnp.concatenate([ours, theirs], axis=-1)[..., :vocab_size]


class LoadedBackbone(NamedTuple):
    """A backbone, its weights on the mesh and its files' checksum; empty without one."""

    backbone: Backbone | None = None
    weights: dict | None = None
    checksum: str = ""


def load_backbone(setting: BackboneConfig, mesh, rules, abstract: bool = False) -> LoadedBackbone:
    """Read a backbone, if one is named, onto a mesh; or its weights as shapes, for plans.

    Raises:
      UserError: it cannot be had, is no causal model, or has no such layer.
    """
    if not setting.model:
        return LoadedBackbone()
    path = find_model(setting.model)
    if abstract:
        return _abstract(setting, path, mesh, rules)
    config, tokenizer = config_of(path), PretrainedTokenizer.load(path)
    count = tokenizer.backend.get_vocab_size()
    if count > config.vocab_size:
        raise UserError(
            f"{path}: its tokenizer has {count} tokens, more than its table of {config.vocab_size}."
        )
    tokenizer.check_table(config.vocab_size, str(path))
    start = start_token(path) if tokenizer.start is None else tokenizer.start
    backbone = _backbone(setting, config, start)
    model = load_pretrained(path, mesh=mesh, rules=rules, dtype=jnp.dtype(setting.dtype))
    blocks = model.params.pop("blocks")
    weights = model.params | {"below": {}, "above": {}}
    for name in [*blocks]:
        # Each is let go as soon as it is cut, so that the model is never held twice.
        whole = blocks.pop(name)
        weights["below"][name], weights["above"][name] = (
            whole[: setting.layer],
            whole[setting.layer :],
        )
    return LoadedBackbone(backbone, weights | _usual(backbone, weights), checksum(path))


def _abstract(setting: BackboneConfig, path, mesh, rules) -> LoadedBackbone:
    model = abstract_pretrained(path, mesh=mesh, rules=rules, dtype=jnp.dtype(setting.dtype))
    is_file = path.suffix == ".gguf"
    start = PretrainedTokenizer.load(path).start if is_file else start_token(path)
    backbone = _backbone(setting, model.config, start)

    def cut(layers: int) -> dict:
        return {
            name: jax.ShapeDtypeStruct((layers, *x.shape[1:]), x.dtype, sharding=x.sharding)
            for name, x in blocks.items()
        }

    blocks = model.params.pop("blocks")
    weights = model.params | {
        "below": cut(setting.layer), "above": cut(model.config.layers - setting.layer)
    }  # fmt: skip
    return LoadedBackbone(backbone, weights | jax.eval_shape(partial(_usual, backbone), weights))


def _backbone(setting: BackboneConfig, config, start: int) -> Backbone:
    if not isinstance(config, DecoderConfig):
        raise UserError(f"backbone.model = {setting.model!r} is no causal language model.")
    if setting.layer >= config.layers:
        raise UserError(
            f"backbone.layer = {setting.layer}: the model has {config.layers} blocks, and at least "
            "the last must predict."
        )
    return Backbone(config, setting.layer, start, setting.dtype)


def _usual(backbone: Backbone, weights: dict) -> dict:
    """Mean and deviation (H,) of hidden states, over tokens alone, and that of the start."""
    count = min(_PROBES, backbone.config.vocab_size)
    tokens = jnp.linspace(0, backbone.config.vocab_size - 1, count).astype(jnp.int32)[:, None]
    ones = jnp.ones_like(tokens)
    hidden = jax.jit(backbone._hidden)(
        weights, tokens + backbone.specials, TokenLayout(ones, 0 * ones, 0 * ones)
    )
    begun, alone = hidden[:1, :1], hidden[:, 1]
    return {
        "begun": begun, "mean": jnp.mean(alone, axis=0), "deviation": jnp.std(alone, axis=0) + 1e-3,
    }  # fmt: skip
