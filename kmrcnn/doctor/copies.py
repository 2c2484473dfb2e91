"""The same picture twice: byte for byte, and by what it looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kmrcnn.doctor.files import Look
from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.split import Image, Split

# On 165 images of COCO and 250 of nuclei: different images stay below 0.87; copies as JPEG of quality 30, of half the
# size, in grey or a third brighter keep 0.96 and more.
LEAST_CORRELATION = 0.95
# Such copies differ in up to 8 of the hash's 64 bits. Pairs further apart are not compared in detail.
MOST_BITS = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, which makes images grey
_FLAT = 2.0  # grey levels of standard deviation; flat images all look alike


def find_copies(splits: Sequence[Split], looks: Sequence[Sequence[Look | None]]) -> list[Finding]:
    """Compare all images of all splits; each image is reported once, with the first one that it is a copy of.

    looks: for each split, a look at each of its images.
    """
    places = [(split, image, look) for split, own in zip(splits, looks, strict=True)
              for image, look in zip(split.images, own, strict=True) if look is not None]
    findings: list[Finding] = []
    fresh: list[int] = []
    first: dict[bytes, int] = {}
    for place, (split, image, look) in enumerate(places):
        origin = first.setdefault(look.digest, place)
        if origin == place:
            fresh.append(place)
            continue
        other_split, other, _ = places[origin]
        if other.path is None or other.path != image.path or other_split is not split:  # else it is a repeated file
            findings.append(_pair(split, image, other_split, other, "leak", "duplicate_image", "same image as"))
    for one, other, how in similar([places[place][2].small for place in fresh]):
        (first_split, first_image, _), (split, image, _) = places[fresh[one]], places[fresh[other]]
        findings.append(_pair(split, image, first_split, first_image, "similar_leak", "similar_images", how))
    return findings


def _pair(split: Split, image: Image, other_split: Split, other: Image, leak: str, inside: str, how: str) -> Finding:
    text = f"{how} {other_split.name}, image {other.id}" + (f": {image.path} and {other.path}" if image.path else "")
    return Finding(leak if split is not other_split else inside, split.name, image.id, text=text,
                   other=(other_split.name, other.id))


def similar(small: Sequence[np.ndarray]) -> Iterator[tuple[int, int, str]]:
    """(place of the first, place of the later one, how they are alike) of looks uint8 [32, 32, 3].

    All pairs are compared by their hashes: 100,000 images take some 20 seconds.
    """
    if not small:
        return
    grey = np.stack([image @ _LUMA for image in small])
    telling = np.flatnonzero(grey.std(axis=(1, 2)) > _FLAT)
    hashes, mirrored = image_hashes(grey), image_hashes(grey[:, :, ::-1])
    matched = np.zeros(len(small), bool)
    ordered = hashes[telling]
    for rank, one in enumerate(telling):
        later = telling[rank + 1 :]
        for own, picture, how in ((hashes[one], grey[one], "nearly the same as"),
                                  (mirrored[one], grey[one][:, ::-1], "mirror image of")):
            near = later[np.bitwise_count(ordered[rank + 1 :] ^ own) <= MOST_BITS]
            for other in near[~matched[near]]:
                alike = correlation(picture, grey[other])
                if alike >= LEAST_CORRELATION:
                    matched[other] = True
                    yield int(one), int(other), f"{how} (correlation {alike:.3f})"


def image_hashes(grey: np.ndarray) -> np.ndarray:
    """Perceptual hashes (N,) uint64 of grey images [N, 32, 32]: which of 8 x 8 blocks are brighter than the mean."""
    blocks = grey.reshape(len(grey), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(grey), 64)
    bits = blocks > blocks.mean(axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two images' grey levels, -1 to 1; brightness and contrast do not count."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
