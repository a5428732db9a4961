"""Command lines and settings files: rejected flags and values, and their messages."""

import re

import pytest
import yaml

from imagenet.train import ImageNetTrainSettings
from lib.cli import InputError
from lib.options import parse
from nasbench201.settings import SCRIPT as SCRIPT_201
from nasbench201.settings import SearchSettings201
from search.command_line import resolve
from search.settings import SCRIPT
from tests.helpers import script_in_process
from train.train import TrainSettings

NO_EFFECT = {
    "search/train_search.py": [
        ("--reg none --epsilon_0 1e-3", "--epsilon_0", "--reg other than none with --derivatives difference"),
        ("--derivatives exact --epsilon_0 1e-3", "--epsilon_0", "--derivatives difference"),
        ("--method lambda-darts-exact --epsilon_0 1e-3", "--epsilon_0", "--derivatives difference"),
        ("--cutout_length 4", "--cutout_length", "--cutout"),
        ("--no_cutout --cutout_length 4", "--cutout_length", "--cutout"),
        ("--method darts --derivatives exact", "--derivatives", "--hypergradient unrolled or implicit"),
        ("--method darts-minus --derivatives exact", "--derivatives", "--reg other than none"),
        ("--weights_first --hypergradient implicit", "--weights_first", "--hypergradient first or unrolled"),
        ("--method idarts --no_weights_first", "--weights_first", "--hypergradient first or unrolled"),
        ("--threshold 0.5", "--threshold", "--relaxation sigmoid"),
        ("--method darts-pt --threshold 0.5", "--threshold", "--relaxation sigmoid"),
        ("--method darts --lambda_ 1", "--lambda_", "--reg other than none"),
        ("--skip_beta 0.5", "--skip_beta", "--auxiliary_skip skip or conv1"),
        ("--decay cosine", "--decay", "--auxiliary_skip skip or conv1"),
        ("--neumann_terms 3", "--neumann_terms", "--hypergradient implicit"),
        ("--method idarts --derivatives exact --implicit_noise", "--implicit_noise", "--derivatives difference"),
        ("--alpha_reg_weight 3", "--alpha_reg_weight", "--alpha_reg other than none"),
        ("--finetune_epochs 3", "--finetune_epochs", "--selection perturbation"),
        ("--dataset digits --data elsewhere", "--data", "not --dataset digits"),
        ("--dataset digits --download", "--download", "--dataset cifar10, cifar100, svhn"),
        ("--dataset folder --download", "--download", "--dataset cifar10, cifar100, svhn"),
    ],
    "nasbench201/train_search.py": [
        ("--halves cifar-split.txt --train_portion 0.4", "--train_portion", "--halves"),
    ],
}
SCRIPTS = {"search/train_search.py": SCRIPT, "nasbench201/train_search.py": SCRIPT_201}


@pytest.mark.parametrize(
    ("script", "words", "flag", "need"), [(script, *row) for script, rows in NO_EFFECT.items() for row in rows]
)
def test_a_flag_without_effect_is_rejected(script, words, flag, need):
    with pytest.raises(InputError) as caught:
        resolve(words.split(), SCRIPTS[script])
    begin = f"{flag}: this flag has no effect here; it needs "
    assert str(caught.value).startswith(begin) and need in str(caught.value)


@pytest.mark.parametrize("settings", [TrainSettings, ImageNetTrainSettings])
def test_a_retraining_flag_without_effect_is_rejected(settings):
    with pytest.raises(InputError, match="--auxiliary_weight: this flag has no effect here; it needs --auxiliary"):
        parse(settings, "train.py", "", ["--arch", "DARTS_V2", "--no_auxiliary", "--auxiliary_weight", "0.3"])


VALUES = [
    ("epochs", None, "None, expected a whole number, 1 or more"),
    ("learning_rate", None, "None, expected a number, above 0"),
    ("dataset", None, "None, expected text"),
    ("data", None, "None, expected text"),
    ("cutout", None, "None, expected true or false"),
    ("grad_clip", "inf", "inf, expected a finite number"),
    ("lambda_", "nan", "nan, expected a number, 0 or more"),
    ("learning_rate", "0", "0, expected a number, above 0"),
    ("threshold", "1.5", "1.5, expected a number, 0 to 1"),
    ("epochs", "1.5", "'1.5', expected a whole number, 1 or more"),
    ("layers", "many", "'many', expected a whole number, 1 to 1000"),
    ("epochs", "True", "'True', expected a whole number, 1 or more"),
    ("space", "s6", "'s6', expected one of s1, s2, s3, s4, s5, darts"),
]


@pytest.mark.parametrize(("name", "value", "message"), VALUES)
def test_an_invalid_value_is_rejected_in_a_flag_and_in_a_file(tmp_path, name, value, message):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({name: value}))
    with pytest.raises(InputError) as caught:
        resolve(["--config", str(config)])
    assert str(caught.value).startswith(f"--config: {config}: {name}: ") and message in str(caught.value)
    if value is not None:
        with pytest.raises(InputError) as caught:
            resolve([f"--{name}={value}"])
        assert str(caught.value).startswith(f"--{name}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: true\n", "epochs: True, expected a whole number, 1 or more"),
        ("learning_rate: .inf\n", "learning_rate: inf, expected a finite number"),
        ("cutout: 1\n", "cutout: 1, expected true or false"),
        ("cutout: 'yes'\n", "cutout: 'yes', expected true or false"),
        ("lamda: 1\n", "lamda: unknown setting; --help lists all settings"),
        ("config: other.yaml\n", "config: unknown setting; --help lists all settings"),
        ("3: 4\n", "3: unknown setting; --help lists all settings"),
        ("resume: runs/mine\n", "resume: expected --resume on the command line instead"),
    ],
)
def test_a_wrong_settings_file_is_rejected(tmp_path, content, message):
    config = tmp_path / "settings.yaml"
    config.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"--config: {config}: {message}")):
        resolve(["--config", str(config)])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--lamda", "; did you mean --lambda_?"),
        ("--lambda", "; did you mean --lambda_?"),
        ("--lr", "; did you mean --learning_rate?"),
        ("--wd", "; did you mean --weight_decay?"),
        ("--epoch", "; did you mean --epochs"),
        ("--no_cutuot", "; did you mean --no_cutout"),
        ("--qqqqq", "; --help lists all flags"),
    ],
)
def test_an_unknown_flag_suggests_the_nearest_one(flag, nearest):
    with pytest.raises(InputError) as caught:
        resolve([flag, "1"])
    assert str(caught.value).startswith(f"{flag}: unknown flag{nearest}")


def test_a_flag_with_several_values_can_be_repeated(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("seeds: [9]\n")
    words = ["--seeds", "1", "2", "--method", "darts", "--seeds=3"]
    assert parse(SearchSettings201, "", "", words).seeds == [1, 2, 3]
    assert parse(SearchSettings201, "", "", ["--config", str(config)]).seeds == [9]
    assert parse(SearchSettings201, "", "", ["--config", str(config), *words]).seeds == [1, 2, 3]


def test_dashes_and_underscores_in_flags_are_equivalent(tmp_path):
    save = str(tmp_path / "run")
    dashes = resolve(["--learning-rate", "0.1", "--arch-beta1=0.4", "--no-cutout", "--save", save])
    assert (
        dashes.settings
        == resolve(["--learning_rate", "0.1", "--arch_beta1", "0.4", "--no_cutout", "--save", save]).settings
    )
    assert dashes.sources["command line"] == ["arch_beta1", "cutout", "learning_rate"]


def test_print_config_shows_the_settings_of_the_method_and_can_be_given_back(tmp_path):
    words = ["--method", "fair-darts", "--space", "s2", "--epochs", "7"]
    printed = script_in_process("search/train_search.py", *words, "--print_config").stdout
    settings = yaml.safe_load(printed)
    assert (settings["relaxation"], settings["batch_size"], settings["epochs"]) == ("sigmoid", 128, 7)
    (tmp_path / "settings.yaml").write_text(printed)
    again = resolve(["--config", str(tmp_path / "settings.yaml")]).settings
    assert again == resolve(words).settings
