"""Which rank of how many a process is, from the environment that its launcher set: torchrun's variables, or those of srun.

Pure: a mapping in, a `World` or one error out. Nothing here imports torch, so the command line can ask before it loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from avvp_dist.errors import ConfigError

_ADVICE = (
    "start the ranks with torchrun (torchrun --nproc-per-node N -m avvp_dist train ...) or srun, which set all of them, "
    "or unset WORLD_SIZE and RANK to train in this process alone"
)
_MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what every rank needs besides WORLD_SIZE
_SPECIAL_STEPS = 0xFFFFFFF0  # from here on step ids stand for batch scripts, interactive shells and the like
_PORTS = range(20_000, 30_000)  # of jobs started by srun: below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class World:
    """A process among the ranks of its run; the defaults are those of a process that trains alone.

    Attributes:
        rank: from 0 on.
        size: number of ranks.
        local_rank: among the ranks of this machine; picks the GPU.
        local_size: ranks of this machine; None where the launcher does not say.
        master: host name or address of rank 0; empty where ``size`` is 1.
        port: where rank 0 listens.
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
        """Whether all ranks are known to run on this machine."""
        if self.local_size is None:
            return self.master in ("localhost", "::1") or self.master.startswith("127.")
        return self.local_size == self.size


def read(environment: Mapping[str, str]) -> World:
    """The world that ``environment`` describes: that of WORLD_SIZE and RANK, else of a job step of Slurm.

    A job's script often sets WORLD_SIZE, MASTER_ADDR and MASTER_PORT and leaves the rank to srun; then the step's tasks are
    the ranks. A shell that Slurm started (sbatch's script, salloc's shell) is no step with several tasks and trains alone.

    Raises:
        ConfigError: variables that contradict each other, are no numbers, or are set without the others they need.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    if "RANK" in given:
        return _of_torchrun(given)
    step = _of_srun(given)
    if "WORLD_SIZE" not in given:
        return step
    if step.size > 1 and given["WORLD_SIZE"] == str(step.size):
        return step
    return _of_torchrun(given)


def rank(environment: Mapping[str, str]) -> int:
    """This process's rank; 0 where `read` would refuse ``environment``."""
    try:
        return read(environment).rank
    except ConfigError:
        return 0


def _of_torchrun(given: Mapping[str, str]) -> World:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    numbers = _numbers(given, names, "the environment of a distributed run")
    size, number = numbers.get("WORLD_SIZE"), numbers.get("RANK", 0)
    if size is None:
        if number == 0:
            return World()
        raise ConfigError(f"RANK={number} is set in the environment, WORLD_SIZE is not: {_ADVICE}")
    problems = ["WORLD_SIZE=0: expected 1 or more"] if size == 0 else []
    if size > 1 or number > 0:
        missing = [name for name in _MEETING if name not in given]
        if missing:
            there = ", ".join(f"{name}={given[name]}" for name in ("WORLD_SIZE", *_MEETING, "LOCAL_RANK") if name in given)
            raise ConfigError(f"{there} set in the environment, {', '.join(missing)} not: {_ADVICE}")
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
        return World(local_rank=local, launcher="torchrun" if "RANK" in given else "none")
    master, port = given["MASTER_ADDR"], numbers["MASTER_PORT"]
    return World(number, size, local, local_size, master, port, "torchrun")


def _of_srun(given: Mapping[str, str]) -> World:
    names = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if not any(name in given for name in ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID")):
        return World()
    what = "the environment of a Slurm job step"
    numbers = _numbers(given, (*names, "SLURM_STEP_NUM_NODES", "SLURM_NNODES"), what)
    step = numbers.get("SLURM_STEP_ID", numbers.get("SLURM_STEPID"))
    number = numbers.get("SLURM_PROCID", 0)
    if step is None or step >= _SPECIAL_STEPS:  # the script or the shell of a job, with the job's own SLURM_NTASKS
        if number == 0:
            return World()
        raise ConfigError(f"SLURM_PROCID={number} is set in the environment, SLURM_STEP_ID is not: start the ranks with srun")
    size = numbers.get("SLURM_STEP_NUM_TASKS", numbers.get("SLURM_NTASKS", 1))
    if size <= 1:
        return World()
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if name not in numbers]
    master = given.get("MASTER_ADDR") or _first_host(given)
    missing += [] if master else ["SLURM_STEP_NODELIST"]
    port = _numbers(given, ("MASTER_PORT",), what).get("MASTER_PORT") or _port(given, step)
    missing += [] if port else ["SLURM_JOB_ID"]
    if missing:
        raise ConfigError(
            f"{what}: a step of {size} tasks, but {', '.join(missing)} not set; start the ranks with srun, or set MASTER_ADDR "
            "and MASTER_PORT beside them"
        )
    if number >= size:
        raise ConfigError(f"{what}: SLURM_PROCID={number}, expected less than the {size} tasks of the step")
    nodes = numbers.get("SLURM_STEP_NUM_NODES", numbers.get("SLURM_NNODES"))
    return World(number, size, numbers["SLURM_LOCALID"], size if nodes == 1 else _here(given), master, port, "srun")


def _numbers(given: Mapping[str, str], names: tuple[str, ...], what: str) -> dict[str, int]:
    """Those of ``names`` that are set.

    Raises:
        ConfigError: those that are no whole numbers, all together.
    """
    wrong = [f"{name}={given[name]!r}: expected a whole number" for name in names if not given.get(name, "0").isdecimal()]
    if wrong:
        raise ConfigError([*wrong, _ADVICE] if "SLURM" not in names[0] else wrong, what)
    return {name: int(given[name]) for name in names if name in given}


def _port(given: Mapping[str, str], step: int) -> int:
    """Where rank 0 of a job step listens: the same for all its tasks, another for the next step; 0 without a job id."""
    job = given.get("SLURM_JOB_ID") or given.get("SLURM_JOBID") or ""
    return _PORTS[(int(job) * 101 + step) % len(_PORTS)] if job.isdecimal() else 0


def _first_host(given: Mapping[str, str]) -> str:
    """Host of the step's task 0: the first of its nodes, as all launchers of Slurm jobs assume."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if given.get(name):
            return first_host(given[name])
    return ""


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``n[003-007,9],m1`` gives ``n003``, ``rack[1-2]n[4,6]`` gives ``rack1n4``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\]\-,]*)[^\]]*\]", r"\1", first[0]) if first else ""


def _here(given: Mapping[str, str]) -> int | None:
    """Tasks of the step on this node: place SLURM_NODEID of ``2(x3),1``, as SLURM_STEP_TASKS_PER_NODE counts them."""
    counts: list[int] = []
    for part in given.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            return None
        counts += [int(found[1])] * int(found[2] or 1)
    place = given.get("SLURM_NODEID", "")
    return counts[int(place)] if place.isdecimal() and int(place) < len(counts) else None
