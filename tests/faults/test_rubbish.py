"""Files and requests of strangers: refused in a line, at once, and nothing fills the memory."""

import json
import random
import resource
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.hf_config import read_config
from ldlm_jax.pretrained.weights import Gguf, Safetensors
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import _template
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import parse_template

pytest.importorskip("gguf")
pytest.importorskip("safetensors")


@pytest.fixture
def little_memory():
    """Another two gigabytes at most: what is announced must not be allocated."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def gguf_bytes(tensors: int, fields: int, body: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + body


ANNOUNCE_TOO_MUCH = {
    "fields": gguf_bytes(0, 2**40, b""),
    "tensors": gguf_bytes(2**40, 0, b""),
    "a string": gguf_bytes(0, 1, string(b"key", 2**62)),
    "an array of numbers": gguf_bytes(0, 1, string(b"key") + struct.pack("<IIQ", 9, 6, 2**60)),
    "an array of strings": gguf_bytes(0, 1, string(b"key") + struct.pack("<IIQ", 9, 8, 2**40)),
    "an array of arrays": gguf_bytes(0, 1, string(b"key") + struct.pack("<IIQ", 9, 9, 2**40)),
    "dimensions": gguf_bytes(1, 0, string(b"w") + struct.pack("<I", 2**31) + bytes(64)),
    "an unknown type": gguf_bytes(0, 1, string(b"key") + struct.pack("<I", 77) + bytes(64)),
    "another format": b"PK\x03\x04" + bytes(64),
    "nothing": b"",
}


@pytest.mark.parametrize("what", ANNOUNCE_TOO_MUCH)
def test_a_gguf_that_announces_more_than_it_holds_is_refused(tmp_path, little_memory, what):
    file = tmp_path / "model.gguf"
    file.write_bytes(ANNOUNCE_TOO_MUCH[what])
    with pytest.raises(UserError, match=r"model.gguf cannot be read \(.*fetch it again"):
        Gguf(file)


def test_damaged_weights_are_read_or_refused_and_nothing_else(tmp_path, little_memory):
    from safetensors.numpy import save_file

    from tests.test_gguf import write_gguf

    rng = random.Random(0)
    save_file({"w": np.ones((4, 6), np.float32)}, tmp_path / "model.safetensors")
    whole = {
        Gguf: write_gguf(tmp_path / "whole.gguf").read_bytes(),
        Safetensors: (tmp_path / "model.safetensors").read_bytes(),
    }
    refused = 0
    for _ in range(400):
        for reader, content in whole.items():
            changed = bytearray(content)
            for _ in range(rng.choice((1, 1, 4))):
                changed[rng.randrange(min(len(changed), 2048))] = rng.choice((0, 1, 127, 255))
            if rng.random() < 0.3:
                del changed[rng.randrange(len(changed)) :]
            file = tmp_path / ("model.safetensors" if reader is Safetensors else "damaged.gguf")
            file.write_bytes(changed)
            try:
                reader(file if reader is Gguf else tmp_path)
            except UserError as error:
                refused += 1
                assert len(str(error).splitlines()) == 1
    assert refused > 200


LLAMA = {
    "model_type": "llama", "hidden_act": "silu", "vocab_size": 40, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is no whole number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": "32"}, "hidden_size = '32' is no whole number"),
        ({"hidden_size": 32.5}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"vocab_size": None}, "malformed|vocab_size"),
        ({"rope_scaling": [1, 2]}, "malformed|rope"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"hidden_act": {}}, "malformed|hidden_act"),
    ],
)
def test_a_malformed_config_is_one_line(tmp_path, changed, message):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    read_config(tmp_path)  # as it is, it is read
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changed))
    with pytest.raises(UserError, match=message) as error:
        read_config(tmp_path)
    assert len(str(error.value).splitlines()) == 1 and "config.json" in str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "[" * 100_000, '{"model_type": "llama", "model_type": "bert"}',
     '{"a": "\\ud800"}', "\ufeff{}"],
)  # fmt: skip
def test_what_is_no_config_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_absurd_sizes_are_refused_at_once(little_memory):
    with pytest.raises(UserError, match=r"steps"):
        SampleConfig(steps=1_000_000_000)
    with pytest.raises(UserError, match=r"batch_size"):
        SampleConfig(batch_size=2**31)
    with pytest.raises(UserError, match="longer than any window"):
        parse_template("a ____{99999999999} b")
    with pytest.raises(UserError, match="num_samples = 1000000000: must be in"):
        Request("a").several(10**9)
    tokenizer = Tokenizer.train(["some words of text"], 300)
    generator = SimpleNamespace(row_length=lambda config: 64, tokenizer=tokenizer)
    with pytest.raises(UserError, match="cannot fit the window: the text may have 64 tokens"):
        _template(generator, Request("word " * 10_000_000))
    assert _template(generator, Request("some words")).fixed_tokens > 0


def test_a_cut_tokenizer_is_named(tmp_path):
    file = tmp_path / "tokenizer-300.json"
    Tokenizer.train(["some words of text"], 300).save(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer-300.json"]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="tokenizer-300.json cannot be read"):
        Tokenizer.load(file)
