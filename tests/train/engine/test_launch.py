"""What torchrun's and Slurm's variables say of a process."""

import pytest

from msdeform.train.engine.launch import Place, first_host, place

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu03",
    "MASTER_PORT": "29401",
}
# as srun sets them for the last of seven tasks on four nodes
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[03-05,9]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
}
# what a job has beside its steps, as sbatch sets it for the script: that is task 0 of an allocation for seven
SCRIPT = {
    "SLURM_JOB_ID": "1234",
    "SLURM_NTASKS": "7",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "gpu[03-05,9]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def without(env: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in env.items() if key != name}


def test_a_process_of_torchrun() -> None:
    expected = Place(rank=5, size=8, local_rank=1, local_size=4, address="gpu03", port=29401)
    assert place(TORCHRUN) == expected
    # each task of a Slurm step may be a torchrun
    assert place({**SLURM, **TORCHRUN}) == expected


def test_a_task_of_srun() -> None:
    found = place({**SCRIPT, **SLURM})
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.local_size, found.address) == (6, 7, 0, 1, "gpu03")
    second = place({**SLURM, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"})
    assert second is not None
    assert (second.rank, second.local_rank, second.local_size) == (3, 1, 2)
    named = place({**SLURM, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "5000"})
    assert named is not None
    assert (named.address, named.port) == ("10.0.0.7", 5000)


def test_alone() -> None:
    assert place({}) is None
    # the script of an sbatch job, and a shell of salloc on the machine it was called on
    assert place(SCRIPT) is None
    # the shell of salloc on the job's first node: a step of one task, whose number is no number of a step
    shell = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert place({**SCRIPT, **shell, "SLURM_STEP_NODELIST": "gpu03"}) is None
    # srun -n1, and with it srun --pty bash
    assert place({**SCRIPT, "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "1"}) is None
    # torchrun with one process is a group of one
    one = place({"RANK": "0", "WORLD_SIZE": "1"})
    assert one is not None
    assert (one.size, one.local_rank, one.local_size) == (1, 0, 1)


def test_jobs_and_steps_that_run_at_once_meet_at_ports_of_their_own() -> None:
    env = [
        {**SLURM, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        for job in range(9990, 10020)  # those that share a machine were started one after another
        for step in range(5)
    ]
    ports = [found.port for found in map(place, env) if found is not None]
    assert len(set(ports)) == len(env)
    assert all(1024 < port < 32768 for port in ports)  # from there on the system gives them out
    same = [place({**SLURM, "SLURM_PROCID": str(rank), "SLURM_NODEID": "2", "SLURM_LOCALID": "1"}) for rank in (4, 5)]
    assert len({found.port for found in same if found is not None}) == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-07,9],login1", "gpu03"),
        ("gpu[9,03-07]", "gpu9"),
        ("a-1,b-2", "a-1"),
        ("n[1-2]-ib", "n1-ib"),
        ("rack[1-2]n[3-4]", "rack1n3"),
        ("gpu01", "gpu01"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (without(TORCHRUN, "RANK"), "launch: expected the environment to hold RANK, as torchrun and srun set it"),
        (without(TORCHRUN, "WORLD_SIZE"), "hold WORLD_SIZE"),
        (without(TORCHRUN, "LOCAL_RANK"), "hold LOCAL_RANK"),
        ({**TORCHRUN, "RANK": "first"}, "launch: expected a number in the environment's RANK, got 'first'"),
        ({**TORCHRUN, "RANK": "8"}, "expected ranks below the number of processes, got rank 8 of 8, 1 of 4 on this"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "got rank 5 of 8, 4 of 4 on this machine"),
        (without(SLURM, "SLURM_PROCID"), "hold SLURM_PROCID"),
        (without(SLURM, "SLURM_LOCALID"), "hold SLURM_LOCALID"),
        (without(SLURM, "SLURM_JOB_ID"), "hold SLURM_JOB_ID"),
        (without(SLURM, "SLURM_STEP_NODELIST"), "expected SLURM_STEP_NODELIST to list nodes, such as gpu"),
        (without(SLURM, "SLURM_STEP_TASKS_PER_NODE"), "expected SLURM_STEP_TASKS_PER_NODE such as 2(x3),1, got ''"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(3)"}, "such as 2(x3),1, got '2(3)'"),
        ({**SLURM, "SLURM_NODEID": "4"}, "'2(x3),1' has 4 nodes, and this is node 4"),
        ({**SLURM, "SLURM_LOCALID": "1"}, "got rank 6 of 7, 1 of 1 on this machine"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_told(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match="^launch: ") as told:
        place(env)
    assert sentence in str(told.value)
