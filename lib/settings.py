"""Settings that several scripts share. Nothing here imports torch."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from lib.options import ImageSizeOrOwn, Need, NonNegativeInt, PositiveInt, Seed, argument, option

of_data, of_run, of_execution = (partial(option, group=name) for name in ("data", "run", "execution"))

DOWNLOADABLE = ("cifar10", "cifar100", "svhn")
DEVICE_HELP = "Device: auto, cpu, cuda, cuda:1 (the second GPU) or mps."


@dataclass
class RunSettings:
    """Settings of the run folder and of the execution, for every search and every retraining."""

    seed: Seed = of_run(0, "Seed of the weights, the order of the images and the augmentation.")
    save: str = of_run("", "New folder of the run. By default a folder in runs/ named after the settings and the time.")
    resume: str = of_run(
        "", "Run folder to resume. The run keeps its settings, except the data folder and the devices."
    )
    device: str = of_run("auto", DEVICE_HELP)
    tf32: bool = of_execution(
        False, "Let GPUs round the float32 inputs of convolutions to TensorFloat-32 (three decimal digits)."
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = of_execution(
        "auto", "Memory format of images and weights. auto is channels_last on a CPU and contiguous on a GPU."
    )
    deterministic: bool = of_execution(False, "Use only algorithms that give the same bits every time on a GPU.")
    compile: bool = of_execution(
        False, "Compile the network with torch.compile, for GPUs. Compilation takes minutes at the start."
    )


@dataclass
class ImageSettings:
    """Settings of the data set of a search or a retraining, except on ImageNet."""

    data: str = of_data(
        "data",
        "Folder of the data set's files.",
        need=Need("a data set with files, not --dataset digits", lambda s: s.dataset != "digits"),
    )
    dataset: str = of_data(
        "cifar10",
        "Data set: cifar10, cifar100, svhn, imagenet16_120 (NAS-Bench-201's files), digits (needs no files), folder "
        "(DATA/train/<class>/* and DATA/test/<class>/*; test may be val, valid or validation), or another entry of "
        "DATASETS in lib/datasets.py.",
    )
    download: bool = of_data(
        False,
        "Download the files of cifar10, cifar100 or svhn if they are missing.",
        need=Need(f"--dataset {', '.join(DOWNLOADABLE)}", lambda s: s.dataset in DOWNLOADABLE),
    )
    image_size: ImageSizeOrOwn = of_data(0, "Height and width of the images in pixels. 0 keeps their own size.")
    flip: bool = of_data(
        True, "Mirror half of the training images, as the released codes do (even SVHN's). Digits are never mirrored."
    )
    images: NonNegativeInt = of_data(
        0, "Use only the first N training images, the same number of each class, and at most N test images. 0 uses all."
    )
    cutout: bool = of_data(False, "Augment the images with cutout.")
    cutout_length: PositiveInt = of_data(
        16,
        "Side of the cutout in pixels, rounded down to an even number, at least 2 and less than the image's side.",
        need=Need("--cutout", lambda s: s.cutout),
    )

    def __post_init__(self) -> None:
        self.dataset = self.dataset.replace("imagenet16-120", "imagenet16_120")  # accept the usual spelling


@dataclass
class RetrainSettings(RunSettings):
    """Settings of the run folder and of the execution, for every retraining."""

    devices: NonNegativeInt = of_execution(
        0,
        "Number of devices of each node. Each device has a process and a share of every batch. 0 means the number that "
        "torchrun or srun started, or 1.",
    )
    num_nodes: NonNegativeInt = of_execution(
        0, "Number of nodes. 0 means the number that torchrun or srun started, or 1."
    )
    accumulate: PositiveInt = of_execution(
        1, "Passes per step. Use more than one if the images of a step do not fit on the devices at once."
    )
    checkpoint_steps: NonNegativeInt = of_execution(
        0, "Steps between two checkpoints within an epoch. 0 disables them."
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = of_execution(
        "32-true", "Precision of the forward and backward passes."
    )


@dataclass
class TestSettings:
    """Settings of a test."""

    checkpoint: str = argument("Run folder of a retraining, finished or not, or one of its checkpoint files.")
    data: str = option("", "Folder of the data set's files. By default the folder that the run used.")
    device: str = option("auto", DEVICE_HELP)
