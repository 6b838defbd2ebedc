"""Classes, files and options that are named wrongly: one line with the reason; modules that raise: a traceback."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from tests.conftest import REPOSITORY

OWN = """
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

class Level(Callback):
    def __init__(self, level: int = 3):
        self.level = level

class Needs(Callback):
    def __init__(self, size: int, word: str = ""):
        self.size = size

class Plain:
    pass

class LacksPackage(CSVLogger):
    def __init__(self, save_dir: str = "logs"):
        import no_such_package

class Refuses(Callback):
    def __init__(self):
        raise ValueError("mine")
"""
FORMER = """
import pytorch_lightning

class Former(pytorch_lightning.Callback):
    pass
"""
SHORT = ["--data=Digits", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--dashboard=false"]


@pytest.fixture
def fails(in_new_process):
    """Call ``fit`` with own.py and modules that cannot be imported in the path; returns exit code and stderr."""
    Path("own.py").write_text(OWN)
    Path("former.py").write_text(FORMER)
    Path("lacking.py").write_text("import no_such_package")
    Path("raising.py").write_text("size = 1\nsize / 0")
    Path("unclosed.py").write_text("size = (")
    code = "import sys; sys.path.insert(0, ''); from cnn_lightning.cli.fit import fit; fit()"

    def call(*args: str) -> tuple[int, str]:
        ended, _, errors = in_new_process(code, "fit.py", *SHORT, *args)
        assert not list(Path().rglob("*.ckpt"))
        return ended, errors

    return call


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--trainer.callbacks+=EarlyStoping", "EarlyStoping: there is no such class; did you mean EarlyStopping?"),
        ("--trainer.callbacks+=earlystopping", "did you mean EarlyStopping?"),
        ("--trainer.callbacks EarlyStopping", "EarlyStopping needs monitor: add --trainer.callbacks.monitor"),
        ("--trainer.callbacks+=ProgressBar", "ProgressBar: several classes have this name, expected the full name of"),
        ("--trainer.callbacks+=torch.nn.Linear", "torch.nn.Linear: it is not a subclass of Callback"),
        ("--trainer.callbacks+=lightning.pytorch.callbacks.Timr", "did you mean lightning.pytorch.callbacks.Timer?"),
        (
            "--trainer.callbacks+=lightning.pytorch.callback.EarlyStopping",
            "No module named 'lightning.pytorch.callback'; did you mean EarlyStopping?",
        ),
        ("--trainer.callbacks=[LearningRateMonitor,3]", "--trainer.callbacks 3: expected the name of a class"),
        (
            "--trainer.callbacks+=GradientAccumulationScheduler --trainer.callbacks.scheduling={0:2}",
            "--trainer.callbacks.scheduling {0:2}: expected dict",
        ),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.patience=x",
            "--trainer.callbacks.patience x: expected int",
        ),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.patiense=3",
            "there is no option --trainer.callbacks.patiense; did you mean --trainer.callbacks.patience?",
        ),
        ("--trainer.logger TensorBordLogger", "TensorBordLogger: there is no such class; did you mean TensorBoardLogg"),
        ("--trainer.logger Logger", "--trainer.logger Logger: it is abstract; choose from CSVLogger, CometLogger, "),
        ("--model.net torch.optim.SGD", "--model.net torch.optim.SGD: it is not a subclass of torch.nn.Module"),
        ("--model.net torch.nn.Linear", "--model.net torch.nn.Linear needs in_features: add --model.net.in_features"),
        ("--model.optimizer torch.optim.Adamm", "there is no such class; did you mean torch.optim.Adam?"),
        ("--model.lr_schedule torch.optim.lr_scheduler.StepLR", "it is not a subclass of OneCycle or Cosine"),
        ("--data torchvision.datasets.MNIST", "it is not a subclass of LightningDataModule; did you mean MNIST?"),
        (
            "--data ImageDataModule",
            "--data ImageDataModule: it is abstract; choose from Digits, EMNIST, FashionMNIST, ",
        ),
        ("--model.optimizer SGD --model.optimizer.beta 0.9", "there is no option --model.optimizer.beta; see --help"),
    ],
)
def test_class_is_wrong(args, message, error_of):
    assert message in error_of(fit, *args.split())


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            {"EarlyStopping": {"monitor": "val/loss"}},
            "{'EarlyStopping': {'monitor': 'val/loss'}}: expected {class_path",
        ),
        ({"mine": {"class_path": "Timer"}}, "expected {class_path: NAME, init_args: {...}} or a list of them"),
        ([{"class_path": "Timer"}, {"class_path": "EarlyStoping"}], "callbacks EarlyStoping: there is no such class"),
        (
            [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "mod": "min"}}],
            "there is no option --trainer.callbacks.mod; did you mean --trainer.callbacks.mode?",
        ),
    ],
)
@pytest.mark.parametrize("as_group", [False, True])
def test_class_in_a_file_is_wrong(callbacks, message, as_group, error_of):
    settings = {"callbacks": callbacks}
    Path("wrong.yaml").write_text(yaml.safe_dump(settings if as_group else {"trainer": settings}))
    assert message in error_of(fit, "--trainer=wrong.yaml" if as_group else "--config=wrong.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--trainer.callbacks+=own.Plain", "own.Plain: it is not a subclass of Callback"),
        ("--trainer.callbacks+=own.Plane", "own.Plane: there is no such class"),
        ("--trainer.callbacks+=own.Levle", "own.Levle: there is no such class; did you mean own.Level?"),
        ("--trainer.callbacks+=own.Level --trainer.callbacks.levle=2", "did you mean --trainer.callbacks.level?"),
        ("--trainer.callbacks+=own.Level --trainer.callbacks.level=x", "--trainer.callbacks.level x: expected int"),
        ("--trainer.callbacks+=own.Needs", "--trainer.callbacks own.Needs needs size: add --trainer.callbacks.size"),
        (
            "--trainer.callbacks+=former.Former",
            "it is a Callback of pytorch_lightning, expected one of lightning.pytorch",
        ),
        (
            "--trainer.callbacks+=pytorch_lightning.callbacks.EarlyStopping",
            "it is of the package pytorch_lightning, expected lightning.pytorch.callbacks.EarlyStopping",
        ),
        (
            "--trainer.logger pytorch_lightning.loggers.CSVLogger --trainer.logger.save_dir=x",
            "it is of the package pytorch_lightning, expected lightning.pytorch.loggers.CSVLogger",
        ),
        ("--trainer.callbacks+=nowhere.Level", "--trainer.callbacks nowhere.Level: No module named 'nowhere'"),
        ("--trainer.logger own.Level", "--trainer.logger own.Level: it is not a subclass of Logger"),
        ("--trainer.logger MLFlowLogger", "--trainer.logger MLFlowLogger: Requirement 'mlflow>=1.0.0' not met. HINT: "),
        ("--trainer.logger+=MLFlowLogger", "--trainer.logger MLFlowLogger: Requirement 'mlflow>=1.0.0' not met. HINT"),
        ("--trainer.callbacks+=RichProgressBar", "--trainer.callbacks RichProgressBar: `RichProgressBar` requires"),
    ],
)
def test_own_class_or_package_is_wrong(args, message, fails):
    for package in re.findall(r"MLFlow|Rich", args):
        # Python finds these modules first, and they cannot be imported: as if the package were not installed.
        Path(f"{package.lower()}.py").write_text("raise ImportError")
    ended, errors = fails(*args.split())
    (line,) = errors.splitlines()
    assert (ended, line[:7]) == (2, "error: ")
    assert message in line
    assert len(line) < 250


@pytest.mark.parametrize("option", ["--trainer.callbacks+", "--model.net"])
@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("raising", r'raising.py", line 2, in <module>\n.*\n[ ~^]*\n?ZeroDivisionError: division by zero$'),
        ("lacking", r'lacking.py", line 1, in <module>\n.*\nModuleNotFoundError: No module named \'no_such_package\'$'),
        ("unclosed", r"unclosed.py\", line 1\n.*\n.*\nSyntaxError: '\(' was never closed$"),
    ],
)
def test_module_that_raises_is_a_traceback_that_ends_there(option, module, error, fails):
    ended, errors = fails(f"{option}={module}.Mine")
    assert ended == 1
    assert re.search(error, errors.strip()), errors


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--trainer.callbacks+=own.Refuses"], "ValueError: mine"),
        (["--trainer.callbacks+=own.Level", "--trainer.callbacks+=own.Refuses"], "ValueError: mine"),
        (["--trainer.logger+=own.LacksPackage"], "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_constructor_that_raises_is_a_traceback_that_ends_there(args, error, fails):
    ended, errors = fails(*args)
    assert ended == 1
    assert errors.strip().splitlines()[-1] == error
    assert Path(re.findall(r'File "(.+)", line', errors)[-1]).name == "own.py"


def test_own_module_in_the_current_folder_is_found(in_new_process):
    Path("mynet.py").write_text("")
    code = "import sys; sys.path.remove(''); from cnn_lightning.cli.fit import fit; fit()"
    ended, _, errors = in_new_process(code, "fit.py", "--model.net=mynet.SmallCNN")
    assert (ended, errors) == (
        2,
        "error: --model.net mynet.SmallCNN: there is no such class, and no other Network in mynet\n",
    )


@pytest.mark.parametrize("option", ["--data", "--model", "--model.net", "--trainer.callbacks+"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", ("label," + ",".join(f"pixel{i}" for i in range(784)) + "\n" + "7,0,255\n" * 300).encode()),
        ("digit.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
        ("best.ckpt", b"PK\x03\x04" + bytes(1000)),
        ("notes.txt", b"some notes"),
        ("broken.yaml", b"a: [1\nb: }"),
        ("large.csv", b"1,2,3\n" * 10**6),
    ],
)
def test_file_that_holds_no_settings(option, name, content, error_of):
    Path(name).write_bytes(content)
    line = error_of(fit, f"{option}={name}")
    assert line.startswith(f"error: {option.rstrip('+')} {name} is a file without settings: expected ")
    assert len(line) < 200


def test_value_in_a_message_is_short(error_of):
    long = "15 " * 40_000
    for option in ("--trainer.max_epochs", "--data.batch_size", "--model.net", "--trainer.precision", "--dashboard"):
        line = error_of(fit, f"{option}={long}")
        assert option in line
        assert "15 15" in line
        assert len(line) < 400


@pytest.mark.parametrize("command", [fit, evaluate])
def test_kaggles_table_as_root(command, tiny_root, train, error_of):
    run = train()
    Path("kaggle").mkdir()
    Path("kaggle/train.csv").write_text("label,pixel0\n7,0\n")
    checkpoint = [f"{run}/checkpoints/best.ckpt"] if command is evaluate else []
    for root in ("kaggle/train.csv", "kaggle"):
        for data in ([], ["--data=MNIST"], ["--data=FashionMNIST"]):
            line = error_of(command, *checkpoint, *data, f"--data.root={root}")
            assert f"--data.root {root} is a table of images, expected the folder of the datasets" in line
            assert "docs/data.md" in line
    Path("kaggle/notes").touch()
    line = error_of(fit, "--data.root=kaggle/notes")
    assert "--data.root kaggle/notes is a file, expected the folder of the datasets" in line


@pytest.mark.slow
def test_kaggles_table_as_the_docs_say(tiny_root, in_new_process):
    """The lines of docs/data.md train on a table, and make pictures of another, which are classified in order."""
    raw = tiny_root / "MNIST/raw"
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 784)
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8, offset=8)
    Path("digit-recognizer").mkdir()
    pixels = ",".join(f"pixel{i}" for i in range(784))
    table = np.column_stack([labels, images])
    np.savetxt("digit-recognizer/train.csv", table, "%d", ",", header=f"label,{pixels}", comments="")
    np.savetxt("digit-recognizer/test.csv", images[:12], "%d", ",", header=pixels, comments="")
    page = (REPOSITORY / "docs/data.md").read_text()
    own, pictures = re.findall(r"```python\n(.*?)```", page.split("## Kaggle's digits")[1], re.DOTALL)
    Path("kaggle.py").write_text(own.replace("5000", "100"))
    commands = re.findall(r"python scripts/(\w+)\.py (.*kaggle\.Kaggle.*)", page)
    assert [name for name, _ in commands] == ["fit", "predict"]
    settings = ["--trainer.max_epochs=4", "--dashboard=false", "--trainer.enable_progress_bar=false"]
    code = "import sys; sys.path.insert(0, ''); from cnn_lightning.cli.{0} import {0}; {0}()"
    ended, printed, errors = in_new_process(code.format("fit"), "fit.py", *commands[0][1].split(), *settings)
    assert ended == 0, errors
    assert "Training TwoLayerCNN on Kaggle: 270 training and 30 validation images" in printed
    exec(pictures, {})
    ended, printed, errors = in_new_process(code.format("predict"), "predict.py", *commands[1][1].split())
    assert ended == 0, errors
    rows = [line.split(",") for line in Path("predictions.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [f"test/{number}.png" for number in range(1, 13)]
    assert {row[1] for row in rows} <= set("0123456789")
    assert np.array_equal([np.asarray(Image.open(row[0])).ravel() for row in rows], images[:12])
