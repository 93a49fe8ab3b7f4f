"""Train and sample a baseline: an autoregressive or a masked diffusion model of the demo's tokens.

Command: export PYTHONPATH=.
         python experiments/half_hour/baseline.py train ar|mdlm WORKDIR STEPS [key=value ...]
           (of the optimizer, or batch_size, layers, width, dropout; config: whose data to read)
         python experiments/half_hour/baseline.py judge ar|mdlm WORKDIR OUT.json [key=value ...]
"""

import json
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from ldlm_jax.allocator import keep_freed_memory
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.build import DataConfig, Prepared, prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.data.tokenizer import EOS, MASK, PAD
from ldlm_jax.denoiser import nucleus
from ldlm_jax.diffusion.guidance import guide_by_context
from ldlm_jax.evals.quality import PROMPTS, Examiner, beginnings, named
from ldlm_jax.generate import draw_lengths
from ldlm_jax.models.autoregressive import Cache, TokenTransformer
from ldlm_jax.models.places import lay_out
from ldlm_jax.optim import OptimConfig, ema_step_size, make_optimizer

# As many parameters as the demo's encoder, decoder and DiT; the same window, tokens and batch.
SIZES = {"width": 192, "layers": 3, "offset_radius": 4, "dropout": 0.0, "dtype": "bfloat16"}


@dataclass(frozen=True)
class Kind:
    """A way to learn and to write with a ``TokenTransformer``."""

    causal: bool

    def places(self, segments_BxN):
        """Who sees whom."""
        return lay_out(segments_BxN, 1 if self.causal else 0)

    def loss(self, model, params, batch, key):
        """Mean loss a token: cross-entropy, or MDLM's bound (Sahoo et al. 2024, equation 10)."""
        tokens, segments = batch["tokens"], batch["segments"]
        places = self.places(segments)
        variables, rngs = {"params": params}, {"dropout": jax.random.fold_in(key, 2)}
        if self.causal:
            # A document's first token is asked of the end token before it.
            first = places.positions_BxN == 0
            inputs = jnp.where(first, EOS, jnp.roll(tokens, 1, axis=1))
            logits, _ = model.apply(variables, inputs, places, rngs=rngs)
            weight = (segments > 0).astype(jnp.float32)
        else:
            t = (jax.random.uniform(key, ()) + jnp.arange(len(tokens)) / len(tokens))[:, None] % 1.0
            t = jnp.maximum(t, 1e-3)
            hidden = jax.random.uniform(jax.random.fold_in(key, 1), tokens.shape) < t
            inputs = jnp.where(hidden, MASK, tokens)
            logits, _ = model.apply(variables, inputs, places, rngs=rngs)
            weight = jnp.where(hidden & (segments > 0), 1 / t, 0.0)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.sum(weight * nll) / jnp.maximum(jnp.sum(segments > 0), 1)


KINDS = {"ar": Kind(causal=True), "mdlm": Kind(causal=False)}


def read_config(config: str) -> tuple[DataConfig, int]:
    """Data of a latent model, which a baseline reads without rounding, and its batch size."""
    experiment = resolve(load_config(config))
    return replace(experiment.data, round_to=1), experiment.train.batch_size


@dataclass(frozen=True)
class Training:
    """A baseline about to be trained.

    Attributes:
      prepared: the corpus.
      data: how it is read.
      batch_size: rows of a step.
      config: of the optimizer.
      model: the network.
      state: parameters, their average, and the optimizer's state.
      step_fn: (state, batch, step) to the next state and the loss.
      facts: what is written beside the parameters.
    """

    prepared: Prepared
    data: DataConfig
    batch_size: int
    config: OptimConfig
    model: TokenTransformer
    state: tuple
    step_fn: Callable
    facts: dict

    @classmethod
    def create(cls, kind: Kind, steps: int, overrides: list[str]) -> "Training":
        """Its first parameters, from overrides ``key=value``."""
        given = dict(item.split("=") for item in overrides)
        name = given.pop("config", "configs/web_cpu.py")
        data, batch_size = read_config(name)
        prepared = prepare(data)
        config = OptimConfig(**{
            "learning_rate": 5e-3, "warmup_steps": 20, "ema_decay": 0.99,
            **{k: float(v) for k, v in given.items() if k not in ("batch_size", *SIZES)},
        })  # fmt: skip
        sizes = SIZES | {k: type(SIZES[k])(v) for k, v in given.items() if k in SIZES}
        model = TokenTransformer(prepared.tokenizer.vocab_size, **sizes)
        tokens = jnp.zeros((1, data.window), jnp.int32)
        params = meta.unbox(model.init(jax.random.key(0), tokens, kind.places(tokens))["params"])
        optimizer = make_optimizer(config, steps)

        @partial(jax.jit, donate_argnums=0)
        def step_fn(state, batch, step):
            params, ema, opt_state = state
            key = jax.random.fold_in(jax.random.key(1), step)
            loss, grads = jax.value_and_grad(lambda p: kind.loss(model, p, batch, key))(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            ema = optax.incremental_update(params, ema, ema_step_size(config, step))
            return (params, ema, opt_state), loss

        state = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
        count = sum(x.size for x in jax.tree.leaves(params))
        facts = {"config": name, "parameters": count, "steps": steps, "sizes": sizes, "log": []}
        batch_size = int(given.get("batch_size", batch_size))
        return cls(prepared, data, batch_size, config, model, state, step_fn, facts)

    def batches(self):
        """What it is trained on."""
        return train_batches(self.prepared, self.data, self.batch_size)


def train(kind: Kind, workdir: Path, steps: int, overrides: list[str]) -> None:
    """Train for some steps; keep the averaged parameters of the best validation loss."""
    training = Training.create(kind, steps, overrides)
    held_out = eval_batches(training.prepared, "validation", 64, 13)
    whole = training.model.clone(dropout=0.0)
    validate = jax.jit(lambda p, b: kind.loss(whole, p, b, jax.random.key(7)))
    batches, state, facts = training.batches(), training.state, training.facts
    best, log, seconds = float("inf"), facts["log"], 0.0
    workdir.mkdir(parents=True, exist_ok=True)
    for step in range(steps):
        start = time.perf_counter()
        state, loss = training.step_fn(state, next(batches), step)
        jax.block_until_ready(loss)
        seconds += time.perf_counter() - start if step else 0.0  # the first step compiles
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            validation = float(np.mean([validate(state[1], b) for b in held_out]))
            log.append({"step": step + 1, "loss": float(loss), "validation": validation,
                        "seconds": round(seconds, 1)})  # fmt: skip
            print(json.dumps(log[-1]), flush=True)
            if validation < best:
                best, facts["best_step"] = validation, step + 1
                (workdir / "params.pickle").write_bytes(pickle.dumps(jax.device_get(state[1])))
            (workdir / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def draw(logits, key, top_p: float, temperature: float):
    """Tokens drawn from ``logits (..., V)``, of the likeliest ones that hold ``top_p`` together."""
    return jax.random.categorical(key, nucleus(logits / temperature, top_p))


@partial(jax.jit, static_argnames=("model", "top_p", "temperature", "guidance", "endless"))
def write_left_to_right(
    model, params, prompt_BxN, given_B, key, *, top_p: float, temperature, guidance: float = 1.0,
    endless: bool = False,
):  # fmt: skip
    """Tokens (B, N) one after another, with a cache; the first ``given`` of a row are known.

    ``guidance`` pushes away from what the last token alone would let expect, as
    ``SampleConfig.context_guidance`` does with latents. With ``endless`` no text may end.
    """
    never = jnp.array([MASK, PAD, EOS] if endless else [MASK, PAD])
    ends_V = jnp.isin(jnp.arange(model.vocab_size), jnp.array([EOS, PAD]))
    B, N = prompt_BxN.shape
    places = lay_out(jnp.ones((B, N), jnp.int32), 1)
    head_dim = model.width // model.heads
    blank = jnp.zeros((model.layers, B, N, model.heads, head_dim), jnp.float32)

    def body(carry, i):
        tokens, token, cache = carry
        here = places.cut(i, 1)
        logits, own = model.apply({"params": params}, token[:, None], here, Cache(cache, places))
        cache = jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, i, axis=2),
            cache, own,
        )  # fmt: skip
        if guidance != 1:
            near, _ = model.apply({"params": params}, token[:, None], here)
            logits = guide_by_context(logits, near, guidance, ends_V)
        logits = logits[:, 0].at[:, never].set(-jnp.inf)
        drawn = draw(logits, jax.random.fold_in(key, i), top_p, temperature)
        token = jnp.where(i < given_B, prompt_BxN[:, i], drawn)
        return (tokens.at[:, i].set(token), token, cache), None

    start = (jnp.zeros_like(prompt_BxN), jnp.full(B, EOS), (blank, blank))
    (tokens, *_), _ = jax.lax.scan(body, start, jnp.arange(N))
    return tokens


@partial(jax.jit, static_argnames=("model", "steps", "top_p", "temperature"))
def unmask(
    model, params, prompt_BxN, known_BxN, segments_BxN, key, *, steps: int, top_p: float,
    temperature,
):  # fmt: skip
    """Tokens (B, N) of a masked model: hidden ones are shown in random order, never changed.

    An equal share at every step, where MDLM's ancestral sampler draws how many: the model is not
    told the time, so the order is all that counts (Zheng et al. 2024, arXiv 2409.02908), and the
    tokens of the other places need not be drawn.
    """
    places = lay_out(segments_BxN)
    hidden_BxN = ~known_BxN & (segments_BxN > 0)
    hidden_Bx1 = jnp.sum(hidden_BxN, axis=1, keepdims=True)
    turn_key, key = jax.random.split(key)
    turn = jax.random.uniform(turn_key, hidden_BxN.shape)
    by_turn_BxN = jnp.argsort(jnp.where(hidden_BxN, turn, 2.0), axis=1)
    most = -(-prompt_BxN.shape[1] // steps)  # that one step shows of a row
    rows = jnp.arange(len(prompt_BxN))[:, None]

    def body(tokens, i):
        logits, _ = model.apply({"params": params}, tokens, places)
        first_Bx1, end_Bx1 = hidden_Bx1 * i // steps, hidden_Bx1 * (i + 1) // steps
        turns_BxK = first_Bx1 + jnp.arange(most)
        where_BxK = jnp.take_along_axis(by_turn_BxN, turns_BxK, axis=1, mode="clip")
        logits = logits[rows, where_BxK].at[..., jnp.array([MASK, PAD])].set(-jnp.inf)
        drawn = draw(logits, jax.random.fold_in(key, i), top_p, temperature)
        shown = jnp.where(turns_BxK < end_Bx1, drawn, tokens[rows, where_BxK])
        return tokens.at[rows, where_BxK].set(shown), None

    start = jnp.where(known_BxN, prompt_BxN, MASK)
    return jax.lax.scan(body, start, jnp.arange(steps))[0]


@dataclass(frozen=True)
class Baseline:
    """A trained baseline, ready to write."""

    kind: str
    model: TokenTransformer
    params: dict
    prepared: object
    window: int

    @classmethod
    def load(cls, kind: str, workdir: str):
        """Read what ``train`` wrote."""
        facts = json.loads((Path(workdir) / "facts.json").read_text())
        data, _ = read_config(facts["config"])
        prepared = prepare(data)
        params = pickle.loads((Path(workdir) / "params.pickle").read_bytes())
        model = TokenTransformer(prepared.tokenizer.vocab_size, **facts["sizes"])
        return cls(kind, model, params, prepared, data.window)

    def write(self, prompts: list[str], seed: int, *, batch=64, steps=64, top_p=1.0,
              temperature=1.0, guidance=1.0) -> list[str]:  # fmt: skip
        """A text for every prompt (which may be empty); ``guidance`` is for ``ar`` alone."""
        tokenizer, texts = self.prepared.tokenizer, []
        rng = np.random.default_rng(seed)
        for first in range(0, len(prompts), batch):
            part = prompts[first : first + batch]
            ids = tokenizer.encode([*part, *[""] * (batch - len(part))])
            rows = np.full((batch, self.window), MASK, np.int32)
            for row, i in zip(rows, ids, strict=True):
                row[: len(i)] = i
            given = np.array([len(i) for i in ids])
            key = jax.random.fold_in(jax.random.key(seed), first)
            if self.kind == "ar":
                out = write_left_to_right(
                    self.model, self.params, rows, given, key,
                    top_p=top_p, temperature=temperature, guidance=guidance,
                )  # fmt: skip
            else:
                histogram = self.prepared.stats["lengths"]
                lengths = np.array([draw_lengths(histogram, g, 1, rng)[0] for g in given])
                place = np.arange(self.window)
                out = unmask(
                    self.model, self.params, rows, place < given[:, None],
                    (place < lengths[:, None]).astype(np.int32), key,
                    steps=steps, top_p=top_p, temperature=temperature,
                )  # fmt: skip
                out = np.where(place < lengths[:, None], np.asarray(out), EOS)
            for prompt, i, row in zip(part, ids, np.asarray(out), strict=False):
                texts.append(prompt + tokenizer.decode(row[len(i) :]))
        return texts


def judge(kind: str, workdir: Path, out: str, count: str = "1000", split: str = "validation",
          **how) -> None:  # fmt: skip
    """Write texts and continuations as ``ldlm eval --evals quality`` does, and measure them."""
    baseline = Baseline.load(kind, workdir)
    examiner = Examiner(baseline.prepared, "smollm2-135m", split, baseline.window, int(count))
    how = {k: int(v) if k in ("steps", "batch") else float(v) for k, v in how.items()}
    rows = {"unconditional": examiner.measure(baseline.write([""] * int(count), 0, **how))}
    for share in PROMPTS:
        prompts = beginnings(examiner.held_out, share)
        rows[f"continuation_{share:g}"] = examiner.measure(baseline.write(prompts, 0, **how))
    result = {"kind": kind, "how": how, "split": split, "num_samples": int(count), "seed": 0,
              "judge": "smollm2-135m", "sampling_dtype": baseline.model.dtype,
              "texts": baseline.write([""] * 8, 1, **how), "results": named(rows)}  # fmt: skip
    Path(out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def main(command: str, kind: str, workdir: str, *rest: str) -> None:
    """Train or judge."""
    if command == "train":
        train(KINDS[kind], Path(workdir), int(rest[0]), list(rest[1:]))
    else:
        plain = [word for word in rest if "=" not in word]
        judge(kind, Path(workdir), *plain, **dict(w.split("=") for w in rest if "=" in w))


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
