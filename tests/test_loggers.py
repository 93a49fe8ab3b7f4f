"""Weights & Biases and MLflow beside a run's own files, with the real packages and no network."""

import json
import sys

import pytest

from ldlm_jax import train as loop
from ldlm_jax.cli import main
from ldlm_jax.errors import UserError
from ldlm_jax.telemetry.loggers import open_loggers
from tests.test_cli import train_command
from tests.test_screen import no_step


@pytest.fixture
def tracked(monkeypatch, tmp_path):
    """Where MLflow and Weights & Biases keep runs of this test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


@pytest.mark.slow
def test_a_run_is_logged_to_mlflow_and_goes_on_there(tracked, overrides, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(loop, "compiled_step", no_step)
    short = ("train.evals=()", "train.log_every=1", "train.checkpoint_every=1")
    for steps in (2, 3):
        command = train_command(tracked / "run", overrides, *short, f"train.num_steps={steps}")
        assert main([*command, "--log", "mlflow"]) == 0
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name("ldlm_jax")
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "2" and run.data.params["dit.layers"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert client.get_metric_history(run.info.run_id, "tokens_per_second")
    kept = json.loads((tracked / "run" / "logged_as.json").read_text())
    assert kept == {"mlflow": run.info.run_id}


def test_texts_are_artifacts_of_mlflow(tracked):
    mlflow = pytest.importorskip("mlflow")
    (logger,) = open_loggers(["mlflow"], tracked, {"sample": {"steps": 3}})
    logger.write(5, {"samples/text_steps_5": "- a <b>", "loss": float("nan")})
    logger.close()
    client = mlflow.MlflowClient()
    (folder,) = client.list_artifacts(logger.run_id)
    (inner,) = client.list_artifacts(logger.run_id, folder.path)
    (file,) = client.list_artifacts(logger.run_id, inner.path)
    assert file.path == "step_5/samples/text_steps_5.txt"
    saved = next((tracked / "mlruns").rglob("text_steps_5.txt"))
    assert saved.read_text() == "- a <b>"


def test_a_run_is_logged_to_wandb(tracked):
    wandb = pytest.importorskip("wandb")
    (logger,) = open_loggers(["wandb"], tracked, {"dit": {"layers": 77001}})
    logger.write(1, {"loss/diffusion": 1.25})
    logger.write(1, {"samples/text_steps_5": "- a <b>"})
    logger.close()
    wandb.teardown()  # of the process that writes the file
    (stored,) = tracked.rglob("run-*.wandb")
    content = stored.read_bytes()
    for words in (b"loss/diffusion", b"1.25", b"77001", tracked.name.encode()):
        assert words in content
    (page,) = tracked.rglob("text_steps_5*.html")
    assert "- a &lt;b&gt;" in page.read_text()
    assert json.loads((tracked / "logged_as.json").read_text()) == {"wandb": logger.run_id}
    (again,) = open_loggers(["wandb"], tracked, {})
    assert again.run_id == logger.run_id
    again.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, overrides, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert main([*train_command(tmp_path / "run", overrides), "--log", name]) == 2
    assert f"pip install '.[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*train_command(tmp_path / "run", overrides), "--log", "wandbb"]) == 2
    assert "did you mean 'wandb'" in capsys.readouterr().err


def test_a_store_that_mlflow_cannot_open_is_a_clear_error(tracked, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI names the server"):
        open_loggers(["mlflow"], tracked, {})
