"""What a GPU is for: all data is there, and nothing waits for it. Without one, what a CPU can show of that."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.profiler import profile

from cnn_lightning.cli.fit import fit, train
from cnn_lightning.cli.fit_cli import FitCLI
from tests.faults import assert_same_result

GPU = pytest.param(
    "gpu",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
SETTINGS = ("--data=Digits", "--model.net=LeNetCNN", "--trainer.devices=1", "--dashboard=false")
# A copy from or to the GPU, or a wait for it; on a CPU, a number that is read from a tensor would be one.
WAITS = {
    "gpu": ("Memcpy HtoD", "Memcpy DtoH", "cudaStreamSynchronize", "cudaDeviceSynchronize"),
    "cpu": ("aten::_local_scalar_dense",),
}


class ProfileSteps(Callback):
    """Profiles steps 3 to 12: from the start of one batch to the start of another, with all hooks between them."""

    def __init__(self):
        self.profile = profile()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.profile.__enter__()
        elif batch_idx == 12:
            self.profile.__exit__(None, None, None)

    def count(self, names):
        events = self.profile.key_averages()
        return {event.key: event.count for event in events if event.key.startswith(names)}


AUGMENTED = ["--data.shift=2", "--data.rotate=10", "--data.erase=0.5"]


@pytest.mark.parametrize("accelerator", ["cpu", GPU])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "ConvMuon"])
@pytest.mark.parametrize("options", [[], AUGMENTED], ids=["plain", "augmented"])
def test_no_step_copies_anything_or_waits(accelerator, optimizer, options):
    """log_every_n_steps is greater than the steps: a point that is drawn needs numbers, and waits for them."""
    if accelerator == "cpu" and optimizer != "SGD":
        pytest.skip("on a CPU, Adam's step counters are numbers in its memory")
    options = [*options, f"--model.optimizer={optimizer}", f"--trainer.accelerator={accelerator}"]
    cli = FitCLI([*SETTINGS, *options, "--data.batch_size=64", "--trainer.max_epochs=1"])
    steps = ProfileSteps()
    cli.trainer.callbacks.insert(0, steps)
    train(cli)
    assert steps.count(("aten::convolution",))  # it has seen the steps
    assert steps.count(WAITS[accelerator]) == {}


def test_a_point_that_is_drawn_waits():
    """So the test above can fail."""
    options = ["--data.batch_size=64", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=2"]
    cli = FitCLI([*SETTINGS, "--trainer.accelerator=cpu", *options])
    steps = ProfileSteps()
    cli.trainer.callbacks.insert(0, steps)
    train(cli)
    assert steps.count(WAITS["cpu"])


@pytest.mark.parametrize("accelerator", ["cpu", GPU])
def test_network_and_dataset_are_on_the_device(accelerator):
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            loader = trainer.train_dataloader
            seen.update(data={part.device.type for part in (loader.images, loader.labels, *batch)})
            seen.update(net={weight.device.type for weight in pl_module.parameters()})

    cli = FitCLI([*SETTINGS, f"--trainer.accelerator={accelerator}", "--trainer.max_epochs=1"])
    cli.trainer.callbacks.append(Look())
    train(cli)
    device = {"cpu": "cpu", "gpu": "cuda"}[accelerator]
    assert seen == {"data": {device}, "net": {device}}


@pytest.mark.parametrize("accelerator", ["cpu", GPU])
@pytest.mark.parametrize("precision", ["32-true", "auto"])
def test_resumed_run_is_equal_to_the_bit(accelerator, precision, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic cuBLAS
    options = [*SETTINGS, f"--trainer.accelerator={accelerator}", f"--trainer.precision={precision}"]
    options += ["--trainer.deterministic=true", "--model.lr_schedule=null", "--data.shift=2"]
    options += ["--trainer.limit_test_batches=0"]
    whole = fit([*options, "--trainer.max_epochs=3", "--trainer.default_root_dir=whole"])
    fit([*options, "--trainer.max_epochs=2"])
    resumed = fit([*options, "--trainer.max_epochs=3", "--ckpt_path=last"])
    assert_same_result(resumed.folder, whole.folder)


@pytest.mark.parametrize("accelerator", [GPU])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_network_learns_the_same(accelerator, mode):
    options = [*SETTINGS, f"--trainer.accelerator={accelerator}", "--trainer.max_epochs=4"]
    eager = fit([*options, "--trainer.default_root_dir=eager"])
    compiled = fit([*options, f"--model.compile_mode={mode}"])
    assert compiled.metrics["test/acc"] == pytest.approx(eager.metrics["test/acc"], abs=0.03)


@pytest.mark.parametrize("accelerator", [GPU])
def test_automatic_precision_is_the_devices(accelerator):
    run = fit([*SETTINGS, f"--trainer.accelerator={accelerator}", "--trainer.precision=auto", "--trainer.max_epochs=1"])
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert run.trainer.precision == ("bf16-mixed" if has_bfloat16 else "32-true")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_share_the_steps(in_new_process):
    code = "from cnn_lightning.cli.fit import fit\nfit()"
    options = [*SETTINGS[:2], "--trainer.accelerator=gpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    ended, output, errors = in_new_process(code, "fit.py", *options, "--trainer.max_epochs=2")
    assert ended == 0, errors
    assert "accuracy" in output
