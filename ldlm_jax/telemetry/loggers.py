"""Writers beside JSONL and TensorBoard: Weights & Biases, and MLflow.

Each package is imported only where it was asked for (``ldlm train --log wandb,mlflow``), and reads
its own environment: ``WANDB_PROJECT``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME`` and others. A resumed run goes on under its old id, which its folder
keeps.
"""

import html
import importlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ldlm_jax.errors import UserError, did_you_mean

# Where both services file runs, unless their environment says otherwise.
_PROJECT = "ldlm_jax"
# Parameters in one call, and characters of one, that MLflow takes.
_PARAMS, _LONGEST = 100, 500


class Logger(Protocol):
    """Takes the numbers of a run.

    Attributes:
      run_id: of the run at the service.
    """

    run_id: str

    def write(self, step: int, values: dict) -> None:
        """Numbers and texts by name."""

    def close(self) -> None:
        """Send what is left."""


class Wandb:
    """Weights & Biases."""

    def __init__(self, folder: Path, config: dict, run_id: str | None):
        self._wandb = importlib.import_module("wandb")
        # Nothing of the terminal is captured: the bar would be sent, too.
        settings = self._wandb.Settings(console="off")
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT), name=folder.resolve().name,
                dir=str(folder), config=config, id=run_id, resume="allow", settings=settings,
            )  # fmt: skip
        except self._wandb.Error as error:
            raise UserError(
                f"--log wandb: {_line(error)} Run `wandb login`, or set WANDB_MODE=offline."
            ) from error
        self.run_id = self._run.id

    def write(self, step: int, values: dict) -> None:  # noqa: D102
        texts = {k: self._wandb.Html(f"<pre>{html.escape(v)}</pre>") for k, v in values.items()
                 if isinstance(v, str)}  # fmt: skip
        self._run.log(values | texts, step=step)

    def close(self) -> None:  # noqa: D102
        self._run.finish()


class MLflow:
    """MLflow tracking."""

    def __init__(self, folder: Path, config: dict, run_id: str | None):
        self._mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        try:
            self._client = self._mlflow.MlflowClient()
            known = run_id and self._is_known(run_id)
            self.run_id = run_id if known else self._begin(folder, config)
            self._client.update_run(self.run_id, status="RUNNING")
        except (self._mlflow.MlflowException, ImportError) as error:
            raise UserError(
                f"--log mlflow: {_line(error)} MLFLOW_TRACKING_URI names the server, such as "
                "http://127.0.0.1:5000; databases need all of mlflow (pip install mlflow)."
            ) from error

    def _is_known(self, run_id: str) -> bool:
        try:
            self._client.get_run(run_id)
        except self._mlflow.MlflowException:  # another store than before
            return False
        return True

    def _begin(self, folder: Path, config: dict) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=folder.resolve().name)
        params = [
            self._entities.Param(key, str(value)[:_LONGEST]) for key, value in _flat(config).items()
        ]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + _PARAMS])
        return run.info.run_id

    def write(self, step: int, values: dict) -> None:  # noqa: D102
        now, texts = (
            int(time.time() * 1000),
            {k: v for k, v in values.items() if isinstance(v, str)},
        )
        metrics = [
            self._entities.Metric(name, float(value), now, step)
            for name, value in values.items()
            if name not in texts
        ]
        try:
            self._client.log_batch(self.run_id, metrics=metrics)
            for name, text in texts.items():
                self._client.log_text(self.run_id, text, f"step_{step}/{name}.txt")
        except (self._mlflow.MlflowException, OSError) as error:
            # The run is worth more; its folder holds the same numbers.
            logging.warning("MLflow did not take the numbers of step %d: %s", step, error)

    def close(self) -> None:  # noqa: D102
        self._client.set_terminated(self.run_id)


LOGGERS = {"wandb": Wandb, "mlflow": MLflow}


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError unless all are known and their packages installed."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"--log: unknown {name!r}; {did_you_mean(name, LOGGERS)}")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--log {name} needs {error.name}: pip install '.[{name}]'.") from error


def open_loggers(names: Sequence[str], folder: Path, config: dict) -> list[Logger]:
    """Loggers by name.

    Args:
      names: of ``LOGGERS``.
      folder: of the run; keeps the ids under which it was logged.
      config: its values, by section.

    Raises:
      UserError: as in ``check_loggers``.
    """
    check_loggers(names)
    if not names:
        return []
    file = folder / "logged_as.json"
    ids = json.loads(file.read_text()) if file.exists() else {}
    loggers = {name: LOGGERS[name](folder, config, ids.get(name)) for name in names}
    file.write_text(json.dumps(ids | {name: one.run_id for name, one in loggers.items()}) + "\n")
    return list(loggers.values())


def _flat(config: dict) -> dict:
    """Values by ``section.key``."""
    flat = {}
    for section, values in config.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


def _line(error: Exception) -> str:
    """The first sentence of a message."""
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") + "."
