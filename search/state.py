"""The state of a search: how it is made from the settings, saved and restored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import selection
from architect import Architecture
from fast_edges import FastEdges
from genotypes import AnyCell
from lib import datasets
from lib.batches import Augmentation, Batch, Batches
from lib.cli import InputError, blaming
from lib.cuda_graphs import CapturedObjective, Graphs
from lib.devices import autocast, compile_parts, default_dtype, memory_format, prepare_device
from lib.objective import Objective
from model_search import AnySupernet, MixedEdges, Supernet
from regularizers import ALPHA_REGULARIZERS, REGULARIZERS
from search.metrics import History
from search.settings import CommonSettings, SearchSettings
from smoothing import SMOOTHING
from spaces import SPACES


class SearchState:
    """The state of a search: supernet, alpha, their optimizers, the two parts of the data, and the history.

    Another space overrides `make_supernet`, `assemble`, `look_up` and `describe`.
    """

    settings: CommonSettings

    def __init__(self, settings: CommonSettings, dataset: datasets.DataSet, device: torch.device) -> None:
        self.settings, self.dataset, self.device, self.space = settings, dataset, device, SPACES[settings.space]
        REGULARIZERS.choose(settings.reg, "--reg")
        ALPHA_REGULARIZERS.choose(settings.alpha_reg, "--alpha_reg")
        SMOOTHING.choose(settings.smooth, "--smooth")
        if settings.cuda_graphs and device.type != "cuda":
            raise InputError(f"--cuda_graphs: the device is {device.type}; expected it with a cuda device only")
        with blaming("--cutout_length"):
            self.augmentation = Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
        self.memory_format = memory_format(settings.memory_format, device)
        torch.manual_seed(settings.seed)
        with default_dtype(torch.float64 if settings.precision == "64-true" else torch.float32), device:
            with blaming("--space"):  # its operations
                self.supernet = self.make_supernet().to(memory_format=self.memory_format)
            self.architecture = Architecture(self.space.counts, settings.relaxation)
        self.make_optimizers()
        train, valid = self.split()
        self.images_sha256 = datasets.sha256(train, valid)
        self.train, self.valid = train.to(device), valid.to(device)
        self.graphs = Graphs(settings.batch_size)
        if settings.compile:
            compile_parts([module for module in self.supernet.modules() if isinstance(module, FastEdges | MixedEdges)])
        self.history = History(self.space.cells)
        self.history.add_alphas(self.architecture)

    def make_supernet(self) -> AnySupernet:
        """The supernet of the settings, for the data."""
        settings, dataset = self.settings, self.dataset
        assert isinstance(settings, SearchSettings)
        sizes = (settings.init_channels, settings.layers, len(dataset.classes), dataset.in_channels)
        return Supernet(self.space, *sizes, settings.auxiliary_skip, self.edges_class)

    def make_optimizers(self) -> None:
        """SGD for the weights and Adam for alpha, without state."""
        settings = self.settings
        self.weight_optimizer = torch.optim.SGD(
            self.weights(),
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.architecture.parameters(),
            settings.arch_learning_rate,
            (settings.arch_beta1, settings.arch_beta2),
            weight_decay=settings.arch_weight_decay,
        )

    def weights(self) -> list[Tensor]:
        """The weights of the supernet that are trained; an operation may freeze some of its own."""
        return [weight for weight in self.supernet.parameters() if weight.requires_grad]

    @property
    def weights_first(self) -> bool:
        """True if a step of alpha follows the weights' steps, as the implicit gradient does (iDARTS, algorithm 1)."""
        return self.settings.weights_first or self.settings.hypergradient == "implicit"

    @property
    def edges_class(self) -> type[FastEdges] | type[MixedEdges]:
        """The class of the supernet's mixed operations."""
        return FastEdges if self.settings.fast_edges else MixedEdges

    def assemble(self, chosen: selection.Chosen, pairs: bool) -> AnyCell:
        """The cell with the chosen edges; see `selection.to_genotype`."""
        return selection.to_genotype(self.space, chosen, pairs)

    def look_up(self, cell: AnyCell) -> dict[str, float | None]:
        """Extra columns of metrics.csv for a cell."""
        return {}

    def describe(self, row: Mapping[str, Any]) -> str:
        """A text with the figures of `look_up`, from a row of metrics.csv."""
        return ""

    def split(self) -> tuple[datasets.ImageSet, datasets.ImageSet]:
        """The training images for the weights, and those for alpha."""
        settings, images = self.settings, self.dataset.train
        if settings.halves:
            with blaming("--halves"):
                train, valid = datasets.benchmark_halves(images, Path(settings.halves))
        else:
            if settings.split == "file_order" and settings.dataset == "folder":
                raise InputError(
                    "--split: file_order, but the files of a folder are in the order of their classes, so the parts "
                    "would differ in them; expected random"
                )
            seed = settings.seed if settings.split == "random" else None
            train, valid = datasets.split(images, settings.train_portion, seed)
        for name, part in (("weights", train), ("alpha", valid)):
            if settings.batch_size > len(part):
                raise InputError(
                    f"--batch_size: {settings.batch_size}, but only {len(part)} of the {len(images)} training images "
                    f"are for {name}; expected at most {len(part)}"
                )
        return train, valid

    def autocast(self) -> Any:
        """The context of a forward pass in the precision of the settings."""
        return autocast(self.settings.precision, self.device)

    def objective(self, drop_path_prob: float, skip_beta: float) -> Objective:
        """The loss of the supernet in training."""
        settings = self.settings
        parts = (self.supernet, self.autocast, drop_path_prob, skip_beta, settings.compile, settings.noise == "fresh")
        return CapturedObjective(*parts, self.graphs) if settings.cuda_graphs else Objective(*parts)

    def layer_weights(self, mixing: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The mixing weights of each layer, from those of each kind of cell (by default of alpha), without a graph."""
        mixing = self.architecture.mixing_weights() if mixing is None else mixing
        return [mixing[kind].detach() for kind in self.supernet.kinds]

    def batches(self, epoch: int) -> tuple[Batches, Batches]:
        """The training and the validation batches of an epoch."""
        settings = self.settings
        train, valid = (
            Batches(part, settings.batch_size, self.augmentation, (settings.seed, epoch, role))
            for role, part in enumerate((self.train, self.valid))
        )
        return train, valid

    def cast(self, batch: Batch) -> Batch:
        """The batch in the precision and memory format of the weights."""
        dtype = self.supernet.classifier.weight.dtype
        return batch._replace(images=batch.images.to(dtype, memory_format=self.memory_format))

    def momentum_buffers(self) -> list[Tensor]:
        """The momentum of each weight; zeros before the first step."""
        state = self.weight_optimizer.state
        return [
            state[w]["momentum_buffer"] if "momentum_buffer" in state.get(w, {}) else torch.zeros_like(w)
            for w in self.weights()
        ]

    def cell(self) -> AnyCell:
        """The cell that the selection rule reads off alpha; argmax stands in for the perturbation rule."""
        rule = "argmax" if self.settings.selection == "perturbation" else self.settings.selection
        mixing = self.architecture.mixing_weights()
        weights = {kind: p.detach().cpu().numpy() for kind, p in mixing.items()}
        chosen = selection.select(self.space, weights, rule, self.settings.threshold)
        return self.assemble(chosen, pairs=rule == "argmax")

    def snapshot(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values."""
        return {
            "supernet": self.supernet.state_dict(),
            "architecture": self.architecture.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "alpha_gradients": [alpha.grad for alpha in self.architecture.parameters()],
            "history": self.history.snapshot(),
            "images_sha256": self.images_sha256,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `snapshot`.

        Raises:
            ValueError: It is the snapshot of a search on other images, or of another supernet.
        """
        if state["images_sha256"] != self.images_sha256:
            raise ValueError("the run began with other images than --data has, or with another split of them")
        try:
            self.supernet.load_state_dict(state["supernet"])
        except RuntimeError as error:
            raise ValueError("the checkpoint does not fit config.yaml; they come from different runs") from error
        self.architecture.load_state_dict(state["architecture"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        for alpha, gradient in zip(self.architecture.parameters(), state["alpha_gradients"], strict=True):
            alpha.grad = None if gradient is None else gradient.to(alpha)
        self.history.restore(state["history"])


def open_search(settings: CommonSettings, state_class: type[SearchState] = SearchState) -> SearchState:
    """A search at its start, with its data.

    Args:
        state_class: The state of a search in the space of the settings.

    Raises:
        InputError: The settings do not fit the data or the machine.
    """
    device = prepare_device(settings.device, settings.tf32, settings.deterministic)
    return state_class(settings, datasets.load_dataset(settings), device)
