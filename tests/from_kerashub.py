"""KerasHub's text models in small: their backbones, and their tokenizers made in memory."""

import functools
import io

import pytest

# What the page compares with. Older Keras has older ones, with other ways in eager mode.
keras_hub = pytest.importorskip("keras_hub", minversion="0.32")
sentencepiece = pytest.importorskip("sentencepiece")
models = keras_hub.models

VOCABULARY, LENGTH = 50, 16
SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32}
HEADS = {"num_heads": 2}
POSITIONS = {"max_sequence_length": LENGTH}


def backbone(name, size=VOCABULARY):
    """A small backbone with weights of its own, by the name that KerasHub gives its family."""
    arguments = {
        "ESM": HEADS | POSITIONS,
        "FNet": POSITIONS,
        "RoformerV2": HEADS | {"head_size": 8},
        "DebertaV3": HEADS | POSITIONS | {"bucket_size": 8},
        "Albert": HEADS | POSITIONS | {"embedding_dim": 8},
        "Electra": HEADS | POSITIONS | {"embedding_dim": 8},
    }.get(name, HEADS | POSITIONS)
    rows = "vocab_size" if name == "Electra" else "vocabulary_size"
    return getattr(models, f"{name}Backbone")(**SIZE, **arguments, **{rows: size})


# Tokenizers. Each cuts some words of the text into pieces.

TEXT = "the quick brown fox jumped"
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def proto(**special):
    """A SentencePiece model of letters, and of the words `the` and `fox`."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9 + ["the fox"] * 90),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    return written.getvalue()


def of_word_pieces(kind):
    return kind([*BERT, "the", "qu", "##ick", "brown", "fox", "jump", "##ed"])


def of_bytes(kind):
    letters = sorted(set(TEXT) - {" "})
    joined = ["Ġb", "Ġf", "Ġj", "Ġq"]
    tokens = [*ROBERTA[:4], *letters, "Ġ", *joined, ROBERTA[4]]
    return kind({token: index for index, token in enumerate(tokens)}, ["Ġ " + j[1] for j in joined])


def of_sentence_pieces(kind, pad, unknown, **symbols):
    named = {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "pad_piece": pad, "unk_piece": unknown}
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
    return kind(proto(**named, **ids, **symbols))


TOKENIZERS = {  # how each is made, and its special tokens
    "Bert": (lambda: of_word_pieces(models.BertTokenizer), BERT),
    "DistilBert": (lambda: of_word_pieces(models.DistilBertTokenizer), BERT),
    "Electra": (lambda: of_word_pieces(models.ElectraTokenizer), BERT),
    "Roberta": (lambda: of_bytes(models.RobertaTokenizer), ROBERTA),
    # DeBERTa's mask token is no piece, and stands behind them.
    "DebertaV3": (
        lambda: of_sentence_pieces(models.DebertaV3Tokenizer, pad="[PAD]", unknown="[UNK]"),
        BERT,
    ),
    "Albert": (
        lambda: of_sentence_pieces(
            models.AlbertTokenizer, pad="<pad>", unknown="<unk>", user_defined_symbols="[MASK]"
        ),
        ALBERT,
    ),
    "FNet": (
        lambda: of_sentence_pieces(
            models.FNetTokenizer, pad="<pad>", unknown="<unk>", user_defined_symbols="[MASK]"
        ),
        ALBERT,
    ),
    # XLM-RoBERTa's ids are not those of its pieces.
    "XLMRoberta": (
        lambda: models.XLMRobertaTokenizer(proto(unk_id=0, bos_id=1, eos_id=2)),
        ROBERTA,
    ),
}


@functools.cache
def tokenizer(name):
    return TOKENIZERS[name][0]()
