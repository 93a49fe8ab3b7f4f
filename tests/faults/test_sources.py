"""Files and folders as people have them: read as what they are, or refused with the true reason."""

import bz2
import json
import lzma
import os
import subprocess
import sys
import time

import pytest

from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.files import files_not_read, files_of
from ldlm_jax.data.sources import load_documents
from ldlm_jax.errors import UserError
from ldlm_jax.validate import local_path

TEXTS = [f"Sentence number {i} stands here." for i in range(12)]
PLAIN = "\n\n".join(TEXTS)
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def documents(source, **options):
    loaded = load_documents(str(source), downloads=source, **options)
    return [text for split in loaded.values() for text in split]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("digits.jsonl", LINES + '{"text": "a", "n": ' + "9" * 5000 + "}", ":13: not JSON (Ex"),
        ("deep.jsonl", LINES + "[" * 100_000, ":13: not JSON"),
        ("pretty.jsonl", json.dumps({"text": "a"}, indent=2), ":1: not JSON"),
        ("array.jsonl", json.dumps([{"text": "a"}] * 9), ":1: a list where an object"),
        ("other.jsonl", '{"body": "a"}', "no field 'text', only 'body'; set data.text_field"),
        ("array.json", "[]", ".json files are not read; write its texts to a .jsonl file"),
        ("table.CSV", "text\n" + PLAIN, ".csv files are not read"),
        ("wide.txt", PLAIN.encode("utf-32"), "UTF-32"),
        ("wide_without_mark.txt", PLAIN.encode("utf-16-le"), ":1: holds a NUL byte"),
        ("wide.jsonl", LINES.encode("utf-16-le"), ":1: holds a NUL byte"),
        ("packed.txt.bz2", bz2.compress(PLAIN.encode()), "bunzip2"),
        ("packed.txt.xz", lzma.compress(PLAIN.encode()), "unxz"),
        ("page.pdf", b"%PDF-1.7\n\na\n\nb\n\nc", "pdftotext"),
        ("base.sqlite", b"SQLite format 3\0a\n\nb\n\nc\n\nd", "leave out binary files"),
    ],
)  # fmt: skip
def test_the_true_reason_is_given(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        documents(file)
    assert words in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.JSONL", LINES), ("a.ndjson", LINES), ("a.TXT", PLAIN), ("a.jsonl", LINES + "\r\n"),
     ("joined.txt", "\n\n".join("\ufeff" + text for text in TEXTS))],
)  # fmt: skip
def test_other_spellings_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert documents(tmp_path / name) == TEXTS
    assert files_of(tmp_path) == [tmp_path / name]


def test_a_folder_is_read_through_links_once_and_what_is_hidden_is_named(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (corpus / ".git", corpus / "__MACOSX", corpus / "b.txt", elsewhere):
        folder.mkdir(parents=True)
    (corpus / "a.txt").write_text(PLAIN)
    (corpus / "b.txt" / "c.txt").write_text("in a folder named like a file")
    (elsewhere / "d.txt").write_text("behind a link")
    (corpus / "link").symlink_to(elsewhere)
    (corpus / "link_again").symlink_to(elsewhere)
    (corpus / "itself").symlink_to(corpus)
    for unread in (".git/x.txt", ".notes.txt", "__MACOSX/._a.txt", "image.png"):
        (corpus / unread).write_text("no text of the corpus")
    assert documents(corpus) == [*TEXTS, "in a folder named like a file", "behind a link"]
    names = [file.name for file in files_not_read(corpus)]
    assert names == [".git", ".notes.txt", "__MACOSX", "image.png"]


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for source in (tmp_path / "pipe.txt", tmp_path, "/dev/zero"):
        code = (
            "import pathlib, sys\nfrom ldlm_jax.data.sources import load_documents\n"
            "load_documents(sys.argv[1], downloads=pathlib.Path())"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, str(source)], capture_output=True, text=True, timeout=120
        )
        assert "is no ordinary file" in said.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("web+no_such", "'no_such' is neither a file"),
        ("web+", "'' is neither a file"),
        ("1000000000*web", "at most 10,000"),
        ("\u0662*web", "is neither a file"),
        ("tfds:gs://bucket/x", "remote stores are not supported"),
        ("file:///etc/passwd", "without file://"),
        ("~nobody_of_this_name/x", "no such home folder"),
        ("x" * 5000, "a name may have 255 bytes"),
        ("a\0b", "no NUL"),
    ],
)
def test_sources_are_checked_before_any_is_read(tmp_path, source, words):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        prepare(DataConfig(source=source, root=str(tmp_path)))
    assert words in str(error.value) and time.monotonic() - start < 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["a*b?.txt", "{a}[0].txt", "100%s $HOME.txt", "\u00fc\u4e2d.txt", "two\nlines.txt",
             "back\\slash.txt", "-dash.txt", "x" * 250 + ".txt", "2*a+b.txt", ".txt"],
)  # fmt: skip
def test_files_and_folders_of_any_name_are_prepared(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(PLAIN)
    root = tmp_path / name.removesuffix(".txt") / "root"
    config = DataConfig(source=name, root=str(root), vocab_size=300, window=16)
    assert prepare(config).stats["train"]["documents"] == 10


def test_what_keeps_a_corpus_from_being_written_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(PLAIN)
    config = DataConfig(source=str(tmp_path / "a.txt"), root=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="Not a directory. Choose another folder with data.root"):
        prepare(config)


def test_no_home_folder_is_made_of_a_name():
    with pytest.raises(UserError, match="write ./~nobody"):
        local_path("~nobody_of_this_name")
    with pytest.raises(UserError, match="no file can have this name"):
        local_path("half \ud800")
