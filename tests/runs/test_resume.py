"""Resuming: states inside an epoch, signals, damaged files, and what a run refuses to resume from."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ciod.core.errors import CiodError
from ciod.core.files import WriteError
from ciod.core.run_log import read_metrics
from ciod.core.signals import RunAgain
from ciod.data.loader import Order
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.files import model_file
from ciod.methods.finetune import Finetune
from ciod.runs import fingerprints, lock
from ciod.training import checkpoint
from ciod.training.hooks import Hooks
from tests.runs.commands import AtStep, Killed, assert_equal, go, kill_after, results_of

# Windows of three steps lie across epochs and saved states; two classes and a small picture keep it short.
WORDS = ["split=1+1", "epochs=2", "batch=3", "log_every=3", "save_every=1", "eval_every=1"]


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk():
    """These runs write a state a step; no test here cuts the power."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=18, val=3, size=64)


def run(data: Path, out: Path, *words: str, hooks: Sequence[Hooks] = ()) -> Path:
    return go(data, out, *WORDS, *words, hooks=hooks)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    return run(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A finished run that tests may damage."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def logged(out: Path) -> list[dict]:
    drop = ("images_per_second", "seconds")
    return [{k: v for k, v in m.items() if k not in drop} for m in read_metrics(out)]


def middle(whole: Path, task: int) -> int:
    """A step inside the second epoch, no reading there."""
    steps = json.loads((whole / "results.json").read_text())["tasks"][task]["steps"] // 2
    assert steps > 2
    step = steps + 1
    return step if (step + 1) % 3 else step - 1


# Inside an epoch ------------------------------------------------------------------------------------------------------


def test_skipped_batches_are_not_made():
    order = Order(10, 4, seed=1, task=0)
    order.epoch = 3
    batches = list(order)
    assert len(batches) == len(order) == 3
    order.skip = 2
    assert list(order) == batches[2:] and len(order) == 3


@pytest.mark.parametrize("task", [0, 1])
def test_killed_inside_an_epoch(whole, data, tmp_path, task):
    unfinished(data, tmp_path / "run", task, middle(whole, task))
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state and state["task"] == task and state["fit"]["done"] == middle(whole, task), "nothing else is lost"
    torch.manual_seed(7)
    run(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")
    assert logged(whole) == logged(tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_writes_and_leaves(whole, data, tmp_path, name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} on this system")
    handler, at = signal.getsignal(number), middle(whole, 1)
    signalled = AtStep(1, at, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else RunAgain) as caught:
        run(data, tmp_path / "run", "save_every=0", hooks=[signalled])
    if name != "SIGINT":
        assert caught.value.code == 75
    assert signal.getsignal(number) is handler
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state and (state["task"], state["fit"]["done"]) == (1, at + 1), "the step was finished and written"
    assert not (tmp_path / "run" / lock.NAME).exists()
    run(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")
    assert logged(whole) == logged(tmp_path / "run")


def test_a_second_interruption_does_not_wait(data, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one exits at once")

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run", "save_every=0", hooks=[AtStep(0, 1, twice)])
    assert not (tmp_path / "run" / "last" / "state.pt").exists()


def test_a_signal_during_an_evaluation(whole, data, tmp_path, monkeypatch):
    from ciod.runs import run as engine

    real, calls = engine.evaluate, []

    def signalled(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # inside the second task
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("an evaluation is not waited for: the state is written")
        return real(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(engine, "evaluate", signalled)
        with pytest.raises(RunAgain):
            run(data, tmp_path / "run")
    run(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")
    assert logged(whole) == logged(tmp_path / "run")


def test_states_by_the_clock(data, tmp_path, monkeypatch):
    saved = []
    real = checkpoint.save_state

    def counting(path, state):
        if "fit" in state:
            saved.append(state["fit"]["done"])
        real(path, state)

    monkeypatch.setattr(checkpoint, "save_state", counting)
    run(data, tmp_path / "a", "save_every=0", "save_minutes=1e-9", "split=1", "eval_every=0")
    every = json.loads((tmp_path / "a" / "results.json").read_text())["tasks"][0]["steps"]
    assert saved == list(range(1, every + 1))
    saved.clear()
    run(data, tmp_path / "b", "save_every=0", "split=1", "eval_every=0")
    assert saved == [every // 2, every]


# Damaged files --------------------------------------------------------------------------------------------------------


def unfinished(data: Path, out: Path, task: int, step: int) -> None:
    with pytest.raises(Killed):
        run(data, out, hooks=kill_after(task, step))


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(whole, data, tmp_path, how):
    unfinished(data, tmp_path / "run", 1, middle(whole, 1))
    path = tmp_path / "run" / "last" / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": bytes(content), "cut": path.read_bytes()[:-1], "empty": b""}[how])
    run(data, tmp_path / "run")
    results = results_of(tmp_path / "run")
    (warning,) = [w for w in results["warnings"] if "state.pt" in w]
    assert (
        "is damaged" if how == "flipped" else "is incomplete"
    ) in warning and "The checkpoint before it was used" in warning
    results["warnings"].remove(warning)
    (tmp_path / "run" / "results.json").write_text(json.dumps({**results, "tasks": _timed(results["tasks"])}))
    assert_equal(whole, tmp_path / "run")


def _timed(tasks: list[dict]) -> list[dict]:
    return [{**t, "seconds": 1, "peak_memory_mb": 1} for t in tasks]


def test_two_damaged_states_are_an_error(copy, data):
    for name in ("state.pt", "previous.pt"):
        (copy / "last" / name).write_bytes(b"damaged")
    with pytest.raises(
        CiodError, match=r"state\.pt is incomplete.*previous\.pt is incomplete.*choose another out=, or remove"
    ):
        run(data, copy)


def test_a_damaged_model_is_made_again_from_the_state_before(whole, copy, data):
    path = copy / "task-2" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    run(data, copy)
    assert path.read_bytes() == (whole / "task-2" / "model.safetensors").read_bytes()
    warnings = [w for w in results_of(copy)["warnings"] if "model.safetensors is damaged" in w]
    assert warnings and "The checkpoint before it was used" in warnings[0]


def test_a_state_of_another_version(copy, data, monkeypatch):
    from ciod.runs import resume

    monkeypatch.setattr(resume, "FORMAT", 3)
    with pytest.raises(CiodError, match="holds a run of another version of ciod"):
        run(data, copy)


def test_temporary_files_of_a_killed_write_are_removed(copy, data):
    left = copy / "last" / ".state.pt.123.tmp"
    left.write_bytes(b"half")
    (copy / ".mine.tmp").write_bytes(b"not ours")
    run(data, copy)
    assert not left.exists() and (copy / ".mine.tmp").exists()


def damage(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    bit = rng.randrange(8 * len(content))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_damaged_state_loads(tmp_path):
    path, rng = tmp_path / "state.pt", random.Random(0)
    checkpoint.save_state(path, {"task": 1, "weights": torch.randn(500), "names": ["a", "b"]})
    content = path.read_bytes()
    for _ in range(200):
        path.write_bytes(damage(content, rng))
        with pytest.raises(checkpoint.Damaged, match=r"is incomplete|is damaged"):
            checkpoint.load_state(path)


def test_no_damaged_model_loads(whole, tmp_path):
    good, rng = whole / "task-1" / "model.safetensors", random.Random(0)
    meta, state = model_file.read(good)
    path, header = tmp_path / "model.safetensors", int.from_bytes(good.read_bytes()[:8], "little")
    content = good.read_bytes()
    for i in range(200):
        bad = damage(content, rng) if i % 2 else damage(content[: 8 + header], rng) + content[8 + header :]
        path.write_bytes(bad)
        try:
            found, tensors = model_file.read(path)
        except CiodError:
            continue
        # what is in no one's reading (white space, a name in the header) may differ; content may not
        assert found == meta and tensors.keys() == state.keys()
        assert all(torch.equal(tensors[k], state[k]) for k in state)


# A run cannot lie -----------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from ciod.runs.lock import owner_of
with owner_of(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_in_one_folder(whole, data, tmp_path):
    out = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True, env=env
    ) as other:
        try:
            assert other.stdout and other.stdout.readline() == "held\n"
            with pytest.raises(
                lock.Taken, match=rf"{out} is in use by process {other.pid} on .* since 20.*another out="
            ):
                run(data, out)
        finally:
            other.kill()
    assert (out / lock.NAME).exists(), "its owner died"
    with lock.owner_of(out):
        assert json.loads((out / lock.NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(lock.Taken, match="in use by another run of this process"), lock.owner_of(out):
            pass
    assert not (out / lock.NAME).exists()


def test_a_process_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    """A loader process that is still there when its run was killed: the folder is free."""
    code = HOLDER.replace(
        "    print(", "    child = os.fork()\n    if child == 0:\n        time.sleep(600)\n    print(child, "
    )
    env = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    words = [sys.executable, "-c", code.replace("import sys", "import os, sys"), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout
        child = int(other.stdout.readline().split()[0])
        other.kill()
        other.wait()
        try:
            os.kill(child, 0)  # it lives
            with lock.owner_of(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/\.lock cannot be written"), lock.owner_of(tmp_path / "file"):
        pass


def test_without_locks_of_the_system_the_owner_is_looked_for(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    me = {**lock._me(), "pid": os.getppid(), "start": lock._start_of(os.getppid())}
    (tmp_path / lock.NAME).write_text(json.dumps(me))
    with pytest.raises(lock.Taken, match=f"process {os.getppid()}"), lock.owner_of(tmp_path):
        pass
    for dead in ({**me, "pid": 2**22 + 1}, {**me, "start": "0"}, {**me, "host": "elsewhere"}, "damaged"):
        (tmp_path / lock.NAME).write_text(json.dumps(dead)[:-1] if dead == "damaged" else json.dumps(dead))
        with lock.owner_of(tmp_path):
            pass


def test_other_settings_are_refused_unless_allowed(copy, data, monkeypatch):
    with pytest.raises(CiodError, match=r"other settings \(train\.lr was 0\.002, is 0\.5\).*allow=settings"):
        run(data, copy, "lr=0.5")
    run(data, copy, "lr=0.5", "allow=settings")
    assert any("train.lr was 0.002" in w for w in results_of(copy)["warnings"])


def test_other_data_are_refused_unless_allowed(data, copy, tmp_path):
    other = tmp_path / "data"
    subprocess.run(["cp", "-r", str(data), str(other)], check=True)
    first = sorted((other / "images").glob("train_*.jpg"))[0]
    first.write_bytes(first.read_bytes() + b"\0")
    words = [f"data={other}", "allow=settings"]
    with pytest.raises(CiodError, match=rf"other data \(train data: .*{first.name} has other boxes, size or content\)"):
        run(data, copy, *words)
    labels = json.loads((other / "val.json").read_text())
    dropped = labels["annotations"].pop()
    (other / "val.json").write_text(json.dumps(labels))
    assert dropped
    with pytest.raises(CiodError, match=r"test data: \d+ boxes, were \d+; .*val_\d+\.jpg has other boxes.*allow=data"):
        run(data, copy, *words)
    run(data, copy, f"data={other}", "allow=settings,data")
    assert any("Resumed with different data" in w for w in results_of(copy)["warnings"])


def test_data_may_be_moved(data, copy, tmp_path):
    subprocess.run(["cp", "-r", str(data), str(tmp_path / "moved")], check=True)
    with pytest.raises(CiodError, match=r"other settings \(data was .*data', is .*moved'"):
        run(data, copy, f"data={tmp_path / 'moved'}")
    run(data, copy, f"data={tmp_path / 'moved'}", "allow=settings")


def test_what_differs_between_data():
    listed = {"train": [["a/1.jpg", 1], ["a/2.jpg", 2]], "test": []}
    was = {"classes": ["cat", "dog"], "images": 2, "boxes": 3, "digest": "x"}
    now = {"classes": ["cat", "fox"], "images": 2, "boxes": 3, "digest": "y"}
    images = {"train": [["a/1.jpg", 1], ["a/3.jpg", 2]], "test": []}
    path = Path("/nowhere")
    same = {"classes": [], "images": 0, "boxes": 0, "digest": ""}
    differences = fingerprints.data_differences(
        path, {"train": was, "test": same}, {"train": now, "test": same}, images
    )
    assert differences == ["train data: class dog is missing; class fox is new"], "without a listing, what is known"
    assert fingerprints._named(listed["train"], images["train"]) == ["a/2.jpg is missing", "a/3.jpg is new"]
    turned = fingerprints.data_differences(
        path, {"train": was, "test": same}, {"train": {**was, "classes": ["dog", "cat"]}, "test": same}, images
    )
    assert turned == ["train data: the classes have another order"]


def test_other_code_is_refused_unless_allowed(whole, data, tmp_path, monkeypatch):
    unfinished(data, tmp_path / "run", 1, middle(whole, 1))
    real = fingerprints.of_code

    def edited(*given):
        found = real(*given)
        return {**found, "ciod": "9.9", "files": {**found["files"], "training/loop.py": "other"},
                "packages": {**found["packages"], "torch": "1.0"}}  # fmt: skip

    with monkeypatch.context() as m:
        m.setattr(fingerprints, "of_code", edited)
        with pytest.raises(CiodError, match=r"other code \(ciod was .*, is 9\.9; torch was .*, is 1\.0; "
                                            r"training/loop\.py changed\).*allow=code"):  # fmt: skip
            run(data, tmp_path / "run")
        run(data, tmp_path / "run", "allow=code")
    assert any("Resumed with different code" in w for w in results_of(tmp_path / "run")["warnings"])


def test_the_code_of_a_method_of_ones_own_counts(tmp_path):
    (tmp_path / "mine.py").write_text("a = 1")
    before = fingerprints.of_code(f"{tmp_path / 'mine.py'}:Mine")
    (tmp_path / "mine.py").write_text("a = 2")
    after = fingerprints.of_code(f"{tmp_path / 'mine.py'}:Mine")
    assert fingerprints.code_differences(before, after) == ["mine.py changed"]
    assert not any(n.startswith("report/") or n == "cli.py" for n in before["files"])
    assert {"training/loop.py", "methods/finetune.py"} <= set(before["files"]) and Finetune


def test_a_model_with_other_classes_than_the_scenario(whole, copy, data):
    """Names join a run and its models, not positions."""
    unfinished(data, copy.parent / "cut", 1, middle(whole, 1))
    out = copy.parent / "cut"
    detector = __import__("ciod").load(out / "task-1" / "model.safetensors")
    detector.class_names = ("zebra",)
    model_file.save_model(out / "task-1" / "model.safetensors", detector)
    with pytest.raises(CiodError, match=r"has the classes zebra, but the scenario has .* must be equal"):
        run(data, out)


def test_random_numbers_of_a_rank_the_saved_run_did_not_have():
    saved = [checkpoint.random_state()]
    a = torch.rand(1)
    checkpoint.restore_random(saved, 0, seed=0, task=1, done=3)
    assert torch.equal(torch.rand(1), a)
    checkpoint.restore_random(saved, 1, seed=0, task=1, done=3)
    b = torch.rand(1)
    checkpoint.restore_random(saved, 1, seed=0, task=1, done=3)
    assert torch.equal(torch.rand(1), b) and not torch.equal(a, b)


def test_a_first_task_that_is_not_finished(tmp_path):
    from types import SimpleNamespace

    from ciod.runs import resume

    settings = SimpleNamespace(first=tmp_path, out=tmp_path / "out")
    with pytest.raises(CiodError, match=r"first: .* has not finished its first task\."):
        resume.take_over(settings, None)


def test_data_that_differ_in_what_no_list_shows(tmp_path):
    before = {s: {"classes": ["a"], "images": 1, "boxes": 1, "digest": "x"} for s in ("train", "test")}
    after = {**before, "test": {**before["test"], "digest": "y"}}
    same = {"train": [], "test": []}
    assert fingerprints.data_differences(tmp_path, before, after, same) == ["test data: other images or boxes"]
    added = {**before, "pool": {**before["test"], "images": 7}}
    assert fingerprints.data_differences(tmp_path, before, added, {**same, "pool": []}) == [
        "pool data: 7 images, previously none"
    ]
