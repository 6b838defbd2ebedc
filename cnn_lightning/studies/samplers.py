"""Samplers of Optuna whose random numbers follow from the study's seed and the number of the trial."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

NAMES = ("tpe", "random")


def seeded(name: str, seed: int) -> BaseSampler:
    """Return a sampler for trials that are drawn in processes of their own.

    Args:
        name: "tpe" (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization) or "random".
        seed: Of the study, at least 0.

    Raises:
        ValueError: There is no such sampler, or the seed is negative.
    """
    if name not in NAMES or seed < 0:
        raise ValueError(f"sampler {name}, seed {seed}: expected one of {', '.join(NAMES)}, and a seed of at least 0")
    return _Seeded(name, seed)


class _Seeded(BaseSampler):
    """Makes its sampler anew for each trial: with one seed in all processes, they would draw equal values."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._inner = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        (seed,) = np.random.SeedSequence((self._seed, number)).generate_state(1).tolist()
        if self._name == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Optuna calls this first of all, whenever it makes a trial object."""
        self._inner = self._make(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)
