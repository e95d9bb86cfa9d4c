"""`backlit app`: the web app, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from backlit.cli.arguments import Crop, Device, Download, ModelOfImages, Size, Weights


def app(
    model: ModelOfImages = None,
    weights: Weights = None,
    download: Download = False,
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; a free one from 7860 on, if not given.", min=1, max=65535)
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    size: Size = None,
    crop: Crop = None,
    device: Device = "auto",
) -> None:
    """Look at an image, ask the network, compare methods: a page in the browser, served by this machine, offline.

    Without --model it begins with a network whose weights torch's cache holds, else with the embedded one for digits.
    """
    from backlit.app import serve
    from backlit.cli import settings
    from backlit.cli.console import console

    compute = settings.Compute(device, "float32", 0)
    changes = settings.preprocessing(size, None, None, crop)
    loaded = None if model is None else settings.load(model, weights, compute, changes, download=download)
    blocks = serve(
        loaded, weights=weights or "", device=compute.device, host=host, port=port, browser=browser, block=False
    )
    console().print(f"open {blocks.local_url} (Ctrl-C ends it)")
    blocks.block_thread()
