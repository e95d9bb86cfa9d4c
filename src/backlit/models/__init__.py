"""From a name to a network with its weights, preprocessing and class names."""

from backlit._fingerprint import fingerprint
from backlit.models.contrast import Contrast, contrast
from backlit.models.load import load_model, model_names
from backlit.models.loaded import LoadedModel
from backlit.models.preprocess import Preprocess, PreprocessOptions

__all__ = [
    "Contrast",
    "LoadedModel",
    "Preprocess",
    "PreprocessOptions",
    "contrast",
    "fingerprint",
    "load_model",
    "model_names",
]
