"""What the seeds of a benchmark draw: a split, a world, weights; and what tuning may see of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_escm2.config import Config
from recbole_escm2.data.open_store import is_simulated, open_store
from recbole_escm2.data.splits import check_tuning_part, has_validation, seed_draws
from recbole_escm2.errors import UsageError
from recbole_escm2.experiment.request import checked
from recbole_escm2.experiment.study import Row
from recbole_escm2.keys import BETWEEN, COUNT, NATURAL

# Worlds of a benchmark are none that a single run or a search, with its small seeds, has seen.
_FIRST_WORLD = 10_000
_SEEDS = 2**31


def world_of(seed: int) -> int:
    """The ``simulation_seed`` of a benchmark's seed; another one for each."""
    return (seed + _FIRST_WORLD) % _SEEDS


def other_training_seed(seed: int) -> int:
    """The ``training_seed`` of the A/A row, where the baseline has this one; never the same."""
    return (seed + _SEEDS // 2) % _SEEDS


@dataclass(frozen=True)
class Seeds:
    """The seeds of a benchmark.

    Attributes:
        of_table: those that each row runs with.
        worlds: whether each of them simulates a world of its own.
        of_tuning: that of the trials, None where nothing is tuned.
        tuning_share: share of D that trials have, where seeds split one D at random.
    """

    of_table: Sequence[int]
    worlds: bool
    of_tuning: int | None = None
    tuning_share: float = 0.5

    def draws(self, config: Config) -> str:
        """``world``, ``split``, ``fold`` or ``weights``, see :func:`seed_draws`."""
        return "world" if self.worlds else seed_draws(config, _presplit(config))

    def settings(self, row: Row, config: Config, seed: int, trial: bool = False) -> dict[str, Any]:
        """The config keys that make a run that of a seed.

        Args:
            row: of the table, or one that is tried.
            config: of the row.
            seed: of the run.
            trial: whether the run is one of tuning.

        Raises:
            UsageError: no impressions can be set aside for tuning.
        """
        own: dict[str, Any] = {"seed": seed}
        if self.worlds:
            own["simulation_seed"] = world_of(seed)
        if row.aa:
            set_for_all = config["training_seed"]
            own["training_seed"] = other_training_seed(seed if set_for_all is None else set_for_all)
        self._check_folds(row, config)
        if self.of_tuning is not None:
            check_tunable(config, f"{row.label}: trials", self.worlds)
        if self.of_tuning is not None and self.draws(config) in ("split", "fold"):
            try:
                check_tuning_part(config, _presplit(config), self.tuning_share)
            except UsageError as error:
                raise UsageError(f"{row.label}: trials: {error}") from error
            role = "trial" if trial else "comparison"
            part = {"share": self.tuning_share, "seed": self.of_tuning, "role": role}
            own["tuning_part"] = part
        return own

    def _check_folds(self, row: Row, config: Config) -> None:
        """Each seed tests on a fold of its own."""
        folds, seeds = config["folds"], self.of_table
        if folds and len({seed % folds for seed in seeds}) < len(seeds):
            raise UsageError(
                f"{row.label}: folds {folds}: a seed tests on fold seed mod {folds}, and two of "
                f"the seeds {', '.join(map(str, seeds))} on the same one: give no more seeds than "
                "folds, one after the other (--seeds)"
            )

    def about_worlds(self) -> str | None:
        """What to say of them before anything runs."""
        if not self.worlds:
            return None
        named = ", ".join(str(world_of(seed)) for seed in self.of_table)
        return (
            f"each seed has a simulated world of its own (simulation_seed {named}), which its "
            "first run makes; --simulation_seed=2022 has all seeds in one"
        )

    def tuned_on(self, draws: str) -> str:
        """Why no seed tests on what its settings were chosen on, as the rest of a sentence."""
        if draws == "world":
            return f"in a world that is no seed's (simulation_seed {world_of(self.of_tuning or 0)})"
        if draws == "split":
            return (
                f"on a random {self.tuning_share:.0%} of the impressions, of which no seed of this "
                "table tests on any"
            )
        return "without the test impressions, which are the same for all seeds"


def _presplit(config: Config) -> bool:
    return _sizes(config) is not None


def _sizes(config: Config) -> list[int] | None:
    """Of the parts, where the source has parts of its own."""
    sizes: list[int] | None = open_store(config).schema["sizes"]
    return sizes


def check_tunable(config: Config, what: str, worlds: bool = False) -> None:
    """Make sure that settings can be chosen on validation.

    Args:
        config: of a trial.
        what: is to be done, for the message.
        worlds: whether each seed makes a world of its own, which isn't made for this.

    Raises:
        UsageError: the split has no validation.
    """
    if not has_validation(config, None if worlds else _sizes(config)):
        raise UsageError(f"{what}: settings are chosen on validation, and the split has none")


def read_seeds(about: Mapping[str, Any], configs: Iterable[Config], trials: int) -> Seeds:
    """The seeds that somebody asks for.

    Each seed has a world of its own where data is simulated, and nobody has chosen a world.

    Args:
        about: the keys ``seeds``, ``tuning_seed`` and ``tuning_share``.
        configs: of the rows.
        trials: settings that are tried a row.

    Raises:
        UsageError: one of the keys isn't as it must be.
    """
    configs = list(configs)
    of_table = _seed_list(about.get("seeds", 1), configs[0]["seed"])
    share = checked("tuning_share", about.get("tuning_share", Seeds.tuning_share), BETWEEN)
    worlds = all(
        is_simulated(config) and "simulation_seed" not in config.external_config_dict
        for config in configs
    )
    of_tuning = _tuning_seed(about.get("tuning_seed"), of_table, worlds)
    return Seeds(of_table, worlds, of_tuning if trials > 1 else None, share)


def _seed_list(given: Any, first: int) -> list[int]:
    if not isinstance(given, list | tuple):
        return list(range(first, first + checked("seeds", given, COUNT)))
    seeds = [checked("seeds", seed, NATURAL) for seed in given]
    if not seeds or len(set(seeds)) < len(seeds) or max(seeds) >= _SEEDS:
        raise UsageError(
            f"seeds must be a number, or a list of different ones below 2^31, got {seeds!r}"
        )
    return seeds


def _tuning_seed(given: Any, seeds: Sequence[int], worlds: bool) -> int:
    """What is asked for, else the first from 1 on that is no row's."""
    if given is None:
        return next(seed for seed in range(1, len(seeds) + 2) if seed not in seeds)
    if worlds and given in seeds:
        raise UsageError(
            f"tuning_seed {given} is one of the seeds: settings would be tuned in the world that "
            "it tests in. Give another --tuning_seed"
        )
    return checked("tuning_seed", given, NATURAL)


def aa_row(rows: Sequence[Row], baseline: str) -> Row:
    """The baseline's row again, to be run with other training seeds on the same splits.

    Whatever tells the two apart is chance, as a table's verdicts should say.

    Raises:
        UsageError: a row has its label.
    """
    (of_baseline,) = (row for row in rows if row.label == baseline)
    label = f"{baseline} again (A/A)"
    if any(row.label == label for row in rows):
        raise UsageError(
            f"a row is called '{label}', as the A/A row is: rename it, or --aa_row=False"
        )
    return replace(of_baseline, label=label, aa=True)
