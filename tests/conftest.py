"""Eight simulated devices, and a tiny corpus and model that the tests share."""

import os

# The tests compile much and run little: let the compiler take it easy. Before jax is imported.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

import jax  # noqa: E402

# Before anything uses a device: a later change is an error.
jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402

from ldlm_jax.config import load_config, resolve  # noqa: E402

SUBJECTS = ("The king", "A servant", "The prophet", "My son", "The woman", "An angel")
VERBS = ("spoke to", "went before", "blessed", "remembered", "feared")
OBJECTS = ("the people", "his father", "the LORD", "Jerusalem", "the whole house")


def sentences() -> list[str]:
    """150 different short sentences."""
    return [f"{s} {v} {o}." for s in SUBJECTS for v in VERBS for o in OBJECTS]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of sentences, one a paragraph."""
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text("\n\n".join(sentences()))
    return path


@pytest.fixture(scope="session")
def overrides(corpus, tmp_path_factory):
    """Overrides that make configs/debug.py train on the tiny corpus."""
    return [f"data.source={corpus}", f"data.root={tmp_path_factory.mktemp('prepared')}"]


@pytest.fixture(scope="session")
def experiment(overrides):
    """The debug experiment on the tiny corpus."""
    return resolve(load_config("configs/debug.py", overrides))
