"""The shape of a pretrained model, from its ``config.json`` or a GGUF file's metadata."""

import json
from pathlib import Path

from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.decoder_lm import DecoderConfig
from ldlm_jax.pretrained.encoder_lm import EncoderConfig
from ldlm_jax.pretrained.rope import Rope
from ldlm_jax.pretrained.weights import Gguf

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
ENCODERS = ("bert", "roberta", "xlm-roberta")
# What divides each rotary frequency, in a GGUF file.
FREQUENCIES = "rope_freqs.weight"
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


def read_config(folder: Path) -> DecoderConfig | EncoderConfig:
    """The model that a Hugging Face folder holds.

    Raises:
      UserError: there is no ``config.json``, a field is missing, or the architecture is not
        supported.
    """
    file = folder / "config.json"
    raw = _read_json(file)
    kind = raw.get("model_type")
    if (quantised := raw.get("quantization_config")) is not None:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        raise UserError(
            f"{file}: quantised weights ({method}) are not supported; fetch the model in bf16 or "
            "fp16, or a GGUF file."
        )
    try:
        if kind in DECODERS:
            return _decoder(raw, kind)
        if kind in ENCODERS:
            return _encoder(raw, kind)
    except KeyError as error:
        raise UserError(f"{file}: the field {error} is missing.") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{file} is malformed ({error}); fetch it again.") from error
    known = ", ".join((*DECODERS, *ENCODERS))
    raise UserError(f"{file}: model_type = {kind!r} is not supported; known: {known}.")


# Largest values of whole numbers in a config: beyond any model, and far from filling the memory.
_LARGEST = {
    "vocab_size": 2**24, "hidden_size": 2**18, "intermediate_size": 2**20,
    "num_hidden_layers": 2**10, "num_attention_heads": 2**12, "num_key_value_heads": 2**12,
    "head_dim": 2**14, "max_position_embeddings": 2**31,
}  # fmt: skip


# Numbers that must be above 0, and switches.
_POSITIVE = ("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "sliding_window",
             "sliding_window_pattern")  # fmt: skip
_NORM = ("rms_norm_eps", "layer_norm_eps")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window",
             "use_bidirectional_attention")  # fmt: skip


def _wrong(key: str, value) -> str:
    """What a value should be, where it is not."""
    if key in _LARGEST and not (type(value) is int and 1 <= value <= _LARGEST[key]):
        return f"whole number from 1 to {_LARGEST[key]:,}"
    number = type(value) in (int, float)
    if key in _POSITIVE and not (number and 0 < value < float("inf")):
        return "number above 0"
    if key in _NORM and not (number and 0 <= value < 1):
        return "number in [0, 1)"
    return "true or false" if key in _SWITCHES and type(value) is not bool else ""


def _read_json(file: Path) -> dict:
    """The object in a config file, its sizes within reason."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); fetch it again.") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again.")
    for key in (*_LARGEST, *_POSITIVE, *_NORM, *_SWITCHES):
        value = raw.get(key)
        if value is None:
            raw.pop(key, None)  # null is as good as missing
        elif needed := _wrong(key, value):
            raise UserError(f"{file}: {key} = {value!r} is no {needed}; fetch it again.")
    return raw


def _without_doubles(pairs: list) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _decoder(raw: dict, kind: str) -> DecoderConfig:
    gemma = kind == "gemma3_text"
    _refuse(raw, "mlp_bias", False)
    _refuse(raw, "partial_rotary_factor", 1.0)
    if gemma:
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            _refuse(raw, key, None)
        _refuse(raw, "use_bidirectional_attention", False)
    activation = raw.get("hidden_act") or raw.get("hidden_activation")
    activations = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
    if activation not in activations:
        raise UserError(
            f"config.json: hidden_act = {activation!r} is not supported; known: "
            f"{', '.join(activations)}."
        )
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    return DecoderConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        hidden=raw["intermediate_size"],
        layers=layers,
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        ropes=_ropes(raw, gemma),
        windows=_windows(raw, kind, layers),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tied=raw.get("tie_word_embeddings", gemma),
        qkv_bias=kind == "qwen2" or raw.get("attention_bias", False),
        out_bias=kind != "qwen2" and raw.get("attention_bias", False),
        qk_norm=kind in ("qwen3", "gemma3_text"),
        sandwich=gemma,
        activation=activations[activation],
        embed_scale=raw["hidden_size"] ** 0.5 if gemma else 1.0,
        query_scale=(head_dim / raw["query_pre_attn_scalar"]) ** 0.5 if gemma else 1.0,
    )


def start_token(folder: Path) -> int:
    """The token that stands before a text, by a folder's ``config.json``.

    Raises:
      UserError: it names none.
    """
    raw = _read_json(folder / "config.json")
    for key in ("bos_token_id", "eos_token_id"):
        token = raw.get(key)
        if token is None:
            continue
        token = token[0] if isinstance(token, list) and token else token
        if type(token) is not int or not 0 <= token < raw.get("vocab_size", token + 1):
            raise UserError(f"{folder}/config.json: {key} = {raw[key]!r} is no token of its table.")
        return token
    raise UserError(f"{folder}/config.json names neither bos_token_id nor eos_token_id.")


def _refuse(raw: dict, key: str, harmless) -> None:
    if raw.get(key, harmless) != harmless:
        raise UserError(f"config.json: {key} = {raw[key]!r} is not supported.")


def _ropes(raw: dict, gemma: bool) -> tuple[Rope, Rope]:
    """Of layers that see everything, and of those with a window."""
    context = raw["max_position_embeddings"]
    section = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = raw.get("rope_theta", 10_000.0)
    if "full_attention" in section:  # one section for each kind of layer
        near = section.get("sliding_attention", section["full_attention"])
        return tuple(Rope.from_config(s, theta, context) for s in (section["full_attention"], near))
    rope = Rope.from_config(section, theta, context)
    if gemma:
        return rope, Rope(raw.get("rope_local_base_freq", 10_000.0))
    return rope, rope


def _windows(raw: dict, kind: str, layers: int) -> tuple[int, ...]:
    window = raw.get("sliding_window") or 0
    if kind in ("qwen2", "qwen3") and not raw.get("use_sliding_window", False):
        window = 0
    if not window:
        return (0,) * layers
    if raw.get("layer_types"):
        if set(raw["layer_types"]) - {"full_attention", "sliding_attention"}:
            raise ValueError(f"layer_types = {raw['layer_types']!r}")
        return tuple(window if t == "sliding_attention" else 0 for t in raw["layer_types"])
    if kind == "gemma3_text":
        every = raw.get("sliding_window_pattern", 6)
        return tuple(0 if (i + 1) % every == 0 else window for i in range(layers))
    first = raw.get("max_window_layers", 0) if kind in ("qwen2", "qwen3") else 0
    return tuple(window if i >= first else 0 for i in range(layers))


def _encoder(raw: dict, kind: str) -> EncoderConfig:
    if raw.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"config.json: hidden_act = {raw['hidden_act']!r} is not supported.")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError("config.json: position_embedding_type must be 'absolute'.")
    return EncoderConfig(
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        hidden=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        positions=raw["max_position_embeddings"],
        first_position=0 if kind == "bert" else raw.get("pad_token_id", 1) + 1,
        norm_eps=raw.get("layer_norm_eps", 1e-12),
    )


def decoder_from_gguf(weights: Gguf) -> tuple[DecoderConfig, str]:
    """The model that a GGUF file holds, and its architecture's name there.

    Raises:
      UserError: the architecture or its rotary scaling is not supported, or a value impossible.
    """
    try:
        return _from_gguf(weights)
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{weights.where} is malformed ({error}); fetch it again.") from error


def _from_gguf(weights: Gguf) -> tuple[DecoderConfig, str]:
    kind = weights.field("general.architecture")
    if kind not in GGUF_ARCHITECTURES:
        raise UserError(
            f"{weights.where}: architecture {kind!r} is not supported; known: "
            f"{', '.join(GGUF_ARCHITECTURES)}."
        )

    def of(key: str, default=None):
        value = weights.field(f"{kind}.{key}", default)
        if value is None:
            raise UserError(f"{weights.where}: the field {kind}.{key} is missing.")
        return value

    scaling = weights.field(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UserError(
            f"{weights.where}: its rotary scaling is not supported from GGUF; use the model's "
            "safetensors."
        )
    gemma = kind == "gemma3"
    width, heads, layers = of("embedding_length"), of("attention.head_count"), of("block_count")
    head_dim = of("attention.key_length", width // heads)
    factor = of("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
    divisors: tuple[float, ...] = ()
    if FREQUENCIES in weights.names():
        divisors = tuple(weights.read(FREQUENCIES, (slice(None),)).tolist())
    base, stretch = of("rope.freq_base", 10_000.0), "linear" if factor != 1 else "default"
    far = Rope(base, stretch, factor, divisors=divisors)
    window = of("attention.sliding_window", 0) if gemma else 0
    config = DecoderConfig(
        vocab_size=weights.shape("token_embd.weight")[0],
        width=width,
        hidden=of("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=of("attention.head_count_kv", heads),
        head_dim=head_dim,
        ropes=(far, Rope(10_000.0) if gemma else far),
        windows=tuple(0 if (i + 1) % 6 == 0 else window for i in range(layers)),
        norm_eps=of("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in weights.names(),
        qkv_bias="blk.0.attn_q.bias" in weights.names(),
        qk_norm="blk.0.attn_q_norm.weight" in weights.names(),
        sandwich=gemma,
        activation="gelu" if gemma else "silu",
        embed_scale=width**0.5 if gemma else 1.0,
    )
    return config, kind
