"""From a pretrained model's files to parameters on the mesh.

Every tensor is read straight into the shards that need it, so that a host never holds more than
one parameter beside the model itself. Every missing, misshapen or unknown tensor is an error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.pretrained import decoder_lm, encoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig, Spec
from ldlm_jax.pretrained.encoder_lm import EncoderConfig
from ldlm_jax.pretrained.hf_config import FREQUENCIES, decoder_from_gguf, read_config
from ldlm_jax.pretrained.weights import Gguf, Safetensors, Weights


class Name(NamedTuple):
    """What a parameter is called in a file, ``{}`` being the number of its block.

    Attributes:
      pattern: the name.
      transposed: the file holds (out, in).
      row: the parameter is one row of the tensor.
      change: applied to what was read.
    """

    pattern: str
    transposed: bool = False
    row: int | None = None
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def without_prefix(self) -> "Name":
        """The same in a model saved without its head."""
        return self._replace(pattern=self.pattern.removeprefix("model."))


def _matrix(pattern: str) -> Name:
    return Name(pattern, transposed=True)


_HF_BLOCKS = {
    "attention_norm": Name("model.layers.{}.input_layernorm.weight"),
    "query": _matrix("model.layers.{}.self_attn.q_proj.weight"),
    "key": _matrix("model.layers.{}.self_attn.k_proj.weight"),
    "value": _matrix("model.layers.{}.self_attn.v_proj.weight"),
    "out": _matrix("model.layers.{}.self_attn.o_proj.weight"),
    "query_bias": Name("model.layers.{}.self_attn.q_proj.bias"),
    "key_bias": Name("model.layers.{}.self_attn.k_proj.bias"),
    "value_bias": Name("model.layers.{}.self_attn.v_proj.bias"),
    "out_bias": Name("model.layers.{}.self_attn.o_proj.bias"),
    "query_norm": Name("model.layers.{}.self_attn.q_norm.weight"),
    "key_norm": Name("model.layers.{}.self_attn.k_norm.weight"),
    "mlp_norm": Name("model.layers.{}.post_attention_layernorm.weight"),
    "gate": _matrix("model.layers.{}.mlp.gate_proj.weight"),
    "up": _matrix("model.layers.{}.mlp.up_proj.weight"),
    "down": _matrix("model.layers.{}.mlp.down_proj.weight"),
}
_HF_SANDWICH = {
    "attention_post_norm": Name("model.layers.{}.post_attention_layernorm.weight"),
    "mlp_norm": Name("model.layers.{}.pre_feedforward_layernorm.weight"),
    "mlp_post_norm": Name("model.layers.{}.post_feedforward_layernorm.weight"),
}
_GGUF_BLOCKS = {
    "attention_norm": Name("blk.{}.attn_norm.weight"),
    "query": _matrix("blk.{}.attn_q.weight"),
    "key": _matrix("blk.{}.attn_k.weight"),
    "value": _matrix("blk.{}.attn_v.weight"),
    "out": _matrix("blk.{}.attn_output.weight"),
    "query_bias": Name("blk.{}.attn_q.bias"),
    "key_bias": Name("blk.{}.attn_k.bias"),
    "value_bias": Name("blk.{}.attn_v.bias"),
    "query_norm": Name("blk.{}.attn_q_norm.weight"),
    "key_norm": Name("blk.{}.attn_k_norm.weight"),
    "attention_post_norm": Name("blk.{}.post_attention_norm.weight"),
    "mlp_norm": Name("blk.{}.ffn_norm.weight"),
    "mlp_post_norm": Name("blk.{}.post_ffw_norm.weight"),
    "gate": _matrix("blk.{}.ffn_gate.weight"),
    "up": _matrix("blk.{}.ffn_up.weight"),
    "down": _matrix("blk.{}.ffn_down.weight"),
}


def _plus_one(name: Name) -> Name:
    return name._replace(change=lambda weight: weight + 1)


def _unpermuted(name: Name, heads: int) -> Name:
    """Queries and keys of a Llama GGUF stand with the two halves of a head interleaved."""

    def change(weight: np.ndarray) -> np.ndarray:  # (in, out), rotated pairs side by side
        inner, out = weight.shape
        return weight.reshape(inner, heads, out // heads // 2, 2).swapaxes(2, 3).reshape(inner, out)

    return name._replace(change=change)


def _decoder_names(config: DecoderConfig, weights: Weights) -> dict:
    """Names in a Hugging Face folder; a model saved without its head lacks the prefix."""
    blocks = dict(_HF_BLOCKS)
    top = {
        "embed": Name("model.embed_tokens.weight"),
        "norm": Name("model.norm.weight"),
        "head": _matrix("lm_head.weight"),
    }
    if config.sandwich:  # Gemma, whose norms hold the distance from 1
        blocks |= _HF_SANDWICH
        blocks = {k: _plus_one(v) if k.endswith("norm") else v for k, v in blocks.items()}
        top["norm"] = _plus_one(top["norm"])
    if "embed_tokens.weight" in weights.names():
        blocks = {k: v.without_prefix() for k, v in blocks.items()}
        top = {k: v.without_prefix() for k, v in top.items()}
    return {**top, "blocks": blocks}


def _gguf_names(config: DecoderConfig, architecture: str) -> dict:
    blocks = dict(_GGUF_BLOCKS)
    if architecture == "llama":
        blocks["query"] = _unpermuted(blocks["query"], config.heads)
        blocks["key"] = _unpermuted(blocks["key"], config.kv_heads)
    return {
        "embed": Name("token_embd.weight"),
        "norm": Name("output_norm.weight"),
        "head": _matrix("output.weight"),
        "blocks": blocks,
    }


def _encoder_names(weights: Weights) -> dict:
    names = weights.names()
    prefix = next((p for p in ("bert.", "roberta.") if any(n.startswith(p) for n in names)), "")
    layer, table = f"{prefix}encoder.layer.{{}}.", f"{prefix}embeddings."
    blocks = {
        "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense",
        "down": "output.dense", "mlp_norm": "output.LayerNorm",
    }  # fmt: skip
    # Names of checkpoints that came from TensorFlow.
    old = any(name.endswith("LayerNorm.gamma") for name in names)
    scale, shift = ("gamma", "beta") if old else ("weight", "bias")

    def block(name: str, kind: str) -> Name:
        if "LayerNorm" in name:
            return Name(f"{layer}{name}.{scale if kind == 'weight' else shift}")
        return Name(f"{layer}{name}.{kind}", transposed=kind == "weight")

    return {
        "embed": Name(f"{table}word_embeddings.weight"),
        "position": Name(f"{table}position_embeddings.weight"),
        "kind": Name(f"{table}token_type_embeddings.weight", row=0),
        "norm": Name(f"{table}LayerNorm.{scale}"),
        "norm_bias": Name(f"{table}LayerNorm.{shift}"),
        "blocks": {key: block(name, "weight") for key, name in blocks.items()}
        | {f"{key}_bias": block(name, "bias") for key, name in blocks.items()},
    }


# Tensors that are no parameters of ours, or that hidden states do not need.
_UNUSED = (FREQUENCIES, "rotary_emb.inv_freq", "position_ids", "pooler.dense.", "cls.", "lm_head.")


@dataclass(frozen=True)
class Pretrained:
    """A frozen model.

    Attributes:
      config: its shape.
      params: its parameters, see ``param_specs`` of ``decoder_lm`` or ``encoder_lm``.
      where: the files it came from.
      layers: the layers that were asked for, as numbers from 0 (embeddings); none if all are there.
    """

    config: DecoderConfig | EncoderConfig
    params: dict
    where: str
    layers: tuple[int, ...] = ()


def load_pretrained(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh,
    rules: AxisRules,
    dtype: jnp.dtype = jnp.float32,
    layers: tuple[int, ...] = (),
) -> Pretrained:
    """Read a model onto a mesh.

    Args:
      path: a folder with ``config.json`` and safetensors, or a ``.gguf`` file.
      mesh: where to.
      rules: how each logical axis is split.
      dtype: of the parameters.
      layers: that are needed; blocks above the highest are neither read nor kept, nor is a head.
        None are named where the whole model is wanted.

    Raises:
      UserError: files are missing or damaged, the architecture is not supported, or tensors are
        missing, unknown or of another shape; nothing half-read is returned.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        weights = Gguf(path)
        config, architecture = decoder_from_gguf(weights)
        names = _gguf_names(config, architecture)
    else:
        config = read_config(path)
        weights = Safetensors(path)
        is_decoder = isinstance(config, DecoderConfig)
        names = _decoder_names(config, weights) if is_decoder else _encoder_names(weights)
    # Of hidden layers alone no head is needed, though the files may hold one.
    needed = replace(config, head=False) if layers and hasattr(config, "head") else config
    _check_tensors(_flat(_specs(needed), names), weights, config)
    config, layers = _up_to(config, layers)
    expected = _flat(_specs(config), names)
    params: dict = {"blocks": {}}
    # The largest first, while there is room beside them for what reading takes.
    ordered = sorted(expected.items(), key=lambda item: -math.prod(item[1][0].shape))
    for (*outer, key), (spec, name) in ordered:
        array = _place(spec, name, weights, mesh, rules, dtype)
        (params["blocks"] if outer else params)[key] = array
    return Pretrained(config, params, weights.where, layers)


def abstract_pretrained(path: str | Path, *, mesh, rules, dtype, layers=()) -> Pretrained:
    """What ``load_pretrained`` would return, as shapes and shardings.

    Of a folder it needs ``config.json`` alone: for plans.
    """
    config, layers = _up_to(config_of(path), layers)

    def shape(spec: Spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=_sharding(spec, mesh, rules))

    params = jax.tree.map(shape, _specs(config), is_leaf=lambda x: isinstance(x, Spec))
    return Pretrained(config, params, str(path), layers)


def config_of(path: str | Path) -> DecoderConfig | EncoderConfig:
    """A model's shape, without its weights: of a folder's ``config.json``, or a file's head."""
    path = Path(path)
    return decoder_from_gguf(Gguf(path))[0] if path.suffix == ".gguf" else read_config(path)


def _specs(config: DecoderConfig | EncoderConfig) -> dict:
    module = decoder_lm if isinstance(config, DecoderConfig) else encoder_lm
    return module.param_specs(config)


def _up_to(config, layers: tuple[int, ...]) -> tuple:
    """The model's first blocks, as many as the layers need, and these counted from 0."""
    if not layers:
        return config, layers
    layers = decoder_lm.resolve_layers(layers, config.layers)
    top = max(layers)
    if isinstance(config, EncoderConfig):
        return replace(config, layers=top), layers
    whole = top == config.layers
    cut = replace(config, layers=top, windows=config.windows[:top], last_norm=whole, head=False)
    return cut, layers


def _sharding(spec: Spec, mesh, rules: AxisRules) -> NamedSharding:
    axes = dict(rules.pairs())
    return NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in spec.axes)))


def _flat(specs: dict, names: dict) -> dict[tuple[str, ...], tuple[Spec, Name]]:
    flat = {}
    for key, spec in specs.items():
        if key == "blocks":
            flat |= {("blocks", k): (s, names["blocks"][k]) for k, s in spec.items()}
        else:
            flat[(key,)] = (spec, names[key])
    return flat


def _check_tensors(expected: dict, weights: Weights, config) -> None:
    """Raise UserError unless the files hold these tensors in these shapes, and no others."""
    present, used, wrong = weights.names(), set(), []
    for path, (spec, name) in expected.items():
        stacked = path[0] == "blocks"
        shape = spec.shape[1:] if stacked else spec.shape
        shape = tuple(reversed(shape)) if name.transposed else shape
        for number in range(config.layers if stacked else 1):
            tensor = name.pattern.format(number)
            used.add(tensor)
            if tensor not in present:
                wrong.append(f"{tensor} is missing")
            elif name.row is None and weights.shape(tensor) != shape:
                wrong.append(f"{tensor} is {weights.shape(tensor)} where {shape} is expected")
    for tensor in sorted(present - used):
        if not any(part in tensor for part in _UNUSED):
            wrong.append(f"{tensor} is not known")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{weights.where} does not fit its config: {'; '.join(wrong[:5])}{more}.")


def _place(spec: Spec, name: Name, weights: Weights, mesh, rules: AxisRules, dtype) -> jax.Array:
    """One parameter, each shard read by itself."""
    sharding = _sharding(spec, mesh, rules)

    def read(number: int, part: tuple[slice, ...]) -> np.ndarray:
        tensor = name.pattern.format(number)
        if name.row is not None:
            return weights.read(tensor, (slice(name.row, name.row + 1), *part))[0]
        if name.change is not None and len(part) > 1:  # mixes what other shards hold
            whole = weights.read(tensor, (slice(None),) * len(part))
            return name.change(whole.T if name.transposed else whole)[part]
        if name.transposed:
            return weights.read(tensor, tuple(reversed(part))).T
        value = weights.read(tensor, part)
        return value if name.change is None else name.change(value.astype(np.float32))

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, spec.shape, strict=True)]
        if spec.axes[0] != "layers":
            return np.ascontiguousarray(read(0, index), dtype)
        stacked = np.empty(sizes, dtype)
        for place, number in enumerate(range(*index[0].indices(spec.shape[0]))):
            stacked[place] = read(number, index[1:])
        return stacked

    return jax.make_array_from_callback(spec.shape, sharding, shard)
