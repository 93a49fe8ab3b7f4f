"""Sentences out of manuals: paragraphs of HTML pages and of service descriptions."""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser

# Words that sentences are held together by, and signatures, code and tables are not.
_COMMON = frozenset(
    """a an the and or but if then else of in on at to from by for with without as is are was
    were be been being it its this that these those which who whom whose what when where why
    how not no nor so than too very can could may might must shall should will would do does
    did has have had i you he she we they him her their his our your my me us all any each
    every some such other more most into over under between about after before only also both
    same""".split()  # noqa: SIM905
)
_NO_PROSE = re.compile(r"[{}<>|\\]|==|::|\(\)")
_SENTENCE_END = re.compile(r"[.!?:][\"”’)]?$")


def is_prose(text: str, fewest_words: int = 12) -> bool:
    """Whether a paragraph is made of sentences, and no heading, signature, code or table."""
    if len(text.split()) < fewest_words or not _SENTENCE_END.search(text) or _NO_PROSE.search(text):
        return False
    words = re.findall(r"[a-z]+", text.lower())
    letters = sum(c.isalpha() or c == " " for c in text)
    common = sum(word in _COMMON for word in words)
    return letters >= 0.88 * len(text) and common >= 0.25 * len(words)


class _Paragraphs(HTMLParser):
    """Collects the text between tags that end a paragraph."""

    ENDS = frozenset(
        """p li dd dt td th h1 h2 h3 h4 h5 h6 div ul ol dl table tr section article blockquote br hr
        body""".split()  # noqa: SIM905
    )
    DROPPED = frozenset(
        """script style pre nav header footer svg math head button select textarea
        form""".split()  # noqa: SIM905
    )

    def __init__(self):
        super().__init__()
        self.done: list[str] = []
        self._text: list[str] = []
        self._dropped: list[str] = []

    def handle_starttag(self, tag, attrs):  # noqa: D102
        if tag in self.DROPPED:
            self._dropped.append(tag)
        elif tag in self.ENDS:
            self.end()

    def handle_endtag(self, tag):  # noqa: D102
        if tag in self._dropped:
            # What was left open within it ends with it.
            del self._dropped[self._dropped.index(tag) :]
        elif tag in self.ENDS:
            self.end()

    def handle_data(self, data):  # noqa: D102
        if not self._dropped:
            self._text.append(data)

    def end(self) -> None:
        """A paragraph is complete."""
        text = re.sub(r"\s+", " ", "".join(self._text)).strip(" ¶")
        self._text = []
        if is_prose(text):
            self.done.append(text)


def html_paragraphs(page: str) -> list[str]:
    """The paragraphs of prose of a page."""
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    parser.end()
    return parser.done


_BREAK = re.compile(
    r"</?(?:p|li|ul|ol|dl|dt|dd|note|important|div|br|h\d|table|tr|fullname|caution|warning|tip)\b"
    r"[^>]*>"
)


def botocore_paragraphs(described) -> Iterator[str]:
    """The paragraphs of every ``documentation`` of a service's description."""
    if isinstance(described, list):
        for item in described:
            yield from botocore_paragraphs(item)
    if not isinstance(described, dict):
        return
    for name, value in described.items():
        if name == "documentation" and isinstance(value, str):
            prose = re.sub(r"<(pre|code-block)\b.*?</\1>", " ", value, flags=re.DOTALL)
            for part in _BREAK.split(prose):
                text = html.unescape(re.sub(r"<[^>]+>", "", part))
                text = re.sub(r"\s+", " ", text).strip()
                if len(text) >= 60 and len(text.split()) >= 10 and _SENTENCE_END.search(text):
                    yield text
        else:
            yield from botocore_paragraphs(value)
