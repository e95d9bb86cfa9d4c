"""Published weights, fetched once where that was asked for; never otherwise, and never as a pickle that could run code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backlit._errors import FileError, reason

Told = Callable[[str], Any]
"""What is told, before anything is fetched, what it is, how large, from where, and where to."""


def fetch(url: str, path: Path, megabytes: float | None, told: Told) -> None:
    """Fetch a file with torch's own downloader, which checks the hash that its name holds; nothing of it is opened.

    Args:
        url: Where it is published.
        path: Where torch keeps it; its folder is made.
        megabytes: Its size, if it is known.
        told: What is told.

    Raises:
        FileError: The file cannot be fetched or written, or is not what was published.

    """
    size = "" if megabytes is None else f" ({megabytes:.0f} MB)"
    told(f"--download fetches {url}{size} to {path}, once")
    published = path.stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), published or None, progress=sys.stderr.isatty())
    except Exception as error:  # torch, urllib and the system each raise their own
        raise FileError(
            f"download: {url} cannot be fetched ({reason(error)}). Fetch it elsewhere and put it at {str(path)!r}, or give "
            "--weights FILE.safetensors."
        ) from error


def fetch_from_hub(repository: str, megabytes: float, told: Told) -> Path:
    """Fetch ``model.safetensors`` of a repository by the hub's own client, which keeps it in its cache; return its path.

    Raises:
        FileError: The client is missing, there is no network, or the repository has no safetensors file.

    """
    name = "model.safetensors"
    way_out = "Fetch it elsewhere, and give it as --weights FILE.safetensors."
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise FileError(
            f"download: huggingface_hub cannot be imported ({error}), which timm fetches by. {way_out}"
        ) from error
    known = hub.try_to_load_from_cache(repository, name)
    if isinstance(known, str):
        return Path(known)
    told(f"--download fetches {name} of {repository} (about {megabytes:.0f} MB) to {hub.constants.HF_HUB_CACHE}, once")
    try:
        return Path(hub.hf_hub_download(repository, name))
    except Exception as error:  # the client raises its own, and those of what it stands on
        raise FileError(f"download: {name} of {repository} cannot be fetched ({reason(error)}). {way_out}") from error
