"""Reads a loss: follows every parameter through the program to the operations that use it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from egd_optax import _selection as selection
from egd_optax._decisions import LeafAxes
from egd_optax._program._calls import CALLS, program_of
from egd_optax._program._layouts import whole
from egd_optax._program._mixing import MIXES
from egd_optax._program._moves import MOVES
from egd_optax._program._products import PRODUCTS
from egd_optax._program._record import Record, is_real
from egd_optax._program._trace import is_array, traced
from egd_optax._program._values import (
    CONSTANT,
    DATA,
    GIVEN,
    Value,
    View,
    forgotten,
    without_gradient,
)

READINGS = 5  # of a loss at most; two do, or three


def read_program(loss: Callable, params: Any, examples: Sequence[Any]) -> dict[str, LeafAxes]:
    """Return what `loss(params, *examples)` says of each parameter, by path.

    It is traced on shapes: nothing is computed, nothing is allocated.

    Raises:
        ValueError: the loss cannot be traced, is no scalar, or does not use the parameters.
    """
    program = traced(loss, params, examples)
    leaves = selection.leaves_by_path(params)
    arrays = [(path, leaf) for path, leaf in leaves.items() if is_array(leaf)]
    record = Record()
    values = [_parameter(record, number, leaf) for number, (_, leaf) in enumerate(arrays)]
    examples_given = len(program.jaxpr.invars) - len(values)
    values += [DATA] * examples_given
    reader = Reader(record, GIVEN if examples_given else DATA)
    (value,) = reader.run(program.jaxpr, values)
    for _ in range(READINGS):
        if not record.again(value.behind):
            break
        (value,) = reader.run(program.jaxpr, values)
    if not any(value.behind & record.source(number) for number in range(len(arrays))):
        raise ValueError(
            "The loss does not use its first argument, the parameters: no gradient reaches any of "
            f"{selection.listed([path for path, _ in arrays], 5)}. Is it called as loss(params, "
            "*examples)?"
        )
    return {
        path: record.decision(number, path, tuple(leaf.shape))
        for number, (path, leaf) in enumerate(arrays)
    }


def _parameter(record: Record, number: int, leaf: Any) -> Value:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return CONSTANT
    return Value(behind=record.source(number), views={number: View(whole(tuple(leaf.shape)))})


def _is_whole(equation: Any, operands: Sequence[Value], results: Sequence[Value]) -> bool:
    """Return whether a call hands on the gradients of all that it reads.

    A function with a derivative of its own may not: its program rounds, say, and its gradient is
    handed on all the same.
    """
    if not equation.primitive.name.startswith("custom_"):
        return True
    inner = program_of(equation)
    used = {atom for one in inner.eqns for atom in one.invars if not isinstance(atom, Literal)}
    pairs = zip(inner.invars, operands[len(operands) - len(inner.invars) :], strict=True)
    read = forgotten([value for variable, value in pairs if variable in used])
    return not read.behind & ~forgotten(results).behind


RULES = MOVES | MIXES | PRODUCTS


class Reader:
    """Runs a program on what is known of its values.

    Args:
        record: where it writes down what uses parameters.
        given: what is known of arrays that the program closes over.
    """

    def __init__(self, record: Record, given: Value):
        self.record, self.given = record, given

    def run(self, program: Jaxpr | ClosedJaxpr, values: Sequence[Value]) -> list[Value]:
        """Return what is known of a program's outputs."""
        jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        for call in self.record.calls[-1:]:
            values = [self.record.note_lost(value, call) for value in values]
        known = dict.fromkeys(jaxpr.constvars, self.given)
        known |= zip(jaxpr.invars, values, strict=True)

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return self.given if getattr(atom.aval, "ndim", 0) else CONSTANT
            return known[atom]

        for equation in jaxpr.eqns:
            outputs = self.outputs(equation, [read(atom) for atom in equation.invars])
            outputs = [self.record.note_lost(value, equation) for value in outputs]
            fresh, self.record.fresh = self.record.fresh, 0
            returned = self.record.is_of_gradient([equation])
            for variable, value in zip(equation.outvars, outputs, strict=True):
                after = replace(
                    value,
                    returned=value.returned or returned,
                    behind=value.behind | fresh,
                    passed=value.passed | fresh,
                )
                known[variable] = after if is_real(variable) else without_gradient(value)
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Return what is known of the outputs of one operation."""
        name = equation.primitive.name
        if name in CALLS:
            self.record.calls.append(equation)
            results = CALLS[name](self.run, equation, operands)
            self.record.calls.pop()
            if not _is_whole(equation, operands, results):
                return self.record.not_understood(equation, operands)
            return results
        rule = RULES.get(name, Record.not_understood)
        return rule(self.record, equation, operands)
