"""Launchers: processes, a Ray cluster and submitit's jobs, with workers that are really killed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import launched
import pytest
import torch

from invdiff.benchmarks import harness
from invdiff.benchmarks.harness import Launcher, Record, Task
from invdiff.benchmarks.launchers import local, make_launcher, slurm
from invdiff.benchmarks.suite import Suite, make_suite
from invdiff.config import compose_suite

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed"
)
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are not our children by multiprocessing find the suite as well."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the quarter of a minute that submitit waits for a shared disk."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0.5)
    monkeypatch.setattr(slurm, "POLL", 0.1)


def run(
    tasks: list[Task], folder: Path, launcher: Launcher, suite: Suite = launched.LAUNCHED
) -> list[Record]:
    return harness.run(
        suite,
        tasks,
        {"scale": 2.0} if suite is launched.LAUNCHED else {},
        folder,
        launcher,
        progress=False,
    )


def told(records: list[Record]) -> list[Any]:
    """What has to be the same wherever cells run: not the seconds and threads, nor the lines of a
    traceback."""
    found = []
    for record in records:
        result = {k: v for k, v in record.get("result", {}).items() if k != "seconds"}
        found.append(
            (
                record["cell"],
                {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in result.items()},
            )
        )
        found[-1] += (record.get("failure", {}).get("error"),)
    return found


def pid_of(number: int, folder: Path) -> int:
    """Of the worker that a task has begun in."""
    file, deadline = folder / f"{number}.pid", time.monotonic() + 90
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text())


def kill_the_worker_of(number: int, folder: Path) -> threading.Thread:
    """From outside, once it has begun."""
    killer = threading.Thread(target=lambda: os.kill(pid_of(number, folder), signal.SIGKILL))
    killer.start()
    return killer


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def ended(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def serial(tmp_path: Path) -> Iterator[list[Any]]:
    """The same tasks in this process; what waits for its end elsewhere does not wait here."""
    folder = tmp_path / "serial"
    folder.mkdir()
    (folder / "2.pid").touch()
    yield told(run(ORDINARY, folder, make_launcher()))


ORDINARY = launched.tasks("noise", "raise", "wait once", "noise", "noise")
DEADLY = launched.tasks(*["noise"] * 5, "die", "noise")[5:]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_has_as_many_threads_with_one_worker_as_with_two(
    workers: int, threads: int, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    launcher = make_launcher("local", workers, threads=threads)
    records = run(launched.tasks("noise", "noise"), tmp_path, launcher)
    assert {r["environment"]["threads"] for r in records} == {threads}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, "two", 1.5])
def test_threads_are_counted(threads: Any) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number, at least 1"):
        make_launcher("local", 1, threads=threads)


# This machine -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_takes_nothing_with_it(tmp_path: Path, serial: list[Any]) -> None:
    killer = kill_the_worker_of(2, tmp_path / "local")
    records = run([*ORDINARY, *DEADLY], tmp_path / "local", make_launcher("local", 2))
    killer.join()
    assert (
        told(records[:-4]) == serial
        and records[2]["failure"]["error"] == "RuntimeError: task 1 is wrong"
    )
    assert (
        "launched.py" in records[2]["failure"]["traceback"]
        and "result" in records[4]
        and "result" in records[-1]
    )
    assert [r["failure"]["error"] for r in records[-4:-2]] == [
        "a worker died at it 2 times, the last time with SIGKILL"
    ] * 2
    assert harness.read(tmp_path / "local", DEADLY[0][0]) is None  # it is tried again the next time
    assert {r["environment"]["threads"] for r in records} == {1}


@pytest.mark.slow
def test_every_worker_sees_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    tasks = [
        [{**cell, "model": {"device": "cuda"}} for cell in task]
        for task in launched.tasks("look", "look", "look")
    ]
    records = run(tasks, tmp_path, make_launcher("local"))
    assert {r["result"]["CUDA_VISIBLE_DEVICES"] for r in records} == {"3", "GPU-5"}
    assert {r["result"]["OMP_NUM_THREADS"] for r in records} == {"1"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,GPU-5"
    assert local.cuda_devices() == ["3", "GPU-5"]


INTERRUPTED = """
import signal, sys
from pathlib import Path
import launched
from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers import make_launcher
from invdiff.noise import generator_of

if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    launcher = make_launcher(name, 2)
    try:
        tasks = launched.tasks("noise", "noise", "wait", "wait", "noise")
        harness.run(launched.LAUNCHED, tasks, {}, folder, launcher, progress=False)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def begin(name: str, folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A run in a process group of its own, when two of its tasks are done and both workers are
    busy."""
    script = folder / "script.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), name, str(folder)],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    return process, [pid_of(number, folder) for number in (2, 3)]


BY_ALL = [
    "local",
    pytest.param("submitit", marks=[needs_submitit, pytest.mark.slow]),
    pytest.param("ray", marks=[needs_ray, pytest.mark.slow]),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_ALL)
def test_an_interrupt_ends_the_workers_and_keeps_what_is_done(name: str, tmp_path: Path) -> None:
    process, workers = begin(name, tmp_path)
    assert all(map(alive, workers))
    time.sleep(1)  # so that what was found is told
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert name == "submitit" or (
        b"Traceback" not in said and b"leaked" not in said
    )  # its processes here tell of every Ctrl-C
    assert all(map(ended, workers))
    assert len(list(tmp_path.glob("*.json"))) >= 2


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    process, workers = begin("local", tmp_path)
    process.kill()
    process.wait()
    assert all(map(ended, workers))


def test_the_workers_end_when_the_run_fails(tmp_path: Path) -> None:
    """As when records cannot be written: the launcher is closed at once, and not when nobody looks
    at the error any more."""
    ended = []

    def launch(
        suite: Suite, tasks: Sequence[Task], folder: Path, context: Mapping[str, Any]
    ) -> Generator[tuple[Task, list[Record]], None, None]:
        try:
            yield tasks[0], []
        finally:
            ended.append(True)

    with pytest.raises(ValueError) as told:
        run(ORDINARY, tmp_path, launch)
    assert ended and told


def test_results_that_are_no_plain_data_are_failures(tmp_path: Path) -> None:
    records = run(launched.tasks("tensor", "one", "noise"), tmp_path, make_launcher())
    assert (
        "Tensor is not JSON serializable" in records[0]["failure"]["error"]
        and "result" in records[-1]
    )
    assert "zip()" in records[2]["failure"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, workers",
    [
        ("local", 3),
        pytest.param("ray", 2, marks=needs_ray),
        pytest.param("submitit", 2, marks=needs_submitit),
    ],
)
def test_the_exact_suite_is_the_same_anywhere(name: str, workers: int, tmp_path: Path) -> None:
    config = compose_suite(
        "exact", ["mixture.d=[8]", "mixture.d_y=[1]", "mixture.seeds=2", "samples=20", "steps=3"]
    )
    config["gaussian"]["operators"], config["methods"] = {}, {"none": None, "dps": None}
    exact = make_suite("exact")
    expected = run(exact.tasks(config), tmp_path / "serial", make_launcher(), exact)
    records = run(exact.tasks(config), tmp_path / name, make_launcher(name, workers), exact)
    assert told(records) == told(expected)
    without_cost = [
        [
            r | {"result": r["result"] | {"seconds": 0}} if "seconds" in r["result"] else r
            for r in each
        ]
        for each in (records, expected)
    ]
    assert exact.report(config, without_cost[0]) == exact.report(config, without_cost[1])


# Ray ----------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.slow
def test_a_ray_worker_is_killed_and_the_table_is_that_of_the_serial_run(
    tmp_path: Path, serial: list[Any]
) -> None:
    killer = kill_the_worker_of(2, tmp_path / "ray")
    records = run([*ORDINARY, *DEADLY], tmp_path / "ray", make_launcher("ray", 2))
    killer.join()
    assert told(records[:-4]) == serial
    assert launched.LAUNCHED.report({}, records[:-4]) == launched.LAUNCHED.report(
        {}, run(ORDINARY, tmp_path / "serial", make_launcher())
    )
    assert "WorkerCrashedError" in records[-3]["failure"]["error"] and "result" in records[-1]
    assert {r["environment"]["threads"] for r in records[:2]} == {1}


@needs_ray
@pytest.mark.slow
def test_a_ray_cluster_that_is_there_is_used_by_its_address(
    tmp_path: Path, serial: list[Any]
) -> None:
    from ray.cluster_utils import Cluster

    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "2.pid").touch()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**27},
    )
    try:
        assert (
            told(run(ORDINARY, tmp_path / "ray", make_launcher("ray", 2, address=cluster.address)))
            == serial
        )
    finally:
        cluster.shutdown()


# Submitit -----------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_submitit
def test_a_killed_job_is_followed_by_another(tmp_path: Path, serial: list[Any], soon: None) -> None:
    killer = kill_the_worker_of(2, tmp_path / "jobs")
    records = run(
        [*ORDINARY, *DEADLY], tmp_path / "jobs", make_launcher("submitit", 2, cluster="local")
    )
    killer.join()
    assert told(records[:-4]) == serial
    assert (
        records[-3]["failure"]["error"] == "its job ended without a result"
        and "result" in records[-1]
    )
    assert not (tmp_path / "jobs" / "jobs").exists()


SLURM = {
    "sbatch": """
        number=$(ls "$here"/script-* 2> /dev/null | wc -l)
        cp "$1" "$here/script-$number"
        last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        for k in $(seq 0 ${last:-0}); do
            export SLURM_JOB_ID=$number SLURM_JOB_NODELIST=here
            if [ -n "$last" ]; then
                export SLURM_JOB_ID=$number$k SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$k
            fi
            setsid bash "$1" > /dev/null 2>&1 &
            echo $! > "$here/$number${last:+_$k}.job"
        done
        echo "Submitted batch job $number"
    """,
    "srun": """
        while [[ $1 == --* ]]; do
            case $1 in --output) out=$2; shift 2 ;; --error) err=$2; shift 2 ;; *) shift ;; esac
        done
        for name in out err; do
            file=${!name} file=${file//%A/$SLURM_ARRAY_JOB_ID}
            file=${file//%a/$SLURM_ARRAY_TASK_ID} file=${file//%j/$SLURM_JOB_ID}
            printf -v $name %s "${file//%t/0}"
        done
        exec "$@" > "$out" 2> "$err"
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        for job in "$here"/*.job; do
            kill -0 $(cat "$job") 2> /dev/null && state=RUNNING || state=FAILED
            echo "$(basename "$job" .job)|$state|here"
        done
    """,
    "scancel": 'kill -- -$(cat "$here/$1.job")',
}
"""What submitit asks of SLURM, for jobs that are processes of this machine."""


@needs_submitit
@pytest.mark.slow
def test_jobs_of_slurm_are_one_array(
    tmp_path: Path, serial: list[Any], soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name, script in SLURM.items():
        file = tmp_path / "bin" / name
        file.write_text(f'#!/usr/bin/env bash\nhere=$(dirname "$0")\n{script}')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    killer = kill_the_worker_of(2, tmp_path / "slurm")
    records = run(
        ORDINARY,
        tmp_path / "slurm",
        make_launcher("submitit", 2, slurm_partition="short", timeout_min=90),
    )
    killer.join()
    assert told(records) == serial
    first, *others = (file.read_text() for file in sorted((tmp_path / "bin").glob("script-*")))
    assert all(
        f"#SBATCH --{line}\n" in first
        for line in ("array=0-1%2", "partition=short", "time=90", "cpus-per-task=1")
    )
    assert len(others) == 1 and "--array" not in others[0]  # what the killed job left


@needs_submitit
@pytest.mark.slow
def test_a_preempted_job_goes_on_where_it_was(tmp_path: Path, soon: None) -> None:
    preempt = threading.Thread(target=lambda: os.kill(pid_of(1, tmp_path), signal.SIGUSR2))
    preempt.start()
    records = run(
        launched.tasks("noise", "wait once", "noise"),
        tmp_path,
        make_launcher("submitit", cluster="local"),
    )
    preempt.join()
    assert all("result" in r for r in records)


@needs_submitit
@pytest.mark.slow
def test_jobs_that_cannot_begin_say_what_they_said(
    tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such driver')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    records = run(
        launched.tasks("noise", "noise"), tmp_path, make_launcher("submitit", cluster="local")
    )
    assert all(r["failure"]["error"] == "its job ended without a result" for r in records)
    assert all("no such driver" in r["failure"]["traceback"] for r in records)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, workers, options, message",
    [
        ("slurm", None, {}, r"unknown launcher 'slurm'\. Known: local, ray, submitit"),
        ("local", 0, {}, "--workers must be at least 1, got 0"),
        ("local", None, {"address": "auto"}, "launcher 'local' has no parameter 'address'"),
        pytest.param("ray", None, {"adress": "auto"}, "Did you mean 'address'", marks=needs_ray),
    ],
)
def test_wrong_launchers(
    name: str, workers: int | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_launcher(name, workers, **options)


@needs_submitit
@pytest.mark.parametrize(
    "options, message",
    [
        ({"slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ({"timeout_min": "long"}, "expected type"),
        ({"cluster": "torque"}, "torque"),
    ],
)
def test_wrong_jobs(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(
            launched.tasks("noise"),
            tmp_path,
            make_launcher("submitit", **{"cluster": "local"} | options),
        )


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'invdiff\[{name}\]'"):
        make_launcher(name)
