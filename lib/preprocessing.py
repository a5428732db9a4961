"""Preprocessing of pictures into the images that a network takes."""

from typing import Any, NamedTuple

import torch
from torchvision.transforms import v2

from lib.pictures import upright

#: channel means and standard deviations of ImageNet, which every paper uses
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """The preprocessing of the test images of a network.

    Attributes:
        channels: 1 for gray images, 3 for RGB.
        image_size: Height and width in pixels.
        shorter_side: Pixels to which the shorter side is resized before the centre is cropped.
        mean, std: Statistics of the channels of images in [0, 1].
    """

    channels: int
    image_size: int
    shorter_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self) -> v2.Compose:
        """The transform from a PIL image to a normalized float32 tensor (channels, image_size, image_size)."""
        color = v2.Grayscale() if self.channels == 1 else v2.RGB()
        pixels = [upright, color, *central_pixels(self.image_size, self.shorter_side)]
        return v2.Compose([*pixels, v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])


def papers_preprocessing(size: int) -> Preprocessing:
    """The papers' preprocessing of ImageNet's test images: the central 224 of 256 pixels, scaled to `size`."""
    return Preprocessing(3, size, round(size * 256 / 224), MEAN, STD)


def central_pixels(size: int, shorter_side: int) -> list[Any]:
    """The transforms from a PIL image to the pixels of its centre (channels, size, size) uint8."""
    return [v2.Resize(shorter_side), v2.CenterCrop(size), v2.PILToTensor()]
