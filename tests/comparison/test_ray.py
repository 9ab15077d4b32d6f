"""Runs on a Ray cluster: the resources of each, the message without a cluster, and a real cluster of two machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import ciod
from ciod.comparison import on_ray, process
from ciod.core.errors import CiodError, ConfigError

from .conftest import ILYOLOX, SETTINGS
from .test_compare import table


def node(cpu: float, gpu: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpu, **({"GPU": gpu} if gpu else {})}}


@pytest.mark.parametrize(
    ("nodes", "jobs", "cuda", "expected"),
    [
        ([node(8), node(4)], None, False, (1, 0)),
        ([node(8), node(4)], 2, False, (4, 0)),  # no more than the smallest machine has
        ([node(8), node(4)], 6, False, (2, 0)),
        ([node(8), node(4)], 100, False, (1, 0)),
        ([node(64, 8), node(16, 4), node(96)], None, True, (4, 1)),
        ([node(8, 1), node(64, 1, alive=False)], 3, True, (8, 1)),
        ([], 2, False, (1, 0)),
    ],
)
def test_what_each_run_asks_for(nodes, jobs, cuda, expected):
    assert on_ray.shares(nodes, jobs, cuda) == expected


def test_a_cluster_without_gpus():
    with pytest.raises(CiodError, match="no machine of the Ray cluster has a GPU; write device=cpu"):
        on_ray.shares([node(8)], None, True)


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CiodError, match=r"Ray is not installed: pip install 'ciod\[ray\]'"), on_ray.cluster():
        pass


class Lost(Exception):
    pass


class Ray:
    """Stands in for the package: runs what it is given at once, or loses it."""

    exceptions = SimpleNamespace(RayError=Lost)

    def __init__(self, refuses: str = "", loses: bool = False):
        self.refuses, self.loses, self.asked, self.ended = refuses, loses, [], 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **given):
        self.asked.append(given["address"])
        if self.refuses:
            raise ConnectionError(self.refuses)

    def shutdown(self):
        self.ended += 1

    def nodes(self):
        return [node(4), node(4)]

    def remote(self, **options):
        self.asked.append(options)
        return lambda function: SimpleNamespace(remote=function)

    def wait(self, results, timeout):
        return results, []

    def get(self, result):
        if self.loses:
            raise Lost("The node with its worker died.\nLong story.")
        return result

    def cancel(self, result, force):
        raise Lost("it has ended")


@pytest.fixture
def stand_in(monkeypatch):
    def put(**given) -> Ray:
        ray = Ray(**given)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return put


def test_no_cluster_answers(stand_in, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "node0:6379")
    ray = stand_in(refuses="Could not find any running Ray instance.\nMore.")
    match = r"no Ray cluster answers \(node0:6379: Could not find any running Ray instance\). Start one with `ray start"
    with pytest.raises(CiodError, match=match), on_ray.cluster():
        pass
    assert ray.asked == ["node0:6379"]


def test_another_place_than_ray(tmp_path):
    with pytest.raises(ConfigError, match="on: 'rai' is not allowed; allowed: ray"):
        ciod.compare(methods="finetune", on="rai", out=tmp_path, split="6+4", data=str(tmp_path))


SEEN: dict = {}


class Popen(subprocess.Popen):
    """A worker that says two lines, and complains."""

    def __init__(self, command, env, cwd, **more):
        SEEN.update(job=command[-1], env=env, cwd=cwd)
        code = "import sys; print('one'); print('two'); print('a reason', file=sys.stderr); sys.exit(2)"
        super().__init__([command[0], "-c", code], env=env, cwd=cwd, **more)


@pytest.mark.parametrize("loses", [False, True])
def test_lines_log_and_reason_of_a_run_come_back(stand_in, monkeypatch, tmp_path, loses):
    ray = stand_in(loses=loses)
    monkeypatch.setattr(process.subprocess, "Popen", Popen)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    cell = SimpleNamespace(name="a", job=lambda: {"name": "a"})
    (tmp_path / "a.log").write_text("of an earlier call\n")
    with on_ray.starter(2, False, heard.append) as start:
        worker = start(cell, Path(), 1, heard.append, None)
        assert not worker.alive and not worker.elsewhere and worker.gpu is None
        problem = worker.problem()
        worker.stop()
    lost = "Ray lost it 6 times, or could not start it: The node with its worker died"
    assert problem == (lost if loses else "a reason")
    assert heard == ["on Ray with 2 machines; each run has 4 CPUs", "one", "two"]
    assert (tmp_path / "a.log").read_text() == "of an earlier call\none\ntwo\n"
    assert ray.asked[1]["num_cpus"] == 4 and ray.asked[1]["num_gpus"] == 0 and ray.ended == 1
    env = SEEN["env"]
    assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"], "RANK" in env) == ("3", "", False)
    assert SEEN["job"] == str(tmp_path / "a.json") and SEEN["cwd"] == str(tmp_path)


def test_a_ray_worker_that_starts_runs_does_not_import_pytorch():
    code = "import sys, ciod.comparison.process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ciod.__file__).parents[1]).returncode == 0


@pytest.mark.skipif(not os.environ.get("CIOD_RAY"), reason="starts a Ray cluster: set CIOD_RAY=1")
@pytest.mark.slow
def test_two_machines_of_which_one_loses_a_run_give_the_table_of_two_jobs(compared, scenes, tmp_path, monkeypatch):
    """A real cluster. The process of Ray that holds a run is killed in the middle of it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'ciod[ray]')")
    utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setenv("PYTHONPATH", str(Path(ciod.__file__).parents[1]))  # also for the machines of the cluster
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at its 15, runs starve beside other tests on the same machine
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = utils.Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    killed: list[int] = []
    out = tmp_path / "out"
    try:
        cluster.add_node(**size)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        killer = Killer(out / "finetune-seed0" / ".cell.lock", killed)
        killer.start()
        methods = ["finetune", ILYOLOX]
        content = ciod.compare(methods=methods, on="ray", out=out, cache=compared, data=str(scenes), **SETTINGS)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed and all(r["status"] == "finished" for r in content["runs"])
    assert table(out) == table(compared)
    for name in ("finetune-seed0", "ilyolox-seed0"):
        ours, theirs = (load_file(f / name / "task-2" / "model.safetensors") for f in (out, compared))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), f"{name} learnt something else"


class Killer(threading.Thread):
    """Kills the Ray process whose run holds ``lock``: the parent of the run's own process."""

    def __init__(self, lock: Path, killed: list[int]):
        super().__init__(daemon=True)
        self.lock, self.killed = lock, killed

    def run(self) -> None:
        while not self.killed:
            with suppress(OSError, ValueError, IndexError):
                pid = json.loads(self.lock.read_text())["pid"]
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                os.kill(parent, signal.SIGKILL)
                self.killed.append(parent)
            time.sleep(0.02)
