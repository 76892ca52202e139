"""Reads a loss: follows every parameter through the program to the operations that use it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import partial_eval

from egd_optax import _selection as selection
from egd_optax._decisions import LeafAxes
from egd_optax._program._calls import CALLS
from egd_optax._program._layouts import whole
from egd_optax._program._mixing import MIXES
from egd_optax._program._moves import MOVES
from egd_optax._program._products import PRODUCTS
from egd_optax._program._record import Record, is_real
from egd_optax._program._values import CONSTANT, DATA, GIVEN, Value, View, without_gradient

READINGS = 5  # of a loss at most; two do, or three


def read_program(loss: Callable, params: Any, examples: Sequence[Any]) -> dict[str, LeafAxes]:
    """Return what `loss(params, *examples)` says of each parameter, by path.

    It is traced on shapes: nothing is computed, nothing is allocated.

    Raises:
        ValueError: the loss cannot be traced, or is no scalar.
    """
    program = _traced(loss, params, examples)
    leaves = selection.leaves_by_path(params)
    arrays = [(path, leaf) for path, leaf in leaves.items() if _is_array(leaf)]
    values = [_parameter(number, leaf) for number, (_, leaf) in enumerate(arrays)]
    examples_given = len(program.jaxpr.invars) - len(values)
    values += [DATA] * examples_given
    record = Record()
    reader = Reader(record, GIVEN if examples_given else DATA)
    for _ in range(READINGS):
        (value,) = reader.run(program.jaxpr, values)
        if not record.again(value.behind):
            break
    return {
        path: record.decision(number, path, tuple(leaf.shape))
        for number, (path, leaf) in enumerate(arrays)
    }


def _parameter(number: int, leaf: Any) -> Value:
    trained = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return Value(views={number: View(whole(tuple(leaf.shape)))}) if trained else CONSTANT


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if _is_array(leaf) else repr(leaf)[:40]


def _traced(loss: Callable, params: Any, examples: Sequence[Any]) -> ClosedJaxpr:
    """Return the program of the loss alone: what it does not depend on is left out."""
    leaves, structure = jax.tree.flatten((params, tuple(examples)))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]

    def of_arrays(*given):
        rest = iter(given)
        filled = [next(rest) if _is_array(leaf) else leaf for leaf in leaves]
        tree, others = jax.tree.unflatten(structure, filled)
        value = loss(tree, *others)
        while isinstance(value, tuple | list) and value:
            value = value[0]  # the rest are auxiliary outputs
        return value

    try:
        program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    except Exception as error:
        raise ValueError(
            f"loss(params, *examples) cannot be traced: {_first_line(error)}. It is called as in "
            "jax.grad, with the parameters first and examples of these shapes: "
            f"{', '.join(map(_text, jax.tree.leaves(examples))) or 'none'}."
        ) from error
    if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.inexact):
        raise ValueError(
            "loss must return a real scalar, or a tuple that begins with one, got "
            f"{_text(shape)}. Take the mean over the batch."
        )
    live, _ = partial_eval.dce_jaxpr(program.jaxpr, [True], instantiate=True)
    return ClosedJaxpr(live, program.consts)


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
        known = dict.fromkeys(jaxpr.constvars, self.given)
        known |= zip(jaxpr.invars, values, strict=True)

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return self.given if getattr(atom.aval, "ndim", 0) else CONSTANT
            return known[atom]

        for equation in jaxpr.eqns:
            outputs = self.outputs(equation, [read(atom) for atom in equation.invars])
            fresh, self.record.fresh = self.record.fresh, 0
            for variable, value in zip(equation.outvars, outputs, strict=True):
                after = replace(value, behind=value.behind | fresh) if fresh else value
                known[variable] = after if is_real(variable) else without_gradient(value)
        return [read(atom) for atom in jaxpr.outvars]

    def outputs(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Return what is known of the outputs of one operation."""
        name = equation.primitive.name
        if name in CALLS:
            self.record.calls.append(equation)
            results = CALLS[name](self.run, equation, operands)
            self.record.calls.pop()
            return results
        rule = RULES.get(name, Record.not_understood)
        return rule(self.record, equation, operands)
