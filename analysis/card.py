"""The card of a retrained network: model_card.md of its run folder, with the drawing of its cells and its curves.

python analysis/card.py runs/imagenet
"""

from pathlib import Path
from typing import Any

import cli
from analysis.curves import plot_retraining, require
from analysis.draw import draw_genotype
from files import read_json, read_yaml, write_atomically
from nasbench201.cells import load_any

PROG = "card.py"
#: settings that say where and on what a run was, not how
PLACE = ("data", "save", "resume", "device", "devices", "num_nodes", "workers", "download", "checkpoint_steps", "table")


def write_card(run: Path) -> Path:
    """Write model_card.md, cells/ and curves.png to the folder of a finished retraining.

    Raises:
        ValueError: it is no such folder, or a file of it is damaged.
        OSError: a file cannot be read or written.
    """
    require(run, "result.json", "config.yaml", "genotype.json")
    try:
        result, config = read_json(run / "result.json"), read_yaml(run / "config.yaml")
        cells = load_any(str(run))
        kinds = cells.kinds
        text = card(result, config, kinds)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{run} is not as a retraining leaves it: {' '.join(str(error).split())}") from error
    draw_genotype(cells, run / "cells")
    plot_retraining(run)
    path = run / "model_card.md"
    write_atomically(path, text)
    return path


def card(result: dict[str, Any], config: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The text of a card.

    Args:
        result: of result.json.
        config: of config.yaml.
        kinds: of the cells.
    """
    origin = config["provenance"]
    data = config.get("dataset", Path(config["data"]).name)
    rows = {
        "test accuracy (top-1)": f"{100 * result['accuracy']:.2f} %",
        **({"test accuracy (top-5)": f"{100 * result['top5']:.2f} %"} if "top5" in result else {}),
        "test images": result["test_images"],
        "parameters": f"{result['params'] / 1e6:.3f} M (without the auxiliary head)",
        "multiply-adds": f"{result['multiply_adds'] / 1e6:.1f} M (convolutions and linear layers, one image)",
        "data": f"{data}, {len(result['classes'])} classes",
        "commit": f"`{origin['commit']}`",
        "device": origin["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
    }
    recipe = {name: value for name, value in config.items() if name not in (*PLACE, "provenance", "arch")}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    settings = "\n".join(f"| `--{name}` | {value} |" for name, value in recipe.items())
    drawings = "\n\n".join(f"![the {kind} cell](cells/{kind}.png)" for kind in kinds)
    return f"""# {config["arch"]} on {data}

The test images were scored every epoch for the record; nothing was chosen by them: the accuracy is the last epoch's.

| | |
|---|---|
{table}

{drawings}

![loss, accuracy and learning rate](curves.png)

## Recipe

| | |
|---|---|
{settings}

Made with

```bash
{origin["command"]}
```
"""


def main() -> None:
    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("run", type=str, help="a run folder of a finished retraining")
    run = Path(parser.parse_args().run)
    with cli.blaming("run"):
        print(write_card(run))


if __name__ == "__main__":
    cli.run(main, PROG)
