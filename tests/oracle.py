"""The masker again, as loops over Python ints: slow, plain, and without Keras.

Written from the design, so that the two can disagree.
"""

import math

import numpy as np

WORD = 0xFFFFFFFF
SELECT, ROLE, REPLACEMENT, BEGIN, ROW = range(5)


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), on unsigned words."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & WORD, (counter[1] + keys[1]) & WORD
    for round_ in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[round_ % 8]
        x = (x + y) & WORD
        y = ((y << rotation | y >> (32 - rotation)) & WORD) ^ x
        if round_ % 4 == 3:
            block = round_ // 4 + 1
            x = (x + keys[block % 3]) & WORD
            y = (y + keys[(block + 1) % 3] + block) & WORD
    return x, y


def mix(word):
    word = ((word ^ word >> 16) * 0x21F0AAAD) & WORD
    word = ((word ^ word >> 15) * 0xD35A2D97) & WORD
    return word ^ word >> 15


def row_key(seed, moment, row):
    """`moment` is (step, replica) and `row` two words; any ints, of which 32 bits count."""
    seed_words = (seed & WORD, seed >> 32)
    moment_words = tuple(number & WORD for number in moment)
    return threefry(threefry(seed_words, moment_words), row)


def row_number(number):
    return number & WORD, (number >> 32) & WORD


def bits(key, position, stream):
    stream_word = (key[1] + stream * 0x9E3779B9) & WORD
    return mix(mix(position ^ key[0]) ^ stream_word)


def uniform(key, position, stream):
    return (bits(key, position, stream) >> 8) / 2**24


def signed(word):
    return word - 2**32 if word >= 2**31 else word


def content(ids, is_token):
    """The two words that stand for a row's tokens, wherever its padding ends."""
    return tuple(
        sum(
            mix(mix((position + salt) & WORD) ^ token)
            for position, token in enumerate(ids)
            if is_token[position]
        )
        & WORD
        for salt in (0x1BD11BDA, 0x9E3779B9)
    )


def shares(rate):
    """A rate in 2**-24ths, as float32 arithmetic finds it."""
    return int(np.round(np.float32(rate) * np.float32(2**24)))


def unit_numbers(ids, is_token, key, settings, begins=None):
    """The unit of every position: a boundary, the place after one and row starts begin."""
    continuing = settings.get("continuation_token_ids") or ()
    numbers = []
    for position, token in enumerate(ids):
        boundary = not is_token[position]
        after_boundary = position == 0 or not is_token[position - 1]
        may_begin = bool(begins[position]) if begins is not None else token not in continuing
        coin = uniform(key, position, BEGIN) < np.float32(1 / settings["mean_span_length"])
        begin = boundary or after_boundary or (may_begin and coin)
        numbers.append((numbers[-1] if numbers else -1) + int(begin))
    return numbers


def circle_rule(units, count, place):
    """Units `{key: positions}` end to end on a circle: those that start in the window.

    The window is the `count` places after `place`.
    """
    size = sum(map(len, units.values()))
    selected, start = set(), 0
    for key in sorted(units):
        if (start - place - 1) % size < count:
            selected.update(units[key])
        start += len(units[key])
    return selected


def drop_overflow(units, selected, capacity):
    """Keep units in the order of their keys until one does not fit."""
    if len(selected) <= capacity:
        return selected
    kept = set()
    for key in sorted(units):
        unit = selected & set(units[key])
        if len(kept) + len(unit) > capacity:
            break
        kept |= unit
    return kept


def is_tokens(ids, settings, padding_mask=None):
    protected = settings["unselectable_token_ids"]
    real = [True] * len(ids) if padding_mask is None else padding_mask
    return [token not in protected and bool(r) for token, r in zip(ids, real, strict=True)]


def selected_positions(ids, key, settings, **features):
    selectable, weights = features.get("selectable"), features.get("selection_weights")
    is_token = is_tokens(ids, settings, features.get("padding_mask"))
    numbers = unit_numbers(ids, is_token, key, settings, features.get("begins"))
    choosable = [
        position
        for position in range(len(ids))
        if is_token[position] and (selectable is None or selectable[position])
    ]
    heaviest = dict.fromkeys(numbers, 1.0)
    if weights is not None:
        heaviest = {
            number: max((weights[p] for p in choosable if numbers[p] == number), default=0.0)
            for number in numbers
        }
        choosable = [position for position in choosable if heaviest[numbers[position]] > 0]

    def unit_key(number):
        word = bits(key, number, SELECT)
        if weights is None or not settings["exact_count"]:
            return signed(word)
        exponential = -math.log1p(-(word >> 8) / 2**24)
        return exponential / heaviest[number], signed(word)

    units = {}
    for position in choosable:
        units.setdefault(unit_key(numbers[position]), []).append(position)

    rate = settings["mask_selection_rate"]
    if isinstance(rate, (tuple, list)):
        low, high = (round(edge * 2**24) for edge in rate)
        drawn = bits(key, 2, ROW) >> 8
        rate = (low + (drawn * (high - low) >> 24)) / 2**24
    size = len(choosable)
    capacity = settings["mask_selection_length"]
    if settings["exact_count"]:
        coin = min(max(bits(key, 0, ROW) >> 8, size), 2**24 - 1 - size)
        count = (size * shares(rate) + coin) >> 24
        if capacity is not None:
            count = min(count, capacity)
        place = size * (bits(key, 1, ROW) >> 8) >> 24
        selected = circle_rule(units, count, place if weights is None else size - 1)
    else:
        selected = {
            position
            for position in choosable
            if uniform(key, numbers[position], SELECT)
            < np.float32(1 - (1 - rate) ** heaviest[numbers[position]])
        }
    weight = 1.0
    if settings["inverse_rate_weights"]:
        weight = size / max(count, 1) if settings["exact_count"] else 1 / rate
    if capacity is not None:
        selected = drop_overflow(units, selected, capacity)
    return selected, np.float32(weight)


def mask_row(ids, key, settings, **features):
    """What `DynamicMasking` with the config `settings` makes of one row with noise `key`."""
    selected, weight = selected_positions(ids, key, settings, **features)
    forbidden = {*settings["unselectable_token_ids"], settings["mask_token_id"]}
    pool = [token for token in range(settings["vocabulary_size"]) if token not in forbidden]
    shown = list(ids)
    for position in selected:
        role = np.float32(uniform(key, position, ROLE))
        hide, swap = settings["mask_token_rate"], settings["random_token_rate"]
        if role < np.float32(hide):
            shown[position] = settings["mask_token_id"]
        elif role < np.float32(hide + swap):
            shown[position] = pool[(bits(key, position, REPLACEMENT) >> 1) % len(pool)]

    capacity = settings["mask_selection_length"]
    if capacity is None:
        weights = [weight * (position in selected) for position in range(len(ids))]
        return {"token_ids": shown, "mask_ids": ids, "mask_weights": weights}
    positions = sorted(selected)
    padding = [0] * (capacity - len(positions))
    return {
        "token_ids": shown,
        "mask_positions": positions + padding,
        "mask_ids": [ids[position] for position in positions] + padding,
        "mask_weights": [weight] * len(positions) + [0.0] * len(padding),
    }


def mask_batch(rows, settings, step=None, replica=0, row_ids=None, **features):
    """`mask_row` for every row: by its number at `step`, or by its content without one."""
    masked = []
    for number, row in enumerate(rows):
        ids = [int(token) for token in row]
        own = {name: values[number] for name, values in features.items()}
        if step is None:
            is_token = is_tokens(ids, settings, own.get("padding_mask"))
            key = row_key(settings["seed"], (-1, -1), content(ids, is_token))
        else:
            words = row_number(int(number if row_ids is None else row_ids[number]))
            key = row_key(settings["seed"], (step, replica), words)
        masked.append(mask_row(ids, key, settings, **own))
    return {name: np.array([row[name] for row in masked]) for name in masked[0]}
