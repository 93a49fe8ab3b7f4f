"""Text from a trained baseline: one token after another, or by unmasking.

Shape letters: B rows, N tokens, K tokens that one step unmasks, V vocabulary.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.baselines.token_transformer import TokenTransformer, empty_cache
from experiments.baselines.training import FACTS, load_params, read_config
from ldlm_jax.data.dataset import Prepared, prepare
from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.diffusion.guidance import guide_by_context
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.sampling.candidates import draw_lengths
from ldlm_jax.sampling.logits import end_tokens, top_p_filter


def draw(logits, key, top_p: float, temperature: float) -> jax.Array:
    """Tokens drawn from ``logits (..., V)``, of the likeliest ones that hold ``top_p`` together."""
    return jax.random.categorical(key, top_p_filter(logits / temperature, top_p))


@partial(jax.jit, static_argnames=("model", "top_p", "temperature", "guidance", "endless"))
def write_left_to_right(
    model: TokenTransformer, params, prompt_BxN, given_B, key, *, top_p: float, temperature,
    guidance: float = 1.0, endless: bool = False,
) -> jax.Array:  # fmt: skip
    """Tokens (B, N) of an autoregressive model, one after another, with a cache.

    Args:
      model: the network.
      params: its parameters.
      prompt_BxN: given tokens.
      given_B: how many of each row are given.
      key: random key.
      top_p: see ``draw``.
      temperature: see ``draw``.
      guidance: pushes away from what the last token alone predicts, as
        ``SampleConfig.context_guidance`` does with latents; 1 is none.
      endless: no text may end.
    """
    never = jnp.array([MASK, PAD, EOS] if endless else [MASK, PAD])
    B, N = prompt_BxN.shape
    layout = token_layout(jnp.ones((B, N), jnp.int32), 1)

    def body(carry, i):
        tokens_BxN, last_B, cache = carry
        here = layout.slice(i, 1)
        logits, own, _ = model.apply({"params": params}, last_B[:, None], here, cache)
        if guidance != 1:
            short = model.apply({"params": params}, last_B[:, None], here).logits_BxNxV
            logits = guide_by_context(logits, short, guidance, end_tokens(model.vocab_size))
        logits = logits[:, 0].at[:, never].set(-jnp.inf)
        drawn_B = draw(logits, jax.random.fold_in(key, i), top_p, temperature)
        last_B = jnp.where(i < given_B, prompt_BxN[:, i], drawn_B)
        return (tokens_BxN.at[:, i].set(last_B), last_B, cache.put(own, i)), None

    start = (jnp.zeros_like(prompt_BxN), jnp.full(B, EOS), empty_cache(model, params, layout))
    (tokens_BxN, *_), _ = jax.lax.scan(body, start, jnp.arange(N))
    return tokens_BxN


@partial(jax.jit, static_argnames=("model", "steps", "top_p", "temperature"))
def unmask(
    model: TokenTransformer, params, prompt_BxN, given_BxN, segments_BxN, key, *, steps: int,
    top_p: float, temperature,
) -> jax.Array:  # fmt: skip
    """Tokens (B, N) of a masked model: each step unmasks an equal share, in random order.

    MDLM's ancestral sampler draws how many a step unmasks. This model is not told the time, so that
    the order is all that counts (Zheng et al. 2024, arXiv 2409.02908), and only the tokens that are
    unmasked must be drawn. An unmasked token never changes.

    Args:
      model: the network.
      params: its parameters.
      prompt_BxN: given tokens.
      given_BxN: true where tokens are given.
      segments_BxN: 1 within the text, 0 beyond its end.
      key: random key.
      steps: number of steps.
      top_p: see ``draw``.
      temperature: see ``draw``.
    """
    layout = token_layout(segments_BxN)
    masked_BxN = ~given_BxN & layout.in_document_BxN
    masked_Bx1 = jnp.sum(masked_BxN, axis=1, keepdims=True)
    order_key, key = jax.random.split(key)
    order_BxN = jax.random.uniform(order_key, masked_BxN.shape)
    in_order_BxN = jnp.argsort(jnp.where(masked_BxN, order_BxN, 2.0), axis=1)
    most = -(-prompt_BxN.shape[1] // steps)  # that one step unmasks of a row
    rows = jnp.arange(len(prompt_BxN))[:, None]

    def body(tokens_BxN, i):
        logits = model.apply({"params": params}, tokens_BxN, layout).logits_BxNxV
        first_Bx1, end_Bx1 = masked_Bx1 * i // steps, masked_Bx1 * (i + 1) // steps
        turns_BxK = first_Bx1 + jnp.arange(most)
        where_BxK = jnp.take_along_axis(in_order_BxN, turns_BxK, axis=1, mode="clip")
        logits = logits[rows, where_BxK].at[..., jnp.array([MASK, PAD])].set(-jnp.inf)
        drawn_BxK = draw(logits, jax.random.fold_in(key, i), top_p, temperature)
        new_BxK = jnp.where(turns_BxK < end_Bx1, drawn_BxK, tokens_BxN[rows, where_BxK])
        return tokens_BxN.at[rows, where_BxK].set(new_BxK), None

    start = jnp.where(given_BxN, prompt_BxN, MASK)
    return jax.lax.scan(body, start, jnp.arange(steps))[0]


@dataclass(frozen=True)
class Baseline:
    """A trained baseline.

    Attributes:
      kind: a key of ``training.KINDS``.
      model: the network.
      params: its averaged parameters.
      prepared: the corpus.
      window: tokens of the longest text.
    """

    kind: str
    model: TokenTransformer
    params: dict
    prepared: Prepared
    window: int

    @classmethod
    def load(cls, kind: str, workdir: str | Path) -> "Baseline":
        """Read what ``training.train`` wrote."""
        folder = Path(workdir)
        facts = json.loads((folder / FACTS).read_text())
        _, data = read_config(facts["config"], facts["overrides"])
        prepared = prepare(data)
        model = TokenTransformer(prepared.tokenizer.vocab_size, **facts["sizes"])
        return cls(kind, model, load_params(folder), prepared, data.window)

    def write(
        self, prompts: list[str], seed: int, *, batch: int = 64, steps: int = 64,
        top_p: float = 1.0, temperature: float = 1.0, guidance: float = 1.0,
    ) -> list[str]:  # fmt: skip
        """A text for every prompt, which may be empty.

        Args:
          prompts: given beginnings.
          seed: of all randomness.
          batch: texts at once.
          steps: of ``mdlm`` alone.
          top_p: see ``draw``.
          temperature: see ``draw``.
          guidance: of ``ar`` alone.
        """
        tokenizer, texts = self.prepared.tokenizer, []
        rng = np.random.default_rng(seed)
        how = {"top_p": top_p, "temperature": temperature}
        for first in range(0, len(prompts), batch):
            part = prompts[first : first + batch]
            ids = tokenizer.encode([*part, *[""] * (batch - len(part))])
            rows = np.full((batch, self.window), MASK, np.int32)
            for row, i in zip(rows, ids, strict=True):
                row[: len(i)] = i
            given_B = np.array([len(i) for i in ids])
            key = jax.random.fold_in(jax.random.key(seed), first)
            if self.kind == "ar":
                out = write_left_to_right(
                    self.model, self.params, rows, given_B, key, guidance=guidance, **how
                )
            else:
                out = self._unmask(rows, given_B, key, rng, steps=steps, **how)
            for prompt, i, row in zip(part, ids, np.asarray(out), strict=False):
                texts.append(prompt + tokenizer.decode(row[len(i) :]))
        return texts

    def _unmask(self, rows, given_B, key, rng, **how) -> np.ndarray:
        """Rows of a masked model: each text has a length as training documents have it."""
        histogram = self.prepared.stats["lengths"]
        lengths_B = np.array([draw_lengths(histogram, given, 1, rng)[0] for given in given_B])
        position_N = np.arange(self.window)
        inside_BxN = position_N < lengths_B[:, None]
        out = unmask(
            self.model, self.params, rows, position_N < given_B[:, None],
            inside_BxN.astype(np.int32), key, **how,
        )  # fmt: skip
        return np.where(inside_BxN, np.asarray(out), EOS)
