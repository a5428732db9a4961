"""The validation loss as a function of alpha at the checkpoints of a search."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from architect import relax
from lib import checkpoints
from lib.batches import Augmentation, Batches
from lib.cli import InputError, blaming
from lib.datasets import ImageSet
from lib.kernels import without_running_statistics
from lib.objective import Objective
from nasbench201.search201 import SearchState201
from nasbench201.settings import SCRIPT as SCRIPT_201
from search.settings import CommonSettings
from search.state import SearchState, open_search
from search.train_search import schedule
from utils import accuracy


class ValidationLoss:
    """The function `loss, accuracy = valid(alpha)`, with the weights of the checkpoint that `restore` loaded.

    alpha is one vector (n,), the concatenated alphas of all kinds of cells. The supernet is in training mode, as in the
    search, or in evaluation mode. Drop path and auxiliary skip have the values of the epoch that ended at the
    checkpoint. The batches depend only on the seed of the run and are not augmented, so they are the same at every
    checkpoint.

    Args:
        run: Folder of a search.
        settings: The settings of the search, with the device and the precision of the measurement.
        batches: Number of validation batches. None takes all of them.
        evaluation: Use evaluation mode, with batch norm statistics estimated at the alpha of the checkpoint.

    Attributes:
        epochs: The epochs that have a checkpoint, in order.
        sizes: The number of alphas of each kind of cell.

    Raises:
        InputError: There is no checkpoint, or the settings do not fit the data or the machine.
    """

    def __init__(self, run: Path, settings: CommonSettings, batches: int | None, evaluation: bool = False) -> None:
        self._evaluation = evaluation
        self._paths = {checkpoints.number(path): path for path in checkpoints.paths(run / "checkpoints")}
        self.epochs = list(self._paths)
        if not self.epochs:
            raise InputError(f"run: {run} has no checkpoint; expected a search of one seed with a finished epoch")
        self.search = open_search(
            settings, SearchState201 if isinstance(settings, SCRIPT_201.settings) else SearchState
        )
        self.search.supernet.requires_grad_(False)
        self.sizes = [int(own.sum()) for own in self.search.architecture.places.values()]
        every = self._batches(self.search.valid)
        if batches is not None and batches > len(every):
            raise InputError(
                f"--batches: {batches}, expected at most {len(every)}: there are {len(self.search.valid)} validation "
                f"images in batches of {settings.batch_size}"
            )
        self.batches = [self.search.cast(batch) for batch in islice(every, batches)]

    def _batches(self, part: ImageSet) -> Batches:
        settings = self.search.settings
        return Batches(part, settings.batch_size, Augmentation.none(self.search.dataset), (settings.seed,))

    def restore(self, epoch: int) -> Tensor:
        """Load the checkpoint of an epoch and return its alpha, (n,).

        Raises:
            InputError: The checkpoint is corrupt or has other settings.
        """
        search = self.search
        without_running_statistics(search.supernet.train())
        with blaming("run"):
            search.restore(checkpoints.load(self._paths[epoch]))
        now = schedule(search.settings, epoch - 1)
        self._objective = Objective(search.supernet, search.autocast, now.drop_path_prob, now.skip_beta)
        places = search.architecture.places
        alpha = torch.cat([alpha.detach()[places[kind]] for kind, alpha in search.architecture.alphas.items()])
        if self._evaluation:
            self._estimate_statistics(alpha)
        return alpha

    @torch.no_grad()
    def _estimate_statistics(self, alpha: Tensor) -> None:
        """Estimate the batch norm statistics, and put the supernet in evaluation mode.

        The statistics are the mean and the unbiased variance of each batch, averaged over the training images in one
        pass in training mode. The released codes use running averages of the last search steps, in which alpha moves.
        """
        supernet, weights, images = self.search.supernet, self._layer_weights(alpha), 0
        norms = [module for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.track_running_stats = True
            norm.running_mean, norm.running_var = alpha.new_zeros(2, norm.num_features)
        for batch in self._batches(self.search.train):
            images += len(batch.labels)
            for norm in norms:
                norm.momentum = len(batch.labels) / images
            self._objective(weights, self.search.cast(batch))
        supernet.eval()

    def _layer_weights(self, alpha: Tensor) -> list[Tensor]:
        """The mixing weights of each layer."""
        search, places = self.search, self.search.architecture.places
        mixing = {
            kind: relax(alpha.new_full(own.shape, -torch.inf).masked_scatter(own, part), search.settings.relaxation)
            for part, (kind, own) in zip(alpha.split(self.sizes), places.items(), strict=True)
        }
        return [mixing[kind] for kind in search.supernet.kinds]

    def __call__(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy (differentiable) and the accuracy over all images, for alpha (n,)."""
        weights = self._layer_weights(alpha)
        losses, accuracies = [], []
        for batch in self.batches:
            loss, logits = self._objective(weights, batch, create_graph=alpha.requires_grad)
            losses.append(loss * len(batch.labels))
            accuracies.append(accuracy(logits, batch.labels) * len(batch.labels))
        images = sum(len(batch.labels) for batch in self.batches)
        return torch.stack(losses).sum() / images, torch.stack(accuracies).sum() / images
