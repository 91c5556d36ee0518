"""The command line: arguments in, a `Recipe` or a trained directory out."""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys

from keras_dynmask.errors import need_extra, require, whole
from keras_dynmask.export import SUFFIXES, need_extra_of
from keras_dynmask.rates import written_rate
from keras_dynmask.recipes import MASKING, RECIPES, Recipe
from keras_dynmask.sampling import ORDERS
from keras_dynmask.vocabulary import continuation_ids

DESCRIPTION = "Dynamic masking for masked language modelling: pretrain, look, fill, export."
EXAMPLES = """examples:
  keras-dynmask pretrain                              the embedded corpus, in a few minutes
  keras-dynmask pretrain --corpus 'texts/*.txt' --output books --whole-words
  keras-dynmask pretrain --resume --output books      go on after an interruption
  keras-dynmask fill-mask books "the [MASK] said nothing"
  keras-dynmask pretrain --recipe diffusion --output writer
  keras-dynmask generate writer --prompt "a function is" --order random --temperature 0.7
  keras-dynmask pretrain --recipe seq2seq --pairs pairs.tsv --output translator
  keras-dynmask generate translator --prompt "the cat sleeps"
  keras-dynmask preview --rate 0.3 --span 3           one sentence at five steps
  keras-dynmask preview --rate 0.3:0.15 --set at_least_one=true --output masks.png
  keras-dynmask export books --output serving/books
  keras-dynmask export books --format onnx            or litert, openvino
  keras-dynmask bench masking                         beside KerasHub and Hugging Face

exit status: 0 done; 2 it can't be done, and standard error says why in a line; 130 interrupted.
With --json standard output holds one JSON object, and what people read goes to standard error.
"""

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"
SHORT_BENCHMARKS = {
    "masking": "masking alone, beside KerasHub, Hugging Face, ELECTRA and NumPy",
    "masking_in_the_step": "what masking costs inside a training step",
    "objective": "logits at all positions, at the selected ones, and in pieces",
    "visible_only": "an encoder that sees only what is not hidden",
    "training_step": "the whole step, beside KerasHub and Hugging Face",
    "input": "the input pipeline beside the step",
}


def main(argv=None):
    """Run a command; the exit status is 0, 2 where it can't be done, or 130 if interrupted."""
    arguments = vars(_parser().parse_args(argv))
    command, as_json = arguments.pop("run"), arguments.pop("json", False)
    try:
        try:
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                result = command(**arguments)
            if as_json:
                print(json.dumps(result, indent=2))
        finally:
            _flush_output()
    except (ValueError, ImportError, OSError) as error:
        print(f"keras-dynmask: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nkeras-dynmask: interrupted.", file=sys.stderr)
        return 130
    return 0


def pretrain(output, resume, tensorboard, recipe=None, **options):
    need_extra("text", "tokenizers", "matplotlib")
    if tensorboard:
        need_extra("tensorboard", "tensorflow", "tensorboard")
    from keras_dynmask import training
    from keras_dynmask.filling import fill_mask

    output = pathlib.Path(output)
    if resume:
        options |= {} if recipe is None else {"name": recipe}
        recipe = training.load_recipe(training.partial_directory(output))
        for name, value in vars(dataclasses.replace(recipe, **options)).items():
            require(
                value == getattr(recipe, name),
                f"`{name}` must be what the interrupted run began with, {getattr(recipe, name)!r}.",
                **{name: value},
            )
    else:
        recipe = RECIPES[recipe or ("seq2seq" if "pairs" in options else "mlm")](**options)
    try:
        report = training.train(
            recipe,
            output,
            resume=resume,
            announce=functools.partial(print, flush=True),  # through a pipe, too
            live=sys.stdout is not None and sys.stdout.isatty(),
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        print(f"\nGo on with: keras-dynmask pretrain --resume --output {output}", file=sys.stderr)
        raise

    print(
        f"\nheld-out masked loss  {report['masked_loss']:.3f} nats"
        f"   (guessing by frequency: {report['unigram_loss']:.3f})\n"
        f"held-out accuracy     {report['masked_accuracy']:.1%}\n"
        f"held-out perplexity   {report['perplexity']:.1f}"
    )
    if recipe.pairs:
        print(
            f"held-out exact match  {report['exact_match']:.1%}\n\n"
            f"{report['example']}\n  {report['example_generated']}\n"
            f"  ({report['example_target']!r} stood there)"
        )
    else:
        print(f"\n{report['example']}\n  ({report['example_word']!r} stood there)")
        _print_guesses(fill_mask(*training.load_trained(output), report["example"]))
    print(f"\n{output}/ holds {', '.join(sorted(path.name for path in output.iterdir()))}.")
    return {"output": str(output), **report}


def fill(directory, sentence, top):
    need_extra("text", "tokenizers")
    from keras_dynmask import training
    from keras_dynmask.filling import fill_mask

    whole("top", top, 1)
    guesses = fill_mask(*training.load_trained(directory), sentence, top)
    _print_guesses(guesses)
    return {"guesses": [list(map(dataclasses.asdict, best)) for best in guesses]}


def generate(directory, prompt, length, outputs, every_step, **settings):
    need_extra("text", "tokenizers")
    from keras_dynmask import training
    from keras_dynmask.filling import prompt_row, written

    recipe = training.load_recipe(directory)
    model, tokenizer = training.load_trained(directory)
    whole("outputs", outputs, 1)
    row = prompt_row(recipe, tokenizer, prompt, length)
    states = model.generate([row], outputs=outputs, every_step=True, **settings)
    texts = [
        [written(recipe, tokenizer, state[number]) for state in states] for number in range(outputs)
    ]
    for steps in texts:
        print("\n".join(steps if every_step else steps[-1:]))
    return {"texts": texts if every_step else [steps[-1] for steps in texts]}


def show(sentences, model, rate, span, whole_words, independent, settings, steps, seed, output):
    need_extra("text", "tokenizers", "rich", "matplotlib")
    from keras_dynmask import preview, text, training

    whole("steps", steps, 1)
    path = preview.checked_output(output) if output else None
    require(
        model or not whole_words,
        "`whole_words` needs the tokenizer of a trained directory: --model DIR.",
        whole_words=whole_words,
    )
    sentences = sentences or [preview.EXAMPLE]
    continuations = None
    if model:
        tokenizer = text.load_tokenizer(pathlib.Path(model) / "tokenizer.json")
        splitter = preview.Pieces(tokenizer)
        continuations = continuation_ids(tokenizer) if whole_words else None
    else:
        splitter = preview.Words(sentences)
    flags = {
        "mask_selection_rate": written_rate("--rate", rate, steps),
        "mean_span_length": span,
        "continuation_token_ids": continuations,
        "exact_count": not independent,
        "seed": seed,
    }
    masking = preview.masking_of(splitter, **flags | preview.settings_of(settings, splitter))
    lines = preview.preview(masking, splitter, sentences, steps)
    if path:
        with training.replacing(path) as unfinished:
            preview.write(lines, unfinished)
    preview.show(lines)


def export(directory, output, format, masking_endpoints):
    need_extra("text", "tokenizers")
    name = "tf_saved_model" if format == "saved_model" else format
    need_extra_of(name)
    from keras_dynmask import training

    output = pathlib.Path(output or pathlib.Path(directory) / format)
    training.require_free(output)
    model, _ = training.load_trained(directory)
    with training.replacing(output) as folder:
        folder.mkdir(parents=True)  # refused here, not in TensorFlow's own words
        file = f"model{SUFFIXES[name]}" if SUFFIXES[name] else ""
        model.export(folder / file, name, masking_endpoints=masking_endpoints)
        shutil.copyfile(pathlib.Path(directory) / "tokenizer.json", folder / "tokenizer.json")
    both = format in ("saved_model", "litert")
    what = "logits (`serve`) and hidden states (`encode`)" if both else "logits"
    print(f"{output / file} serves token ids to {what}; tokenizer.json is beside it.")
    return {"output": str(output)}


def bench(names):
    for name in names:
        require(
            name in SHORT_BENCHMARKS,
            f"`name` must be one of {', '.join(SHORT_BENCHMARKS)}.",
            name=name,
        )
    require(
        BENCHMARKS.is_dir(),
        "`bench` needs the repository's folder of benchmarks: run it in a clone.",
        folder=str(BENCHMARKS),
    )
    for name in names or SHORT_BENCHMARKS:
        print(f"\n{name}: {SHORT_BENCHMARKS[name]}\n", flush=True)
        status = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--short"]).returncode
        require(status == 0, f"`{name}` must end with status 0.", status=status)


def _parser():
    parser = argparse.ArgumentParser(
        "keras-dynmask",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("keras-dynmask")
    parser.add_argument("--version", action="version", version=f"keras-dynmask {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for_machines = argparse.ArgumentParser(add_help=False)
    for_machines.add_argument("--json", action="store_true", help="answer in JSON")

    def command(name, run, help, example, parents=(for_machines,)):
        sub = commands.add_parser(
            name,
            parents=parents,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  keras-dynmask {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "pretrain",
        pretrain,
        "train a small encoder with dynamic masking",
        "pretrain --corpus 'texts/*.txt' --output books --whole-words",
    )
    sub.add_argument("--output", default="pretrained", help="directory to make (%(default)s)")
    sub.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    which = "directory for metrics and masked rows: tensorboard --logdir DIR"
    sub.add_argument("--tensorboard", metavar="DIR", help=which)
    which = f"{', '.join(RECIPES)}: where the options below begin (mlm; of pairs seq2seq)"
    sub.add_argument("--recipe", choices=RECIPES, metavar="NAME", help=which)
    recipe = sub.add_argument_group("recipe", argument_default=argparse.SUPPRESS)
    _add_recipe_options(recipe)

    sub = command(
        "fill-mask",
        fill,
        "show what a trained model puts in place of [MASK]",
        'fill-mask pretrained "the [MASK] statement raises an exception"',
    )
    sub.add_argument("directory", help="what pretrain made")
    sub.add_argument("sentence", help="text with [MASK]")
    sub.add_argument("--top", type=int, default=5, help="guesses for each (%(default)s)")

    sub = command(
        "generate",
        generate,
        "write text with a trained model, by iterative unmasking",
        'generate writer --prompt "a function is" --order random --temperature 0.7 --outputs 3',
    )
    sub.add_argument("directory", help="what pretrain made")
    which = "what stands before it; [MASK] in it is filled in, too; of pairs the source"
    sub.add_argument("--prompt", default="", help=which)
    sub.add_argument("--length", type=int, help="tokens to write (20; of pairs as the recipe says)")
    sub.add_argument("--steps", type=int, help="predictions (as many as tokens)")
    sub.add_argument("--temperature", type=float, default=0.0, help="0: the surest (%(default)s)")
    sub.add_argument("--top-k", type=int, help="of the k most probable tokens only")
    sub.add_argument("--top-p", type=float, help="of the most probable with this share only")
    kinds = {"choices": ORDERS, "metavar": "KIND", "default": ORDERS[0]}
    sub.add_argument("--order", help=f"{' or '.join(ORDERS)}: which stay (%(default)s)", **kinds)
    sub.add_argument("--revise", action="store_true", help="what stays may be masked again")
    sub.add_argument("--block-length", type=int, help="so many first; 1: from left to right")
    sub.add_argument("--outputs", type=int, default=1, help="how many (%(default)s)")
    sub.add_argument("--every-step", action="store_true", help="show it after each step")
    sub.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")

    sub = command(
        "preview",
        show,
        "show one text at several steps: hidden, swapped and kept tokens",
        "preview --rate 0.3 --span 3",
        parents=(),
    )
    sub.add_argument(
        "sentences",
        nargs="*",
        metavar="SENTENCE",
        help="text to mask; several are documents, packed in one row",
    )
    sub.add_argument("--model", metavar="DIR", help="use the tokenizer of this directory")
    sub.add_argument(
        "--rate",
        default="0.15",
        help="share selected: 0.15; LOW,HIGH: drawn anew for each step; "
        "FIRST:LAST: from the first step to the last (%(default)s)",
    )
    sub.add_argument("--span", type=float, default=1.0, help="mean span length (%(default)s)")
    sub.add_argument("--whole-words", action="store_true", help="never split a word")
    sub.add_argument("--independent", action="store_true", help="independent draws, no count")
    sub.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any argument of DynamicMasking, as JSON, where a token stands for its id; "
        "wins over the flags, and may be given again",
    )
    sub.add_argument("--steps", type=int, default=5, help="how many masks (%(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the masks (%(default)s)")
    sub.add_argument("--output", metavar="FILE", help="a .png or .html to write, too")

    sub = command(
        "export",
        export,
        "write a trained directory for TensorFlow, ONNX Runtime, LiteRT or OpenVINO",
        "export pretrained --format onnx --output serving/pretrained",
    )
    sub.add_argument("directory", help="what pretrain made")
    formats = ["saved_model", *list(SUFFIXES)[1:]]
    which = f"{', '.join(formats)} (%(default)s)"
    sub.add_argument("--format", choices=formats, metavar="NAME", default=formats[0], help=which)
    sub.add_argument("--output", help="directory to make (DIR/FORMAT)")
    which = "add `mask` and `mask_fixed` to a SavedModel, for services that prepare data"
    sub.add_argument("--masking-endpoints", action="store_true", help=which)

    sub = command(
        "bench",
        bench,
        "measure speed and memory beside the alternatives, in their short form",
        "bench masking",
        parents=(),
    )
    sub.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(SHORT_BENCHMARKS)} (all: some ten minutes)",
    )
    return parser


def _add_recipe_options(group):
    def option(flag, name, help, **kwargs):
        if "action" not in kwargs:
            kwargs.setdefault("metavar", "N")
            help = f"{help} ({getattr(Recipe, name)})"
        group.add_argument(flag, dest=name, help=help, **kwargs)

    group.add_argument(
        "--corpus",
        nargs="+",
        metavar="FILE",
        help="text files or glob patterns (the Python language reference)",
    )
    which = "sources and targets, tab separated, for seq2seq"
    group.add_argument("--pairs", metavar="FILE", help=which)
    option("--target-length", "target_length", "of pairs: tokens of a row", type=int)
    kinds = {"metavar": "KIND", "choices": MASKING}
    which = "dynamic; static: one mask for good; adaptive: rather what is not known yet"
    option("--masking", "masking", which, **kinds)
    option("--copies", "static_copies", "static masks of each row, in turn", type=int)
    which = "share selected: 0.15; LOW,HIGH: each row's own; FIRST:LAST: from first to last step"
    option("--rate", "mask_selection_rate", which)
    option("--span", "mean_span_length", "mean length of what is masked together", type=float)
    option("--whole-words", "whole_words", "never split a word", action="store_true")
    which = "hide all that is selected, and the encoder does not see it; decode it in a block more"
    option("--visible-only", "visible_only", which, action="store_true")
    option("--epochs", "epochs", "passes over the corpus", type=int)
    option("--batch-size", "batch_size", "rows per step", type=int)
    option("--length", "length", "tokens per row", type=int)
    option("--vocabulary-size", "vocabulary_size", "word pieces to learn", type=int)
    option("--validation-share", "validation_share", "share held out", type=float)
    option("--layers", "num_layers", "blocks of the encoder", type=int)
    option("--heads", "num_heads", "attention heads", type=int)
    option("--hidden", "hidden_dim", "size of a hidden state", type=int)
    option("--intermediate", "intermediate_dim", "size inside the feed-forward", type=int)
    option("--dropout", "dropout", "share dropped", type=float)
    option("--learning-rate", "learning_rate", "at its peak", type=float)
    option("--seed", "seed", "of weights, batches and masks", type=int)


def _print_guesses(guesses):
    for number, best in enumerate(guesses, start=1):
        if len(guesses) > 1:
            print(f"[MASK] {number}")
        for guess in best:
            print(f"  {guess.probability:6.1%}  {guess.token}")


def _flush_output():
    """Fails here, and not where Python ends, if nobody takes what was printed."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # and what it still holds is forgotten
        raise


def _one_line(error):
    return " ".join(str(error).split())
