"""``ldlm``: flags to functions, nothing else."""

import argparse
import ast
import contextlib
import errno
import logging
import os
import sys
from functools import partial
from itertools import islice
from pathlib import Path

from ldlm_jax import version_of
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals.flags import EXAMPLES as EVAL_EXAMPLES
from ldlm_jax.evals.flags import add_eval_flags
from ldlm_jax.plan.command import add_plan_flags, run_plan
from ldlm_jax.sampling.output import EXAMPLES, add_flags
from ldlm_jax.serving.command import add_export_flags, add_serve_flags, run_export, run_server
from ldlm_jax.serving.completion import add_completion_flags, print_completion
from ldlm_jax.telemetry.watchdog import supervise
from ldlm_jax.validate import Natural, check_flags, local_path

_DISK_TROUBLE = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT}


def _data(args, overrides) -> None:
    from ldlm_jax.config import load_config, resolve
    from ldlm_jax.data.beam import maker
    from ldlm_jax.data.corpora import REGISTRY
    from ldlm_jax.data.dataset import on_all_cores, prepare
    from ldlm_jax.data.files import files_not_read
    from ldlm_jax.data.texts import read_texts

    if args.list:
        for name, corpus in REGISTRY.items():
            print(f"{name:10} {corpus.description}")
        return
    if args.source and "=" in args.source and not local_path(args.source).exists():
        overrides = [args.source, *overrides]  # an override where a source may stand
    elif args.source:
        overrides = [*overrides, f"data.source={args.source!r}"]
    experiment = resolve(load_config(_config_file(args.config), overrides))
    config = experiment.data
    prepared = prepare(config, on_all_cores if args.beam is None else maker(args.beam))
    print(f"{config.source}: {prepared.packed}")
    for text in islice(read_texts(prepared.text, "train"), 3):
        print(f"  | {text[:90]}")
    for file in files_not_read(local_path(config.source)):
        print(f"  not read: {file}")
    print(f"vocabulary {prepared.tokenizer.vocab_size}, windows of {config.window} tokens")
    print(
        f"{'split':12}{'documents':>10}{'windows':>9}{'tokens':>12}{'bytes/token':>13}{'filled':>8}"
    )
    for split in ("train", "validation", "test"):
        s = prepared.stats[split]
        print(
            f"{split:12}{s['documents']:>10,}{s['windows']:>9,}{s['tokens']:>12,}"
            f"{s['bytes_per_token']:>13.2f}{s['filled']:>8.1%}"
        )
    if args.teacher:
        from ldlm_jax.parallel.mesh import make_mesh
        from ldlm_jax.teachers.loader import write_cache

        print(f"features: {write_cache(experiment, prepared, make_mesh(experiment.mesh))}")


def _packaged_configs() -> dict[str, Path]:
    """The configs of this project by name: of an installed package, or of a clone."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def _config_file(name: str | None) -> str | None:
    """A file, or the packaged config of that name."""
    if name is None or local_path(name).is_file():
        return name
    known = _packaged_configs()
    if Path(name).stem in known and Path(name).parent in (Path("."), Path("configs")):
        return str(known[Path(name).stem])
    raise UserError(f"no config file {name}; {did_you_mean(Path(name).stem, known)}")


def _configs(args, overrides) -> None:
    _no_overrides(overrides)
    for name, file in _packaged_configs().items():
        first = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]
        print(f"{name:24} {first}")


def _train(args, overrides) -> int | None:
    check_flags(args, {"max_restarts": Natural})
    if args.max_restarts:
        return supervise(args.argv, args.max_restarts)
    from ldlm_jax.config import load_config, resolve
    from ldlm_jax.parallel.distributed import Processes, join
    from ldlm_jax.train import train

    join(Processes(args.coordinator, args.num_processes, args.process_id, args.join_timeout))
    config = load_config(_config_file(args.config), overrides)
    if args.dry_run:
        from ldlm_jax.plan.dry_run import dry_run

        print(dry_run(resolve(config)))
        return None
    if not args.workdir:
        raise UserError("--workdir names the folder of the run; only --dry-run needs none.")
    train(config, args.workdir, args.init, [name for name in args.log.split(",") if name])
    return None


def _plan(args, overrides) -> None:
    from ldlm_jax.config import load_config, resolve

    run_plan(args, resolve(load_config(_config_file(args.config), overrides)))


def _sample(args, overrides) -> None:
    from ldlm_jax.sampling import output

    _no_overrides(overrides)
    output.run(args, partial(_open, args))


def _open(args):
    """The model that --workdir or --model names."""
    if args.workdir is not None:
        from ldlm_jax.workdir import load_run

        return load_run(args.workdir, args.step)
    from ldlm_jax.serving.hub import open_model

    return open_model(args.model, args.step)


def _serve(args, overrides) -> None:
    _no_overrides(overrides)
    run_server(args, partial(_open, args))


def _export(args, overrides) -> None:
    _no_overrides(overrides)
    run_export(args)


def _eval(args, overrides) -> None:
    from ldlm_jax.evals.command import run_eval

    _no_overrides(overrides)
    run_eval(args, partial(_open, args))


def _no_overrides(overrides) -> None:
    if overrides:
        raise UserError(
            f"unknown argument {overrides[0]!r}: a finished run keeps its config; see --help for "
            "the flags."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldlm", description="Latent diffusion language models in JAX."
    )
    parser.add_argument("--version", action="version", version=f"ldlm_jax {version_of('ldlm_jax')}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True)
    overriding = (
        "any config value can be overridden: section.key=value, "
        "e.g. train.num_steps=100 phases.0.until=50"
    )

    data = commands.add_parser("data", help="prepare a corpus", epilog=overriding)
    data.add_argument("source", nargs="?", help="corpus name, file, folder or tfds:NAME")
    data.add_argument("--config", help="config whose data section to prepare")
    data.add_argument(
        "--teacher", action="store_true", help="also write the features of the config's teacher"
    )
    data.add_argument(
        "--beam", nargs="?", const="", metavar="OPTIONS",
        help="tokenise and pack with Apache Beam, e.g. --beam='--runner=FlinkRunner ...'; every "
        "worker must see data.root",
    )  # fmt: skip
    data.add_argument("--list", action="store_true", help="list the named corpora")
    data.set_defaults(run=_data)

    configs = commands.add_parser("configs", help="list the configs of this project")
    configs.set_defaults(run=_configs)

    _train_flags(commands, overriding)
    plan = commands.add_parser(
        "plan", help="compile a config for devices that are not there", epilog=overriding
    )
    add_plan_flags(plan)
    plan.set_defaults(run=_plan)
    sample = commands.add_parser(
        "sample", help="write text", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_flags(sample)
    sample.set_defaults(run=_sample)

    server = commands.add_parser("serve", help="serve completions over HTTP")
    add_serve_flags(server)
    server.set_defaults(run=_serve)
    export = commands.add_parser("export", help="write a run's model in the Hub's format")
    add_export_flags(export)
    export.set_defaults(run=_export)

    evaluate = commands.add_parser(
        "eval", help="measure a run", epilog=EVAL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_eval_flags(evaluate)
    evaluate.set_defaults(run=_eval)
    completion = commands.add_parser("completion", help="print a shell's completion of this")
    add_completion_flags(completion)
    completion.set_defaults(run=lambda args, overrides: print_completion(args.shell, parser))
    return parser


def _train_flags(commands, overriding: str) -> None:
    train = commands.add_parser("train", help="train, or resume", epilog=overriding)
    train.add_argument("--config", required=True, help="config file, or name (ldlm configs)")
    train.add_argument("--workdir", help="folder of the run")
    train.add_argument("--dry-run", action="store_true",
                       help="only resolve, build and compile; print shapes and memory")  # fmt: skip
    train.add_argument("--init", default="", metavar="DIR",
                       help="begin with the weights of this exported model")  # fmt: skip
    train.add_argument("--log", default="", metavar="NAMES",
                       help="also log to these: wandb, mlflow, joined by a comma")  # fmt: skip
    together = train.add_argument_group(
        "several processes", "Cloud TPU, GKE, SLURM and Open MPI need none of these"
    )
    together.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    together.add_argument("--num-processes", type=int, help="how many there are")
    together.add_argument("--process-id", type=int, help="which one this is, from 0")
    together.add_argument(
        "--join-timeout", type=int, default=300, help="seconds to wait for the others"
    )
    train.add_argument(
        "--max-restarts", type=int, default=0, metavar="N",
        help="start again, from the last checkpoint, so often after a crash or a stall (default 0)",
    )  # fmt: skip
    train.set_defaults(run=_train)


def _configure_jax(args) -> None:
    """Reuse compiled programs between runs; plans use no device but the host."""
    import jax

    if args.command == "plan":
        from ldlm_jax.plan.hardware import count_of, gpu_of

        if gpu_of(args.topology):
            jax.config.update("jax_num_cpu_devices", max(1, count_of(args.topology)))
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
        # Of the host alone, so that libtpu does not complain that it has no TPU.
        for name, value in (("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"), ("TPU_SKIP_MDS_QUERY", "1"),
                            ("TPU_STDERR_LOG_LEVEL", "3"), ("TPU_MIN_LOG_LEVEL", "3"),
                            ("TPU_WORKER_HOSTNAMES", "localhost"),
                            ("TPU_ACCELERATOR_TYPE", "v5litepod-4")):  # fmt: skip
            os.environ.setdefault(name, value)
        return  # programs for absent devices cannot be read back
    cache = os.path.expanduser("~/.cache/ldlm_jax")
    # A user without a home, or with one that cannot be written, compiles anew.
    with contextlib.suppress(OSError):
        if jax.config.jax_compilation_cache_dir is None and os.path.isabs(cache):
            os.makedirs(cache, exist_ok=True)
            if os.access(cache, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", cache)


def _open_closed_streams() -> None:
    """Give closed streams (``2>&-``) a place: else a file of ours takes the number of one, and gets
    what libraries write there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            mode = "r" if number == 0 else "w"
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a user's error)."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot spell is shown in another way
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)
    if any(word.startswith("-") or "=" not in word for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        _configure_jax(args)
        code = args.run(args, rest)
    except UserError as error:
        if args.debug:
            raise
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)  # names may have lines
        return 2
    except BrokenPipeError:  # as by `ldlm sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug or error.errno not in _DISK_TROUBLE:
            raise
        print(
            f"error: {error.filename or 'cannot write'}: {error.strerror}. Free some space or "
            "choose a folder that can be written; what was saved before is untouched.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; start the same command again to resume", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
