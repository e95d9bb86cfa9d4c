"""The command line: parse, call the library, render. Everything it does can be done from Python, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backlit._errors import InputError
from backlit._version import __version__
from backlit.cli import complete, plans, program
from backlit.cli.app import app as _app
from backlit.cli.arguments import (
    MOST_AT_ONCE,
    MOST_SEED,
    Crop,
    Device,
    Download,
    DType,
    FittedFiles,
    Mean,
    Methods,
    Metrics,
    Model,
    ModelOfImages,
    Ray,
    Seed,
    Size,
    Std,
    Threads,
    Weights,
    Workers,
)
from backlit.cli.complete import FAST

_EARLIER = {"methods": "method", "metrics": "metric"}  # options that were called so before

app = typer.Typer(
    cls=program.Commands,
    help="Which pixels made this network say that? Attribution maps by modified and learned back-propagation.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: _EARLIER.get(name, name),
    },
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"backlit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def demo(
    image: Annotated[
        list[Path] | None, typer.Option(help="A photograph to begin with; may be given again.", metavar="PHOTO")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The network for photographs; none: one in torch's cache.")
    ] = None,
    weights: Weights = None,
    download: Download = False,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("backlit-demo"),
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Seed = 0,
) -> None:
    """Explain photographs, if a network for them is at hand, and real handwritten digits with every method: one HTML page.

    Without --image, photographs are scikit-image's, where it is installed. Without --download nothing is fetched.
    """
    from backlit.cli import settings
    from backlit.cli.demo import run
    from backlit.cli.photographs import asked_for

    compute = settings.Compute(device, dtype, seed)
    run(out, compute, asked_for(image or [], model, weights, compute, download=download))


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.", metavar="IMAGE...")],
    model: ModelOfImages = None,
    weights: Weights = None,
    download: Download = False,
    target: Annotated[
        str,
        typer.Option(
            help="Classes, by comma: names, indices, top:K for the K that the network predicts, A-B for one against another, "
            "A-top:K against the K likeliest others."
        ),
    ] = "top:1",
    method: Methods = FAST,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of a method: steps=40, or dmbp.steps=40.", metavar="KEY=VALUE")
    ] = None,
    fitted: FittedFiles = None,
    out: Annotated[
        Path, typer.Option(help="Folder for cards, maps, index.html and summary.json; adds to what is there.")
    ] = Path("backlit-out"),
    style: Annotated[
        str, typer.Option(help="What to draw of each map: card, overlay, jet or bare.", metavar="STYLE")
    ] = "card",
    scale: Annotated[
        str,
        typer.Option(help="image: one colour scale for all classes of an image; own: each its own.", metavar="SCALE"),
    ] = "image",
    post: Annotated[
        list[str] | None,
        typer.Option(help="A step behind each method: low_pass:CUTOFF (0 to 1) or smooth:SIGMA.", metavar="STEP"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a row of JSON for each map.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what failed.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace maps of these images and methods that were made with other settings."),
    ] = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Seed = 0,
) -> None:
    """Explain images: a card for each image, class and method, with the bare map and its numbers beside it.

    Interrupted, the same command goes on; another one adds to the folder.
    """
    from backlit.cli import settings
    from backlit.cli.explain import Run, run
    from backlit.cli.images import warn_of_photographs
    from backlit.cli.output import Output
    from backlit.post import read_step

    compute = settings.Compute(device, dtype, seed)
    asked = settings.methods(method, option or [], seed)
    steps = [read_step(text) for text in post or []]
    if model is None:
        warn_of_photographs(images)
    changes = settings.preprocessing(size, mean, std, crop)
    loaded = settings.load(model or "digits", weights, compute, changes, download=download)
    output = Output(out, quiet, as_json)
    chosen = settings.with_fitted(asked, fitted or [], output.into.print)
    chosen = settings.with_bounds(settings.with_attention(chosen, loaded, output.into.print), loaded.preprocess)
    if run(images, Run(loaded, target, chosen, compute, force, style, scale, steps), output):
        raise typer.Exit(1)


@app.command()
def compare(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files or folders, or a data set's folder; none for the embedded scenes.", metavar="[IMAGE]..."
        ),
    ] = None,
    model: ModelOfImages = None,
    weights: Weights = None,
    download: Download = False,
    method: Methods = "random,gradient_x_input,guided_backprop,grad_cam,dmbp",
    metric: Metrics = "insertion,morf_5,lerf_5,last_layer_reset",
    data: Annotated[
        str | None, typer.Option(help="The data set's folder, in the place of IMAGE.", metavar="DIR")
    ] = None,
    read: Annotated[
        str | None,
        typer.Option(
            help="How to read it: images, folder (a folder a class), imagenet, voc, cifar10, mnist.", metavar="KIND"
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="For images without labels: a class, a contrast of two (zebra-tiger), or predicted.")
    ] = "predicted",
    class_index: Annotated[
        Path | None, typer.Option(help="JSON that maps class folders to the model's classes.", metavar="FILE")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", "--boxes", help="ImageNet's annotations, with its boxes.", metavar="DIR"),
    ] = None,
    scaled: Annotated[
        bool, typer.Option("--scaled", help="The pictures are scaled copies of the annotated ones; so are their boxes.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Number of images to take, evenly spread.", min=1)] = None,
    mosaic: Annotated[int, typer.Option(help="Make mosaics of N x N images of the data set: 2 or 3.", metavar="N")] = 0,
    classes: Annotated[int, typer.Option(help="Classes to explain of each image; the first is scored.", min=1)] = 2,
    option: Annotated[
        list[str] | None, typer.Option(help="An option: dmbp.steps=40, insertion.steps=20.", metavar="NAME.KEY=VALUE")
    ] = None,
    fitted: FittedFiles = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, tables and maps.")] = Path("backlit-compare"),
    force: Annotated[bool, typer.Option("--force", help="Begin anew in a folder that is in use.")] = False,
    workers: Workers = 0,
    threads: Threads = None,
    ray: Ray = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Seed = 0,
) -> None:
    """Compare methods on the same images: maps, scores as parquet, one HTML report. Interrupted, it goes on where it stopped."""
    given = locals()
    from backlit.cli.compare import command

    if command(**given):
        raise typer.Exit(1)


app.command("app")(_app)
app.command()(plans.bench)
app.command()(plans.reproduce)


@app.command()
def roar(
    data: Annotated[Path, typer.Option(help="Folder of CIFAR-10 (binary or parquet) or MNIST.", metavar="DIR")],
    method: Methods,
    fractions: Annotated[
        str, typer.Option(help="Shares of the pixels to remove, by comma.")
    ] = "0.4,0.5,0.6,0.7,0.8,0.9",
    seeds: Annotated[int, typer.Option(help="Number of retrainings of each.", min=1, max=1000)] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of each training.", min=1, max=100_000)] = 30,
    batch: Annotated[int, typer.Option(help="Images a step.", min=1, max=MOST_AT_ONCE)] = 128,
    optimizer: Annotated[str, typer.Option(help="adamw, adam or sgd.")] = "adamw",
    learning_rate: Annotated[float, typer.Option(help="Of the first step; goes down to 0 by a cosine.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="As the optimizer means it.")] = 1e-2,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror training images at random.")] = False,
    width: Annotated[int, typer.Option(help="Channels of the network's first convolution.", min=1, max=4096)] = 32,
    dropout: Annotated[float, typer.Option(help="Share of activations dropped in training.", min=0, max=0.9)] = 0.0,
    replacement: Annotated[str, typer.Option(help="What removed pixels become: mean or zero.")] = "mean",
    reduce: Annotated[str, typer.Option(help="Channels to one number a pixel: sum, abs, max or norm.")] = "sum",
    target: Annotated[
        str, typer.Option(help="The class that is explained: predicted, or label (gives it away).")
    ] = "predicted",
    mask_only: Annotated[bool, typer.Option("--mask-only", help="Also train on the bare masks.")] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of a method: dmbp.steps=40.", metavar="NAME.KEY=VALUE")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Images of each part to take, for a trial.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder for ranks, trainings and the table.")] = Path("backlit-roar"),
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of what methods draw.", min=0, max=MOST_SEED)] = 0,
) -> None:
    """Remove each method's most important pixels, retrain, test (ROAR). Interrupted, it goes on from the last whole epoch."""
    from backlit.bench.roar import RoarOptions, TrainingOptions
    from backlit.cli import settings
    from backlit.cli.roar import Setting, chosen, run
    from backlit.cli.roar import fractions as shares

    training = TrainingOptions(epochs, batch, optimizer, learning_rate, weight_decay, flip=flip)  # pyright: ignore[reportArgumentType]  checked there
    words: dict[str, Any] = {"replacement": replacement, "target": target, "reduce": reduce}  # checked by the options
    options = RoarOptions(shares(fractions), tuple(range(seeds)), mask_only=mask_only, training=training, **words)
    where = settings.Compute(device, "float32", seed).device
    run(Setting(data, out, limit, width, dropout, where), chosen(method, option or [], seed), options)


@app.command()
def fit(
    out: Annotated[
        Path, typer.Option(help="The file to write; OUT.parts keeps what is done meanwhile.", metavar="FILE")
    ],
    method: Annotated[str, typer.Option(help="mip_in, pattern (both of its methods), l2x or pda.")] = "mip_in",
    model: ModelOfImages = None,
    weights: Weights = None,
    download: Download = False,
    data: Annotated[
        Path | None, typer.Option(help="What to learn from; none for the embedded digits.", metavar="DIR")
    ] = None,
    read: Annotated[
        str, typer.Option(help="How to read it: images, folder (a folder a class), imagenet, cifar10, mnist.")
    ] = "images",
    class_index: Annotated[
        Path | None, typer.Option(help="JSON that maps class folders to the model's classes.", metavar="FILE")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="The test part of cifar10 or mnist, not the training part.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Number of images to take, evenly spread.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1, max=MOST_AT_ONCE)] = 64,
    start: Annotated[
        str | None,
        typer.Option(
            help="mip_in: where the inverted part begins: input (the default), features (the last feature map), pooled (that "
            "map behind its last pool), a module or a site."
        ),
    ] = None,
    reading: Annotated[
        str | None, typer.Option(help="mip_in: means (the default), or paper, its equations as they are printed.")
    ] = None,
    samples: Annotated[
        str | None, typer.Option(help="mip_in: whose samples a class learns from: all (the default), or its own.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="mip_in: class indices, by comma; all, if not given.")] = None,
    ridge: Annotated[
        float | None, typer.Option(help="mip_in: lambda of the ridge regression; 0.001, if not given.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="pda: pixels a side of the window that is drawn anew.")] = None,
    padding: Annotated[int | None, typer.Option(help="pda: pixels around it that it depends on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier fit of other data or options.")] = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    device: Device = "auto",
    dtype: DType = "float32",
) -> None:
    """Learn from data what MIP-IN, the pattern methods, L2X or PDA need: one file.

    Interrupted, the same command goes on: mip_in after its last whole layer, pattern from its sums of ten seconds ago or so,
    l2x after its last pass.
    """
    from backlit.cli import settings
    from backlit.cli.fit import Source, run
    from backlit.cli.images import warn_of_photographs

    if model is None and data is not None and read == "images":
        warn_of_photographs([data])
    loaded = settings.load(
        model or "digits", weights, settings.Compute(device, dtype, 0), settings.preprocessing(size, mean, std, crop)
    )
    asked = {"start": start, "samples": samples, "classes": classes, "ridge": ridge, "reading": reading}
    asked |= {"window": window, "padding": padding}
    own: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if classes is not None:
        own["classes"] = settings.whole_numbers("classes", classes)
    if run(method, loaded, Source(data, read, class_index, limit, batch, not test), out, own, force=force):
        raise typer.Exit(1)


@app.command()
def metrics(
    name: Annotated[
        str | None, typer.Argument(help="One of them, with its options.", autocompletion=complete.metrics)
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Degrade a good map in steps and see which metrics notice.")
    ] = False,
) -> None:
    """List the metrics: what each scores, and its cost; or all about one of them."""
    if self_test:
        from backlit.cli.self_test import run_self_test

        run_self_test(name)
        return
    from backlit.cli.listings import print_metrics

    print_metrics(name)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="One of them, with its options.", autocompletion=complete.methods)
    ] = None,
) -> None:
    """List the methods: what each map is, and its cost; or all about one of them."""
    from backlit.cli.listings import print_methods

    print_methods(name)


@app.command()
def trace(
    model: Model = "digits",
    weights: Weights = None,
    download: Download = False,
    method: Annotated[str, typer.Option(help="The method whose rules to show.")] = "guided_backprop",
    fitted: FittedFiles = None,
    size: Size = None,
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Seed = 0,
) -> None:
    """Show every operation that a network calls, and the rule that it gets under a method."""
    from backlit.cli import settings
    from backlit.cli.tables import print_trace

    compute = settings.Compute(device, dtype, seed)
    loaded = settings.load(
        model, weights or "random", compute, settings.preprocessing(size, None, None, None), bare=weights is None
    )
    if len(named := settings.methods(method, [], seed)) > 1:
        raise InputError(f"method must be one, whose rules are shown, but is {method!r}. Ask for one after the other.")
    chosen = settings.with_fitted(named, fitted or [])
    print_trace(loaded, settings.with_bounds(chosen, loaded.preprocess)[0], compute)


def main() -> None:
    """Run the command line."""
    program.run(app)
