"""Rank and world size from the variables of torchrun and srun, complete, incomplete and contradictory."""

import pytest

from avvp_dist.dist.world import World, first_host, rank, read
from avvp_dist.errors import ConfigError

MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
TWO_NODES = STEP | {
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        ({"WORLD_SIZE": "1"}, World()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", **MASTER}, World(launcher="torchrun")),
        ({"WORLD_SIZE": "", "RANK": " "}, World()),
        ({"RANK": "0"}, World()),
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER},
            World(3, 4, 1, 2, "10.0.0.1", 29500, "torchrun"),
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "1", **MASTER},
            World(1, 2, 0, None, "10.0.0.1", 29500, "torchrun"),
        ),  # one pod per rank
        (STEP, World(1, 2, 1, 2, "gpu07", 27777, "srun")),
        (STEP | {"SLURM_STEP_ID": "3"}, World(1, 2, 1, 2, "gpu07", 27780, "srun")),  # another step, another port
        (TWO_NODES, World(1, 2, 0, 1, "gpu07", 27777, "srun")),
        (STEP | MASTER, World(1, 2, 1, 2, "10.0.0.1", 29500, "srun")),
        (STEP | MASTER | {"WORLD_SIZE": "2"}, World(1, 2, 1, 2, "10.0.0.1", 29500, "srun")),  # exported by the job script
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, World()),
        # the script of sbatch, with the job's number of tasks; the shell of salloc is a step with a special id
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, World()),
        (STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, World()),
        # torchrun within a step of one task per node
        (TWO_NODES | {"WORLD_SIZE": "2", "RANK": "0", **MASTER}, World(0, 2, 0, None, "10.0.0.1", 29500, "torchrun")),
    ],
)
def test_world_of_an_environment(environment, world):
    assert read(environment) == world
    assert rank(environment) == world.rank


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 set in the environment, but RANK, MASTER_ADDR, MASTER_PORT not: start the ranks with",
        ),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE=2, RANK=1 set in the environment, but MASTER_ADDR, MASTER_PORT not"),
        ({"RANK": "1"}, "RANK=1 is set in the environment, but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "two", "RANK": "-1"}, "WORLD_SIZE='two': expected a whole number\n.*RANK='-1': expected a whole"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MASTER}, "RANK=2: expected less than WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0", "RANK": "0", **MASTER}, "WORLD_SIZE=0: expected 1 or more"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MASTER, "MASTER_PORT": "70000"}, "MASTER_PORT=70000: expected a port"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MASTER, "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3"),
        (STEP | {"SLURM_PROCID": "5"}, "SLURM_PROCID=5, expected less than the 2 tasks"),
        (STEP | {"SLURM_LOCALID": "x"}, "SLURM_LOCALID='x': expected a whole number"),
        ({name: STEP[name] for name in STEP if name != "SLURM_JOB_ID"}, "SLURM_JOB_ID not set"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_STEP_ID is not: start the ranks with srun"),
    ],
)
def test_invalid_environments_are_refused(environment, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read(environment)
    assert rank(environment) == 0


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[003-007,9],m1", "n003"),
        ("rack[1-2]n[4,6]", "rack1n4"),
        ("a-b[2]", "a-b2"),
        ("", ""),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_one_machine_is_recognized_by_counts_or_by_the_address():
    assert read(STEP).one_machine
    assert not read(TWO_NODES).one_machine
    assert not read({"WORLD_SIZE": "2", "RANK": "0", **MASTER}).one_machine
    assert read({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).one_machine
