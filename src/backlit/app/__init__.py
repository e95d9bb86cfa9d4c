"""The web app: look at an image, ask the network, compare methods, in a browser. Needs the extra ``backlit[app]``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backlit._errors import InputError
from backlit.models import LoadedModel

if TYPE_CHECKING:
    from gradio import Blocks

OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What keeps the library of the page from calling home; set before it is imported."""


def build(model: LoadedModel | None = None, *, weights: str = "", device: str = "cpu") -> Blocks:
    """Build the app, a ``gradio.Blocks``, its first view computed: ``build().launch()`` serves it, here or in a Space.

    Args:
        model: The network to begin with; None takes one that is here, at least the embedded one for digits.
        weights: The file of its weights, for the Python code that the page shows.
        device: Where networks compute.

    Raises:
        InputError: If the extra is not installed.
    """
    os.environ.update(OFFLINE)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError("The app needs gradio: pip install 'backlit[app]'.") from error
    from backlit.app.networks import networks_here
    from backlit.app.page import build as page

    return page(networks_here(model, device=device), weights)


def serve(
    model: LoadedModel | None = None,
    *,
    weights: str = "",
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    block: bool = True,
) -> Blocks:
    """Serve the app; returns the blocks, which are ``close()``-d to end it if ``block`` is off.

    Args:
        model: The network to begin with.
        weights: The file of its weights.
        device: Where networks compute.
        host: The address to listen at: this machine alone, unless told otherwise.
        port: The port; None takes a free one from 7860 on.
        browser: Open the page in the browser.
        block: Wait until the app is stopped.

    Raises:
        InputError: If the extra is not installed, or the port is taken.
    """
    blocks = build(model, weights=weights, device=device)
    from backlit.app.page import CSS

    try:
        blocks.queue(default_concurrency_limit=4, max_size=64).launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            prevent_thread_lock=not block,
            max_file_size="25mb",
            allowed_paths=[],
            css=CSS,
            quiet=True,
            show_error=True,
        )
    except OSError as error:
        raise InputError(
            f"port must be free, but {port or 'every port from 7860 on'} is taken ({error}). Give another --port."
        ) from error
    return blocks
