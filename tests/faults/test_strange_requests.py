"""Requests and outputs of any spelling: refused in a line, and nothing finished is lost."""

import json
import os
import subprocess
import sys

import pytest

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.output import opened
from ldlm_jax.sampling.request import Request, read_requests
from ldlm_jax.sampling.revision import read_text


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
