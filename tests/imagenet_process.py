"""Run imagenet/train.py, record the images that it decodes, and inject a fault if the environment asks for one.

Environment variables:
    RECORD: Folder of the record.
    FAULT: JSON list of a kind, a rank, an epoch and a step. The kind is a key of SIGNALS, or "spoil", which makes the
        loss NaN. The fault occurs in a training step, or in a validation step if the kind is "stop".
"""

import json
import os
import signal
from pathlib import Path

import torch

from imagenet import train
from imagenet.images import Decoder
from lib import cli
from lib.retraining import Retraining

SIGNALS = {
    "kill": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "stop": signal.SIGTERM,
    "preempt": signal.SIGUSR1,
    "interrupt": signal.SIGINT,
}
#: (epoch, number) of each training image that this process decodes
seen: list = []


def decode(decoder: Decoder, epoch: int, number: int, decode=Decoder.decode) -> torch.Tensor:
    if decoder.seed is not None:
        seen.append((epoch, number))
    return decode(decoder, epoch, number)


def fail(kind: str, *moment: int) -> None:
    """Inject a fault of this kind once, at (rank, epoch, step)."""
    name = "validation_step" if kind == "stop" else "training_step"
    own = getattr(Retraining, name)
    once = Path(os.environ["RECORD"]) / "failed"

    def step(module, batch, number):
        result = own(module, batch, number)
        if moment == (module.global_rank, module.current_epoch, number) and not once.exists():
            once.touch()
            if kind == "spoil":
                return result * float("nan")
            os.kill(os.getpid(), SIGNALS[kind])
        return result

    setattr(Retraining, name, step)


def main() -> None:
    Decoder.decode = decode
    if "FAULT" in os.environ:
        fail(*json.loads(os.environ["FAULT"]))
    train.main()
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    (Path(os.environ["RECORD"]) / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    cli.run(main, "train.py")
