"""The command line of a search: parse it, and reject settings that cannot be combined. Nothing here imports torch."""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from lib import cli, options
from lib.cli import InputError
from search.settings import SCRIPT, CommonSettings, Script, SearchSettings
from spaces import SPACES, cell_kinds


def check(settings: CommonSettings) -> None:
    """Reject settings that cannot be combined.

    Raises:
        InputError: The message names the flag.
    """
    if settings.selection.startswith("threshold") and settings.relaxation == "softmax":
        raise InputError(
            f"--selection: {settings.selection} cannot be combined with --relaxation softmax, because the softmax "
            "weights of an edge add up to 1; expected --relaxation sigmoid, whose gates are independent"
        )
    if settings.selection == "threshold_edge" and SPACES[settings.space].keep is None:
        raise InputError(
            f"--selection: threshold_edge may keep several operations on an edge, but an edge of {settings.space} has "
            "only one; expected threshold_sparse"
        )
    if settings.halves and settings.dataset != "cifar10":
        raise InputError(f"--halves: these are halves of CIFAR-10; expected --dataset cifar10, not {settings.dataset}")
    if settings.implicit_noise and (settings.hypergradient, settings.derivatives) != ("implicit", "difference"):
        raise InputError(
            "--implicit_noise: only the implicit gradient by differences leaves a residue in the weights; expected "
            "--no_implicit_noise, or --hypergradient implicit with --derivatives difference"
        )
    if settings.fixes_weights and not settings.implicit_noise:
        raise InputError(
            "--released: in iDARTS's released code only --implicit_noise changes the weights; add --implicit_noise, or "
            "use --no_released"
        )
    aligns = settings.reg != "none" or settings.compare_derivatives
    if isinstance(settings, SearchSettings):
        normal = cell_kinds(settings.layers).count("normal")
        if not normal:
            raise InputError(f"--layers: {settings.layers}, but then all cells are reduction cells; expected 3 or more")
        if aligns and normal < 2:
            aligning = f"--reg {settings.reg}" if settings.reg != "none" else "--compare_derivatives"
            remedy = ", or --reg none" if settings.reg != "none" else ""
            raise InputError(
                f"--layers: {settings.layers}, expected 4 or more with {aligning}, which aligns pairs of normal cells"
                f"{remedy}"
            )
    _check_precision(settings)


def _check_precision(settings: CommonSettings) -> None:
    """Reject second derivatives by differences in low precision, where rounding is larger than the differences.

    The regularizer's gradient is then noise: its cosine with the gradient in double precision is below 0.15. In float32
    the cosine is above 0.99 (benchmarks/low_precision.py).
    """
    second = settings.reg != "none" or settings.hypergradient != "first"
    differences = (second and settings.derivatives == "difference") or settings.compare_derivatives
    if differences and (settings.tf32 or settings.precision == "bf16-mixed"):
        flag = "--tf32" if settings.tf32 else f"--precision {settings.precision}"
        comparing = settings.compare_derivatives
        remedy = "leave out --compare_derivatives" if comparing else "use --derivatives exact"
        raise InputError(
            f"{flag} cannot be combined with {'--compare_derivatives' if comparing else '--derivatives difference'}: "
            "rounding is larger than the steps of the finite differences, so the second derivative would be noise; "
            f"{remedy}, or float32"
        )


@dataclass
class Resolved:
    """The settings of a command line, and the run folder."""

    settings: CommonSettings
    run: Path
    resumed: bool
    script: Script = SCRIPT
    #: source of settings -> the names of the settings that it set
    sources: dict[str, list[str]] = field(default_factory=dict)
    #: for config.yaml: the provenance of the series of runs that this run belongs to
    origin: dict[str, Any] = field(default_factory=dict)

    def changes(self) -> str:
        """A text for the first printed line: the settings that the command line and the config file changed."""
        names = [name for source in ("command line", "config file") for name in self.sources.get(source, [])]
        values = {name: getattr(self.settings, name) for name in names if name != "method"}
        changes = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        return f", changed: {changes}" if changes else ""


def resolve(arguments: list[str], script: Script = SCRIPT) -> Resolved:
    """Read the command line of a search script.

    Raises:
        InputError: Its settings cannot be combined, or the run folder exists and is not empty.
    """
    words = ["--hypergradient=unrolled" if word == "--unrolled" else word for word in arguments]
    given = options.parse_given(script.settings, script.prog, script.description, words, script.preset)
    settings = given.settings
    if settings.resume:
        return Resolved(options.resume(given, script.path, script.movable), Path(settings.resume), True, script)
    stored_method = given.config.get("method", settings.method)
    if "method" in given.flags and stored_method != settings.method:
        raise InputError(
            f"--method: {settings.method} cannot be combined with --config, whose file has the settings of "
            f"{stored_method}; leave out one of the two"
        )
    if "released" in given.flags and given.config.get("released", settings.released) != settings.released:
        raise InputError(
            f"--released: {settings.released} cannot be combined with --config, whose file has the settings for "
            f"released: {given.config['released']}; leave out one of the two"
        )
    check(settings)
    name = f"search-{settings.dataset}-{settings.space}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path(settings.save or f"runs/{name}")
    cli.check_new_folder(run, "--save")
    every = {setting.name for setting in fields(settings)} - {"save", "resume"}
    flags, config = given.flags & every, given.config.keys() & every - given.flags
    implied = script.preset(asdict(settings)).keys() - flags - config
    sources = {
        "command line": flags,
        "config file": config,
        f"method {settings.method}": implied,
        "default": every - flags - config - implied,
    }
    named = {source: sorted(names) for source, names in sources.items() if names}
    return Resolved(settings, run, False, script, named)
