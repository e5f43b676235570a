"""Reads a process's rank and the number of ranks from the environment variables of torchrun or srun.

These are pure functions of the environment. The module does not import torch, so that the command line starts quickly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from avvp_dist.errors import ConfigError

_ADVICE = (
    "start the ranks with torchrun (torchrun --nproc-per-node N -m avvp_dist train ...) or srun, which set all of them, "
    "or unset WORLD_SIZE and RANK to train in a single process"
)
_REQUIRED = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # variables that every rank needs besides WORLD_SIZE
_SPECIAL_STEPS = 0xFFFFFFF0  # larger step ids denote batch scripts, interactive shells and the like
_PORTS = range(20_000, 30_000)  # for jobs started by srun: below the ports that Linux uses for outgoing connections


@dataclass(frozen=True)
class World:
    """Position of a process among the ranks of its run; the defaults are those of a single process.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
        local_rank: rank among those on this machine; selects the GPU.
        local_size: number of ranks on this machine; None if unknown.
        master: host name or address of rank 0; empty if ``size`` is 1.
        port: on which rank 0 listens.
        launcher: that set the environment.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int | None = 1
    master: str = ""
    port: int = 0
    launcher: Literal["none", "torchrun", "srun"] = "none"

    @property
    def one_machine(self) -> bool:
        """Return whether all ranks are known to run on this machine."""
        if self.local_size is None:
            return self.master in ("localhost", "::1") or self.master.startswith("127.")
        return self.local_size == self.size


def read(environment: Mapping[str, str]) -> World:
    """Return the world described by WORLD_SIZE and RANK, or else by the variables of a Slurm job step.

    A job script often sets WORLD_SIZE, MASTER_ADDR and MASTER_PORT and leaves the rank to srun; then the tasks of the step
    are the ranks. A shell started by Slurm (the script of sbatch, the shell of salloc) is not a step with several tasks and
    trains in a single process.

    Raises:
        ConfigError: variables contradict each other, are not numbers, or others that they need are not set.
    """
    variables = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "RANK" in variables:
        return _of_torchrun(variables)
    step = _of_srun(variables)
    if "WORLD_SIZE" not in variables:
        return step
    if step.size > 1 and variables["WORLD_SIZE"] == str(step.size):
        return step
    return _of_torchrun(variables)


def rank(environment: Mapping[str, str]) -> int:
    """Return this process's rank; 0 if ``environment`` is invalid."""
    try:
        return read(environment).rank
    except ConfigError:
        return 0


def _of_torchrun(variables: Mapping[str, str]) -> World:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    numbers = _numbers(variables, names, "the environment of a distributed run")
    size, number = numbers.get("WORLD_SIZE"), numbers.get("RANK", 0)
    if size is None:
        if number == 0:
            return World()
        raise ConfigError(f"RANK={number} is set in the environment, but WORLD_SIZE is not: {_ADVICE}")
    problems = ["WORLD_SIZE=0: expected 1 or more"] if size == 0 else []
    if size > 1 or number > 0:
        missing = [name for name in _REQUIRED if name not in variables]
        if missing:
            present = ", ".join(f"{name}={variables[name]}" for name in ("WORLD_SIZE", *_REQUIRED, "LOCAL_RANK") if name in variables)
            raise ConfigError(f"{present} set in the environment, but {', '.join(missing)} not: {_ADVICE}")
    if size and number >= size:
        problems.append(f"RANK={number}: expected less than WORLD_SIZE={size}")
    local, local_size = numbers.get("LOCAL_RANK", 0), numbers.get("LOCAL_WORLD_SIZE")
    if local_size is not None and not local < local_size <= max(size, 1):
        problems.append(f"LOCAL_RANK={local} and LOCAL_WORLD_SIZE={local_size} do not fit WORLD_SIZE={size}")
    if not 0 <= numbers.get("MASTER_PORT", 0) < 1 << 16:
        problems.append(f"MASTER_PORT={numbers['MASTER_PORT']}: expected a port, less than 65536")
    if problems:
        raise ConfigError([*problems, _ADVICE], "the environment of a distributed run")
    if size == 1:
        return World(local_rank=local, launcher="torchrun" if "RANK" in variables else "none")
    master, port = variables["MASTER_ADDR"], numbers["MASTER_PORT"]
    return World(number, size, local, local_size, master, port, "torchrun")


def _of_srun(variables: Mapping[str, str]) -> World:
    names = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if not any(name in variables for name in ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID")):
        return World()
    what = "the environment of a Slurm job step"
    numbers = _numbers(variables, (*names, "SLURM_STEP_NUM_NODES", "SLURM_NNODES"), what)
    step = numbers.get("SLURM_STEP_ID", numbers.get("SLURM_STEPID"))
    number = numbers.get("SLURM_PROCID", 0)
    if step is None or step >= _SPECIAL_STEPS:  # a job's script or shell, with the SLURM_NTASKS of the job
        if number == 0:
            return World()
        raise ConfigError(
            f"SLURM_PROCID={number} is set in the environment, but SLURM_STEP_ID is not: start the ranks with srun"
        )
    size = numbers.get("SLURM_STEP_NUM_TASKS", numbers.get("SLURM_NTASKS", 1))
    if size <= 1:
        return World()
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if name not in numbers]
    master = variables.get("MASTER_ADDR") or _first_host(variables)
    missing += [] if master else ["SLURM_STEP_NODELIST"]
    port = _numbers(variables, ("MASTER_PORT",), what).get("MASTER_PORT") or _port(variables, step)
    missing += [] if port else ["SLURM_JOB_ID"]
    if missing:
        raise ConfigError(
            f"{what}: a step of {size} tasks, but {', '.join(missing)} not set; start the ranks with srun, or also set MASTER_ADDR "
            "and MASTER_PORT"
        )
    if number >= size:
        raise ConfigError(f"{what}: SLURM_PROCID={number}, expected less than the {size} tasks of the step")
    nodes = numbers.get("SLURM_STEP_NUM_NODES", numbers.get("SLURM_NNODES"))
    return World(number, size, numbers["SLURM_LOCALID"], size if nodes == 1 else _tasks_on_this_node(variables), master, port, "srun")


def _numbers(variables: Mapping[str, str], names: tuple[str, ...], what: str) -> dict[str, int]:
    """Return the values of those variables among ``names`` that are set.

    Raises:
        ConfigError: some are not whole numbers; lists all of them.
    """
    wrong = [f"{name}={variables[name]!r}: expected a whole number" for name in names if not variables.get(name, "0").isdecimal()]
    if wrong:
        raise ConfigError([*wrong, _ADVICE] if "SLURM" not in names[0] else wrong, what)
    return {name: int(variables[name]) for name in names if name in variables}


def _port(variables: Mapping[str, str], step: int) -> int:
    """Return rank 0's port: the same for all tasks of a job step, another one for the next step; 0 without a job id."""
    job = variables.get("SLURM_JOB_ID") or variables.get("SLURM_JOBID") or ""
    return _PORTS[(int(job) * 101 + step) % len(_PORTS)] if job.isdecimal() else 0


def _first_host(variables: Mapping[str, str]) -> str:
    """Return the host of the step's task 0: the first of its nodes."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if variables.get(name):
            return first_host(variables[name])
    return ""


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: ``n003`` for ``n[003-007,9],m1``, ``rack1n4`` for ``rack[1-2]n[4,6]``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\]\-,]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _tasks_on_this_node(variables: Mapping[str, str]) -> int | None:
    """Return the number of tasks on this node: entry SLURM_NODEID of SLURM_STEP_TASKS_PER_NODE, such as ``2(x3),1``."""
    counts: list[int] = []
    for part in variables.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = variables.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None
