"""A model on the Hub and back, against a small server of its interface."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import ciod
from ciod import detectors, listing
from ciod.cli import app
from ciod.core.errors import CiodError
from ciod.detectors.files import hub
from ciod.detectors.files.weights import file_of, save_model
from ciod.exporters import hub as exporter
from tests.report import fake

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Repositories in memory: name → file → bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refuses = False


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def answer(self, code: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.strip("/").split("/")
        if self.server.refuses:
            self.answer(403, {"error": "not yours"})
        elif self.path == "/api/repos/create":
            name = json.loads(sent)
            repo = "/".join(filter(None, (name.get("organization"), name["name"])))
            self.server.repos.setdefault(repo if "/" in repo else f"me/{repo}", {})
            self.answer(200, {"url": f"http://{self.headers['Host']}/{repo}"})
        elif "preupload" in parts:
            paths = [f["path"] for f in json.loads(sent)["files"]]
            self.answer(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif "commit" in parts:
            name = "/".join(parts[2:4])
            repo = self.server.repos[name]
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    repo[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "success": True})
        else:
            self.answer(200, {"errors": [], "warnings": []})  # /api/validate-yaml

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            repo = self.server.repos.get("/".join(parts[2:4]))
            found = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": f} for f in repo or ()]}
            missing = {"X-Error-Code": "RepoNotFound"}
            return self.answer(200, found) if repo is not None else self.answer(404, {"error": "no"}, missing)
        repo, file = self.server.repos.get("/".join(parts[:2])), "/".join(parts[4:])
        if repo is None:
            return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        if parts[3] not in ("main", COMMIT):
            return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if file not in repo:
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha1(repo[file]).hexdigest()}"'
        return self.answer(200, repo[file], {"ETag": etag, "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    from huggingface_hub import constants

    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder of two tasks, with a model of the second."""
    folder = fake.write_run(tmp_path / "run", fake.results((2, 1)))
    names = fake.results((2, 1))["scenario"]["classes"]
    torch.manual_seed(0)
    detector = detectors.build(names, name="yolox-pico", size=64)
    more = {"classes": names[2:], "data": "d/cards", "images": 7}
    detector.lineage = [{"from": "yolox_nano.pth", "classes": names[:2]}, more]
    (folder / "task-2").mkdir()
    save_model(folder / "task-2" / "model.safetensors", detector)
    return folder / "task-2" / "model.safetensors"


def test_a_pushed_model_predicts_the_same_boxes(server, run):
    done = CliRunner().invoke(app, ["push", str(run), "me/cards", "license=apache-2.0"])
    assert done.exit_code == 0, done.output
    assert f"http://127.0.0.1:{server.server_port}/me/cards" in done.output
    assert set(server.repos["me/cards"]) >= {"README.md", "config.json", "model.safetensors"}
    config = json.loads(server.repos["me/cards"]["config.json"])
    assert config["class_names"] == list(ciod.load(run).class_names) and config["detector"]["name"] == "yolox-pico"

    picture = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    ours, theirs = (ciod.load(m).predict(picture, score_threshold=0.0) for m in (run, "hf:me/cards"))
    assert len(ours) and np.array_equal(ours.boxes, theirs.boxes) and np.array_equal(ours.scores, theirs.scores)
    assert file_of(f"hf:me/cards@{COMMIT}").read_bytes() == run.read_bytes()
    shown = CliRunner().invoke(app, ["eval", "hf:me/cards", "data=/none"]).output
    assert "Traceback" not in shown


def test_the_card_has_classes_lineage_numbers_and_licence(server, run):
    ciod.push(run, "me/cards", license="apache-2.0")
    assert listing.look_up("hf:me/cards", [], {}).lines[0].startswith("hf:me/cards: name=yolox-pico, ")
    text = server.repos["me/cards"]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    data, names = yaml.safe_load(head), list(ciod.load(run).class_names)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("apache-2.0", "ciod", "object-detection")
    (found,) = data["model-index"][0]["results"]
    metrics = {m["type"]: m["value"] for m in found["metrics"]}
    results = fake.results((2, 1))
    assert metrics["all_AP50"] == pytest.approx(results["tasks"][1]["all"]["AP50"], abs=1e-5)
    assert ", ".join(names) in body and f"2. {names[2]} (from cards, 7 images)" in body
    assert "| old class | AP50 before (%) | AP50 after (%) |" in body and "| after task |" in body
    assert "The licence of the weights: apache-2.0; they started from yolox_nano.pth." in body


def test_a_card_without_a_run_and_without_a_licence(tmp_path):
    detector = detectors.build(("cat",), name="yolox-pico", size=64)
    text = exporter.card(detector, "me/cat", {}, None)
    assert "license:" not in text and "model-index" not in text and "## Results" not in text
    assert "The licence of the weights was not stated by who uploaded them." in text and "Not recorded." in text


def refused(call) -> str:
    with pytest.raises(CiodError) as caught:
        call()
    return str(caught.value)


def test_what_the_hub_does_not_have(server, run, tmp_path, monkeypatch):
    assert "There is no model hf:me/none on the Hub" in refused(lambda: ciod.load("hf:me/none"))
    server.repos["me/other"] = {"pytorch_model.bin": b""}
    message = refused(lambda: ciod.load("hf:me/other"))
    assert message == "hf:me/other is not a model of ciod: it has neither model.safetensors nor model.onnx."
    ciod.push(run, "me/cards")
    assert "There is no model hf:me/cards@v9" in refused(lambda: ciod.load("hf:me/cards@v9"))
    assert "hf:a--b/c is not the name of a model on the Hub" in refused(lambda: ciod.load("hf:a--b/c"))
    assert "no folder a/b/c. A model on the Hub is hf:user/model." in refused(lambda: ciod.load("hf:a/b/c"))
    assert "push: a/b/c is not the name of a repository" in refused(lambda: ciod.push(run, "a/b/c"))
    (tmp_path / "m.pth").write_bytes(b"")
    assert "push takes a model of ciod" in refused(lambda: ciod.push(tmp_path / "m.pth", "me/cards"))
    server.refuses = True
    for repo in ("me/cards", "me/new"):
        assert f"push: {repo} cannot be written: 403" in refused(lambda repo=repo: ciod.push(run, repo))


def test_a_server_that_does_not_answer(monkeypatch, tmp_path, run):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries again after longer and longer pauses
    message = refused(lambda: ciod.load("hf:me/cards"))
    assert "hf:me/cards is not in the cache, and the Hub does not answer" in message or "cannot be fetched" in message
    assert "push: me/cards cannot be written: " in refused(lambda: ciod.push(run, "me/cards"))


def test_an_error_of_this_program_is_none_of_the_server(run, monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise AssertionError("a mistake")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_exists", fails)
    with pytest.raises(AssertionError, match="a mistake"):
        ciod.push(run, "me/cards")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused(hub.package) == "huggingface_hub is not installed: pip install 'ciod[hub]'"


def test_a_model_that_cannot_be_fetched(monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise OSError("no room on the disk")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    assert (
        refused(lambda: ciod.load("hf:me/cards")) == "hf:me/cards cannot be fetched from the Hub: no room on the disk"
    )


def test_a_card_of_little_knowledge_and_many_classes():
    detector = detectors.build(("cat",), name="yolox-pico", size=64)
    detector.lineage = [{"when": "today"}]
    text = exporter.card(detector, "me/cards", fake.results((30, 2), keep=0.5), "mit")
    assert "no new class (from an unknown place)" in text and "10 more classes lost less." in text
