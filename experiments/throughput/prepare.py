"""How many tokens a second a corpus is tokenised and packed at, a core and on all cores.

Command: PYTHONPATH=. python experiments/throughput/prepare.py library 8192 64 OUT.json
         (a source, the vocabulary, the window)
"""

import json
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.shards import make_shards, shards_of
from ldlm_jax.data.tokenizer import Tokenizer


def measured(config: DataConfig, tokenizer: Tokenizer, text: Path, workers: int) -> dict:
    """Pack the training split as if nothing were known of its words."""
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of(text, "train", Path(folder), config)
        start, processor = time.perf_counter(), time.process_time()
        made = list(make_shards(shards, tokenizer, workers))
        seconds, used = time.perf_counter() - start, time.process_time() - processor
    tokens = sum(shard["tokens"] for shard in made)
    rates = {"shards": len(made), "tokens": tokens, "tokens_per_second": tokens / seconds}
    return rates | ({"tokens_per_processor_second": tokens / used} if workers == 1 else {})


def main(source: str, vocabulary: str, window: str, out: str) -> None:
    """Prepare the corpus, then measure."""
    config = DataConfig(source=source, vocab_size=int(vocabulary), window=int(window))
    prepared = prepare(config)
    rows = {f"workers_{n}": measured(config, Tokenizer.from_json(prepared.tokenizer.to_json()),
                                     prepared.text, n) for n in (1, 2)}  # fmt: skip
    a_core = rows["workers_1"]["tokens_per_processor_second"]
    record = {"source": source, "vocabulary": config.vocab_size, "window": config.window,
              "date": date.today().isoformat(), "hardware": platform.machine(), "rows": rows,
              "core_hours": {f"{n}B": n * 1e9 / a_core / 3600 for n in (9, 400)}}  # fmt: skip
    print(json.dumps(record, indent=1))
    Path(out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
