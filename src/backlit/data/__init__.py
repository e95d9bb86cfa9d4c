"""Pictures in: files, folders, data sets with their labels and boxes, and mosaics made of them."""

from backlit.data.batches import Batches
from backlit.data.boxes import placed, resized, single_small_object
from backlit.data.compose import Mosaics
from backlit.data.examples import load_examples
from backlit.data.folder import ImageFolder
from backlit.data.imagenet import ImageNet
from backlit.data.images import find_images, load_batch, load_image, to_image
from backlit.data.mosaic import mosaics
from backlit.data.sample import Dataset, Sample, Subset, select, take
from backlit.data.scenes import two_objects
from backlit.data.small import CIFAR10, CIFAR10_CLASSES, MNIST, arrays
from backlit.data.voc import VOC, VOC_CLASSES

__all__ = [
    "CIFAR10",
    "CIFAR10_CLASSES",
    "MNIST",
    "VOC",
    "VOC_CLASSES",
    "Batches",
    "Dataset",
    "ImageFolder",
    "ImageNet",
    "Mosaics",
    "Sample",
    "Subset",
    "arrays",
    "find_images",
    "load_batch",
    "load_examples",
    "load_image",
    "mosaics",
    "placed",
    "resized",
    "select",
    "single_small_object",
    "take",
    "to_image",
    "two_objects",
]
