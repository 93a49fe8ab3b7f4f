"""Load on `ldlm serve`: throughput and latency for 1, 8 and 32 clients, every answer checked.

    python -m experiments.serving.load http://127.0.0.1:8000 --texts 128 --steps 20 [--check RUN]
    python -m experiments.serving.load URL --puzzles configs/sudoku_cpu.py --steps 100

Each client is the `openai` client in a thread of its own and asks for one text after another.
"""

import argparse
import json
import threading
import time

import numpy as np
import openai

from ldlm_jax.config import load_config, resolve
from ldlm_jax.puzzles.base import OPEN
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.puzzles import held_out

PROMPTS = ("The king", "My son", "", "An angel")


def asked(number: int, steps: int, puzzles: list[str]) -> dict:
    """What the text of that number is: a puzzle, or a prompt of which every third has options."""
    if puzzles:
        template = puzzles[number % len(puzzles)].replace(OPEN, "____{1}")
        return {"template": template, "seed": number, "steps": steps}
    own = {"temperature": 0.9} if number % 3 == 1 else {}
    steps = steps if number % 3 else max(1, steps // 2)
    return {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "steps": steps, **own}


def ask(client, model: str, body: dict) -> tuple[float, str]:
    """Seconds and text of one request."""
    start = time.perf_counter()
    own = {key: value for key, value in body.items() if key not in ("prompt", "seed")}
    answer = client.completions.create(
        model=model, prompt=body.get("prompt", ""), seed=body["seed"], echo=True, extra_body=own
    )
    return time.perf_counter() - start, answer.choices[0].text


def load(url: str, clients: int, bodies: list[dict]) -> tuple[dict, list[str]]:
    """Numbers of one load, and all texts in order."""
    texts = len(bodies)
    results: list = [None] * texts
    numbers, lock = iter(range(texts)), threading.Lock()

    def work() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            model = client.models.list().data[0].id
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                results[number] = ask(client, model, bodies[number])

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    lost = sum(result is None for result in results)
    times = [result[0] for result in results if result]
    row = {"clients": clients, "texts": texts, "lost": lost, "texts_per_second": texts / seconds,
           "p50": np.percentile(times, 50), "p99": np.percentile(times, 99)}  # fmt: skip
    return row, [result[1] if result else "" for result in results]


def main() -> None:
    """Three loads; the texts of all must be the same, whatever shared a batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--check", help="run whose `generate` must give the same texts")
    parser.add_argument(
        "--puzzles", help="config of a corpus of puzzles: of its first and last level"
    )
    args = parser.parse_args()
    puzzles: list[str] = []
    if args.puzzles:
        config = resolve(load_config(args.puzzles)).data
        first, *_, hardest = TASKS[config.source].levels
        sets = (held_out(config, "test", level, 300, 0) for level in (first, hardest))
        puzzles = [p.given for pair in zip(*sets, strict=True) for p in pair]

    def bodies(count: int) -> list[dict]:
        return [asked(number, args.steps, puzzles) for number in range(count)]

    load(args.url, max(args.clients), bodies(2 * max(args.clients)))  # compiles
    load(args.url, 1, bodies(3))
    every = []
    for clients in args.clients:
        row, texts = load(args.url, clients, bodies(args.texts))
        every.append(texts)
        print(json.dumps({k: round(float(v), 3) for k, v in row.items()}), flush=True)
    print("equal among loads:", all(texts == every[0] for texts in every))
    if args.check:
        from ldlm_jax import load as load_model

        model = load_model(args.check)
        alone = [
            (model.infill if "template" in body else model.generate)(**body)[0].text
            for body in bodies(args.texts)
        ]
        print("equal to generate:", alone == every[0])


if __name__ == "__main__":
    main()
