"""One self-contained HTML page of an evaluation: tables, plots and texts side by side."""

import html
import io

from ldlm_jax.errors import UserError
from ldlm_jax.evals.conclusion import Curves, by_steps, conclusion

# Rows of real text, between which everything else stands.
_REAL = ("held_out", "other_held_out", "trained_on", "shuffled")

_MARKERS = "os^DvP*X<>"

# Measures that stand in one table, so that each fits a narrow window; the rest is a last one.
_TABLES = {
    "Fluency and likeness": ("mauve", "mauve_deviation", "perplexity",
                             "perplexity_without_repeats", "token_entropy"),
    "Variety and repetition": ("distinct_1", "distinct_2", "distinct_3", "seq_rep_4", "loop_rate",
                               "self_bleu"),
    "Copies and lengths": ("copied_longest", "copied_8", "tokens", "words", "length_distance",
                           "entropy"),
}  # fmt: skip

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td{white-space:nowrap}th{vertical-align:bottom}.real{color:#777}
td:first-child,th:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
.texts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1.5rem}
.texts h3{margin-bottom:.3rem}svg{max-width:100%;height:auto}h1,h3,p,li{overflow-wrap:anywhere}
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
        "<h2>Sets of texts</h2>" + _tables(rows) if rows else "",
        *_plots(rows, results),
        "<h2>Texts</h2><div class=texts>" + _texts(rows) + "</div>" if rows else "",
        "<h2>All numbers</h2>" + _numbers(results),
        _sentences(conclusion(rows, record.get("num_samples"))),
    ]
    return "\n".join(part for part in parts if part)


def _tables(rows: dict[str, dict]) -> str:
    names = list(dict.fromkeys(n for row in rows.values() for n in row if n != "texts"))
    known = {name for group in _TABLES.values() for name in group}
    groups = _TABLES | {"Others": tuple(name for name in names if name not in known)}
    tables = []
    for title, group in groups.items():
        if shown := [name for name in group if name in names]:
            tables.append(f"<h3>{title}</h3>" + _table(rows, shown))
    return "".join(tables)


def _table(rows: dict[str, dict], names: list[str]) -> str:
    head = "".join(f"<th>{_words(name)}</th>" for name in ("", *names))
    body = []
    for row, values in rows.items():
        kind = " class=real" if row in _REAL else ""
        cells = "".join(f"<td>{_number(values.get(name))}</td>" for name in names)
        body.append(f"<tr{kind}><td>{_words(row)}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _words(name: str) -> str:
    """A name that may be broken between its words."""
    return html.escape(name.replace("_", " "))


def _sentences(told: list[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in told)
    return f"<h2>Conclusion</h2><ul>{items}</ul>" if told else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _texts(rows: dict[str, dict]) -> str:
    columns = []
    for row, values in rows.items():
        lines = values.get("texts", "").splitlines()
        items = "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in lines)
        columns.append(f"<div><h3>{_words(row)}</h3><ul>{items}</ul></div>")
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
        figure = Figure(figsize=(8, 4.5), layout="constrained")
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
    curves = by_steps(rows)
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
    """Every set as a point, named in the legend: names beside points would overlap."""
    kinds = list(by_steps(rows))
    for row, values in rows.items():
        if not {"perplexity", "token_entropy"} <= values.keys():
            continue
        kind, _, steps = row.rpartition("_steps_")
        color = f"C{kinds.index(kind)}" if kind in kinds else "#777"
        same = [r for r in rows if r.rpartition("_steps_")[0] == kind]
        marker = _MARKERS[same.index(row) % len(_MARKERS)]
        axes.plot(
            values["token_entropy"], values["perplexity"], marker, color=color, linestyle="none",
            label=row.replace("_", " "),
        )  # fmt: skip
    _plain_log(axes.yaxis, [v["perplexity"] for v in rows.values() if "perplexity" in v])
    _legend(axes)


def _against_steps(axes, curves: Curves, rows, measure: str) -> None:
    shown = []
    for name, points in curves.items():
        found = [(steps, values[measure]) for steps, values in points if measure in values]
        if found:
            axes.plot(*zip(*found, strict=True), marker="o", label=name.replace("_", " "))
            shown += found
    values = [value for _, value in shown]
    for row, style in zip(_REAL, (":", "--", "-.", (0, (1, 5))), strict=True):
        if measure in rows.get(row, {}):
            values.append(rows[row][measure])
            axes.axhline(values[-1], color="#777", linestyle=style, label=row.replace("_", " "))
    _plain_log(axes.xaxis, [], sorted({steps for steps, _ in shown}))
    if measure == "perplexity":
        _plain_log(axes.yaxis, values)
    _legend(axes)


def _legend(axes) -> None:
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _plain_log(axis, values: list[float], ticks: list[float] | None = None) -> None:
    """A logarithmic axis with numbers such as 5 and 20, not powers of ten.

    Args:
      axis: x or y.
      values: what it shows, from which ticks follow.
      ticks: or these.
    """
    from matplotlib import ticker

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    wide = bool(values) and max(values) > 8 * min(values)
    if ticks:
        axis.set_major_locator(ticker.FixedLocator(ticks))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if wide else ticker.MaxNLocator(6))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(ticker.NullLocator())
