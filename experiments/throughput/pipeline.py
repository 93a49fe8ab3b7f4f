"""How many tokens a second the input pipeline alone gives, by window: in memory, streamed, cached.

Command: PYTHONPATH=. python experiments/throughput/pipeline.py OUT.json [SECONDS]
"""

import json
import platform
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np

from ldlm_jax.data import rows as store
from ldlm_jax.data.dataset import DataConfig
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.data.rows import write_rows
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules, batch_sharding, put_batch

TOKENS_A_BATCH = 2**14
TOKENS = 2**25  # of the split
FEATURES = 384  # width of a cached teacher


def make_split(
    folder: Path, window: int, tokens: int, width: int = 0, vocabulary: int = 32_768
) -> None:
    """Rows of random tokens, or of random features of some width for a cache."""
    rng, each = np.random.default_rng(0), 2**18 // window

    def batch() -> dict:
        if width:
            features = rng.standard_normal((each, window, width), np.float32)
            return {"teacher": features.astype(ml_dtypes.bfloat16)}
        return {"tokens": rng.integers(3, vocabulary, (each, window), np.uint16),
                "segments": np.ones((each, window), np.min_scalar_type(window))}  # fmt: skip

    write_rows(folder, (batch() for _ in range(tokens // window // each)))


def measured(folder: Path, window: int, seconds: float, cache: Path | None = None) -> dict:
    """Tokens a second of batches that lie on the device, and the longest wait for one."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    put = partial(put_batch, sharding=batch_sharding(mesh, AxisRules()))
    rows = TOKENS_A_BATCH // window
    batches = train_batches(
        SimpleNamespace(packed=folder), DataConfig(window=window), rows, cache=cache, put=put
    )
    for _ in range(20):
        jax.block_until_ready(next(batches))
    count, waits, start = 0, [], time.perf_counter()
    processor = time.process_time()
    while (taken := time.perf_counter() - start) < seconds:
        before = time.perf_counter()
        jax.block_until_ready(next(batches))
        waits.append(time.perf_counter() - before)
        count += 1
    used = time.process_time() - processor
    return {"window": window, "rows": rows, "tokens_per_second": count * TOKENS_A_BATCH / taken,
            "tokens_per_processor_second": count * TOKENS_A_BATCH / used,
            "longest_wait_ms": 1000 * max(waits)}  # fmt: skip


def main(out: str, seconds: str = "10") -> None:
    """Measure each window in memory and streamed, then with a cached teacher."""
    results, memory = {}, store._MEMORY_BYTES
    for window in (64, 256, 1024):
        with tempfile.TemporaryDirectory() as folder:
            packed, cache = Path(folder) / "packed", Path(folder) / "features"
            make_split(packed, window, TOKENS)
            results[f"memory_{window}"] = measured(packed, window, float(seconds))
            store._MEMORY_BYTES = 2**20
            results[f"streamed_{window}"] = measured(packed, window, float(seconds))
            store._MEMORY_BYTES = memory
            make_split(packed, window, TOKENS // 32)
            make_split(cache, window, TOKENS // 32, FEATURES)
            results[f"teacher_{window}"] = measured(packed, window, float(seconds), cache)
    record = {"date": date.today().isoformat(), "jax": jax.__version__, "rows": results,
              "hardware": f"{jax.device_count()} x {jax.default_backend()}, "
              f"{platform.machine()}"}  # fmt: skip
    print(json.dumps(record, indent=1))
    Path(out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
