"""A GGUF file gives the model that a Hugging Face folder of the same weights gives."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.pretrained import decoder_lm
from ldlm_jax.pretrained.load import load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")

WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD, VOCAB, LAYERS = 32, 48, 4, 2, 8, 40, 2
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    """Random tensors of a tiny Llama under their Hugging Face names, (out, in)."""
    rng = np.random.default_rng(0)
    block = {
        "input_layernorm": (WIDTH,), "self_attn.q_proj": (HEADS * HEAD, WIDTH),
        "self_attn.k_proj": (KV_HEADS * HEAD, WIDTH), "self_attn.v_proj": (KV_HEADS * HEAD, WIDTH),
        "self_attn.o_proj": (WIDTH, HEADS * HEAD), "post_attention_layernorm": (WIDTH,),
        "mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{k}": s for i in range(LAYERS) for k, s in block.items()}
    shapes |= {"model.embed_tokens": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    shapes |= {"lm_head": (VOCAB, WIDTH)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def divisors() -> np.ndarray:
    """What the scaling divides each frequency by, from its definition in wavelengths."""
    out = []
    for i in range(0, HEAD, 2):
        wave = 2 * math.pi * 10_000.0 ** (i / HEAD)
        turns = SCALING["original_max_position_embeddings"] / wave
        share = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        out.append(1 / ((1 - share) / SCALING["factor"] + share))
    return np.array(out, np.float32)


def write_folder(folder):
    folder.mkdir()
    safetensors.save_file(
        {f"{name}.weight": w for name, w in weights().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_act": "silu", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_theta": 10_000.0, "rope_scaling": SCALING,
    }))  # fmt: skip
    return folder


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Queries or keys as a GGUF of the Llama family holds them: halves of a head in turn."""
    halves = weight.reshape(heads, 2, HEAD // 2, WIDTH)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file, scaling: str = "none", vocabulary=lambda out: None):
    out = gguf.GGUFWriter(str(file), "llama")
    for key, value in (
        ("embedding_length", WIDTH), ("block_count", LAYERS), ("feed_forward_length", HIDDEN),
        ("attention.head_count", HEADS), ("attention.head_count_kv", KV_HEADS),
    ):  # fmt: skip
        out.add_uint32(f"llama.{key}", value)
    out.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    out.add_float32("llama.rope.freq_base", 10_000.0)
    out.add_string("llama.rope.scaling.type", scaling)
    vocabulary(out)
    out.add_tensor("rope_freqs.weight", divisors())
    for name, weight in weights().items():
        if name.endswith("q_proj"):
            weight = interleaved(weight, HEADS)
        elif name.endswith("k_proj"):
            weight = interleaved(weight, KV_HEADS)
        number, _, own = name.removeprefix("model.layers.").partition(".")
        own = f"blk.{number}.{NAMES[own]}" if number.isdigit() else NAMES[name]
        out.add_tensor(f"{own}.weight", np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def load(path, **shape):
    mesh = make_mesh(MeshConfig(**shape), jax.devices()[: math.prod(shape.values())])
    return load_pretrained(path, mesh=mesh, rules=AxisRules())


def hidden_states(model):
    tokens = jnp.arange(64).reshape(2, 32) % VOCAB
    return decoder_lm.hidden_states(
        model.params, tokens, jnp.ones_like(tokens), config=model.config, layers=(1, 2)
    )


def test_a_file_and_a_folder_of_the_same_weights_are_the_same_model(tmp_path):
    """Scaled rotary frequencies, interleaved halves and grouped heads included."""
    folder = load(write_folder(tmp_path / "folder"), data=1)
    file = load(write_gguf(tmp_path / "model.gguf"), data=1, fsdp=2, tensor=2)
    chex.assert_trees_all_close(hidden_states(file), hidden_states(folder), atol=1e-4)
    assert file.config.ropes[0].divisors and not folder.config.ropes[0].divisors


def byte_level(pre):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|begin|>", *letters, "\u0120a", "\u0120ab", "12", "ab"]

    def write(out):
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre(pre)
        out.add_token_list(words)
        out.add_token_types([3] + [1] * (len(words) - 1))
        out.add_token_merges(["\u0120 a", "\u0120a b", "1 2", "a b"])
        out.add_bos_token_id(0)

    return write


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("llama-bpe", [" ab", "12", "3", "4"]),  # digits by three
        ("qwen2", [" ab", "1", "2", "3", "4"]),  # one by one
        ("tekken", [" ab", "1", "2", "3", "4"]),
        ("gpt-2", [" ab", "12", "3", "4"]),
        ("smollm", [" ab", "1", "2", "3", "4"]),
    ],
)
def test_byte_level_tokenizers_cut_as_their_models_do(tmp_path, pre, pieces):
    file = write_gguf(tmp_path / "model.gguf", vocabulary=byte_level(pre))
    tokenizer = PretrainedTokenizer.load(file)
    (encoded,) = tokenizer.encode([" ab1234"])
    own = [tokenizer.backend.id_to_token(i) for i in encoded.ids if i]
    assert [piece.replace("\u0120", " ") for piece in own] == pieces


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces_have_a_space_before_the_text_if_the_file_says_so(tmp_path, prefix):
    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a", "[twice  a]"]

    def write(out):
        out.add_tokenizer_model("llama")
        out.add_tokenizer_pre("default")
        out.add_token_list(pieces)
        out.add_token_scores([-float(i) for i in range(len(pieces))])
        out.add_token_types([2, 3] + [6] * 256 + [1, 1, 1, 4])
        out.add_bos_token_id(1)
        out.add_add_space_prefix(prefix)

    tokenizer = PretrainedTokenizer.load(write_gguf(tmp_path / "model.gguf", vocabulary=write))
    (encoded,) = tokenizer.encode(["a a[twice  a]"])
    own = [tokenizer.backend.id_to_token(i) for i in encoded.ids if i != 1]
    assert own == ["▁a" if prefix else "a", "▁a", "[twice  a]"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="rotary scaling"):
        load(write_gguf(tmp_path / "yarn.gguf", "yarn"), data=1)
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="half.gguf cannot be read"):
        load(tmp_path / "half.gguf", data=1)
