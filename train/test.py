"""Score a retrained network on the test images of its data set, and print the scores as one JSON object.

python train/test.py runs/retrain-...
python train/test.py runs/retrain-.../checkpoints/step_09000.ckpt --data /elsewhere/data --device cuda
"""

from lib import cli, options
from lib.settings import TestSettings

PROG = "test.py"


def main() -> None:
    given = options.parse(TestSettings, PROG, __doc__.splitlines()[0])

    from lib.scoring import score_on_dataset
    from model import restore_network

    with cli.blaming("checkpoint"):
        network, checkpoint = restore_network(given.checkpoint)
    print(score_on_dataset(network, checkpoint, given.data, given.device))


if __name__ == "__main__":
    cli.run(main, PROG)
