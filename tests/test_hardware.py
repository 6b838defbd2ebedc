"""What the machine computes fast: the automatic precision, and threads next to other programs."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

from cnn_lightning import cores
from cnn_lightning.cli import hardware
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.neighbours import busy_processes
from cnn_lightning.cli.predict import predict
from cnn_lightning.cores import Sample, busy_seconds, free_cores, take_sample, taken_cores
from tests.conftest import REPOSITORY

WITH = "processor\t: 0\nflags\t\t: fpu sse2 avx512f amx_bf16 avx512_bf16\n"
WITHOUT = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512bw avx512_vnni\n"  # oneDNN says that it supports bfloat16


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Replace the list of the processor's instructions."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "CPUINFO", path)
    return path.write_text


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU, with or without bfloat16."""

    def call(kind: str, bfloat16: bool = False) -> None:
        monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: kind == "cuda"))
        monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: kind == "mps"))

        def is_supported(including_emulation=True):
            return bfloat16 or including_emulation  # imitated, every GPU has it

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)

    return call


class TestAutoPrecision:
    @pytest.mark.parametrize(
        ("content", "precision", "reason"),
        [
            (WITH, "bf16-mixed", "this processor has instructions for bfloat16 (amx_bf16, avx512_bf16)"),
            ("flags\t: avx512f avx512_bf16 sse2\n", "bf16-mixed", "bfloat16 (avx512_bf16)"),
            ("flags\t: avx2 amx_bf16\n", "bf16-mixed", "bfloat16 (amx_bf16)"),
            ("Features\t: fp asimd bf16 i8mm\n", "bf16-mixed", "bfloat16 (bf16)"),
            (WITHOUT, "32-true", "this processor has no instructions for bfloat16"),
            ("Features\t: fp asimd ebf16x\n", "32-true", "this processor has no instructions for bfloat16"),
            ("model name\t: amx_bf16\nflags\t: sse2\n", "32-true", "this processor has no instructions"),
            ("cpu\t: POWER9\n", "32-true", "this system does not list the instructions of its processor"),
        ],
    )
    def test_processor(self, cpuinfo, content, precision, reason):
        cpuinfo(content)
        chosen, why = hardware.choose_precision("cpu")
        assert chosen == precision
        assert reason in why

    def test_system_without_the_list(self, monkeypatch, tmp_path):
        monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "missing")
        assert hardware.choose_precision("cpu") == (
            "32-true",
            "this system does not list the instructions of its processor",
        )

    @pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda", CUDAAccelerator()])
    def test_gpu(self, cpuinfo, gpu, accelerator):
        cpuinfo(WITHOUT)
        gpu("cuda", bfloat16=True)
        assert hardware.choose_precision(accelerator) == ("bf16-mixed", "this GPU has instructions for bfloat16")
        cpuinfo(WITH)
        gpu("cuda", bfloat16=False)
        assert hardware.choose_precision(accelerator) == ("32-true", "this GPU has no instructions for bfloat16")

    @pytest.mark.parametrize("accelerator", ["cpu", CPUAccelerator()])
    def test_the_processor_decides_on_a_machine_with_a_gpu(self, cpuinfo, gpu, accelerator):
        gpu("cuda", bfloat16=True)
        cpuinfo(WITHOUT)
        assert hardware.choose_precision(accelerator)[0] == "32-true"
        gpu("cuda", bfloat16=False)
        cpuinfo(WITH)
        assert hardware.choose_precision(accelerator)[0] == "bf16-mixed"

    def test_other_devices(self, cpuinfo, gpu):
        cpuinfo(WITH)
        gpu("mps", bfloat16=True)
        assert hardware.choose_precision("auto")[0] == "32-true"
        assert hardware.choose_precision("mps")[0] == "32-true"
        assert hardware.choose_precision("tpu")[0] == "32-true"

    @pytest.mark.slow
    def test_trains_in_what_was_chosen_and_says_why(self, cpuinfo, train):
        def weights(*args):
            run = train(*args, "--trainer.limit_train_batches=2")
            return run, torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]

        def equal(one, other):
            return all(torch.equal(one[name], other[name]) for name in one)

        _, full = weights("--trainer.precision=32-true")
        _, default = weights()
        assert "Precision" not in train.output
        _, mixed = weights("--trainer.precision=bf16-mixed")
        assert "Precision" not in train.output
        assert equal(full, default)
        assert not equal(full, mixed)
        for content, expected, line in (
            (WITH, mixed, "bf16-mixed, because this processor has instructions for bfloat16 (amx_bf16, avx512_bf16)"),
            (WITHOUT, full, "32-true, because this processor has no instructions for bfloat16"),
        ):
            cpuinfo(content)
            run, chosen = weights("--trainer.precision=auto")
            assert train.output.splitlines()[1] == f"Precision {line}"
            assert equal(chosen, expected)
            config = run / "config.yaml"
            assert yaml.safe_load(config.read_text())["trainer"]["precision"] == "auto"
            _, again = weights(f"--config={config}")
            assert f"Precision {line}" in train.output
            assert equal(again, expected)

    def test_command_line_and_files_take_it(self, cpuinfo, train, tmp_path, capsys):
        cpuinfo(WITHOUT)
        Path("part.yaml").write_text("precision: auto\n")
        with pytest.raises(SystemExit) as stopped:
            train("--trainer=part.yaml", "--print_config")
        assert stopped.value.code == 0
        Path("whole.yaml").write_text(capsys.readouterr().out)
        assert yaml.safe_load(Path("whole.yaml").read_text())["trainer"]["precision"] == "auto"
        train("--config=whole.yaml")
        assert "Precision 32-true" in train.output

    @pytest.mark.slow
    def test_evaluate_and_predict_take_it(self, cpuinfo, train, capsys):
        best = train("--model.lr_schedule=null") / "checkpoints/best.ckpt"

        def output(command, precision, *args):
            table = Path("out.csv")  # to the last digit: calibrated probabilities may print the same
            more = [f"--csv={table}"] if command is predict else []
            command([*args, *more, f"--trainer.precision={precision}", "--trainer.accelerator=cpu"])
            if more:
                written = table.read_text()
                table.unlink()
            return capsys.readouterr().out + (written if more else "")

        digit = str(REPOSITORY / "docs/photos/digit_5.jpg")
        for command, args in ((evaluate, (str(best), "--report=false")), (predict, (digit, "--ckpt_path", str(best)))):
            cpuinfo(WITHOUT)
            assert output(command, "auto", *args) == output(command, "32-true", *args)
            cpuinfo(WITH)
            assert output(command, "auto", *args) == output(command, "bf16-mixed", *args)
            assert output(command, "auto", *args) != output(command, "32-true", *args)

    def test_recipes_leave_it_to_the_machine(self):
        for path in (REPOSITORY / "cnn_lightning/recipes").glob("*.yaml"):
            assert yaml.safe_load(path.read_text())["trainer"].get("precision", "auto") == "auto", path


# Two cores: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 10 20 5000 70 1 2 3 50 0
cpu1 200 0 30 6000 80 0 0 0 0 0
cpu12 900 900 900 900 900 900 900 900 0 0
intr 1 2 3
"""


class TestFreeCores:
    def test_reads_what_its_own_cores_do(self):
        assert busy_seconds(STAT, {0}, ticks=100) == pytest.approx(1.36)  # neither idle nor waiting for a disk
        assert busy_seconds(STAT, {0, 1}, ticks=100) == pytest.approx(3.66)
        assert busy_seconds(STAT, {0, 1, 77}, ticks=1) == pytest.approx(366)
        assert busy_seconds("", {0, 1}, ticks=100) == 0

    @pytest.mark.parametrize(
        ("busy", "own", "taken"),
        [
            (5.0, 5.0, 0.0),  # all of it is this process
            (10.0, 5.0, 1.0),
            (10.0, 3.3, 1.34),  # two neighbours on two cores
            (4.9, 5.0, 0.0),  # clocks that tick at different times
            (0.0, 0.0, 0.0),
        ],
    )
    def test_subtracts_this_process(self, busy, own, taken):
        first = Sample(time=100.0, busy=1000.0, own=7.0, pid=1)
        second = Sample(time=105.0, busy=1000.0 + busy, own=7.0 + own, pid=1)
        assert taken_cores(first, second) == pytest.approx(taken)

    @pytest.mark.parametrize(("taken", "free"), [(0.0, 4), (0.4, 4), (0.6, 3), (1.0, 3), (3.8, 0), (4.2, 0)])
    def test_rounds(self, monkeypatch, taken, free):
        now = time.monotonic()
        monkeypatch.setattr(cores, "_FIRST", Sample(now - 10, 0.0, 0.0, os.getpid()))
        monkeypatch.setattr(cores, "take_sample", lambda: Sample(now, 10 * taken, 0.0, os.getpid()))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
        assert free_cores() == (free, 4)

    @pytest.mark.parametrize("change", [{"time": -1000.0}, {"pid": -1}, {"time": -0.01}])
    def test_measures_anew_where_the_first_sample_says_nothing_about_now(self, monkeypatch, change):
        samples = [Sample(50.0, 90.0, 0.0, os.getpid()), Sample(50.5, 91.0, 0.0, os.getpid())]
        first = samples[0]._replace(**{name: getattr(samples[0], name) + value for name, value in change.items()})
        monkeypatch.setattr(cores, "_FIRST", first._replace(busy=0.0))
        monkeypatch.setattr(cores, "take_sample", lambda: samples.pop(0))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
        assert free_cores() == (1, 3)
        assert not samples

    def test_system_without_counters(self, monkeypatch, tmp_path):
        assert take_sample(tmp_path / "missing") is None
        monkeypatch.setattr(cores, "_FIRST", None)
        assert free_cores() == (os.cpu_count(), os.cpu_count())

    @pytest.mark.skipif(take_sample() is None, reason="the system has no /proc/stat")
    def test_finds_a_busy_process(self):
        """Whatever else runs here: two programs on one core keep it busy, too."""
        with busy_processes(1):
            time.sleep(0.3)  # Python starts
            first = take_sample()
            time.sleep(0.7)
            second = take_sample()
        assert 0.6 < taken_cores(first, second) < len(os.sched_getaffinity(0)) + 0.2


@pytest.fixture
def threads(monkeypatch):
    """Four threads, as if PyTorch had chosen them, and a number of free cores."""

    def call(free: int, cores: int = 4) -> None:
        monkeypatch.setattr(hardware, "free_cores", lambda: (free, cores))

    for name in hardware.CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(hardware, "ALL_THREADS", 4)
    monkeypatch.setattr(hardware, "_reasons", {})
    hardware.choose_threads.cache_clear()
    yield call
    torch.set_num_threads(before)
    hardware.choose_threads.cache_clear()


class TestThreads:
    @pytest.mark.parametrize(
        ("free", "described"),
        [
            (4, "4 threads"),
            (3, "3 threads, because other programs keep 1 of 4 cores busy"),
            (1, "1 thread, because other programs keep 3 of 4 cores busy"),
            (0, "1 thread, because other programs keep 4 of 4 cores busy"),
        ],
    )
    def test_as_many_as_cores_are_free(self, threads, free, described):
        threads(free)
        hardware.choose_threads()
        assert torch.get_num_threads() == max(1, free)
        assert hardware.describe_threads() == described

    def test_never_more_than_pytorch_chose(self, threads):
        """Of two hyperthreads on a core, PyTorch uses one."""
        threads(6, cores=8)
        hardware.choose_threads()
        assert hardware.describe_threads() == "4 threads"

    @pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
    def test_the_users_variable_counts(self, threads, monkeypatch, variable):
        threads(1)
        monkeypatch.setenv(variable, "4")
        hardware.choose_threads()
        assert hardware.describe_threads() == "4 threads"

    def test_the_users_call_counts(self, threads):
        threads(1)
        torch.set_num_threads(3)
        hardware.choose_threads()
        assert hardware.describe_threads() == "3 threads"

    def test_chosen_once(self, threads):
        threads(2)
        hardware.choose_threads()
        threads(1)
        hardware.choose_threads()
        assert torch.get_num_threads() == 2

    def test_first_line_of_fit_says_why(self, threads, train):
        threads(1, cores=2)
        train()
        assert train.output.splitlines()[0].endswith(
            "device cpu (1 thread, because other programs keep 1 of 2 cores busy)"
        )

    def test_not_chosen_for_several_processes(self, threads, monkeypatch):
        """Their number is Lightning's, and each would take the others for neighbours."""
        from cnn_lightning.cli.fit import FitCLI

        threads(1)
        two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.logger=false")
        FitCLI(["--data=Digits", *two])
        assert torch.get_num_threads() == 4

    def test_resumed_run_keeps_its_number(self, threads, train):
        threads(4)
        torch.set_num_threads(1)
        last = train("--model.lr_schedule=null") / "checkpoints/last.ckpt"
        torch.set_num_threads(2)
        more = ("--trainer.max_epochs=2", "--model.lr_schedule=null")
        train(f"--ckpt_path={last}", *more)
        assert "device cpu (1 thread, as when the run began)" in train.output
        assert torch.get_num_threads() == 2, "the caller's number, again"

    def test_number_of_a_larger_machine(self, threads, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        hardware.keep_threads(32)
        assert hardware.describe_threads() == (
            "4 threads, although the run began with 32: the last bits of its results will differ"
        )
        hardware.keep_threads(0)  # a checkpoint of an earlier version
        hardware.keep_threads(2)
        assert hardware.describe_threads() == "2 threads, as when the run began"

    @pytest.mark.skipif(take_sample() is None or (os.cpu_count() or 1) < 2, reason="needs two cores and /proc/stat")
    def test_with_busy_cores(self, threads, monkeypatch):
        monkeypatch.setattr(hardware, "free_cores", free_cores)
        number = len(os.sched_getaffinity(0))
        torch.set_num_threads(number)
        monkeypatch.setattr(hardware, "ALL_THREADS", number)
        with busy_processes(number):
            time.sleep(0.3)
            monkeypatch.setattr(cores, "_FIRST", take_sample())
            time.sleep(0.7)
            hardware.choose_threads()
        assert hardware.describe_threads().startswith("1 thread, because other programs keep ")


class TestWaiting:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, "10000"),
            ({"GOMP_SPINCOUNT": "77"}, "77"),
            ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
        ],
    )
    def test_spins_a_short_time_unless_the_user_says_otherwise(self, monkeypatch, given, expected):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        runpy.run_path(cores.__file__)
        assert os.environ.get("GOMP_SPINCOUNT") == expected
        monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back

    def test_is_set_before_pytorch_is_imported(self):
        """Libgomp reads the variable once."""
        code = """
import os, sys
sys.modules["torch"] = None
try:
    import cnn_lightning
except ImportError as error:
    print("torch" in str(error), os.environ["GOMP_SPINCOUNT"])
"""
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        variables = {name: value for name, value in os.environ.items() if name not in names}
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True
        )
        assert ended.stdout.split() == ["True", "10000"]
