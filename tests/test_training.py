"""Training by a recipe: what a step waits for."""

import numpy as np
import pytest

from keras_dynmask import MaskedLanguageModel, training


def test_rows_come_in_order_and_none_is_left_out():
    rows = training.Rows({"a": np.arange(10), "b": np.arange(20).reshape(10, 2)}, 4)
    batches = [rows[index] for index in range(len(rows))]
    assert [batch["a"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[2]["b"].tolist() == [[16, 17], [18, 19]]


@pytest.mark.slow
def test_nothing_is_traced_after_the_first_epoch(tmp_path, monkeypatch):
    """The default model, its evaluation, and batches of two sizes among the held-out rows."""
    calls, at_epoch_end = [], []
    call, on_epoch_end = MaskedLanguageModel.call, training.Checkpoint.on_epoch_end

    def counted(self, *arguments, **named):
        calls.append(named)
        return call(self, *arguments, **named)

    def noted(self, epoch, logs=None):
        at_epoch_end.append(len(calls))
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(MaskedLanguageModel, "call", counted)
    monkeypatch.setattr(training.Checkpoint, "on_epoch_end", noted)
    (tmp_path / "corpus.txt").write_text("\n".join(f"line number {n} of many" for n in range(2500)))
    recipe = training.Recipe(corpus=(tmp_path / "corpus.txt",), epochs=3)
    training.train(recipe, tmp_path / "run")
    assert len(at_epoch_end) == 3
    assert at_epoch_end[0] == at_epoch_end[1] == at_epoch_end[2] > 1
