"""Load on `ldlm serve`: throughput and latency for 1, 8 and 32 clients, every answer checked.

    python -m experiments.serving.load http://127.0.0.1:8000 --texts 128 --steps 20 [--check RUN]

Each client is the `openai` client in a thread of its own and asks for one text after another.
"""

import argparse
import json
import threading
import time

import numpy as np
import openai


def ask(client, model: str, number: int, steps: int) -> tuple[float, str]:
    """Seconds and text of one request; every third has options of its own."""
    own = {"temperature": 0.9} if number % 3 == 1 else {}
    start = time.perf_counter()
    answer = client.completions.create(
        model=model, prompt=PROMPTS[number % len(PROMPTS)], seed=number, echo=True,
        extra_body={"steps": steps if number % 3 else max(1, steps // 2), **own},
    )  # fmt: skip
    return time.perf_counter() - start, answer.choices[0].text


PROMPTS = ("The king", "My son", "", "An angel")


def load(url: str, clients: int, texts: int, steps: int) -> tuple[dict, list[str]]:
    """Numbers of one load, and all texts in order."""
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
                results[number] = ask(client, model, number, steps)

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
    args = parser.parse_args()
    load(args.url, max(args.clients), 2 * max(args.clients), args.steps)  # compiles
    load(args.url, 1, 3, args.steps)
    every = []
    for clients in args.clients:
        row, texts = load(args.url, clients, args.texts, args.steps)
        every.append(texts)
        print(json.dumps({k: round(float(v), 3) for k, v in row.items()}), flush=True)
    print("equal among loads:", all(texts == every[0] for texts in every))
    if args.check:
        from ldlm_jax import load as load_model

        model = load_model(args.check)
        alone = [
            model.generate(
                PROMPTS[n % len(PROMPTS)], seed=n, steps=args.steps if n % 3 else
                max(1, args.steps // 2), **({"temperature": 0.9} if n % 3 == 1 else {}),
            )[0].text
            for n in range(args.texts)
        ]  # fmt: skip
        print("equal to generate:", alone == every[0])


if __name__ == "__main__":
    main()
