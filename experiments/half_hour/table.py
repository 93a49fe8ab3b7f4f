"""Print the table of all systems, and plot their perplexity against entropy.

Command: PYTHONPATH=. python experiments/half_hour/table.py PLOT.png NAME=FILE.json ...
         (each file is of ``ldlm eval --json`` or of ``baselines/run.py judge``)
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from ldlm_jax.evals.report import rows_of

COLUMNS = {
    "perplexity": ("perplexity", "{:.1f}"),
    "without repeats": ("perplexity_without_repeats", "{:.1f}"),
    "token entropy": ("token_entropy", "{:.2f}"),
    "distinct-2": ("distinct_2", "{:.3f}"),
    "loop rate": ("loop_rate", "{:.3f}"),
    "self-BLEU": ("self_bleu", "{:.1f}"),
    "longest copy, words": ("copied_longest", "{:.1f}"),
    "words": ("words", "{:.1f}"),
}
REAL = {
    "held_out": "held out (what MAUVE compares with)",
    "other_held_out": "real, other held-out books",
    "trained_on": "real, training books",
    "shuffled": "the same, words shuffled",
}
GENERATED = {
    "unconditional": "free",
    "continuation_0.25": "first quarter given",
    "continuation_0.5": "first half given",
}


def title(row: str) -> str:
    """The printed name of a row of an evaluation."""
    kind, _, steps = row.partition("_steps_")
    name = GENERATED.get(kind, kind.replace("_", " "))
    return f"{name}, {steps} step{'s' * (steps != '1')}" if steps else name


def cells(values: dict) -> list[str]:
    """Numbers of one row, MAUVE with its deviation over seeds after the entropy."""
    found = {name: form.format(values[key]) if key in values else "-"
             for name, (key, form) in COLUMNS.items()}  # fmt: skip
    mauve = "-"
    if "mauve" in values:
        mauve = f"{values['mauve']:.3f} ± {values['mauve_deviation']:.3f}"
    numbers = list(found.values())
    return [*numbers[:3], mauve, *numbers[3:]]


def main(plot: str, *named: str) -> None:
    """Print the table and draw the frontier."""
    files = dict(item.split("=", 1) for item in named)
    records = {name: json.loads(Path(file).read_text()) for name, file in files.items()}
    rows = {name: rows_of(record["results"]) for name, record in records.items()}
    head = ["texts", *list(COLUMNS)[:3], "MAUVE (3 seeds)", *list(COLUMNS)[3:]]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    real = next((r for r in rows.values() if "shuffled" in r), {})
    for row, label in REAL.items():
        if row in real:
            print("| " + " | ".join([label, *cells(real[row])]) + " |")
    figure, axes = plt.subplots(figsize=(6, 4))
    if "held_out" in real:
        axes.plot(real["held_out"]["token_entropy"], real["held_out"]["perplexity"], "k*",
                  label="held-out text")  # fmt: skip
    for name, sets in rows.items():
        written = {row: values for row, values in sets.items() if row.startswith(tuple(GENERATED))}
        for row, values in written.items():
            print("| " + " | ".join([f"**{name}**, {title(row)}", *cells(values)]) + " |")
        free = [v for row, v in written.items() if row.startswith("unconditional")]
        axes.plot([v["token_entropy"] for v in free], [v["perplexity"] for v in free], "o",
                  label=name)  # fmt: skip
    axes.set(xlabel="token entropy of free texts, nats", ylabel="perplexity under the scorer")
    axes.legend()
    figure.tight_layout()
    figure.savefig(plot, dpi=120)
    count = {record["num_samples"] for record in records.values()}
    # Older files name the scorer "judge".
    scorers = {record.get("scorer", record.get("judge")) for record in records.values()}
    print(f"\ntexts of each kind: {count}, scorer {scorers}")


if __name__ == "__main__":
    main(*sys.argv[1:])
