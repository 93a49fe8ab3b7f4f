"""Baselines on Sudoku: autoregressive, autoregressive that is told the order, masked diffusion.

All read the grids of the latent model's corpus and see new random puzzles in every batch. The
autoregressive rows are ``puzzle, grid``; told the order, ``puzzle, cell digit cell digit ...`` in
the order in which a solver would fill the cells, of which only the digits are to be predicted.

Command: export PYTHONPATH=.
         python experiments/reasoning/baselines.py train ar|ar_order|mdlm WORKDIR MINUTES [k=v ...]
           (width, layers, heads, batch_size, learning_rate, seed, config)
         python experiments/reasoning/baselines.py solve ar|ar_order|mdlm WORKDIR OUT.json [COUNT]
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from experiments.baselines.token_transformer import TokenTransformer, empty_cache
from experiments.baselines.training import load_params, save_params
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.special_ids import EOS, MASK
from ldlm_jax.data.texts import read_texts
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.optimizer import OptimizerConfig, make_optimizer
from ldlm_jax.puzzles.base import OPEN
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.puzzles.sudoku import Sudoku
from ldlm_jax.sampling.puzzles import held_out

CLUES = (0.25, 0.9)  # share of the cells that is given in training
CELL = 128  # token of cell 0, in rows that tell the order
BLANK = 120
EMA = 0.995


class Rows:
    """Batches of grids with random clues, and how they become rows of tokens.

    Digits are tokens ``3 + digit``; the numbers are the baselines' own, as small as they can be.
    """

    def __init__(self, config: str, kind: str):
        experiment = resolve(load_config(config))
        self.source, self.kind = experiment.data.source, kind
        self.prepared = prepare(experiment.data)
        task = TASKS[self.source]
        self.sudoku, self.cells = Sudoku(*task.box), task.side**2
        self.grids = self.digits(read_texts(self.prepared.text, "train"))

    @staticmethod
    def digits(texts) -> np.ndarray:
        """Texts as numbers (G, cells); 0 for an open cell."""
        return np.array([[0 if c == OPEN else int(c) for c in text] for text in texts], np.int32)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return {"ar": 2, "ar_order": 3, "mdlm": 1}[self.kind] * self.cells

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Grids (B, cells) and which of their cells are given."""
        grids = self.grids[rng.integers(len(self.grids), size=size)]
        share = rng.uniform(*CLUES, size=(size, 1))
        return grids, rng.uniform(size=grids.shape) < share

    def row(self, grids: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, length) and which of them are to be predicted."""
        tokens = 3 + grids
        puzzle = np.where(given, tokens, BLANK)
        if self.kind == "mdlm":
            return tokens, ~given
        if self.kind == "ar":
            to_predict = np.concatenate([np.zeros_like(given), ~given], axis=1)
            return np.concatenate([puzzle, tokens], axis=1), to_predict
        order = self.order(grids, given)  # (B, cells), given cells last
        pairs = np.stack([CELL + order, np.take_along_axis(tokens, order, axis=1)], axis=2)
        pairs = pairs.reshape(len(grids), -1)
        is_open = np.arange(self.cells) < np.sum(~given, axis=1, keepdims=True)
        to_predict = np.stack([np.zeros_like(is_open), is_open], axis=2).reshape(len(grids), -1)
        to_predict = np.concatenate([np.zeros_like(given), to_predict], axis=1)
        return np.concatenate([puzzle, pairs], axis=1), to_predict

    def order(self, grids: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Cells (B, cells) in the order of fewest possible digits, right digits being filled in."""
        side, cells, B = self.sudoku.side, self.cells, len(grids)
        peer = np.zeros((cells, cells), bool)
        for unit in self.sudoku.units:
            peer[np.ix_(unit, unit)] = True
        one_hot = np.eye(side, dtype=np.int16)[grids - 1]  # (B, cells, side)
        seen = np.einsum("pc,bcd->bpd", peer.astype(np.int16), one_hot * given[..., None])
        picked, order = np.zeros_like(given), np.zeros((B, cells), np.int64)
        for turn in range(cells):
            # Given cells come last, in any order.
            possible = np.sum(seen == 0, axis=2) + 100 * given + 1000 * picked
            order[:, turn] = cell = np.argmin(possible, axis=1)
            picked[np.arange(B), cell] = True
            seen += peer[cell][:, :, None] * one_hot[np.arange(B), cell][:, None, :]
        return order


def loss(model, params, tokens_BxN, predict_BxN, key, kind: str):
    """Mean cross-entropy of what is to be predicted (masked: MDLM's bound, weight 1 / t)."""
    weight_BxN = predict_BxN.astype(jnp.float32)
    if kind == "mdlm":
        t_Bx1 = jnp.maximum(jax.random.uniform(key, (len(tokens_BxN), 1)), 0.02)
        masked_BxN = jax.random.uniform(jax.random.fold_in(key, 1), tokens_BxN.shape) < t_Bx1
        inputs_BxN = jnp.where(masked_BxN, MASK, tokens_BxN)
        weight_BxN = masked_BxN / t_Bx1
    else:
        inputs_BxN = jnp.roll(tokens_BxN, 1, axis=1).at[:, 0].set(EOS)
    layout = token_layout(jnp.ones_like(tokens_BxN), 0 if kind == "mdlm" else 1)
    logits = model.apply({"params": params}, inputs_BxN, layout).logits_BxNxV
    nll_BxN = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BxN)
    return jnp.sum(weight_BxN * nll_BxN) / jnp.sum(predict_BxN)


def train(kind: str, workdir: str, minutes: str, *options: str) -> None:
    """Train for so many minutes, and keep the averaged parameters."""
    given = {"width": "128", "layers": "6", "heads": "4", "batch_size": "64", "seed": "0",
             "learning_rate": "3e-3", "config": "configs/sudoku_cpu.py",
             "steps": "0"} | dict(o.split("=") for o in options)  # fmt: skip
    rows = Rows(given["config"], kind)
    sizes = {k: int(given[k]) for k in ("width", "layers", "heads")}
    model = TokenTransformer(256, **sizes)
    rng, key = np.random.default_rng(int(given["seed"])), jax.random.key(int(given["seed"]))
    tokens = jnp.zeros((1, rows.length), jnp.int32)
    params = meta.unbox(model.init(key, tokens, token_layout(tokens + 1, 1))["params"])
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=float(given["learning_rate"]), warmup_steps=50), 10**6
    )

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state, tokens_BxN, predict_BxN, step):
        params, ema, opt_state = state
        value, grads = jax.value_and_grad(loss, argnums=1)(
            model, params, tokens_BxN, predict_BxN, jax.random.fold_in(key, step), kind
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, jnp.maximum(1 - EMA, 1 / (1 + step)))
        return (params, ema, opt_state), value

    folder, size = Path(workdir), sum(x.size for x in jax.tree.leaves(params))
    folder.mkdir(parents=True, exist_ok=True)

    def save():
        save_params(folder, state[1])
        facts = given | {"kind": kind, "steps": step, "minutes": float(minutes), "log": log,
                         "parameters": size}  # fmt: skip
        (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")

    state = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    step, log, start = 0, [], 0.0
    while step == 0 or time.monotonic() - start < 60 * float(minutes):
        if step == int(given["steps"]) > 0:
            break
        state, value = step_fn(state, *rows.row(*rows.draw(rng, int(given["batch_size"]))), step)
        if step == 0:
            jax.block_until_ready(value)
            start = time.monotonic()  # compiling does not count
        step += 1
        if step % 200 == 0:
            log.append({"step": step, "loss": float(value)})
            print(log[-1], flush=True)
            save()  # what was stopped can be solved with, too
    save()


@partial(jax.jit, static_argnames="model")
def write_digits(model, params, rows_BxN, to_predict_BxN):
    """Rows of which tokens to predict are replaced, greedily, one after another."""
    layout = token_layout(jnp.ones_like(rows_BxN), 1)

    def body(carry, i):
        tokens_BxN, last_B, cache = carry
        out = model.apply({"params": params}, last_B[:, None], layout.slice(i, 1), cache)
        drawn_B = jnp.argmax(out.logits_BxNxV[:, 0], axis=-1)
        last_B = jnp.where(to_predict_BxN[:, i], drawn_B, rows_BxN[:, i])
        cache = cache.put(out.keys_and_values, i)
        return (tokens_BxN.at[:, i].set(last_B), last_B, cache), None

    start = (rows_BxN, jnp.full(len(rows_BxN), EOS), empty_cache(model, params, layout))
    (tokens_BxN, *_), _ = jax.lax.scan(body, start, jnp.arange(rows_BxN.shape[1]))
    return tokens_BxN


@partial(jax.jit, static_argnames=("model", "steps"))
def unmask_by_margin(model, params, tokens_BxN, given_BxN, *, steps: int):
    """Each step unmasks an equal share, first where the best digit leads the second by most."""
    layout = token_layout(jnp.ones_like(tokens_BxN), 0)
    open_Bx1 = jnp.sum(~given_BxN, axis=1, keepdims=True)

    def body(carry, i):
        tokens_BxN, masked_BxN = carry
        inputs_BxN = jnp.where(masked_BxN, MASK, tokens_BxN)
        logits = model.apply({"params": params}, inputs_BxN, layout).logits_BxNxV
        logits = logits.at[..., MASK].set(-jnp.inf)
        best_BxNx2, digits = jax.lax.top_k(jax.nn.softmax(logits), 2)
        margin_BxN = jnp.where(masked_BxN, best_BxNx2[..., 0] - best_BxNx2[..., 1], -1.0)
        rank_BxN = jnp.argsort(jnp.argsort(-margin_BxN, axis=1), axis=1)
        count_Bx1 = open_Bx1 * (i + 1) // steps - open_Bx1 * i // steps
        now_BxN = masked_BxN & (rank_BxN < count_Bx1)
        return (jnp.where(now_BxN, digits[..., 0], tokens_BxN), masked_BxN & ~now_BxN), None

    return jax.lax.scan(body, (tokens_BxN, ~given_BxN), jnp.arange(steps))[0][0]


def solve(kind: str, workdir: str, out: str, count: str = "300") -> None:
    """Solve the puzzles that ``ldlm eval --evals puzzles`` solves, of every level."""
    facts = json.loads((Path(workdir) / "facts.json").read_text())
    rows = Rows(facts["config"], kind)
    task = TASKS[rows.source]
    sizes = {k: int(facts[k]) for k in ("width", "layers", "heads")}
    model, params = TokenTransformer(256, **sizes), load_params(Path(workdir))
    results = {}
    for level in task.levels:
        puzzles = held_out(rows.prepared.config, "test", level, int(count), 0)
        digits = rows.digits(p.given for p in puzzles)
        # What the order is told by: the solution, of which nothing else is shown.
        truth = rows.digits(rows.sudoku.solve(p.given).text for p in puzzles)
        tokens, to_predict = rows.row(truth, digits > 0)
        hidden = np.where(to_predict, BLANK, tokens)
        for steps in (5, 20, rows.cells) if kind == "mdlm" else (0,):
            if kind == "mdlm":
                got = np.asarray(unmask_by_margin(model, params, hidden, digits > 0, steps=steps))
            else:
                got = np.asarray(write_digits(model, params, hidden, to_predict))
            right = np.all(np.where(to_predict, got == tokens, True), axis=1)
            cells = np.mean((got == tokens)[to_predict])
            name = f"{level}, {steps} steps" if steps else level
            results[name] = {"solved": float(np.mean(right)), "cells": float(cells)}
            print(name, results[name], flush=True)
    facts |= {"count": int(count), "puzzle_seed": 0, "split": "test", "results": results}
    Path(out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    {"train": train, "solve": solve}[sys.argv[1]](*sys.argv[2:])
