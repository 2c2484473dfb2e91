"""Packaging of kmrcnn. A pure Python wheel: no compiler is needed to build or install it."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The version written in kmrcnn/__init__.py, read without importing the package."""
    text = (ROOT / "kmrcnn" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


EXTRAS = {
    "torch": ["torch>=2.6"],
    "tensorflow": ["tensorflow>=2.18"],
    "jax": ["jax>=0.4.34"],
    # ctk brings NVRTC and the CUDA headers that CuPy compiles kernels with, so no CUDA toolkit is needed.
    "cuda12": ["cupy-cuda12x[ctk]>=14"],
    "cuda13": ["cupy-cuda13x[ctk]>=14"],
    # Backbones of others; needs TensorFlow installed, which it does not ask for.
    "kerascv": ["keras-cv>=0.9"],
    "tensorboard": ["tensorboard"],
    "video": ["imageio", "imageio-ffmpeg"],
    "notebooks": ["notebook"],
    "test": ["pytest>=8", "pytest-xdist", "setuptools>=70", "ruff", "tensorboard", "imageio", "imageio-ffmpeg"],
}

setup(
    name="kmrcnn",
    version=version(),
    description="Mask R-CNN for Keras 3 on torch, TensorFlow and JAX, with Matterport's API",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["kmrcnn", "kmrcnn.*"]),
    # Everything in the package folders that is not Python: kernels, catalogues, presets.
    package_data={"": ["*.cu", "*.cuh", "*.h", "*.json", "*.yaml", "*.yml", "*.txt", "py.typed"]},
    install_requires=[
        "keras>=3.12",
        "numpy>=2.0",
        "h5py>=3.11",
        "scipy>=1.11",
        "scikit-image>=0.22",
        "Pillow>=10",
        "pycocotools>=2.0.8",
        "matplotlib>=3.8",
        "PyYAML>=6",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
