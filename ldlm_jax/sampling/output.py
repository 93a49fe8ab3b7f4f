"""``ldlm sample``: from flags to requests, and from samples to the terminal, a file or a page."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import get_args

import jax

from ldlm_jax.errors import UserError
from ldlm_jax.puzzles.base import Task
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.candidates import Sample
from ldlm_jax.sampling.config import SampleConfig, knobs
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.page import denoising_page
from ldlm_jax.sampling.puzzles import held_out, printer, requests_of, typed
from ldlm_jax.sampling.request import Request, read_requests
from ldlm_jax.sampling.revision import Revision, find_phrase, read_text
from ldlm_jax.sampling.stream import InOrder, TextStream
from ldlm_jax.sampling.template import parse_spans
from ldlm_jax.validate import local_path
from ldlm_jax.workdir import LoadedRun

# Behind a text that would go on, had the window not ended.
CUT = " [...]"


EXAMPLES = """examples:
  ldlm sample --workdir runs/mine --prompt "The king" --steps 20
  ldlm sample --workdir runs/mine --template "The ____ of the people." --num-samples 3
  ldlm sample --workdir runs/mine --prompt "The king" --stream
"""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Flags for the model."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", help="folder of a run")
    which.add_argument("--model", help="exported folder (ldlm export), or a name on the Hub")
    parser.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """Flags for the model, and one for each knob of ``SampleConfig``, by group."""
    add_model(parser)
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    groups: dict = {}
    for name, knob in knobs().items():
        title = knob.metadata["group"]
        if title not in groups:
            text = None if groups else "a run's config may hold other defaults"
            groups[title] = parser.add_argument_group(title, text)
        names = [f"--{n.replace('_', '-')}" for n in (name, knob.metadata["was"]) if n]
        kind = next((t for t in (knob.type, *get_args(knob.type)) if t in (int, float)), str)
        text = f"{knob.metadata['help']} (default: {knob.default})".replace("%", "%%")
        groups[title].add_argument(*names, dest=name, type=kind, help=text)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm sample`` understands."""
    add_knobs(parser)
    parser.add_argument("--num-samples", type=int, help="texts (default: 8, or 1 with --stream)")
    what = parser.add_argument_group("what is given")
    what.add_argument("--prompt", default="", help="beginning")
    what.add_argument("--suffix", default="", help="end")
    what.add_argument("--template", default="", help='"The king ____ the gates ____{3} night."')
    what.add_argument("--revise", metavar="FILE", help="rewrite parts of this text")
    what.add_argument("--find", metavar="PHRASE", default="", help="wherever this stands in FILE")
    what.add_argument("--spans", default="", help="or these characters, such as 10:25,40:52")
    what.add_argument(
        "--puzzle", default="", help="a text with _ for each symbol to find; a grid row by row"
    )
    what.add_argument(
        "--puzzles", type=int, metavar="N", help="held-out puzzles of the model's own corpus"
    )
    what.add_argument("--level", default="", help="of them, such as hard")
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


def config_of(args, run: LoadedRun) -> SampleConfig:
    """The run's sampling section with the flags that were given."""
    given = {name: value for name in knobs() if (value := getattr(args, name)) is not None}
    return replace(run.experiment.sample, **given)


def run(args, load: Callable[[], LoadedRun]) -> None:
    """Generate what was asked for, with the model that ``load`` returns."""
    asked = [name for name in ("prompt", "suffix", "template", "revise", "puzzle", "puzzles",
                               "requests") if getattr(args, name) not in ("", None)]  # fmt: skip
    if len(asked) > 1 and asked != ["prompt", "suffix"]:
        raise UserError(f"--{asked[0]} and --{asked[1]} do not go together.")
    if args.num_samples is None:
        args.num_samples = 1 if args.stream else 8
    run = load()
    if sys.stderr.isatty():
        print("compiling the sampler, if it is not in the cache ...", file=sys.stderr, flush=True)
    with run.use_sharding():
        _write(args, run, config_of(args, run))


def _write(args, run: LoadedRun, config: SampleConfig) -> None:
    generator, shows = run.generator, None
    if args.revise:
        text = read_text(args.revise)
        revision = Revision.of(text, _spans(args, text), config, args.seed)
        _revise(args, generator, revision, config.strength)
        return
    task = TASKS.get(run.experiment.data.source)
    if args.puzzles is not None or args.puzzle:
        puzzles = (
            [typed(args.puzzle, task)] if args.puzzle
            else held_out(run.experiment.data, "test", args.level, args.puzzles, args.seed)
        )  # fmt: skip
        requests = requests_of(puzzles, config, args.seed)
        shows = [partial(printer(task), puzzle) for puzzle in puzzles]
    elif args.requests:
        requests = read_requests(args.requests, config, args.seed)
    else:
        request = Request(args.prompt, args.seed, 0, config, args.suffix, args.template)
        requests = request.several(args.num_samples)
    if args.html:
        _to_page(args, generator, requests, task)
    elif args.jsonl:
        _to_file(args.jsonl, requests, generate_requests(generator, requests))
    elif args.stream:
        _stream(generator, requests)
    else:
        _to_terminal(args, generator, requests, shows or [str] * len(requests))


def _to_terminal(args, generator: Generator, requests: Sequence[Request], shows) -> None:
    shown = _draft_steps(args.show_denoising, min(r.config.steps for r in requests))
    samples = generate_requests(generator, requests, keep_drafts=bool(shown))
    texts = zip(requests, samples, shows, strict=True)
    for place, (request, sample, show) in enumerate(texts, 1):
        for step in shown:
            draft = sample.drafts[step - 1].text
            print(f"[{place} after step {step}/{request.config.steps}] {draft}")
        print(f"[{place}] {show(sample.text)}{CUT if sample.cut else ''}", flush=True)


def _draft_steps(spec: str | None, steps: int) -> tuple[int, ...]:
    if spec is None:
        return ()
    if spec == "auto":
        return tuple(sorted({max(1, steps * i // 5) for i in range(1, 5)}))
    try:
        shown = tuple(sorted({int(part) for part in spec.split(",")}))
    except ValueError as error:
        raise UserError(
            f"--show-denoising {spec!r}: give steps such as 1,5,10, or nothing for five of them."
        ) from error
    if not 1 <= shown[0] <= shown[-1] <= steps:
        raise UserError(f"--show-denoising {spec}: steps are 1 to {steps}.")
    return shown


@contextmanager
def opened(path: str | None) -> Iterator:
    """A context with the terminal, or with a file that takes the place of the one there once all
    is written; a pipe takes it as it comes.

    Raises:
      UserError: the file cannot be written.
    """
    if not path:
        yield sys.stdout
        return
    file = local_path(path)
    as_it_comes = file.exists() and not file.is_file()
    partial = file if as_it_comes else file.with_name(file.name + ".partial")
    try:
        out = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error
    with out:
        yield out
    if not as_it_comes:
        partial.replace(file)


def _to_file(path: str, requests: Sequence[Request], samples: Iterator[Sample]) -> None:
    with opened(path) as out:
        for request, sample in zip(requests, samples, strict=True):
            out.write(json.dumps(_record(request, sample)) + "\n")
    print(f"wrote {len(requests)} samples to {path}")


def _record(request: Request, sample: Sample) -> dict:
    asked = {"steps": request.config.steps, "seed": request.seed, "number": request.number}
    fields = {k: v for k, v in vars(sample).items() if k not in ("given", "drafts")}
    return fields | asked


def _to_page(args, generator: Generator, requests: Sequence[Request], task: Task | None) -> None:
    with opened(args.html) as out:
        panels = {}
        for steps in args.panels or (requests[0].config.steps,):
            of_panel = [replace(r, config=replace(r.config, steps=steps)) for r in requests]
            panels[steps] = list(generate_requests(generator, of_panel, keep_drafts=True))
        out.write(denoising_page(generator.in_blocks(requests[0].config.block_size), panels, task))
    print(f"wrote {len(requests)} samples at {', '.join(map(str, panels))} steps to {args.html}")


def _stream(generator: Generator, requests: Sequence[Request]) -> None:
    """Print a text as its blocks come."""
    if len(requests) != 1:
        raise UserError("--stream shows one text: leave --num-samples out, or give 1.")
    stream = TextStream(generator.in_blocks(requests[0].config.block_size), requests[0])

    def show(tokens_BxT):
        print(stream.add(tokens_BxT[0]), end="", flush=True)

    (sample,) = generate_requests(generator, requests, on_block=InOrder(show))
    jax.effects_barrier()  # the last block may still be on its way
    print(stream.rest(sample) + (CUT if sample.cut else ""))
    print(f"[{sample.evaluations} evaluations]")


def _spans(args, text: str) -> list[tuple[int, int]]:
    if bool(args.find) == bool(args.spans):
        raise UserError(
            "--revise needs --spans, characters such as 10:25,40:52, or --find PHRASE; not both."
        )
    return find_phrase(text, args.find) if args.find else parse_spans(args.spans)


def _revise(args, generator: Generator, revision: Revision, strength: float) -> None:
    if args.html or args.stream or args.show_denoising:
        raise UserError("--revise writes to the terminal or to --jsonl.")
    unchanged = 0
    with opened(args.jsonl) as out:
        for number, text in enumerate(revision.texts(generator, args.num_samples)):
            same = text == revision.original
            unchanged += same
            record = {"text": text, "changed": not same, "seed": args.seed, "number": number}
            line = f"[{number + 1}]{' (unchanged)' if same else ''} {text}"
            print(json.dumps(record) if args.jsonl else line, file=out, flush=True)
    if args.jsonl:
        print(f"wrote {args.num_samples} revisions to {args.jsonl}")
    if unchanged:
        print(
            f"{unchanged} of {args.num_samples} are as they were: with --strength {strength:g} "
            "much of the old text is kept. Give more, up to 1, or name a longer part.",
            file=sys.stderr,
        )
