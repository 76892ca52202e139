"""Read a compiled program: which work is done on a device, and how much it receives."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
WIDTHS = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "u16": 2, "f16": 2, "pred": 1}
SHAPE = re.compile(rf"\b({'|'.join(WIDTHS)})\[([\d,]*)\]")


class Collective(NamedTuple):
    """A kind of collective, how often it runs, and the bytes of its results on a device."""

    kind: str
    times: int
    size: int


class Program:
    """The instructions of a compiled program by computation, loops with their trip counts.

    Args:
        text: of `compiled.as_text()`; one program stands for all devices.
    """

    def __init__(self, text: str):
        self._bodies: dict[str, list[str]] = {}
        self._entry = name = ""
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                name = head[2]
                self._bodies[name] = []
                self._entry = name if head[1] else self._entry
            elif name and " = " in line:  # the header has some, too
                self._bodies[name].append(line.strip().removeprefix("ROOT "))

    @property
    def collectives(self) -> list[Collective]:
        """What is sent, in the program's order."""
        return [
            Collective(found[2], times, _size(found[1]))
            for _, line, times in self._lines(self._entry)
            if (found := re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line))
        ]

    @property
    def received(self) -> int:
        """Bytes of the collectives' results on a device, its own part among them."""
        return sum(one.times * one.size for one in self.collectives)

    @property
    def product_flops(self) -> int:
        """Floating-point operations of the matrix products on a device, 2 for each term."""
        total = 0
        for body, line, times in self._lines(self._entry):
            if found := re.search(r"= (.*?) dot\(%?([\w.\-]+).*lhs_contracting_dims=\{(\d+)", line):
                left = _dimensions(self._type(body, found[2]))
                total += 2 * times * math.prod(_dimensions(found[1])) * left[int(found[3])]
        return total

    def _lines(self, body: str, times: int = 1) -> Iterator[tuple[str, str, int]]:
        """Yield each instruction with its computation, and how often it runs."""
        for line in self._bodies[body]:
            yield body, line, times
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            inner = times * int(count[1]) if count else times
            for name in re.findall(r"(?:calls|body|to_apply|true_computation)=%?([\w.\-]+)", line):
                yield from self._lines(name, inner)
            if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                yield from self._lines(branches[1].split(",")[0].strip(" %"), inner)

    def _type(self, body: str, name: str) -> str:
        (line,) = (one for one in self._bodies[body] if re.match(rf"%?{re.escape(name)} = ", one))
        return line.split(" = ", 1)[1]


def _dimensions(text: str) -> list[int]:
    found = SHAPE.search(text)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _size(text: str) -> int:
    return sum(
        WIDTHS[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in SHAPE.findall(text)
    )
