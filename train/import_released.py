"""Import the weights of a released retraining, so that train/test.py or imagenet/test.py can score them.

    python train/import_released.py cifar10_model.pt --arch DARTS_V2
    python train/import_released.py FairDARTS-b.tar --arch FairDARTS_b --save runs/fairdarts-b
    python train/import_released.py imagenet_model.pt --arch DARTS_V2 --data ILSVRC

The file was saved by DARTS's code, or by another code with the same network. It is a state dict, or a checkpoint with
one as `state_dict`. The shapes of its tensors give the sizes of the network. The run folder holds config.yaml,
genotype.json and one checkpoint, which train/export.py and model.load_network read too. The training cannot be resumed.
"""

import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from genotypes import Genotype, cell_label, load_genotype, short_name
from lib import cli, options
from lib.cli import InputError, blaming
from lib.files import find_split, read_bytes, write_atomically
from lib.options import argument, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lib.preprocessing import Preprocessing

PROG = "import_released.py"
#: Last part of the names of tensors that do not affect the logits: counters of batch norm and of the profiler thop.
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
#: Mean and standard deviation of the channels in DARTS-PT's code. (train/train.py uses those of its training images.)
SVHN = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


@dataclass
class ImportSettings:
    """The settings of train/import_released.py."""

    file: str = argument("File of the weights. Only tensors and plain values are read; no code in it is run.")
    arch: str = option("", "The cell of the network: a name in genotypes.py, a genotype or a file with one.")
    dataset: Literal["auto", "cifar10", "cifar100", "svhn", "imagenet"] = option(
        "auto",
        "Data set of the training. Its images are normalized as in the released codes. auto means imagenet for a "
        "network with ImageNet's stem, and otherwise cifar10 or cifar100 by the number of classes.",
    )
    data: str = option(
        "",
        "Folder of the data set, from which the names of the classes are read. Without it the classes have no names, "
        "and test.py compares only their number.",
    )
    save: str = option("", "New folder of the run. By default, runs/imported-ARCH.")


class ReleasedCell(NamedTuple):
    """The operations of a cell in a released network.

    Attributes:
        genotype: The genotype with the edges that the network computes, and its nodes in the order of concatenation.
        keys: For each edge of `genotype.edges(kind)`, the name of its operation in `_ops`.
        unused: The names of operations that the network contains but does not compute.
    """

    genotype: Genotype
    keys: list[str]
    unused: list[str]


def released_cell(genotype: Genotype, kind: str) -> ReleasedCell:
    """The "normal" or the "reduce" cell of a genotype in a released network.

    DARTS's code numbers the operations as listed. FairDARTS's code names them target.source.index. It computes and
    concatenates the nodes in the order in which the genotype first lists them, and skips an edge whose source is not
    computed yet.

    Raises:
        ValueError: A node has no input. The released codes set it to zero, but `model.Cell` omits it.
    """
    cell, concat = getattr(genotype, kind), getattr(genotype, f"{kind}_concat")
    keys, unused = [str(number) for number, entry in enumerate(cell) if entry[0] != "none"], []
    if genotype.sums_nodes(kind):
        order = [0, 1, *dict.fromkeys(target for _, target, _ in cell)]
        count: Counter[tuple[int, int]] = Counter()
        computed = {}
        for entry in cell:
            _, target, source = entry
            key = f"{target}.{source}.{count[target, source]}"
            count[target, source] += 1
            if source in order[: order.index(target)]:
                computed[key] = entry
            else:
                unused.append(key)
        keys, concat = list(computed), tuple(order[2:])
        genotype = genotype._replace(**{kind: tuple(computed.values()), f"{kind}_concat": concat})
    if len(keys) != len(genotype.edges(kind)) or list(concat) != genotype.concat(kind):
        raise ValueError(f"the {kind} cell has a node without input; expected an input for every node")
    return ReleasedCell(genotype, keys, unused)


def read_tensors(content: bytes) -> "dict[str, Tensor]":
    """The tensors of a released file by name, without counters and the prefixes of DataParallel and Lightning.

    Raises:
        ValueError: The file is corrupt, has no state dict, or contains anything but finite floating-point tensors.
    """
    import torch

    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a corrupt file
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        found = (
            f"it contains a pickled {pickled[1]}, which is not loaded"
            if pickled
            else f"not a file of torch.save ({reason})"
        )
        raise ValueError(f"{found}; expected a state dict of tensors") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("expected a state dict, or a dictionary that has one as state_dict")
    tensors = {}
    for own, tensor in state.items():
        name = re.sub(r"^(module\.|model\.)+", "", str(own))
        if name.rpartition(".")[2] in COUNTERS:
            continue
        if name in tensors:
            raise ValueError(f"two tensors are named {name}, with and without a prefix; expected one")
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"tensor {own}: expected finite floating-point values")
        tensors[name] = tensor.detach()
    return tensors


class Sizes(NamedTuple):
    """The sizes of a network. `imagenet` is True for a network with ImageNet's stem."""

    imagenet: bool
    init_channels: int
    layers: int
    classes: int
    auxiliary: bool

    @classmethod
    def of(cls, tensors: "dict[str, Tensor]") -> "Sizes":
        """Read the sizes of the network from its released tensors.

        Raises:
            ValueError: A tensor that gives a size is missing.
        """
        imagenet = "stem0.3.weight" in tensors
        stem = "stem0.3.weight" if imagenet else "stem.0.weight"
        for name in (stem, "classifier.weight"):
            if name not in tensors or not tensors[name].dim():
                raise ValueError(f"no tensor {name}; expected a network of DARTS's code, for CIFAR or for ImageNet")
        channels = len(tensors[stem]) // (1 if imagenet else 3)
        layers = len({name.split(".")[1] for name in tensors if name.startswith("cells.")})
        if channels < 2 or not 1 <= layers <= 1000:
            raise ValueError(f"{channels} channels and {layers} cells; expected 2 or more channels and 1 to 1000 cells")
        auxiliary = any(name.startswith("auxiliary_head.") for name in tensors)
        return cls(imagenet, channels, layers, len(tensors["classifier.weight"]), auxiliary)

    def make_network(self, genotype: Genotype) -> "nn.Module":
        """The network of a genotype on the meta device, without memory for its weights."""
        import torch

        from model import NetworkCIFAR, NetworkImageNet

        make = NetworkImageNet if self.imagenet else NetworkCIFAR
        with torch.device("meta"):
            return make(genotype, self.init_channels, self.layers, self.classes, self.auxiliary)


def released_prefixes(network: "nn.Module", keys: list[list[str]]) -> dict[str, str]:
    """Map each module's path in our network to the prefix of its tensors' names in the released network.

    Args:
        keys: The names of the operations of each cell; see `ReleasedCell`.
    """
    from operations import DilConv, ReLUConvBN, SepConv

    prefixes = {"": ""}
    for path, module in network.named_modules():
        parent, _, name = path.rpartition(".")
        if edge := re.fullmatch(r"cells\.(\d+)\.operations\.(\d+)", path):
            prefixes[path] = f"cells.{edge[1]}._ops.{keys[int(edge[1])][int(edge[2])]}."
        elif path:
            prefixes[path] = f"{prefixes[parent]}{name}."
        if isinstance(module, ReLUConvBN | DilConv | SepConv):
            prefixes[path] += "op."  # the released modules hold a Sequential of this name
    return prefixes


def convert(tensors: "dict[str, Tensor]", network: "nn.Module", cells: list[ReleasedCell]) -> "dict[str, Tensor]":
    """The state dict of our network in float32, from the tensors of a released one.

    Args:
        network: Our network, which may be on the meta device.
        cells: Its cells, from the first layer to the last.

    Raises:
        ValueError: A tensor is missing, does not belong to the network, or has another shape.
    """
    import torch

    prefixes = released_prefixes(network, [cell.keys for cell in cells])
    unused = tuple(f"cells.{layer}._ops.{key}." for layer, cell in enumerate(cells) for key in cell.unused)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    state = {}
    for ours, expected in network.state_dict().items():
        path, _, last = ours.rpartition(".")
        if last in COUNTERS:
            state[ours] = torch.zeros_like(expected, device="cpu")
            continue
        name = prefixes[path] + last
        if name not in rest:
            raise ValueError(f"no tensor {name}")
        tensor = rest.pop(name)
        if tensor.shape != expected.shape:
            raise ValueError(f"tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")
        state[ours] = tensor.float().clone()
    if rest:
        raise ValueError(f"tensor {min(rest)} does not belong to the network")
    return state


def find_preprocessing(dataset: str, sizes: Sizes) -> "tuple[str, Preprocessing]":
    """The data set of a network for a value of --dataset, and the released codes' preprocessing of its test images.

    Raises:
        InputError: The data set does not fit the stem, or `auto` does not fit the number of classes.
    """
    from lib.datasets import STATISTICS
    from lib.preprocessing import Preprocessing, papers_preprocessing

    fitting = {10: ["cifar10", "svhn"], 100: ["cifar100"]}.get(sizes.classes, [])
    fitting = ["imagenet"] if sizes.imagenet else fitting
    stem = "ImageNet" if sizes.imagenet else "CIFAR"
    if not fitting:
        raise InputError(f"file: a network for CIFAR with {sizes.classes} classes; expected 10 or 100")
    dataset = fitting[0] if dataset == "auto" else dataset
    if dataset not in fitting:
        raise InputError(
            f"--dataset: {dataset}, but the network has the stem for {stem} and {sizes.classes} classes; "
            f"expected {' or '.join(fitting)}"
        )
    if sizes.imagenet:
        return dataset, papers_preprocessing(224)
    return dataset, Preprocessing(3, 32, 32, *{**STATISTICS, "svhn": SVHN}[dataset])


def read_classes(dataset: str, data: str, count: int) -> list[str]:
    """The names of the classes in the order of their labels, or placeholders if `data` is empty.

    Raises:
        InputError: The data set cannot be read or has another number of classes.
    """
    from lib import datasets
    from lib.checkpoints import unnamed_classes
    from lib.pictures import read_tree

    if not data:
        return unnamed_classes(count)
    with blaming("--data"):
        if dataset == "imagenet":
            classes = read_tree(find_split(Path(data), "val")).classes
        else:
            classes = datasets.load(dataset, data).classes
    if len(classes) != count:
        raise InputError(f"--data: {data} has {len(classes)} classes, expected the network's {count}")
    return list(classes)


def import_weights(given: ImportSettings, run: Path) -> dict[str, Any]:
    """Convert the file and write the run folder.

    Returns:
        The sizes of the network. As in the papers, `params` does not count the auxiliary head.

    Raises:
        InputError: The file, the cell, the data or the folder cannot be used.
    """
    with blaming("--arch"):
        genotype, by_kind = load_genotype(given.arch), {}
        for kind in genotype.kinds:
            by_kind[kind] = released_cell(genotype, kind)
            genotype = by_kind[kind].genotype

    from spaces import cell_kinds

    with blaming("file"):
        content = read_bytes(Path(given.file))
    with blaming(f"file: {given.file}"):
        tensors = read_tensors(content)
        sizes = Sizes.of(tensors)
        network = sizes.make_network(genotype)
        try:
            state = convert(tensors, network, [by_kind[kind] for kind in cell_kinds(sizes.layers)])
        except ValueError as error:
            raise ValueError(
                f"{error}; --arch {cell_label(given.arch)} is probably not the cell of this network"
            ) from error
    dataset, preprocessing = find_preprocessing(given.dataset, sizes)
    settings = {
        "file": given.file,
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "arch": given.arch,
        **{name: getattr(sizes, name) for name in ("init_channels", "layers", "auxiliary")},
        "data": given.data or ("data/ILSVRC" if sizes.imagenet else "data"),
        **({} if sizes.imagenet else {"dataset": dataset, "images": 0}),
        "batch_size": 96,  # used by the test, like the next two
        "precision": "32-true",
        "seed": 0,
    }
    about = {
        "network": "imagenet" if sizes.imagenet else "cifar",
        "settings": settings,
        "genotype": genotype._asdict(),
        "classes": read_classes(dataset, given.data, sizes.classes),
        "preprocessing": preprocessing._asdict(),
    }
    write_run(run, genotype, about, state)
    params = sum(value.numel() for name, value in network.named_parameters() if not name.startswith("auxiliary_head."))
    return {**sizes._asdict(), "params": params}


def write_run(run: Path, genotype: Genotype, about: dict[str, Any], state: "dict[str, Tensor]") -> None:
    """Write a run folder with a checkpoint that `model.restore_network` reads.

    Args:
        about: The hyperparameters of the checkpoint; see `lib.trainer.make_module`.

    Raises:
        InputError: The folder is not new, is in use, or cannot be written.
    """
    from lib import checkpoints, plugins
    from lib.provenance import provenance, write_config

    about = {**about, "plugins": plugins.record()} if plugins.LOADED else about
    weights = {f"network.{name}": tensor for name, tensor in state.items()}
    with cli.open_folder(run, "--save", new=True), blaming("--save"):
        write_config(run, about["settings"], provenance(cli.command_line(), "cpu"))
        write_atomically(run / "genotype.json", genotype.to_json())
        checkpoints.save(run / "checkpoints/step_00000.ckpt", {"state_dict": weights, "hyper_parameters": about})


def main() -> None:
    given = options.parse(ImportSettings, PROG, __doc__.splitlines()[0])
    if not given.arch:
        raise InputError("--arch: no cell is given; --help lists the forms of a cell")
    run = Path(given.save or f"runs/imported-{short_name(given.arch)}")
    cli.check_new_folder(run, "--save")
    print(json.dumps({"run": str(run), **import_weights(given, run)}))


if __name__ == "__main__":
    cli.run(main, PROG)
