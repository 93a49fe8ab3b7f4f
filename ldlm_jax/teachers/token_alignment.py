"""What a pretrained teacher reads beside each row: its own tokens, and how the two line up.

Two tokenizers cut one text differently. What they share is its bytes: every token of either stands
for a run of them, and features are carried over in proportion to the bytes in common.
"""

from dataclasses import dataclass

import numpy as np

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer


def decodable(raw: bytes) -> tuple[str, int]:
    """The text within some bytes, and how many bytes stand before it.

    A window may begin or end within a character; what is left of it there is no text.
    """
    start = 0
    while start < min(3, len(raw)) and 0x80 <= raw[start] < 0xC0:
        start += 1
    return raw[start:].decode("utf-8", errors="ignore"), start


@dataclass(frozen=True)
class AddTeacherTokens:
    """Adds what a teacher needs to a row of ``tokens`` and ``segments`` (L,).

    Attributes:
      tokenizer: of the rows.
      teacher: the teacher's.
      window: teacher tokens in a row; what does not fit is left out, and has no features.
    """

    tokenizer: Tokenizer
    teacher: PretrainedTokenizer
    window: int

    def __call__(self, row: dict) -> dict:
        """The row with ``teacher_tokens`` and ``teacher_segments`` (window,), and the bytes that
        every token stands for: ``spans`` (L, 2) and ``teacher_spans`` (window, 2), all int32; first
        byte and last plus one, counted along the row; (0, 0) for what stands for none."""
        tokens, segments = row["tokens"], row["segments"]
        spans = np.zeros((len(tokens), 2), np.int32)
        ids = np.zeros(self.window, np.int32)
        numbers, teacher_spans = np.zeros(self.window, np.int32), np.zeros((self.window, 2), int)
        texts, bases, base = [], [], 1  # no byte has number 0: it means none
        for number in range(1, int(segments.max(initial=0)) + 1):
            places = np.flatnonzero(segments == number)
            pieces = [self.tokenizer.bytes_of(token) for token in tokens[places]]
            ends = base + np.cumsum([len(piece) for piece in pieces])
            starts = ends - [len(piece) for piece in pieces]
            spans[places] = np.where((ends > starts)[:, None], np.stack([starts, ends], 1), 0)
            text, cut = decodable(b"".join(pieces))
            texts.append(text)
            bases.append(base + cut)
            base = int(ends[-1])
        used = 0
        for number, (encoded, base) in enumerate(
            zip(self.teacher.encode(texts), bases, strict=True), 1
        ):
            part = slice(used, min(used + len(encoded.ids), self.window))
            count = part.stop - part.start
            ids[part], numbers[part] = encoded.ids[:count], number
            own = encoded.spans[:count]
            teacher_spans[part] = np.where((own[:, 1] > own[:, 0])[:, None], own + base, 0)
            used = part.stop
        return row | {
            "spans": spans,
            "teacher_tokens": ids,
            "teacher_segments": numbers,
            "teacher_spans": teacher_spans.astype(np.int32),
        }
