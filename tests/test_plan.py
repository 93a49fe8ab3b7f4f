"""What a program costs: FLOPs against the compiler's count, listings, and plans for absent pods."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.errors import UserError
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules, placements
from ldlm_jax.plan import report as plan_report
from ldlm_jax.plan.flops import step_flops
from ldlm_jax.plan.hardware import chip_of
from ldlm_jax.plan.hlo import Cost, Program, parse
from ldlm_jax.plan.report import Forecast, explain, kernel_flops, sharding_table
from ldlm_jax.plan.target import OutOfMemory, Target
from ldlm_jax.train_step import NOTHING_FROZEN, fused_loss
from tests.conftest import IN_BLOCKS

GOLDEN = "experiments/scale/shardings"


@pytest.mark.parametrize(
    "changes",
    [
        ["phases=[{'diffusion': 0.0, 'kl': 0.1}]"],
        ["phases=[{'token': 1.0, 'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
         "text_vae.decoder_layers=0", "diffusion.token_posterior=True",
         "autoencoding.token_mask=0.0"],
        ["phases=[{'encoder_gradient': 0.5}]", "dit.conditioning=adaln"],
    ],
    ids=["autoencoder", "posterior", "all"],
)  # fmt: skip
def test_flops_are_those_the_compiler_counts(overrides, changes):
    """On an unrolled model, whose attention sees everything; element-wise work is a few percent."""
    experiment = resolve(
        load_config("configs/debug.py", [
            *overrides, *changes, "diffusion.self_condition=0.0", "dit.time_tokens=0",
            "dit.width=512", "text_vae.width=512",
        ])
    )  # fmt: skip
    models = experiment.networks(512)
    recipe, rows, window = experiment.recipe(models), 4, experiment.data.window
    from flax.core import meta

    params = meta.unbox(jax.eval_shape(lambda: models.init(jax.random.key(0), window)))
    batch = {k: jax.ShapeDtypeStruct((rows, window), jnp.int32) for k in ("tokens", "segments")}
    stats = jax.eval_shape(lambda: LatentStats.create(models.vae.latent_channels))
    (phase,) = experiment.phases
    loss = partial(fused_loss, phase=phase, recipe=recipe)
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    lowered = gradient.lower(params, batch, stats, key, step)
    counted = lowered.cost_analysis()["flops"]
    ours = step_flops(recipe, NOTHING_FROZEN, batch, phase)
    assert 0.85 < ours / counted < 1.02, (ours, counted)


LISTING = """HloModule jit_f, is_scheduled=true

%fused (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.9 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%body (arg: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %arg = (s32[], bf16[8,16]) parameter(0)
  %fusion.1 = bf16[8,16]{1,0} fusion(%arg), kind=kOutput, calls=%plain, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.1 = f32[32]{0} all-reduce(%fusion.1), channel_id=3, to_apply=%add
  %async-collective-start = bf16[8,16]{1,0} fusion(%fusion.1), kind=kCustom, calls=%fused
  %async-collective-done = bf16[8,16]{1,0} fusion(%fusion.1), kind=kCustom, calls=%fused
  ROOT %tuple = (s32[], bf16[8,16]) tuple(%arg, %fusion.1)
}

%all-reduce-scatter.1 (p.2: bf16[8,16]) -> bf16[8,4] {
  %p.2 = bf16[8,16]{1,0} parameter(0)
  %all-reduce.2 = (bf16[8,16]{1,0}, f32[4]{0}) all-reduce(%p.2), channel_id=9, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[8,4]{1,0} dynamic-slice(%all-reduce.2, %p.2)
}

%plain (p.1: bf16[8,16]) -> bf16[8,16] {
  ROOT %p.1 = bf16[8,16]{1,0} parameter(0)
}

%condition (arg.1: (s32[], bf16[8,16])) -> pred[] {
  %arg.1 = (s32[], bf16[8,16]) parameter(0)
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%arg.1, %bound), direction=LT
}

%dear (b: bf16[8,16]) -> bf16[8,16] {
  ROOT %copy.1 = bf16[8,16]{1,0} copy(%b), backend_config={"estimated_cycles":"1000"}
}

%cheap (b.1: bf16[8,16]) -> bf16[8,16] {
  ROOT %b.1 = bf16[8,16]{1,0} parameter(0)
}

ENTRY %main (x: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %while.1 = (s32[], bf16[8,16]) while(%x), condition=%condition, body=%body
  %conditional.1 = bf16[8,16]{1,0} conditional(%x, %x, %x), branch_computations={%cheap, %dear}
  %splash_mha_fwd.1 = bf16[2,4,256,128]{3,2,1,0} custom-call(%x), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,2,2]{2,1,0}, bf16[2,4,256,128]{3,2,1,0}, bf16[2,4,512,128]{3,2,1,0}}
  %reduce = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %copy.2 = bf16[8,16]{1,0} copy(%x), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run():
    computations, entry = parse(LISTING)
    assert entry == "main" and len(computations) == 8
    cost = Program(LISTING, branch_share=0.25).cost()
    assert cost.cycles == 12 * 100 + 0.25 * 1000 + 7
    # A gather whose start and end are listed apart is one gather, and nothing waits for it.
    # A sum that is cut right away is a sum of which each device keeps a part.
    scattered = 8 * 16 * 2 + 4 * 4
    sums = {"all-reduce": 12 * 32 * 4, "reduce-scatter": scattered}
    assert cost.collectives == sums | {"all-gather": 12 * 8 * 16 * 2}
    assert cost.exposed == sums
    ((name, runs, shapes),) = cost.kernels
    assert runs == 1 and kernel_flops(name, shapes) == 2 * 2 * 2 * 4 * 256 * 512 * 128
    # Three heads of queries for each of keys.
    shared = [("bf16", "2,4,3,256,128"), ("bf16", "2,4,256,128")]
    assert kernel_flops("splash_mqa_fwd_x", shared) == 2 * 2 * 2 * 4 * 3 * 256 * 256 * 128


def test_a_forecast_by_hand():
    chip = chip_of("TPU v5 lite")
    cost = Cost(cycles=1.5e9)
    cost.collectives["all-gather"], cost.exposed["all-gather"] = 50e9, 20e9
    mesh = jax.sharding.AbstractMesh((1, 4), ("slice", "fsdp"))
    said = Forecast.of(cost, chip, 2 * 197e12, mesh)
    assert said.chip_seconds == 1.0 and said.exposed_seconds == pytest.approx(0.2)
    assert said.network_seconds == pytest.approx(0.5) and said.seconds == pytest.approx(1.2)
    assert said.mfu == pytest.approx(0.5 / 1.2) and said.slowest == "memory"
    slow = Forecast.of(dataclasses.replace(cost, cycles=1.5e8), chip, 197e12, mesh)
    assert slow.slowest == "network" and slow.seconds == pytest.approx(0.5)


def test_chips_are_told_apart():
    assert chip_of("TPU v5 lite").name == "v5e" and chip_of("TPU v5").name == "v5p"
    assert chip_of("NVIDIA H100 80GB HBM3").flops == 989e12 and chip_of("cpu") is None


@pytest.mark.parametrize(
    "name",
    [
        "ldlm_130m_v5e_16",
        "ldlm_130m_blocks_v5e_16",
        "ldlm_1b_v5e_256",
        "ldlm_7b_v5p_512",
        "ldlm_1b_h100_64",
    ],
)
def test_shardings_of_the_configs_of_record(name):
    """A change here moves tensors on a pod: look at it, then write the tables anew (README)."""
    expected = json.loads(Path(f"{GOLDEN}/{name}.json").read_text())
    experiment = resolve(load_config(f"configs/{name}.py"))
    assert sharding_table(experiment, expected["devices"]) == expected["parameters"]


@pytest.mark.parametrize(("room", "largest"), [(100, 64), (33, 32), (9, 8)])
def test_the_largest_batch_is_searched_both_ways(experiment, monkeypatch, room, largest):
    """A row takes one unit of memory; from 16 rows on up, or down where not even they fit."""
    monkeypatch.setattr(Target, "compile_step", lambda self, _: self.experiment.train.batch_size)
    monkeypatch.setattr(plan_report, "memory_of", lambda rows, _: {"share_of_hbm": rows / room})
    experiment = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, batch_size=16)
    )
    target = Target(experiment, make_mesh(MeshConfig()), 128, chip_of("TPU v5"))
    assert plan_report.largest_batch(target) == largest


def test_no_batch_fits(experiment, monkeypatch):
    def refuse(self, _):
        raise OutOfMemory("too large")

    monkeypatch.setattr(Target, "compile_step", refuse)
    target = Target(experiment, make_mesh(MeshConfig()), 128, chip_of("TPU v5"))
    with pytest.raises(UserError, match="not even the smallest batch fits"):
        plan_report.largest_batch(target)


def test_explain_names_everything(experiment):
    models = experiment.networks(128)
    boxed = jax.eval_shape(lambda: models.init(jax.random.key(0), experiment.data.window))
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    placed = placements(boxed, mesh, AxisRules())
    lines = explain(placed).splitlines()
    assert len(lines) == 1 + len(jax.tree.leaves(boxed))
    (row,) = [line for line in lines if line.startswith("text_vae/decoder/head/kernel")]
    width = experiment.text_vae["width"]
    assert f"{width}x128" in row and "embed, vocab" in row and "fsdp, tensor" in row
    assert f"{width * 128 * 4 // 8:,}" in row


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make test-plan"
)


def ldlm_plan(*arguments: str) -> subprocess.CompletedProcess:
    # The suite's flags for fast compilation of CPU programs do not concern this compiler.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "ldlm_jax.cli", "plan", "--config", "configs/debug.py", *arguments],
        capture_output=True, text=True, env=environment, timeout=580,
    )  # fmt: skip


@needs_libtpu
@pytest.mark.slow
def test_a_plan_for_a_pod_that_is_not_there(tmp_path):
    file = tmp_path / "plan.json"
    done = ldlm_plan(
        "--topology=v5e:4x4", f"--json={file}", "mesh.data=2", "mesh.fsdp=4", "mesh.tensor=2",
        "train.batch_size=32", "phases=[{'encoder_gradient': 1.0}]", "data.vocab_size=512",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    assert said["chips"] == 16 and said["mesh"]["tensor"] == 2
    (phase,) = said["phases"]
    assert 0 < phase["memory"]["share_of_hbm"] < 0.1
    assert min(phase["collective_bytes"][kind] for kind in ("all-reduce", "all-gather")) > 0
    assert 0 < phase["forecast"]["mfu"] < 0.2  # a tiny model keeps no chip busy
    assert said["sampler"]["total"] > 0 and said["evaluation"]["total"] > 0
    assert "MFU" in done.stdout and "GiB" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_a_plan_with_blocks_of_one_in_the_kernel(tmp_path):
    """The kernel compiles with spans that differ by row; a chip of two cores is one device."""
    file = tmp_path / "plan.json"
    done = ldlm_plan(
        "--topology=v4:2x2x1", f"--json={file}", "--programs=train", "train.batch_size=8",
        "data.vocab_size=512", "data.window=128", *IN_BLOCKS, "diffusion.single_token_blocks=0.5",
        "diffusion.infill=0.0", "dit.width=128", "dit.heads=1", "dit.attention=splash",
        "text_vae.width=128",
        "text_vae.encoder_layers=0", "phases=[{'next_token': 1.0, 'encoder_gradient': 1.0}]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    assert said["chips"] == 4 and said["phases"][0]["forecast"]["chip_seconds"] > 0


@pytest.mark.slow
def test_a_plan_for_gpus_gives_bounds(tmp_path):
    file = tmp_path / "plan.json"
    done = ldlm_plan(
        "--topology=h100:2x4", f"--json={file}", "--programs=train", "mesh.slice=2", "mesh.data=1",
        "mesh.fsdp=4", "phases=[{'encoder_gradient': 1.0}]", "data.vocab_size=512",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(file.read_text())
    (phase,) = said["phases"]
    assert said["chip"] == "NVIDIA H100" and said["mesh"]["slice"] == 2
    assert phase["collective_bytes"]["all-reduce"] > 0 and "forecast" not in phase
    assert 0 < phase["bounds"]["mfu_at_most"] <= 1 and "MFU at most" in done.stdout
    assert "compiling the step of phase 0 ..." in done.stderr


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v5e:3x5"], "no topology 'v5e:3x5'"),
        (["--topology=v9z:4x4"], "kinds: v4, v5e, v5p, v6e"),
        (["--topology=v5e:4x4", "mesh.data=3"], "do not multiply to the 16 devices"),
        (["--topology=v5e:4x4", "--num-slices=2"], "set mesh.slice=2"),
        (["--topology=v5e:4x4", "--programs=test"], "unknown 'test'"),
    ],
)
def test_what_cannot_be_planned(arguments, said):
    done = ldlm_plan(*arguments)
    assert done.returncode == 2 and said in done.stderr


@needs_libtpu
@pytest.mark.slow
def test_too_large_says_by_how_much():
    done = ldlm_plan(
        "--topology=v5e:2x2", "--programs=train", "train.batch_size=65536", "data.window=1024",
        "data.vocab_size=16384", "phases=[{'diffusion': 0.0}]",
    )  # fmt: skip
    assert done.returncode == 2
    assert "out of memory at compile time" in done.stderr and "GiB too much" in done.stderr
    assert "train.microbatches" in done.stderr


def test_profiles_of_a_window_on_a_signal_and_of_a_slow_step(tmp_path):
    from ldlm_jax.config import TrainConfig
    from ldlm_jax.telemetry.profiler import Profiler

    config = TrainConfig(profile_step=2, profile_steps=1)
    profiler = Profiler(tmp_path / "window", config)
    for step in range(4):
        profiler.before(step)
        profiler.after(step, jnp.ones(2) + step)
    profiler.close()
    assert list((tmp_path / "window").rglob("*.xplane.pb"))

    profiler = Profiler(tmp_path / "asked", TrainConfig(profile_steps=1))
    for step in range(3):
        if step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler.before(step)
        assert (profiler._until is not None) == (step == 1)
        profiler.after(step, np.float32(step))
    profiler.close()
    assert list((tmp_path / "asked").rglob("*.xplane.pb"))

    profiler = Profiler(tmp_path / "slow", TrainConfig(profile_slow=3.0, profile_steps=1))
    for step in range(14):
        profiler.before(step)
        if step == 11:
            profiler._began -= 60  # as if this step had taken a minute longer
        profiler.after(step, np.float32(step))
    profiler.close()
    assert len(list((tmp_path / "slow").rglob("*.xplane.pb"))) == 1
