"""Train and sample a baseline: an autoregressive or a masked diffusion model of the demo's tokens.

Command: export PYTHONPATH=.
         python experiments/half_hour/baseline.py train ar|mdlm WORKDIR STEPS [key=value ...]
           (of the optimizer, or batch_size, seed, layers, width, dropout; config: whose data to
           read; teacher.KEY, alignment.KEY, phases.0.alignment: aligned like that config's model)
         python experiments/half_hour/baseline.py judge ar|mdlm WORKDIR OUT.json [key=value ...]
         python experiments/half_hour/baseline.py nats ar|mdlm WORKDIR validation|test
"""

import json
import pickle
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.half_hour.training import KINDS, held_out_loss, read_config, train
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.diffusion.guidance import guide_by_context
from ldlm_jax.evals.quality import PROMPTS, Examiner, beginnings, named
from ldlm_jax.models.autoregressive import Cache, TokenTransformer
from ldlm_jax.models.denoiser import nucleus
from ldlm_jax.models.token_layout import lay_out
from ldlm_jax.sampling.generate import draw_lengths


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
        logits, own, _ = model.apply({"params": params}, token[:, None], here, Cache(cache, places))
        cache = jax.tree.map(
            lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, i, axis=2),
            cache, own,
        )  # fmt: skip
        if guidance != 1:
            near = model.apply({"params": params}, token[:, None], here).logits_BxNxV
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
        logits = model.apply({"params": params}, tokens, places).logits_BxNxV
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
        _, data = read_config(facts["config"], facts["overrides"])
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


def nats(kind: str, workdir: Path, split: str) -> None:
    """Print what a token of held-out text costs."""
    baseline = Baseline.load(kind, workdir)
    loss = held_out_loss(KINDS[kind], baseline.model, baseline.prepared, split)
    print(f"{split} {loss(baseline.params):.4f}")


def main(command: str, kind: str, workdir: str, *rest: str) -> None:
    """Train, judge, or say what a token costs."""
    if command == "train":
        train(KINDS[kind], Path(workdir), int(rest[0]), list(rest[1:]))
    elif command == "nats":
        nats(kind, Path(workdir), *rest)
    else:
        plain = [word for word in rest if "=" not in word]
        judge(kind, Path(workdir), *plain, **dict(w.split("=") for w in rest if "=" in w))


if __name__ == "__main__":
    main(*sys.argv[1:])
