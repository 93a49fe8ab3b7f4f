"""What a compiled program costs, read from the compiler's own listing of it.

The compiler for TPUs notes beside each instruction how many cycles it expects; loops are listed
once, so their bodies are counted as often as they run.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?<![\w%.\-])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b(pred|[su]\d+|f8\w*|f16|f32|f64|bf16|c64)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TWO_WAY = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"constant\((\d+)\)")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}


def _size(kind: str) -> float:
    return _BYTES.get(kind) or (1 if kind.startswith("f8") else int(kind[1:]) / 8)


@dataclass(frozen=True)
class Instruction:
    """One line: its name, result, operation and everything after it."""

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtypes and dimensions of the result's arrays."""
        return [
            (kind, tuple(int(n) for n in dims.split(",") if n))
            for kind, dims in _SHAPE.findall(self.result)
        ]

    @property
    def result_bytes(self) -> float:
        """Bytes of the result; of an operation's start, which also lists its input, the largest."""
        sizes = [math.prod(dims) * _size(kind) for kind, dims in self.shapes]
        return max(sizes, default=0.0) if self.opcode.endswith("-start") else sum(sizes)

    def called(self, name: str) -> str:
        """A computation named by an attribute."""
        return re.search(rf"{name}=%?([\w.\-]+)", self.rest).group(1)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computations by name, and the name of the first that runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header.group(1), [])
            if line.startswith("ENTRY"):
                entry = header.group(1)
            continue
        found = _INSTRUCTION.match(line) if current is not None else None
        if found:
            name, rest = found.groups()
            opcode = _OPCODE.search(rest)
            if opcode:
                at = opcode.start()
                current.append(Instruction(name, rest[:at], opcode.group(1), rest[at:]))
    return computations, entry


@dataclass
class Cost:
    """What running a computation costs on each device.

    Attributes:
      cycles: expected by the compiler, kernels of others left out.
      kernels: shapes of the operands of each such kernel's runs, by name: (runs, operands).
      collectives: bytes of what operations of each kind give, which is about what is received.
      exposed: those of them for which everything waits.
    """

    cycles: float = 0.0
    kernels: list[tuple[str, float, list]] = field(default_factory=list)
    collectives: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    exposed: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Cost", times: float = 1.0) -> None:
        """Add another, run so many times."""
        self.cycles += times * other.cycles
        self.kernels += [(name, runs * times, shapes) for name, runs, shapes in other.kernels]
        for mine, theirs in (
            (self.collectives, other.collectives),
            (self.exposed, other.exposed),
        ):
            for kind, size in theirs.items():
                mine[kind] += times * size


class Program:
    """A compiled program's listing, to be asked for its cost."""

    def __init__(self, text: str, branch_share: float = 0.5):
        """Parse.

        Args:
          text: ``compiled.as_text()``.
          branch_share: how often the dearer branch of a condition is taken.
        """
        self._computations, self._entry = parse(text)
        self._share = branch_share
        self._known: dict[str, Cost] = {}

    def cost(self) -> Cost:
        """Of one run."""
        return self._of(self._entry)

    def trips(self, condition: str) -> int:
        """How often a loop with that condition runs: the bound its counter is compared with."""
        bounds = [
            int(match.group(1))
            for instruction in self._computations[condition]
            if (match := _CONSTANT.search(instruction.rest))
        ]
        return max(bounds, default=1)

    def _of(self, name: str) -> Cost:
        if name not in self._known:
            total, channels = Cost(), set()
            for instruction in self._computations.get(name, []):
                total.add(self._instruction(instruction, channels))
            self._known[name] = total
        return self._known[name]

    def _instruction(self, instruction: Instruction, channels: set) -> Cost:
        cost, opcode = Cost(), instruction.opcode
        cycles = _CYCLES.search(instruction.rest)
        if cycles:
            cost.cycles = float(cycles.group(1))
        kind = next((k for k in COLLECTIVES if opcode in (k, f"{k}-start")), None)
        if kind:
            self._count(cost, instruction, kind, channels, waits=not opcode.endswith("-start"))
        elif opcode == "while":
            known = _TRIPS.search(instruction.rest)
            trips = int(known.group(1)) if known else self.trips(instruction.called("condition"))
            cost.add(self._of(instruction.called("body")), trips)
        elif opcode == "conditional":
            self._branches(cost, instruction)
        elif opcode == "call":
            cost.add(self._of(instruction.called("to_apply")))
        elif opcode == "fusion":
            for inner in self._computations.get(instruction.called("calls"), []):
                kind = next((k for k in COLLECTIVES if inner.opcode == k), None)
                if kind:
                    alone = "async" not in instruction.rest.split("metadata")[0] + instruction.name
                    # How this compiler writes a sum of which each device keeps a part.
                    if "all-reduce-scatter" in instruction.called("calls"):
                        kind = "reduce-scatter"
                    self._count(cost, inner, kind, channels, waits=alone)
        elif opcode == "custom-call" and "tpu_custom_call" in instruction.rest:
            cost.kernels.append(
                (instruction.name, 1.0, _SHAPE.findall(instruction.rest.split("metadata")[0]))
            )
        return cost

    def _count(
        self, cost: Cost, instruction: Instruction, kind: str, channels: set, waits: bool
    ) -> None:
        """An operation whose start, middle and end are listed apart counts once."""
        channel = _CHANNEL.search(instruction.rest)
        if channel and channel.group(1) in channels:
            return
        if channel:
            channels.add(channel.group(1))
        cost.collectives[kind] += instruction.result_bytes
        if waits:
            cost.exposed[kind] += instruction.result_bytes

    def _branches(self, cost: Cost, instruction: Instruction) -> None:
        listed = _BRANCHES.search(instruction.rest)
        names = (
            [name.strip().lstrip("%") for name in listed.group(1).split(",")]
            if listed
            else _TWO_WAY.findall(instruction.rest)
        )
        branches = sorted((self._of(name) for name in names), key=lambda branch: branch.cycles)
        cost.add(branches[-1], self._share)
        cost.add(branches[0], 1 - self._share)
