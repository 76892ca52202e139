"""Every method can run everywhere: all of them lower for cpu, cuda, rocm and tpu on any machine."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export
from methods import METHODS

from egd_optax import polar
from egd_optax.polar._stacks import init_stack, update_stack


def program(method, platform, shape):
    """StableHLO of one step on a stack."""
    stack = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = init_stack(method, stack)
    step = jax.jit(lambda stack: update_stack(method, stack, state)[0])
    return export.export(step, platforms=[platform])(stack).mlir_module()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_lowers_for_every_platform(method, platform):
    program(method, platform, (2, 40, 56))


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_the_default_takes_no_svd_on_accelerators(platform):
    """Nor eigenvalues; and stacks go through at once, without a loop over the matrices."""
    for shape in ((2, 8, 8), (2, 80, 120)):
        text = program(polar.Auto(), platform, shape)
        calls = re.findall(r"custom_call @(\w+)", text)
        assert not [call for call in calls if re.search("svd|gesdd|eigh|syev|qr", call, re.I)]
        assert "stablehlo.while" not in text


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_polynomial_steps_are_taken_one_by_one_on_accelerators(platform):
    """Where products are less precise than their dtype, longer runs on one Gram matrix diverge."""
    text = program(polar.NewtonSchulz(steps=5), platform, (2, 40, 160))
    assert len(re.findall("stablehlo.dot_general", text)) == 5 * 3


def test_no_method_is_left_out():
    """Of those that polar exports, as classes with the two functions of a method."""
    exported = {
        thing
        for thing in vars(polar).values()
        if inspect.isclass(thing) and issubclass(thing, polar.PolarMethod)
    }
    assert exported - {polar.PolarMethod} == {type(method) for method in METHODS}
