"""Training of the baselines: an autoregressive or a masked diffusion model of the demo's tokens."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from ldlm_jax.config import Experiment, load_config, resolve
from ldlm_jax.data.dataset import DataConfig, Prepared, prepare, read_split
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.losses.alignment import AlignmentConfig, Projection, alignment_loss
from ldlm_jax.models.autoregressive import TokenTransformer
from ldlm_jax.models.token_layout import lay_out, positions_of
from ldlm_jax.optimizer import OptimConfig, ema_step_size, make_optimizer
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.phases import Weight, weight_at
from ldlm_jax.teachers.loader import Guide, load_guide

# As many parameters as the demo's encoder, decoder and DiT; the same window, tokens and batch.
SIZES = {"width": 192, "layers": 3, "offset_radius": 4, "tap": 0, "dropout": 0.0,
         "dtype": "bfloat16"}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A way to learn and to write with a ``TokenTransformer``."""

    causal: bool

    def places(self, segments_BxN):
        """Who sees whom."""
        return lay_out(segments_BxN, 1 if self.causal else 0)

    def loss(self, model, params, batch, key):
        """Mean loss a token, and what came out of the model's tap.

        Cross-entropy, or MDLM's bound (Sahoo et al. 2024, equation 10).
        """
        tokens, segments = batch["tokens"], batch["segments"]
        places = self.places(segments)
        if self.causal:
            # A document's first token is asked of the end token before it.
            inputs = _moved_on(tokens, segments, EOS)
            weight = (segments > 0).astype(jnp.float32)
        else:
            t = (jax.random.uniform(key, ()) + jnp.arange(len(tokens)) / len(tokens))[:, None] % 1.0
            t = jnp.maximum(t, 1e-3)
            hidden = jax.random.uniform(jax.random.fold_in(key, 1), tokens.shape) < t
            inputs = jnp.where(hidden, MASK, tokens)
            weight = jnp.where(hidden & (segments > 0), 1 / t, 0.0)
        rngs = {"dropout": jax.random.fold_in(key, 2)}
        said = model.apply({"params": params}, inputs, places, rngs=rngs)
        nll = optax.softmax_cross_entropy_with_integer_labels(said.logits_BxNxV, tokens)
        return jnp.sum(weight * nll) / jnp.maximum(jnp.sum(segments > 0), 1), said.tapped_BxNxM

    def features(self, batch):
        """The teacher's features (B, N, H) of what the model has read at each place."""
        if not self.causal:
            return batch["teacher"]
        return _moved_on(batch["teacher"], batch["segments"], 0)


def _moved_on(x_BxNx, segments_BxN, first):
    # Every place of a document has what stood at the one before it.
    starts = positions_of(segments_BxN) == 0
    starts = starts.reshape(starts.shape + (1,) * (x_BxNx.ndim - 2))
    return jnp.where(starts, first, jnp.roll(x_BxNx, 1, axis=1))


KINDS = {"ar": Kind(causal=True), "mdlm": Kind(causal=False)}


def read_config(config: str, overrides: list[str] = ()) -> tuple[Experiment, DataConfig]:
    """A latent model's config, and its data as a baseline reads it: without rounding."""
    experiment = resolve(load_config(config, overrides))
    return experiment, replace(experiment.data, round_to=1)


class Features:
    """Adds a teacher's features to a row: those kept of the latent model's rows, text by text.

    Rows without rounding hold the same pieces of text, in other places.
    """

    def __init__(self, packed: Path, guide: Guide):
        self._guide, self._kept, self._at = guide, read_split(guide.cache, "train"), {}
        rows = read_split(packed, "train")
        for i in range(len(rows)):
            for key, places in self._pieces(rows[i]):
                self._at[key] = i, places[0]

    @staticmethod
    def _pieces(row: dict):
        tokens, segments = row["tokens"], row["segments"]
        for number in range(1, segments.max() + 1):
            places = np.flatnonzero((segments == number) & (tokens != PAD))
            yield tokens[places].tobytes(), places

    def __call__(self, row: dict) -> dict:
        """The row with ``teacher`` (N, H), bf16."""
        features = np.zeros((len(row["tokens"]), self._guide.width), jnp.bfloat16)
        for key, places in self._pieces(row):
            i, start = self._at[key]
            kept = self._guide.add(self._kept[i])["teacher"]
            features[places] = kept[start : start + len(places)]
        return row | {"teacher": features}


class Lesson(NamedTuple):
    """What a baseline is to learn of a frozen teacher, beside its own loss.

    Attributes:
      add: adds the teacher's features to a row.
      config: how likeness is measured, and after which block.
      weight: of the loss.
      projection: to the teacher's width.
    """

    add: Features
    config: AlignmentConfig
    weight: Weight
    projection: Projection

    @classmethod
    def of(cls, experiment: Experiment) -> "Lesson | None":
        """That of a config whose latent model is aligned where it reads, by a cache; or None."""
        if not experiment.aligned:
            return None
        config, prepared = experiment.alignment, prepare(experiment.data)
        guide = load_guide(experiment, prepared, make_mesh(experiment.mesh))
        projection = Projection(guide.width, config.projection)
        features = Features(prepared.packed, guide)
        return cls(features, config, experiment.phases[0].alignment, projection)

    def loss(self, params, tapped_BxNxM, teacher_BxNxH, segments_BxN, step):
        """Its weighted loss."""
        mapped_BxNxH = self.projection.apply({"params": params}, tapped_BxNxM)
        unlike = alignment_loss(mapped_BxNxH, teacher_BxNxH, segments_BxN)
        return weight_at(self.weight, step) * unlike


@dataclass(frozen=True)
class Training:
    """A baseline about to be trained.

    Attributes:
      prepared: the corpus.
      data: how it is read.
      lesson: of a teacher, if there is one.
      batch_size: rows of a step.
      config: of the optimizer.
      model: the network.
      state: parameters, their average, and the optimizer's state.
      step_fn: (state, batch, step) to the next state and the loss.
      facts: what is written beside the parameters.
    """

    prepared: Prepared
    data: DataConfig
    lesson: Lesson | None
    batch_size: int
    config: OptimConfig
    model: TokenTransformer
    state: tuple
    step_fn: Callable
    facts: dict

    @classmethod
    def create(cls, kind: Kind, steps: int, overrides: list[str]) -> "Training":
        """Its first parameters, from overrides ``key=value``; ``section.key`` is the config's."""
        of_config = [item for item in overrides if "." in item.split("=")[0]]
        given = dict(item.split("=") for item in overrides if item not in of_config)
        name, seed = given.pop("config", "configs/web_cpu.py"), int(given.pop("seed", 0))
        experiment, data = read_config(name, of_config)
        batch_size = int(given.pop("batch_size", experiment.train.batch_size))
        prepared, lesson = prepare(data), Lesson.of(experiment)
        sizes = SIZES | {k: type(SIZES[k])(given.pop(k)) for k in SIZES if k in given}
        if lesson:
            sizes["tap"] = lesson.config.block
        config = OptimConfig(**{
            "learning_rate": 5e-3, "warmup_steps": 20, "ema_decay": 0.99,
            **{k: float(v) for k, v in given.items()},
        })  # fmt: skip
        model = TokenTransformer(prepared.tokenizer.vocab_size, **sizes)
        params = _first_params(model, kind, lesson, data.window, jax.random.key(seed))
        optimizer = make_optimizer(config, steps)
        step_fn = _step_fn(kind, model, lesson, config, optimizer, jax.random.key(seed + 1))
        state = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
        count = sum(x.size for x in jax.tree.leaves(params["model"]))
        facts = {"config": name, "overrides": of_config, "parameters": count, "steps": steps,
                 "sizes": sizes, "log": []}  # fmt: skip
        return cls(prepared, data, lesson, batch_size, config, model, state, step_fn, facts)

    def batches(self):
        """What it is trained on."""
        add = self.lesson.add if self.lesson else None
        return train_batches(self.prepared, self.data, self.batch_size, add=add)


def _first_params(model, kind: Kind, lesson: Lesson | None, window: int, key):
    tokens = jnp.zeros((1, window), jnp.int32)
    params = {"model": model.init(key, tokens, kind.places(tokens))["params"]}
    if lesson:
        features = jnp.zeros((1, window, model.width))
        params["align"] = lesson.projection.init(jax.random.fold_in(key, 1), features)["params"]
    return meta.unbox(params)


def _step_fn(kind: Kind, model, lesson: Lesson | None, config: OptimConfig, optimizer, key):
    @partial(jax.jit, donate_argnums=0)
    def step_fn(state, batch, step):
        params, ema, opt_state = state

        def objective(params):
            loss, tapped = kind.loss(model, params["model"], batch, jax.random.fold_in(key, step))
            if lesson is None:
                return loss, loss
            teacher, segments = kind.features(batch), batch["segments"]
            more = lesson.loss(params["align"], tapped, teacher, segments, step)
            return loss + more, loss

        grads, loss = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, ema_step_size(config, step))
        return (params, ema, opt_state), loss

    return step_fn


def held_out_loss(kind: Kind, model: TokenTransformer, prepared, split: str):
    """The mean loss a token over the first 832 windows of a split, as a function of parameters."""
    batches = eval_batches(prepared, split, 64, 13)
    whole = model.clone(dropout=0.0)
    of_batch = jax.jit(lambda p, b: kind.loss(whole, p, b, jax.random.key(7))[0])
    return lambda params: float(np.mean([of_batch(params, batch) for batch in batches]))


def train(kind: Kind, workdir: Path, steps: int, overrides: list[str]) -> None:
    """Train for some steps; keep the averaged parameters of the best validation loss."""
    training = Training.create(kind, steps, overrides)
    validate = held_out_loss(kind, training.model, training.prepared, "validation")
    batches, state, facts = training.batches(), training.state, training.facts
    best, log, seconds = float("inf"), facts["log"], 0.0
    workdir.mkdir(parents=True, exist_ok=True)
    for step in range(steps):
        start = time.perf_counter()
        state, loss = training.step_fn(state, next(batches), step)
        jax.block_until_ready(loss)
        seconds += time.perf_counter() - start if step else 0.0  # the first step compiles
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            average = state[1]["model"]
            validation = validate(average)
            log.append({"step": step + 1, "loss": float(loss), "validation": validation,
                        "seconds": round(seconds, 1)})  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
            if validation < best:
                best, facts["best_step"] = validation, step + 1
                (workdir / "params.pickle").write_bytes(pickle.dumps(jax.device_get(average)))
            (workdir / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
