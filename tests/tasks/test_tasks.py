"""Tasks give the same results whoever runs them, and are repeated when their worker is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pieces import ClusterExecutor, end_always, end_once, square

from onnx_hyvit.errors import ConfigError
from onnx_hyvit.tasks import Lost, Workers, dask_executor, local_processes, run_tasks, threads_each


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_do_not_depend_on_the_workers(jobs: int) -> None:
    with local_processes(jobs) as workers:
        found = dict(run_tasks(square, range(5), workers, ahead=2))
    assert found == dict(run_tasks(square, range(5), None)) == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


def test_no_more_tasks_are_taken_than_asked_for() -> None:
    taken: list[int] = []

    def tasks():
        for number in range(6):
            taken.append(number)
            yield number

    with local_processes(1) as workers:
        most = [len(taken) - done for done, _ in enumerate(run_tasks(square, tasks(), workers, ahead=2))]
    assert len(most) == 6 and max(most) == 2


def test_tasks_of_a_worker_that_is_killed_are_repeated(tmp_path: Path) -> None:
    tasks = [(tmp_path / "killed", name) for name in "abc"]
    with local_processes(2) as workers:
        found = dict(run_tasks(end_once, tasks, workers))
    assert found == {task: task[1] for task in tasks}
    assert (tmp_path / "killed").exists()


def test_a_task_that_ends_every_worker_does_not_take_others_with_it() -> None:
    with local_processes(2) as workers:
        found = dict(run_tasks(end_always, ["a", "bad", "b", "c"], workers, ahead=2))
    assert isinstance(found.pop("bad"), Lost)
    assert found == {"a": "a", "b": "b", "c": "c"}


CROWDED = """
import sys
from pathlib import Path
from onnx_hyvit.tasks import local_processes, run_tasks
from pieces import end_once_late

if __name__ == "__main__":
    tasks = [(Path(sys.argv[1]), bytes([number]) * (4 << 20)) for number in range(4)]
    with local_processes(1) as workers:
        found = dict(run_tasks(end_once_late, tasks, workers))
    assert list(found.values()) == [4 << 20] * 4
"""


def test_a_worker_that_is_killed_while_large_tasks_are_on_their_way_to_it(tmp_path: Path) -> None:
    script = tmp_path / "crowded.py"
    script.write_text(CROWDED)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=120)
    assert (tmp_path / "killed").exists()


SCRIPT = """
import sys
from pathlib import Path
from onnx_hyvit.tasks import local_processes, run_tasks
from pieces import wait_long

if __name__ == "__main__":
    with local_processes(2) as workers:
        for _ in run_tasks(wait_long, [Path(sys.argv[1])] * 2, workers):
            pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_busy_workers_end_with_the_process_that_waits(tmp_path: Path, number: signal.Signals) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "running"
    folder.mkdir()
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)])
    process = subprocess.Popen(
        [sys.executable, script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    wait_for(lambda: len(list(folder.iterdir())) == 2)
    workers = [int(path.name) for path in folder.iterdir()]
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal tells the whole group
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -number
    assert stderr.count("Traceback") == (number == signal.SIGINT), stderr
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_threads_are_shared_but_never_fall_to_one_alone() -> None:
    assert [threads_each(8, jobs) for jobs in (1, 2, 3, 8)] == [8, 4, 2, 2]
    assert [threads_each(1, jobs) for jobs in (1, 2)] == [1, 1]


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, 10**6])
def test_a_bad_number_of_jobs_is_named(jobs: int) -> None:
    with (
        pytest.raises(ConfigError, match=f"jobs must be a whole number of 1 to 256, found {jobs}"),
        local_processes(jobs),
    ):
        pass


def test_what_is_no_executor_is_named() -> None:
    with pytest.raises(ConfigError, match=r"must be a concurrent\.futures\.Executor, found str"):
        Workers("tcp://host", 2)  # type: ignore[arg-type]


def test_a_cluster_runs_as_many_tasks_as_it_has_workers() -> None:
    assert [Workers(ClusterExecutor(threads)).at_once for threads in ({}, {"a": 4}, {"a": 1, "b": 1, "c": 2})] == [
        1,
        1,
        3,
    ]
    assert Workers(ClusterExecutor({"a": 4}), jobs=2).at_once == 2
    with local_processes(2) as workers:
        assert workers.at_once == 2


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"onnx-hyvit\[dask\]"), dask_executor("tcp://host:8786"):
        pass
