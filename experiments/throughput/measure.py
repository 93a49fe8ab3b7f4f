"""Measure training and sampling speed of a config, and the same machine's rate of matrix products.

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
from ldlm_jax.parallel.sharding import use_sharding
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.train import TrainingRun
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
    """FLOP/s of a product as the model has them: 4096 rows by 256 by 1024."""
    x, w = jnp.ones((4096, 256), dtype), jnp.ones((256, 1024), dtype)
    product = jax.jit(lambda x, w: x @ w)
    jax.block_until_ready(product(x, w))
    seconds = best_seconds(lambda: [product(x, w) for _ in range(20)]) / 20
    return 2 * 4096 * 256 * 1024 / seconds


def training(run: TrainingRun, steps: int = 20) -> tuple[dict, TrainState]:
    """Each phase's compile time, tokens a second and share of time outside the step; last state."""
    config, made = run.experiment.train, run.assembly
    tokens, results = config.batch_size * run.experiment.data.window, {}
    state, batches, key = run.first_state(), run.batches(), jax.random.key(0)
    for number, phase in enumerate(run.experiment.phases):
        arguments = (state, next(batches), key, made.frozen)

        def lower(arguments=arguments, phase=phase):
            return compiled_step(made.recipe, made.optimizer).lower(*arguments, phase=phase)

        # XLA's count of the unoptimised program; it is right for stacks that are unrolled.
        flops = lower().cost_analysis()["flops"]
        compile_seconds, compiled = timed(lambda lower=lower: lower().compile())
        jax.clear_caches()  # as in a new process: only the cache on disk is left
        second_seconds, compiled = timed(lambda lower=lower: lower().compile())
        state, metrics = compiled(state, next(batches), key, made.frozen)
        jax.block_until_ready(metrics)
        outside = 0.0
        start = time.perf_counter()
        for _ in range(steps):
            begin = time.perf_counter()
            batch = next(batches)
            outside += time.perf_counter() - begin
            state, metrics = compiled(state, batch, key, made.frozen)
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


def sampling(generator: Generator, batch_size: int = 32) -> dict:
    """Tokens a second at several numbers of steps; cost and compilations against steps."""
    results = {}
    for steps in (5, 20, 100):
        config = SampleConfig(steps=steps, batch_size=batch_size)

        def run(config=config):
            return list(generate(generator, config, 0, num_samples=batch_size))

        run()
        compiled = generate_tokens.jitted()._cache_size()
        seconds = best_seconds(run, 3)
        results[f"steps_{steps}"] = {
            "seconds_per_batch": seconds,
            "tokens_per_second": batch_size * generator.window / seconds,
            "recompilations": generate_tokens.jitted()._cache_size() - compiled,
        }
    return results


def main(config: str, out: str) -> None:
    """Measure, print and write."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    run = TrainingRun.create(resolve(load_config(config)))
    with use_sharding(run.assembly.mesh, run.experiment.sharding):
        measured, state = training(run)
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
            "sampling": sampling(run.generator(state)),
        }
    text = json.dumps(result, indent=1)
    print(text)
    with open(out, "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
