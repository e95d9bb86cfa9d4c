"""Pictures in: files, folders and arrays."""

from backlit.data.images import find_images, load_batch, load_image, to_image

__all__ = ["find_images", "load_batch", "load_image", "to_image"]
