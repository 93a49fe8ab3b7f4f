"""A config's file: Python that defines ``get_config()``, or the JSON beside a run."""

import importlib.util
import json
import traceback
from pathlib import Path

from ldlm_jax.errors import UserError


def read_values(file: Path) -> dict:
    """Values by section.

    Raises:
      UserError: there is no such file, or it does not give them; names the line of Python.
    """
    if not file.is_file():
        raise UserError(f"no config file {file}; see configs/ for examples.")
    if file.suffix not in (".py", ".json"):
        raise UserError(f"{file}: a config is a .py file, or the config.json of a run.")
    values = _read_json(file) if file.suffix == ".json" else _run(file)
    try:
        return dict(values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{file}: a config holds sections by name, {{'train': {{'num_steps': 100}}}}, and not "
            f"{type(values).__name__}."
        ) from error


def _read_json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: no JSON ({error}).") from error


def _run(file: Path):
    spec = importlib.util.spec_from_file_location("ldlm_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if hasattr(module, "get_config"):
            return module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(file)]  # fmt: skip
        line = lines[-1] if lines else getattr(error, "lineno", 1)
        raise UserError(f"{file}:{line}: {type(error).__name__}: {error}.") from error
    raise UserError(f"{file}: a config file defines get_config().")
