"""Readers and writers of weight files, one format a file.

`weight_file` reads any of them, `load` puts one into a model, `catalogue` knows the published ones. A format of torch
or Caffe2 is a table (`maps.Format`): the name of an array in the file, the layer here, and the kind of layer, which
says how its arrays are laid out (`transforms`).
"""

from kmrcnn.importers.fitting import match_classes

__all__ = ["match_classes"]
