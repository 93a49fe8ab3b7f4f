"""Alignment with open models: two tokenizers over one text, losses, sites, and the fused step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from ldlm_jax.cli import main
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.losses.alignment import alignment_loss
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.pretrained import encoder_lm
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.teachers.loader import load_teacher
from ldlm_jax.teachers.teacher import PretrainedTeacher, carry_over
from ldlm_jax.teachers.token_alignment import AddTeacherTokens, decodable
from tests.conftest import IN_BLOCKS, sentences
from tests.parity.families import write_model

TEXTS = ("Plain words, 1234 of them.", "Naïve café — “quotes”", "🙂🙃 emoji; 中文 too!", "x")


def characters(vocabulary: str) -> tokenizers.Tokenizer:
    """A tokenizer unlike ours: every character a token."""
    ids = {c: i for i, c in enumerate(sorted(set(vocabulary)))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return backend


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.train([*sentences(), *TEXTS], 320)


def test_every_token_knows_its_bytes(ours):
    for text in (*TEXTS, "\t\n\x00 ~"):
        (ids,) = ours.encode([text])
        assert b"".join(map(ours.bytes_of, ids)) == text.encode()
    assert ours.bytes_of(EOS) == ours.bytes_of(PAD) == b""


def test_text_cut_within_a_character_is_read_from_the_next():
    raw = "é🙂 word 🙃".encode()
    assert decodable(raw) == ("é🙂 word 🙃", 0)
    assert decodable(raw[1:-1]) == ("🙂 word ", 1)
    assert decodable(raw[3:]) == (" word 🙃", 3)
    assert decodable(b"") == ("", 0)


def row_of(tokenizer, texts, window):
    tokens, segments = np.full(window, PAD, np.int32), np.zeros(window, np.int32)
    place = 0
    for number, ids in enumerate(tokenizer.encode(texts), 1):
        ids = [*ids, EOS]
        tokens[place : place + len(ids)] = ids
        segments[place : place + len(ids)] = number
        place += len(ids)
    return {"tokens": tokens, "segments": segments}


def test_both_tokenizers_speak_of_the_same_bytes(ours):
    """Accents, digits, punctuation, emoji: what both say of a byte is about the same character."""
    theirs = PretrainedTokenizer(characters("".join(TEXTS)), start=0)
    row = AddTeacherTokens(ours, theirs, 128)(row_of(ours, TEXTS, 128))
    raw = b"\0" + "".join(TEXTS).encode()
    for token, (first, last) in zip(row["tokens"], row["spans"], strict=True):
        assert raw[first:last] == ours.bytes_of(token)
    letters = {i: c for c, i in theirs.backend.get_vocab().items()}
    starts = 0
    for token, number, (first, last) in zip(
        row["teacher_tokens"], row["teacher_segments"], row["teacher_spans"], strict=True
    ):
        if number and last:
            assert raw[first:last].decode() == letters[token]
        starts += bool(number) and not last
    assert starts == len(TEXTS)  # the start tokens stand for no byte
    assert set(row["teacher_segments"]) == {0, 1, 2, 3, 4}


def test_a_row_may_begin_within_a_character():
    ours = Tokenizer.train(sentences(), 300)  # to which an emoji is four tokens
    theirs = PretrainedTokenizer(characters(" day"), start=None)
    (ids,) = ours.encode(["🙂 day"])
    row = {"tokens": np.array(ids[1:]), "segments": np.ones(len(ids) - 1, int)}
    added = AddTeacherTokens(ours, theirs, 4)(row)
    # Three bytes of the emoji are left, numbers 1 to 3; the space is the fourth.
    assert added["teacher_spans"].tolist() == [[4, 5], [5, 6], [6, 7], [7, 8]]
    assert added["spans"][:3].tolist() == [[1, 2], [2, 3], [3, 4]]


def test_what_does_not_fit_the_teachers_window_has_no_features(ours):
    theirs = PretrainedTokenizer(characters("".join(TEXTS)), start=None)
    row = AddTeacherTokens(ours, theirs, 10)(row_of(ours, TEXTS, 128))
    assert row["teacher_spans"].max() == 11 and (row["teacher_segments"] == 1).all()
    features = carry_over(jnp.ones((1, 10, 3)), row["teacher_spans"][None], row["spans"][None])[0]
    spoken = np.asarray(features[:, 0]) > 0
    assert spoken[row["spans"][:, 0] < 11][0] and not spoken[row["spans"][:, 0] >= 11].any()


def test_features_are_carried_over_by_common_bytes():
    teacher = np.array([[0, 0], [1, 3], [3, 7]])  # a start token, two bytes, four bytes
    student = np.array([[1, 3], [3, 5], [5, 7], [1, 7], [0, 0]])
    features = jnp.array([[5.0], [1.0], [10.0]])
    carried = carry_over(features[None], teacher[None], student[None])[0, :, 0]
    np.testing.assert_allclose(carried, [1.0, 10.0, 10.0, (2 * 1 + 4 * 10) / 6, 0.0], rtol=1e-6)


def test_the_same_tokenizer_gives_position_by_position(ours, tmp_path):
    ours.save(tmp_path / "tokenizer.json")
    theirs = PretrainedTokenizer.load(tmp_path)
    row = row_of(ours, sentences()[:2], 64)
    added = AddTeacherTokens(ours, theirs, 64)(row)
    features = np.random.default_rng(0).normal(size=(1, 64, 3))
    carried = carry_over(features, added["teacher_spans"][None], added["spans"][None])[0]
    of_text = (row["segments"] > 0) & (row["tokens"] != EOS)
    count = int(of_text.sum())
    np.testing.assert_allclose(carried[of_text], features[0, :count], atol=1e-6)


def _student_and_teacher(rng, valid):
    """Features with mean 0 and variance 1 over these positions, and others that differ from them
    in each channel's scale and offset."""
    student = rng.normal(size=(*valid.shape, 8))
    student = (student - student[valid].mean(0)) / student[valid].std(0)
    return student, student * np.array([1, 2, 3, 400, 1, 0.5, 1, 1]) + 5.0


def test_the_loss_vanishes_where_student_and_teacher_agree():
    """Also where one of the teacher's channels is far larger than all others."""
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    student, teacher = _student_and_teacher(rng, segments > 0)
    assert float(alignment_loss(student, teacher, segments)) < 1e-5
    other = rng.normal(size=(2, 6, 8))
    other[..., 3] = student[..., 3]
    assert float(alignment_loss(other, teacher, segments)) > 0.05
    # Empty space and positions of which the teacher says nothing do not count.
    spoken = (segments > 0) & (np.arange(12).reshape(2, 6) != 8)
    student, teacher = _student_and_teacher(rng, spoken)
    student[~spoken] += 100.0
    teacher[~spoken] = 0.0
    assert float(alignment_loss(student, teacher, segments)) < 1e-5
    assert np.isfinite(alignment_loss(student, np.zeros_like(teacher), segments))


def test_latents_of_two_tokens_take_the_bytes_of_both(monkeypatch):
    def hidden_states(params, tokens, segments, **_):
        return [jnp.array([[[1.0], [10.0], [100.0]]])]

    monkeypatch.setattr(encoder_lm, "hidden_states", hidden_states)
    batch = {
        "spans": jnp.array([[[1, 3], [3, 4], [4, 9], [0, 0], [0, 0], [0, 0]]]),
        "teacher_tokens": jnp.array([[3, 4, 5]]),
        "teacher_segments": jnp.array([[1, 1, 1]]),
        "teacher_spans": jnp.array([[[1, 2], [2, 4], [4, 9]]]),
    }
    features = PretrainedTeacher(None, "float32", tokens_per_latent=2).features({}, batch)
    np.testing.assert_allclose(features[0, :, 0], [(1 + 20) / 3, 100.0, 0.0], rtol=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, overrides):
    """A tiny Qwen3 with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    write_model("qwen3", folder)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=40, special_tokens=["?"])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.train_from_iterator(sentences(), trainer)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("alignment.site=dit", "alignment.block=1", "alignment.projection=mlp"),
                     marks=pytest.mark.slow),
        pytest.param(("alignment.site=latents",
                      "train.microbatches=2", "train.batch_size=16"), marks=pytest.mark.slow),
        ("alignment.site=clean_pass", "alignment.block=2", *IN_BLOCKS,
         "phases=[{'alignment': 1.0, 'next_token': 1.0, 'diffusion': 0.0}]"),
    ],
    ids=["encoder", "dit", "latents", "reading"],
)  # fmt: skip
def test_the_step_aligns_with_an_open_model(teacher, overrides, tmp_path, how):
    """On eight devices, from tokens to features inside the step: the loss is there and falls."""
    config = ["train", "--config", "configs/debug.py", "--workdir", str(tmp_path / "run")]
    options = [f"teacher.model={teacher}", "teacher.window=64", "teacher.layer=2",
               "phases=[{'alignment': 1.0, 'encoder_gradient': 0.1}]", "train.num_steps=60",
               "train.evals=()", "train.log_every=1"]  # fmt: skip
    assert main([*config, *overrides, *options, *how]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [m["loss/alignment"] for m in map(json.loads, lines) if "loss/alignment" in m]
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_several_layers_stand_side_by_side(teacher, overrides):
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def features(layer):
        options = [*overrides, f"teacher.model={teacher}", f"teacher.layer={layer}",
                   "phases=[{'alignment': 1.0}]"]  # fmt: skip
        experiment = resolve(load_config("configs/debug.py", options))
        prepared = prepare(experiment.data)
        guide = load_teacher(experiment, prepared, mesh)
        batch = next(train_batches(prepared, experiment.data, 2, add=guide.add))
        # A token of the teacher for each of ours, so that nothing is averaged.
        batch["spans"] = batch["teacher_spans"][:, :32]
        said = np.asarray(guide.teacher.features(guide.params, batch))
        assert said.shape[-1] == guide.width
        return said

    both = features("(-1,1)")
    for part, layer in ((both[..., :16], 3), (both[..., 16:], 1)):
        alone = features(layer)
        known = np.abs(alone).sum(-1) > 0
        size = np.sqrt(np.mean(alone[known] ** 2, -1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(part[known], alone[known] / size, atol=1e-4)


def test_cached_features_are_those_of_the_step(teacher, overrides, capsys):
    """`ldlm data --teacher` writes what the teacher says in the step, but for bf16."""
    options = [*overrides, f"teacher.model={teacher}", "teacher.layer=2",
               "phases=[{'alignment': 1.0}]"]  # fmt: skip
    cached = [*options, "teacher.cached=True"]
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def batch_and_guide(options):
        experiment = resolve(load_config("configs/debug.py", options))
        prepared = prepare(experiment.data)
        guide = load_teacher(experiment, prepared, mesh)
        batches = train_batches(prepared, experiment.data, 8, 3, add=guide.add, cache=guide.cache)
        return next(batches), guide

    with pytest.raises(UserError, match="ldlm data --teacher"):
        batch_and_guide(cached)
    assert main(["data", "--config", "configs/debug.py", "--teacher", *options]) == 0
    assert "features: " in capsys.readouterr().out
    batch, guide = batch_and_guide(options)
    features = np.asarray(guide.teacher.features(guide.params, batch))
    stored, reader = batch_and_guide(cached)
    assert reader.teacher is None and reader.width == guide.width == 16
    np.testing.assert_array_equal(stored["tokens"], batch["tokens"])
    as_stored = stored["teacher"].astype(np.float32)
    np.testing.assert_allclose(as_stored, features, rtol=2**-8, atol=1e-6)
    with pytest.raises(UserError, match="layer 1"):  # another layer is another cache
        batch_and_guide([*cached, "teacher.layer=1"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["teacher.model=qwen9"], ["no model 'qwen9'", "smollm2-135m"]),
        (["teacher.model={teacher}", "teacher.layer=7"], ["layer 7", "0 to 3"]),
        (["teacher.model=a", "teacher.layer=()"], ["teacher.layer", "several"]),
        (["teacher.model=a", "alignment.site=dit", "alignment.block=9"], ["dit.layers = 2"]),
        (["teacher.model=a", "alignment.site=clean_pass"], ["diffusion.block_size", "site=dit"]),
        (
            [
                "teacher.model=a",
                "alignment.site=clean_pass",
                *IN_BLOCKS,
                "phases=[{'alignment': 1.0, 'diffusion': 0.0}]",
            ],
            ["diffusion, token or next_token"],
        ),
        (["alignment.site=l3"], ["alignment.site", "latents"]),
    ],
)
def test_impossible_teachers_are_refused(teacher, overrides, tmp_path, capsys, options, words):
    options = [option.replace("{teacher}", str(teacher)) for option in options]
    command = ["train", "--config", "configs/debug.py", "--workdir", str(tmp_path / "x"),
               *overrides, "phases=[{'alignment': 1.0}]", *options]  # fmt: skip
    assert main(command) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
