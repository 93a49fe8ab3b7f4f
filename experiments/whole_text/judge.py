"""Score texts that ``ldlm sample --jsonl`` wrote, with the corpus of a config as reference.

Command: PYTHONPATH=. python experiments/whole_text/judge.py CONFIG OUT.json FILE.jsonl [...]
           [--count TEXTS] [--scorer MODEL]
Rows that OUT.json holds already are kept.
"""

import argparse
import json
from datetime import date
from pathlib import Path

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.evals.quality import QualityEvaluator


def main(config: str, out: str, files: list[str], count: int, scorer: str) -> None:
    """Score what is missing of the first texts of each file, and as many real texts."""
    data = resolve(load_config(config)).data
    evaluator = QualityEvaluator(prepare(data), scorer, "validation", data.window, count)
    path = Path(out)
    record = json.loads(path.read_text()) if path.exists() else {"real": evaluator.real_text()}
    record |= {"config": config, "scorer": scorer, "date": str(date.today())}
    for file in map(Path, files):
        if file.stem in record:
            continue
        texts = [json.loads(line)["text"] for line in file.open(encoding="utf-8")][:count]
        record[file.stem] = {"texts": len(texts)} | evaluator.measure(texts)
        path.write_text(json.dumps(record, indent=1) + "\n")
        row = record[file.stem]
        print(file.stem, *(f"{k} {row[k]:.3f}" for k in ("perplexity", "token_entropy", "mauve")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--scorer", default="smollm2-135m")
    args = parser.parse_args()
    main(args.config, args.out, args.files, args.count, args.scorer)
