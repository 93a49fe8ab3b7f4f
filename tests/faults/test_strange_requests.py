"""Requests and outputs of any spelling: refused in a line, and nothing finished is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldlm_jax.cli import main
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.output import opened
from ldlm_jax.sampling.request import Request, read_requests
from ldlm_jax.sampling.revision import read_text

SUDOKU = str(Path(__file__).parents[2] / "checkpoints" / "sudoku6")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed"),
        ({"number": 2**32}, "number"),
        ({"prompt": "half \ud800"}, "prompt: not Unicode text"),
        ({"suffix": "\udcff"}, "suffix: not Unicode text"),
        ({"template": "\ud800 ____"}, "template: not Unicode text"),
    ],
)
def test_what_no_generator_takes_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Request(**fields)
    assert Request(seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"steps": ' + "9" * 5000 + "}", "r.jsonl:2: Exceeds"),
        ("[" * 100_000, "r.jsonl:2: maximum recursion"),
        ('{"prompt": "\\ud800"}', "r.jsonl:2: prompt: not Unicode"),
        ('{"seed": -1}', "r.jsonl:2: seed = -1"),
        ('{"number": 99999999999}', "r.jsonl:2: number"),
    ],
)
def test_the_line_is_named(tmp_path, line, words):
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(UserError) as error:
        read_requests(str(file), SampleConfig(), 0)
    assert words in str(error.value)


def test_files_without_an_end_and_remote_ones_are_not_read():
    code = (
        "import sys\nfrom ldlm_jax.sampling.revision import read_text\n"
        "from ldlm_jax.sampling.request import read_requests\n"
        "read_text(sys.argv[1]) if sys.argv[2] == 'text' else read_requests(sys.argv[1], None, 0)"
    )
    for kind in ("text", "requests"):
        said = subprocess.run(
            [sys.executable, "-c", code, "/dev/zero", kind], capture_output=True, text=True,
            timeout=120, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert "cannot read /dev/zero: it is no file" in said.stderr
    for read in (read_text, lambda path: read_requests(path, SampleConfig(), 0)):
        with pytest.raises(UserError, match="remote stores are not supported"):
            read("s3://bucket/file")


def test_a_result_of_before_stays_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text("finished work")
    with pytest.raises(UserError), opened(str(file)) as out:
        out.write("half")
        raise UserError("a later request is impossible")
    assert file.read_text() == "finished work"
    with opened(str(file)) as out:
        out.write(json.dumps("new"))
    assert file.read_text() == '"new"' and [f.name for f in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(UserError, match="Is a directory"), opened(str(tmp_path)):
        pass
    with pytest.raises(UserError, match="remote stores"), opened("gs://bucket/out.jsonl"):
        pass


def test_results_go_into_pipes_as_they_come():
    reader, writer = os.pipe()
    with opened(f"/dev/fd/{writer}") as out:
        out.write("through")
    os.close(writer)
    assert os.read(reader, 100) == b"through"
    os.close(reader)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("eval --evals nosuch", "unknown 'nosuch'"),
        ("eval --evals samples,likelihood --text-file a", "stands alone"),
        ("eval --num-samples 0", "--num-samples = 0: must be in [1, 1000000]"),
        ("eval --num-samples -3", "--num-samples = -3"),
        ("eval --seed -1", "--seed = -1"),
        ("eval --batches 0", "--batches = 0"),
        ("eval --evals likelihood --text-file a --draws 0", "--draws = 0"),
        ("eval --evals samples,quality --scorer nosuch", "no model 'nosuch'"),
        ("eval --json {tmp}/no/results.json", "there is no folder"),
        ("eval --html {tmp}", "name a file"),
        ("eval --json gs://bucket/results.json", "remote stores"),
        ("eval --evals puzzles --step-counts 5 0", "sample.steps = 0"),
        ("eval --guidances 1 nan", "sample.guidance = nan"),
        ("eval --evals puzzles --levels hard nosuch", "no level 'nosuch' of sudoku6"),
        ("sample --puzzles 0", "puzzles = 0: must be in [1, 10000]"),
        ("sample --puzzles -3", "puzzles = -3"),
        ("sample --puzzles 99999999", "puzzles = 99999999"),
        ("sample --num-samples 0", "num_samples = 0"),
    ],
)
def test_flags_are_refused_before_any_work(tmp_path, capsys, flags, words):
    command, *rest = flags.format(tmp=tmp_path).split()
    assert main([command, "--model", SUDOKU, *rest]) == 2
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and not told.out
