"""``ldlm eval``: what can be wrong with its flags is found before any long work."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Annotated

from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import eval_batches
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals import REGISTRY, EvalContext, run_evals
from ldlm_jax.evals.likelihood import write_likelihoods
from ldlm_jax.parallel.sharding import own_rows, put_batch
from ldlm_jax.pretrained.zoo import find_model
from ldlm_jax.sampling.output import config_of, opened
from ldlm_jax.sampling.puzzles import level_of
from ldlm_jax.sampling.request import Samples, Seed
from ldlm_jax.telemetry.metrics import finite
from ldlm_jax.validate import Count, check_flags, output_file
from ldlm_jax.workdir import LoadedRun

_LIKELIHOOD = "likelihood"
_FLAGS = {"seed": Seed, "num_samples": Samples, "draws": Annotated[int, "[1, 100000]"],
          "batches": Count}  # fmt: skip


def run_eval(args, load: Callable[[], LoadedRun]) -> None:
    """Measure the model that ``load`` returns, and write what was found.

    Raises:
      UserError: a flag cannot be obeyed.
    """
    names = _checked_names(args)
    check_flags(args, _FLAGS)
    for path in (args.html, args.json, args.jsonl):
        if path is not None:
            output_file(path)
    if args.html and not find_spec("matplotlib"):
        raise UserError("--html draws with matplotlib: pip install '.[eval]'.")
    run = load()
    with run.use_sharding():
        if names == (_LIKELIHOOD,):
            _score_texts(args, run)
        else:
            _measure(args, run, names)


def _checked_names(args) -> tuple[str, ...]:
    names = tuple(args.evals.split(","))
    if _LIKELIHOOD in names and (len(names) > 1 or not args.text_file):
        raise UserError("--evals likelihood stands alone, and needs --text-file FILE.")
    for name in names:
        if name not in REGISTRY and name != _LIKELIHOOD:
            raise UserError(
                f"--evals: unknown {name!r}; {did_you_mean(name, [*REGISTRY, _LIKELIHOOD])}"
            )
    if "quality" in names:
        find_model(args.scorer)
    return names


def _score_texts(args, run: LoadedRun) -> None:
    with opened(args.jsonl) as out:
        told = write_likelihoods(
            run.generator, args.text_file, partial(print, file=out, flush=True),
            draws=args.draws, seed=args.seed, batch_size=config_of(args, run).batch_size,
        )  # fmt: skip
    print(told, file=sys.stderr)


def _measure(args, run: LoadedRun, names: tuple[str, ...]) -> None:
    context = _context(args, run, names)
    results = run_evals(names, context)
    for name, value in results.items():
        print(f"{name}:\n{value}" if isinstance(value, str) else f"{name:45} {value:.4f}")
    record = {"workdir": args.workdir or args.model, "step": int(run.average.step),
              **vars(context.sample), "split": args.split, "batches": len(context.batches),
              "num_samples": args.num_samples, "seed": args.seed, "scorer": args.scorer,
              "sampling_dtype": run.assembly.networks.dit.dtype, "results": results}  # fmt: skip
    if args.json:
        with opened(args.json) as out:
            out.write(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")
    if args.html:
        from ldlm_jax.evals.report import report

        with opened(args.html) as out:
            out.write(report(record))


def _context(args, run: LoadedRun, names: tuple[str, ...]) -> EvalContext:
    experiment, sample = run.experiment, config_of(args, run)
    for steps in args.step_counts:
        replace(sample, steps=steps)
    for guidance in args.guidances:
        replace(sample, guidance=guidance)
    if "puzzles" in names:
        for level in args.levels:
            level_of(experiment.data.source, level)
    prepared = prepare(experiment.data)
    if prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{run.path} was trained with another tokenizer than data.source = "
            f"{experiment.data.source!r} now gives; restore that text."
        )
    count = experiment.train.eval_batches if args.batches is None else args.batches
    rows, sharding = run.batch_rows(experiment.train.batch_size)
    batches = eval_batches(prepared, args.split, rows, count, own_rows(sharding, rows))
    return EvalContext(
        run.generator, [put_batch(batch, sharding) for batch in batches], sample,
        args.num_samples, tuple(args.step_counts), args.seed, prepared, args.split, args.scorer,
        guidances=tuple(args.guidances), levels=tuple(args.levels),
        report=partial(print, file=sys.stderr, flush=True),
    )  # fmt: skip
