"""``ldlm eval --evals likelihood``: the texts of a file, scored as the Python API scores them."""

import json
from pathlib import Path

import pytest

from ldlm_jax import load
from ldlm_jax.cli import main

TRAINED = Path(__file__).parent / "fixtures" / "run_0_1"
SUDOKU = Path(__file__).parent.parent / "checkpoints" / "sudoku6"
SOLVED = ["123456", "456123", "234561", "561234", "345612", "612345"]


def score(*arguments):
    return main(["eval", "--evals", "likelihood", *map(str, arguments)])


def test_tokens_of_paragraphs_are_scored_as_in_python(tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("The king spoke to\nthe people.\n \n\nMy son went home.\n")
    assert score("--workdir", TRAINED, "--text-file", file) == 0
    told = capsys.readouterr()
    first, second = map(json.loads, told.out.splitlines())
    assert first["text"] == "The king spoke to the people." and first["exact"]
    model = load(TRAINED)
    own = model.log_likelihood(first["text"])
    assert first["token_log_probs"] == pytest.approx(own.token_log_probs, abs=1e-4)
    assert first["log_likelihood"] == pytest.approx(sum(first["token_log_probs"]))
    assert "".join(second["tokens"]) == second["text"] == "My son went home."
    count = len(first["tokens"]) + len(second["tokens"])
    mean = (first["log_likelihood"] + second["log_likelihood"]) / count
    assert f"2 texts, {count} tokens: {mean:.4f} nats a token, exact" in told.err
    # What is given counts as context alone.
    asked, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    asked.write_text('{"given": "The king", "text": " spoke to the people."}\n\n')
    assert score("--workdir", TRAINED, "--text-file", asked, "--jsonl", out) == 0
    (rest,) = map(json.loads, out.read_text().splitlines())
    assert "".join(rest["tokens"]) == " spoke to the people." and not capsys.readouterr().out
    begun = len(first["tokens"]) - len(rest["tokens"])
    after = first["token_log_probs"][begun:]
    assert rest["token_log_probs"] == pytest.approx(after, abs=1e-4)


@pytest.mark.slow
def test_a_whole_text_has_a_bound_with_its_error(tmp_path, capsys):
    wrong = [SOLVED[0], SOLVED[2], SOLVED[1], *SOLVED[3:]]  # boxes are no longer right
    file = tmp_path / "grids.jsonl"
    texts = ["".join(SOLVED), "".join(wrong)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert score("--model", SUDOKU, "--text-file", file, "--draws", "4") == 0
    told = capsys.readouterr()
    right, other = map(json.loads, told.out.splitlines())
    assert not right["exact"] and right["token_log_probs"] == [] and len(right["tokens"]) > 30
    errors = right["standard_error"] + other["standard_error"]
    assert errors > 0 and right["log_likelihood"] - other["log_likelihood"] > 3 * errors
    assert "at least" in told.err and "standard error" in told.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', "line 2"),
        ("a.jsonl", '{"text": "a"}\n{', "line 2: not JSON"),
        ("a.jsonl", '{"text": 3}', "line 1"),
        ("a.jsonl", '{"text": "half \\ud800"}', "line 1"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ("a.txt", " \n\n", "holds no text"),
        ("a.txt", "one\n\n" + "word " * 60, "text 2: takes"),
        ("a.txt", b"\xff\xfe\xff", "cannot read texts"),
    ],
)
def test_files_that_cannot_be_scored_are_refused(tmp_path, capsys, name, content, words):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert score("--workdir", TRAINED, "--text-file", file) == 2
    err = capsys.readouterr().err
    assert words in err and str(file) in err and err.count("\n") == 1


def test_likelihood_stands_alone_and_needs_a_file(capsys):
    assert score("--workdir", TRAINED) == 2
    assert "--text-file" in capsys.readouterr().err
    assert main(["eval", "--workdir", str(TRAINED), "--evals", "samples,likelihood"]) == 2
    assert "stands alone" in capsys.readouterr().err
