"""One self-contained HTML page of an evaluation: tables, plots and texts side by side."""

import html
import io
import re

from ldlm_jax.errors import UserError

# Rows of real text, between which everything else stands.
_REAL = ("held_out", "other_held_out", "trained_on", "shuffled")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.real{color:#777}
.texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1.5rem}
.texts h3{margin-bottom:.3rem}.wide{overflow-x:auto}
"""


def rows_of(results: dict) -> dict[str, dict]:
    """Measures of each set of texts, from flat results."""
    rows: dict[str, dict] = {}
    for key, value in results.items():
        if key.startswith("quality/"):
            _, row, measure = key.split("/")
            rows.setdefault(row, {})[measure] = value
    return rows


def report(record: dict) -> str:
    """The page.

    Args:
      record: what ``ldlm eval --json`` writes.

    Raises:
      UserError: matplotlib is not installed.
    """
    results = record["results"]
    rows = rows_of(results)
    conditions = {k: v for k, v in record.items() if k != "results"}
    parts = [
        "<!doctype html><meta charset=utf-8><title>ldlm eval</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(str(record['workdir']))}</h1>",
        f"<p>{html.escape(', '.join(f'{k} {v}' for k, v in conditions.items()))}</p>",
        "<h2>Sets of texts</h2>" + _table(rows) if rows else "",
        *_plots(rows, results),
        "<h2>Texts</h2><div class=texts>" + _texts(rows) + "</div>" if rows else "",
        "<h2>All numbers</h2>" + _numbers(results),
    ]
    return "\n".join(part for part in parts if part)


def _table(rows: dict[str, dict]) -> str:
    names = list(dict.fromkeys(n for row in rows.values() for n in row if n != "texts"))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names))
    body = []
    for row, values in rows.items():
        kind = " class=real" if row in _REAL else ""
        cells = "".join(f"<td>{_number(values.get(name))}</td>" for name in names)
        body.append(f"<tr{kind}><td>{html.escape(row)}</td>{cells}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _texts(rows: dict[str, dict]) -> str:
    columns = []
    for row, values in rows.items():
        lines = values.get("texts", "").splitlines()
        items = "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in lines)
        columns.append(f"<div><h3>{html.escape(row)}</h3><ul>{items}</ul></div>")
    return "".join(columns)


def _numbers(results: dict) -> str:
    cells = [
        f"<tr><td>{html.escape(name)}</td><td>{_number(value)}</td></tr>"
        for name, value in results.items()
        if not isinstance(value, str) and not name.startswith("quality/")
    ]
    return f"<table>{''.join(cells)}</table>"


def _plots(rows: dict[str, dict], results: dict) -> list[str]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a report needs matplotlib: pip install '.[eval]'.") from error

    def draw(title, x, y, paint) -> str:
        figure = Figure(figsize=(6.5, 4), layout="tight")
        axes = figure.subplots()
        paint(axes)
        axes.set(title=title, xlabel=x, ylabel=y)
        out = io.StringIO()
        figure.savefig(out, format="svg")
        return out.getvalue()[out.getvalue().index("<svg") :]

    plots = []
    if rows:
        plots.append("<h2>Plots</h2>")
        title = "Perplexity against variety (lower right is better)"
        plots.append(
            draw(title, "entropy of tokens, nats", "perplexity", lambda axes: _frontier(axes, rows))
        )
    curves = _by_steps(rows)
    for measure in ("perplexity", "mauve"):
        if any(len(points) > 1 and measure in points[0][1] for points in curves.values()):
            plots.append(
                draw(f"{measure} against steps", "denoising steps", measure,
                     lambda axes, measure=measure: _against_steps(axes, curves, rows, measure))
            )  # fmt: skip
    for prefix, x in (
        ("denoising/accuracy_t_", "time"),
        ("reconstruction/accuracy_noise_", "noise"),
    ):
        points = sorted(
            (float(k.removeprefix(prefix)), v) for k, v in results.items() if k.startswith(prefix)
        )
        if points:
            name = prefix.split("/")[0]
            plots.append(
                draw(f"{name}: tokens read rightly", x, "share",
                     lambda axes, points=points: axes.plot(*zip(*points, strict=True), marker="o"))
            )  # fmt: skip
    return plots


def _frontier(axes, rows: dict[str, dict]) -> None:
    for row, values in rows.items():
        if "perplexity" in values:
            point = (values["token_entropy"], values["perplexity"])
            axes.plot(*point, "s" if row in _REAL else "o", color="#777" if row in _REAL else None)
            axes.annotate(row, point, fontsize=7)
    axes.set_yscale("log")


def _by_steps(rows: dict[str, dict]) -> dict[str, list[tuple[int, dict]]]:
    """Rows that differ in nothing but their number of steps, in its order."""
    curves: dict[str, list] = {}
    for row, values in rows.items():
        if found := re.fullmatch(r"(.+)_steps_(\d+)", row):
            curves.setdefault(found[1], []).append((int(found[2]), values))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in curves.items()}


def _against_steps(axes, curves, rows, measure: str) -> None:
    for name, points in curves.items():
        found = [(steps, values[measure]) for steps, values in points if measure in values]
        axes.plot(*zip(*found, strict=True), marker="o", label=name)
    for row in _REAL:
        if measure in rows.get(row, {}):
            axes.axhline(rows[row][measure], color="#777", linestyle=":", label=row)
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=7)
