"""Files of models as the world has them: understood as they are meant, or refused in one line."""

import json
import struct

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.hf_config import read_config, start_token
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.weights import Safetensors
from tests.faults.test_rubbish import LLAMA

TEXTS = ["the old king saw the gate", "a fox ran"] * 20


def safetensors_file(folder, dtype, name="model.safetensors", size=16):
    """A file of one tensor ``w`` (2, 2), whatever its numbers are called."""
    header = {"w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("I8", 4), ("U8", 4), ("I32", 16), ("BOOL", 4), ("F8_E5M2", 4), ("F8_E8M0", 4), ("F4", 2)],
)
def test_numbers_that_need_a_scale_are_refused(tmp_path, dtype, size):
    safetensors_file(tmp_path, dtype, size=size)
    weights = Safetensors(tmp_path)
    for ask in (lambda: weights.shape("w"), lambda: weights.read("w", (slice(None),))):
        with pytest.raises(UserError, match="w is stored in .* not supported"):
            ask()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"weight_map": null}', "cannot be read"),
        ('{"weight_map": {"w": 1}}', "cannot be read"),
        ('{"weight_map": {"w": "../other/model.safetensors"}}', "is no file of its folder"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "is no file of its folder"),
        ('{"weight_map": {"w": "."}}', "is no file of its folder"),
        ('{"weight_map": {"w": "3.safetensors"}}', "lacks 3.safetensors"),
        ('{"weight_map": {"w": "1.safetensors", "v": "2.safetensors"}}', "both hold w"),
    ],
)
def test_an_index_names_files_of_its_folder_and_each_tensor_once(tmp_path, index, words):
    for name in ("1.safetensors", "2.safetensors"):
        safetensors_file(tmp_path, "F32", name)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=words) as error:
        Safetensors(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"rms_norm_eps": "1e-6"}, {"rms_norm_eps": -1}, {"rms_norm_eps": float("nan")},
        {"rope_theta": "1e4"}, {"rope_theta": 0}, {"rope_theta": True},
        {"tie_word_embeddings": "false"}, {"attention_bias": "x"}, {"head_dim": 7},
        {"num_key_value_heads": 3}, {"partial_rotary_factor": 0.5}, {"quantization_config": "x"},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
                          "high_freq_factor": 1}},
        {"model_type": "mistral", "sliding_window": -4},
        {"model_type": "mistral", "sliding_window": "4"},
        {"model_type": "mistral", "sliding_window": 4, "layer_types": ["sliding_attention"]},
        {"model_type": "mistral", "sliding_window": 4, "layer_types": ["x", "y"]},
    ],
)  # fmt: skip
def test_impossible_values_of_a_config_are_refused(tmp_path, changed):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changed))
    with pytest.raises(UserError, match="config.json") as error:
        read_config(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_null_is_as_good_as_missing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plain = read_config(tmp_path)
    nulls = dict.fromkeys(("rms_norm_eps", "rope_theta", "sliding_window", "quantization_config",
                           "rope_scaling", "attention_bias"))  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | nulls))
    assert read_config(tmp_path) == plain


@pytest.mark.parametrize("token", ["x", -1, 40, 1.5, True, {}, [], ["a"]])
def test_a_start_token_is_one_of_the_table(tmp_path, token):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"bos_token_id": token}))
    with pytest.raises(UserError, match="bos_token_id"):
        start_token(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"bos_token_id": [39]}))
    assert start_token(tmp_path) == 39


def byte_bpe():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def test_a_tokenizer_that_may_lose_text_is_not_adopted():
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for loses in (pre_tokenizers.Split("\u2028", "removed"), pre_tokenizers.WhitespaceSplit(),
                  pre_tokenizers.Punctuation("removed"), pre_tokenizers.Metaspace()):  # fmt: skip
        backend = byte_bpe()
        backend.pre_tokenizer = pre_tokenizers.Sequence([loses, bytes_of])
        with pytest.raises(UserError, match="does not give every text back"):
            Tokenizer.adopt(backend, "mine")
    size = byte_bpe().get_vocab_size()
    for word, number, words in (("\u4e2d", size, "stands for no bytes"), ("zz", 5000, "gaps")):
        fields = json.loads(byte_bpe().to_str())
        fields["model"]["vocab"][word] = number
        with pytest.raises(UserError, match=words):
            Tokenizer.adopt(tokenizers.Tokenizer.from_str(json.dumps(fields)), "mine")


def test_an_adopted_tokenizer_draws_no_lots():
    backend = byte_bpe()
    backend.model.dropout = 0.5
    adopted = Tokenizer.adopt(backend, "mine")
    assert len({tuple(adopted.encode([TEXTS[0]])[0]) for _ in range(20)}) == 1
    backend.model.dropout = 0.5
    theirs = PretrainedTokenizer(backend, None)
    assert len({tuple(theirs.encode([TEXTS[0]])[0].ids) for _ in range(20)}) == 1


def test_a_tokenizer_upon_which_the_library_panics_is_named(tmp_path):
    fields = json.loads(byte_bpe().to_str())
    fields["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        PretrainedTokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read .*Delete it"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_vocabulary_with_absurd_or_equal_numbers_is_refused_at_once(tmp_path):
    fields = json.loads(byte_bpe().to_str())
    vocabulary = fields["model"]["vocab"]
    vocabulary["zz"] = 1_939_999_999
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="numbers a token 1,939,999,999"):
        PretrainedTokenizer.load(tmp_path)
    del vocabulary["zz"]
    merged = "".join(fields["model"]["merges"][0])
    vocabulary[merged] = vocabulary["!"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(fields))
    with pytest.raises(UserError, match="the tokenizer of 'mine'"):
        Tokenizer.adopt(backend, "mine")


def test_malformed_vocabularies_of_gguf_are_named(tmp_path):
    gguf = pytest.importorskip("gguf")

    def file(merges, start=0):
        writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab"])
        if merges:
            writer.add_token_merges(merges)
        writer.add_bos_token_id(start)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "m.gguf"

    assert PretrainedTokenizer.load(file(["a b"])).encode(["ab"])[0].ids == [0, 2]
    for merges in ((), ["ab"], ["a b c"], ["a zzz"]):
        with pytest.raises(UserError, match="m.gguf: its tokenizer is malformed") as error:
            PretrainedTokenizer.load(file(merges))
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="ids up to 99"):
        PretrainedTokenizer.load(file(["a b"], start=99)).check_table(3, "m")


def test_weights_are_read_as_before(tmp_path):
    safetensors_file(tmp_path, "F64", size=32)
    assert Safetensors(tmp_path).read("w", (slice(0, 1),)).dtype == np.float64
