"""``ldlm serve`` and ``ldlm export``: their flags, and what they run."""

import argparse
import os
from collections.abc import Callable
from typing import Annotated

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.output import add_model
from ldlm_jax.validate import Count, Positive, check_flags, local_path
from ldlm_jax.workdir import LoadedRun, load_run

_FLAGS = {
    "port": Annotated[int, "[0, 65535]"], "max_batch": Count, "queue": Count, "timeout": Positive,
}  # fmt: skip


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm serve`` understands."""
    add_model(parser)
    parser.epilog = "LDLM_API_KEY in the environment is the key that clients must send"
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--max-batch", type=int, default=32, help="texts at once (default: 32)")
    parser.add_argument("--queue", type=int, default=256, help="that may wait (default: 256)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds for a request (default: 120)"
    )


def run_server(args, load: Callable[[], LoadedRun]) -> None:
    """Serve the model that ``load`` returns."""
    try:
        from ldlm_jax.serving.server import Limits, ServerConfig, serve
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install '.[serve]'.") from error

    check_flags(args, _FLAGS)
    if args.queue < args.max_batch:
        raise UserError(
            f"--queue = {args.queue}: must hold a batch of --max-batch = {args.max_batch}."
        )
    run = load()
    config = ServerConfig(
        run.path.resolve().name, Limits(args.max_batch, args.queue), args.timeout,
        api_key=os.environ.get("LDLM_API_KEY", ""),
    )  # fmt: skip
    serve(run, config, args.host, args.port)


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that ``ldlm export`` understands."""
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"),
        help="of the parameters in the file (default: float32)",
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="folder to write, new or empty")


def run_export(args) -> None:
    """Write the folder."""
    from ldlm_jax.serving.export import export

    export(load_run(args.workdir, args.step), local_path(args.out), args.dtype)
    print(f"wrote {args.out}")
