"""One row of the table: what this machine's device does, as a line of JSON.

Command: PYTHONPATH=. python experiments/accelerator/row.py NAME OUT.jsonl [tiny]
         (names: see ROWS; ``tiny`` proves a row on a CPU)
"""

import fcntl
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.baselines.sampling import write_left_to_right
from experiments.baselines.token_transformer import TokenTransformer
from experiments.throughput.pipeline import make_split, measured
from ldlm_jax.config import build, load_config, resolve
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import batch_sharding, put_batch, use_sharding
from ldlm_jax.plan.flops import step_flops
from ldlm_jax.plan.hardware import chip_of
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import row_params
from ldlm_jax.sampling.spec import ConditioningBatch, Spec
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import compiled_step

# Of each config that is trained, and how large its vocabulary is.
POD, SUDOKU = "configs/ldlm_130m_v5e_16.py", "configs/sudoku.py"
WHOLE, LARGER = "configs/whole_h100.py", "configs/whole_130m_h100.py"
VOCABULARY = {POD: 32_768, SUDOKU: 259, WHOLE: 8192, LARGER: 16_384}
LARGE = ("text_vae.attention=cudnn", "dit.attention=cudnn", "train.batch_size=24",
         "diffusion.self_condition=0.0", "mesh.fsdp=1")  # fmt: skip
TINY = ("data.window=32", "train.batch_size=4", "text_vae.width=32", "text_vae.heads=2",
        "dit.width=32", "dit.heads=2", "dit.layers=1", "text_vae.dtype=float32",
        "dit.dtype=float32")  # fmt: skip
SHALLOW = ("text_vae.encoder_layers=1", "text_vae.decoder_layers=1")


class Turn:
    """Rows of one file compile side by side, but each is measured while no other does anything."""

    def begin(self, out: str) -> None:
        """Wait until no row is measured; then compile."""
        self._file = open(f"{out}.lock", "w")  # noqa: SIM115  (open until the process ends)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def alone(self) -> None:
        """Wait until all others have compiled or are done; they wait until this process ends."""
        fcntl.flock(self._file, fcntl.LOCK_EX)


TURN = Turn()


def timed(run, fewest: int, seconds: float) -> float:
    """Seconds of a call: the mean of as many as fit into some seconds."""
    TURN.alone()
    jax.block_until_ready(run())
    count, start = 0, time.perf_counter()
    while count < fewest or time.perf_counter() - start < seconds:
        result = run()
        count += 1
        if count % 4 == 0 or count == fewest:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / count


def _tiny(config: str, tiny: bool) -> tuple[str, ...]:
    if not tiny:
        return ()
    return TINY if config == SUDOKU else (*TINY, *SHALLOW)


def product(tiny: bool) -> dict:
    """The rate of bf16 products, which all else stands beside."""
    size = 256 if tiny else 8192
    x = jnp.ones((size, size), jnp.bfloat16)
    seconds = timed(partial(jax.jit(jnp.matmul), x, x), 4, 0.1 if tiny else 2)
    return {"size": size, "tflops": 2 * size**3 / seconds / 1e12}


def pipeline(tiny: bool, window: int) -> dict:
    """The input pipeline alone, batches put onto the device."""
    with tempfile.TemporaryDirectory() as folder:
        make_split(Path(folder) / "packed", window, 2**19 if tiny else 2**24)
        TURN.alone()
        return measured(Path(folder) / "packed", window, 0.2 if tiny else 5.0)


def training(tiny: bool, config: str, number: int, changes: tuple[str, ...] = ()) -> dict:
    """Steps of one phase with the pipeline that feeds them."""
    experiment = resolve(load_config(config, [*changes, *_tiny(config, tiny)]))
    vocabulary = VOCABULARY[config]
    mesh, window = make_mesh(experiment.mesh, jax.devices()[:1]), experiment.data.window
    rows = experiment.train.batch_size
    made = build(experiment, mesh, vocabulary)
    state = init_state(made.networks, made.optimizer, 0, window, mesh, experiment.sharding)
    step, phase = compiled_step(made.recipe, made.optimizer), experiment.phases[number]
    put = partial(put_batch, sharding=batch_sharding(mesh, experiment.sharding))
    with use_sharding(mesh, experiment.sharding), tempfile.TemporaryDirectory() as folder:
        tokens = 2**19 if tiny else 2**24
        make_split(Path(folder) / "packed", window, tokens, vocabulary=vocabulary)
        batches = train_batches(
            SimpleNamespace(packed=Path(folder) / "packed"), experiment.data, rows, put=put
        )
        first, key = next(batches), jax.random.key(0)
        start = time.perf_counter()
        state, metrics = step(state, first, key, made.frozen, phase=phase)
        loss = float(metrics["loss"])
        compile_seconds = time.perf_counter() - start
        flops = step_flops(made.recipe, made.frozen, jax.eval_shape(lambda: first), phase)

        def run():
            nonlocal state
            state, metrics = step(state, next(batches), key, made.frozen, phase=phase)
            return metrics["loss"]

        seconds = timed(run, 4, 0.1 if tiny else 8)
    chip = chip_of(jax.devices()[0].device_kind)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    return {"parameters": count, "rows": rows, "window": window, "finite": bool(np.isfinite(loss)),
            "seconds_per_step": seconds, "tokens_per_second": rows * window / seconds,
            "tflops": flops / seconds / 1e12, "compile_seconds": compile_seconds,
            "mfu": flops / seconds / chip.flops if chip else None}  # fmt: skip


def sampling(tiny: bool, batch: int, length: int, steps: int) -> dict:
    """Whole texts out of noise, of an untrained model; what they say does not matter."""
    length, steps = (16, 2) if tiny else (length, steps)
    changes = (*LARGE, *_tiny(POD, tiny), f"data.window={length}", f"sample.steps={steps}")
    experiment = resolve(load_config(POD, list(changes)))
    networks = experiment.networks(VOCABULARY[POD])
    params = meta.unbox(networks.init(jax.random.key(0), length))
    config = experiment.sample
    spec = Spec.of(networks, experiment.diffusion, [config], length)
    given = ConditioningBatch.blank(batch, length, networks.vae.tokens_per_latent, endless=True)
    rows = row_params(jax.random.split(jax.random.key(0), batch), [config] * batch)
    latents = LatentStats.create(networks.vae.latent_channels)
    return _sampled(generate_tokens.jitted(), (params, latents, given, rows), {"spec": spec}) | {
        "batch": batch, "length": length, "steps": steps}  # fmt: skip


def autoregressive(tiny: bool, batch: int, length: int) -> dict:
    """The autoregressive baseline as large as GPT-2, in bf16, with a cache."""
    width, layers = (32, 1) if tiny else (768, 12)
    length = 16 if tiny else length
    model = TokenTransformer(VOCABULARY[POD], width, width // 32 if tiny else 12, layers,
                             mlp_ratio=4.0, dtype="bfloat16")  # fmt: skip
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = meta.unbox(model.init(jax.random.key(0), tokens, token_layout(tokens)))["params"]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    blank = jnp.zeros((batch, length), jnp.int32), jnp.zeros(batch, jnp.int32)
    write = jax.jit(partial(write_left_to_right, model, top_p=0.95, temperature=1.0))
    return _sampled(write, (params, *blank, jax.random.key(0)), {}) | {
        "batch": batch, "length": length}  # fmt: skip


def _sampled(function, arguments: tuple, static: dict) -> dict:
    start = time.perf_counter()
    compiled = function.lower(*arguments, **static).compile()
    compile_seconds = time.perf_counter() - start
    seconds = timed(partial(compiled, *arguments), 1, 1)
    return {"seconds": seconds, "compile_seconds": compile_seconds}


ROWS = {
    "product": product,
    **{f"pipeline_{w}": partial(pipeline, window=w) for w in (64, 1024)},
    **{f"train_{name}_phase_{n}": partial(training, config=config, number=n, changes=changes)
       for name, config, changes in (("130m", POD, LARGE), ("whole_130m", LARGER, ()),
                                     ("whole", WHOLE, ())) for n in (0, 1)},
    "train_sudoku": partial(training, config=SUDOKU, number=0),
    **{f"ar_{b}x{n}": partial(autoregressive, batch=b, length=n)
       for b, n in ((1, 1024), (32, 1024))},
    **{f"sample_{b}x{n}_{s}": partial(sampling, batch=b, length=n, steps=s)
       for b, n, s in ((1, 1024, 32), (32, 1024, 32), (1, 1024, 8), (1, 1024, 16), (1, 1024, 64),
                       (8, 1024, 32), (1, 256, 32), (8, 256, 32), (32, 256, 32))},
}  # fmt: skip


def main(name: str, out: str, size: str = "") -> None:
    """Measure the row and append it; a row that fails says why."""
    start = time.perf_counter()
    TURN.begin(out)
    try:
        found = ROWS[name.split("@")[0]](size == "tiny")
    except Exception as error:  # the rows after it are to be measured all the same
        found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    if "seconds" in found:
        found["tokens_per_second"] = found["batch"] * found["length"] / found["seconds"]
    device = jax.devices()[0].device_kind
    row = {"row": name, "device": device, "jax": jax.__version__} | found
    row["wall_seconds"] = time.perf_counter() - start
    print(json.dumps(row), flush=True)
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
