"""The same questions to every masker, each answered by an experiment.

    python benchmarks/same_questions.py

Asks `DynamicMasking` and what people use today: a layer written on `keras.random`, Keras'
own `Dropout`, KerasHub's `MaskedLMMaskGenerator` and Hugging Face's
`DataCollatorForLanguageModeling`, each where its documentation puts it: in the model, in
tf.data, in PyTorch's `DataLoader`. Prints a Markdown table with the count behind each
answer, and how it was taken, within two minutes on two cores. A peer that is not
installed says so.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile

import keras
import numpy as np
from keras import ops, tree

from keras_dynmask import DynamicMasking, mask_dataset

VOCABULARY, SPECIAL, MASK, RATE = 100, (0, 1, 2, 3, 4), 4, 0.15
BATCH, LENGTH, STEPS, MANY, RUNS = 8, 32, 20, 200, 3
# All different, and every position selectable: equal masks mean equal noise.
ROWS = np.random.default_rng(0).integers(5, VOCABULARY, (BATCH * MANY, LENGTH)).astype("int32")
EPOCH = ROWS[: BATCH * STEPS]
GLOBAL_SEED, SEED = 1, 7

QUESTIONS = {
    "fresh": (
        "fresh in every epoch",
        "the global seed is set once, at the start: masks of epoch 2 that epoch 1 had (the "
        "collator: also in workers, which live for an epoch unless told otherwise)",
    ),
    "fresh_when_reset": (
        "fresh, the global seed set again before each epoch",
        "the same, with a seed of its own and without",
    ),
    "own_seed": (
        "the same seed, the same masks",
        "masks that differ between two maskers of one seed, under two global seeds",
    ),
    "leaves_global_seed": (
        "no effect on other random numbers",
        "the next numbers of `random`, NumPy, Keras and the backend under a global seed that are "
        "others when an epoch is masked before",
    ),
    "parallel": (
        "parallel `Dataset.map`: equal from run to run, no mask twice",
        f"{RUNS} fresh pipelines over {MANY} batches, `num_parallel_calls=8, deterministic=True`, "
        "one global seed, one seed of its own: masks of the later ones that differ from the "
        "first's, and that another batch of the same run had. `DynamicMasking` by `mask_dataset` "
        "(a bare `map` of it repeats nothing, but differs); the collator in a `DataLoader` with 2 "
        "workers",
    ),
    "replicas": (
        "replicas draw different masks",
        "`tf.distribute.MirroredStrategy`, two logical CPU devices that are given the same rows: "
        "masks that both drew at a step (the collator: two workers, and two processes)",
    ),
    "resume": (
        "resumed exactly",
        "stopped after 10 steps, saved, loaded into a fresh object: masks of the next 10 steps "
        "that are not those of the uninterrupted run. A model is saved as `.keras`, a pipeline by "
        "`tf.train.Checkpoint(iterator)`; the collator saves nothing: torch's own state is put "
        "back by hand, just before the next batch",
    ),
    "inert_in_predict": (
        "inert in `predict`",
        "tokens that `predict` changes before the encoder sees them (KerasHub's layer is meant for "
        "tf.data; here a model holds it)",
    ),
    "inert_when_exported": (
        "inert in an exported model",
        "the same in a SavedModel, as `export` writes and TensorFlow loads it",
    ),
    "compiled": (
        "runs inside the compiled step",
        "`fit` in a graph, and with `jit_compile=True`: masks that an earlier step had, or the "
        "error",
    ),
    "equal_under_xla": (
        "equal in eager mode, in a graph and under XLA",
        "`fit` three times by one seed: masks that differ from the eager ones, or the error",
    ),
    "equal_on_backends": (
        "equal on other backends",
        "masks of one seed that differ from TensorFlow's, in a process for each backend (the "
        "collator: NumPy arrays from PyTorch's tensors)",
    ),
    "exact_count": (
        "exact count in every row",
        f"rows of {LENGTH} tokens with neither 4 nor 5 selected; {RATE} of them is "
        f"{RATE * LENGTH:.1f}",
    ),
    "specials": (
        "special ids never drawn as random tokens",
        "all selected tokens swapped: those that became padding, a special or the mask token",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--elsewhere", action="store_true", help="print as JSON what is asked of another backend"
    )
    if parser.parse_args().elsewhere:
        print(json.dumps(elsewhere()))
        return
    if keras.backend.backend() != "tensorflow":
        parser.error("start it on TensorFlow, KERAS_BACKEND=tensorflow: it asks the others itself")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    [device] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    backends = {"jax": "JAX", "torch": "PyTorch"}
    processes = {backends[name]: start_elsewhere(name) for name in backends if installed(name)}

    columns = {peer: peer.answers() for peer in PEERS if installed(*peer.packages)}
    found = {name: finish_elsewhere(process) for name, process in processes.items()}
    for peer, answers in columns.items():
        masks = {name: np.array(there["masks"][peer.name]) for name, there in found.items()}
        answers["equal_on_backends"] = peer.equal_on_backends(masks)
    if "collator" in found.get("PyTorch", {}):
        columns[COLLATOR] = found["PyTorch"]["collator"]
    print_versions()
    print_table(columns)


# The other backends. PyTorch's process asks the collator, too: the workers of a `DataLoader`
# are forks, and a process that runs TensorFlow must not be forked.


def elsewhere():
    found = {}
    if keras.backend.backend() == "torch" and installed(*COLLATOR.packages):
        found["collator"] = COLLATOR.answers()
    found["masks"] = {
        peer.name: peer.some_masks().tolist() for peer in PEERS if installed(*peer.packages)
    }
    return found


def start_elsewhere(backend):
    return subprocess.Popen(
        [sys.executable, __file__, "--elsewhere"],
        env=os.environ | {"KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish_elsewhere(process):
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"A process of another backend failed with {process.returncode}.")
    return json.loads(output.splitlines()[-1])


def installed(*packages):
    return all(importlib.util.find_spec(package) is not None for package in packages)


# What is printed.


def print_versions():
    names = ("keras-dynmask", "keras", "tensorflow", "jax", "torch", "keras-hub", "transformers")
    versions = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    print(f"{', '.join(versions)}; {platform.machine()}, CPU as two logical devices\n")


def print_table(columns):
    peers = [*PEERS, COLLATOR]
    print(f"| | {' | '.join(peer.name for peer in peers)} |")
    print("|---" * (len(peers) + 1) + "|")
    for question, (title, _) in QUESTIONS.items():
        cells = (
            columns[peer][question] if peer in columns else f"not installed: `{peer.install}`"
            for peer in peers
        )
        print(f"| {title} | {' | '.join(cells)} |")
    print("\nHow each was counted:\n")
    for title, how in QUESTIONS.values():
        print(f"- *{title}*: {how}")


def answer(what, cases):
    """`yes`, `no` or `partly`, and of each case what went wrong: `(bad, of)`, or the error."""
    wrong = [isinstance(case, Exception) or case[0] > 0 for case in cases.values()]
    if not any(wrong):
        return f"yes: 0 of {sum(of for _, of in cases.values())} {what}"
    parts = []
    for label, case in cases.items():
        if isinstance(case, Exception):
            words = [type(case).__name__, label]
        else:
            words = [f"{case[0]} of {case[1]}", "" if parts else what, label]
        parts.append(" ".join(word for word in words if word))
    return f"{'no' if all(wrong) else 'partly'}: {', '.join(parts)}"


# Counting. A mask is where a batch was selected, bool [batch, length]; masks are
# [steps, batch, length]. Each count is `(bad, of)`.


def repeated(first, second):
    seen = {mask.tobytes() for mask in first}
    return sum(mask.tobytes() in seen for mask in second), len(second)


def doubled(masks):
    return len(masks) - len({mask.tobytes() for mask in masks}), len(masks)


def differing(first, second):
    return int((first != second).any(axis=(1, 2)).sum()), len(first)


def shared(first, second):
    return int((first == second).all(axis=(1, 2)).sum()), len(first)


def rows_off(masks):
    counts = masks.sum(axis=-1)
    return int((np.abs(counts - RATE * LENGTH) >= 1).sum()), counts.size


def total(counts):
    return tuple(map(sum, zip(*counts, strict=True)))


def attempt(count, *arguments):
    """The count, or the error in its place."""
    try:
        return count(*arguments)
    except Exception as error:
        return error


def random_numbers():
    """The next number of each generator that a global seed sets."""
    backend = importlib.import_module(keras.backend.backend())
    own = backend.rand(1) if hasattr(backend, "rand") else backend.random.uniform([1])
    numbers = random.random(), np.random.rand(), keras.random.uniform([1])[0], own[0]
    return [float(number) for number in numbers]


# The peers.


class Peer:
    """A masker where it belongs: `start` sets it up, `batches` runs one epoch of it."""

    packages = ()
    takes_seed = True

    def answers(self):
        return {name: getattr(self, name)() for name in QUESTIONS if name != "equal_on_backends"}

    def epoch(self, started):
        return self.masks(self.batches(started))

    def masks(self, batches):
        return np.array([self.selected(masked) for masked in batches])

    def selected(self, masked):
        return np.asarray(masked["mask_weights"]) > 0

    def shown(self, masked):
        return np.asarray(masked["token_ids"])

    def fresh(self):
        return answer("repeated", {"": self.repeated_in_two_epochs()})

    def repeated_in_two_epochs(self, **arguments):
        keras.utils.set_random_seed(GLOBAL_SEED)
        started = self.start(**arguments)
        return repeated(self.epoch(started), self.epoch(started))

    def fresh_when_reset(self):
        if not self.takes_seed:
            return answer("repeated", {"": self.repeated_when_reset()})
        cases = {"": self.repeated_when_reset(), "with `seed`": self.repeated_when_reset(seed=SEED)}
        return answer("repeated", cases)

    def repeated_when_reset(self, **arguments):
        started, epochs = self.start(**arguments), []
        for _ in range(2):
            keras.utils.set_random_seed(GLOBAL_SEED)
            epochs.append(self.epoch(started))
        return repeated(*epochs)

    def own_seed(self):
        epochs = []
        for global_seed in (1, 2):
            keras.utils.set_random_seed(global_seed)
            epochs.append(self.epoch(self.start(seed=SEED)))
        label = "" if self.takes_seed else "(it takes none)"
        return answer("differ", {label: differing(*epochs)})

    def leaves_global_seed(self):
        keras.utils.set_random_seed(GLOBAL_SEED)
        expected = random_numbers()
        keras.utils.set_random_seed(GLOBAL_SEED)
        self.mask_an_epoch()
        others = sum(a != b for a, b in zip(expected, random_numbers(), strict=True))
        return answer("changed", {"": (others, len(expected))})

    def mask_an_epoch(self):
        self.epoch(self.start(seed=SEED))

    def parallel(self):
        runs = []
        for _ in range(RUNS):
            keras.utils.set_random_seed(GLOBAL_SEED)
            runs.append(self.masks(self.pipeline(ROWS, seed=SEED, parallel=8)))
        differ, of = total(differing(runs[0], masks) for masks in runs[1:])
        twice, _ = total(map(doubled, runs[1:]))
        return f"{'no' if differ or twice else 'yes'}: {differ} of {of} differ, {twice} repeated"

    def exact_count(self):
        return answer("rows off", {"": rows_off(self.epoch(self.start(seed=SEED)))})

    def specials(self):
        batches = self.batches(self.start(seed=SEED, all_swapped=True))
        drawn = np.concatenate([self.shown(masked)[self.selected(masked)] for masked in batches])
        return answer("special", {"": (int(np.isin(drawn, SPECIAL).sum()), len(drawn))})


@keras.saving.register_keras_serializable(package="same_questions")
class Shown(keras.Model):
    """A model that learns nothing: a step of `fit` gives what an encoder would be shown."""

    def train_step(self, token_ids):
        return self(token_ids, training=True)


class KerasPeer(Peer):
    """A layer: in a model, which masks in `fit`, or mapped over a dataset."""

    def apply(self, layer, token_ids, training=None):
        return layer(token_ids, training=training)

    def model(self, seed=None, all_swapped=False, **compile_arguments):
        token_ids = keras.Input((LENGTH,), dtype="int32")
        model = Shown(token_ids, self.apply(self.layer(seed, all_swapped), token_ids))
        model.compile(**compile_arguments)
        return model

    def fit(self, model, rows=EPOCH):
        shown = []
        keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: shown.append(logs))
        model.fit(rows, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[keep])
        return shown

    def mapped(self, rows=EPOCH, seed=None, all_swapped=False, parallel=None, batch=BATCH):
        layer = self.layer(seed, all_swapped)
        return batched(rows, batch).map(
            lambda token_ids: self.apply(layer, token_ids, training=True),
            num_parallel_calls=parallel,
            deterministic=True if parallel else None,
        )

    start, batches, pipeline = model, fit, mapped

    def replicas(self):
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = self.model(seed=SEED)

        def masked(token_ids):
            return tree.map_structure(tf.identity, model(token_ids, training=True))

        step = tf.function(lambda token_ids: strategy.run(masked, (token_ids,)))
        return self.shared_by_both(strategy, map(step, batched(EPOCH)))

    def shared_by_both(self, strategy, batches):
        both = []
        for masked in batches:
            local = {k: strategy.experimental_local_results(v) for k, v in masked.items()}
            both.append([{k: v[replica] for k, v in local.items()} for replica in (0, 1)])
        return answer("shared", {"": shared(*map(self.masks, zip(*both, strict=True)))})

    def resume(self):
        cases = {"from `.keras`": self.resumed_model(), "from an iterator": self.resumed_iterator()}
        return answer("differ", cases)

    def resumed_model(self):
        before, after = np.split(EPOCH, 2)
        model = self.model(seed=SEED)
        self.fit(model, before)
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model.keras")
            resumed = keras.saving.load_model(f"{folder}/model.keras")
        return differing(*(self.masks(self.fit(each, after)) for each in (model, resumed)))

    def resumed_iterator(self):
        import tensorflow as tf

        whole, resumed = (iter(self.pipeline(seed=SEED)) for _ in range(2))
        for _ in range(STEPS // 2):
            next(whole)
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = tf.train.Checkpoint(iterator=whole).write(f"{folder}/iterator")
            except tf.errors.FailedPreconditionError as error:
                return error
            tf.train.Checkpoint(iterator=resumed).read(path)
        return differing(self.masks(whole), self.masks(resumed))

    def inert_in_predict(self):
        keras.utils.set_random_seed(GLOBAL_SEED)
        return self.changed(self.model().predict(EPOCH, verbose=0))

    def inert_when_exported(self):
        import tensorflow as tf

        keras.utils.set_random_seed(GLOBAL_SEED)
        with tempfile.TemporaryDirectory() as folder:
            self.model().export(folder, verbose=False)
            served = tf.saved_model.load(folder)
            return self.changed(served.serve(EPOCH))

    def changed(self, masked):
        changed = self.shown(masked) != EPOCH
        return answer("changed", {"": (int(changed.sum()), changed.size)})

    def compiled(self):
        def count(jit_compile):
            return doubled(self.masks(self.fit(self.model(jit_compile=jit_compile))))

        return answer("repeated", in_graph_and_xla(count))

    def equal_under_xla(self):
        def masks(**compile_arguments):
            keras.utils.set_random_seed(GLOBAL_SEED)
            return self.masks(self.fit(self.model(seed=SEED, **compile_arguments)))

        eager = masks(run_eagerly=True)
        return answer(
            "differ", in_graph_and_xla(lambda jit: differing(eager, masks(jit_compile=jit)))
        )

    def equal_on_backends(self, masks):
        here = self.some_masks()
        cases = {f"on {backend}": differing(here, there) for backend, there in masks.items()}
        return answer("differ", cases) if cases else "-"

    def some_masks(self):
        layer, token_ids = self.layer(seed=SEED), ops.convert_to_tensor(EPOCH[:BATCH])
        calls = (self.apply(layer, token_ids, training=True) for _ in range(STEPS))
        return self.masks(tree.map_structure(ops.convert_to_numpy, call) for call in calls)


def batched(rows, size=BATCH):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(rows).batch(size)


def in_graph_and_xla(count):
    return {"in a graph": attempt(count, False), "under XLA": attempt(count, True)}


class Ours(KerasPeer):
    name = "`DynamicMasking`"

    def layer(self, seed=None, all_swapped=False):
        shares = {"mask_token_rate": 0.0, "random_token_rate": 1.0} if all_swapped else {}
        return DynamicMasking(
            VOCABULARY, RATE, MASK, unselectable_token_ids=SPECIAL, seed=seed, **shares
        )

    def pipeline(self, rows=EPOCH, seed=None, parallel=None):
        masked = mask_dataset(batched(rows), self.layer(seed))
        return masked.map(lambda x, y, weights: {**x, "mask_weights": weights})


@keras.saving.register_keras_serializable(package="same_questions")
class OrdinaryMasking(keras.layers.Layer):
    """What one writes with `keras.random`: BERT's recipe, and a generator as `Dropout` has."""

    def __init__(self, hide_share=0.8, swap_share=0.1, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.hide_share, self.swap_share, self.seed = hide_share, swap_share, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, token_ids, training=False):
        shape = ops.shape(token_ids)
        if not training:
            return {"token_ids": token_ids, "mask_weights": ops.zeros(shape)}
        selected = keras.random.uniform(shape, seed=self.generator) < RATE
        role = keras.random.uniform(shape, seed=self.generator)
        swaps = keras.random.randint(shape, len(SPECIAL), VOCABULARY, seed=self.generator)
        swapped = selected & (role < self.hide_share + self.swap_share)
        shown = ops.where(swapped, ops.cast(swaps, token_ids.dtype), token_ids)
        shown = ops.where(selected & (role < self.hide_share), MASK, shown)
        return {"token_ids": shown, "mask_weights": ops.cast(selected, "float32")}


class KerasRandom(KerasPeer):
    name = "a layer on `keras.random`"

    def layer(self, seed=None, all_swapped=False):
        return OrdinaryMasking(*((0.0, 1.0) if all_swapped else ()), seed=seed)


class KerasDropout(KerasPeer):
    """Keras' own layer as a witness: what it drops is what it selects."""

    name = "`keras.layers.Dropout`"

    def layer(self, seed=None, all_swapped=False):
        return keras.layers.Dropout(RATE, seed=seed)

    def apply(self, layer, token_ids, training=None):
        return {"dropped": layer(ops.cast(token_ids, "float32"), training=training)}

    def selected(self, masked):
        return np.asarray(masked["dropped"]) == 0

    def shown(self, masked):
        return np.asarray(masked["dropped"])

    def exact_count(self):
        return "-"

    specials = exact_count


class KerasHub(KerasPeer):
    """A layer for tf.data. What is asked of models is asked of a model that holds it."""

    name = "KerasHub `MaskedLMMaskGenerator`"
    packages, install = ("keras_hub", "tensorflow_text"), "pip install keras-hub"
    takes_seed = False

    def layer(self, seed=None, all_swapped=False):
        import keras_hub

        shares = {"mask_token_rate": 0.0, "random_token_rate": 1.0} if all_swapped else {}
        return keras_hub.layers.MaskedLMMaskGenerator(
            VOCABULARY, RATE, MASK, LENGTH, unselectable_token_ids=list(SPECIAL), **shares
        )

    def apply(self, layer, token_ids, training=None):
        return layer(token_ids)

    def mapped(self, *arguments, **options):
        """Row by row: under a global seed the rows of one call race for its numbers."""
        return super().mapped(*arguments, **options, batch=1).rebatch(BATCH)

    start = pipeline = mapped

    def batches(self, dataset):
        return list(dataset)

    def selected(self, masked):
        positions = np.asarray(masked["mask_positions"])
        rows, targets = np.nonzero(np.asarray(masked["mask_weights"]))
        selected = np.zeros((len(positions), LENGTH), bool)
        selected[rows, positions[rows, targets]] = True
        return selected

    def fresh(self):
        import tensorflow as tf

        tf.random.set_seed(None)
        free, cases = self.start(), {}
        cases["without a global seed"] = repeated(self.epoch(free), self.epoch(free))
        cases["under one"] = self.repeated_in_two_epochs()
        return answer("repeated", cases)

    def replicas(self):
        """One pipeline feeds both: the halves of a batch are the same rows."""
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        halves = np.repeat(EPOCH.reshape(-1, 1, BATCH // 2, LENGTH), 2, axis=1)
        dataset = self.mapped(halves.reshape(-1, LENGTH))
        return self.shared_by_both(strategy, strategy.experimental_distribute_dataset(dataset))

    def resume(self):
        return answer("differ", {"from an iterator": self.resumed_iterator()})

    def exact_count(self):
        cases = {
            "in `map`": rows_off(self.epoch(self.start())),
            "in eager mode": rows_off(self.masks([self.layer()(EPOCH)])),
        }
        return answer("rows off", cases)

    def some_masks(self):
        keras.utils.set_random_seed(GLOBAL_SEED)
        return self.epoch(self.start())


class Collator(Peer):
    """For PyTorch's `DataLoader`. Without a seed, its default, torch's own generator is used."""

    name = "Hugging Face `DataCollatorForLanguageModeling`"
    packages, install = ("torch", "transformers"), "pip install torch transformers"

    def start(self, rows=EPOCH, workers=0, **arguments):
        from torch.utils.data import DataLoader

        every_token_a_word = [(2 * place, 2 * place + 1) for place in range(LENGTH)]
        common = {"special_tokens_mask": [0] * LENGTH, "offset_mapping": every_token_a_word}
        examples = [{"input_ids": row.tolist(), **common} for row in rows]
        collator = self.collator(**arguments)
        return DataLoader(examples, batch_size=BATCH, collate_fn=collator, num_workers=workers)

    def collator(self, seed=None, all_swapped=False, **arguments):
        import transformers

        shares = {"mask_replace_prob": 0.0, "random_replace_prob": 1.0} if all_swapped else {}
        return transformers.DataCollatorForLanguageModeling(
            tokenizer(), mlm_probability=RATE, seed=seed, **shares, **arguments
        )

    def batches(self, loader):
        return list(loader)

    def selected(self, masked):
        return np.asarray(masked["labels"]) != -100

    def shown(self, masked):
        return np.asarray(masked["input_ids"])

    def pipeline(self, rows, seed, parallel):
        return self.start(rows, workers=2)

    def mask_an_epoch(self):
        """Without the loader, which draws a number for its workers whatever it collates."""
        loader = self.start(seed=SEED)
        for start in range(0, len(EPOCH), BATCH):
            loader.collate_fn(loader.dataset[start : start + BATCH])

    def answers(self):
        return {**super().answers(), "equal_on_backends": self.equal_on_backends()}

    def fresh(self):
        cases = {
            "": self.repeated_in_two_epochs(),
            "with `seed` and 2 workers": self.repeated_in_two_epochs(seed=SEED, workers=2),
        }
        return answer("repeated", cases)

    def replicas(self):
        """Workers take the batches in turns; the processes set one global seed."""
        twice = np.repeat(EPOCH.reshape(-1, 1, BATCH, LENGTH), 2, axis=1).reshape(-1, LENGTH)
        of_workers = self.epoch(self.start(twice, workers=2))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            of_processes = pool.map(self.masks_of_process, range(2), chunksize=1)
        cases = {
            "by 2 workers": shared(of_workers[0::2], of_workers[1::2]),
            "by 2 processes of one global seed": shared(*of_processes),
        }
        return answer("shared", cases)

    def masks_of_process(self, _):
        keras.utils.set_random_seed(GLOBAL_SEED)
        return self.epoch(self.start())

    def resume(self):
        cases = {"by hand": self.resumed(workers=0), "with 2 workers": self.resumed(workers=2)}
        return answer("differ", cases)

    def resumed(self, workers):
        import torch

        whole = iter(self.start(workers=workers))
        for _ in range(STEPS // 2):
            next(whole)
        state = torch.get_rng_state()
        rest = self.masks(whole)
        resumed = iter(self.start(EPOCH[len(EPOCH) // 2 :], workers=workers))
        torch.set_rng_state(state)
        return differing(rest, self.masks(resumed))

    def does_not_apply(self):
        return "-"

    inert_in_predict = inert_when_exported = compiled = equal_under_xla = does_not_apply

    def equal_on_backends(self):
        tensors, arrays = (
            self.epoch(self.start(seed=SEED, return_tensors=kind)) for kind in ("pt", "np")
        )
        return answer("differ", {"as NumPy arrays": differing(tensors, arrays)})

    def specials(self):
        batches = self.batches(self.start(seed=SEED, whole_word_mask=True))
        selected = self.masks(batches).reshape(EPOCH.shape)
        shown = np.concatenate([self.shown(masked) for masked in batches])
        swapped = np.count_nonzero(selected & (shown != EPOCH) & (shown != MASK))
        return f"{super().specials()}; {swapped} of {selected.sum()} swapped in whole words"


def tokenizer():
    import tokenizers
    import transformers

    special = {f"{name}_token": f"[{name}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    words = [*special.values(), *map(str, range(len(special), VOCABULARY))]
    vocabulary = {word: number for number, word in enumerate(words)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


PEERS = (Ours(), KerasRandom(), KerasDropout(), KerasHub())
COLLATOR = Collator()

if __name__ == "__main__":
    main()
