"""What the numbers of an evaluation say, in sentences."""

import re

# Below this change nobody could tell; two trainings of one config differ by as much.
_SAME = 0.05
_AS_VARIED = 0.1
# Texts from which MAUVE tells sets apart.
_ENOUGH = 1000

# Steps in order, each with the measures of its texts, by what was generated.
Curves = dict[str, list[tuple[int, dict]]]


def by_steps(rows: dict[str, dict]) -> Curves:
    """Rows that differ in nothing but their number of steps, in its order."""
    curves: Curves = {}
    for row, values in rows.items():
        if found := re.fullmatch(r"(.+)_steps_(\d+)", row):
            curves.setdefault(found[1], []).append((int(found[2]), values))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in curves.items()}


def conclusion(rows: dict[str, dict], num_samples: int | None = None) -> list[str]:
    """A few sentences, each on one measure; none where there is nothing to compare.

    Args:
      rows: measures of each set of texts; ``held_out`` is real text.
      num_samples: texts of a set that was generated.
    """
    curves, real = by_steps(rows), rows.get("held_out", {})
    free = curves.get("unconditional") or next(iter(curves.values()), [])
    if not free:
        return []
    name = "Free texts" if "unconditional" in curves else f"Texts of {next(iter(curves))}"
    steps, last = free[-1]
    told = [
        _fluency(name, steps, last, real),
        _gain(free),
        _likeness(free, rows),
        _variety(last, real),
        _copies(last, real),
    ]
    if num_samples is not None and num_samples < _ENOUGH:
        told.append(
            f"With {num_samples} texts a set these are hints: MAUVE and the ends of the scale "
            f"need {_ENOUGH:,}."
        )
    return [sentence for sentence in told if sentence]


def _fluency(name: str, steps: int, last: dict, real: dict) -> str:
    if not {"perplexity"} <= last.keys() & real.keys():
        return ""
    ratio = last["perplexity"] / real["perplexity"]
    numbers = f"{last['perplexity']:.3g}, against {real['perplexity']:.3g} of real held-out text"
    if ratio < 1 - _SAME:
        return (
            f"{name} at {steps} steps have a perplexity of {numbers}: below real text, which "
            "repetition and dull words bring about, not quality."
        )
    if ratio < 1 + _SAME:
        return f"{name} at {steps} steps are as fluent as real text: perplexity {numbers}."
    return (
        f"{name} at {steps} steps are less fluent than real text: perplexity {numbers}, "
        f"{ratio:.2g} times as much."
    )


def _gain(free: list[tuple[int, dict]]) -> str:
    points = [(steps, values["perplexity"]) for steps, values in free if "perplexity" in values]
    if len(points) < 2:
        return ""
    (few, first), (many, last) = points[0], points[-1]
    between = f"from {few} to {many} steps perplexity goes from {first:.3g} to {last:.3g}"
    if last < (1 - _SAME) * first:
        enough = next(steps for steps, value in points if value < (1 + _SAME) * last)
        tail = f"; {enough} are enough" if enough < many else ""
        return f"More steps help: {between}{tail}."
    if last > (1 + _SAME) * first:
        return f"More steps make it worse: {between}."
    return f"More steps change little: {between}."


def _likeness(free: list[tuple[int, dict]], rows: dict[str, dict]) -> str:
    scored = [(values["mauve"], steps) for steps, values in free if "mauve" in values]
    if not scored:
        return ""
    best, steps = max(scored)
    other = rows.get("other_held_out", {}).get("mauve")
    beside = f", against {other:.3g} of other real text" if other is not None else ""
    return f"Likest held-out text they are at {steps} steps: MAUVE {best:.3g} of 1{beside}."


def _variety(last: dict, real: dict) -> str:
    if not {"token_entropy", "loop_rate"} <= last.keys() & real.keys():
        return ""
    less = real["token_entropy"] - last["token_entropy"]
    loops = f"{last['loop_rate']:.1%} of the texts repeat themselves (real {real['loop_rate']:.1%})"
    if abs(less) <= _AS_VARIED:
        return f"They vary as much as real text, to {_AS_VARIED} nats of token entropy; {loops}."
    word = "less" if less > 0 else "more"
    return f"They vary {word} than real text, by {abs(less):.2f} nats of token entropy; {loops}."


def _copies(last: dict, real: dict) -> str:
    if not {"copied_8"} <= last.keys() & real.keys():
        return ""
    new, old = last["copied_8"], real["copied_8"]
    verdict = "Little is copied" if new <= old + 0.01 else "Some of it is copied"
    return (
        f"{verdict}: {new:.1%} of runs of eight words stand in the training text (real held-out "
        f"text {old:.1%})."
    )
