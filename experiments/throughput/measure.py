"""Training and sampling speed of a config, against the matrix product rate of the same machine.

Command:
    python experiments/throughput/measure.py configs/web_cpu.py \\
        experiments/throughput/results.json
"""

import json
import platform
import sys
import tempfile
import time
from datetime import date

import jax
import jax.numpy as jnp

from ldlm_jax.config import load_config, resolve
from ldlm_jax.sampling.blockwise import write_tokens
from ldlm_jax.sampling.generate import Writer, generate
from ldlm_jax.sampling.request import SampleConfig
from ldlm_jax.train import Setup
from ldlm_jax.train_state import TrainState
from ldlm_jax.train_step import compiled_step


def best_seconds(run, repeats: int = 5) -> float:
    """Shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def timed(run) -> tuple:
    """Seconds and result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def matmul_rate(dtype) -> float:
    """FLOP/s of a product of the kind the model is made of: 4096 rows by 256 by 1024."""
    x, w = jnp.ones((4096, 256), dtype), jnp.ones((256, 1024), dtype)
    product = jax.jit(lambda x, w: x @ w)
    jax.block_until_ready(product(x, w))
    seconds = best_seconds(lambda: [product(x, w) for _ in range(20)]) / 20
    return 2 * 4096 * 256 * 1024 / seconds


def training(setup: Setup, steps: int = 20) -> tuple[dict, TrainState]:
    """Each phase's compile time, tokens a second and share of time outside the step; last state."""
    config = setup.experiment.train
    tokens, results = config.batch_size * setup.experiment.data.window, {}
    state, batches, key = setup.first_state(), setup.batches(), jax.random.key(0)
    for number, phase in enumerate(setup.experiment.phases):
        arguments = (state, next(batches), key)

        def lower(arguments=arguments, phase=phase):
            return compiled_step(setup.recipe, setup.optimizer).lower(*arguments, phase=phase)

        # XLA's count of the unoptimised program, right for stacks that are unrolled.
        flops = lower().cost_analysis()["flops"]
        compile_seconds, compiled = timed(lambda lower=lower: lower().compile())
        jax.clear_caches()  # as in a new process: what is left is the cache on disk
        second_seconds, compiled = timed(lambda lower=lower: lower().compile())
        state, metrics = compiled(state, next(batches), key)
        jax.block_until_ready(metrics)
        outside = 0.0
        start = time.perf_counter()
        for _ in range(steps):
            begin = time.perf_counter()
            batch = next(batches)
            outside += time.perf_counter() - begin
            state, metrics = compiled(state, batch, key)
            jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - start) / steps
        results[f"phase_{number}"] = {
            "compile_seconds": compile_seconds,
            "compile_seconds_second_start": second_seconds,
            "seconds_per_step": seconds,
            "tokens_per_second": tokens / seconds,
            "input_share": outside / steps / seconds,
            "flops_per_step": flops,
            "flops_per_second": flops / seconds,
        }
    return results, state


def sampling(writer: Writer, batch_size: int = 32) -> dict:
    """Tokens a second at several numbers of steps; cost and compilations against steps."""
    results = {}
    for steps in (5, 20, 100):
        config = SampleConfig(steps=steps, batch_size=batch_size)

        def run(config=config):
            return list(generate(writer, config, 0, num_samples=batch_size))

        run()
        compiled = write_tokens._cache_size()
        seconds = best_seconds(run, 3)
        results[f"steps_{steps}"] = {
            "seconds_per_batch": seconds,
            "tokens_per_second": batch_size * writer.window / seconds,
            "recompilations": write_tokens._cache_size() - compiled,
        }
    return results


def main(config: str, out: str) -> None:
    """Measure, print and write."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    setup = Setup.of(resolve(load_config(config)))
    with jax.set_mesh(setup.mesh):
        measured, state = training(setup)
        prepared, recipe = setup.prepared, setup.recipe
        writer = Writer.of(
            recipe.models, recipe.diffusion, state, prepared.tokenizer, prepared.stats["lengths"]
        )
        result = {
            "config": config,
            "date": date.today().isoformat(),
            "hardware": f"{jax.device_count()} x {jax.default_backend()}, {platform.machine()}",
            "jax": jax.__version__,
            "matmul_flops": {
                "float32": matmul_rate(jnp.float32),
                "bf16": matmul_rate(jnp.bfloat16),
            },
            "training": measured,
            "sampling": sampling(writer),
        }
    text = json.dumps(result, indent=1)
    print(text)
    with open(out, "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
