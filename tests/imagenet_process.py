"""imagenet/train.py with a record of the pictures it decodes, and with a fault where the environment asks for one.

RECORD is the folder of the record. FAULT is a JSON list: a kind, and its rank, epoch and step. The kinds are the keys
of SIGNALS ("stop" is in a step of the test) and "spoil" (the loss is NaN).
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
#: (epoch, picture) for each training picture that this process decodes
seen: list = []


def decode(decoder: Decoder, epoch: int, number: int, decode=Decoder.decode) -> torch.Tensor:
    if decoder.seed is not None:
        seen.append((epoch, number))
    return decode(decoder, epoch, number)


def fail(kind: str, *moment: int) -> None:
    """Do so once."""
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
