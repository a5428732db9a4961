"""The batches of an epoch, grouped into turns: a step of alpha and the weight steps that belong to it."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lib.batches import Batch, cycle, draw
from lib.progress import StepProgress
from search.state import SearchState


class Turn(NamedTuple):
    """The batches of a step of alpha and of the weight steps that belong to it."""

    weights: list[Batch]
    train: Batch  # for the second derivatives of alpha's gradient
    valid: Batch


def turns(state: SearchState, epoch: int, progress: StepProgress, name: str) -> Iterator[Turn]:
    """Yield the batches of an epoch, counted from 0; `name` labels the progress bar."""
    settings, (train, valid) = state.settings, state.batches(epoch)
    inner, count = settings.inner_steps, len(train)
    progress.start(name, count)
    valid_batches = map(state.cast, (cycle if settings.fresh_batches == "none" else draw)(valid, count))
    if settings.inner_batches == "fresh":
        drawn = map(state.cast, draw(train, count * (inner + 1)))
        for _ in range(count):
            yield Turn(list(islice(drawn, inner)), next(drawn), next(valid_batches))
            progress.advance()
        return
    # Epochs after those of the search are DARTS-PT's fine-tuning, which passes over all images.
    fresh = settings.fresh_batches == "both" and epoch < settings.epochs
    batches = map(state.cast, draw(train, count) if fresh else iter(train))
    while group := list(islice(batches, inner)):
        yield Turn(group, group[-1 if state.weights_first else 0], next(valid_batches))
        for _ in group:
            progress.advance()
