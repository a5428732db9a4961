"""Wrong input: one clear line on stderr that names it, exit status 2, and nothing written."""

import time

import pytest
import torch
import yaml

from genotypes import CELLS
from tests.conftest import assert_refused, script
from tests.test_data import write_folder

SEARCH = "search/train_search.py"
DIGITS = ("--dataset", "digits", "--space", "s2", "--layers", "4", "--init_channels", "2")


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--lamda", "1"), ("--lamda",)),
        (("--unrolled", "yes", "please"), ("yes",)),
        (("--method", "pdarts"), ("--method", "pdarts", "'idarts'")),
        (("--relaxation", "relu"), ("--relaxation", "'sigmoid'")),
        (("--inner_steps", "0"), ("--inner_steps", "0", ">0")),
        (("--neumann_terms", "-1"), ("--neumann_terms", "-1")),
        (("--threshold", "1.5"), ("--threshold", "1.5")),
        (("--arch_beta1", "1"), ("--arch_beta1", "1", "<1")),
        (("--selection", "threshold_edge"), ("--selection", "threshold_edge", "expected --relaxation sigmoid")),
        (("--method", "fair-darts", "--relaxation", "softmax"), ("--selection", "expected --relaxation sigmoid")),
        (
            ("--method", "idarts", "--implicit_noise", "--derivatives", "exact"),
            ("--implicit_noise", "--derivatives difference"),
        ),
        (("--skip_beta", "0.5"), ("--skip_beta", "--auxiliary_skip skip or conv1")),
        (("--method", "darts", "--lambda_", "1"), ("--lambda_", "--reg corr")),
        (("--neumann_terms", "3"), ("--neumann_terms", "--hypergradient implicit")),
        (("--alpha_reg_weight", "3"), ("--alpha_reg_weight", "--alpha_reg zero_one_l2")),
        (("--threshold", "0.9"), ("--threshold", "--relaxation sigmoid")),
        (("--finetune_epochs", "3"), ("--finetune_epochs", "--selection perturbation")),
        (("--space", "s6"), ("--space", "s6", "'s5'")),
        (("--dataset", "cifar"), ("--dataset", "cifar", "'cifar100'")),
        (("--derivatives", "approximate"), ("--derivatives", "'exact'")),
        (("--lambda_", "-0.1"), ("--lambda_", "-0.1", ">=0")),
        (("--lambda_", "nan"), ("--lambda_", "nan")),
        (("--epsilon_0", "0"), ("--epsilon_0", "0", ">0")),
        (("--epochs", "0"), ("--epochs", "0", ">0")),
        (("--epochs", "1.5"), ("--epochs", "1.5")),
        (("--batch_size", "many"), ("--batch_size", "many")),
        (("--train_portion", "1"), ("--train_portion", "1", "<1")),
        (("--drop_path_prob", "1"), ("--drop_path_prob", "1", "<1")),
        (("--learning_rate", "inf"), ("--learning_rate", "inf")),
        (("--learning_rate",), ("--learning_rate", "expected one argument")),
        (("--seed", "-1"), ("--seed", "-1")),
        (("--seed", str(2**32)), ("--seed", "<4294967296")),
        (("--config", "nowhere.yaml"), ("--config", "nowhere.yaml")),
        (("--resume", "nowhere"), ("--resume", "nowhere", "run folder")),
        (("--resume", "nowhere", "--epochs", "50"), ("--resume", "--epochs")),
    ],
)
def test_a_wrong_flag_is_refused_before_torch_is_loaded(arguments, mentions):
    start = time.monotonic()
    assert_refused(script(SEARCH, *arguments), *mentions)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--dataset", "cifar10", "--data", "nowhere"), ("--data", "cifar10", "nowhere", "--download")),
        (("--dataset", "folder", "--data", "nowhere"), ("--data", "nowhere/train", "<class>")),
        ((*DIGITS, "--batch_size", "719"), ("--batch_size", "719", "718")),
        ((*DIGITS, "--reg", "cosine"), ("--reg", "cosine", "signcorr")),
        ((*DIGITS, "--alpha_reg", "one_two"), ("--alpha_reg", "one_two", "zero_one_l2")),
        ((*DIGITS, "--layers", "3"), ("--layers", "3", "--reg none")),
        ((*DIGITS, "--layers", "2", "--reg", "none"), ("--layers", "2", "expected 3 or more")),
        ((*DIGITS, "--layers", "3", "--reg", "none", "--compare_derivatives"), ("--layers", "--compare_derivatives")),
        ((*DIGITS, "--batch_size", "1"), ("--batch_size", "1", "2 or more")),
        ((*DIGITS, "--cutout"), ("--cutout_length", "16", "2 to 7")),
        ((*DIGITS, "--device", "gpu"), ("--device", "gpu", "cuda")),
        ((*DIGITS, "--device", "cuda:99"), ("--device", "cuda:99")),
        ((*DIGITS, "--save", "README.md"), ("--save", "README.md")),
        ((*DIGITS, "--save", "README.md/run"), ("--save", "README.md")),
        ((*DIGITS, "--save", "search"), ("--save", "search", "not empty")),
        ((*DIGITS, "--save", "/proc/run"), ("--save", "/proc")),
    ],
)
def test_a_search_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, arguments, mentions):
    save = () if "--save" in arguments else ("--save", tmp_path / "run")
    assert_refused(script(SEARCH, *arguments, *save), *mentions)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named():
    assert_refused(script(SEARCH, *DIGITS, "--device", "cuda"), "--device", "cuda", "expected cpu or auto")


@pytest.mark.parametrize("damage", ["one class", "a corrupt image"])
def test_a_wrong_image_folder_is_named_and_no_run_begun(tmp_path, damage):
    root = write_folder(tmp_path / "data", classes=("cat",) if damage == "one class" else ("cat", "dog"))
    if damage == "a corrupt image":
        (root / "test/dog/2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    result = script(SEARCH, "--dataset", "folder", "--data", root, "--save", tmp_path / "run")
    assert_refused(result, "--data", "expected two or more" if damage == "one class" else "test/dog/2.png")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ("not: [yaml", ("not YAML",)),
        ("[1, 2]", ("expected the settings of a run",)),
        ("arch: DARTS_V2", ("missing",)),
        (None, ("--space", "s9")),
    ],
)
def test_a_folder_that_is_no_run_is_not_resumed(tmp_path, content, mentions):
    if content is None:
        from dataclasses import asdict

        from search.settings import SearchSettings

        content = yaml.safe_dump({**asdict(SearchSettings()), "space": "s9"})
    (tmp_path / "config.yaml").write_text(content)
    assert_refused(script(SEARCH, "--resume", tmp_path), *mentions)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    from dataclasses import replace

    from search.settings import SearchSettings
    from tests.test_search import SMALL, run_search

    run = run_search(replace(SMALL, epochs=1), tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert SearchSettings(**{name: value for name, value in config.items() if name != "provenance"}) == replace(
        SMALL, epochs=1
    )
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "init_channels": 6}))
    assert_refused(script(SEARCH, "--resume", run), "--resume", "config.yaml")


def test_a_damaged_checkpoint_is_named(tmp_path):
    from dataclasses import asdict

    from search.settings import SearchSettings

    settings = SearchSettings(dataset="digits", layers=4, init_channels=2, space="s2")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(settings)))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch_00001.safetensors").write_bytes(b"\x10" * 100)
    assert_refused(script(SEARCH, "--resume", tmp_path), "--resume", "epoch_00001.safetensors", "damaged")


def test_a_method_beside_the_settings_of_another_is_refused(tmp_path):
    from dataclasses import asdict

    from search.settings import method_settings

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(asdict(method_settings("idarts"))))
    result = script(SEARCH, "--method", "darts", "--config", config, "--save", tmp_path / "run")
    assert_refused(result, "--method: darts", "idarts", "one of the two")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["analysis/size.py", "analysis/draw.py"])
def test_a_wrong_genotype_is_named(tmp_path, command):
    path = tmp_path / "genotype.json"
    path.write_text(CELLS["DARTS_V2"].to_json().replace("dil_conv_3x3", "dil_conv_9x9"))
    assert_refused(script(command, path), "genotype.json", "dil_conv_9x9", "dil_conv_3x3")
    assert_refused(script(command, "DARTS_V3"), "DARTS_V3", "DARTS_V2")
    assert_refused(script(command, tmp_path / "none"), "none")


def test_a_network_without_channels_has_no_size():
    for channels in ("1", "100000000000"):
        result = script("analysis/size.py", "DARTS_V2", "--dataset", "imagenet", "--init_channels", channels)
        assert_refused(result, "--init_channels", channels, "2 to 4096")


@pytest.mark.parametrize(
    "command",
    [
        SEARCH,
        "search/select.py",
        "benchmarks/methods.py",
        "train/train.py",
        "train/test.py",
        "analysis/draw.py",
        "analysis/curves.py",
        "analysis/size.py",
        "analysis/derivatives.py",
        "analysis/report.py",
        "analysis/hessian.py",
        "analysis/landscape.py",
        "scripts/reproduce.py",
    ],
)
def test_help_is_answered_at_once(command):
    start = time.monotonic()
    result = script(command, "--help")
    assert time.monotonic() - start < 3
    assert result.returncode == 0 and "usage:" in result.stdout and not result.stderr


def test_help_of_the_search_is_grouped():
    text = script(SEARCH, "--help").stdout
    for group in ("data:", "method:", "relaxation:", "weights:", "architecture:", "regularizer:", "selection:", "run:"):
        assert f"\n{group}" in text
