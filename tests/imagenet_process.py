"""imagenet/train.py with a record of the pictures it decodes, and with a fault where the environment asks for one.

RECORD is the folder of the record. FAULT is a JSON list: "kill", "stop" or "spoil", and the rank, epoch and step of it.
A script of its own: it imports nothing that the training does not.
"""

import json
import os
import signal
from pathlib import Path

import cli
from imagenet import train
from imagenet.images import Decoder
from modules import Retraining


def record(seen: list) -> None:
    """From now on, append (epoch, picture) to `seen` for each training picture that this process decodes."""
    read = Decoder.__getitem__

    def remember(decoder, key):
        if decoder.seed is not None:
            seen.append((key.epoch, key.number))
        return read(decoder, key)

    Decoder.__getitem__ = remember


def fail(kind: str, *moment: int) -> None:
    """Kill the process or spoil its loss in a training step, or stop it in a step of the test, once."""
    name = "validation_step" if kind == "stop" else "training_step"
    own = getattr(Retraining, name)
    once = Path(os.environ["RECORD"]) / "failed"

    def step(module, batch, number):
        result = own(module, batch, number)
        if moment == (module.global_rank, module.current_epoch, number) and not once.exists():
            once.touch()
            if kind == "spoil":
                module.watched["train_loss"] = result.detach() * float("nan")
            else:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGTERM}[kind])
        return result

    setattr(Retraining, name, step)


def main() -> None:
    seen: list = []
    record(seen)
    if "FAULT" in os.environ:
        fail(*json.loads(os.environ["FAULT"]))
    train.main()
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    (Path(os.environ["RECORD"]) / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    cli.run(main, "train.py")
