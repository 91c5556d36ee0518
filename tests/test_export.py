"""The SavedModel, loaded by a process that has neither Keras nor this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

CLIENT = """
import json, sys
sys.modules["keras"] = sys.modules["keras_dynmask"] = None
import numpy as np, tensorflow as tf
path, ids, reference, masked = sys.argv[1:]
served, ids = tf.saved_model.load(path), np.load(ids)
logits = served.serve(tf.constant(ids)).numpy()
generated, steps = np.load(masked), 0
while (left := (generated == 1).sum(axis=1)).any():
    count = tf.constant(np.minimum(left, 2), tf.int32)
    generated = served.unmask_step(tf.constant(generated), count).numpy()
    steps += 1
print(json.dumps({
    "generated": generated.tolist(),
    "steps": steps,
    "difference": float(np.abs(logits - np.load(reference)).max()),
    "shapes": [list(served.encode(tf.constant(ids[:rows, :length])).shape)
               for rows, length in ((1, 1), (3, 2), (4, 9))],
    "signature": list(served.signatures["serving_default"].structured_outputs),
    "endpoints": sorted(served.signatures),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    masking = DynamicMasking(40, 0.3, 1, name="the_masker")
    model = MaskedLanguageModel(TransformerEncoder(40, 1, 2, 16, 24), masking)
    model.compile("adam")
    ids = np.random.default_rng(0).integers(0, 40, (4, 9)).astype("int32")
    model.fit(ids, verbose=0)
    model.export(folder / "saved_model")
    np.save(folder / "ids.npy", ids)
    np.save(folder / "reference.npy", model.predict(ids, verbose=0))
    masked = np.maximum(ids, 2)
    masked[:, 2:8] = 1
    np.save(folder / "masked.npy", masked)
    np.save(folder / "generated.npy", model.generate(masked, steps=3))  # two at a time
    return folder


def nodes(folder, *endpoints):
    """The nodes that these endpoints reach."""
    saved = saved_model_pb2.SavedModel.FromString(
        (folder / "saved_model" / "saved_model.pb").read_bytes()
    )
    (graph,) = saved.meta_graphs
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    output = [graph.signature_def[name].outputs for name in endpoints]
    named = {tensor.name.split(":")[0] for outputs in output for tensor in outputs.values()}
    open_ = [node for node in graph.graph_def.node if node.name in named]
    while open_:
        node = open_.pop()
        yield node
        called = [attr.func.name for attr in node.attr.values() if attr.HasField("func")]
        for name in called:
            if name in functions:
                open_ += functions.pop(name).node_def


@pytest.mark.slow
def test_plain_tensorflow_serves_the_same_numbers(exported):
    names = ("saved_model", "ids.npy", "reference.npy", "masked.npy")
    files = [str(exported / name) for name in names]
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, *files], capture_output=True, text=True, check=True
    )
    said = json.loads(run.stdout)
    assert said["difference"] < 1e-5
    assert said["shapes"] == [[1, 1, 16], [3, 2, 16], [4, 9, 16]]
    assert said["endpoints"] == ["encode", "serve", "serving_default", "unmask_step"]
    assert said["generated"] == np.load(exported / "generated.npy").tolist()
    assert said["steps"] == 3


def test_its_graph_draws_nothing_and_knows_nothing_of_the_masker(exported):
    operations = {node.op for node in nodes(exported, "serve", "encode")}
    assert operations & {"MatMul", "BatchMatMulV2", "Einsum"}
    assert not [op for op in operations if "andom" in op or "Bitwise" in op or "Shift" in op]
    operations = {node.op for node in nodes(exported, "unmask_step")}
    assert "ArgMax" in operations and not [op for op in operations if "andom" in op]
    content = (exported / "saved_model" / "saved_model.pb").read_bytes()
    assert b"the_masker" not in content and b"DynamicMasking" not in content


def test_the_dtype_can_be_chosen(exported, tmp_path):
    model = MaskedLanguageModel(TransformerEncoder(40, 1, 2, 16, 24), DynamicMasking(40, 0.3, 1))
    model.export(tmp_path / "wide", dtype="int64")
    served = tf.saved_model.load(str(tmp_path / "wide"))
    assert served.serve(tf.constant([[5, 6]], tf.int64)).shape == (1, 2, 40)
