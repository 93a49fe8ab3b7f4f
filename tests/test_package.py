"""What an installed package brings: its configs, its version, its requirements."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ldlm_jax
from ldlm_jax.cli import main

ROOT = Path(__file__).parent.parent


def test_every_requirement_has_a_lower_bound():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    required = [line for line in lines if line and not line.startswith("#")]
    assert len(required) > 20
    assert not [line for line in required if ">=" not in line]


def test_configs_are_listed_and_found_by_name(capsys, tmp_path, monkeypatch):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert all(file.stem in listed for file in (ROOT / "configs").glob("*.py"))
    assert "Seconds: a tiny model" in listed
    monkeypatch.chdir(tmp_path)
    for name in ("web_cp", "web_cp.py", "elsewhere/web_cpu.py"):
        assert main(["train", "--config", name, "--workdir", "x"]) == 2
        assert "did you mean 'web_cpu'" in capsys.readouterr().err or "/" in name
    assert main(["train", "--config", "debug", "dit.hieght=3", "--workdir", "x"]) == 2
    assert "dit.hieght" in capsys.readouterr().err  # found, and read
    assert main(["train", "--config", "debug"]) == 2
    assert "--workdir names" in capsys.readouterr().err


def test_a_tree_that_is_only_on_the_path_needs_no_installation():
    assert ldlm_jax.version_of("no such package") == "not installed"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and re.match(r"ldlm_jax \d+\.\d+", capsys.readouterr().out)


@pytest.mark.slow
def test_a_dry_run_tells_shapes_and_memory_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "debug", "--dry-run", "train.batch_size=16"]) == 0
    told = capsys.readouterr().out
    for words in ("M parameters on 8 x cpu", "text_vae", "batch: tokens (16, 32) int32",
                  "MB on each device", "phase 0:", "phase 1:", "GFLOP a step"):  # fmt: skip
        assert words in told, told
    assert not list(tmp_path.iterdir())
    assert main(["train", "--config", "debug", "--dry-run", "train.batch_size=3"]) == 2
    assert "train.batch_size = 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_works_outside_the_repository(tmp_path):
    pytest.importorskip("setuptools")
    clone = tmp_path / "clone"  # of what is built, which leaves files behind
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        clone.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, clone)
    for name in ("configs", "ldlm_jax"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q",
             "-w", str(tmp_path), str(clone)]  # fmt: skip
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "site"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    for file in ("py.typed", "configs/web_cpu.py", "sampling/page.html", "serving/README.md"):
        assert (folder / "ldlm_jax" / file).is_file(), file
    here = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "ldlm_jax.cli", "configs"]
    told = subprocess.run(
        command, env=here, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "web_cpu" in told.stdout
