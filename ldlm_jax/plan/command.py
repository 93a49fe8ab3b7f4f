"""``ldlm plan``: its flags, and what it runs."""

import argparse
import json
from pathlib import Path

from ldlm_jax.errors import UserError


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm plan`` understands."""
    parser.add_argument("--config", required=True, help="config file, or name (ldlm configs)")
    parser.add_argument("--topology", required=True, help="such as v5e:16x16, or h100:8x8")
    parser.add_argument("--num-slices", type=int, default=1, help="slices of that topology")
    parser.add_argument(
        "--explain", action="store_true", help="only print where each parameter lives"
    )
    parser.add_argument(
        "--programs", default="train,eval,sample", help="which to compile (train,eval,sample)"
    )
    parser.add_argument(
        "--search-batch", action="store_true", help="also find the largest batch that fits"
    )
    parser.add_argument("--json", help="also write the plan to this file")


def run_plan(args, experiment) -> None:
    """Plan a checked config."""
    from ldlm_jax.plan.report import explain, largest_batch, plan, table
    from ldlm_jax.plan.target import Target
    from ldlm_jax.telemetry.screen import told_apart

    programs = tuple(args.programs.split(","))
    for name in programs:
        if name not in ("train", "eval", "sample"):
            raise UserError(f"--programs: unknown {name!r}; choose of train, eval, sample.")
    target = Target.of(experiment, args.topology, args.num_slices)
    if args.explain:
        print(explain(target.placements()))
        return
    with told_apart() as begin:
        result = plan(target, args.topology, programs, begin)
        if args.search_batch:
            result["largest_batch"] = largest_batch(target, begin=begin)
    print(table(result))
    if args.search_batch:
        print(f"largest batch that fits: {result['largest_batch']} rows")
    if args.json:
        Path(args.json).write_text(json.dumps(result | {"config": args.config}, indent=1) + "\n")
