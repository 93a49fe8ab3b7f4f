"""Input at full speed is the same input: order, rows in memory or not, shards, words looked up."""

import json
import random
import subprocess
import sys
import time
from multiprocessing import get_context

import grain
import numpy as np
import pytest

from ldlm_jax.data import dataset as build
from ldlm_jax.data import rows as store
from ldlm_jax.data import shards as making
from ldlm_jax.data import texts as documents
from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.order import shuffled, streamed
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.data.rows import Rows, write_rows
from ldlm_jax.data.special_ids import EOS
from ldlm_jax.data.texts import read_texts, write_texts
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from tests.conftest import files_of, packed_rows, sentences, write_tfds


@pytest.mark.parametrize("size", [1, 2, 40, 70_000, 5_000_000_000])
def test_the_order_is_grains(size):
    positions = np.unique(np.r_[0 : min(size, 30), size - 1, size, 2 * size + size // 3])
    there = grain.MapDataset.range(size).seed(7).shuffle().repeat()
    expected = [there[int(i)] for i in positions]
    np.testing.assert_array_equal(shuffled(positions, size, 7), expected)


@pytest.mark.parametrize("size", [2, 40, 65_537, 70_000])
def test_every_epoch_holds_every_row_once(size):
    for epoch in range(2):
        positions = np.arange(epoch * size, (epoch + 1) * size)
        np.testing.assert_array_equal(np.sort(shuffled(positions, size, 3)), np.arange(size))


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """Rows that hold their own number, eight a record, in four shards with a short last record."""
    monkeypatch.setattr(store, "_RECORD_BYTES", 8 * 12)
    monkeypatch.setattr(store, "_SHARD_BYTES", 100 * 12)
    numbers = np.arange(400, dtype=np.uint16)
    rows = {"tokens": np.repeat(numbers[:, None], 4, 1),
            "segments": np.ones((400, 4), np.uint8)}  # fmt: skip
    write_rows(tmp_path / "rows", [{k: x[i : i + 50] for k, x in rows.items()}
                                   for i in range(0, 400, 50)])  # fmt: skip
    return tmp_path / "rows"


def test_rows_come_as_they_were_written_in_memory_or_not(numbered, monkeypatch):
    rng = np.random.default_rng(0)
    for memory in (2**20, 3 * 96):
        monkeypatch.setattr(store, "_MEMORY_BYTES", memory)
        rows = Rows(numbered, "train")
        assert len(rows) == 400 and rows.fits_in_memory == (memory == 2**20)
        for _ in range(20):
            wanted = rng.integers(0, 400, 30)
            found = rows.take(wanted)
            np.testing.assert_array_equal(found["tokens"], np.repeat(wanted[:, None], 4, 1))
            assert (found["segments"] == 1).all() and found["segments"].dtype == np.int32


def test_a_split_larger_than_memory_is_read_record_by_record(numbered, monkeypatch):
    """Any share of the places gives the rows of the whole batch; nearly all rows come once."""
    monkeypatch.setattr(store, "_MEMORY_BYTES", 4 * 96)
    rows, places = Rows(numbered, "train"), np.arange(4)
    steps = 8 * rows.records // 4  # as many records are read as there are
    seen = [streamed(step, places, 4, rows, 5) for step in range(steps)]
    part = [streamed(step, places[2:], 4, rows, 5) for step in range(steps)]
    np.testing.assert_array_equal([row[2:] for row in seen], part)
    assert len(np.unique(seen)) > 0.9 * len(rows)
    # Neighbours in a batch are no neighbours in the split.
    assert np.mean(np.abs(np.diff(np.array(seen), axis=1)) < 8) < 0.1
    again = streamed(steps + 3, places, 4, rows, 5)
    assert not np.array_equal(again, seen[3])
    # Each step reads few records: places change theirs in turn.
    read = [len(set(row // 8) - set(before // 8)) for before, row in zip(seen, seen[1:])]  # noqa: B905
    assert max(read) <= 2


def test_streams_resume_and_are_shared_like_all_batches(numbered, monkeypatch):
    monkeypatch.setattr(store, "_MEMORY_BYTES", 4 * 96)
    prepared = type("Prepared", (), {"packed": numbered})
    config = DataConfig(window=4)
    batches = train_batches(prepared, config, 4)
    first = [next(batches)["tokens"] for _ in range(12)]
    resumed = train_batches(prepared, config, 4, 10, np.array([1, 3]), cache=numbered)
    np.testing.assert_array_equal(next(resumed)["tokens"], first[10][[1, 3]])
    np.testing.assert_array_equal(next(resumed)["tokens"], first[11][[1, 3]])


def test_batches_are_made_ahead_in_another_thread(numbered):
    import threading

    made = []

    def put(batch):
        made.append(threading.current_thread())
        return batch

    prepared = type("Prepared", (), {"packed": numbered})
    batches = train_batches(prepared, DataConfig(window=4), 4, put=put)
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 3 and threading.main_thread() not in made


LEAVES_EARLY = """
import atexit, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from ldlm_jax.data.dataset import DataConfig
from ldlm_jax.data.pipeline import train_batches

began, threads = [], []
def put(batch):
    threads.append(threading.current_thread())
    began.append(1)
    time.sleep(0.3)
    began.pop()
    return batch

atexit.register(lambda: print(len(began), threads[0].is_alive()))  # first in, last out
batches = train_batches(SimpleNamespace(packed=Path(sys.argv[1])), DataConfig(window=4), 8, put=put)
next(batches)
time.sleep(0.1)  # the next one is on its way
assert began
if sys.argv[2] == "closed":
    batches.close()
    assert not began and not threads[0].is_alive()
"""


@pytest.mark.parametrize("how", ["closed", "left"])
def test_no_batch_is_on_its_way_when_python_ends(numbered, how):
    """A thread within the device's code would abort the program at its end."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_EARLY, str(numbered), how], capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0 False\n"), done.stderr


def test_rows_of_another_version_are_refused(numbered):
    facts = json.loads((numbered / store.FACTS).read_text())
    (numbered / store.FACTS).write_text(json.dumps(facts | {"version": 99}))
    with pytest.raises(UserError, match="version 99.*delete the folder.*ldlm data"):
        Rows(numbered, "train")


def test_a_corpus_of_version_0_1_is_packed_anew_from_its_text(corpus, tmp_path):
    config = DataConfig(source=str(corpus), root=str(tmp_path), vocab_size=300, window=32)
    texts = {"train": sentences()[:130], "validation": sentences()[130:140],
             "test": sentences()[140:]}  # fmt: skip
    write_tfds(config.folder / "text", texts)
    prepared = prepare(config)
    assert list(read_texts(prepared.text, "train")) == texts["train"]
    assert prepared.stats["train"]["documents"] == 130
    assert next(train_batches(prepared, config, 4))["tokens"].shape == (4, 32)


# ---------------------------------------------------------------------------- preparing


def test_words_that_are_looked_up_give_the_tokenizers_ids():
    runs = [" " * 8 + "x" + "\n \t" * 5] * 50  # of white space, which become tokens
    tokenizer, rng = Tokenizer.train([*sentences(), *runs], 320), random.Random(0)
    parts = [*"ab1.! é½中🙂", "  ", "   ", "\n", "\t", "\r", "\0", "\x1c", "\u00a0", "\u2003", "'s",
             "<eos>", "king", " the"]  # fmt: skip
    texts = ["".join(rng.choices(parts, k=rng.randrange(20))) for _ in range(3000)]
    for _ in range(2):  # met for the first time, and again
        ids, lengths = tokenizer.encode_flat(texts)
        expected = tokenizer.encode(texts)
        assert lengths.tolist() == list(map(len, expected))
        assert ids.tolist() == [i for text in expected for i in text]


def test_any_number_of_workers_makes_the_same_files(many, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_cores", lambda: 2)
    prepared = prepare(many)
    assert len(json.loads((prepared.packed / store.FACTS).read_text())["shards"]["train"]) > 3
    shards = making.shards_of(prepared.text, "train", tmp_path, many)
    facts = list(making.make_shards(shards, prepared.tokenizer, 1))
    assert len(facts) == len(shards)
    for shard in shards:
        assert shard.path.read_bytes() == (prepared.packed / shard.path.name).read_bytes()
    found = [d for row in Rows(prepared.packed, "train") for d in _documents(row)]
    texts = list(read_texts(prepared.text, "train"))
    assert sorted(map(prepared.tokenizer.decode, found)) == sorted(texts)
    assert prepared.stats["train"]["documents"] == len(texts) == sum(prepared.stats["lengths"])
    assert prepared.stats["train"]["tokens"] == sum(map(len, found))


def _documents(row):
    for number in range(1, row["segments"].max() + 1):
        yield row["tokens"][row["segments"] == number]


def _die(config, after):
    made = []

    def killed(*arguments):
        made.append(arguments)
        if len(made) > after:
            making.os._exit(9)
        return packed(*arguments)

    packed, making.pack = making.pack, killed
    documents._RECORD_BYTES, making._RECORDS = 500, 2
    build._cores = lambda: 1  # in this process
    prepare(config)


def test_a_killed_preparation_goes_on_with_what_is_finished(many, tmp_path):
    expected = prepare(many)
    config = DataConfig(**(vars(many) | {"root": str(tmp_path / "b")}))
    process = get_context("spawn").Process(target=_die, args=(config, 2))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    (partial,) = config.folder.glob("packed*.partial")
    before = {f.name: f.stat().st_mtime_ns for f in partial.glob("*.array_record")}
    assert len(before) == 2
    (partial / next(iter(before))).with_suffix(".123.partial").write_text("half")
    prepared = prepare(config)
    after = {f.name: f.stat().st_mtime_ns for f in prepared.packed.glob("*.array_record")}
    assert before.items() <= after.items()
    assert files_of(prepared.packed) == files_of(expected.packed)


def test_texts_keep_their_order_over_records_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_RECORD_BYTES", 100)
    monkeypatch.setattr(documents, "_SHARD_RECORDS", 3)
    write_texts(tmp_path / "text", {"train": sentences()})
    assert len(list((tmp_path / "text").glob("train-*"))) > 3
    assert list(read_texts(tmp_path / "text", "train")) == sentences()
    with pytest.raises(UserError, match="the train split of .* has no documents"):
        write_texts(tmp_path / "none", {"train": []})
    assert not (tmp_path / "none").exists()


def test_packing_is_grains_first_fit():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(3, 99, n).astype(np.int32) for n in rng.integers(1, 16, 900)]
    config = DataConfig(window=16)
    rows = packed_rows([list(piece) for piece in pieces], config)
    whole = [{"tokens": np.append(piece, EOS)} for piece in pieces]
    expected = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(whole).to_iter_dataset(), length_struct={"tokens": 16},
        num_packing_bins=64, shuffle_bins=False,
    )  # fmt: skip
    expected = list(expected)
    assert len(rows) == len(expected) > 128
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row["tokens"], other["tokens"])
        np.testing.assert_array_equal(row["segments"], other["tokens_segment_ids"])
