"""A sweep's own record: sweep.json, written anew whenever a trial ends."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from avvp_dist import storage
from avvp_dist.experiments.result import finished
from avvp_dist.experiments.sweep import SweepConfig, SweepPoint, Trial, label, make_trial
from avvp_dist.launch.trial import FAILURE, SCORES, chosen_point, final_score
from avvp_dist.text.credentials import redact

_log = logging.getLogger(__name__)
RECORD = "sweep.json"


class SweepRecorder(tune.Callback):
    """Writes sweep.json, and one log line whenever a trial ends.

    Args:
        name: short name of the sweep.
        sweep: the sweep.
        overrides: the user's ``key=value``.
        output: folder or URL of the sweep.
        fingerprint: of the data.
        planned: trials known before the first one runs.
    """

    def __init__(
        self,
        name: str,
        sweep: SweepConfig,
        overrides: Sequence[str],
        output: str,
        fingerprint: str,
        planned: Sequence[Trial],
    ) -> None:
        self._sweep = sweep
        self._overrides = tuple(overrides)
        self._output = output
        self._fingerprint = fingerprint
        self._facts = {
            "name": name,
            "title": sweep.title,
            "keys": list(sweep.space),
            "metric": f"val {sweep.metric}",
            "mode": sweep.mode,
            "spec": sweep.model_dump(mode="json"),
            "overrides": list(overrides),
            "data_fingerprint": fingerprint,
        }
        before = recorded_trials(output)
        self._chosen = {row["name"]: (row["setting"], row["seed"]) for row in before}
        begun = {row["seed"] for row in before} if sweep.scheduler.name == "pbt" else ()  # members are no longer as planned
        self._chosen |= {todo.name: (todo.point, todo.seed) for todo in planned if todo.seed not in begun}
        self._runs: dict[str, str] = {}  # id of Tune's trial -> the run it is, which in a population changes
        self._ended: dict[str, dict[str, Any]] = {}
        for name in self._chosen:  # what failed before gets another chance
            storage.remove(storage.join(output, "runs", name, FAILURE))
        self.write()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        self._run(trial)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """See `tune.Callback`; a member that took over weights is another run from then on."""
        before, name = self._runs[trial.trial_id], result["run"]
        if name != before:
            self._runs[trial.trial_id] = name
            here = chosen_point(trial.config, self._sweep)
            self._chosen = dict((name, here) if known == before else (known, it) for known, it in self._chosen.items())
            self.write()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`; a scheduler's early end comes here too."""
        setting, seed = chosen_point(trial.config, self._sweep)
        epochs, reached = self._trial(setting, seed).config.train.epochs, (trial.last_result or {}).get("epoch", 0)
        status = "finished" if reached > epochs else "stopped"
        self._end(self._runs[trial.trial_id], {"status": status}, f"{status} after epoch {min(reached, epochs)} of {epochs}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        name = self._run(trial)
        url = storage.join(self._output, "runs", name, FAILURE)
        reason = json.loads(storage.read_text(url)) if storage.exists(url) else _reason(trial.error_file)
        self._end(name, {"status": "failed", "reason": reason}, f"FAILED: {reason}")

    def _run(self, trial: Any) -> str:
        """The run that Tune's trial is at the moment; one whose process never came up is known from here on."""
        if trial.trial_id not in self._runs:
            setting, seed = chosen_point(trial.config, self._sweep)
            name = trial.config["trial"]["run"] if "trial" in trial.config else self._trial(setting, seed).name
            self._runs[trial.trial_id] = name
            self._chosen.setdefault(name, (setting, seed))
        return self._runs[trial.trial_id]

    def _trial(self, setting: SweepPoint, seed: int) -> Trial:
        return make_trial(self._sweep, setting, seed, self._overrides, self._fingerprint)

    def _end(self, name: str, how: dict[str, Any], line: str) -> None:
        self._ended[name] = how
        content = self.write()
        done = sum(row["status"] != "pending" for row in content["trials"])
        _log.info("trial %d of %d, %s: %s", done, len(content["trials"]), name, line)

    def write(self) -> dict[str, Any]:
        """Writes sweep.json and returns its content."""
        content = self._facts | {"trials": [self._row(name, *chosen) for name, chosen in self._chosen.items()]}
        storage.write_text(storage.join(self._output, RECORD), json.dumps(content, indent=1))
        return content

    def _row(self, name: str, setting: SweepPoint, seed: int) -> dict[str, Any]:
        folder = storage.join(self._output, "runs", name)
        row: dict[str, Any] = {"name": name, "setting": setting, "label": label(setting), "seed": seed, "status": "pending"}
        result, scores = finished(folder), storage.join(folder, SCORES)
        if result:
            protocol = self._trial(setting, seed).config.evaluate.protocol
            score = final_score(result, protocol, self._sweep.metric)
            return row | {"status": "finished", "score": score}
        if storage.exists(scores):
            known = json.loads(storage.read_text(scores))
            row |= {"score": max(known.values()) if self._sweep.mode == "max" else min(known.values()), "epochs": len(known)}
        return row | self._ended.get(name, {})


def _reason(error_file: str | None) -> str:
    """The line of Ray's report that says most: what Python raised, or else its last one."""
    lines = Path(error_file).read_text().strip().splitlines() if error_file else []
    raised = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
    return redact((raised or lines or ["its process died"])[-1])


def recorded_trials(output: str) -> list[Mapping[str, Any]]:
    """The trials that an earlier call wrote down; none where there was none."""
    url = storage.join(output, RECORD)
    return json.loads(storage.read_text(url))["trials"] if storage.exists(url) else []
