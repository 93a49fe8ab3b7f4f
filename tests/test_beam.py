"""``ldlm data --beam``: Apache Beam makes the files that the cores of one machine make."""

from dataclasses import replace

import pytest

from ldlm_jax.data import shards as making
from ldlm_jax.data.beam import maker
from ldlm_jax.data.dataset import prepare
from ldlm_jax.errors import UserError
from tests.conftest import files_of


@pytest.mark.parametrize(
    "options",
    ["", "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"],
    ids=["defaults", "processes"],
)
def test_the_files_are_those_of_one_machine(many, tmp_path, options):
    pytest.importorskip("apache_beam")
    expected = prepare(many)
    made = prepare(replace(many, root=str(tmp_path / "b")), maker(options))
    assert made.stats == expected.stats and len(files_of(made.packed)) > 6
    assert files_of(made.packed) == files_of(expected.packed)


def test_finished_shards_are_kept(many, tmp_path):
    pytest.importorskip("apache_beam")
    prepared = prepare(many)
    shards = making.shards_of(prepared.text, "train", tmp_path, many)
    shards[1].make(prepared.tokenizer)
    before = shards[1].path.stat().st_mtime_ns
    facts = list(maker("")(shards, prepared.tokenizer))
    assert sum(f["rows"] for f in facts) == prepared.stats["train"]["windows"]
    assert shards[1].path.stat().st_mtime_ns == before and len(facts) == len(shards) > 3


def test_a_runner_that_is_not_there_is_found_before_any_work():
    pytest.importorskip("apache_beam")
    with pytest.raises(UserError, match="--beam --runner=Nope: Unexpected pipeline runner"):
        maker("--runner=Nope")


def test_beam_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install '\.\[beam\]'"):
        maker("")
