"""Score the retrained network of a NAS-Bench-201 cell on the test images, and print the scores as one JSON object.

python nasbench201/test.py runs/retrain-...
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
