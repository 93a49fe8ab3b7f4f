"""Pretrained weights on disk, read tensor by tensor: safetensors shards, or one GGUF file."""

import json
import mmap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ldlm_jax.errors import UserError

_EXTRA = "pip install '.[teachers]'"


class Weights(Protocol):
    """Named tensors that are read when they are asked for."""

    where: str

    def names(self) -> set[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor."""


class Safetensors:
    """The ``*.safetensors`` of a folder, one file or several with an index."""

    def __init__(self, folder: Path):
        """Open a folder's files.

        Raises:
          UserError: a file is missing, truncated or not in this format.
        """
        self.where = str(folder)
        self._open = partial(safetensors.safe_open, framework="np")
        self._files, self._shapes, self._dtypes = {}, {}, {}
        for file in _shards(folder):
            try:
                with self._open(file) as opened:
                    for name in opened.keys():  # noqa: SIM118 - it is no dict
                        if name in self._files:
                            raise UserError(
                                f"{file} and {self._files[name].name} both hold {name}; fetch the "
                                "model again."
                            )
                        self._files[name] = file
                        part = opened.get_slice(name)
                        self._dtypes[name] = part.get_dtype()
                        self._shapes[name] = tuple(part.get_shape())
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read ({error}); fetch it again.") from error

    def names(self) -> set[str]:
        """All names."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
          UserError: it holds no floats of 16 bits or more, but numbers that need a scale.
        """
        dtype = self._dtypes[name]
        if dtype not in ("F64", "F32", "F16", "BF16"):
            kind = "fp8" if dtype.startswith("F8") else dtype
            raise UserError(
                f"{self._files[name]}: {name} is stored in {kind}, which is not supported; fetch "
                "the model in bf16 or fp16."
            )
        return self._shapes[name]

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor; no more than that is read.

        The file is opened anew: what a mapped file was once read stays in memory until it is
        closed, and in the end that would be the whole model a second time.
        """
        self.shape(name)
        with self._open(self._files[name]) as opened:
            return opened.get_slice(name)[part]


def _shards(folder: Path) -> Iterable[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        if not single.is_file():
            raise UserError(f"{folder} holds neither {single.name} nor {index.name}.")
        return [single]
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        # Files beside the index alone: it is a stranger's.
        outside = [name for name in files if Path(name).name != name or "\0" in name]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index} cannot be read ({error!r}); fetch it again.") from error
    if outside:
        raise UserError(f"{index} names {outside[0]!r}, which is no file of its folder.")
    missing = sorted(name for name in files if not (folder / name).is_file())
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {index.name} names.")
    return [folder / name for name in sorted(files)]


# Bytes of GGUF's value types by number; 8 is a string, 9 an array.
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


class _GgufHeader:
    """Walks over a GGUF header; nothing that it announces may be larger than the file.

    The reader of the package believes every count, and would fill the memory with it.
    """

    def __init__(self, content: mmap.mmap):
        self._content, self._at = content, 0

    def check(self) -> None:
        """Raise ValueError where the file ends before what it announces."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at += 4  # version
        tensors, fields = self._number(8), self._number(8)
        self._room(tensors, 24)
        self._room(fields, 13)
        for _ in range(fields):
            self._string()
            self._value(self._number(4))
        for _ in range(tensors):
            self._string()
            self._skip(self._number(4), 8)
            self._skip(1, 12)

    def _take(self, size: int) -> bytes:
        self._room(size, 1)
        self._at += size
        return self._content[self._at - size : self._at]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _room(self, count: int, each: int) -> None:
        if count * each > len(self._content) - self._at:
            raise ValueError(f"{count:,} entries are announced, for which the file is too short")

    def _skip(self, count: int, each: int) -> None:
        self._room(count, each)
        self._at += count * each

    def _string(self) -> None:
        self._skip(self._number(8), 1)

    def _value(self, kind: int, depth: int = 0) -> None:
        if kind == _GGUF_STRING:
            self._string()
        elif kind == _GGUF_ARRAY and depth < 4:
            of, count = self._number(4), self._number(8)
            if of in _GGUF_BYTES:
                self._skip(count, _GGUF_BYTES[of])
                return
            self._room(count, 8)
            for _ in range(count):
                self._value(of, depth + 1)
        elif kind in _GGUF_BYTES:
            self._skip(1, _GGUF_BYTES[kind])
        else:
            raise ValueError(f"unknown type {kind} of a value")


class Gguf:
    """A GGUF file; quantised tensors are dequantised to fp32 when they are read."""

    def __init__(self, file: Path):
        """Open a file.

        Raises:
          UserError: it is truncated or not in this format.
        """
        try:
            import gguf
        except ImportError as error:
            raise UserError(f"reading {file} needs gguf: {_EXTRA}.") from error
        self.where = str(file)
        self._dequantize = gguf.quants.dequantize
        try:
            with file.open("rb") as opened:
                _GgufHeader(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)).check()
            self._reader = gguf.GGUFReader(str(file))
            # A truncated file is found here: tensors are views of the mapped file.
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except (ValueError, OSError, IndexError, OverflowError, KeyError) as error:
            raise UserError(f"{file} cannot be read ({error}); fetch it again.") from error

    def field(self, key: str, default=None):
        """A value of the file's metadata."""
        found = self._reader.get_field(key)
        return default if found is None else found.contents()

    def names(self) -> set[str]:
        """All names."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; the file lists dimensions from the last to the first."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor; quantised ones by whole rows."""
        tensor = self._tensors[name]
        rows = tensor.data if tensor.data.ndim == 1 else tensor.data[part[0]]
        whole = self._dequantize(rows, tensor.tensor_type)
        return whole[part] if tensor.data.ndim == 1 else whole[(slice(None), *part[1:])]


def write_safetensors(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = 5 * 10**9
) -> None:
    """Write ``model.safetensors``, or several shards with an index.

    Args:
      folder: where to; it exists.
      tensors: names and arrays; no more of them than a shard holds are in memory at a time.
      shard_bytes: the most that a file holds, unless one tensor is larger.
    """
    parts: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    total = 0

    def write() -> None:
        part = folder / f"part-{len(parts)}"
        part.touch()
        mode = part.stat().st_mode
        save_file(shard, part, {"format": "np"})
        part.chmod(mode)  # safetensors leaves a file that its owner alone can read
        parts.append(list(shard))
        shard.clear()

    for name, array in tensors:
        if shard and sum(x.nbytes for x in shard.values()) + array.nbytes > shard_bytes:
            write()
        shard[name] = np.ascontiguousarray(array)
        total += array.nbytes
    write()
    if len(parts) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    files = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for i, file in enumerate(files):
        (folder / f"part-{i}").rename(folder / file)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {
            name: file for file, names in zip(files, parts, strict=True) for name in names
        },
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
