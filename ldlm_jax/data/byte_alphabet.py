"""Byte-level BPE's alphabet, and what a vocabulary that lacks a part of it cannot encode."""

import re
from collections.abc import Container
from functools import cache

_WHITE_SPACE = b"\t\n\r"
# Bytes that no UTF-8 text holds.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
# First bytes of the characters from U+40000 on: all but none of them is assigned.
_FIRST_OF_FAR = {byte: (byte - 0xF0) << 18 for byte in range(0xF1, 0xF5)}


@cache
def byte_alphabet() -> dict[str, int]:
    """The letter of each byte: printable bytes stand for themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def missing_bytes(vocabulary: Container[str]) -> set[int]:
    """Bytes that a text may hold and the vocabulary has no letter for."""
    missing = {byte for letter, byte in byte_alphabet().items() if letter not in vocabulary}
    return missing - _NEVER


def rare(byte: int) -> bool:
    """Whether ordinary text does without the byte: control characters, and planes with next to
    nothing in them. SmolLM2's vocabulary lacks eight of them."""
    control = (byte < 0x20 or byte == 0x7F) and byte not in _WHITE_SPACE
    return control or byte in _FIRST_OF_FAR


def lost_characters(vocabulary: Container[str]) -> re.Pattern | None:
    """Finds a character that the vocabulary lacks a ``rare`` byte of; None where it has all."""
    ranges = []
    for byte in sorted(filter(rare, missing_bytes(vocabulary))):
        first = _FIRST_OF_FAR.get(byte, byte)
        last = byte if first == byte else min(first + 0x3FFFF, 0x10FFFF)
        ranges.append(f"\\U{first:08x}-\\U{last:08x}")
    return re.compile(f"[{''.join(ranges)}]") if ranges else None
