"""The same settings by every way to give them, classes that replace others, --print_config, and ~."""

import functools
import inspect
import json
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import callbacks, loggers
from PIL import Image
from torch import optim

import cnn_lightning
from cnn_lightning import MNIST
from cnn_lightning.cli.compare import compare
from cnn_lightning.cli.evaluate import EvaluateCLI, evaluate
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.fit import FitCLI, fit
from cnn_lightning.cli.mistakes import mistakes
from cnn_lightning.cli.predict import PredictCLI, predict
from cnn_lightning.optim import Cosine, OneCycle

FORMS = ("", "=skip_null", "=skip_default", "=skip_default,skip_null")
if find_spec("ruamel"):
    FORMS = (*FORMS, "=comments", "=comments,skip_default")


class Parsed:
    """Of a command: what parses arguments and builds model and dataset, without Trainer."""

    def before_instantiate_classes(self):
        """Let the default dataset be."""

    def instantiate_trainer(self):
        return None


class Unbuilt(Parsed):
    """Of a command: what parses arguments alone."""

    def instantiate_classes(self):
        pass


def parse(*words, cli=FitCLI, base=Unbuilt):
    return type("ParsedCLI", (base, cli), {})(list(words))


def config_of(*words, cli=FitCLI):
    parsed = parse(*words, cli=cli)
    return yaml.safe_load(parsed.parser.dump(parsed.config, skip_unset=False))


def lr_of(*words):
    return config_of(*words)["model"]["optimizer"]["init_args"]["lr"]


def printed_by(capsys, *words, cli=FitCLI):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        parse(*words, cli=cli)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def write(name, content):
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    return name


# Random settings: option -> value; a class is a dictionary, without class_path where its default is meant.

FLOATS = st.floats(1e-4, 0.9)
OPTIMIZER = {"lr": FLOATS, "weight_decay": FLOATS}
BETAS = st.lists(FLOATS, min_size=2, max_size=2)
KERNEL = {"kernel_size": st.sampled_from([1, 3, 7]), "batch_norm": st.booleans(), "dropout": FLOATS}
WIDTH = {"width": st.integers(1, 4)}
NETS = {
    "DeepCNN": {},
    "DropoutCNN": {},
    "FastCNN": {},
    "SigmoidCNN": {},
    "TwoLayerCNN": KERNEL,
    "LeNetCNN": KERNEL,
    "MLP": WIDTH,
    "WideCNN": WIDTH,
    "ResNetCNN": WIDTH | {"dropout": FLOATS},
    "VGGCNN": {"groups": st.just([[2], [3, 4]]), "separable": st.booleans()},
    "TorchvisionNet": {"name": st.sampled_from(["resnet18", "mobilenet_v2"])},
}
OPTIMIZERS = {
    "AdamW": OPTIMIZER | {"betas": BETAS},
    "Adam": OPTIMIZER | {"betas": BETAS, "amsgrad": st.booleans()},
    "NAdam": OPTIMIZER | {"momentum_decay": FLOATS},
    "SGD": OPTIMIZER | {"momentum": FLOATS},
    "RMSprop": OPTIMIZER | {"momentum": FLOATS, "centered": st.booleans()},
    "ConvMuon": OPTIMIZER | {"momentum": FLOATS, "betas": BETAS, "newton_schulz_steps": st.integers(1, 5)},
}
SCHEDULES = {"OneCycle": {"pct_start": FLOATS, "cycle_momentum": st.booleans()}, "Cosine": {"eta_min": FLOATS}}
DATA = {
    "batch_size": st.integers(1, 99),
    "val_size": st.one_of(FLOATS, st.integers(1, 9)),
    "mean": st.one_of(st.none(), FLOATS),
    "drop_last": st.booleans(),
    "shift": st.integers(0, 3),
    "root": st.sampled_from(["here", "in/a folder"]),
}
LOGGERS = {
    "CSVLogger": {"name": st.sampled_from(["a", "b"]), "prefix": st.just("p")},
    "TensorBoardLogger": {"name": st.just("c"), "prefix": st.just("q"), "max_queue": st.integers(1, 9)},
}
CALLBACKS = {
    "EarlyStopping": {"patience": st.integers(1, 9), "mode": st.sampled_from(["min", "max"])},
    "ModelCheckpoint": {"save_top_k": st.integers(-1, 1), "mode": st.sampled_from(["min", "max"])},
    "LearningRateMonitor": {"logging_interval": st.sampled_from(["step", "epoch"])},
}
REQUIRED = {"CSVLogger": {"save_dir": "x"}, "TensorBoardLogger": {"save_dir": "y"}, "EarlyStopping": {"monitor": "v"}}
CLASSES = {
    "model.net": NETS,
    "model.optimizer": OPTIMIZERS,
    "model.lr_schedule": SCHEDULES,
    "data": dict.fromkeys(("MNIST", "FashionMNIST", "Digits"), DATA),
    "trainer.logger": LOGGERS,
}
OWN = (optim, cnn_lightning, loggers, callbacks)
HOUSE = {"model.optimizer": {"lr": 0.005}}  # for AdamW, which is the default
DEFAULT = {"model.net": "TwoLayerCNN", "model.optimizer": "AdamW", "model.lr_schedule": "OneCycle", "data": "MNIST"}


@st.composite
def class_specs(draw, kinds):
    name = draw(st.sampled_from(sorted(kinds)))
    arguments = draw(st.fixed_dictionaries({}, optional=kinds[name]))
    return {"class_path": name, "init_args": REQUIRED.get(name, {}) | arguments}


@st.composite
def random_settings(draw):
    values = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "seed_everything": st.one_of(st.integers(0, 99), st.just(False)),
                "trainer.max_epochs": st.integers(1, 9),
                "trainer.precision": st.just("32-true"),
                "trainer.gradient_clip_val": FLOATS,
                "trainer.logger": st.one_of(st.booleans(), class_specs(LOGGERS)),
                "trainer.callbacks": st.lists(class_specs(CALLBACKS), min_size=1, max_size=2),
                "model.net": class_specs(NETS),
                "model.optimizer": class_specs(OPTIMIZERS),
                "model.lr_schedule": st.one_of(st.none(), class_specs(SCHEDULES)),
                "model.label_smoothing": FLOATS,
                "data": class_specs(CLASSES["data"]),
                "dashboard": st.booleans(),
                "save_every_n_steps": st.one_of(st.none(), st.integers(1, 9)),
            },
        )
    )
    for option in ("model.net", "model.optimizer", "data"):
        if option in values and values[option]["class_path"] == DEFAULT[option] and draw(st.booleans()):
            del values[option]["class_path"]  # the options alone
    return values


def replaced_by(values, rng):
    """Other classes for the options whose class is named, with settings that the named ones could take."""
    others = {}
    for option, kinds in CLASSES.items():
        spec = values.get(option)
        named = spec.get("class_path") if isinstance(spec, dict) else None
        if option in values and (named or not isinstance(spec, dict)):
            others[option] = other_class(kinds, named, rng)
    if specs := values.get("trainer.callbacks"):
        others["trainer.callbacks"] = [other_class(CALLBACKS, spec["class_path"], rng) for spec in specs]
    return others


def other_class(kinds, but, rng):
    name = rng.choice([kind for kind in kinds if kind != but])
    arguments = {key: OTHER[key] for key in kinds[name] if key in OTHER}
    return {"class_path": name, "init_args": REQUIRED.get(name, {}) | arguments}


# What TensorBoardLogger passes on to TensorBoard's SummaryWriter.
WRITER = {"comment": "", "purge_step": None, "max_queue": 10, "flush_secs": 120, "filename_suffix": ""}
OTHER = {"lr": 0.123, "weight_decay": 0.123, "momentum": 0.123, "momentum_decay": 0.123, "amsgrad": True}
OTHER |= {"centered": True, "newton_schulz_steps": 7, "kernel_size": 5, "batch_norm": True, "dropout": 0.123}
OTHER |= {"width": 9, "pct_start": 0.123, "cycle_momentum": True, "eta_min": 0.123, "batch_size": 123}
OTHER |= {"val_size": 123, "mean": 0.123, "drop_last": True, "shift": 9, "root": "other", "prefix": "other"}
OTHER |= {"max_queue": 123, "patience": 123, "mode": "max", "save_top_k": 9, "logging_interval": "epoch"}


def expected(values, default):
    """The configuration that values mean: each class with the defaults of its signature."""
    config = json.loads(json.dumps(default))
    for option, value in values.items():
        group, _, key = option.rpartition(".")
        (config[group] if group else config)[key] = resolved(option, value, default)
    return config


def resolved(option, value, default):
    if isinstance(value, list):
        return [resolved(option, item, default) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("class_path")
    if name is None:
        group, _, key = option.rpartition(".")
        spec = json.loads(json.dumps((default[group] if group else default)[key]))
        return spec | {"init_args": spec["init_args"] | value["init_args"]}
    module = next(module for module in OWN if hasattr(module, name))
    parameters = inspect.signature(getattr(module, name)).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is not p.VAR_KEYWORD}
    own |= WRITER if name == "TensorBoardLogger" else {}
    house = HOUSE.get(option, {}) if name == DEFAULT.get(option) else {}
    arguments = json.loads(json.dumps(own | house | value["init_args"]))
    return {"class_path": f"{module.__name__}.{name}"} | ({"init_args": arguments} if arguments else {})


# Ways to give settings: each returns arguments.


def nested(values):
    tree = {}
    for option, value in values.items():
        *groups, key = option.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[key] = value
    return tree


def typed(values, rng):
    """Each setting as an argument, groups of arguments in any order, joined with = or not."""
    groups = []
    for option, value in values.items():
        specs = value if isinstance(value, list) else [value]
        plus = "+" if isinstance(value, list) else ""
        words = []
        for spec in specs:
            if not isinstance(spec, dict):
                words.append((option, spec))
                continue
            words += [(option + plus, spec["class_path"])] if "class_path" in spec else []
            words += [(f"{option}.{key}", argument) for key, argument in spec["init_args"].items()]
        groups.append(words)
    rng.shuffle(groups)
    return [word for words in groups for option, value in words for word in argument(option, value, rng)]


def argument(option, value, rng):
    text = value if isinstance(value, str) else json.dumps(value)
    return [f"--{option}={text}"] if rng.random() < 0.5 else [f"--{option}", text]


def one_file(values, rng):
    return ["--config", write("one.yaml", nested(values))]


def several_files(values, rng):
    """Classes that are replaced, then the settings in any order, some in one file and some in another."""
    options = list(values)
    rng.shuffle(options)
    parts = [replaced_by(values, rng), *({o: values[o] for o in options[i::2]} for i in range(2))]
    return [f"--config={write(f'{i}.yaml', nested(part))}" for i, part in enumerate(parts) if part]


def file_and_typed(values, rng):
    others = replaced_by(values, rng)
    file = [f"--config={write('others.yaml', nested(others))}"] if others else []
    return file + inline_lists(values, rng)


def inline_lists(values, rng):
    """As typed, but lists are one value, because ``+`` would append to what is replaced."""
    lists = {option: value for option, value in values.items() if isinstance(value, list)}
    rest = {option: value for option, value in values.items() if option not in lists}
    return [word for option, value in lists.items() for word in argument(option, value, rng)] + typed(rest, rng)


def typed_twice(values, rng):
    return inline_lists(replaced_by(values, rng), rng) + inline_lists(values, rng)


def group_files(values, rng):
    return groups(replaced_by(values, rng), "other", rng) + groups(values, "group", rng)


def groups(values, name, rng):
    """A file, or its text, for each of --model, --trainer and --data."""
    words = []
    for group, value in nested(values).items():
        if group not in ("model", "trainer", "data"):
            words += argument(group, value, rng)
        elif rng.random() < 0.5:
            words += [f"--{group}", write(f"{name}_{group}.yaml", value)]
        else:
            words += [f"--{group}={json.dumps(value)}"]
    return words


def files_of_files(values, rng):
    """A file of --config that names files of groups and classes, next to it."""
    folder = Path("deep")
    folder.mkdir(exist_ok=True)
    tree = nested(values)
    for group in {"model", "data"} & tree.keys():
        write(folder / f"{group}.yaml", tree[group])
        tree[group] = f"{group}.yaml"
    others = replaced_by(values, rng)
    file = [f"--config={write('others.yaml', nested(others))}"] if others else []
    return [*file, "--config", str(write(folder / "all.yaml", tree))]


WAYS = (typed, one_file, several_files, file_and_typed, typed_twice, group_files, files_of_files)


def check(values, rng, capsys, ways):
    """Give settings in some of all ways, and compare with the configuration that they mean."""
    wanted = expected(values, default_config())
    for way in rng.sample([*WAYS, *FORMS, saved], ways):
        if way is saved:
            saved(values, rng, wanted)
        elif way in FORMS:
            words = argument_list(values, rng, f"--print_config{way}")
            Path("printed.yaml").write_text(printed_by(capsys, *words))
            assert config_of("--config=printed.yaml") == wanted, words
        else:
            words = way(values, rng)
            assert config_of(*words) == wanted, (way.__name__, words)


@functools.cache
def default_config():
    return config_of("--config", write("empty.yaml", {"model": {}}))


def argument_list(values, rng, inserted):
    """Typed settings with another argument between two of them."""
    words = typed(values, rng)
    places = [0, *(i for i in range(1, len(words) + 1) if "=" in words[i - 1] or not words[i - 1].startswith("--"))]
    place = rng.choice(places)
    return [*words[:place], inserted, *words[place:]]


def saved(values, rng, wanted):
    """Build what is typed, and what the config.yaml of its run gives back."""
    first = parse(*typed(values, rng), base=Parsed)
    folder = Path("run")
    for path in folder.glob("*"):
        path.unlink()
    trainer = SimpleNamespace(default_root_dir=str(folder), log_dir=str(folder), is_global_zero=True, loggers=[])
    first.save_config_callback(first.parser, first.config).setup(trainer, None, "fit")
    again = parse(f"--config={folder}/config.yaml", base=Parsed)
    for cli in (first, again):
        assert_built(cli, wanted)
    assert again.model.hparams == first.model.hparams
    assert again.datamodule.hparams == first.datamodule.hparams


def assert_built(cli, wanted):
    """Network, optimizer, schedule and dataset are those that are wanted, with these arguments."""
    model = cli.model
    assert f"cnn_lightning.{type(model.net).__name__}" == wanted["model"]["net"]["class_path"]
    given = wanted["model"]["net"].get("init_args", {})
    assert {key: model.net.init_args[key] for key in given} == given
    optimizer = model.optimizer(model.net.parameters())
    assert type(optimizer).__name__ == wanted["model"]["optimizer"]["class_path"].rpartition(".")[2]
    arguments = wanted["model"]["optimizer"]["init_args"]
    for key in ("lr", "weight_decay", "momentum", "amsgrad", "centered", "momentum_decay") & arguments.keys():
        assert optimizer.param_groups[0][key] == arguments[key], key
    if wanted["model"]["lr_schedule"] is None:
        assert model.lr_schedule is None
    else:
        name = wanted["model"]["lr_schedule"]["class_path"].rpartition(".")[2]
        schedule = model.lr_schedule(optimizer, 10)
        assert type(schedule) is {"OneCycle": OneCycle, "Cosine": Cosine}[name]
    assert type(cli.datamodule).__name__ == wanted["data"]["class_path"].rpartition(".")[2]
    arguments = wanted["data"]["init_args"]
    for key in ("batch_size", "val_size", "drop_last", "shift"):
        assert cli.datamodule.hparams[key] == arguments[key], key


DRAWN = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to find a smaller example would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@settings(DRAWN, max_examples=15)
@given(values=random_settings(), seed=st.integers(0, 1000))
@pytest.mark.slow
def test_every_way_to_give_settings_makes_the_same_run(capsys, values, seed):
    check(values, random.Random(seed), capsys, ways=2)


@pytest.mark.campaign
@settings(DRAWN, max_examples=200)
@given(values=random_settings(), seed=st.integers(0, 1000))
def test_every_way_for_many_settings(capsys, values, seed):
    check(values, random.Random(seed), capsys, ways=4)


class TestPrintConfig:
    @pytest.mark.parametrize("form", FORMS)
    def test_file_gives_back_the_same_run(self, capsys, form):
        words = ["--model.net", "LeNetCNN", "--model.optimizer", "SGD", "--data", "FashionMNIST"]
        words += ["--model.lr_schedule", "null", "--data.std=1"]
        Path("sd.yaml").write_text(printed_by(capsys, *words, f"--print_config{form}"))
        given_back = config_of("--config", "sd.yaml")
        assert given_back == config_of(*words)
        names = [given_back["model"][key]["class_path"] for key in ("net", "optimizer")]
        assert names == ["cnn_lightning.LeNetCNN", "torch.optim.SGD"]

    def test_skip_default_prints_what_was_chosen(self, capsys):
        words = ["--print_config=skip_default", "--model.net=MLP", "--model.lr_schedule=null", "--data.mean=null"]
        printed = yaml.safe_load(printed_by(capsys, *words))
        assert printed == {"model": {"net": {"class_path": "cnn_lightning.MLP"}, "lr_schedule": None}}

    def test_skip_null_keeps_a_null_that_replaces_another_value(self, capsys):
        printed = yaml.safe_load(printed_by(capsys, "--model.lr_schedule=null", "--print_config=skip_null"))
        assert printed["model"].pop("lr_schedule", "missing") is None
        assert "null" not in yaml.safe_dump(printed)

    @pytest.mark.parametrize("form", FORMS)
    def test_of_a_recipe(self, capsys, form):
        recipe = Path(cnn_lightning.__file__).parent / "recipes/fast_mnist.yaml"
        words = [f"--config={recipe}", "--model.optimizer=SGD", "--trainer.max_epochs=2"]
        Path("printed.yaml").write_text(printed_by(capsys, f"--print_config{form}", *words))
        assert config_of("--config=printed.yaml") == config_of(*words)

    def test_of_a_checkpoint(self, train, capsys):
        """Its settings are defaults, too."""
        own = ["--model.net=MLP", "--model.net.width=4", "--model.optimizer=SGD", "--model.lr_schedule=null"]
        run = train(*own, "--data=MNIST", "--data.batch_size=50", "--model.label_smoothing=0.1")
        best = f"--ckpt_path={run}/checkpoints/best.ckpt"
        for cli, words in (
            (FitCLI, ["--ckpt_path=last", "--model.net=MLP", "--data=MNIST"]),
            (FitCLI, [best, "--model.label_smoothing=0", "--data.batch_size=64", "--model.net.width=128"]),
            (FitCLI, [best, "--data=Digits", "--model.optimizer=AdamW", "--model.lr_schedule=OneCycle"]),
            (EvaluateCLI, ["--data.batch_size=64", "--report=false"]),
            (EvaluateCLI, [f"{run}/checkpoints/best.ckpt"]),
            (PredictCLI, ["one.png", "two.png", best, "--csv=x.csv"]),
        ):
            wanted = config_of(*words, cli=cli)
            for form in ("=skip_default", "=skip_null"):
                Path("printed.yaml").write_text(printed_by(capsys, *words, f"--print_config{form}", cli=cli))
                assert config_of("--config=printed.yaml", cli=cli) == wanted, (words, form)

    def test_of_an_unknown_form(self, error_of):
        message = "--print_config=skip_defaults: expected skip_default, skip_null, skip_unset, comments, separated by"
        assert message in error_of(fit, "--print_config=skip_null,skip_defaults")

    @pytest.mark.skipif(find_spec("ruamel") is not None, reason="ruamel.yaml is installed")
    def test_comments_name_the_package_that_they_need(self, error_of):
        message = "--print_config=comments: ruamel.yaml is required for dumping YAML with comments. Install it, or"
        assert message in error_of(fit, "--print_config=comments")


SGD = {"class_path": "SGD", "init_args": {"lr": 0.1}}
STRATEGIES = "lightning.pytorch.strategies"


class TestReplacedClass:
    @pytest.mark.parametrize(
        "words",
        [
            ["--config=model.yaml"],
            ["--config", "names.yaml"],
            ["--model", "optimizer.yaml"],
            ["--model.optimizer", "sgd.yaml"],
            ["--model={optimizer: {class_path: SGD, init_args: {lr: 0.1}}}"],
            ["--model.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.1}}"],
            ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"],
            ["--model.optimizer", "SGD", "--model.optimizer.init_args.lr", "0.1"],
            ["--config=model.yaml", "--config=cosine.yaml"],
        ],
        ids=" ".join,
    )
    def test_leaves_nothing_to_the_class_that_is_named_next(self, words):
        write("model.yaml", {"model": {"optimizer": SGD}})
        write("optimizer.yaml", {"optimizer": SGD})
        write("sgd.yaml", SGD)
        write("names.yaml", {"model": "optimizer.yaml"})
        write("cosine.yaml", {"model": {"lr_schedule": "Cosine"}})
        write("adam.yaml", {"model": {"optimizer": "Adam"}})
        assert lr_of(*words, "--model.optimizer", "torch.optim.SGD") == 0.1
        assert lr_of(*words, "--config=adam.yaml") == 0.001
        assert lr_of(*words, "--model={optimizer: Adam}", "--model.optimizer=SGD") == 0.001
        assert lr_of(*words, "--model.optimizer", "Adam", "--model.optimizer.lr=0.3") == 0.3
        assert lr_of(*words, "--model.optimizer=AdamW") == 0.005  # the default run's

    def test_of_a_checkpoint(self, train):
        run = train("--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--data=MNIST", "--data.batch_size=50")
        last = f"--ckpt_path={run}/checkpoints/last.ckpt"
        assert lr_of(last) == lr_of(last, "--model.optimizer=SGD") == 0.1
        assert lr_of(last, "--model.optimizer=Adam") == 0.001
        assert lr_of(last, "--model.optimizer=AdamW") == 0.005
        assert lr_of(last, "--model.optimizer.momentum=0.5") == 0.1  # an option of the checkpoint's class
        batch_sizes = [config_of(last, *data)["data"]["init_args"]["batch_size"] for data in ([], ["--data=Digits"])]
        assert batch_sizes == [50, 64]

    @pytest.mark.parametrize(
        ("option", "former", "latter", "arguments", "key", "value"),
        [
            ("logger", "CSVLogger", "TensorBoardLogger", {"save_dir": "x"}, "name", "lightning_logs"),
            ("profiler", "SimpleProfiler", "AdvancedProfiler", {}, "filename", None),
            ("strategy", f"{STRATEGIES}.DDPStrategy", f"{STRATEGIES}.FSDPStrategy", {}, "process_group_backend", None),
        ],
    )
    def test_of_the_trainer(self, option, former, latter, arguments, key, value):
        first = {"class_path": former, "init_args": arguments | {key: "mine"}}
        second = json.dumps({"class_path": latter, "init_args": arguments})
        write("former.yaml", {"trainer": {option: first}})
        write("group.yaml", {option: first})
        for word in ("--config=former.yaml", "--trainer=group.yaml", f"--trainer.{option}={json.dumps(first)}"):
            assert config_of(word)["trainer"][option]["init_args"][key] == "mine"
            spec = config_of(word, f"--trainer.{option}={second}")["trainer"][option]
            assert spec["class_path"].endswith(latter)
            assert spec["init_args"][key] == value

    def test_in_a_list(self):
        """jsonargparse pairs up lists of one length."""
        stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/acc", "mode": "max"}}
        write("former.yaml", {"trainer": {"callbacks": [stopping, "LearningRateMonitor"]}})
        latter = "--trainer.callbacks=[ModelCheckpoint, {class_path: LearningRateMonitor}]"
        first, second = config_of("--config=former.yaml", latter)["trainer"]["callbacks"]
        assert (first["init_args"]["monitor"], first["init_args"]["mode"]) == (None, "min")
        assert second["class_path"].endswith("LearningRateMonitor")
        appended = config_of("--config=former.yaml", "--trainer.callbacks+=ModelCheckpoint")["trainer"]["callbacks"]
        assert [spec["init_args"].get("mode") for spec in appended] == ["max", None, "min"]

    def test_options_typed_before_the_class_that_they_belong_to(self):
        write("model.yaml", {"model": {"optimizer": SGD}})
        assert lr_of("--model.optimizer.lr=0.04", "--model.optimizer=SGD") == 0.04
        assert lr_of("--config=model.yaml", "--model.optimizer.lr=0.04", "--model.optimizer", "Adam") == 0.04
        assert config_of("--model.net.width=4", "--model.net=MLP")["model"]["net"]["init_args"]["width"] == 4

    def test_named_with_class_path(self):
        words = ("--model.optimizer.class_path=SGD", "--model.optimizer.init_args.lr=0.2")
        assert config_of(*words) == config_of("--model.optimizer=SGD", "--model.optimizer.lr=0.2")
        write("sgd.yaml", {"model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}}})
        words = ("--config=sgd.yaml", "--model.optimizer.init_args.lr", "0.2", "--model.optimizer.class_path", "Adam")
        assert lr_of(*words) == lr_of("--model.optimizer=Adam", "--model.optimizer.lr=0.2") == 0.2

    def test_required_arguments_may_come_later(self):
        write("logger.yaml", {"trainer": {"logger": {"class_path": "CSVLogger"}}})
        words = ["--config=logger.yaml", "--data=Digits", "--trainer.logger.save_dir=here"]
        assert config_of(*words)["trainer"]["logger"]["init_args"]["save_dir"] == "here"


class TestHome:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path, tiny_root, monkeypatch):
        home = tmp_path / "home"
        home.mkdir()
        (home / "cnn").symlink_to(tiny_root)
        monkeypatch.setenv("HOME", str(home))
        yield home
        assert not list(tmp_path.rglob("~*"))

    def test_in_the_arguments_of_every_command(self, home):
        seen = []
        words = ["~/a.png", "--x=~/b", "-c=~/c", "--x", "~", "--x=~", "~no_such_user/d", "--x=a~/e", "--x=null"]
        command(seen.extend)(words)
        assert seen == [f"{home}/a.png", f"--x={home}/b", f"-c={home}/c", "--x", str(home), f"--x={home}", *words[6:]]

    def test_in_fit(self, home, train):
        run = train("--data=MNIST", "--data.root=~/cnn", "--trainer.default_root_dir=~/runs")
        assert (home / "runs/TwoLayerCNN-MNIST/version_0/checkpoints/best.ckpt").samefile(run / "checkpoints/best.ckpt")

    def test_in_a_file(self, home, train):
        callback = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "~/mine"}}
        trainer = {"default_root_dir": "~/runs", "callbacks": [callback]}
        data = {"class_path": "MNIST", "init_args": {"root": "~/cnn"}}
        write("home/all.yaml", {"trainer": trainer, "data": data, "model": {"lr_schedule": None}})
        run = train("--config=~/all.yaml", "--data.root=~/cnn")
        assert run.resolve().parents[1] == home / "runs"
        assert len(list((home / "mine").iterdir())) == 1
        write("last.yaml", {"ckpt_path": "~/runs/TwoLayerCNN-MNIST/version_0/checkpoints/last.ckpt"})
        again = train("--config=last.yaml", "--config=~/all.yaml", "--trainer.max_epochs=2")
        assert again.resolve() == run.resolve()

    def test_null_stays_null(self):
        Path("null.yaml").write_text("data: {class_path: MNIST, init_args: {root: ~}}")
        assert config_of("--config=null.yaml")["data"]["init_args"]["root"] is None

    def test_of_the_datasets(self, home, monkeypatch):
        assert MNIST("~/cnn").root == MNIST(Path("~/cnn")).root == home / "cnn"
        assert str(MNIST("~no_such_user/cnn").root) == "~no_such_user/cnn"
        monkeypatch.setenv("CNN_LIGHTNING_DATA", "~/cnn")
        data = MNIST()
        data.setup("test")
        assert data.size("test") == 100

    def test_of_reports_tables_and_pictures(self, home, train):
        train("--data=MNIST")
        evaluate(["--report=~/report"])
        assert (home / "report").is_dir()
        image = Image.new("L", (28, 28))
        image.paste(255, (12, 4, 16, 24))
        (home / "digits").mkdir()
        image.save(home / "digits/one.png")
        predict(["~/digits", "--csv=~/table.csv", "--picture", "~/all.png"])
        assert "one.png" in (home / "table.csv").read_text()
        assert (home / "all.png").is_file()

    def test_of_commands_without_a_trainer(self, home, error_of):
        assert f"write {home}/grid/grid.yaml" in error_of(compare, "~/grid", "--logs=~/logs")
        assert f"{home}/predictions.csv" in error_of(mistakes, "~/predictions.csv", "--into=~/page")
