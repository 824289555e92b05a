"""Multiplications and additions of a function, counted on its trace, without compiling or running it.

Only matrix products and convolutions count, with two operations for a multiplication with addition; the body of a loop
counts once per iteration (the compiler's own count takes it once). The elementwise operations that are left out are a
few per cent of a network.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of `function(*arguments)`; arrays may be given as ShapeDtypeStruct."""
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_axis = parameters["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in parameters["branches"])
    inner = sum(_of_value(value) for value in parameters.values())
    return inner * (parameters["length"] if name == "scan" else 1)


def _of_value(value: Any) -> int:
    """Operations of a program that is a parameter of an operation."""
    if isinstance(value, core.ClosedJaxpr):
        return _of_jaxpr(value.jaxpr)
    return _of_jaxpr(value) if isinstance(value, core.Jaxpr) else 0
