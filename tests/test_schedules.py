import math

import pytest
import torch

from cnn_lightning.errors import UsageError
from cnn_lightning.optim.schedules import Cosine, OneCycle


def rates(schedule, total_steps, **settings):
    """The learning rate of every step of a run whose highest one is 0.5."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = schedule(optimizer, total_steps, **settings)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(seen) < total_steps:
            schedule.step()
    return seen


def test_one_cycle_rises_to_the_rate_of_the_optimizer_and_falls_to_almost_zero():
    seen = rates(OneCycle, 101, pct_start=0.2, div_factor=10, final_div_factor=100)
    peak = seen.index(max(seen))
    assert seen[0] == pytest.approx(0.05)
    assert max(seen) == pytest.approx(0.5, rel=1e-3)
    assert peak == pytest.approx(20, abs=1)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    assert seen[-1] == pytest.approx(0.0005)


@pytest.mark.parametrize(("total_steps", "share"), [(1, 1.0), (4, 0.25), (5, 0.2), (10, 0.1)])
def test_one_cycle_without_steps_to_rise_falls_from_the_rate_of_the_optimizer(total_steps, share):
    seen = rates(OneCycle, total_steps, pct_start=share)
    assert seen == rates(OneCycle, total_steps, pct_start=0.0) == sorted(seen, reverse=True)
    assert total_steps == 1 or seen[0] > 0.8 * 0.5
    assert seen[-1] < 1e-4


def test_cosine_falls_along_half_a_cosine():
    seen = rates(Cosine, 100)
    assert seen == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 100)) for step in range(100)], abs=1e-6)


@pytest.mark.parametrize("schedule", [OneCycle, Cosine])
def test_state_of_another_length_raises(schedule):
    def make(steps):
        return schedule(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5), steps)

    make(100).load_state_dict(make(100).state_dict())
    with pytest.raises(UsageError, match=r"spans 100 steps, expected the 200 of this run: resume with"):
        make(200).load_state_dict(make(100).state_dict())
