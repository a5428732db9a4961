"""Write model_card.md of a finished retraining, with drawings of the cells and training curves.

python analysis/card.py runs/imagenet
"""

import re
from pathlib import Path
from typing import Any

from analysis.curves import plot_retraining, require
from analysis.draw import draw_genotype
from genotypes import cell_label
from lib import cli, options
from lib.files import read_json, read_yaml, write_atomically
from nasbench201.cells import load_any

PROG = "card.py"
#: settings that say where a run was and what it ran on; the recipe leaves them out
OMITTED = ("data", "device", "devices", "num_nodes", "workers", "download", "checkpoint_steps", "table", "provenance")


def add_card(run: Path) -> None:
    """Write the card of a finished retraining if it is missing. Errors become warnings, because the result is saved."""
    if not (run / "model_card.md").exists():
        with cli.warning(f"the model card could not be written; to try again, run python analysis/card.py {run}"):
            write_card(run)


def write_card(run: Path) -> Path:
    """Write model_card.md, cells/ and curves.png to the folder of a finished retraining.

    Raises:
        ValueError: A file is missing or cannot be parsed.
        OSError: A file cannot be read or written.
    """
    require(run, "result.json", "config.yaml", "genotype.json")
    cells = load_any(str(run))
    draw_genotype(cells, run / "cells")
    plot_retraining(run)
    path = run / "model_card.md"
    write_atomically(path, card(read_json(run / "result.json"), read_yaml(run / "config.yaml"), cells.kinds))
    return path


def escape(value: object) -> str:
    """A value as text, with Markdown's special characters escaped, such as the pipes in a NAS-Bench-201 cell."""
    return re.sub(r"[\\`*\[\]<>#|&~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", str(value))


def card(result: dict[str, Any], config: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The text of a model card.

    Args:
        result: The content of result.json.
        config: The content of config.yaml.
        kinds: The kinds of cells, for example normal and reduce.
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
        "commit": origin["commit"],
        "device": origin["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
    }
    recipe = {f"`--{name}`": value for name, value in config.items() if name not in (*OMITTED, "arch")}
    drawings = "\n\n".join(f"![{kind}](cells/{kind}.png)" for kind in kinds)
    return f"""# {escape(cell_label(config["arch"]))} on {escape(data)}

The test images were scored after every epoch, but not used to choose anything. The accuracy is from the last epoch.

{_table(rows)}

{drawings}

![loss, accuracy and learning rate](curves.png)

## Recipe

{_table(recipe)}

The command that trained this network:

```bash
{origin["command"]}
```
"""


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {escape(value)} |" for name, value in rows.items())])


def main() -> None:
    parser = options.Parser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("run", type=str, help="Run folder of a finished retraining.")
    run = Path(parser.parse_args().run)
    with cli.blaming("run"):
        print(write_card(run))


if __name__ == "__main__":
    cli.run(main, PROG)
