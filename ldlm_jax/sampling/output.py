"""``ldlm sample``: from flags to requests, and from samples to the terminal, a file or a page."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import SampleConfig, knobs
from ldlm_jax.sampling.generate import Generator, Sample, generate_requests
from ldlm_jax.sampling.page import denoising_page
from ldlm_jax.sampling.request import Request, read_requests
from ldlm_jax.sampling.template import cut_spans, parse_spans
from ldlm_jax.workdir import load_run


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """Flags for the run, and one for each knob of ``SampleConfig``."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    group = parser.add_argument_group("how to sample", "defaults are those of the run's config")
    for name, knob in knobs().items():
        names = [f"--{n.replace('_', '-')}" for n in (name, knob.metadata["was"]) if n]
        kind = next((t for t in (knob.type, *get_args(knob.type)) if t in (int, float)), str)
        group.add_argument(*names, dest=name, type=kind, help=knob.metadata["help"])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm sample`` understands."""
    add_knobs(parser)
    parser.add_argument("--num-samples", type=int, default=8, help="texts (default: 8)")
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


def config_of(args, run) -> SampleConfig:
    """The run's sampling section with the flags that were given."""
    given = {name: value for name in knobs() if (value := getattr(args, name)) is not None}
    return replace(run.experiment.sample, **given)


def run(args) -> None:
    """Generate what was asked for."""
    asked = [name for name in ("prompt", "suffix", "template", "revise", "requests")
             if getattr(args, name)]  # fmt: skip
    if len(asked) > 1 and asked != ["prompt", "suffix"]:
        raise UserError(f"--{asked[0]} and --{asked[1]} do not go together.")
    run = load_run(args.workdir, args.step)
    with run.use_sharding():
        _write(args, run.generator, config_of(args, run))


def _write(args, generator: Generator, config: SampleConfig) -> None:
    if args.revise:
        _revise(args, generator, Revision.read(args.revise, args.spans, config, args.seed))
        return
    if args.requests:
        requests = read_requests(args.requests, config, args.seed)
    else:
        request = Request(args.prompt, args.seed, 0, config, args.suffix, args.template)
        requests = request.several(args.num_samples)
    if args.html:
        _to_page(args, generator, requests)
    elif args.jsonl:
        _to_file(args.jsonl, requests, generate_requests(generator, requests))
    elif args.stream:
        _stream(generator, requests)
    else:
        _to_terminal(args, generator, requests)


def _to_terminal(args, generator: Generator, requests: Sequence[Request]) -> None:
    shown = _draft_steps(args.show_denoising, min(r.config.steps for r in requests))
    samples = generate_requests(generator, requests, keep_drafts=bool(shown))
    for place, (request, sample) in enumerate(zip(requests, samples, strict=True), 1):
        for step in shown:
            draft = sample.drafts[step - 1].text
            print(f"[{place} after step {step}/{request.config.steps}] {draft}")
        print(f"[{place}] {sample.text}", flush=True)


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
def _open(path: str) -> Iterator:
    try:
        out = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error
    with out:
        yield out


def _to_file(path: str, requests: Sequence[Request], samples: Iterator[Sample]) -> None:
    with _open(path) as out:
        for request, sample in zip(requests, samples, strict=True):
            out.write(json.dumps(_record(request, sample)) + "\n")
    print(f"wrote {len(requests)} samples to {path}")


def _record(request: Request, sample: Sample) -> dict:
    asked = {"steps": request.config.steps, "seed": request.seed, "number": request.number}
    fields = {k: v for k, v in vars(sample).items() if k not in ("given", "drafts")}
    return fields | asked


def _to_page(args, generator: Generator, requests: Sequence[Request]) -> None:
    with _open(args.html) as out:
        panels = {}
        for steps in args.panels or (requests[0].config.steps,):
            of_panel = [replace(r, config=replace(r.config, steps=steps)) for r in requests]
            panels[steps] = list(generate_requests(generator, of_panel, keep_drafts=True))
        out.write(denoising_page(generator.in_blocks(requests[0].config.block_size), panels))
    print(f"wrote {len(requests)} samples at {', '.join(map(str, panels))} steps to {args.html}")


def _stream(generator: Generator, requests: Sequence[Request]) -> None:
    """Print blocks as they come: their own text."""
    if len(requests) != 1 or not generator.diffusion.block_size:
        raise UserError("--stream shows one text (--num-samples 1) of a model with blocks.")
    tokens: list[int] = []
    printed = ""

    def on_block(_, tokens_BxT):
        nonlocal printed
        tokens.extend(map(int, tokens_BxT[0]))
        text = generator.tokenizer.decode(tokens)
        # Half a character comes out as the replacement mark; the rest of it is in the next block.
        whole = text.rstrip("\ufffd")
        print(whole[len(printed) :], end="", flush=True)
        printed = whole

    (sample,) = generate_requests(generator, requests, on_block=on_block)
    print(f"\n[{sample.evaluations} evaluations]")


@dataclass(frozen=True)
class Revision:
    """A text file of which spans are rewritten. A paragraph is a document of its own.

    Attributes:
      parts: paragraphs and what stands between them, in turn.
      requests: for the paragraphs that a span touches, by their place in ``parts``.
    """

    parts: tuple[str, ...]
    requests: dict[int, Request]

    @classmethod
    def read(cls, path: str, spec: str, config: SampleConfig, seed: int) -> "Revision":
        """The revision of a file's spans (see ``template.parse_spans``).

        Raises:
          UserError: the file cannot be read, or a span is outside of it or crosses paragraphs.
        """
        if not spec:
            raise UserError("--revise needs --spans: characters such as 10:25,40:52.")
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}.") from error
        spans = parse_spans(spec)
        cut_spans(text, spans)  # raises where one is outside
        parts, requests, at = re.split(r"(\n\s*\n)", text), {}, 0
        for place, part in enumerate(parts):
            end = at + len(part)
            inside = [(b - at, e - at) for b, e in spans if b < end and e > at]
            if inside and (place % 2 or inside[0][0] < 0 or inside[-1][1] > len(part)):
                raise UserError(f"a span of {spec} crosses paragraphs: give one for each.")
            if inside:
                pieces = cut_spans(part, inside)
                requests[place] = Request(seed=seed, config=config, revise=pieces)
            at = end
        return cls(tuple(parts), requests)

    def texts(self, generator: Generator, count: int) -> Iterator[str]:
        """The file with its spans rewritten, ``count`` times."""
        groups = [request.several(count) for request in self.requests.values()]
        samples = generate_requests(
            generator, [request for turn in zip(*groups, strict=True) for request in turn]
        )
        for _ in range(count):
            new = {place: next(samples).text for place in self.requests}
            yield "".join(new.get(place, part) for place, part in enumerate(self.parts))


def _revise(args, generator: Generator, revision: Revision) -> None:
    if args.html or args.stream or args.show_denoising:
        raise UserError("--revise writes to the terminal or to --jsonl.")
    texts = revision.texts(generator, args.num_samples)
    if not args.jsonl:
        for place, text in enumerate(texts, 1):
            print(f"[{place}] {text}", flush=True)
        return
    with _open(args.jsonl) as out:
        for number, text in enumerate(texts):
            out.write(json.dumps({"text": text, "seed": args.seed, "number": number}) + "\n")
    print(f"wrote {args.num_samples} revisions to {args.jsonl}")
