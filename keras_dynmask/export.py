"""The trained model for programs that know neither Keras nor this package."""

import os
import pathlib
import tempfile
import unittest.mock

import keras
import numpy as np

from keras_dynmask.errors import flag, need_extra, require
from keras_dynmask.sampling import Unmasking

SUFFIXES = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}
EXTRAS = {  # the modules of each
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
    "litert": ("ai_edge_litert",),
    "openvino": ("openvino",),
}


def export(
    model,
    filepath,
    format="tf_saved_model",
    *,
    dtype="int32",
    masking_endpoints=False,
    verbose=False,
):
    """Writes what TensorFlow, ONNX Runtime, LiteRT or OpenVINO serve on their own.

    Token ids `[batch, length]` in, of any batch and any length; logits `[batch, length,
    vocabulary]` out, as `predict` gives them. The graph holds no random op and nothing of the
    masking, unless it is asked for.

    | `format` | gives | needs |
    |---|---|---|
    | "tf_saved_model" | the endpoints of `export_saved_model` | |
    | "onnx" | `logits` | `pip install "keras-dynmask[onnx]"` |
    | "litert" | signatures `serve`: `logits`, and `encode`: `hidden_states` | `[litert]` |
    | "openvino" | `logits` | `[openvino]` |

    The input is called `token_ids`. The numbers are those of `predict` to 1e-5 on logits of
    order 1 (measured: 2e-6), where OpenVINO is told `INFERENCE_PRECISION_HINT="f32"`: on
    processors that know bfloat16 it computes in that by itself, and is off by 2e-2.

    Not every encoder can be expressed in every format (LiteRT has no DeBERTa, ONNX no Fourier
    transform). So what was written is run by its runtime before anybody has it.

    Args:
        model: a `MaskedLanguageModel`.
        filepath: the directory of a SavedModel; else a file that ends with ".onnx",
            ".tflite" or ".xml". Beside the latter stand OpenVINO's weights, in a ".bin". A file
            appears whole or not at all, in place of an older one.
        format: one of the above.
        dtype: what the endpoints take, "int32" or "int64". They are strict.
        masking_endpoints: bool. True adds the masking's own to a SavedModel.
        verbose: bool, whether Keras prints a SavedModel's endpoints.

    Raises:
        ValueError: for arguments that do not go together, and for an encoder that the format
            can't express.
        ImportError: that names the extra to install.
        OSError: where it can't be written.
    """
    formats = ", ".join(map(repr, SUFFIXES))
    require(format in SUFFIXES, f"`format` must be one of {formats}.", format=format)
    require(dtype in ("int32", "int64"), "`dtype` must be 'int32' or 'int64'.", dtype=dtype)
    if format == "tf_saved_model":
        export_saved_model(
            model, filepath, dtype=dtype, masking_endpoints=masking_endpoints, verbose=verbose
        )
        return
    require(
        not flag("masking_endpoints", masking_endpoints),
        "`masking_endpoints` must be False unless `format` is 'tf_saved_model'.",
        format=format,
    )
    need_extra_of(format)
    path = pathlib.Path(filepath)
    _check(model, path, format)
    functions = _functions(model, dtype)
    write = {"onnx": _write_onnx, "litert": _write_litert, "openvino": _write_openvino}[format]
    with tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder:
        try:
            run = write(functions, os.path.join(folder, path.name))
            difference = _difference(run, functions.serve)
        except OSError:
            raise
        except Exception as error:  # each converter has its own
            raise _not_expressed(format, error) from error
        if not difference < 0.01:  # for accuracy see the tests
            raise _not_expressed(format, f"its numbers differ by {difference}.")
        for name in sorted(os.listdir(folder)):  # weights before the graph that names them
            os.replace(os.path.join(folder, name), path.with_name(name))


def need_extra_of(format):
    """Raise an `ImportError` that names the extra, unless what the format needs is installed."""
    need_extra(format, *EXTRAS.get(format, ()))


def export_saved_model(model, filepath, *, dtype="int32", masking_endpoints=False, verbose=False):
    """Writes a SavedModel that TensorFlow serves without Keras and without this package.

    Endpoints `serve` (and `serving_default`), token ids to logits `[batch, length,
    vocabulary]`; `encode`, token ids to hidden states `[batch, length, dim]`; and `unmask_step`,
    token ids and a `count` for each row, `[batch]`, to token ids in which so many of the
    mask tokens are filled in, those of which the model is surest: called until none is left, it
    generates as `MaskedLanguageModel.generate` does at temperature 0. For any batch and any
    length. The graph holds no random op and nothing of the masking.

    With `masking_endpoints`, for services that prepare data, two more: `mask`, token ids and
    an int64 scalar `step` to the outputs of the `DynamicMasking` in training at that step; and
    `mask_fixed`, token ids to those of its `mask_fixed`. Both give the layer's own bits, and
    neither has a state.

    Args:
        model: a `MaskedLanguageModel`.
        filepath: the directory to write.
        dtype: what the endpoints take, "int32" or "int64". SavedModels are strict.
        masking_endpoints: bool.
        verbose: bool, whether Keras prints the endpoints.

    Raises:
        ValueError: for another dtype.
        ImportError: without TensorFlow.
        OSError: where it can't be written.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("A SavedModel is TensorFlow's: install tensorflow.") from error

    require(dtype in ("int32", "int64"), "`dtype` must be 'int32' or 'int64'.", dtype=dtype)
    token_ids = [tf.TensorSpec((None, None), dtype, name="token_ids")]
    archive = keras.export.ExportArchive()
    archive.track(model.encoder)
    archive.track(model.head)
    if model.decoder is not None:
        archive.track(model.decoder)
    archive.add_endpoint("serve", lambda ids: model(ids, training=False), token_ids)
    archive.add_endpoint("encode", lambda ids: model.encode(ids, training=False), token_ids)
    count = tf.TensorSpec((None,), "int32", name="count")
    archive.add_endpoint("unmask_step", Unmasking(model).fill_in, [*token_ids, count])
    if flag("masking_endpoints", masking_endpoints):
        masking = model.masking
        step = tf.TensorSpec((), "int64", name="step")
        archive.track(masking)
        archive.add_endpoint(
            "mask", lambda ids, step: masking(ids, training=True, step=step), [*token_ids, step]
        )
        archive.add_endpoint("mask_fixed", masking.mask_fixed, token_ids)
    try:
        archive.write_out(str(filepath), verbose=verbose)
    except tf.errors.OpError as error:  # a full disk, in TensorFlow's own words
        raise OSError(error.message) from error


def _check(model, path, format):
    """That the format can be written there, here and of this model."""
    require(
        path.suffix == SUFFIXES[format],
        f"`filepath` must end with '{SUFFIXES[format]}'.",
        filepath=str(path),
    )
    require(
        path.absolute().parent.is_dir(),
        "`filepath` must lie in a directory that exists.",
        filepath=str(path),
    )
    backend = keras.backend.backend()
    require(
        backend == "tensorflow",
        "`format` must be 'tf_saved_model' unless Keras runs on TensorFlow: load the model there.",
        format=format,
        backend=backend,
    )
    policies = sorted({model.encoder.compute_dtype, model.head.compute_dtype})
    require(
        policies == ["float32"],
        "`model` must compute in float32 for this format: build it so, and load its weights.",
        compute_dtype=policies,
        format=format,
    )


def _functions(model, dtype):
    """A `tf.Module` with the functions `serve` and `encode`, and the weights they read."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    signature = [tf.TensorSpec((None, None), dtype, name="token_ids")]

    @tf.function(input_signature=signature, autograph=False)
    def serve(token_ids):
        return {"logits": model(token_ids, training=False)}

    @tf.function(input_signature=signature, autograph=False)
    def encode(token_ids):
        return {"hidden_states": model.encode(token_ids, training=False)}

    module.serve, module.encode = serve, encode
    return module


def _difference(run, serve):
    """The largest between the logits of a few tokens, at two shapes."""
    (signature,) = serve.input_signature
    rows = [np.ones(shape, signature.dtype.as_numpy_dtype) for shape in ((1, 5), (3, 2))]
    return max(np.abs(run(ids) - serve(ids)["logits"]).max() for ids in rows)


def _write_litert(functions, path):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Not through the SavedModel: of one that Keras wrote, TensorFlow converts one endpoint only.
    # And without TensorFlow's own ops, which LiteRT does not have.
    both = [functions.serve.get_concrete_function(), functions.encode.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(both, functions)
    pathlib.Path(path).write_bytes(converter.convert())
    quiet = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # the default greets the user
    interpreter = Interpreter(path, experimental_op_resolver_type=quiet)
    serve = interpreter.get_signature_runner("serve")
    return lambda ids: serve(token_ids=ids)["logits"]


def _write_openvino(functions, path):
    import openvino
    import tensorflow as tf

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(functions, folder, signatures=functions.serve)
        # Not `convert_model`, which tells OpenVINO's makers over the network.
        openvino.save_model(core.read_model(folder), path, compress_to_fp16=False)
    serve = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda ids: serve({"token_ids": ids})["logits"]


def _write_onnx(functions, path):
    import onnxruntime
    from tf2onnx import convert, optimizer

    with unittest.mock.patch.dict(optimizer._optimizers) as sound:
        # It merges two reshapes even where the second copies a dimension that the first made.
        del sound["remove_back_to_back"]
        convert.from_function(
            functions.serve,
            input_signature=functions.serve.input_signature,
            opset=18,
            custom_op_handlers={"Erfc": (_erfc, [])},  # of gelu
            output_path=path,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(["logits"], {"token_ids": ids})[0]


def _erfc(graph, node, name, arguments):
    """erfc(x) = 1 - erf(x): tf2onnx knows erf alone."""
    (x,), (y,) = node.input, node.output
    described = {"shapes": [graph.get_shape(y)], "dtypes": [graph.get_dtype(y)]}
    graph.remove_node(name)
    one = graph.make_const(f"{name}/one", np.array(1, "float32")).output[0]
    erf = graph.make_node("Erf", [x]).output[0]
    graph.make_node("Sub", [one, erf], name=name, outputs=[y], **described)


def _not_expressed(format, reason):
    reason = " ".join(str(reason).split())[:300]
    return ValueError(f"`encoder` must be one that {format} can express. Received: {reason}")
