"""What a training shows on a terminal, and what it says of phases and of a finished run."""

import io
import re

import jax.numpy as jnp
import pytest
from rich.console import Console

from ldlm_jax import train as loop
from ldlm_jax.cli import main
from ldlm_jax.phases import Phase, change
from ldlm_jax.telemetry.screen import Screen, told_apart
from tests.test_cli import train_command

LONG = (
    "loss 3.712  reconstruction 1.111  kl 0.222  diffusion 0.333  next_token 0.444  grad 0.55  "
    "12,345 tokens/s  MFU 12.3%"
)


def lines_of(written: str) -> list[str]:
    """Lines as a terminal shows them, without its control sequences."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).strip())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_time_that_is_left_is_seen_at_any_width(width):
    out = io.StringIO()
    screen = Screen(4000, 0, console=Console(file=out, force_terminal=True, width=width))
    for step in range(1, 40):
        screen.step(step)
    screen.metrics(39, LONG)
    screen.close()
    *notes, bar = lines_of(out.getvalue())[-(1 + -(-len(LONG) // (width - 20))) :]
    assert len(bar.rstrip()) <= width and bar.startswith("step 39/4000 ")
    assert re.search(r" (\d|-):(\d\d|--):(\d\d|--) left$", bar.rstrip())
    assert all(len(line.rstrip()) <= width for line in notes)
    assert " ".join(" ".join(notes).split()).endswith("12,345 tokens/s MFU 12.3%")


def test_a_phase_tells_what_changes():
    first = Phase(200, reconstruction=0.0, diffusion=0.0, next_token=1.0, kl=0.0)
    second = Phase(train=("dit",), diffusion=((0, 0.0), (50, 2.0)), next_token=0.5, kl=0.0,
                   reconstruction=0.0)  # fmt: skip
    assert change(None, first) == "next_token 1"
    assert change(first, second) == (
        "diffusion 0 to (0 at step 0, 2 at 50), next_token 1 to 0.5, "
        "trained encoder+decoder+dit+align to dit"
    )


def test_parts_that_take_their_time_are_named(capsys):
    with told_apart() as begin:
        begin("compiling [this]")
        begin("and that")
    assert capsys.readouterr() == ("", "compiling [this] ...\nand that ...\n")


def test_an_evaluation_tells_what_the_task_is_about():
    out = io.StringIO()
    screen = Screen(10, 0, console=Console(file=out, width=200))
    screen.evaluation(5, {"denoising/error_mean": 0.25, "denoising/error_t_0.5": 0.5,
                          "puzzles/solved_hard_steps_5": 0.75, "puzzles/kept_hard_steps_5": 1.0,
                          "samples": "a text"})  # fmt: skip
    told = "evaluation at step 5: denoising/error_mean 0.250  puzzles/solved_hard_steps_5 0.750"
    assert lines_of(out.getvalue()) == [told, "samples:", "a text"]


def no_step(recipe, optimizer):
    """In place of the compiled step: one that changes nothing."""

    def step(state, batch, key, frozen, phase):
        return state.replace(step=state.step + 1), {
            "loss": jnp.float32(1), "grad_norm": jnp.float32(1), "skipped": jnp.int32(0)
        }  # fmt: skip

    return step


@pytest.mark.slow
def test_phases_and_a_finished_run_are_announced(overrides, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "compiled_step", no_step)
    short = ("train.num_steps=3", "train.evals=('reconstruction',)", "train.log_every=1",
             "phases=[{'until': 2, 'diffusion': 0.0}, {}]")  # fmt: skip
    command = train_command(tmp_path / "run", overrides, *short)
    assert main(command) == 0
    told = capsys.readouterr().out
    order = [
        "phase 0 of 0 to 1: reconstruction 1, kl 0.0001\n",
        "compiling the step of phase 0 ...\n",
        "step 1/3 ",
        "phase 1 begins, with another loss than before, which is not comparable: diffusion 0 to 1",
        "compiling the step of phase 1 ...\n",
        "step 3/3 ",
        "evaluating; the first time it is compiled ...\n",
        "evaluation at step 3",
    ]
    places = [told.index(words) for words in order]
    assert places == sorted(places)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "is finished: it has 3 of 3 steps" in again and "train.num_steps=6" in again
    assert "resuming" not in again and "compiling" not in again
