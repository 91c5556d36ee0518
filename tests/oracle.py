"""The masker again, as loops over Python ints: slow, plain, and without Keras.

Written from the design, so that the two can disagree.
"""

import math

import numpy as np

ALL_ONES = 0xFFFFFFFF
SELECT, ROLE, REPLACEMENT, BEGIN, ROW, TURN, DROP, WORD, OTHER_WORD = range(9)


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), on unsigned words."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & ALL_ONES, (counter[1] + keys[1]) & ALL_ONES
    for round_ in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[round_ % 8]
        x = (x + y) & ALL_ONES
        y = ((y << rotation | y >> (32 - rotation)) & ALL_ONES) ^ x
        if round_ % 4 == 3:
            block = round_ // 4 + 1
            x = (x + keys[block % 3]) & ALL_ONES
            y = (y + keys[(block + 1) % 3] + block) & ALL_ONES
    return x, y


def mix(word):
    word = ((word ^ word >> 16) * 0x21F0AAAD) & ALL_ONES
    word = ((word ^ word >> 15) * 0xD35A2D97) & ALL_ONES
    return word ^ word >> 15


def row_key(seed, moment, row):
    """`moment` is (step, replica) and `row` two words; any ints, of which 32 bits count."""
    seed_words = (seed & ALL_ONES, seed >> 32)
    moment_words = tuple(number & ALL_ONES for number in moment)
    return threefry(threefry(seed_words, moment_words), row)


def row_number(number):
    return number & ALL_ONES, (number >> 32) & ALL_ONES


def bits(key, position, stream):
    stream_word = (key[1] + stream * 0x9E3779B9) & ALL_ONES
    return mix(mix(position ^ key[0]) ^ stream_word)


def uniform(key, position, stream):
    return (bits(key, position, stream) >> 8) / 2**24


def signed(word):
    return word - 2**32 if word >= 2**31 else word


def content(ids, is_token):
    """The two words that stand for a row's tokens, wherever its padding ends."""
    return tuple(
        sum(
            mix(mix((position + salt) & ALL_ONES) ^ token)
            for position, token in enumerate(ids)
            if is_token[position]
        )
        & ALL_ONES
        for salt in (0x1BD11BDA, 0x9E3779B9)
    )


def shares(rate):
    """A rate in 2**-24ths, as float32 arithmetic finds it."""
    return int(np.round(np.float32(rate) * np.float32(2**24)))


def is_tokens(ids, settings, padding_mask=None):
    protected = settings["unselectable_token_ids"]
    real = [True] * len(ids) if padding_mask is None else padding_mask
    return [token not in protected and bool(r) for token, r in zip(ids, real, strict=True)]


# Where units, words and documents begin


def numbered(begins):
    numbers, number = [], -1
    for begin in begins:
        number += bool(begin)
        numbers.append(number)
    return numbers


def document_numbers(ids, segment_ids):
    """A document ends where its id changes."""
    segments = [0] * len(ids) if segment_ids is None else segment_ids
    return numbered(p == 0 or segments[p] != segments[p - 1] for p in range(len(ids)))


def unit_numbers(ids, is_token, documents, coins, settings, begins=None):
    """The unit of every position: a boundary, the place after one and documents begin one."""
    continuing = settings["continuation_token_ids"] or ()
    starts = []
    for position, token in enumerate(ids):
        boundary = not is_token[position]
        after_boundary = position == 0 or not is_token[position - 1]
        edge = position == 0 or documents[position] != documents[position - 1]
        may_begin = bool(begins[position]) if begins is not None else token not in continuing
        starts.append(boundary or after_boundary or edge or (may_begin and coins[position]))
    return numbered(starts)


def grouped(positions, numbers):
    groups = {}
    for position in positions:
        groups.setdefault(numbers[position], []).append(position)
    return groups


# Which are selected: a unit is its positions, as a tuple


def circle_rule(units, count, place):
    """Units end to end on a circle: those that end in the `count` places from `place` on."""
    size = sum(map(len, units))
    chosen, end = [], -1
    for unit in units:
        end += len(unit)
        if (end - place) % size < count:
            chosen.append(unit)
    return chosen


def first_come(units, count, turn):
    """Units from the first; the last is kept with probability room / length."""
    chosen, room = [], count
    for unit in units:
        if room <= 0:
            break
        if len(unit) * turn >> 24 < room:
            chosen.append(unit)
        room -= len(unit)
    return chosen


def drop_overflow(units, capacity):
    """Units from the first, until one does not fit."""
    kept, room = [], capacity
    for unit in units:
        if len(unit) > room:
            break
        kept.append(unit)
        room -= len(unit)
    return kept


def rate_of_row(rate, drawn):
    """Of a pair, the rate in (low, high] that `drawn` 2**-24ths of the way lie below."""
    if not isinstance(rate, (tuple, list)):
        return rate
    low, high = (round(edge * 2**24) for edge in rate)
    return (low if low == high else low + 1 + (drawn * (high - low) >> 24)) / 2**24


def weights_of(ids, settings, selection_weights):
    """What each position weighs, or None where all weigh the same."""
    known = settings["selection_weights"]
    if selection_weights is None and known is None:
        return None
    weights = [np.float32(1)] * len(ids) if selection_weights is None else selection_weights
    weights = [np.float32(weight) for weight in weights]
    if known is not None:
        weights = [weight * np.float32(known[i]) for weight, i in zip(weights, ids, strict=True)]
    return weights


class Row:
    """One row, and who is selected in it with which weight."""

    def __init__(self, ids, key, drawn, rate, settings, **features):
        self.ids, self.key, self.settings = ids, key, settings
        self.rate = rate_of_row(rate, drawn)
        self.rounds_up = isinstance(rate, (tuple, list)) and (
            settings["at_least_one"] or settings["inverse_rate_weights"]
        )
        is_token = is_tokens(ids, settings, features.get("padding_mask"))
        self.documents = document_numbers(ids, features.get("segment_ids"))
        shape = is_token, self.documents
        begins = features.get("begins")
        mean = np.float32(1 / settings["mean_span_length"])
        coins = [uniform(key, position, BEGIN) < mean for position in range(len(ids))]
        self.numbers = unit_numbers(ids, *shape, coins, settings, begins)
        self.words = unit_numbers(ids, *shape, [True] * len(ids), settings, begins)
        self.of_tokens = (
            settings["continuation_token_ids"] is None
            and settings["mean_span_length"] == 1
            and begins is None
        )
        self.units = self.selectable_units(is_token, **features)

    def selectable_units(self, is_token, selectable=None, selection_weights=None, **_):
        """Units that may be selected, by number; sets `order`, in which they come."""
        capacity = self.settings["mask_selection_length"]
        positions = [
            position
            for position in range(len(self.ids))
            if is_token[position] and (selectable is None or selectable[position])
        ]
        units = grouped(positions, self.numbers)
        if capacity is not None:
            units = {number: unit for number, unit in units.items() if len(unit) <= capacity}
        weights = weights_of(self.ids, self.settings, selection_weights)
        self.weighs = None
        if weights is not None:
            self.weighs = {n: float(max(weights[p] for p in unit)) for n, unit in units.items()}
            units = {number: unit for number, unit in units.items() if self.weighs[number] > 0}
        self.order = {number: self.order_of(number) for number in units}
        return {number: tuple(unit) for number, unit in units.items()}

    def order_of(self, number):
        """Random, or an exponential number over the weight (its logarithm)."""
        word = bits(self.key, number, SELECT)
        if self.weighs is None:
            return (signed(word),)
        exponential = max(-math.log2(1 - (word >> 8) / 2**24), 2**-24)
        weight = min(max(self.weighs[number], 2.0**-64), 2.0**64)
        return math.log2(exponential) - math.log2(weight), signed(word)

    def budgets(self):
        """The units that share a count, in order: those of a document, or of the row."""
        per_document = self.settings["count_per_document"]
        budgets = {}
        for number in sorted(self.units, key=self.order.get):
            document = self.documents[self.units[number][0]] if per_document else 0
            budgets.setdefault(document, []).append(self.units[number])
        return dict(sorted(budgets.items()))

    def counts(self, budgets):
        """rate * size, rounded by one coin; of documents, what each adds to those before."""
        whole = sum(len(unit) for units in budgets.values() for unit in units)
        coin = 2**24 if self.rounds_up else bits(self.key, 0, ROW) >> 8
        coin = min(max(coin, whole), 2**24 - 1 - whole)
        rate, counts, through, before = np.float32(self.rate), {}, 0, 0
        if self.settings["mask_selection_length"] is not None:
            rate = min(rate, np.float32(self.settings["mask_selection_length"] / max(whole, 1)))
        for document, units in budgets.items():
            size = sum(map(len, units))
            through += size
            counted = (through * shares(rate) + coin) >> 24
            count, before = counted - before, counted
            if self.settings["at_least_one"] or self.settings["inverse_rate_weights"]:
                count = max(count, min(size, 1))
            if self.settings["mask_selection_length"] is not None:
                count = min(count, self.settings["mask_selection_length"])
            counts[document] = count
        return counts

    def turn(self, document):
        if self.of_tokens:
            return 0
        if self.settings["count_per_document"]:
            return bits(self.key, document, TURN) >> 8
        return bits(self.key, 1, ROW) >> 8

    def draw(self, units, count, turn):
        """The units of one budget that are selected."""
        if not self.settings["exact_count"]:
            return [unit for unit in units if self.is_drawn(self.numbers[unit[0]])]
        if self.weighs is not None:
            return first_come(units, count, turn)
        return circle_rule(units, count, sum(map(len, units)) * turn >> 24)

    def is_drawn(self, number):
        place = uniform(self.key, number, SELECT)
        if self.weighs is None:
            return place < np.float32(self.rate)
        return place < 1 - (1 - shares(self.rate) / 2**24) ** self.weighs[number]

    def select(self):
        """The weights of the selected positions, by position."""
        settings, capacity = self.settings, self.settings["mask_selection_length"]
        budgets = self.budgets()
        counts = self.counts(budgets)
        chosen, weights = [], {}
        for document, units in budgets.items():
            drawn = self.draw(units, counts[document], self.turn(document))
            if settings["at_least_one"] and not drawn and not self.counts_tokens:
                drawn = units[:1]
            chosen.append([unit for unit in units if unit in drawn])
            weight = np.float32(1)
            if settings["inverse_rate_weights"] and settings["exact_count"]:
                size = sum(map(len, units))
                weight = np.float32(size) / np.float32(max(counts[document], 1))
            elif settings["inverse_rate_weights"]:
                weight = np.float32(1) / np.float32(max(self.rate, 2**-24))
            weights |= {position: weight for unit in units for position in unit}
        selected = [unit for units in chosen for unit in units]
        if capacity is not None and not (self.counts_tokens and not settings["count_per_document"]):
            spared = [units[0] for units in chosen if units and settings["at_least_one"]]
            selected = drop_overflow(sorted(selected, key=self.keeping(spared)), capacity)
        return {position: weights[position] for unit in selected for position in unit}

    @property
    def counts_tokens(self):
        return self.of_tokens and self.settings["exact_count"]

    def keeping(self, spared):
        """At random, and those first that are spared."""

        def place(unit):
            word = signed(bits(self.key, self.numbers[unit[0]], DROP))
            return unit not in spared, word

        return place

    def shown(self, selected):
        settings, shown = self.settings, list(self.ids)
        for position in selected:
            together = self.numbers[position] if settings["corrupt_whole_units"] else position
            role = np.float32(uniform(self.key, together, ROLE))
            hide, swap = settings["mask_token_rate"], settings["random_token_rate"]
            if role < np.float32(hide):
                shown[position] = settings["mask_token_id"]
            elif role < np.float32(hide + swap):
                shown[position] = self.swapped(position, selected)
        return shown

    def swapped(self, position, selected):
        word = [p for p, number in enumerate(self.words) if number == self.words[position]]
        found = None
        if all(p in selected for p in word):
            found = self.other_word(tuple(self.ids[p] for p in word), self.words[position])
        return self.random_token(position) if found is None else found[position - word[0]]

    def other_word(self, word, number):
        """One of the known words of as many pieces, or None."""
        known = {tuple(known) for known in self.settings["random_words"] or ()}
        known = sorted(known_word for known_word in known if len(known_word) == len(word))
        excluding = self.settings["random_excludes_original"]
        if len(known) < 1 + excluding:
            return None
        drawn = (bits(self.key, number, WORD) >> 1) % len(known)
        if excluding and known[drawn] == word:
            further = (bits(self.key, number, OTHER_WORD) >> 1) % (len(known) - 1)
            drawn = (drawn + 1 + further) % len(known)
        return known[drawn]

    def random_token(self, position):
        """An id, in proportion to its share of the pool."""
        settings, word = self.settings, bits(self.key, position, REPLACEMENT)
        line = dict(enumerate(places_of_ids(settings)))
        if settings["random_excludes_original"]:
            del line[self.ids[position]]
        total = sum(line.values())
        uniform_pool = settings["random_token_weights"] is None
        place = (word >> 1) % total if uniform_pool else total * word >> 32
        for token, places in line.items():
            if place < places:
                return token
            place -= places
        raise AssertionError("the place lies behind the line")


def places_of_ids(settings):
    """How many places each id has on the line from which random tokens are drawn."""
    size, weights = settings["vocabulary_size"], settings["random_token_weights"]
    forbidden = {*settings["unselectable_token_ids"], settings["mask_token_id"]}
    if weights is None:
        return [int(token not in forbidden) for token in range(size)]
    weights = [0 if token in forbidden else weights[token] for token in range(size)]
    scale = (2**23 - size) / math.fsum(weights)
    return [max(int(weight * scale), 1) if weight > 0 else 0 for weight in weights]


def mask_row(row, settings):
    """What `DynamicMasking` with the config `settings` makes of one row."""
    selected = row.select()
    ids, shown = row.ids, row.shown(selected)
    capacity = settings["mask_selection_length"]
    if capacity is None:
        weights = [selected.get(position, np.float32(0)) for position in range(len(ids))]
        return {"token_ids": shown, "mask_ids": ids, "mask_weights": weights}
    positions = sorted(selected)
    padding = [0] * (capacity - len(positions))
    return {
        "token_ids": shown,
        "mask_positions": positions + padding,
        "mask_ids": [ids[position] for position in positions] + padding,
        "mask_weights": [selected[position] for position in positions] + padding,
    }


def mask_batch(rows, settings, step=None, replica=0, row_ids=None, **features):
    """Every row masked: by its number at `step`, or by its content without one."""
    rate, masked, drawn_first = settings["mask_selection_rate"], [], None
    if step is None and settings["evaluation_rate"] is not None:
        rate = settings["evaluation_rate"]
    for number, row in enumerate(rows):
        ids = [int(token) for token in row]
        own = {name: values[number] for name, values in features.items()}
        if step is None:
            is_token = is_tokens(ids, settings, own.get("padding_mask"))
            key = row_key(settings["seed"], (-1, -1), content(ids, is_token))
        else:
            words = row_number(int(number if row_ids is None else row_ids[number]))
            key = row_key(settings["seed"], (step, replica), words)
        drawn = bits(key, 2, ROW) >> 8
        if step is not None and row_ids is None:  # spread over the batch, from the first row's
            drawn_first = drawn if number == 0 else drawn_first
            drawn = (drawn_first + number * 2**24 // len(rows)) % 2**24
        masked.append(mask_row(Row(ids, key, drawn, rate, settings, **own), settings))
    return {name: np.array([row[name] for row in masked]) for name in masked[0]}
