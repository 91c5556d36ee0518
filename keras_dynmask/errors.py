"""How an argument is refused: what was expected, then what was received."""

import importlib.util
import math
import numbers
import operator

import numpy as np


def require(condition, expectation, **received):
    """Raise `ValueError(expectation + what was received)` unless `condition`.

    >>> require(False, "`rate` must be in [0, 1].", rate=2)
    Traceback (most recent call last):
    ValueError: `rate` must be in [0, 1]. Received: rate=2
    """
    if not condition:
        values = ", ".join(f"{name}={_shortly(value)}" for name, value in received.items())
        raise ValueError(f"{expectation} Received: {values}")


def _shortly(value):
    written = repr(value)
    return written if len(written) <= 300 else f"{written[:300]}..."


def whole(name, value, low, high=None):
    """`value` as an int in [low, high]."""
    try:
        number = operator.index(value)  # NumPy integers too, but neither 3.0 nor "3"
    except (TypeError, AttributeError):
        number = None
    bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
    in_bounds = number is not None and low <= number and (high is None or number <= high)
    require(
        in_bounds and not isinstance(value, bool),
        f"`{name}` must be a whole number, {bounds}.",
        **{name: value},
    )
    return number


def real(name, value, low, high=math.inf):
    """`value` as a finite float in [low, high]."""
    bounds = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
    require(is_real(value, low, high), f"`{name}` must be a number, {bounds}.", **{name: value})
    return float(value)


def is_real(value, low, high):
    """Whether `value` is a finite number in [low, high], and no bool."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def flag(name, value):
    """`value` as a bool."""
    require(isinstance(value, bool | np.bool_), f"`{name}` must be True or False.", **{name: value})
    return bool(value)


def token_ids_below(name, values, vocabulary_size):
    """`values` as a tuple of ints in [0, vocabulary_size)."""
    expected = f"`{name}` must be a list of ids in [0, {vocabulary_size - 1}]."
    require(np.iterable(values), expected, **{name: values})
    given = list(values)
    outside = [value for value in given if not 0 <= _index(value) < vocabulary_size]
    require(not outside, expected, **{name: outside[:3]})
    return tuple(map(operator.index, given))


def _index(value):
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def need_extra(extra, *modules):
    """Raise an `ImportError` that names the extra, unless its modules are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"This needs {' and '.join(missing)}: pip install 'keras-dynmask[{extra}]'"
        )
