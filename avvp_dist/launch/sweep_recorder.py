"""The record of a sweep, sweep.json, which is rewritten whenever a trial ends."""

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

LOGGER = logging.getLogger(__name__)
RECORD = "sweep.json"


class SweepRecorder(tune.Callback):
    """Writes sweep.json and one log line whenever a trial ends.

    Args:
        name: short name of the sweep.
        sweep: the sweep.
        overrides: the user's ``key=value`` overrides.
        output: folder or URL of the sweep.
        fingerprint: fingerprint of the data.
        planned: trials that are known in advance.
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
        self._points = {row["name"]: (row["setting"], row["seed"]) for row in before}
        begun = (
            {row["seed"] for row in before} if sweep.scheduler.name == "pbt" else ()
        )  # members no longer have their planned points
        self._points |= {todo.name: (todo.point, todo.seed) for todo in planned if todo.seed not in begun}
        self._runs: dict[str, str] = {}  # id of Tune's trial -> name of its run, which changes in a population
        self._ended: dict[str, dict[str, Any]] = {}
        for name in self._points:  # failed trials are tried again
            storage.remove(storage.join(output, "runs", name, FAILURE))
        self.write()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        self._run(trial)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """See `tune.Callback`; a member that copied weights is another run from then on."""
        before, name = self._runs[trial.trial_id], result["run"]
        if name != before:
            self._runs[trial.trial_id] = name
            point = chosen_point(trial.config, self._sweep)
            self._points = dict((name, point) if key == before else (key, value) for key, value in self._points.items())
            self.write()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`; also called if a scheduler ends the trial early."""
        point, seed = chosen_point(trial.config, self._sweep)
        epochs, reached = self._trial(point, seed).config.train.epochs, (trial.last_result or {}).get("epoch", 0)
        status = "finished" if reached > epochs else "stopped"
        self._end(self._runs[trial.trial_id], {"status": status}, f"{status} after epoch {min(reached, epochs)} of {epochs}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        name = self._run(trial)
        url = storage.join(self._output, "runs", name, FAILURE)
        reason = json.loads(storage.read_text(url)) if storage.exists(url) else _reason(trial.error_file)
        self._end(name, {"status": "failed", "reason": reason}, f"FAILED: {reason}")

    def _run(self, trial: Any) -> str:
        """Return the current run of Tune's trial, and register it if its process never started."""
        if trial.trial_id not in self._runs:
            point, seed = chosen_point(trial.config, self._sweep)
            name = trial.config["trial"]["run"] if "trial" in trial.config else self._trial(point, seed).name
            self._runs[trial.trial_id] = name
            self._points.setdefault(name, (point, seed))
        return self._runs[trial.trial_id]

    def _trial(self, point: SweepPoint, seed: int) -> Trial:
        return make_trial(self._sweep, point, seed, self._overrides, self._fingerprint)

    def _end(self, name: str, status: dict[str, Any], line: str) -> None:
        self._ended[name] = status
        content = self.write()
        done = sum(row["status"] != "pending" for row in content["trials"])
        LOGGER.info("trial %d of %d, %s: %s", done, len(content["trials"]), name, line)

    def write(self) -> dict[str, Any]:
        """Write sweep.json and return its content."""
        content = self._facts | {"trials": [self._row(name, *value) for name, value in self._points.items()]}
        storage.write_text(storage.join(self._output, RECORD), json.dumps(content, indent=1))
        return content

    def _row(self, name: str, point: SweepPoint, seed: int) -> dict[str, Any]:
        folder = storage.join(self._output, "runs", name)
        row: dict[str, Any] = {"name": name, "setting": point, "label": label(point), "seed": seed, "status": "pending"}
        result, scores = finished(folder), storage.join(folder, SCORES)
        if result:
            return row | {"status": "finished", "score": final_score(result, self._sweep.metric)}
        if storage.exists(scores):
            known = json.loads(storage.read_text(scores))
            row |= {"score": max(known.values()) if self._sweep.mode == "max" else min(known.values()), "epochs": len(known)}
        return row | self._ended.get(name, {})


def _reason(error_file: str | None) -> str:
    """Return the most informative line of Ray's error file: the exception that Python raised, or else the last line."""
    lines = Path(error_file).read_text().strip().splitlines() if error_file else []
    raised = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)]
    return redact((raised or lines or ["the trial's process died"])[-1])


def recorded_trials(output: str) -> list[Mapping[str, Any]]:
    """Return the trials that an earlier call recorded; empty if there was none."""
    url = storage.join(output, RECORD)
    return json.loads(storage.read_text(url))["trials"] if storage.exists(url) else []
