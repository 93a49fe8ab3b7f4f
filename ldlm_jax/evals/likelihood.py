"""Log-likelihood of texts in a file: one JSON object a text, exact or a bound with its error."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.likelihood import Likelihood, encoded, log_likelihoods
from ldlm_jax.validate import finite_file


@dataclass(frozen=True)
class Asked:
    """A text to score.

    Attributes:
      text: what counts.
      given: what stands before it, and does not count.
      place: where it stands in its file, for messages.
    """

    text: str
    given: str
    place: str


def read_asked(path: str) -> list[Asked]:
    """Texts of a file.

    Args:
      path: a ``.jsonl`` file, each line an object with ``text`` and, if anything is given,
        ``given``; of any other file the paragraphs, their blanks made single, as in a corpus.

    Raises:
      UserError: the file cannot be read, a line is no such object, or there is no text.
    """
    try:
        content = finite_file(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read texts from {path}: {error}.") from error
    if Path(path).suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)
        asked = [_from_line(line, f"{path}, line {n}") for n, line in lines if line.strip()]
    else:
        texts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", content)]
        texts = [text for text in texts if text]
        asked = [Asked(text, "", f"{path}, text {n}") for n, text in enumerate(texts, 1)]
    if not asked:
        raise UserError(f"{path} holds no text.")
    return asked


def _from_line(line: str, place: str) -> Asked:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}).") from error
    keys = set(row) if isinstance(row, dict) else set()
    if "text" not in keys or keys - {"text", "given"} or not all(map(_is_text, row.values())):
        raise UserError(f'{place}: write {{"text": "...", "given": "..."}}; given may be left out.')
    return Asked(row["text"], row.get("given", ""), place)


def _is_text(value) -> bool:
    """Whether it is Unicode text: JSON may hold half of a character."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def write_likelihoods(
    generator: Generator,
    path: str,
    write: Callable[[str], object],
    *,
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> str:
    """Score the texts of a file.

    Args:
      generator: the model.
      path: the file, see ``read_asked``.
      write: takes each line, in the order of the file.
      draws: of a bound.
      seed: of the draws.
      batch_size: texts scored at once.

    Returns:
      A sentence on all texts together.

    Raises:
      UserError: the file is not usable, or a text does not fit the window.
    """
    asked = read_asked(path)
    for one in asked:
        tokens = sum(map(len, encoded(generator, one.given, one.text))) + 1
        if tokens > generator.window:
            raise UserError(
                f"{one.place}: takes {tokens} tokens with its end, and the model's window holds "
                f"{generator.window}; split it."
            )
    found = log_likelihoods(
        generator, [(one.given, one.text) for one in asked], draws=draws, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    for line in _lines(generator, asked, found):
        write(line)
    return _together(found)


def _lines(generator: Generator, asked: list[Asked], found: list[Likelihood]) -> Iterator[str]:
    for one, of_text in zip(asked, found, strict=True):
        bytes_of = generator.tokenizer.bytes_of
        record = {
            "text": one.text, "given": one.given, "log_likelihood": of_text.log_likelihood,
            "standard_error": of_text.standard_error, "exact": of_text.exact,
            "tokens": [bytes_of(token).decode("utf-8", "replace") for token in of_text.tokens],
            "token_ids": of_text.tokens, "token_log_probs": of_text.token_log_probs,
        }  # fmt: skip
        yield json.dumps(record)


def _together(found: list[Likelihood]) -> str:
    tokens = sum(len(one.tokens) for one in found)
    mean = sum(one.log_likelihood for one in found) / tokens
    counted = f"log-likelihood of {len(found)} texts, {tokens} tokens"
    if found[0].exact:
        return f"{counted}: {mean:.4f} nats a token, exact"
    error = math.sqrt(sum(one.standard_error**2 for one in found)) / tokens
    return (
        f"{counted}: at least {mean:.4f} nats a token (standard error {error:.4f}); a bound tells "
        "nothing of single tokens"
    )
