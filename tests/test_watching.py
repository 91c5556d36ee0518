"""What a run tells while it trains."""

import itertools
import re

import keras
import numpy as np
import pytest

from keras_dynmask import (
    AdaptiveSelection,
    DynamicMasking,
    MaskedLanguageModel,
    MaskingTensorBoard,
    TransformerEncoder,
    watching,
)

ROWS = np.random.default_rng(0).integers(2, 40, (6, 12))
WORDS = ["[PAD]", "[MASK]", *(f"word_{index}" for index in range(2, 40))]
EPOCHS = 2
STEPS = 3  # of an epoch


def trained(callbacks, adaptive=False, **dials):
    keras.utils.set_random_seed(0)
    masking = DynamicMasking(40, 0.3, 1, seed=5, **dials)
    model = MaskedLanguageModel(
        TransformerEncoder(40, 1, 2, 8, 16),
        masking,
        adaptive_selection=AdaptiveSelection(40) if adaptive else None,
    )
    model.compile("adam")
    model.fit(ROWS, batch_size=2, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def logged(log_dir):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(log_dir / "train"), {"tensors": 0})
    accumulator.Reload()
    return {
        tag: [event.tensor_proto for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


@pytest.mark.parametrize("capacity", [None, 5])
def test_tensorboard_shows_the_rows_as_the_next_step_would_mask_them(tmp_path, capacity):
    dials = {"mask_selection_length": capacity}
    model = trained([MaskingTensorBoard(ROWS, WORDS, shown=2, log_dir=tmp_path)], **dials)
    events = logged(tmp_path)
    assert {"epoch_masked_loss", "epoch_selection_rate"} < events.keys()

    for epoch in range(EPOCHS):
        whole = DynamicMasking(40, 0.3, 1, seed=5)  # the same bits, in the form of rows
        masked = whole.mask_arrays(ROWS, step=STEPS * (epoch + 1))
        selected, shown = masked["mask_weights"] > 0, masked["token_ids"]
        expected = []
        for row in range(2):
            words = []
            for column in range(12):
                word = WORDS[shown[row, column]].replace("_", r"\_")
                if selected[row, column]:
                    same = shown[row, column] == ROWS[row, column]
                    word = f"*{word}*" if same else f"**{word}**"
                words.append("`[MASK]`" if shown[row, column] == 1 else word)
            expected.append(" ".join(words))
        text = [line.decode() for line in events["masks"][epoch].string_val]
        assert text == ["`[MASK]` hidden, **word** swapped, *word* kept", *expected]

        buckets = np.frombuffer(events["selected_positions"][epoch].tensor_content)
        buckets = buckets.reshape(-1, 3)  # from, to, how many
        positions = np.nonzero(selected)[1]
        assert buckets[:, 2].sum() == len(positions)
        assert (buckets[0, 0], buckets[-1, 1]) == (positions.min(), positions.max())
    assert int(model.masking.step) == STEPS * EPOCHS


def test_tensorboard_shows_ids_where_it_is_told_no_tokens(tmp_path):
    trained([MaskingTensorBoard(ROWS, shown=1, log_dir=tmp_path)])
    words = logged(tmp_path)["masks"][0].string_val[1].decode().split()
    untouched = [word for word in words if word.isdigit()]
    assert len(words) == 12 and {*untouched} <= {*map(str, ROWS[0])} and untouched


def test_tensorboard_shows_what_is_selected_rather(tmp_path):
    callback = MaskingTensorBoard(ROWS, log_dir=tmp_path)
    model = trained([callback], adaptive=True)
    known = np.repeat(np.arange(20), 50)
    model.adaptive_selection.update(known, losses=np.zeros(1000))
    weights = keras.ops.convert_to_numpy(model.adaptive_selection(ROWS))
    inputs = {"token_ids": ROWS, "selection_weights": weights}
    expected = model.masking.mask_arrays(inputs, step=STEPS * EPOCHS)
    shown, selected = callback._masked()
    assert (shown == expected["token_ids"]).all()
    assert (selected == (expected["mask_weights"] > 0)).all()
    assert (ROWS[selected] >= 20).mean() > 0.8


@pytest.mark.slow
def test_looking_changes_nothing(tmp_path):
    watched = trained([MaskingTensorBoard(ROWS, log_dir=tmp_path)], adaptive=True)
    alone = trained([], adaptive=True)
    for ours, theirs in zip(watched.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tensorboard_takes_the_layer_of_a_model_of_your_own(tmp_path):
    masking = DynamicMasking(40, 0.3, 1, seed=5)
    inputs = keras.Input((12,), dtype="int32")
    hidden = keras.layers.Embedding(40, 4)(masking(inputs)["token_ids"])
    model = keras.Model(inputs, keras.layers.Dense(40)(hidden))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = MaskingTensorBoard(ROWS, masking=masking, log_dir=tmp_path)
    model.fit(ROWS, ROWS, verbose=0, callbacks=[callback])
    assert "masks" in logged(tmp_path)
    with pytest.raises(ValueError, match=r"`masking` must be a DynamicMasking.*masking=None"):
        MaskingTensorBoard(ROWS, log_dir=tmp_path).set_model(model)


def test_tensorboard_shows_the_layer_of_each_model_in_turn(tmp_path):
    callback = MaskingTensorBoard(ROWS, log_dir=tmp_path, write_graph=False)
    encoder = TransformerEncoder(40, 1, 2, 8, 16)
    for _ in range(2):
        model = MaskedLanguageModel(encoder, DynamicMasking(40, 0.3, 1))
        callback.set_model(model)
        assert callback.masking is model.masking


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": np.full((2, 3), 40)}, "`token_ids` must lie in"),
        ({"rows": np.full((2, 3), 0.5)}, "`token_ids` must be integers"),
        ({"rows": {"ids": ROWS}}, "must hold `token_ids`"),
        ({"rows": ROWS[0]}, r"`rows` must be integers \[rows, length\]. Received: shape=\(12,\)"),
        ({"rows": {"token_ids": ROWS, "begins": ROWS[:, 1:]}}, "`begins` must have the shape"),
        ({"rows": ROWS, "tokens": WORDS[1:]}, "`tokens` must hold a string for each of 40 ids"),
        ({"rows": ROWS, "shown": 0.5}, "`shown` must be a whole number"),
    ],
)
def test_mistakes_are_told_before_the_first_step(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained([MaskingTensorBoard(**arguments, log_dir=tmp_path)])
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tensorboard: pip install 'keras-dynmask\[tensorboard"):
        MaskingTensorBoard(ROWS)


@pytest.mark.parametrize("live", [False, True])
def test_progress_tells_speed_and_time_left(monkeypatch, capsys, live):
    clock = itertools.count(0, 10)  # ten seconds pass whenever somebody looks
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    told = []
    progress = watching.Progress(told.append, 5.0, tokens_per_step=700, live=live)
    progress.set_params({"epochs": 3, "steps": 4})
    logs = {"masked_loss": 4.0, "val_masked_loss": 4.5, "val_masked_accuracy": 0.25}
    for epoch in range(1, 3):  # resumed
        progress.on_epoch_begin(epoch)
        for batch in range(4):
            progress.on_train_batch_end(batch, logs)
        progress.on_epoch_end(epoch, logs)

    clear = "\r\033[K" if live else ""
    assert told == [
        f"{clear}epoch   {epoch}/3  loss 4.000  held out 4.500 (by frequency 5.000)"
        "  accuracy 25.0%  50.0 s, 70 tokens/s"
        for epoch in (2, 3)
    ]
    left = re.findall(r"(\d:\d\d:\d\d) left", capsys.readouterr().out)
    # Ten seconds a step; then, with the 20 between the epochs, 60/4, 70/5, 80/6, 90/7.
    expected = ["0:01:00", "0:00:50", "0:00:40", "0:00:45", "0:00:28", "0:00:13", "0:00:00"]
    assert left == (expected if live else [])
