"""`Recipe`: everything that decides a run, and the recipes that have a name."""

import dataclasses
import math
import os

import keras

from keras_dynmask import text
from keras_dynmask.adaptive import AdaptiveSelection
from keras_dynmask.encoder import TransformerEncoder
from keras_dynmask.errors import flag, is_real, real, require, whole
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.model import MaskedLanguageModel
from keras_dynmask.pairs import END, read_pairs
from keras_dynmask.rates import checked_rate, written_rate
from keras_dynmask.vocabulary import continuation_ids

MASKING = ("dynamic", "static", "adaptive")
POSITIVE = {"validation_share": 0.5, "learning_rate": 0.5}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. The defaults suit the embedded corpus and two cores."""

    name: str = "mlm"  # of `RECIPES`
    corpus: tuple = ()  # files or glob patterns; none: the embedded corpus
    pairs: str = ""  # in place of a corpus: a file of sources and targets, tab separated
    target_length: int = 16  # of pairs: how many of a row's tokens
    # Or "static": each row keeps the mask of its first epoch; or "adaptive": rather
    # what the model does not know yet.
    masking: str = "dynamic"
    # Static masks of each row, in turn: the epochs 0, 10, 20, ... share one of ten
    # (ten is BERT's `dupe_factor`).
    static_copies: int = 1
    # A number; a pair, each row's own rate; or "0.3:0.15", from the first step to the last.
    mask_selection_rate: float | tuple | str = 0.15  # Devlin et al. 2019
    evaluation_rate: float | None = None  # of the held-out loss; None: the rate of training
    mean_span_length: float = 1.0
    whole_words: bool = False
    hide_all: bool = False  # all that is selected, with none swapped and none kept
    inverse_rate_weights: bool = False  # as masked diffusion weighs its losses
    # The encoder sees only what is not hidden. At a rate of .5 that is half the work.
    visible_only: bool = False
    vocabulary_size: int = 4000  # a corpus of 10^5 words holds few words often enough
    length: int = 64  # half of BERT's first phase: three sentences
    validation_share: float = 0.125  # every eighth document
    num_layers: int = 2
    num_heads: int = 4
    hidden_dim: int = 128
    intermediate_dim: int = 256  # gated, so worth about 1.5 times as much
    dropout: float = 0.1
    epochs: int = 30  # the held-out loss is flat by then; three minutes on two cores
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self):
        require(
            self.name in RECIPES, f"`name` must be one of {', '.join(RECIPES)}.", name=self.name
        )
        require(
            isinstance(self.corpus, tuple | list)
            and all(isinstance(pattern, str | os.PathLike) for pattern in self.corpus),
            "`corpus` must be a list of files or glob patterns.",
            corpus=self.corpus,
        )
        object.__setattr__(self, "corpus", tuple(str(pattern) for pattern in self.corpus))
        object.__setattr__(self, "pairs", str(self.pairs))
        require(
            not (self.corpus and self.pairs),
            "`corpus` must be left out with `pairs`.",
            corpus=self.corpus,
        )
        require(
            self.masking in MASKING,
            f"`masking` must be one of {', '.join(MASKING)}.",
            masking=self.masking,
        )
        require(
            self.masking == "static" or self.static_copies == 1,
            "`static_copies` must be 1 unless `masking` is 'static'.",
            static_copies=self.static_copies,
        )
        for name in ("static_copies", "length", "batch_size", "epochs", "num_layers", "num_heads"):
            whole(name, getattr(self, name), 1)
        for name in ("hidden_dim", "intermediate_dim"):
            whole(name, getattr(self, name), 2)
        whole("vocabulary_size", self.vocabulary_size, 2 * len(text.SPECIAL_TOKENS))
        whole("target_length", self.target_length, 1)
        require(
            not self.pairs or self.target_length < self.length - 1,
            f"`target_length` must leave room for a source in {self.length} tokens.",
            target_length=self.target_length,
        )
        whole("seed", self.seed, 0, 2**32 - 1)
        for name in ("whole_words", "hide_all", "inverse_rate_weights", "visible_only"):
            flag(name, getattr(self, name))
        if self.evaluation_rate is not None:
            real("evaluation_rate", self.evaluation_rate, 0, 1)
        real("mean_span_length", self.mean_span_length, 1)
        real("dropout", self.dropout, 0, 1 - 1e-6)
        real("warmup_share", self.warmup_share, 0, 1)
        real("weight_decay", self.weight_decay, 0)
        for name, highest in POSITIVE.items():
            value = getattr(self, name)
            require(
                is_real(value, 0, highest) and value > 0,
                f"`{name}` must be in (0, {highest}].",
                **{name: value},
            )
        rate = self._rate(1)
        require(
            rate not in (0, (0, 0)),
            "`mask_selection_rate` must be above 0.",
            mask_selection_rate=rate,
        )
        if isinstance(rate, float | tuple):  # a schedule stays as it is written
            object.__setattr__(self, "mask_selection_rate", rate)

    def _rate(self, steps):
        rate = self.mask_selection_rate
        if isinstance(rate, str):
            rate = written_rate("mask_selection_rate", rate, steps)
        return checked_rate("mask_selection_rate", rate)

    def read_corpus(self):
        """The documents, or the pairs of strings, to learn from."""
        if self.pairs:
            return read_pairs(self.pairs)
        return text.read_corpus(self.corpus) if self.corpus else text.embedded_corpus()

    def protected_ids(self, tokenizer):
        """What is never masked and never predicted."""
        special = text.special_ids(tokenizer)
        # What ends a target is to be predicted; what ends a source is not selectable.
        return [id for id in special if not self.pairs or id != tokenizer.token_to_id(END)]

    def build_model(self, tokenizer, steps):
        """A compiled model for the tokenizer, for a run of so many steps."""
        keras.utils.set_random_seed(self.seed)
        vocabulary_size = tokenizer.get_vocab_size()
        encoder = TransformerEncoder(
            vocabulary_size,
            self.num_layers,
            self.num_heads,
            self.hidden_dim,
            self.intermediate_dim,
            dropout=self.dropout,
            padding_token_id=tokenizer.token_to_id(text.PADDING),
        )
        # What is selected and not hidden would be visible.
        hide_all = self.hide_all or self.visible_only
        shares = {"mask_token_rate": 1.0, "random_token_rate": 0.0} if hide_all else {}
        masking = DynamicMasking(
            vocabulary_size,
            self._rate(steps),
            tokenizer.token_to_id(text.MASK),
            # Sources are never predicted; a rate up to 1 alone would have their logits computed.
            self.target_length if self.pairs else None,
            unselectable_token_ids=self.protected_ids(tokenizer),
            evaluation_rate=self.evaluation_rate,
            mean_span_length=self.mean_span_length,
            continuation_token_ids=continuation_ids(tokenizer) if self.whole_words else None,
            inverse_rate_weights=self.inverse_rate_weights,
            seed=self.seed,
            **shares,
        )
        adaptive = AdaptiveSelection(vocabulary_size) if self.masking == "adaptive" else None
        model = MaskedLanguageModel(
            encoder,
            masking,
            adaptive_selection=adaptive,
            visible_only=self.visible_only,
            detailed_metrics=True,  # for history.csv
        )
        warmup = math.ceil(self.warmup_share * steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=self.learning_rate, warmup_steps=warmup
        )
        model.compile(
            keras.optimizers.AdamW(schedule, weight_decay=self.weight_decay),
            # On two CPU cores XLA soon makes up for the seconds that it compiles.
            jit_compile=True if keras.backend.backend() == "tensorflow" else "auto",
        )
        return model


def mlm(**settings):
    """Predict 15 % of the tokens from the others (Devlin et al. 2019; Liu et al. 2019).

    Costs three minutes on two cores. Expect 3.9 nats on the held-out part of the embedded
    corpus, where guessing by frequency costs 5.9.
    """
    return _named("mlm", {}, settings)


def mlm_schedule(**settings):
    """Predict 30 % of the tokens at first and 15 % at last (Ankner et al. 2024).

    Costs what `mlm` costs. Expect to learn faster: after 12 epochs .17 nats less than at 15 %, as
    at any rate from 30 % on (`benchmarks/rates_and_schedules.py`). Held-out losses are those of a
    rate of 15 %.
    """
    defaults = {"mask_selection_rate": "0.3:0.15", "evaluation_rate": 0.15}
    return _named("mlm-schedule", defaults, settings)


def spans(**settings):
    """Predict spans of whole words, three words long in the mean (Joshi et al. 2020).

    Costs what `mlm` costs. Expect 4.8 nats on the embedded corpus, for a word whose neighbours
    are hidden, too, is harder to guess; so it does not compare with the loss of `mlm`.
    """
    return _named("spans", {"mean_span_length": 3.0, "whole_words": True}, settings)


def visible_only(**settings):
    """Predict half of the tokens, with an encoder that sees the other half only (Liao et al.
    2022; Meng et al. 2024).

    Costs three quarters of the time of `mlm`, at 512 tokens two thirds, at 2,048 a third
    (`benchmarks/visible_only.py`). Expect .1 nats more at equal steps, and no more at equal
    time; held-out losses are those of a rate of 15 %.
    """
    defaults = {"mask_selection_rate": 0.5, "evaluation_rate": 0.15, "visible_only": True}
    return _named("visible-only", defaults, settings)


def diffusion(**settings):
    """Predict any share of the tokens from the others: a model that generates (Sahoo et al.
    2024; Nie et al. 2025).

    Each row draws its own rate between 0 and 1, all that is selected is hidden, and losses
    weigh selectable / count. Costs what `mlm` costs. Expect 4.7 nats on the embedded corpus,
    between `mlm` and guessing by frequency: it bounds the text's negative log-likelihood per
    token from above, and so averages over rows that are all but empty. What a model of this
    size writes is made of the right words, and seldom of sentences; the surest tokens first it
    repeats itself, so generate in random order.
    """
    return _named("diffusion", DIFFUSION, settings)


def seq2seq(**settings):
    """Predict any share of a target from its source and the rest: translation, summaries
    (Ghazvininejad et al. 2019; Nie et al. 2025, on instructions).

    Needs `pairs`. As `diffusion`, but sources are never masked; a target ends with end
    tokens, which are masked and predicted, too, so that its length is learnt. The report
    tells how many of the held-out targets are generated word for word. Costs what `mlm`
    costs, by the row. Expect 98 of 100 numbers in words to become the right digits after
    25,600 pairs seen twice, a CPU minute; of the tokens of 24,000 short sentences a third to
    be right after four (`benchmarks/sequence_to_sequence.py`).
    """
    recipe = _named("seq2seq", DIFFUSION | {"dropout": 0.0}, settings)
    require(
        recipe.pairs,
        "`pairs` must name a file of sources and targets, tab separated.",
        pairs=recipe.pairs,
    )
    return recipe


DIFFUSION = {"mask_selection_rate": (0.0, 1.0), "hide_all": True, "inverse_rate_weights": True}

RECIPES = {
    "mlm": mlm,
    "mlm-schedule": mlm_schedule,
    "spans": spans,
    "visible-only": visible_only,
    "diffusion": diffusion,
    "seq2seq": seq2seq,
}


def _named(name, defaults, settings):
    return Recipe(**{"name": name, **defaults, **settings})
