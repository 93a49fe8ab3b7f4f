"""What a plan says: memory, communication and predicted speed, as a table and as JSON."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import jax

from ldlm_jax.config import Experiment
from ldlm_jax.data.dataset import vocab_size
from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import AXES
from ldlm_jax.parallel.sharding import Placement, placements, split_count
from ldlm_jax.plan.hardware import Chip
from ldlm_jax.plan.hlo import Cost, Program
from ldlm_jax.plan.target import OutOfMemory, Target

# Share of the peak that a fused attention kernel is taken to reach: its cycles are not in the
# compiler's listing. Forward it makes two products, in the fused backward pass five.
KERNEL_SHARE = 0.5
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 5}


def kernel_flops(name: str, shapes: list[tuple[str, str]]) -> float:
    """FLOPs of one run of an attention kernel on one device, every tile computed.

    Args:
      name: of the instruction, which says what it does.
      shapes: of its operands; queries and keys are the first two with four dimensions or more (of
        queries that share keys one more).
    """
    large = [tuple(int(n) for n in dims.split(",")) for _, dims in shapes if dims.count(",") >= 3]
    queries = next((dims for dims in large if dims[-1] >= 64), None)
    if queries is None:
        return 0.0
    keys = next((d for d in large if d[-1] == queries[-1] and d[-2] != queries[-2]), queries)
    products = next((n for kind, n in _PRODUCTS.items() if f"_{kind}_" in name), 2)
    return products * 2.0 * math.prod(queries) * keys[-2]


@dataclass(frozen=True)
class Forecast:
    """How long a step of one program should take, and why.

    Attributes:
      model_flops: of the step on all devices, without recomputation.
      chip_seconds: on the chip: the compiler's cycles, and attention kernels at ``KERNEL_SHARE`` of
        the peak.
      arithmetic_seconds: of them, what products at the peak would take.
      network_seconds: of everything that is sent, at the rate of all links.
      exposed_seconds: of it, what nothing hides.
      seconds: ``chip_seconds`` and ``exposed_seconds``, or ``network_seconds`` if that is longer.
      mfu: predicted model FLOPs utilisation.
      slowest: ``"arithmetic"``, ``"memory"`` or ``"network"``.
    """

    model_flops: float
    chip_seconds: float
    arithmetic_seconds: float
    network_seconds: float
    exposed_seconds: float
    seconds: float
    mfu: float
    slowest: str

    @classmethod
    def of(cls, cost: Cost, chip: Chip, model_flops: float, mesh) -> "Forecast":
        """From a program's cost on each device of a mesh."""
        kernels = sum(runs * kernel_flops(name, shapes) for name, runs, shapes in cost.kernels)
        chip_seconds = cost.cycles / chip.clock + kernels / (KERNEL_SHARE * chip.flops)
        network = _network_seconds(cost.collectives, chip, mesh)
        exposed = _network_seconds(cost.exposed, chip, mesh)
        arithmetic = _products_seconds(model_flops, chip, mesh)
        seconds = max(chip_seconds + exposed, network)
        slowest = "arithmetic" if arithmetic > chip_seconds / 2 else "memory"
        if network >= chip_seconds or exposed > chip_seconds / 2:
            slowest = "network"
        return cls(
            model_flops, chip_seconds, arithmetic, network, exposed, seconds,
            arithmetic / seconds, slowest,
        )  # fmt: skip


def memory_of(compiled, chip: Chip) -> dict[str, float]:
    """Bytes on each chip while a program runs."""
    sizes = compiled.memory_analysis()
    total = (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    )  # fmt: skip
    return {
        "arguments": sizes.argument_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
        "total": total,
        "share_of_hbm": total / chip.memory,
    }


def plan_step(target: Target, number: int) -> dict:
    """Memory, communication and forecast of the fused step in one phase."""
    experiment, chip = target.experiment, target.chip
    phase = experiment.phases[number]
    compiled = target.compile_step(phase)
    cost = Program(compiled.as_text(), experiment.diffusion.self_condition).cost()
    rows, window = experiment.train.batch_size, experiment.data.window
    flops = target.flops(phase)
    result = {
        "memory": memory_of(compiled, chip),
        "collective_bytes": dict(cost.collectives),
        "exposed_bytes": dict(cost.exposed),
        "flops": flops,
    }
    if chip.clock:
        forecast = Forecast.of(cost, chip, flops, target.mesh)
        result["forecast"] = asdict(forecast)
        result["tokens_per_second"] = rows * window / forecast.seconds
    else:
        arithmetic = _products_seconds(flops, chip, target.mesh)
        network = _network_seconds(cost.collectives, chip, target.mesh)
        result["bounds"] = {"arithmetic_seconds": arithmetic, "network_seconds": network,
                            "mfu_at_most": arithmetic / max(arithmetic, network)}  # fmt: skip
    return result


def _products_seconds(model_flops: float, chip: Chip, mesh) -> float:
    """What the products take at the peak of all devices."""
    return model_flops / mesh.size / chip.flops


def _network_seconds(sent: dict[str, float], chip: Chip, mesh) -> float:
    """What sending takes; sums of gradients also cross the slow network, if there is one."""
    # A sum that all receive is sent twice: in parts to be added up, and whole to all.
    near = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in sent.items())
    seconds = near / chip.network_rate
    if mesh.shape["slice"] > 1:
        within = mesh.size / mesh.shape["slice"]
        seconds += sent.get("all-reduce", 0.0) / within / chip.far_rate
    return seconds


def plan(
    target: Target,
    topology: str,
    programs: tuple[str, ...],
    begin: Callable[[str], None] = lambda _: None,
) -> dict:
    """Everything a plan says.

    Args:
      target: what for.
      topology: its name.
      programs: of ``"train"``, ``"eval"`` and ``"sample"``, which to compile.
      begin: takes the name of each part before it, which may take minutes.
    """
    begin("tracing the networks")
    placed = target.placements()
    result = {
        "topology": topology,
        "chip": target.chip.kind,
        "chips": target.mesh.size,
        "mesh": dict(target.mesh.shape),
        "batch_size": target.experiment.train.batch_size,
        "window": target.experiment.data.window,
        "parameters": sum(math.prod(p.shape) for p in placed),
        "parameter_bytes_per_chip": sum(p.bytes_per_device for p in placed),
        "state_bytes_per_chip": _bytes_per_chip(target.state()),
    }
    if "train" in programs:
        result["phases"] = []
        for number in range(len(target.experiment.phases)):
            begin(f"compiling the step of phase {number}")
            result["phases"].append(plan_step(target, number))
    if "eval" in programs:
        begin("compiling the evaluation")
        result["evaluation"] = memory_of(target.compile_evaluation(), target.chip)
    if "sample" in programs:
        begin("compiling the sampler")
        result["sampler"] = memory_of(target.compile_sampler(), target.chip)
    return result


def _bytes_per_chip(state) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def largest_batch(
    target: Target, most: int = 1 << 16, begin: Callable[[str], None] = lambda _: None
) -> int:
    """The largest batch, in doublings of what divides among the devices, that fits every phase.

    Args:
      target: what for.
      most: rows that are tried.
      begin: takes the name of each part before it.

    Raises:
      UserError: not even the smallest fits.
    """
    experiment = target.experiment
    rows, fits = experiment.train.batch_size, 0

    def fitting(rows: int) -> bool:
        begin(f"compiling the step with {rows} rows")
        train = replace(experiment.train, batch_size=rows)
        larger = replace(target, experiment=replace(experiment, train=train))
        try:
            for number in range(len(experiment.phases)):
                memory = memory_of(larger.compile_step(experiment.phases[number]), target.chip)
                if memory["share_of_hbm"] > 1:
                    return False
        except OutOfMemory:
            return False
        return True

    while rows <= most and fitting(rows):
        fits, rows = rows, 2 * rows
    if fits:
        return fits
    smallest = split_count(target.mesh, experiment.sharding, "batch")
    smallest *= experiment.train.microbatches
    rows //= 2
    while rows >= smallest and rows % smallest == 0:
        if fitting(rows):
            return rows
        rows //= 2
    raise UserError("not even the smallest batch fits; see the knobs that `ldlm plan` names.")


def table(result: dict) -> str:
    """A plan to read."""
    gib = 2**30
    mesh = " x ".join(f"{axis} {n}" for axis, n in result["mesh"].items() if n > 1) or "one device"
    lines = [
        f"{result['topology']}: {result['chips']} chips ({result['chip']}), mesh {mesh}",
        f"{result['parameters'] / 1e6:,.1f}M parameters; on each chip "
        f"{result['parameter_bytes_per_chip'] / gib:.2f} GiB of them, "
        f"{result['state_bytes_per_chip'] / gib:.2f} GiB with optimizer and average",
        f"batch {result['batch_size']} rows of {result['window']} tokens",
    ]
    for number, phase in enumerate(result.get("phases", [])):
        lines += [f"phase {number}", *_phase_lines(phase)]
    for name in ("evaluation", "sampler"):
        if name in result:
            lines.append(f"{name:12} {_memory_line(result[name])}")
    return "\n".join(lines)


def _memory_line(memory: dict) -> str:
    gib = 2**30
    return (
        f"{memory['total'] / gib:.2f} GiB on each chip ({memory['share_of_hbm']:.0%} of HBM): "
        f"arguments {memory['arguments'] / gib:.2f}, temporary {memory['temporary'] / gib:.2f}"
    )


def _phase_lines(phase: dict) -> list[str]:
    gib = 2**30
    sent = ", ".join(
        f"{kind} {size / gib:.2f} GiB ({phase['exposed_bytes'].get(kind, 0) / gib:.2f} exposed)"
        for kind, size in sorted(phase["collective_bytes"].items())
    )
    lines = [f"  memory     {_memory_line(phase['memory'])}", f"  sent       {sent or 'nothing'}",
             f"  FLOPs      {phase['flops']:.2e}"]  # fmt: skip
    if "forecast" not in phase:
        times = phase["bounds"]
        return [
            *lines,
            f"  at least   {times['arithmetic_seconds'] * 1e3:,.0f} ms a step for products at the "
            f"peak, {times['network_seconds'] * 1e3:,.0f} ms for the network; MFU at most "
            f"{times['mfu_at_most']:.1%} (no cycles are known for this chip)",
        ]
    times = phase["forecast"]
    return [
        *lines,
        f"  forecast   {times['seconds'] * 1e3:,.0f} ms a step: chip "
        f"{times['chip_seconds'] * 1e3:,.0f} "
        f"(products at the peak {times['arithmetic_seconds'] * 1e3:,.0f}), exposed network "
        f"{times['exposed_seconds'] * 1e3:,.0f} of {times['network_seconds'] * 1e3:,.0f}; slowest: "
        f"{times['slowest']}",
        f"             {phase['tokens_per_second']:,.0f} tokens/s, MFU {times['mfu']:.1%}",
    ]


def explain(placed: list[Placement]) -> str:
    """Every parameter with its logical axes, where they are split, and its bytes on a device."""
    rows = [("parameter", "shape", "logical axes", "split over", "bytes/device")]
    for p in placed:
        axes = ", ".join(axis or "-" for axis in p.axes)
        spec = ", ".join("+".join(x) if isinstance(x, tuple) else x or "-" for x in p.spec)
        rows.append((p.name, "x".join(map(str, p.shape)), axes, spec, f"{p.bytes_per_device:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def sharding_table(experiment: Experiment, devices: int) -> list[list]:
    """Name, shape, split axes and bytes on a device of every parameter, on absent devices."""
    mesh = jax.sharding.AbstractMesh(experiment.mesh.shape(devices), AXES)
    boxed = experiment.networks(vocab_size(experiment.data), 1).abstract(experiment.data.window)
    return [
        [p.name, list(p.shape), str(p.spec), p.bytes_per_device]
        for p in placements(boxed, mesh, experiment.sharding)
        if not p.name.startswith("align")  # as wide as the teacher, which need not be at hand
    ]
