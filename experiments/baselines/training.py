"""Training of the baselines: an autoregressive or a masked diffusion model of the demo's tokens.

``run.py`` has the commands.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from flax.core import meta

from experiments.baselines.alignment import Alignment
from experiments.baselines.token_transformer import TokenTransformer
from ldlm_jax.config import Experiment, load_config, resolve
from ldlm_jax.data.dataset import DataConfig, Prepared, prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.data.special_ids import EOS, MASK
from ldlm_jax.models.token_layout import TokenLayout, positions_in, token_layout
from ldlm_jax.optimizer import OptimizerConfig, ema_step_size, make_optimizer

# As many parameters as the demo's encoder, decoder and DiT; the same window, tokens and batch.
SIZES = {"width": 192, "layers": 3, "offset_radius": 4, "hidden_layer": 0, "dropout": 0.0,
         "dtype": "bfloat16"}  # fmt: skip
OPTIMIZER = {"learning_rate": 5e-3, "warmup_steps": 20, "ema_decay": 0.99}
PARAMS, FACTS = "params.msgpack", "facts.json"


# ---------------------------------------------------------------------------- loss


@dataclass(frozen=True)
class Kind:
    """A way to train a ``TokenTransformer``.

    Attributes:
      causal: an autoregressive model; otherwise a masked diffusion model.
      input_mask: an autoregressive model's inputs are masked in training, up to this share of them,
        evenly drawn for each row.
    """

    causal: bool
    input_mask: float = 0.0

    def layout(self, segments_BxN) -> TokenLayout:
        """The layout of a batch: blocks of one token, or whole documents."""
        return token_layout(segments_BxN, 1 if self.causal else 0)

    def loss(self, model: TokenTransformer, params: dict, batch: dict, key):
        """Mean loss a token, and the output of the model's hidden layer.

        Cross-entropy, or MDLM's bound (Sahoo et al. 2024, equation 10).
        """
        tokens_BxN, segments_BxN = batch["tokens"], batch["segments"]
        t_Bx1 = _stratified_times(key, len(tokens_BxN))
        share_Bx1 = t_Bx1 * self.input_mask if self.causal else t_Bx1
        masked_BxN = jax.random.uniform(jax.random.fold_in(key, 1), tokens_BxN.shape) < share_Bx1
        if self.causal:
            # The end token stands before a document's first token.
            inputs_BxN = _shifted(tokens_BxN, segments_BxN, EOS)
            weight_BxN = (segments_BxN > 0).astype(jnp.float32)
        else:
            inputs_BxN = tokens_BxN
            weight_BxN = jnp.where(masked_BxN & (segments_BxN > 0), 1 / t_Bx1, 0.0)
        inputs_BxN = jnp.where(masked_BxN, MASK, inputs_BxN)
        rngs = {"dropout": jax.random.fold_in(key, 2)}
        out = model.apply({"params": params}, inputs_BxN, self.layout(segments_BxN), rngs=rngs)
        nll_BxN = optax.softmax_cross_entropy_with_integer_labels(out.logits_BxNxV, tokens_BxN)
        count = jnp.maximum(jnp.sum(segments_BxN > 0), 1)
        return jnp.sum(weight_BxN * nll_BxN) / count, out.hidden_BxNxM

    def teacher_features(self, batch: dict) -> jax.Array:
        """The teacher's features (B, N, H) of the token that the model reads at each position."""
        if not self.causal:
            return batch["teacher"]
        return _shifted(batch["teacher"], batch["segments"], 0)


KINDS = {"ar": Kind(causal=True), "mdlm": Kind(causal=False)}


def _shifted(x_BxNx, segments_BxN, first):
    """Every position has what stood at the one before it; a document begins with ``first``."""
    starts = positions_in(segments_BxN) == 0
    starts = starts.reshape(starts.shape + (1,) * (x_BxNx.ndim - 2))
    return jnp.where(starts, first, jnp.roll(x_BxNx, 1, axis=1))


def _stratified_times(key, rows: int) -> jax.Array:
    """Times (B, 1), spread evenly over the rows from a random start."""
    t_Bx1 = (jax.random.uniform(key, ()) + jnp.arange(rows) / rows)[:, None] % 1.0
    return jnp.maximum(t_Bx1, 1e-3)


# ---------------------------------------------------------------------------- set-up


def read_config(config: str, overrides: list[str] = ()) -> tuple[Experiment, DataConfig]:
    """A latent model's config, and its data for a baseline: documents are not padded."""
    experiment = resolve(load_config(config, overrides))
    return experiment, replace(experiment.data, pad_to_multiple=1)


@dataclass(frozen=True)
class Training:
    """A baseline before its first step.

    Attributes:
      prepared: the corpus.
      data: its config.
      alignment: with a teacher, or None.
      batch_size: rows of a step.
      model: the network.
      state: parameters, their average, and the optimizer's state.
      step_fn: maps (state, batch, step) to the next state and the loss.
      facts: written beside the parameters.
    """

    prepared: Prepared
    data: DataConfig
    alignment: Alignment | None
    batch_size: int
    model: TokenTransformer
    state: tuple
    step_fn: Callable
    facts: dict

    @classmethod
    def create(cls, kind: Kind, steps: int, overrides: list[str]) -> "Training":
        """The first parameters.

        Args:
          kind: how to train.
          steps: of the whole training.
          overrides: ``key=value`` for sizes, ``input_mask``, optimizer, ``batch_size``, ``seed``
            and ``config``; ``section.key=value`` for the config.
        """
        of_config = [item for item in overrides if "." in item.split("=")[0]]
        given = dict(item.split("=") for item in overrides if item not in of_config)
        name, seed = given.pop("config", "configs/web_cpu.py"), int(given.pop("seed", 0))
        kind = replace(kind, input_mask=float(given.pop("input_mask", 0.0)))
        experiment, data = read_config(name, of_config)
        batch_size = int(given.pop("batch_size", experiment.train.batch_size))
        prepared, alignment = prepare(data), Alignment.of(experiment)
        sizes = SIZES | {k: type(SIZES[k])(given.pop(k)) for k in SIZES if k in given}
        if alignment:
            sizes["hidden_layer"] = alignment.config.block
        given = {k: type(getattr(OptimizerConfig, k))(v) for k, v in given.items()}
        config = OptimizerConfig(**(OPTIMIZER | given))
        model = TokenTransformer(prepared.tokenizer.vocab_size, **sizes)
        params = _first_params(model, kind, alignment, data.window, jax.random.key(seed))
        optimizer = make_optimizer(config, steps)
        step_fn = _step_fn(kind, model, alignment, config, optimizer, jax.random.key(seed + 1))
        state = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
        count = sum(x.size for x in jax.tree.leaves(params["model"]))
        facts = {"config": name, "overrides": of_config, "parameters": count, "steps": steps,
                 "sizes": sizes, "log": []}  # fmt: skip
        return cls(prepared, data, alignment, batch_size, model, state, step_fn, facts)

    def batches(self) -> Iterator[dict]:
        """The batches that it is trained on."""
        add = self.alignment.add if self.alignment else None
        return train_batches(self.prepared, self.data, self.batch_size, add=add)


def _first_params(model, kind: Kind, alignment: Alignment | None, window: int, key) -> dict:
    tokens = jnp.zeros((1, window), jnp.int32)
    params = {"model": model.init(key, tokens, kind.layout(tokens))["params"]}
    if alignment:
        features = jnp.zeros((1, window, model.width))
        params["align"] = alignment.projection.init(jax.random.fold_in(key, 1), features)["params"]
    return meta.unbox(params)


def _step_fn(kind: Kind, model, alignment: Alignment | None, config, optimizer, key):
    @partial(jax.jit, donate_argnums=0)
    def step_fn(state, batch, step):
        params, ema, opt_state = state

        def objective(params):
            step_key = jax.random.fold_in(key, step)
            loss, hidden_BxNxM = kind.loss(model, params["model"], batch, step_key)
            if alignment is None:
                return loss, loss
            teacher_BxNxH, segments_BxN = kind.teacher_features(batch), batch["segments"]
            distance = alignment.loss(
                params["align"], hidden_BxNxM, teacher_BxNxH, segments_BxN, step
            )
            return loss + distance, loss

        grads, loss = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, ema_step_size(config, step))
        return (params, ema, opt_state), loss

    return step_fn


# ---------------------------------------------------------------------------- loop


def held_out_loss(
    kind: Kind, model: TokenTransformer, prepared: Prepared, split: str, windows: int = 832
):
    """The mean loss a token over the first windows of a split, as a function of parameters."""
    batches = eval_batches(prepared, split, 64, windows // 64)
    whole, kind = model.clone(dropout=0.0), replace(kind, input_mask=0.0)
    of_batch = jax.jit(lambda p, b: kind.loss(whole, p, b, jax.random.key(7))[0])
    return lambda params: float(np.mean([of_batch(params, batch) for batch in batches]))


def train(
    kind: Kind, workdir: Path, steps: int, overrides: list[str], evaluations: int = 20,
    windows: int = 832,
) -> dict:  # fmt: skip
    """Train for some steps; keep the averaged parameters of the best validation loss.

    Args:
      kind: how to train.
      workdir: folder for ``PARAMS`` and ``FACTS``.
      steps: of the training.
      overrides: see ``Training.create``.
      evaluations: times that held-out text is looked at.
      windows: of held-out text.

    Returns:
      The facts.
    """
    training = Training.create(kind, steps, overrides)
    validate = held_out_loss(kind, training.model, training.prepared, "validation", windows)
    batches, state, facts = training.batches(), training.state, training.facts
    best, log, seconds = float("inf"), facts["log"], 0.0
    workdir.mkdir(parents=True, exist_ok=True)
    for step in range(steps):
        start = time.perf_counter()
        state, loss = training.step_fn(state, next(batches), step)
        jax.block_until_ready(loss)
        seconds += time.perf_counter() - start if step else 0.0  # the first step compiles
        if (step + 1) % max(1, steps // evaluations) == 0 or step + 1 == steps:
            average = state[1]["model"]
            validation = validate(average)
            log.append({"step": step + 1, "loss": float(loss), "validation": validation,
                        "seconds": round(seconds, 1)})  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
            if validation < best:
                best, facts["best_step"] = validation, step + 1
                save_params(workdir, average)
            (workdir / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def save_params(workdir: Path, params: dict) -> None:
    """Write a network's parameters."""
    (workdir / PARAMS).write_bytes(serialization.msgpack_serialize(jax.device_get(params)))


def load_params(workdir: Path) -> dict:
    """Read them: the file holds arrays alone, and nothing in it is executed."""
    return serialization.msgpack_restore((workdir / PARAMS).read_bytes())
