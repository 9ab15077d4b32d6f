"""Fetching a data set from a server of our own: whole, broken off and resumed, damaged, malicious."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciod.core.errors import CiodError, ConfigError, DataError
from ciod.data import archives, download, formats


class Server:
    """Files by name; ``cut`` lists how many bytes the next answers send before the connection breaks."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.ranges: list[str | None] = []
        self.resumes = True
        handler = partial(_Handler, self)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=partial(self.http.serve_forever, 0.01), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args):
        self.mine = server
        super().__init__(*args)

    def do_GET(self) -> None:
        content = self.mine.files.get(self.path.rpartition("/")[2])
        asked = self.headers.get("Range")
        self.mine.ranges.append(asked)
        if content is None:
            self.send_error(404)
            return
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.mine.resumes else 0
        if first and first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        stop = first + self.mine.cut.pop(0) if self.mine.cut else len(content)
        self.wfile.write(content[first:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "WAIT", 0.0)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def tar_of(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return stream.getvalue()


def zip_of(files: dict[str, bytes], *more: zipfile.ZipInfo) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
        for info in more:
            made.writestr(info, b"/etc/passwd")
    return stream.getvalue()


def voc_split(split: str, stems: list[str], name: str) -> dict[str, bytes]:
    root, files = "VOCdevkit/VOC2007", {}
    for i, stem in enumerate(stems):
        files[f"{root}/JPEGImages/{stem}.jpg"] = jpeg(i)
        files[f"{root}/Annotations/{stem}.xml"] = (
            f"<annotation><filename>{stem}.jpg</filename><size><width>48</width><height>32</height></size><object>"
            f"<name>{name}</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"
            "</annotation>"
        ).encode()
    files[f"{root}/ImageSets/Main/{split}.txt"] = "\n".join(stems).encode()
    return files


def coco_json(names: list[str]) -> bytes:
    images = [{"id": i + 1, "file_name": n, "width": 48, "height": 32} for i, n in enumerate(names)]
    boxes = [
        {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(len(names))
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    return json.dumps(content).encode()


def publish(monkeypatch, server: Server, name: str, contents: list[bytes], **changes) -> None:
    """The archives of ``name`` are now these, with their true sums."""
    source = download.SOURCES[name]
    archives = []
    for archive, content in zip(source.archives, contents, strict=True):
        server.files[archive.name] = content
        given = {"md5": hashlib.md5(content).hexdigest(), "size": len(content) if archive.size else None, **changes}
        archives.append(replace(archive, **given))
    monkeypatch.setitem(download.SOURCES, name, replace(source, archives=tuple(archives)))


def publish_voc(monkeypatch, server: Server, **changes) -> None:
    parts = (("trainval", ["000001", "000002"], "dog"), ("test", ["000003"], "cat"))
    publish(monkeypatch, server, "voc", [tar_of(voc_split(*p)) for p in parts], **changes)


def get(server: Server, name: str, out: Path, **given) -> list[str]:
    printed: list[str] = []
    download.fetch(name, out, mirror=server.url, say=printed.append, **given)
    return printed


def test_voc_is_readable_without_conversion(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    printed = get(server, "voc", tmp_path / "voc")
    assert formats.recognise(tmp_path / "voc").kind == "voc" and formats.splits(tmp_path / "voc") == [
        "trainval",
        "test",
    ]
    train, test = formats.read(tmp_path / "voc", "trainval"), formats.read(tmp_path / "voc", "test")
    assert (len(train), len(test), train.class_names) == (2, 1, ("cat", "dog"))
    assert sorted(p.name for p in (tmp_path / "voc").iterdir()) == ["VOCdevkit", download.RECORD]
    assert any("VOCtest_06-Nov-2007.tar: unpacking 3 files" in line for line in printed)
    assert any(" of " in line and "/s" in line for line in printed)


def test_coco_is_readable_and_is_fetched_once(server, monkeypatch, tmp_path):
    files = {"val2017/1.jpg": jpeg(1)}, {"train2017/1.jpg": jpeg(1), "train2017/2.jpg": jpeg(2)}
    labels = {"annotations/instances_val2017.json": coco_json(["1.jpg"]), "annotations/captions_val2017.json": b"{}",
              "annotations/instances_train2017.json": coco_json(["1.jpg", "2.jpg"])}  # fmt: skip
    publish(monkeypatch, server, "coco", [zip_of(labels), *map(zip_of, files)])
    get(server, "coco", tmp_path, keep=True)
    assert [len(formats.read(tmp_path, split)) for split in ("train", "val")] == [2, 1]
    assert (tmp_path / "train2017.zip").is_file()
    asked = len(server.ranges)
    assert get(server, "coco", tmp_path)[-1] == "train2017.zip: already unpacked" and len(server.ranges) == asked


def test_an_interrupted_download_resumes(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    server.cut = [1000, 2000]
    printed = get(server, "voc", tmp_path)
    assert server.ranges[:3] == [None, "bytes=1000-", "bytes=3000-"]
    assert "VOCtrainval_06-Nov-2007.tar: the connection ended early at 1 kB; resuming" in printed
    assert len(formats.read(tmp_path, "trainval")) == 2


def test_another_call_resumes_the_download(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    whole = server.files["VOCtrainval_06-Nov-2007.tar"]
    (tmp_path / "VOCtrainval_06-Nov-2007.tar.part").write_bytes(whole[:777])
    get(server, "voc", tmp_path)
    assert server.ranges[0] == "bytes=777-" and len(formats.read(tmp_path, "trainval")) == 2


@pytest.mark.parametrize("left", [500, 10**6], ids=["a server that cannot resume", "a part longer than the file"])
def test_an_unusable_part_is_downloaded_again(server, monkeypatch, tmp_path, left):
    publish_voc(monkeypatch, server)
    server.resumes = left != 500
    (tmp_path / "VOCtrainval_06-Nov-2007.tar.part").write_bytes(b"x" * left)
    get(server, "voc", tmp_path)
    assert len(formats.read(tmp_path, "trainval")) == 2


def test_a_file_with_a_wrong_checksum_is_set_aside_and_downloaded_again(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    name = "VOCtrainval_06-Nov-2007.tar"
    right = server.files[name]
    server.files[name] = right[:600] + b"?" + right[601:]
    with pytest.raises(DataError, match=r"not [0-9a-f]{32}: it was damaged .*now VOCtrainval.*\.wrong"):
        get(server, "voc", tmp_path)
    assert not (tmp_path / "VOCdevkit").exists() and not (tmp_path / download.RECORD).exists()
    server.files[name] = right
    get(server, "voc", tmp_path)
    assert len(formats.read(tmp_path, "trainval")) == 2


def test_another_size_is_refused_before_it_is_fetched(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server, size=17)
    with pytest.raises(DataError, match=r"has \d+ bytes, but VOCtrainval_06-Nov-2007.tar has 17: it is another file"):
        get(server, "voc", tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_network_says_what_to_do(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    monkeypatch.setattr(download, "PATIENCE", 2)
    with pytest.raises(DataError, match=r"no connection: .* or download it elsewhere and put it into"):
        download.fetch("voc", tmp_path, mirror="http://127.0.0.1:1", say=lambda _: None)
    server.files.clear()
    with pytest.raises(DataError, match="the server answers 404"):
        get(server, "voc", tmp_path)


def test_archives_put_there_by_hand_are_used(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    for name, content in server.files.items():
        (tmp_path / name).write_bytes(content)
    server.files.clear()
    get(server, "voc", tmp_path)
    assert not server.ranges and len(formats.read(tmp_path, "test")) == 1


def test_a_full_disk_at_the_start(server, monkeypatch, tmp_path):
    publish_voc(monkeypatch, server)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 100}))
    with pytest.raises(DataError, match=r"needs \d+ kB more in .*, but only 100 B are free"):
        get(server, "voc", tmp_path)


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def symlink(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


GOOD = {"box/a.txt": b"a"}
BAD = {
    "tar: up": (tar_of({**GOOD, "box/../../evil": b"x"}), "leads out of the folder"),
    "tar: absolute": (tar_of({**GOOD, "/tmp/evil": b"x"}), "leads out of the folder"),
    "tar: symbolic link": (tar_of(GOOD, special("box/l", tarfile.SYMTYPE, "/etc")), "it has a link or device, 'box/l'"),
    "tar: hard link": (tar_of(GOOD, special("box/l", tarfile.LNKTYPE, "box/a.txt")), "it has a link or device"),
    "tar: device": (tar_of(GOOD, special("box/d", tarfile.CHRTYPE)), "it has a link or device"),
    "tar: pipe": (tar_of(GOOD, special("box/p", tarfile.FIFOTYPE)), "it has a link or device"),
    "tar: elsewhere": (tar_of({**GOOD, "bash.rc": b"x"}), "'bash.rc' is not in box/"),
    "tar: a file for the folder": (tar_of({"box": b"x"}), "'box' is not in box/"),
    "zip: up": (zip_of({**GOOD, "box/../../evil": b"x"}), "leads out of the folder"),
    "zip: drive": (zip_of({**GOOD, "C:/evil": b"x"}), "leads out of the folder"),
    "zip: backslash": (zip_of({**GOOD, "box\\..\\evil": b"x"}), "leads out of the folder"),
    "zip: link": (zip_of(GOOD, symlink("box/l")), "it has a link or device, 'box/l'"),
    "zip: bomb": (zip_of({"box/zeros": bytes(30_000_000)}), "would unpack to more than"),
    "zip: empty": (zip_of({}), "has no files"),
    "no archive": (b"<html>sorry</html>" * 100, "is not a readable zip or tar"),
    "a truncated tar": (tar_of({"box/a": b"a" * 50_000})[:20_000], "is not a readable zip or tar"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_malicious_archive_writes_nothing(kind, tmp_path):
    content, match = BAD[kind]
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=match):
        archives.unpack(tmp_path / "archive", tmp_path / "out", "box", say=lambda _: None)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["archive", "out"]


def test_a_wrong_size_is_found(tmp_path):
    """A zip that declares 10 bytes and holds a million."""
    content = bytearray(zip_of({"box/zeros": bytes(1_000_000)}))
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = struct.pack("<I", 10)
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable zip or tar"):
        archives.unpack(tmp_path / "archive", tmp_path, "box", say=lambda _: None)
    assert not (tmp_path / "box").exists()


def test_names_and_mirrors(tmp_path):
    with pytest.raises(ConfigError, match="there is no 'cocoo' to fetch; did you mean 'coco'"):
        download.fetch("cocoo", tmp_path)
    with pytest.raises(ConfigError, match="'file:///data' is not a web address"):
        download.fetch("voc", tmp_path, mirror="file:///data")


def test_the_sums_of_voc_are_torchvisions():
    from torchvision.datasets import voc

    known = {v["url"]: v["md5"] for v in voc.DATASET_YEAR_DICT.values()}
    assert [known[a.url] for a in download.SOURCES["voc"].archives] == [a.md5 for a in download.SOURCES["voc"].archives]


def test_the_command(server, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from ciod.cli import app

    publish_voc(monkeypatch, server)
    only = CliRunner().invoke(app, ["data", "voc"])
    assert only.exit_code == 0 and "VOCdevkit/VOC2007/Annotations/*.xml" in only.output
    assert "ciod data voc out=DIR" in only.output and not server.ranges
    out = tmp_path / "my data"
    done = CliRunner().invoke(app, ["data", "voc", f"out={out}", f"mirror={server.url}/files/"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].strip() == f"ciod list data '{out}'" and f"export VOC='{out}'" in done.output
    listed = CliRunner().invoke(app, ["list", "data", str(out)])
    assert listed.exit_code == 0 and "dog" in listed.output


def test_a_lost_connection_keeps_the_downloaded_bytes(server, monkeypatch, tmp_path):
    content = bytes(4 << 20)
    server.files["a.zip"] = content
    server.cut = [3 << 20] + [0] * 20
    archive = replace(download.find("voc").archives[0], url=f"{server.url}/a.zip", size=None)
    with pytest.raises(
        DataError, match=r"could not be fetched from .*; 3 MB of it are in .*a\.zip\.part\. Run the same"
    ):
        download._get(archive, f"{server.url}/a.zip", tmp_path, lambda _: None)


def test_a_connection_that_breaks(server, monkeypatch, tmp_path):
    import urllib.request

    def breaks(*_, **__):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", breaks)
    with pytest.raises(DataError, match=r"\(the connection broke: reset by peer\)\. Run the same command"):
        download._get(download.find("voc").archives[0], server.url, tmp_path, lambda _: None)


def test_more_than_was_announced(tmp_path):
    with pytest.raises(DataError, match=r"a\.zip: the server sends more than the 10 bytes it announced"):
        download._copy(io.BytesIO(bytes(11)), tmp_path / "a.zip.part", 0, 10, "a.zip", lambda _: None)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CiodError, match=r"cannot be written: "):
        download.fetch("voc", tmp_path / "file" / "voc", say=lambda _: None)
