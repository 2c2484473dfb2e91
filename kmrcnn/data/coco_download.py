"""Fetching COCO from its official addresses."""

from __future__ import annotations

import os
from pathlib import Path

from kmrcnn.data.download import download, unzip

COCO_URL = "http://images.cocodataset.org"
# The 5 k / 35 k split of val2014 that Detectron and Matterport used; not on COCO's own server.
MINIVAL_URLS = {
    "minival": "https://dl.dropboxusercontent.com/s/o43o90bna78omob/instances_minival2014.json.zip?dl=1",
    "valminusminival": (
        "https://dl.dropboxusercontent.com/s/s3tw5zcg7395368/instances_valminusminival2014.json.zip?dl=1"
    ),
}


def auto_download(
    data_dir: str | os.PathLike, image_set: str, subset: str, year: str, base_url: str = COCO_URL
) -> None:
    """Fetch what is missing of `{image_set}{year}/` and `annotations/instances_{subset}{year}.json`.

    Transfers resume where they broke off. The sizes are checked on arrival and the CRC of every file on
    unpacking; archives are removed once unpacked.
    """
    data_dir = Path(data_dir)
    images = data_dir / f"{image_set}{year}"
    # An archive that is still there was not unpacked to its end.
    if not images.is_dir() or (data_dir / f"{images.name}.zip").exists():
        _fetch(f"{base_url}/zips/{images.name}.zip", data_dir / f"{images.name}.zip", data_dir)
    annotation = data_dir / "annotations" / f"instances_{subset}{year}.json"
    if annotation.exists():
        return
    if subset in MINIVAL_URLS:
        _fetch(MINIVAL_URLS[subset], data_dir / f"{annotation.name}.zip", annotation.parent)
    else:
        name = f"annotations_trainval{year}.zip"
        _fetch(f"{base_url}/annotations/{name}", data_dir / name, data_dir)


def _fetch(url: str, archive: Path, target: Path) -> None:
    download(url, archive)
    unzip(archive, target)
    archive.unlink()
