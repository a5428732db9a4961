"""The validation loss as a function of alpha at the checkpoints of a search: what its Hessian and landscape are of."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from architect import relax
from lib import checkpoints
from lib.batches import Augmentation, Batches
from lib.cli import InputError, blaming
from lib.objective import Objective
from nasbench201.search201 import Search201
from search.bilevel import Search, schedule
from search.loop import open_search
from search.settings import CommonSettings
from utils import accuracy


class ValidationLoss:
    """loss, accuracy = valid(alpha), with the weights of the checkpoint that `restore` went to.

    alpha is one vector (n,): the alphas of all kinds of cells, row after row. The supernet is in training, as the
    search has it, under the schedule (drop path, auxiliary skip) of the epoch that ended at the checkpoint. The batches
    are a function of the run's seed alone, normalized and not augmented: the same at every checkpoint. Nothing of the
    run is written.

    Args:
        run: folder of a search.
        settings: the search's, on the device and in the precision to measure in.
        batches: how many batches of the validation part the loss is the mean of.

    Attributes:
        epochs: those whose checkpoints are kept, in order.

    Raises:
        InputError: there is no checkpoint, or the settings do not fit the data or the machine.
    """

    def __init__(self, run: Path, settings: CommonSettings, batches: int) -> None:
        self._paths = {checkpoints.number(path): path for path in checkpoints.paths(run / "checkpoints")}
        self.epochs = list(self._paths)
        if not self.epochs:
            raise InputError(f"run: {run} has no checkpoint; expected a search, of one seed, of one epoch or more")
        self.search = open_search(settings, Search201 if settings.space == "nasbench201" else Search)
        self.search.supernet.requires_grad_(False)
        every = Batches(
            self.search.valid, settings.batch_size, Augmentation.none(self.search.dataset), (settings.seed,)
        )
        if batches > len(every):
            raise InputError(
                f"--batches: {batches}, expected {len(every)} at most: the validation part has "
                f"{len(self.search.valid)} images, in batches of {settings.batch_size}"
            )
        self.batches = [self.search.cast(batch) for batch in islice(every, batches)]

    def restore(self, epoch: int) -> Tensor:
        """Go to the checkpoint after so many epochs.

        Returns:
            alpha there, (n,).

        Raises:
            InputError: it is not kept, damaged or of other settings.
        """
        search = self.search
        with blaming("run"):
            search.restore(checkpoints.load(self._paths[epoch]))
        now = schedule(search.settings, epoch - 1)
        self._objective = Objective(search.supernet, search.autocast, now.drop_path_prob, now.skip_beta)
        return torch.cat([alpha.detach().flatten() for alpha in search.architecture.alphas.values()])

    def __call__(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy over the images of all batches, two scalars; the loss can be differentiated.

        Args:
            alpha: (n,).
        """
        search, alphas = self.search, self.search.architecture.alphas
        parts = alpha.split([own.numel() for own in alphas.values()])
        mixing = {
            kind: relax(part.view_as(own), search.settings.relaxation)
            for part, (kind, own) in zip(parts, alphas.items(), strict=True)
        }
        weights = [mixing[kind] for kind in search.supernet.kinds]
        losses, accuracies = [], []
        for batch in self.batches:
            loss, logits = self._objective(weights, batch, create_graph=alpha.requires_grad)
            losses.append(loss * len(batch.labels))
            accuracies.append(accuracy(logits, batch.labels) * len(batch.labels))
        images = sum(len(batch.labels) for batch in self.batches)
        return torch.stack(losses).sum() / images, torch.stack(accuracies).sum() / images
