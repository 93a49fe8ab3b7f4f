"""Mistakes in a config are found at start-up, and say what to do."""

import runpy
from pathlib import Path

import pytest

from experiments.data_constrained import curve
from experiments.whole_text import arms as whole_text
from ldlm_jax.config import load_config, resolve
from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.phases import Phase, first_difference
from tests.conftest import IN_BLOCKS

CONFIGS = sorted(Path("configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_resolves_and_says_what_it_is(path):
    resolve(load_config(str(path)))
    docstring = runpy.run_path(str(path))["__doc__"]
    for word in ("Command:", "Hardware:", "Result:"):
        assert word in docstring


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rte=1", ["optim.learning_rte", "did you mean 'learning_rate'"]),
        ("optimm.learning_rate=1", ["'optimm'", "did you mean 'optim'"]),
        ("phases=[{'kll': 1}]", ["phases[0].kll", "did you mean 'kl'"]),
        ("phases=[{'kl': -1}]", ["phases.kl"]),
        ("phases=[{'until': 5}]", ["until", "-1"]),
        ("phases=[{'train': ['ditt']}]", ["ditt", "encoder"]),
        ("phases=[{'alignment': 0.5}]", ["teacher.model"]),
        ("dit.dropout=1.0", ["dit.dropout", "[0, 1)"]),
        ("dit.heads=5", ["dit.heads = 5", "dit.width = 256"]),
        ("text_vae.dtype='float8'", ["text_vae.dtype", "bfloat16"]),
        ("sample.steps=0", ["steps = 0"]),
        ("sample.solver=rk9", ["rk9", "euler"]),
        ("data.window=1", ["data.window"]),
        ("data.pad_to_multiple=7", ["data.pad_to_multiple", "data.window"]),
        ("data.vocab_size=100", ["data.vocab_size"]),
        ("diffusion.block_size=4", ["diffusion.block_size", "data.pad_to_multiple=4"]),
        ("diffusion.block_size=-1", ["diffusion.block_size"]),
        ("phases=[{'next_token': -1}]", ["phases.next_token"]),
        ("phases=[{'next_token': 1}]", ["phases[0].next_token", "diffusion.block_size"]),
        (
            "diffusion.single_token_blocks=0.5",
            ["diffusion.single_token_blocks", "diffusion.block_size"],
        ),
        ("diffusion.next_token_prior=0.5", ["diffusion.next_token_prior", "diffusion.block_size"]),
        ("diffusion.next_token_prior=1.5", ["diffusion.next_token_prior"]),
        ("sample.block_size=2", ["sample.block_size", "no blocks"]),
        ("sample.top_p=0.9", ["sample.top_p", "diffusion.token_posterior", "ancestral"]),
        ("sample.temperature=0.9", ["sample.temperature", "sample.solver=ancestral"]),
        ("text_vae.tokens_per_latent=2", ["data.pad_to_multiple", "tokens_per_latent"]),
        ("train.num_steps='many'", ["train.num_steps", "whole number"]),
        ("train.microbatches=7", ["train.microbatches", "train.batch_size"]),
        ("diffusion.prediction=eps", ["diffusion.prediction"]),
        ("diffusion.prefix=1.5", ["diffusion.prefix"]),
        ("optim.name=sgd", ["optim.name"]),
        ("phases.0.kll=1", ["phases[0].kll", "did you mean 'kl'"]),
        ("phases.1.kl=1", ["phases.1.kl", "N from 0 to 0"]),
        ("phases.first.kl=1", ["phases.first.kl", "phases.N.key=value"]),
        ("nonsense", ["section.key=value"]),
    ],
)
def test_mistakes_name_the_key_and_the_fix(override, words):
    with pytest.raises(UserError) as error:
        resolve(load_config(None, [override]))
    for word in words:
        assert word in str(error.value)


def test_blocks_of_one_stay_within_a_kernels_tiles():
    blocks = [*IN_BLOCKS, "diffusion.infill=0.0", "diffusion.single_token_blocks=0.5",
              "dit.attention=splash", "dit.heads=2", "data.window=256"]  # fmt: skip
    assert resolve(load_config(None, blocks)).diffusion.single_token_blocks == 0.5
    with pytest.raises(UserError, match="dit.attention = 'splash'.*diffusion.single_token_blocks"):
        resolve(
            load_config(None, [*blocks, "diffusion.block_size=128", "data.pad_to_multiple=128"])
        )


def test_overrides_and_types():
    config = resolve(load_config(None, ["optim.learning_rate=1", "diffusion.time_location=0.5"]))
    assert config.optim.learning_rate == 1 and config.diffusion.time_location == 0.5


def test_one_value_of_one_phase_is_overridden():
    """Later overrides see what earlier ones left, and the other phases stay as they are."""
    both = "phases=[{'until': 5, 'kl': 0.5}, {'kl': 0.25, 'reconstruction': 2.0}]"
    first, last = resolve(load_config(None, [both, "phases.0.until=7", "phases.-1.kl=0"])).phases
    assert (first.until, first.kl, last.kl, last.reconstruction) == (7, 0.5, 0, 2.0)


def test_the_weight_of_tokens_as_it_was_is_that_of_each_phase():
    """``diffusion.token_loss`` of the release before, wherever it stands: a multiple of the weight
    of diffusion, in place of what a config says."""
    phases = "phases=[{'diffusion': 0.0, 'until': 5}, {'diffusion': 2.0}]"
    old = resolve(load_config(None, ["diffusion.token_loss=0.5", phases]))
    assert [phase.token for phase in old.phases] == [0.0, 1.0]
    corners = {"diffusion": ((0, 1.0), (5, 2.0))}
    file = {"diffusion": {"token_loss": 0.5}, "phases": [corners, {"token": 3.0}]}
    old = load_config(file)
    assert [phase["token"] for phase in old.phases] == [[(0, 0.5), (5, 1.0)], 0.5]
    with pytest.raises(UserError, match=r"diffusion.token_loss = 'much'.*phases.N.token"):
        load_config(None, ["diffusion.token_loss=much"])


def test_steps_to_come_may_have_other_phases():
    two = (Phase(until=10, diffusion=0.0), Phase())
    assert first_difference(two, two) is None
    assert first_difference(two, (two[0], Phase(until=30), Phase(token=1.0))) == 30
    assert first_difference(two, (Phase(until=12, diffusion=0.0), Phase())) == 10
    assert first_difference(two, (Phase(until=10), Phase())) == 0


def test_a_mesh_must_multiply_to_the_devices():
    assert make_mesh(MeshConfig(data=-1, fsdp=2)).shape["data"] == 4
    with pytest.raises(UserError, match="mesh.data = 3.*8 devices"):
        make_mesh(MeshConfig(data=3))


def test_a_name_that_looks_like_a_number_is_a_name():
    config = load_config(None, ["data.source=2024", "train.evals=reconstruction"])
    assert config.data.source == "2024"
    assert resolve(config).train.evals == ("reconstruction",)


@pytest.mark.parametrize("config", ["configs/whole_cpu_1h.py", "configs/whole_h100.py"])
@pytest.mark.parametrize("row", whole_text.ARMS)
def test_every_row_of_the_comparison_of_whole_texts_is_possible(row, config):
    changed = load_config(config, list(whole_text.ARMS[row]))
    assert resolve(changed) and (row == "base") == (changed == load_config(config))


@pytest.mark.parametrize("scale", curve.SCALES.values(), ids=curve.SCALES)
@pytest.mark.parametrize("system", curve.SYSTEMS.values(), ids=curve.SYSTEMS)
def test_every_row_of_the_curve_over_passes_is_possible(scale, system):
    kind, *changes = system
    latent = [*scale["latent"], *(changes if kind == "latent" else ())]
    assert resolve(load_config(scale["config"], [*scale["data"], *latent])).data.packing == "pack"
