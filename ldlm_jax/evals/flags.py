"""Flags of ``ldlm eval``."""

import argparse

from ldlm_jax.sampling.output import add_knobs

EXAMPLES = """examples:
  ldlm eval --workdir runs/mine --evals quality --num-samples 1000 --html quality.html
  ldlm eval --workdir runs/mine --evals likelihood --text-file texts.txt --jsonl scored.jsonl
  ldlm eval --model checkpoints/sudoku6 --evals puzzles --step-counts 1 5 20
"""


def add_eval_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm eval`` understands."""
    add_knobs(parser)
    parser.add_argument("--evals", default="reconstruction,denoising,samples",
                        help="names, joined by commas: reconstruction, denoising, bound, context, "
                             "puzzles, samples, quality; or likelihood alone")  # fmt: skip
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument(
        "--batches", type=int, help="held-out batches to read (as many as in training)"
    )
    parser.add_argument("--num-samples", type=int, default=256)
    parser.add_argument("--step-counts", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument(
        "--guidances", type=float, nargs="+", default=[],
        help="also continue prompts with these weights of guidance (evaluation quality)",
    )  # fmt: skip
    parser.add_argument(
        "--scorer",
        "--judge",
        default="smollm2-135m",
        help="model that the evaluation quality scores texts with",
    )
    parser.add_argument(
        "--levels", nargs="+", default=[],
        help="sets of puzzles, such as hard or '30 given'; without it the first",
    )  # fmt: skip
    scored = parser.add_argument_group("evaluation likelihood")
    scored.add_argument(
        "--text-file", metavar="FILE",
        help='texts to score: paragraphs, or .jsonl with "text" and, if you like, "given"',
    )  # fmt: skip
    scored.add_argument(
        "--draws", type=int, default=16, help="of a bound; its error falls with their root"
    )
    scored.add_argument("--jsonl", help="to this file instead of the terminal")
    parser.add_argument("--html", help="also write a report with plots to this file")
    parser.add_argument("--json", help="also write the results to this file")
