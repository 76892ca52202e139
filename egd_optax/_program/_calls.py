"""Programs inside programs: calls, branches, loops, shards."""

from collections.abc import Callable, Sequence
from typing import Any

from egd_optax._program import _layouts as layouts
from egd_optax._program._layouts import Cut, Layout
from egd_optax._program._values import Value, moved, names, shape_of, union

Run = Callable[[Any, Sequence[Value]], list[Value]]
Rule = Callable[[Run, Any, list[Value]], list[Value]]
PASSES = 8  # through a loop at most, and one for each of its carry's values; two or three do


def program_of(equation: Any) -> Any:
    """Return the program that a call runs."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
    inner = next(equation.params[key] for key in keys if key in equation.params)
    return getattr(inner, "jaxpr", inner)


def _call(run: Run, equation: Any, operands: list[Value]) -> list[Value]:
    inner = program_of(equation)
    return run(inner, operands[len(operands) - len(inner.invars) :])


def _cond(run: Run, equation: Any, operands: list[Value]) -> list[Value]:
    ends = [run(branch, operands[1:]) for branch in equation.params["branches"]]
    return _either(ends, equation.outvars)


def _while(run: Run, equation: Any, operands: list[Value]) -> list[Value]:
    """Follow the body; the condition has no gradient."""
    before, constants = (equation.params[f"{name}_nconsts"] for name in ("cond", "body"))
    fixed, carry = operands[before : before + constants], operands[before + constants :]
    body = equation.params["body_jaxpr"]
    return _settled(lambda carry: run(body, [*fixed, *carry]), carry, equation.outvars)


def _scan(run: Run, equation: Any, operands: list[Value]) -> list[Value]:
    """Walk over the scanned inputs: their first axis is one of batch.

    Constants, carry, scanned inputs: JAX's versions say their numbers in different ways, shapes do.
    """
    length, body = equation.params["length"], program_of(equation)
    last = len(operands) - _longer(equation.invars, body.invars)
    first = last - len(equation.outvars) + _longer(equation.outvars, body.outvars)
    fixed, carry, scanned = operands[:first], operands[first:last], operands[last:]
    entries = [moved(value, _first_entry) for value in scanned]
    walks = frozenset(
        Cut(factor, None, 1)
        for value in scanned
        for layout in (*(view.layout for view in value.views.values()), *value.columns)
        for factor in layout.at([0])
    )
    outputs: list[Value] = []

    def step(carry: list[Value]) -> list[Value]:
        outputs[:] = run(body, [*fixed, *carry, *entries])
        return outputs[: last - first]

    carry = _settled(step, carry, equation.outvars[: last - first])
    stack = [
        moved(value, lambda layout: layouts.stacked(layout, length, walks))
        for value in outputs[last - first :]
    ]
    return [*carry, *stack]


def _longer(whole: Sequence[Any], entries: Sequence[Any]) -> int:
    """Return how many values have an axis more outside of a loop's body than in it."""
    pairs = zip(whole, entries, strict=True)
    return sum(len(shape_of(one)) > len(shape_of(entry)) for one, entry in pairs)


def _first_entry(layout: Layout) -> Layout:
    return layouts.without(layouts.in_turn(layout, [0]), [0])


def _shard_map(run: Run, equation: Any, operands: list[Value]) -> list[Value]:
    """Follow one shard: its axes are shorter than those of the whole."""
    inner = equation.params["jaxpr"]
    shards = map(_as_large_as, operands, getattr(inner, "jaxpr", inner).invars)
    return list(map(_as_large_as, run(inner, list(shards)), equation.outvars))


def _as_large_as(value: Value, variable: Any) -> Value:
    shape = shape_of(variable)

    def resized(layout: Layout) -> Layout:
        return layouts.resized(layout, shape)

    return moved(value, resized)


def _settled(
    step: Callable[[list[Value]], list[Value]], carry: list[Value], variables: Sequence[Any]
) -> list[Value]:
    """Repeat a loop's step until what is known of its carry does not change."""
    for _ in range(PASSES + 2 * len(carry)):
        after = _either([carry, step(carry)], variables)
        if after == carry:
            break
        carry = after
    return carry


def _either(ends: Sequence[Sequence[Value]], variables: Sequence[Any]) -> list[Value]:
    """Return what is known of values that come from one branch or another."""
    return [
        union(values, shape_of(variable))
        for values, variable in zip(zip(*ends, strict=True), variables, strict=True)
    ]


INLINED = names(
    "jit pjit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr custom_vmap_call custom_partitioning composite"
)
CALLS: dict[str, Rule] = {
    **dict.fromkeys(INLINED, _call),
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "shard_map": _shard_map,
}
