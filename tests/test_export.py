"""What is exported, each kind run by a client that has neither Keras nor this package."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_dynmask import DynamicMasking, MaskedLanguageModel, TransformerEncoder

PLAIN_TENSORFLOW = """
import contextlib, io, json, sys
sys.modules["keras"] = sys.modules["keras_dynmask"] = None
import numpy as np, tensorflow as tf
from tensorflow.python.tools import saved_model_cli

ids, masked = np.load("ids.npy"), np.load("masked.npy")
served = tf.saved_model.load("saved_model")
generated, steps = masked, 0
while (left := (generated == 1).sum(axis=1)).any():
    count = tf.constant(np.minimum(left, 2), tf.int32)
    generated = served.unmask_step(tf.constant(generated), count).numpy()
    steps += 1

masking = tf.saved_model.load("with_masking")
wide = tf.constant(ids, tf.int64)
masks = {f"step {step}": masking.mask(wide, tf.constant(step, tf.int64)) for step in (0, 7, 0)}
masks["fixed"] = masking.mask_fixed(wide)
np.savez("masks.npz", **{f"{moment} {name}": value.numpy()
                         for moment, outputs in masks.items() for name, value in outputs.items()})

shown = io.StringIO()
for command in ("show --dir saved_model --tag_set serve --signature_def encode",
                "run --dir saved_model --tag_set serve --signature_def serving_default "
                "--inputs token_ids=ids.npy --outdir ."):
    sys.argv = ["saved_model_cli", *command.split()]
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        saved_model_cli.main()

print(json.dumps({
    "generated": generated.tolist(),
    "steps": steps,
    "difference": float(np.abs(served.serve(tf.constant(ids)) - np.load("logits.npy")).max()),
    "command line": float(np.abs(np.load("output_0.npy") - np.load("logits.npy")).max()),
    "shown": shown.getvalue(),
    "shapes": [list(served.encode(tf.constant(ids[:rows, :length])).shape)
               for rows, length in ((1, 1), (3, 2), (4, 9))],
    "endpoints": sorted(served.signatures),
    "with masking": sorted(masking.signatures),
}))
"""

NO_TENSORFLOW = """
import json, sys
sys.modules["keras"] = sys.modules["keras_dynmask"] = sys.modules["tensorflow"] = None
import numpy as np, onnx, onnxruntime, openvino
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

def of_onnx(name):
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    nodes = [node.op_type for node in onnx.load(f"{name}.onnx").graph.node]
    return {"logits": lambda ids: session.run(["logits"], {"token_ids": ids})[0]}, nodes

def of_litert(name):
    interpreter = Interpreter(f"{name}.tflite")
    serve, encode = map(interpreter.get_signature_runner, ("serve", "encode"))
    file = schema.ModelT.InitFromPackedBuf(open(f"{name}.tflite", "rb").read())
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    nodes = [names[file.operatorCodes[node.opcodeIndex].builtinCode]
             for graph in file.subgraphs for node in graph.operators]
    assert len(file.subgraphs) == 2
    return {"logits": lambda ids: serve(token_ids=ids)["logits"],
            "states": lambda ids: encode(token_ids=ids)["hidden_states"]}, nodes

def of_openvino(name):
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(f"{name}.xml", "CPU", hint)
    nodes = [node.get_type_name() for node in compiled.get_runtime_model().get_ops()]
    nodes += [node.get_type_name() for node in openvino.Core().read_model(f"{name}.xml").get_ops()]
    return {"logits": lambda ids: compiled({"token_ids": ids})["logits"]}, nodes

inputs, outputs, operations = np.load("inputs.npz"), {}, {}
for name in ("standard", "visible"):
    for format, opened in (("onnx", of_onnx), ("litert", of_litert), ("openvino", of_openvino)):
        functions, operations[f"{name} {format}"] = opened(name)
        for what, function in functions.items():
            for case, ids in inputs.items():
                outputs[f"{name} {format} {what} {case}"] = function(ids)
np.savez("outputs.npz", **outputs)
print(json.dumps(operations))
"""

SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}


def build(**settings):
    """With dropout, which is random in training, and logits of order 1."""
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(40, 1, 2, 16, 24, dropout=0.1)
    masking = DynamicMasking(40, 0.3, 1, seed=0, name="the_masker")
    model = MaskedLanguageModel(encoder, masking, **settings)
    for index, weight in enumerate(model.trainable_weights):
        weight.assign_add(keras.random.normal(weight.shape, 0, 0.3, seed=index))
    return model


@pytest.fixture(scope="module")
def model():
    model = build()
    model.compile("adam")
    model.fit(np.random.default_rng(0).integers(2, 40, (8, 9)).astype("int32"), verbose=0)
    return model


def answers(program, folder):
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# As a SavedModel.


def masking_to_serve():
    settings = {"mask_selection_length": 4, "mean_span_length": 2.0, "seed": 5}
    return DynamicMasking(40, (0.1, 0.6), 1, **settings)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model.export(folder / "saved_model")
    with_masking = MaskedLanguageModel(TransformerEncoder(40, 1, 2, 16, 24), masking_to_serve())
    with_masking.export(folder / "with_masking", dtype="int64", masking_endpoints=True)
    ids = np.random.default_rng(0).integers(0, 40, (4, 9)).astype("int32")
    np.save(folder / "ids.npy", ids)
    np.save(folder / "logits.npy", model.predict(ids, verbose=0))
    masked = np.maximum(ids, 2)
    masked[:, 2:8] = 1
    np.save(folder / "masked.npy", masked)
    np.save(folder / "generated.npy", model.generate(masked, steps=3))  # two at a time
    return folder


@pytest.fixture(scope="module")
def plain(exported):
    return answers(PLAIN_TENSORFLOW, exported)


@pytest.mark.slow
def test_plain_tensorflow_serves_the_same_numbers(exported, plain):
    assert plain["difference"] < 1e-5
    assert plain["shapes"] == [[1, 1, 16], [3, 2, 16], [4, 9, 16]]
    assert plain["endpoints"] == ["encode", "serve", "serving_default", "unmask_step"]
    assert plain["generated"] == np.load(exported / "generated.npy").tolist()
    assert plain["steps"] == 3


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(plain):
    assert plain["command line"] < 1e-5
    assert "inputs['token_ids'] tensor_info:" in plain["shown"]
    assert "shape: (-1, -1, 16)" in plain["shown"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step 0", "step 7", "fixed"])
def test_masks_are_served_with_the_bits_of_the_layer(exported, plain, moment):
    assert {"mask", "mask_fixed"} <= set(plain["with masking"])
    masks, ids = np.load(exported / "masks.npz"), np.load(exported / "ids.npy").astype("int64")
    masking = masking_to_serve()
    expected = masking.mask_fixed(ids) if moment == "fixed" else masking(ids, step=int(moment[5:]))
    assert (expected["mask_weights"].numpy() > 0).any()
    names = {name.removeprefix(f"{moment} ") for name in masks if name.startswith(moment)}
    assert names == expected.keys()
    for name in names:
        served = masks[f"{moment} {name}"]
        assert served.dtype == expected[name].dtype
        np.testing.assert_array_equal(served, expected[name])


def test_a_keras_layer_serves_it(exported):
    inputs = keras.Input((None,), dtype="int32")
    layer = keras.layers.TFSMLayer(str(exported / "saved_model"), call_endpoint="serve")
    logits = keras.Model(inputs, layer(inputs)).predict(np.load(exported / "ids.npy"), verbose=0)
    np.testing.assert_allclose(logits, np.load(exported / "logits.npy"), atol=1e-5)


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


def test_its_graph_draws_nothing_and_knows_nothing_of_the_masker(exported):
    operations = {node.op for node in nodes(exported, "serve", "encode")}
    assert operations & {"MatMul", "BatchMatMulV2", "Einsum"}
    assert not [op for op in operations if "andom" in op or "Bitwise" in op or "Shift" in op]
    operations = {node.op for node in nodes(exported, "unmask_step")}
    assert "ArgMax" in operations and not [op for op in operations if "andom" in op]
    content = (exported / "saved_model" / "saved_model.pb").read_bytes()
    assert b"the_masker" not in content and b"DynamicMasking" not in content


# For ONNX Runtime, LiteRT and OpenVINO.

# With padding, all padding, and mask tokens; one token; packed rows.
IDS = np.random.default_rng(1).integers(2, 40, (6, 20)).astype("int32")
INPUTS = {"some": IDS[:4, :9].copy(), "one": IDS[:1, :1], "packed": IDS}
INPUTS["some"][1, 4:] = INPUTS["some"][2] = 0
INPUTS["some"][3, 2:5] = 1


@pytest.fixture(scope="module")
def elsewhere(model, tmp_path_factory):
    """What the clients make of the inputs, and what `predict` does; and the graphs' operations."""
    folder = tmp_path_factory.mktemp("elsewhere")
    np.savez(folder / "inputs.npz", **INPUTS)
    expected = {}
    for name, each in (("standard", model), ("visible", build(visible_only=True))):
        for case, ids in INPUTS.items():
            expected[f"{name} logits {case}"] = each.predict(ids, verbose=0)
            expected[f"{name} states {case}"] = each.encode(ids, training=False)
        for format, suffix in SUFFIXES.items():
            each.export(folder / f"{name}{suffix}", format)
    assert sorted(os.listdir(folder)) == [
        "inputs.npz",
        *(f"{name}{end}" for name in ("standard", "visible")
          for end in (".bin", ".onnx", ".tflite", ".xml")),
    ]  # fmt: skip
    operations = answers(NO_TENSORFLOW, folder)
    return np.load(folder / "outputs.npz"), expected, operations


@pytest.mark.slow
@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("name", ["standard", "visible"])
@pytest.mark.parametrize("format", SUFFIXES)
def test_other_runtimes_serve_the_same_numbers(elsewhere, format, name, case):
    outputs, expected, _ = elsewhere
    logits = expected[f"{name} logits {case}"]
    assert 0.3 < logits.std() < 3
    np.testing.assert_allclose(outputs[f"{name} {format} logits {case}"], logits, atol=1e-5)
    if format == "litert":
        states = expected[f"{name} states {case}"]
        np.testing.assert_allclose(outputs[f"{name} litert states {case}"], states, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "visible"])
@pytest.mark.parametrize("format", SUFFIXES)
def test_their_graphs_draw_nothing(elsewhere, format, name):
    operations = {each.lower() for each in elsewhere[2][f"{name} {format}"]}
    assert any("softmax" in each for each in operations)
    drawing = ("random", "bernoulli", "multinomial", "bitwise", "shift")
    assert not [each for each in operations if any(word in each for word in drawing)]


class LogGamma(keras.layers.Layer):
    """What no format can express. LiteRT's converter believes it can."""

    def call(self, states):
        return tf.math.lgamma(states)


@pytest.mark.parametrize("format", SUFFIXES)
def test_what_cannot_be_expressed_leaves_nothing(format, tmp_path):
    ids = keras.Input((None,), dtype="int32")
    encoder = keras.Model(ids, LogGamma()(keras.layers.Embedding(40, 8)(ids)))
    model = MaskedLanguageModel(encoder, DynamicMasking(40, 0.3, 1))
    path = tmp_path / f"model{SUFFIXES[format]}"
    path.write_text("old")
    with pytest.raises(ValueError, match="`encoder` must be one that .* can express"):
        model.export(path, format)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


# Arguments.


def test_the_dtype_can_be_chosen(model, tmp_path):
    model.export(tmp_path / "wide", dtype="int64")
    served = tf.saved_model.load(str(tmp_path / "wide"))
    assert served.serve(tf.constant([[5, 6]], tf.int64)).shape == (1, 2, 40)


@pytest.mark.parametrize(
    "filepath, arguments, message",
    [
        ("a", {"format": "tflite"}, "`format` must be one of 'tf_saved_model', .*'tflite'"),
        ("a", {"dtype": "float32"}, "`dtype` must be 'int32' or 'int64'.*'float32'"),
        ("a.onnx", {"format": "onnx", "dtype": "uint16"}, "`dtype` must be 'int32' or 'int64'"),
        ("a.xml", {"format": "onnx"}, r"`filepath` must end with '\.onnx'.*a\.xml"),
        ("no/a.xml", {"format": "openvino"}, "`filepath` must lie in a directory that exists"),
        (
            "a.onnx",
            {"format": "onnx", "masking_endpoints": True},
            "`masking_endpoints` must be False unless .* format='onnx'",
        ),
        ("a", {"masking_endpoints": 1}, "`masking_endpoints` must be True or False"),
    ],
)
def test_arguments_are_refused(model, tmp_path, filepath, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.export(tmp_path / filepath, **arguments)
    assert not list(tmp_path.iterdir())


def test_other_backends_are_told_where_to_go(model, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="unless Keras runs on TensorFlow.*backend='jax'"):
        model.export(tmp_path / "model.onnx", "onnx")


def test_reduced_precision_is_refused(tmp_path):
    encoder = TransformerEncoder(40, 1, 2, 16, 24, dtype="mixed_bfloat16")
    model = MaskedLanguageModel(encoder, DynamicMasking(40, 0.3, 1))
    with pytest.raises(ValueError, match="`model` must compute in float32 .*'bfloat16'"):
        model.export(tmp_path / "model.onnx", "onnx")
