"""Convert a weight file of any known format into Matterport's h5 layout, or into torchvision's (.pth).

    python tools/convert_weights.py mask_rcnn_coco.pth mask_rcnn_coco.h5
    python tools/convert_weights.py logs/coco20260131T0930/mask_rcnn_coco_0012.h5 model.pth

The source's format is recognised by what it holds; the suffix of the target says what is written. No model is built.
"""

from __future__ import annotations

import argparse
import os
import sys

from kmrcnn.importers import matterport_h5, torchvision
from kmrcnn.importers.catalogue import PRESET_OF_FORMAT
from kmrcnn.importers.maps import Converted
from kmrcnn.importers.torch_file import write_torch_file
from kmrcnn.importers.transforms import POOL_SIZE
from kmrcnn.importers.weight_file import read_weights


def convert(source: str | os.PathLike, target: str | os.PathLike, *, preset: str | None = None,
            pool_size: int = POOL_SIZE, flip_input: bool | None = None) -> Converted:
    """Write `source` as `target`, with every array that has a place there.

    Args:
        preset: the conventions noted in an h5 file; None takes the source's own, or its format's.
        pool_size, flip_input: see `kmrcnn.importers.weight_file.read_weights`.

    Raises:
        ValueError: the source's names are of no known format, or the target's layout has no place for a weight.
        OSError: the source cannot be read.
    """
    found = read_weights(source, pool_size=pool_size, flip_input=flip_input)
    if os.fspath(target).endswith((".pth", ".pt")):
        write_torch_file(target, torchvision.state_dict(found.arrays))
    else:
        preset = preset or found.preset or PRESET_OF_FORMAT.get(found.format)
        matterport_h5.save_arrays(found.arrays, target, preset=preset)
    return found


def report(found: Converted) -> str:
    """What a conversion did, with the names of what it left out."""
    lines = [f"{found.format}: {len(found.arrays)} weights converted, {len(found.ignored)} arrays without use, "
             f"{len(found.unexpected)} unknown"]
    return "\n".join([*lines, *(f"  without use  {name}" for name in found.ignored),
                      *(f"  unknown      {name}" for name in found.unexpected)])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 if the source holds arrays that nobody knows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="weight file of any known format")
    parser.add_argument("target", help="a path ending in .h5, or in .pth for torchvision's names and layouts")
    parser.add_argument("--preset", help="conventions the weights are for, if not those of the source's format")
    parser.add_argument("--pool-size", type=int, default=POOL_SIZE, help="side of the ROI features of the box head")
    parser.add_argument("--flip-input", action=argparse.BooleanOptionalAction, default=None,
                        help="turn the first convolution's channels round (by default as the format needs)")
    options = parser.parse_args(arguments)
    try:
        found = convert(options.source, options.target, preset=options.preset, pool_size=options.pool_size,
                        flip_input=options.flip_input)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(report(found))
    return 1 if found.unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
