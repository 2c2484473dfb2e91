"""Downloads from a local server, and safe unpacking."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile

import pytest

import kmrcnn.data.download as module
from kmrcnn.data.coco import CocoDataset
from kmrcnn.data.coco_download import auto_download
from kmrcnn.data.download import DownloadError, download, unzip
from tests.local_server import running

pytestmark = pytest.mark.once

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with running() as server:
        server.files["x.bin"] = CONTENT
        yield server


def get(server, path, name="x.bin", **arguments):
    return download(server.url(name), path, progress=False, **arguments)


def test_plain_and_verified(server, tmp_path):
    path = tmp_path / "deep" / "x.bin"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert get(server, path, sha256=digest, size=len(CONTENT)) == path
    assert path.read_bytes() == CONTENT and [entry.name for entry in path.parent.iterdir()] == ["x.bin"]
    get(server, path, sha256=digest.upper())
    get(server, path)
    assert len(server.requests) == 1  # there already


def test_a_broken_transfer_is_continued(server, tmp_path):
    server.breaks = 2
    get(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=128000-", "bytes=192000-"]


def test_a_later_call_continues(server, tmp_path):
    server.breaks = 1
    with pytest.raises(DownloadError, match="broke off after 128000 of 256000 bytes"):
        get(server, tmp_path / "x.bin", retries=0)
    assert not (tmp_path / "x.bin").exists() and (tmp_path / "x.bin.part").exists()
    get(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests[-1][1] == "bytes=128000-"


def test_a_changed_file_is_fetched_anew(server, tmp_path):
    server.breaks = 1
    with pytest.raises(DownloadError):
        get(server, tmp_path / "x.bin", retries=0)
    server.files["x.bin"], server.etag = CONTENT[::-1], '"v2"'
    get(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges, server.breaks = False, 1
    get(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_whole_part_needs_no_more(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    get(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    (tmp_path / "y.bin.part").write_bytes(CONTENT + b"too long")
    get(server, tmp_path / "y.bin")
    assert (tmp_path / "y.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_leading_digits_of_a_checksum_are_enough(server, tmp_path, kind):
    digest = hashlib.new(kind, CONTENT).hexdigest()
    get(server, tmp_path / "x.bin", **{kind: digest[:6].upper()})
    get(server, tmp_path / "x.bin", **{kind: digest})
    assert len(server.requests) == 1
    with pytest.raises(DownloadError, match=f"expected {kind} {'0' * 6}, found {digest}"):
        get(server, tmp_path / "y.bin", **{kind: "000000"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bin"]


def test_an_interrupted_call_is_continued(server, tmp_path, monkeypatch):
    class Interrupted(module.tqdm):
        def update(self, count=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_BLOCK", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(module, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists() and (tmp_path / "x.bin.part").stat().st_size == 1000
    get(server, tmp_path / "x.bin", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert server.requests[-1][1] == "bytes=1000-"


def test_wrong_content_never_gets_its_name(server, tmp_path):
    for wanted, message in (
        ({"sha256": "0" * 64}, "expected sha256 0000"),
        ({"md5": "0" * 32}, "expected md5 0000"),
        ({"size": 5}, "expected 5 bytes"),
    ):
        with pytest.raises(DownloadError, match=message):
            get(server, tmp_path / "x.bin", **wanted)
        assert not (tmp_path / "x.bin").exists() and not (tmp_path / "x.bin.part").exists()


def test_refusals(server, tmp_path):
    with pytest.raises(DownloadError, match="answered 404"):
        get(server, tmp_path / "y", name="missing.bin")
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(DownloadError, match="answered 503"):
        get(server, tmp_path / "x.bin")
    assert len(server.requests) == 5
    with pytest.raises(DownloadError, match="http or https"):
        download("file:///etc/passwd", tmp_path / "z")
    with pytest.raises(DownloadError, match="127.0.0.1:9"):
        download("http://127.0.0.1:9/x", tmp_path / "z", retries=1, progress=False)


def zipped(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in members:
            bundle.writestr(name, content)
    return buffer.getvalue()


def test_unzip(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(("one.txt", "1"), ("folder/two.txt", "2")))
    unzip(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "folder" / "two.txt").read_text() == "2"


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt"]
)
def test_names_that_lead_out_are_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped(("good.txt", "1"), (name, "2")))
    with pytest.raises(DownloadError, match="leads out of the target folder"):
        unzip(tmp_path / "a.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "evil.txt").exists()


def test_links_and_damage_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    (tmp_path / "a.zip").write_bytes(zipped((link, "/etc/passwd")))
    with pytest.raises(DownloadError, match="is a link"):
        unzip(tmp_path / "a.zip", tmp_path / "out")
    content = bytearray(zipped(("one.txt", "x" * 100)))
    content[60] ^= 255
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(DownloadError, match="b.zip is damaged"):
        unzip(tmp_path / "b.zip", tmp_path / "out")


def test_coco_is_fetched_and_loads(server, tmp_path, coco_file, monkeypatch):
    source = coco_file()
    server.files["zips/val2017.zip"] = zipped(("val2017/1.png", (source.parent / "1.png").read_bytes()))
    server.files["annotations/annotations_trainval2017.zip"] = zipped(
        ("annotations/instances_val2017.json", source.read_text())
    )
    server.breaks = 2
    monkeypatch.setattr(
        "kmrcnn.data.coco.auto_download",
        lambda *arguments: auto_download(*arguments, base_url=server.url("")[:-1]),
    )
    for _ in range(2):
        dataset = CocoDataset()
        dataset.load_coco(tmp_path / "coco", "val", "2017", auto_download=True)
        dataset.prepare()
        assert dataset.load_image(0).shape == (30, 40, 3)
    assert len(server.requests) == 4 and not list((tmp_path / "coco").glob("*.zip*"))


def test_coco_minival_takes_val_images(server, tmp_path, coco_file, monkeypatch):
    source = coco_file()
    server.files["zips/val2014.zip"] = zipped(("val2014/1.png", (source.parent / "1.png").read_bytes()))
    server.files["minival.zip"] = zipped(("instances_minival2014.json", source.read_text()))
    monkeypatch.setitem(auto_download.__globals__["MINIVAL_URLS"], "minival", server.url("minival.zip"))
    auto_download(tmp_path / "coco", "val", "minival", "2014", server.url("")[:-1])
    dataset = CocoDataset()
    dataset.load_coco(tmp_path / "coco", "minival")
    dataset.prepare()
    assert dataset.load_image(0).shape == (30, 40, 3)
