"""One uniform number, three shares: hide, swap, keep."""

import numpy as np
import pytest
from keras import ops

from keras_dynmask.corruption import corrupt, roles

T, F = True, False
MASK = 1


@pytest.mark.parametrize(
    ("hide", "swap", "role", "shown"),
    [
        # ids 7 8 9 are shown as 1 (hidden), 4 5 6 (swapped), or 7 8 9 (kept).
        (0.8, 0.1, [0.05, 0.85, 0.95], [1, 5, 9]),
        (0.8, 0.1, [0.79, 0.80, 0.90], [1, 5, 9]),  # an edge belongs to the next share
        (1.0, 0.0, [0.0, 0.5, 1 - 2**-24], [1, 1, 1]),
        (0.0, 1.0, [0.0, 0.5, 1 - 2**-24], [4, 5, 6]),
        (0.0, 0.0, [0.0, 0.5, 1 - 2**-24], [7, 8, 9]),
        (0.5, 0.5, [0.49, 0.5, 1 - 2**-24], [1, 5, 6]),
    ],
)
def test_the_role_falls_into_one_of_three_shares(hide, swap, role, shown):
    assert corrupted([7, 8, 9], [T, T, T], role, [4, 5, 6], hide, swap) == shown


@pytest.mark.parametrize("role", [0.0, 0.85, 0.95])
def test_what_is_not_selected_is_shown_as_it_is(role):
    assert corrupted([7, 8], [F, T], [role, 0.0], [4, 5], 0.8, 0.1) == [7, MASK]


def test_the_roles_are_read_off_what_is_shown():
    shown, original = np.array([MASK, 5, 9, MASK]), np.array([7, 8, 9, MASK])
    hidden, swapped, kept = (ops.convert_to_numpy(role) for role in roles(shown, original, MASK))
    assert hidden.tolist() == [T, F, F, T]
    assert swapped.tolist() == [F, T, F, F]
    assert kept.tolist() == [F, F, T, F]


def test_an_empty_row_stays_empty():
    assert corrupted([], [], [], [], 0.8, 0.1) == []


def corrupted(ids, selected, role, replacements, hide, swap):
    def row(values, dtype):
        return ops.convert_to_tensor([values], dtype=dtype)

    shown = corrupt(
        row(ids, "int32"), row(selected, "bool"), row(role, "float32"),
        row(replacements, "int32"), MASK, hide, swap,
    )  # fmt: skip
    return ops.convert_to_numpy(shown)[0].tolist()
