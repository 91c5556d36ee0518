"""How a selected token is shown: hidden, swapped or kept."""

from keras_dynmask.arrays import ops


def corrupt(token_ids, selected, role, replacements, mask_token_id, hide_rate, swap_rate):
    """One uniform number, three shares: hide | swap | keep (Devlin et al. 2019).

        role (hide .8, swap .1)  [.05  .85  .95]
        selected                 [ T    T    T ]
        token_ids                [  7    8    9]
        replacements             [  4    5    6]
        shown (mask 1)           [  1    5    9]

    All arrays are `[batch, length]`; `role` is noise in [0, 1).
    """
    hide = selected & (role < hide_rate)
    swap = selected & (role >= hide_rate) & (role < hide_rate + swap_rate)
    return ops.where(hide, mask_token_id, ops.where(swap, replacements, token_ids))


def roles(shown, original, mask_token_id):
    """Which tokens are hidden, swapped and kept, given that they are selected. Bool each."""
    hidden, same = ops.equal(shown, mask_token_id), ops.equal(shown, original)
    return hidden, ~hidden & ~same, ~hidden & same
