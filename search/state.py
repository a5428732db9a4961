"""The state of a search: make it from the settings, save it and restore it."""

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

    Subclasses for other spaces override `make_supernet`, `assemble`, `look_up` and `describe`.
    """

    settings: CommonSettings

    def __init__(self, settings: CommonSettings, dataset: datasets.DataSet, device: torch.device) -> None:
        self.settings, self.dataset, self.device, self.space = settings, dataset, device, SPACES[settings.space]
        REGULARIZERS.choose(settings.reg, "--reg")
        ALPHA_REGULARIZERS.choose(settings.alpha_reg, "--alpha_reg")
        SMOOTHING.choose(settings.smooth, "--smooth")
        if settings.cuda_graphs and device.type != "cuda":
            raise InputError(f"--cuda_graphs: this flag needs a cuda device, but the device is {device.type}")
        with blaming("--cutout_length"):
            self.augmentation = Augmentation.training(dataset, settings.cutout_length if settings.cutout else 0)
        self.memory_format = memory_format(settings.memory_format, device)
        torch.manual_seed(settings.seed)
        with default_dtype(torch.float64 if settings.precision == "64-true" else torch.float32), device:
            with blaming("--space"):  # for errors of its operations
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
        """Make the supernet for the settings and the data."""
        settings, dataset = self.settings, self.dataset
        assert isinstance(settings, SearchSettings)
        sizes = (settings.init_channels, settings.layers, len(dataset.classes), dataset.in_channels)
        return Supernet(self.space, *sizes, settings.auxiliary_skip, self.edges_class)

    def make_optimizers(self) -> None:
        """Make the optimizers, without state: SGD for the weights and Adam for alpha."""
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
        """The trainable weights of the supernet. Operations may freeze some of their weights."""
        return [weight for weight in self.supernet.parameters() if weight.requires_grad]

    @property
    def weights_first(self) -> bool:
        """True if the weights are updated before alpha, as the implicit gradient requires (iDARTS, algorithm 1)."""
        return self.settings.weights_first or self.settings.hypergradient == "implicit"

    @property
    def edges_class(self) -> type[FastEdges] | type[MixedEdges]:
        """The class of the supernet's mixed operations."""
        return FastEdges if self.settings.fast_edges else MixedEdges

    def assemble(self, chosen: selection.Chosen, pairs: bool) -> AnyCell:
        """Make the cell with the chosen edges; see `selection.to_genotype`."""
        return selection.to_genotype(self.space, chosen, pairs)

    def look_up(self, cell: AnyCell) -> dict[str, float | None]:
        """Extra columns of metrics.csv for a cell."""
        return {}

    def describe(self, row: Mapping[str, Any]) -> str:
        """Describe the figures of `look_up` in a row of metrics.csv, for a printed line."""
        return ""

    def split(self) -> tuple[datasets.ImageSet, datasets.ImageSet]:
        """Split the training images into those for the weights and those for alpha."""
        settings, images = self.settings, self.dataset.train
        if settings.halves:
            with blaming("--halves"):
                train, valid = datasets.benchmark_halves(images, Path(settings.halves))
        else:
            if settings.split == "file_order" and settings.dataset == "folder":
                raise InputError(
                    "--split: file_order, but the files of a folder are in the order of their classes, so the parts "
                    "would have different classes; expected random"
                )
            seed = settings.seed if settings.split == "random" else None
            train, valid = datasets.split(images, settings.train_portion, seed)
        for name, part in (("the weights", train), ("alpha", valid)):
            if settings.batch_size > len(part):
                raise InputError(
                    f"--batch_size: {settings.batch_size}, but only {len(part)} of the {len(images)} training images "
                    f"train {name}; expected at most {len(part)}"
                )
        return train, valid

    def autocast(self) -> Any:
        """The context manager of forward passes in the precision of the settings."""
        return autocast(self.settings.precision, self.device)

    def objective(self, drop_path_prob: float, skip_beta: float) -> Objective:
        """The training objective: the loss of the supernet."""
        settings = self.settings
        parts = (self.supernet, self.autocast, drop_path_prob, skip_beta, settings.compile, settings.noise == "fresh")
        return CapturedObjective(*parts, self.graphs) if settings.cuda_graphs else Objective(*parts)

    def layer_weights(self, mixing: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The mixing weights of each layer, without a graph, from those of each kind of cell (by default alpha's)."""
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
        """Derive the cell from alpha by the selection rule, or by argmax if that is the perturbation rule."""
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
        """Restore a `snapshot`.

        Raises:
            ValueError: The snapshot is from a search on other images, or from another supernet.
        """
        if state["images_sha256"] != self.images_sha256:
            raise ValueError("the run began with other images than those in --data, or with another split of them")
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
    """Load the data of a search and make its state at the start.

    Args:
        state_class: The state of a search in the space of the settings.

    Raises:
        InputError: The settings do not fit the data or the machine.
    """
    device = prepare_device(settings.device, settings.tf32, settings.deterministic)
    return state_class(settings, datasets.load_dataset(settings), device)
