"""Flags of ``ldlm sample`` and ``ldlm eval``. Nothing heavy is imported here: help is quick."""

from argparse import ArgumentParser

# The fields of ``request.SampleConfig``.
DIALS = (
    ("steps", int, "denoising steps"),
    ("solver", str, "euler, heun, multistep, stochastic or ancestral"),
    ("churn", float, "noise of the stochastic and the ancestral solver"),
    ("guidance", float, "weight of the prompt; 1 is none"),
    ("self_guidance", float, "weight of the model's own earlier estimate; 1 is none"),
    ("context_guidance", float, "weight of all the context against the neighbours'; 1 is none"),
    ("grid", str, "law or uniform"),
    ("temperature", float, "of the tokens given their context; below 1 is more ordinary"),
    ("top_p", float, "probability of the tokens that the context may propose"),
    ("block_size", int, "latents written together; fewer than in training write better"),
    ("lag", float, "how far a block's beginning runs ahead"),
    ("guidance_from", float, "guide at times from this one on"),
    ("guidance_to", float, "and up to this one"),
    ("patience", int, "finish a block once its tokens stayed the same for so many steps; 0 never"),
    ("sure", float, "and all of them are at least so probable"),
    ("strength", float, "how much of a revised span is forgotten, up to 1"),
    ("best_of", int, "write so many for each text and choose one"),
    ("choose", str, "how: likelihood, or consensus (needs the extra eval)"),
    ("length", int, "tokens of the longest text; a model with blocks goes on beyond its window"),
    ("batch_size", int, "texts written at once"),
)


def add_dials(parser: ArgumentParser) -> None:
    """Flags for the run, and for everything in ``SampleConfig``."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind, text in DIALS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)


def add_flags(parser: ArgumentParser) -> None:
    """Everything that ``ldlm sample`` understands."""
    add_dials(parser)
    parser.add_argument("--num-samples", type=int, default=8)
    what = parser.add_argument_group("what is given")
    what.add_argument("--prompt", default="", help="beginning")
    what.add_argument("--suffix", default="", help="end")
    what.add_argument("--template", default="", help='"The king ____ the gates ____{3} night."')
    what.add_argument("--revise", metavar="FILE", help="rewrite the --spans of this text")
    what.add_argument("--spans", default="", help="characters of FILE, such as 10:25,40:52")
    what.add_argument(
        "--requests", metavar="JSONL",
        help="what this file asks for: prompt, template, seed, steps, guidance... by line",
    )  # fmt: skip
    where = parser.add_argument_group("where it goes")
    where.add_argument("--jsonl", help="to this file instead of the terminal")
    where.add_argument("--html", help="to a page on which the text sharpens, step by step")
    where.add_argument(
        "--panels", type=int, nargs="+", default=[], metavar="STEPS",
        help="numbers of steps that stand beside each other on the page",
    )  # fmt: skip
    where.add_argument(
        "--show-denoising", nargs="?", const="auto", metavar="STEPS",
        help="print drafts after these steps (1,5,10), or after a few",
    )  # fmt: skip
    where.add_argument(
        "--stream", action="store_true", help="print every block as it is finished (one text)"
    )
