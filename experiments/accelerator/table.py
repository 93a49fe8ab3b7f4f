"""The rows that were measured as a Markdown table; peers' lines stand beside as they were printed.

Command: python experiments/accelerator/table.py OUT/rows.jsonl OUT/table.md
         python experiments/accelerator/table.py --rows
"""

import json
import sys
from pathlib import Path

# Rows with other flags of the compiler, see run.sh.
VARIANTS = ("ar_1x1024@graph", "sample_1x1024_32@graph", "sample_1x1024_32@untuned")
COLUMNS = ("tokens_per_second", "seconds_per_step", "seconds", "tflops", "mfu", "compile_seconds")


def cell(value) -> str:
    """A number for reading."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(rows: list[dict]) -> str:
    """One line a row, failures with their reason."""
    lines = [f"| row | {' | '.join(COLUMNS)} | |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        cells = " | ".join(cell(row.get(column)) for column in COLUMNS)
        lines.append(f"| {row['row']} | {cells} | {row.get('error', '')} |")
    devices = sorted({f"{row['device']}, jax {row['jax']}" for row in rows if "device" in row})
    return "\n".join([*lines, "", "; ".join(devices)]) + "\n"


def main(rows: str, out: str = "") -> None:
    """Write the table, or print the names of all rows."""
    if rows == "--rows":
        from experiments.accelerator.row import ROWS

        print(*ROWS, *VARIANTS)
        return
    file = Path(rows)
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    text = table(found)
    for peer in sorted(file.parent.glob("peer_*.jsonl")):
        text += f"\n{peer.stem}:\n\n```\n{peer.read_text().strip()}\n```\n"
    Path(out).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
