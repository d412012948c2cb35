"""What an interrupted search by Optuna already knows: the finished jobs of its folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from reloc_core.evaluation.sweeps import read_record, read_sweep

STUDY = "reloc"


def known_trials(folder: str, direction: str, objective: str) -> Any:
    """A storage for Optuna with the trials that have a result (`hydra.sweeper.storage`).

    Args:
        folder: of the sweep.
        direction: "minimize" or "maximize".
        objective: the number of the results that is optimised.
    """
    import optuna
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY, direction=direction)
    path = Path(folder)
    record = read_record(path)
    if record is None:
        return storage
    space = {}
    for override in OverridesParser.create().parse_overrides([*record.params, *record.task]):
        found = create_optuna_distribution_from_override(override)
        if isinstance(found, BaseDistribution):
            space[override.get_key_element()] = found
    for job in read_sweep(path).jobs:
        value = job.value(objective)
        if not job.finished or value is None or not math.isfinite(value):
            continue
        params: dict[str, Any] = {}
        for key, distribution in space.items():
            given = job.overrides.get(key.lstrip("+"))
            if isinstance(distribution, CategoricalDistribution):
                same = [choice for choice in distribution.choices if str(choice) == given]
                params.update([(key, same[0])] if same else [])
            elif given is not None:
                number = float(given)
                params[key] = int(number) if "Int" in type(distribution).__name__ else number
        if set(params) == set(space):
            trial = optuna.trial.create_trial(params=params, distributions=space, value=value)
            study.add_trial(trial)
    return storage
