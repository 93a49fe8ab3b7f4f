"""Puzzles: one solution each, no leak between splits, wrong answers refused, clues kept."""

import random
from dataclasses import replace

import jax
import numpy as np
import pytest

from ldlm_jax import cli
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.errors import UserError
from ldlm_jax.evals import EvalContext, run_evals
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.puzzles import countdown, star_graph
from ldlm_jax.puzzles.base import OPEN, Puzzle
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.puzzles.sudoku import Sudoku, sudoku_task
from ldlm_jax.sampling import puzzles as asking
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.page import page_data
from ldlm_jax.sampling.puzzles import held_out, printer, requests_of, typed
from ldlm_jax.serving.hub import open_model
from ldlm_jax.train import train
from ldlm_jax.train_state import init_state

SIZES = [(2, 2), (2, 3), (3, 3)]
# A published grid, its puzzle, and the same with one clue less, which leaves two solutions or more.
PUZZLE = "53__7____6__195____98____6_8___6___34__8_3__17___2___6_6____28____419__5____8__79"
GRID = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def symmetric_copy(grid: str, sudoku: Sudoku, rng: random.Random) -> str:
    """Another grid by renaming digits and moving bands, stacks, rows, columns; and transposed."""
    side = sudoku.side
    cells = np.array([int(c) for c in grid]).reshape(side, side)

    def moved(group: int) -> list[int]:
        bands = rng.sample(range(side // group), side // group)
        return [group * band + i for band in bands for i in rng.sample(range(group), group)]

    cells = cells[moved(sudoku.rows)][:, moved(sudoku.columns)]
    names = np.array([0, *rng.sample(range(1, side + 1), side)])
    cells = names[cells]
    if sudoku.rows == sudoku.columns:
        cells = cells.T
    return "".join(map(str, cells.ravel()))


def test_the_solver_finds_the_one_solution_and_counts_others():
    sudoku = Sudoku(3, 3)
    found = sudoku.solve(PUZZLE)
    assert (found.count, found.text) == (1, GRID)
    assert sudoku.solve(OPEN * 81, limit=5).count == 5
    assert sudoku.solve("11" + OPEN * 79).count == 0
    # Two cells that may be swapped with two others: exactly two solutions.
    small = Sudoku(2, 2)
    assert small.solve("12343412" + OPEN * 8, limit=99).count == 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_puzzle_has_exactly_one_solution(size, level):
    sudoku, task = Sudoku(*size), sudoku_task(*size, 288)
    rng = random.Random(1)
    grids = [sudoku.random_grid(rng) for _ in range(8)]
    name = task.levels[level]
    if (size, name) == ((2, 2), "hard"):
        pytest.skip("no puzzle of side 4 needs a guess")
    puzzles, again, others = (list(task.puzzles(grids, name, 4, seed)) for seed in (0, 0, 1))
    assert puzzles == again != others
    for puzzle in puzzles:
        found = sudoku.solve(puzzle.given)
        assert found.count == 1 and found.text in grids
        assert task.solved(puzzle, found.text)
        clues = len(puzzle.given) - puzzle.given.count(OPEN)
        if name == "hard":
            assert found.guesses > 0
            for cell, c in enumerate(puzzle.given):  # each clue is needed
                if c != OPEN:
                    without = puzzle.given[:cell] + OPEN + puzzle.given[cell + 1 :]
                    assert sudoku.solve(without).count > 1
        else:
            assert clues == {4: 6, 6: 12, 9: 30}[sudoku.side]
        if name == "easy":
            assert found.guesses == 0


def test_wrong_grids_are_refused():
    task, puzzle = TASKS["sudoku"], Puzzle(PUZZLE)
    assert task.solved(puzzle, GRID)
    assert not task.solved(puzzle, GRID[:-1])  # short
    assert not task.solved(puzzle, GRID[:2] + "x" + GRID[3:])
    assert not task.solved(puzzle, GRID[:2] + "\u0664" + GRID[3:])  # a 4 of another script
    assert not task.solved(puzzle, GRID[:2] + GRID[3] + GRID[2] + GRID[4:])  # two cells swapped
    # A right grid that is another puzzle's: digits 1 and 2 renamed.
    other = GRID.translate(str.maketrans("12", "21"))
    assert Sudoku(3, 3).is_solved(other) and not task.solved(puzzle, other)
    assert Sudoku(3, 3).conflicts("11" + OPEN * 79) == [0, 1]


@pytest.mark.parametrize("size", SIZES)
def test_symmetric_grids_have_the_same_invariant(size):
    sudoku, rng = Sudoku(*size), random.Random(0)
    for _ in range(10):
        grid = sudoku.random_grid(rng)
        copy = symmetric_copy(grid, sudoku, rng)
        assert sudoku.is_solved(copy)
        one, other = sudoku.invariants([grid, copy])
        assert one == other
    if sudoku.side == 9:
        kinds = sudoku.invariants([sudoku.random_grid(rng) for _ in range(50)])
        assert len(set(kinds)) == 50


def test_no_held_out_grid_or_its_like_is_trained_on(monkeypatch):
    splits = sudoku_task(3, 3, 60).documents()
    sizes = [len(splits[name]) for name in ("train", "validation", "test")]
    assert sizes == [48, 6, 6] and len({g for texts in splits.values() for g in texts}) == 60
    # A copy of a test grid among the grids is left out of training.
    copy = symmetric_copy(splits["test"][0], Sudoku(3, 3), random.Random(3))
    grids = iter([*splits["test"], *splits["validation"], *splits["train"][:-1], copy])
    monkeypatch.setattr(Sudoku, "random_grid", lambda self, rng: next(grids))
    planted = sudoku_task(3, 3, 60).documents()
    assert copy not in planted["train"] and len(planted["train"]) == 47


def test_countdown_answers_are_checked():
    puzzle = Puzzle("44,15,79,50>58:", open_end=True)
    right = puzzle.given + "44-15=29,79-50=29,29+29=58"
    assert countdown.solved(puzzle, right)
    assert countdown.solved(puzzle, puzzle.given + "79-50=29,44-15=29,29+29=58")
    for wrong in (
        right[:-1],  # the last result is not the target
        puzzle.given + "44-15=28,79-50=29,28+29=57",  # wrong difference, wrong target
        puzzle.given + "44-15=29,29+29=58",  # a number of nowhere, one unused
        puzzle.given + "44-15=29,79-50=29,29+29=58,58+0=58",
        puzzle.given + "15-44=-29,79-50=29,29+29=58",
        puzzle.given + "44+15=59,79-50=29,59-29=30",  # right sums, wrong target
        "44,15,79,51>58:" + right[len(puzzle.given) :],  # another question
        puzzle.given + "79/50=1,44+15=59,59-1=58",  # no whole division
        puzzle.given,
    ):
        assert not countdown.solved(puzzle, wrong), wrong


@pytest.mark.parametrize("numbers", [4, 5])
def test_countdown_documents_are_right_and_do_not_leak(numbers, monkeypatch):
    monkeypatch.setattr(countdown, "COUNT", 600)
    monkeypatch.setattr(countdown, "HELD_OUT", 50)
    task = TASKS[f"countdown{numbers}"]
    splits = task.documents()
    questions = {}
    for name, texts in splits.items():
        for text in texts:
            question, answer = text.split(":")
            assert answer.count("=") == numbers - 1
            assert task.solved(Puzzle(question + ":", open_end=True), text)
            start, target = question.split(">")
            assert 10 <= int(target) <= 100
            key = tuple(sorted(start.split(","))), target
            assert questions.setdefault(key, name) == name
    puzzles = task.puzzles(splits["test"], "all", 10, 0)
    assert len({p.given for p in puzzles}) == 10


def test_star_graph_paths_are_checked():
    text = star_graph.make(random.Random(0))
    task = TASKS["star_graph"]
    (puzzle,) = task.puzzles([text], "all", 1, 0)
    assert task.solved(puzzle, text)
    path = text[-6:]
    edges, arms = text.split("/")[0].split(","), []
    for edge in edges:
        if edge[0] == path[0] and edge[1] != path[1]:
            arm = edge
            while len(arm) < 6:
                arm += next(e[1] for e in edges if e[0] == arm[-1])
            arms.append(arm)
    assert len(arms) == 4
    for arm in arms:  # along edges, but to another goal; and to the goal by a jump
        assert not task.solved(puzzle, text[:-6] + arm)
        assert not task.solved(puzzle, text[:-6] + arm[:-1] + path[-1])


OVERRIDES = [
    "data.source=sudoku4", "data.window=17", "dit.layers=1", "dit.width=32", "dit.heads=2",
    "text_vae.width=32", "text_vae.heads=2", "train.num_steps=3", "train.batch_size=8",
    "train.eval_samples=6", "train.eval_steps=(2,)", "optim.warmup_steps=1", "sample.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A model of 4 x 4 grids that was never trained, with its corpus."""
    root = tmp_path_factory.mktemp("puzzles")
    experiment = resolve(load_config("configs/sudoku_cpu.py", [*OVERRIDES, f"data.root={root}"]))
    prepared = prepare(experiment.data)
    models = experiment.networks(prepared.tokenizer.vocab_size)
    mesh = make_mesh(replace(experiment.mesh, data=1), jax.devices()[:1])
    state = init_state(models, make_optimizer(experiment.optim, 3), 0, 17, mesh, AxisRules())
    generator = Generator(
        models, experiment.diffusion, state.ema, state.latents, prepared.tokenizer,
        tuple(prepared.stats["lengths"]),
    )  # fmt: skip
    return EvalContext(generator, [], experiment.sample, 6, (2,), 0, prepared, "test")


def test_clues_come_back_and_results_are_named(untrained):
    puzzles = held_out(untrained.prepared.config, "test", "", 6, 0)
    requests = requests_of(puzzles, replace(untrained.sample, steps=2), 0)
    samples = list(generate_requests(untrained.generator, requests))
    for puzzle, sample in zip(puzzles, samples, strict=True):
        # Untrained, it may fill cells with half a character: so byte by byte.
        written = [untrained.generator.tokenizer.bytes_of(token) for token in sample.tokens[:16]]
        assert sample.given[:16] == [c != OPEN for c in puzzle.given]
        assert all(c in (OPEN, b.decode("latin1")) for c, b in zip(puzzle.given, written,
                                                                   strict=True))  # fmt: skip
    results = run_evals(("puzzles",), untrained)
    assert 1 <= results.pop("puzzles/evaluations_6_given_steps_2") <= 2
    assert sorted(results) == ["puzzles/kept_6_given_steps_2", "puzzles/solved_6_given_steps_2"]
    assert all(0 <= value <= 1 for value in results.values())
    with pytest.raises(UserError, match="no level 'heavy'"):
        run_evals(("puzzles",), replace(untrained, levels=("heavy",)))
    web = replace(untrained.prepared, config=replace(untrained.prepared.config, source="web"))
    with pytest.raises(UserError, match="holds no puzzles; those"):
        run_evals(("puzzles",), replace(untrained, prepared=web))


def test_puzzles_are_made_once_and_kept(untrained, tmp_path, monkeypatch):
    config = replace(untrained.prepared.config, root=str(tmp_path))
    made, task = [], TASKS["sudoku4"]

    def puzzles(*args):
        made.append(args)
        return task.puzzles(*args)

    monkeypatch.setitem(TASKS, "sudoku4", replace(task, puzzles=puzzles))

    def ask(seed=3):
        asking._held_out.cache_clear()  # as another process does
        return held_out(config, "test", "easy", 4, seed)

    first = ask()
    assert ask() == first and len(made) == 1
    assert ask(seed=4) != first and len(made) == 2
    (file,) = tmp_path.rglob("test-easy-4-3.json")
    file.write_text(file.read_text().replace("_", "1", 1))  # damaged
    assert ask() == first and len(made) == 3
    monkeypatch.setattr(asking, "_VERSION", 0)  # made by another version
    assert ask() == first and len(made) == 4
    file.unlink()
    file.mkdir()  # cannot be written
    assert ask() == first == ask() and len(made) == 6


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_training_measures_puzzles_and_commands_solve_them(untrained, tmp_path, capsys):
    root = untrained.prepared.text.parent.parent
    config = load_config("configs/sudoku_cpu.py", [*OVERRIDES, f"data.root={root}"])
    train(config, str(tmp_path))
    assert "puzzles/solved_6_given_steps_2" in (tmp_path / "metrics.jsonl").read_text()
    run, steps = ["--workdir", str(tmp_path)], ["--steps", "2"]
    levels = ["--evals", "puzzles", "--levels", "6 given", "--step-counts", "2"]
    assert cli.main(["eval", *run, *levels, "--num-samples", "6", "--batches", "1"]) == 0
    assert "puzzles/solved_6_given_steps_2" in capsys.readouterr().out
    assert cli.main(["sample", *run, *steps, "--puzzles", "2"]) == 0
    assert capsys.readouterr().out.count("\n    ") == 8  # two grids of four rows
    page = tmp_path / "page.html"
    assert (
        cli.main(["sample", *run, *steps, "--puzzle", "12..34..21..43..", "--html", str(page)]) == 0
    )
    assert '"grid": {"side": 4' in page.read_text()


def test_the_model_in_the_repository_solves_puzzles():
    """Fresh puzzles with one solution each; most are done after a few of the hundred steps."""
    run = open_model("checkpoints/sudoku6", mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    task, sudoku, rng = TASKS["sudoku6"], Sudoku(2, 3), random.Random(5)
    puzzles = [sudoku.puzzle(sudoku.random_grid(rng), 12, rng) for _ in range(16)]
    requests = requests_of(puzzles, run.experiment.sample, 0)
    samples = list(generate_requests(run.generator, requests))
    assert all(p.kept(s.text) for p, s in zip(puzzles, samples, strict=True))
    assert sum(task.solved(p, s.text) for p, s in zip(puzzles, samples, strict=True)) >= 14
    evaluations = sorted(sample.evaluations for sample in samples)
    assert evaluations[0] >= 3 and evaluations[8] <= 6


def test_a_puzzle_may_be_typed_and_is_shown_as_a_grid():
    task = TASKS["sudoku4"]
    puzzle = typed("12.. 3412 .... ....", task)
    assert puzzle.given == "12__3412________"
    shown = printer(task)(puzzle, "1234341221434321")
    assert shown.splitlines()[0] == "solved"
    assert shown.splitlines()[1] == "    1 2 . .     1 2 3 4"
    assert printer(task)(puzzle, "1234341221434312").startswith("wrong")
    with pytest.raises(UserError, match="has 3 cells; a grid of side 4 has 16"):
        typed("1_2", task)
    with pytest.raises(UserError, match="write _ for each symbol"):
        typed("1234341221434321", task)
    assert typed("a_b.", None).given == "a_b."


def test_the_page_is_told_of_the_grid(untrained):
    data = page_data(untrained.generator, {}, TASKS["sudoku6"])
    assert data["grid"] == {"side": 6, "rows": 2, "columns": 3}
    assert page_data(untrained.generator, {}, TASKS["countdown4"])["grid"] is None
    assert page_data(untrained.generator, {})["grid"] is None
