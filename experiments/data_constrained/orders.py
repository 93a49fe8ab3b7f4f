"""In which order may noise leave a text? Bounds along several, and tokens drawn one at a time.

Command: export PYTHONPATH=.
         python experiments/data_constrained/orders.py ARM PASSES OUT.json
Trains the arm at the scale ``small`` in runs/data_constrained/orders/, and adds a row to OUT.json.

Shape letters: B rows, N latents, D latent channels, V vocabulary.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ldlm_jax.losses.denoising as losses
from experiments.data_constrained.curve import SCALES, _prepared
from ldlm_jax.config import load_config
from ldlm_jax.data.pipeline import eval_batches
from ldlm_jax.diffusion.time_sampling import stratified
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.dit import GENERATED, NoisyInputs
from ldlm_jax.train import train
from ldlm_jax.workdir import load_run

SCALE = SCALES["small"]
ARMS = {
    "one time": (),
    "a time each": ("diffusion.per_token_times=1.0",),
    "clean or noise": (),
}
WINDOWS, DRAWS, TIMES = 96, 2, 16
# Noise over data where the decoder takes over; a ratio of signal to noise below which all is noise.
RATIO, SMALL = 0.25, 0.01


def clean_or_noise(key, shape, block_size, per_token, single_B):
    """Quantiles 0 or 1 for every position: a uniform share of each row is noise, as in masked
    diffusion."""
    share_Bx1 = stratified(key, shape[0])[:, None]
    return (jax.random.uniform(jax.random.fold_in(key, 1), shape) < share_Bx1).astype(jnp.float32)


def places(order: str, key, shape) -> jax.Array:
    """Where each position stands in the order (B, N), 0 to 1."""
    if order == "left to right":
        return jnp.broadcast_to(jnp.arange(shape[1]) / (shape[1] - 1), shape)
    drawn = jax.random.uniform(key, shape)
    return jnp.argsort(jnp.argsort(drawn, axis=1), axis=1) / (shape[1] - 1)


class Model:
    """A trained model on one batch of held-out text. Made inside a jitted function."""

    def __init__(self, networks, diffusion, params, latents, batch):
        self.tokens_BxN, self.in_text_BxN = batch["tokens"], batch["segments"] > 0
        self.diffusion = diffusion
        self.denoiser = Denoiser.create(networks, params, diffusion, latents)
        observed_BxN = jnp.zeros(self.tokens_BxN.shape, bool)
        self.layout = latent_layout(batch["segments"], networks, diffusion, observed_BxN)
        self.z_0_BxNxD = self.denoiser.encode(self.tokens_BxN, self.layout, observed_BxN)

    def predict(self, key, t_BxN):
        """The prediction from the text with noise of these times, self-conditioned once."""
        noise_BxNxD = jax.random.normal(key, self.z_0_BxNxD.shape)
        z_BxNxD = self.diffusion.noise.interpolate(self.z_0_BxNxD, noise_BxNxD, t_BxN)
        clean_BxNxD = jnp.zeros_like(z_BxNxD)
        conditioning_BxN = jnp.full(t_BxN.shape, GENERATED)
        for _ in range(2):
            inputs = NoisyInputs(z_BxNxD, t_BxN, conditioning_BxN, clean_BxNxD, self.layout)
            prediction = self.denoiser.denoise(inputs)
            clean_BxNxD = prediction.clean_BxNxD
        return prediction

    def nll(self, logits_BxNxV):
        """Nats (B, N) of the tokens."""
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxNxV, self.tokens_BxN)

    def mean(self, nats_BxN):
        """Nats a token."""
        return jnp.sum(nats_BxN * self.in_text_BxN) / jnp.sum(self.in_text_BxN)


@partial(jax.jit, static_argnames=("networks", "diffusion", "order"))
def bound(params, latents, batch, key, offset, *, networks, diffusion, order: str):
    """Nats a token along a path on which a position starts ``offset`` times its own duration after
    another that is the whole text ahead; see ``ldlm_jax.diffusion.bound``."""
    model = Model(networks, diffusion, params, latents, batch)
    keys = jax.random.split(key, 4)
    shape, span = model.tokens_BxN.shape, np.log1p(RATIO**-2 / SMALL)
    place_BxN = places(order, keys[0], shape)
    draw_Bx1 = jax.random.uniform(keys[1], (shape[0], 1))

    def at(index):
        u_BxN = (1 + offset) * (index + draw_Bx1) / TIMES - offset * place_BxN
        s_BxN = jnp.maximum(SMALL * jnp.expm1(span * jnp.clip(u_BxN, 0, 1)), 1e-9)
        t_BxN = model.diffusion.noise.time_at(s_BxN**-0.5)
        clean_BxNxD = model.predict(jax.random.fold_in(keys[2], index), t_BxN).clean_BxNxD
        error_BxN = jnp.sum(jnp.square(clean_BxNxD - model.z_0_BxNxD), axis=-1)
        nats_BxN = 0.5 * (1 + offset) * span * (SMALL + s_BxN) * error_BxN
        return jnp.where((u_BxN > 0) & (u_BxN < 1), nats_BxN, 0.0)

    diffusion_BxN = jnp.mean(jax.lax.map(at, jnp.arange(TIMES)), axis=0)
    noise_BxNxD = RATIO * jax.random.normal(keys[3], model.z_0_BxNxD.shape)
    logits = model.denoiser.decode(
        model.z_0_BxNxD + noise_BxNxD, jnp.full(shape, RATIO), model.layout
    )
    return model.mean(diffusion_BxN + model.nll(logits))


@partial(jax.jit, static_argnames=("networks", "diffusion", "order"))
def one_at_a_time(params, latents, batch, key, *, networks, diffusion, order: str):
    """Nats a token where each comes after clean ones, all others being noise; no bound, but the
    exact likelihood of text that is drawn so, in the mean over the orders."""
    model = Model(networks, diffusion, params, latents, batch)
    B, N = shape = model.tokens_BxN.shape
    keys = jax.random.split(key, 3)
    rank_BxN = jnp.round(places(order, keys[0], shape) * (N - 1)).astype(int)
    before_Bx1 = jnp.floor(stratified(keys[1], B) * N).astype(int)[:, None]
    t_BxN = jnp.where(rank_BxN < before_Bx1, 0.0, 1.0)
    nll_BxN = model.nll(model.predict(keys[2], t_BxN).logits_BxLxV)
    # All that could come next are as good as the one that does.
    weight_BxN = (rank_BxN >= before_Bx1) / (N - before_Bx1)
    if order == "left to right":
        weight_BxN = rank_BxN == before_Bx1
    weight_BxN *= model.in_text_BxN
    return jnp.sum(weight_BxN * nll_BxN), jnp.sum(weight_BxN)


def measure(generator) -> dict[str, float]:
    """All numbers of a model."""
    (batch,) = eval_batches(_prepared(SCALE), "validation", WINDOWS, 1)
    batch = {name: jnp.asarray(batch[name]) for name in ("tokens", "segments")}
    model, found = (generator.params, generator.latents, batch), {}
    static = {"networks": generator.networks, "diffusion": generator.diffusion}
    for order in ("random", "left to right"):
        for offset in (0.0, 3.0, 10.0):
            draws = [
                bound(*model, jax.random.key(i), offset, **static, order=order)
                for i in range(DRAWS)
            ]
            found[f"{order}, offset {offset:g}"] = float(np.mean(draws))
        draws = [
            one_at_a_time(*model, jax.random.key(i), **static, order=order)
            for i in range(8 * DRAWS)
        ]
        nats, weight = np.sum(np.array(draws), axis=0)
        found[f"{order}, one at a time"] = float(nats / weight)
    return found


def main(arm: str, passes: str, out: str) -> None:
    """Train the arm, and add its row."""
    if arm == "clean or noise":
        losses.draw_quantiles = clean_or_noise
    steps = _prepared(SCALE).stats["train"]["windows"] // 16 * int(passes)
    folder = Path("runs/data_constrained/orders") / f"{arm}_{passes}".replace(" ", "_")
    changes = (*SCALE["data"], *SCALE["latent"], "dit.dropout=0.1", *ARMS[arm], "train.evals=()",
               f"train.num_steps={steps}", f"train.checkpoint_every={steps}")  # fmt: skip
    train(load_config(SCALE["config"], [*changes]), str(folder))
    row = measure(load_run(folder).generator)
    path = Path(out)
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[f"{arm}, {passes} passes"] = {name: round(nats, 3) for name, nats in row.items()}
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
