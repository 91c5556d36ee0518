"""What a trained model puts in place of `[MASK]`: guesses, or text that it writes."""

import dataclasses

import numpy as np
from keras import ops

from keras_dynmask import text
from keras_dynmask.errors import require, whole
from keras_dynmask.pairs import source_row, target_text
from keras_dynmask.vocabulary import continuation_ids


@dataclasses.dataclass(frozen=True)
class Guess:
    token: str
    probability: float


def fill_mask(model, tokenizer, sentence, top=5):
    """The most probable tokens for each `[MASK]` of a sentence.

    Args:
        model: a `MaskedLanguageModel`.
        tokenizer: its `tokenizers.Tokenizer`.
        sentence: str, with at least one `[MASK]`.
        top: int, how many guesses for each, at most.

    Returns:
        For each `[MASK]` a list of `Guess`, most probable first. Special tokens are
        never guessed.

    Raises:
        ValueError: where there is nothing to fill.
    """
    ids = np.array([tokenizer.encode(sentence).ids], "int32")  # [1, length]
    places = np.flatnonzero(ids[0] == tokenizer.token_to_id(text.MASK))
    require(len(places) > 0, f"`sentence` must hold {text.MASK}.", sentence=sentence)
    logits = np.array(ops.convert_to_numpy(model(ids, training=False)), "float64")[0, places]
    special = text.special_ids(tokenizer)
    top = min(top, logits.shape[1] - len(special))
    logits[:, special] = -np.inf
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return [
        [Guess(tokenizer.id_to_token(int(i)), float(row[i])) for i in np.argsort(-row)[:top]]
        for row in probabilities
    ]


def masked_example(tokenizer, rows):
    """A passage to try, with one word masked: the one that reads most like prose.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        rows: ids `[rows, length]`.

    Returns:
        The passage with `[MASK]`, and the word that stood there.
    """
    pieces = set(continuation_ids(tokenizer))

    def words(row):
        """Places of whole words."""
        follows = [*row[1:], 0]
        return [
            place
            for place, (index, after) in enumerate(zip(row, follows, strict=True))
            if tokenizer.id_to_token(index).isalpha() and not {index, after} & pieces
        ]

    passages = [[int(index) for index in row[:20]] for row in rows]
    row = max(passages, key=lambda passage: len(words(passage)))
    place = max(words(row)[2:-2] or [0], key=lambda index: len(tokenizer.id_to_token(row[index])))
    before, after = tokenizer.decode(row[:place]), tokenizer.decode(row[place + 1 :])
    return f"{before} {text.MASK} {after}".strip(), tokenizer.id_to_token(row[place])


def prompt_row(recipe, tokenizer, prompt, length=None):
    """Ids with mask tokens where something is to be generated, as a list.

    Args:
        recipe: a `Recipe`, of which a model was made.
        tokenizer: its `tokenizers.Tokenizer`.
        prompt: str, what stands before; of pairs, a source.
        length: int, how many tokens to generate behind the prompt (20); not of pairs, whose
            targets are as long as the recipe says.

    Raises:
        ValueError: where there is nothing to generate, or a source is too long.
    """
    if recipe.pairs:
        require(
            length is None,
            f"`length` must be left out: the recipe's targets have {recipe.target_length} tokens.",
            length=length,
        )
        return source_row(tokenizer, prompt, recipe.length, recipe.target_length)
    length = 20 if length is None else whole("length", length, 0)
    ids = tokenizer.encode(prompt).ids + [tokenizer.token_to_id(text.MASK)] * length
    require(
        tokenizer.token_to_id(text.MASK) in ids,
        f"`length` must be at least 1, or `prompt` must hold {text.MASK}.",
        length=length,
        prompt=prompt,
    )
    return ids


def written(recipe, tokenizer, row):
    """A row as text; of pairs its target. What is still masked stands there as a mask token."""
    if recipe.pairs:
        return target_text(tokenizer, row, recipe.target_length)
    return tokenizer.decode(row.tolist(), skip_special_tokens=False)
