"""What the doctor can find: every check by name, and one finding of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

DEFECT, NOTE = "defect", "note"

# Check -> (severity, meaning). A defect loses or falsifies ground truth, or a score; a note is a fact worth knowing:
# healthy datasets such as COCO have some.
CHECKS: dict[str, tuple[str, str]] = {
    # --- entries of images
    "image_entry": (DEFECT, "image entry without a usable id, file_name, width or height"),
    "duplicate_image_id": (DEFECT, "image id used by several image entries"),
    "repeated_file": (DEFECT, "file named by several image entries of a split"),
    "empty_image": (NOTE, "image without annotations"),
    # --- files of images
    "missing_file": (DEFECT, "image file not found"),
    "unreadable_file": (DEFECT, "image that cannot be decoded: broken, cut off, or no image"),
    "size_mismatch": (DEFECT, "image of another size than annotated"),
    "exif_rotation": (DEFECT, "EXIF turns the image, and the annotated size is that of the image not turned"),
    "exif_turned": (NOTE, "image that EXIF turns or mirrors; kmrcnn follows it, some systems do not"),
    "grey_image": (NOTE, "image file of one channel, read as RGB"),
    # --- copies
    "leak": (DEFECT, "the same image in two splits"),
    "similar_leak": (DEFECT, "nearly the same image (re-encoded, resized, mirrored) in two splits"),
    "duplicate_image": (DEFECT, "the same image twice in a split"),
    "similar_images": (NOTE, "nearly the same image twice in a split"),
    # --- categories
    "category_entry": (DEFECT, "category without a usable id or name"),
    "duplicate_category": (DEFECT, "category id or name used by several categories"),
    "category_disagreement": (DEFECT, "category id that stands for different names in two splits"),
    "unused_class": (DEFECT, "class without annotations in any split"),
    "untrained_class": (DEFECT, "class that other splits show and the first one, for training, does not"),
    "class_not_in_split": (NOTE, "class without annotations in a split other than the first"),
    "category_gaps": (NOTE, "category ids that are not 1, 2, ..., N; kmrcnn renumbers them"),
    "category_zero": (NOTE, "category id 0, which other systems take for the background; kmrcnn renumbers it"),
    # --- entries of annotations
    "annotation_entry": (DEFECT, "annotation without an id"),
    "duplicate_annotation_id": (DEFECT, "annotation id used by several annotations"),
    "unknown_image": (DEFECT, "annotation of an image that the file does not list"),
    "unknown_category": (DEFECT, "annotation of a category that the file does not list"),
    "duplicate_annotation": (DEFECT, "object annotated twice: same image, class and box, or same mask"),
    "overlapping_annotation": (NOTE, "two objects of one class whose boxes overlap by an IoU of 0.9 or more"),
    # --- boxes
    "bad_box": (DEFECT, "box that is not four finite numbers"),
    "degenerate_box": (DEFECT, "box without width or height"),
    "box_outside": (DEFECT, "box that reaches more than 1 pixel outside the image, or lies outside"),
    "area_mismatch": (DEFECT, "area that differs by more than a fifth from the outline's and from the mask's"),
    # --- outlines and masks
    "no_outline": (DEFECT, "annotation without a segmentation"),
    "bad_polygon": (DEFECT, "polygon whose coordinates are odd in number, or not finite numbers"),
    "few_points": (DEFECT, "polygon of fewer than three points"),
    "flat_polygon": (DEFECT, "polygon without area"),
    "polygon_outside": (DEFECT, "polygon that reaches more than 1 pixel outside the image, or lies outside"),
    "bad_rle": (DEFECT, "run lengths that cannot be decoded, or of another size than the image"),
    "crowd_polygon": (DEFECT, "crowd region with polygons, where COCO has run lengths"),
    "empty_mask": (DEFECT, "mask without a pixel"),
    "box_mask": (DEFECT, "box that disagrees with the outline (IoU below 0.7 and a side off by more than 3 pixels)"),
    # --- what a Dataset gives
    "left_out": (DEFECT, "entry that the dataset's reader left out"),
    "bad_masks": (DEFECT, "load_mask fails, or gives masks of another shape than the image and the class ids"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        check: a key of CHECKS.
        split: name of the split.
        image, annotation: the dataset's own ids, where the finding is about one.
        text: what was found, and what was expected.
        other: (split, image id) of the other image of a pair.
    """

    check: str
    split: str
    image: Any = None
    annotation: Any = None
    text: str = ""
    other: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"no check {self.check!r}")

    @property
    def is_defect(self) -> bool:
        return CHECKS[self.check][0] == DEFECT

    def as_dict(self) -> dict[str, Any]:
        """Without what is None; for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def where(self) -> str:
        """Which image and annotation, in words."""
        names = [self.split] + [f"{kind} {value}" for kind, value in (("image", self.image),
                                                                      ("annotation", self.annotation))
                                if value is not None]
        return ", ".join(names)


def kept(findings: Iterable[Finding], ignored: Collection[str]) -> list[Finding]:
    """The findings whose checks are not ignored. ValueError for a check that does not exist."""
    unknown = sorted(set(ignored) - set(CHECKS))
    if unknown:
        raise ValueError(f"no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    return [finding for finding in findings if finding.check not in ignored]


def by_check(findings: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """(check, its findings), defects before notes, each in the order of CHECKS."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.check, []).append(finding)
    for check in sorted(groups, key=lambda name: (CHECKS[name][0] != DEFECT, list(CHECKS).index(name))):
        yield check, groups[check]
