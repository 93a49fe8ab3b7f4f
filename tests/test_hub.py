"""Exported models: written, read, trained further; every kind of damage is one clear line."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldlm_jax import load
from ldlm_jax.cli import main
from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.serving import export as export_module
from ldlm_jax.serving.card import last_measures
from ldlm_jax.serving.export import export
from ldlm_jax.serving.hub import open_model, read_model
from ldlm_jax.workdir import load_run
from tests.conftest import DEMO, untrained_run
from tests.test_backbone import model as backbone_model  # noqa: F401 - a fixture

FAMILIES = {
    "whole": ("text_vae.tokens_per_latent=2", "data.pad_to_multiple=2", "diffusion.prefix=0.3"),
    "blocks": DEMO,
}


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def runs(overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: untrained_run(folder / name, [*overrides, *changes])
        for name, changes in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def exported(runs, one, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "whole"
    export(load_run(runs["whole"], mesh=one), folder)
    return folder


def texts(model):
    return [s.tokens for s in model.generate("My son", num_samples=3, steps=3)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_writes_the_same_texts(runs, family, tmp_path, one):
    assert main(["export", "--workdir", str(runs[family]), str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    before, after = load(runs[family], mesh=one), load(tmp_path / "out", mesh=one)
    assert texts(after) == texts(before)
    assert after.run.experiment == before.run.experiment
    assert int(after.run.average.step) == 7
    # And on eight devices, each with its share.
    kernel = read_model(tmp_path / "out").average.ema["dit"]["trunk"]["blocks"]["mlp"]["down"]
    assert kernel["kernel"].addressable_shards[0].data.size < kernel["kernel"].size


@pytest.mark.slow
def test_a_model_around_a_frozen_one_names_it(backbone_model, overrides, tmp_path, one):  # noqa: F811
    changes = (f"backbone.model={backbone_model}", f"data.tokenizer={backbone_model}",
               "backbone.layer=1", "backbone.dtype=float32")  # fmt: skip
    run = load_run(untrained_run(tmp_path / "run", [*overrides, *changes]), mesh=one)
    export(run, tmp_path / "out")
    before, after = load(tmp_path / "run", mesh=one), load(tmp_path / "out", mesh=one)
    assert texts(after) == texts(before)
    assert not any("backbone" in name for name in load_file(tmp_path / "out/model.safetensors"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {"backbone": "other"}))
    refused(tmp_path / "out", "other files of backbone.model")


def test_half_the_bits_are_half_the_size(runs, tmp_path, one):
    run = load_run(runs["whole"], mesh=one)
    for dtype in ("float32", "bfloat16"):
        export(run, tmp_path / dtype, dtype)
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("float32", "bfloat16")]
    assert sizes[1] < 0.6 * sizes[0]
    whole, half = (read_model(tmp_path / d, one).average for d in ("float32", "bfloat16"))
    np.testing.assert_array_equal(whole.latents.var_D, half.latents.var_D)
    for a, b in zip(jax.tree.leaves(whole.ema), jax.tree.leaves(half.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)
        assert b.dtype == a.dtype


def test_large_models_are_cut_into_shards_with_an_index(runs, tmp_path, one, monkeypatch):
    monkeypatch.setattr(export_module, "SHARD_BYTES", 40_000)
    run = load_run(runs["whole"], mesh=one)
    export(run, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    # Whoever may read one file of a model may read all.
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in jax.tree.leaves((run.average.ema, run.average.latents.mean_D,
                                           run.average.latents.var_D))
    )  # fmt: skip
    back = read_model(tmp_path / "out", one)
    jax.tree.map(np.testing.assert_array_equal, back.average.ema, run.average.ema)
    files[1].unlink()
    refused(tmp_path / "out", "lacks", files[1].name)


def test_the_card_tells_what_the_model_is(runs, tmp_path, one):
    run = load_run(runs["blocks"], mesh=one)
    metrics = runs["blocks"] / "metrics.jsonl"
    metrics.write_text(
        '{"step": 5, "denoising/error_mean": 0.5}\n'
        '{"step": 7, "denoising/error_mean": 0.25, "samples/text_steps_5": "words"}\n{"step'
    )
    assert last_measures(metrics) == (7, {"denoising/error_mean": 0.25})
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for words in ("library_name: ldlm_jax", "sentences.txt", "denoising/error_mean | 0.2500",
                  "at step 7", "writes blocks in windows of 32 tokens"):  # fmt: skip
        assert words in card, words
    assert str(Path.home()) not in (tmp_path / "out/config.json").read_text()


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        open_model(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing", "ldlm export"),
    "half a config": (lambda f: truncate(f / "config.json"), "config.json is damaged"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "model of another program"),
    "a foreign model": (lambda f: change_config(f, model_type="llama"), "model_type is 'llama'"),
    "of the future": (lambda f: change_config(f, format=2), "format 2 is not 1"),
    "no lengths": (lambda f: change_config(f, lengths=[1, "2"]), "lengths must be counts"),
    "few lengths": (lambda f: change_config(f, lengths=[1, 2]), "lengths has 2 counts"),
    "no step": (lambda f: change_config(f, step=None), "step is missing"),
    "an unknown key": (
        lambda f: change_config(f, experiment={"dit": {"hieght": 3}}), "config.json", "dit.hieght"
    ),
    "a section of words": (lambda f: change_config(f, experiment={"dit": 3}), "config.json"),
    "a huge model": (
        lambda f: change_config(f, experiment=of(f) | {"dit": of(f)["dit"] | {"width": 2**20}}),
        "where", "is expected", "Fetch or export it again",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "half a tokenizer": (lambda f: truncate(f / "tokenizer.json"), "tokenizer.json is damaged"),
    "another tokenizer": (lambda f: change_config(f, tokenizer="x"), "not the tokenizer"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither"),
    "half the weights": (lambda f: truncate(f / "model.safetensors"), "cannot be read"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot be read"
    ),
    "a tensor less": (
        lambda f: change_tensors(f, lambda t: t.pop("latents.mean_D")), "latents.mean_D is missing"
    ),
    "a tensor more": (
        lambda f: change_tensors(f, lambda t: t.update(x=t["latents.mean_D"])), "x is not known"
    ),
    "another shape": (
        lambda f: change_tensors(f, lambda t: t.update({"latents.mean_D": np.zeros(3, "f")})),
        "latents.mean_D is (3,) where (8,) is expected",
    ),
}  # fmt: skip


def of(folder):
    return json.loads((folder / "config.json").read_text())["experiment"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_folders_are_refused_in_a_line(exported, tmp_path, damage):
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    change, *words = DAMAGE[damage]
    change(folder)
    refused(folder, *words)
    assert {path.name for path in tmp_path.rglob("*")} <= set(before)  # nothing was written


def test_what_is_not_there_or_in_the_way_is_refused(runs, exported, tmp_path, one, monkeypatch):
    for name in (tmp_path / "none", "~no-such-user/model", "a" * 5000, "nul\0", "hf://a/b"):
        refused(name, "no model")
    refused("")
    refused("nobody/no-such-model", "nobody/no-such-model")
    with pytest.raises(UserError, match="one step only"):
        open_model(exported, 3)
    run = load_run(runs["whole"], mesh=one)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="exists already"):
        export(run, tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        export(run, tmp_path / "file" / "out")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    refused("owner/name", "pip install huggingface_hub")


@pytest.mark.slow
def test_commands_take_a_model_where_they_take_a_run(exported, runs, tmp_path, capsys):
    answers = []
    for source in (["--model", str(exported)], ["--workdir", str(runs["whole"])]):
        command = ["sample", *source, "--num-samples", "2", "--steps", "2", "--prompt", "The"]
        assert main(command) == 0
        answers.append(capsys.readouterr().out)
        assert main(["eval", *source, "--evals", "denoising", "--json", str(tmp_path / "e")]) == 0
        answers[-1] += capsys.readouterr().out
    assert answers[0] == answers[1] and "The" in answers[0]
    assert main(["sample", "--model", str(exported), "--step", "3"]) == 2
    assert "one step only" in capsys.readouterr().err


@pytest.mark.slow
def test_training_begins_with_a_models_weights(exported, overrides, tmp_path, capsys):
    command = ["train", "--config", "configs/debug.py", "--workdir", str(tmp_path / "run"),
               "--init", str(exported), *overrides, *FAMILIES["whole"], "train.num_steps=1",
               "optim.learning_rate=1e-9", f"data.tokenizer={exported}", "train.evals=()",
               "train.checkpoint_every=1"]  # fmt: skip
    assert main(command) == 0
    first, after = load_file(exported / "model.safetensors"), load_run(tmp_path / "run").average
    kernel = after.ema["dit"]["trunk"]["blocks"]["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(kernel, first["dit.trunk.blocks.mlp.down.kernel"], atol=1e-6)
    capsys.readouterr()
    command[4] = str(tmp_path / "other")
    assert main([*command, "dit.width=64"]) == 2
    error = capsys.readouterr().err
    assert "is expected" in error and "config.json" in error
    assert main([*command, "data.tokenizer=''", "data.vocab_size=300"]) == 2
    assert f"set data.tokenizer={exported}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # nothing stands in the way of the right command
