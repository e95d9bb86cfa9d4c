"""From a name to a network with its weights, preprocessing and class names."""

from backlit._fingerprint import fingerprint
from backlit.models.load import load_model, model_names
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess, PreprocessOptions

__all__ = [
    "LoadedModel",
    "Preprocess",
    "PreprocessOptions",
    "fingerprint",
    "load_model",
    "model_names",
]
