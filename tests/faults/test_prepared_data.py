"""A prepared corpus: read by every later version, its damage named, and a newer one refused."""

import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.data.rows import Rows
from ldlm_jax.data.stamped import read_json, write_json
from ldlm_jax.data.texts import read_texts
from ldlm_jax.errors import UserError
from ldlm_jax.workdir import Workdir

# A corpus of 24 documents as version 0.2 prepared it, and what it held.
FIXTURE = Path(__file__).parents[1] / "fixtures" / "corpus_0_2"
RUN = Path(__file__).parents[1] / "fixtures" / "run_0_1"


@pytest.fixture
def config(tmp_path):
    """The config of the corpus of the fixture, which lies where that looks for it."""
    source = tmp_path / "source.txt"
    source.write_text("\n\n".join("never read: the corpus is prepared already" for _ in range(24)))
    config = DataConfig(source=str(source), root=str(tmp_path / "root"), vocab_size=262, window=16)
    with tarfile.open(FIXTURE / "corpus.tar.xz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    config.folder.parent.mkdir()
    shutil.move(tmp_path / "unpacked" / "corpus", config.folder)
    return config


def test_a_corpus_of_version_0_2_is_read_as_it_is(config, capsys):
    expected = json.loads((FIXTURE / "expected.json").read_text())
    prepared = prepare(config)
    assert "writing" not in capsys.readouterr().out
    assert prepared.packed.name == expected["packed"] and prepared.stats == expected["stats"]
    for split, rows in expected["rows"].items():
        assert list(read_texts(prepared.text, split)) == expected["texts"][split]
        assert [row["tokens"].tolist() for row in Rows(prepared.packed, split)] == rows


def everything(config):
    """All that training, evaluation and a look at the texts read."""
    prepared = prepare(config)
    batches = train_batches(prepared, config, 4)
    tokens = [next(batches)["tokens"] for _ in range(6)]
    for split in ("validation", "test"):
        tokens += [row["tokens"] for row in Rows(prepared.packed, split)]
    texts = [text for split in ("train", "validation", "test")
             for text in read_texts(prepared.text, split)]  # fmt: skip
    return np.concatenate([x.reshape(-1) for x in tokens]).tolist(), texts, prepared.stats


def test_damage_is_named_or_does_no_harm(config, tmp_path):
    whole, expected, rng = tmp_path / "whole", everything(config), random.Random(0)
    shutil.copytree(config.folder, whole)
    named = 0
    for file in sorted(f.relative_to(whole) for f in whole.rglob("*") if f.is_file()):
        content = (whole / file).read_bytes()
        # Shards are padded with much that nobody reads.
        end = len(content.rstrip(b"\0"))
        flipped = bytearray(content)
        flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
        for damaged in (b"", content[: end // 2], bytes(len(content)), bytes(flipped), None):
            shutil.rmtree(config.folder)
            shutil.copytree(whole, config.folder)
            place = config.folder / file
            place.unlink() if damaged is None else place.write_bytes(damaged)
            try:
                assert everything(config) == expected, (file, damaged)
            except UserError as error:
                named += 1
                assert str(config.folder) in str(error) and "delete" in str(error).lower()
                assert len(str(error).splitlines()) == 1
    assert named > 30


def test_a_digit_of_the_statistics_counts(config):
    stats = next(config.folder.glob("packed*")) / "stats.json"
    stats.write_text(stats.read_text().replace('"documents": 22', '"documents": 23'))
    with pytest.raises(UserError, match=r"stats.json is damaged: delete .* start the same command"):
        prepare(config)


def test_data_of_a_newer_version_is_refused_with_the_way_out(config, tmp_path):
    write_json(config.folder / "text" / "text.json", {"version": 99})
    with pytest.raises(UserError, match="newer version .*format 99.*update ldlm_jax, or prepare"):
        list(read_texts(config.folder / "text", "train"))
    shutil.copytree(RUN, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    Workdir(tmp_path / "run").open()  # of the first version, which wrote no number
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="newer version .*format 99.*update ldlm_jax"):
        Workdir(tmp_path / "run").open()
    for damaged in ("", "[]", "{}", '{"tokenizer"', "\0"):
        (tmp_path / "run" / "run.json").write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            Workdir(tmp_path / "run").open()


def test_values_come_back_with_their_checksum_and_older_ones_without(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"b": (1, 2), "a": {"c": None}})
    assert read_json(file) == {"b": [1, 2], "a": {"c": None}}
    file.write_text('{"width": 5}')
    assert read_json(file, ("width",)) == {"width": 5}
    with pytest.raises(UserError, match="damaged"):
        read_json(file, ("height",))
