"""Eight simulated devices, and a tiny corpus and model that the tests share."""

import os
import tempfile
from pathlib import Path

# The tests compile much and run little: let the compiler take it easy. Before jax is imported.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
# What one test or process compiled is read back by the next, within one run of the suite.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402

# Before anything uses a device: a later change is an error.
jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from array_record.python.array_record_module import ArrayRecordWriter  # noqa: E402
from flax.core import meta  # noqa: E402

from ldlm_jax.checkpoint import Checkpoints  # noqa: E402
from ldlm_jax.config import load_config, resolve  # noqa: E402
from ldlm_jax.data import shards as making  # noqa: E402
from ldlm_jax.data import texts as documents  # noqa: E402
from ldlm_jax.data.dataset import DataConfig, prepare  # noqa: E402
from ldlm_jax.data.packing import pack  # noqa: E402
from ldlm_jax.models.networks import LatentStats  # noqa: E402
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh  # noqa: E402
from ldlm_jax.teachers.backbone import load_backbone  # noqa: E402
from ldlm_jax.train_state import AveragedModel  # noqa: E402
from ldlm_jax.workdir import Workdir  # noqa: E402

SUBJECTS = ("The king", "A servant", "The prophet", "My son", "The woman", "An angel")
VERBS = ("spoke to", "went before", "blessed", "remembered", "feared")
OBJECTS = ("the people", "his father", "the LORD", "Jerusalem", "the whole house")

# Overrides that make a model of blocks of configs/debug.py.
IN_BLOCKS = (
    "diffusion.block_size=4", "data.pad_to_multiple=4", "dit.time_tokens=0",
    "text_vae.decoder_layers=0",
)  # fmt: skip
# The demo's recipe.
DEMO = (
    *IN_BLOCKS, "dit.offset_radius=4", "text_vae.encoder_layers=0",
    "diffusion.prefix=0.05", "diffusion.infill=0.7",
    "diffusion.token_posterior=True",
    "diffusion.single_token_blocks=0.3", "diffusion.next_token_prior=0.5",
    "phases=[{'until': 200, 'next_token': 1.0, 'diffusion': 0.0, 'reconstruction': 0.0, "
    "'encoder_gradient': 1.0},"
    "{'next_token': 1.0, 'token': 1.0, 'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
)  # fmt: skip


def sentences() -> list[str]:
    """150 different short sentences."""
    return [f"{s} {v} {o}." for s in SUBJECTS for v in VERBS for o in OBJECTS]


@pytest.fixture(scope="module", autouse=True)
def forgets_what_it_compiled():
    """A compiled function holds memory maps, of which Linux grants a process 65,530.

    A suite uses them up, and then the compiler ends the process with a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of sentences, one a paragraph."""
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text("\n\n".join(sentences()))
    return path


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A corpus whose training split is packed in several shards."""
    monkeypatch.setattr(documents, "_RECORD_BYTES", 500)
    monkeypatch.setattr(making, "_RECORDS", 2)
    source = tmp_path / "many.txt"
    source.write_text("\n\n".join(f"{i} {text}" for i in range(8) for text in sentences()[:40]))
    return DataConfig(source=str(source), root=str(tmp_path / "a"), vocab_size=300, window=32)


@pytest.fixture(scope="session")
def overrides(corpus, tmp_path_factory):
    """Overrides that make configs/debug.py train on the tiny corpus."""
    return [f"data.source={corpus}", f"data.root={tmp_path_factory.mktemp('prepared')}"]


@pytest.fixture(scope="session")
def experiment(overrides):
    """The debug experiment on the tiny corpus."""
    return resolve(load_config("configs/debug.py", overrides))


def nowhere_zero(params, scale: float, seed: int = 9):
    """Parameters with noise on them: what begins at zero would hide what passes, and gradients."""
    params = meta.unbox(params)
    keys = iter(jax.random.split(jax.random.key(seed), 1000))
    return jax.tree.map(lambda x: x + scale * jax.random.normal(next(keys), x.shape), params)


def changed(run, z, at: int) -> set[int]:
    """Which positions of what ``run`` makes of ``z (1, N, D)`` depend on position ``at``."""
    difference = jax.numpy.abs(run(z.at[:, at].add(10.0)) - run(z)).max((0, 2))
    return {int(i) for i in jax.numpy.flatnonzero(difference > 1e-4)}


def packed_rows(documents: list[list[int]], config) -> list[dict]:
    """Rows of tokenised documents, one by one."""
    lengths = np.array([len(ids) for ids in documents])
    rows = pack(np.concatenate(documents), lengths, config)
    return [{name: x[i] for name, x in rows.items()} for i in range(len(rows["tokens"]))]


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of a folder's files by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def write_tfds(folder: Path, splits: dict[str, list[str]]) -> None:
    """A TFDS dataset of texts, as version 0.1 kept a corpus: one record a document."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    infos = []
    for split, texts in splits.items():
        name = f"dataset-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for text in texts:
            writer.write(features.serialize_example({"text": text}))
        writer.close()
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(texts)], num_bytes=1))
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, check_data=False,
        disable_shuffling=True,
    )  # fmt: skip


def untrained_run(folder, overrides):
    """The folder of a run whose words hang on everything: its parameters are nowhere zero."""
    config = load_config("configs/debug.py", overrides)
    experiment = resolve(config)
    prepared = prepare(experiment.data)
    backbone = load_backbone(experiment.backbone, make_mesh(MeshConfig()), experiment.sharding)
    networks = experiment.networks(prepared.tokenizer.vocab_size, 0, backbone.backbone)
    window = experiment.data.window
    params = jax.jit(lambda: nowhere_zero(networks.init(jax.random.key(0), window), 0.1, seed=1))()
    stats = LatentStats.create(networks.vae.latent_channels)
    stats = stats.update(stats.mean_D + 0.1, stats.var_D + 0.5)
    facts = {
        "lengths": prepared.stats["lengths"], "teacher": "", "backbone": backbone.checksum
    }  # fmt: skip
    workdir = Workdir(folder)
    workdir.start(config, prepared.tokenizer, facts)
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(7, AveragedModel(jax.numpy.int32(7), params, stats))
    checkpoints.close()
    return folder
