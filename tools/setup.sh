#!/usr/bin/env bash
# Sets kmrcnn up on a fresh machine and runs one of two jobs:
#
#   tools/setup.sh demo [options of samples/shapes.py]   install with torch; train on generated images, evaluate,
#                                                        write pictures of detections to results/shapes
#   tools/setup.sh test [options of pytest]              install with torch, tensorflow and jax; run the tests on each
#
# Needs Python 3.11 or newer (set PYTHON to choose one). The environment is made in .venv-demo or .venv-test
# beside this repository's files (set KMRCNN_VENV to put it elsewhere) and is used again if it is there.
#
# torch: on a machine with an NVIDIA GPU the CUDA build is installed, with CuPy for the same CUDA. Without one, pip is
# first asked what the default index would install; if that brings CUDA packages (gigabytes; so it is on Linux with
# PyPI), torch comes from https://download.pytorch.org/whl/cpu instead.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TORCH="torch==2.13.0"
TORCHVISION="torchvision==0.28.0"
TORCH_INDEX="https://download.pytorch.org/whl"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'tools/setup.sh: %s\n' "$*" >&2; exit 1; }
install() { "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }
driver_cuda() { nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1; }

make_venv() {
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || fail "$python is $("$python" --version 2>&1), Python 3.11 or newer is needed; set PYTHON"
    if [ ! -x "$VENV/bin/python" ]; then
        say "Making the environment $VENV"
        "$python" -m venv "$VENV"
    fi
}

default_index_brings_cuda() {
    "$VENV/bin/python" -m pip install --dry-run --disable-pip-version-check "$TORCH" \
        | grep '^Would install' | grep -Eq '(nvidia|cuda)-'
}

install_torch() {
    if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then return; fi
    if has_gpu; then
        say "Installing $TORCH for the GPU found: $(nvidia-smi -L | head -n 1)"
        # The default build is for CUDA 13; an older driver needs the CUDA 12 build.
        if [ "$(driver_cuda)" = 12 ] && install "$TORCH" --index-url "$TORCH_INDEX/cu126"; then return; fi
        install "$TORCH"
    elif default_index_brings_cuda; then
        say "Installing $TORCH without CUDA (no NVIDIA GPU found), from $TORCH_INDEX/cpu"
        install "$TORCH" --index-url "$TORCH_INDEX/cpu"
    else
        say "Installing $TORCH (no NVIDIA GPU found; the default index has a build without CUDA)"
        install "$TORCH"
    fi
}

cuda_extra() { # ",cuda13" where torch can use the GPU, nothing elsewhere
    "$VENV/bin/python" -c 'import torch; print(f",cuda{torch.version.cuda.split(chr(46))[0]}" if torch.cuda.is_available() else "")'
}

report_device() {
    "$VENV/bin/python" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU")'
    if has_gpu && ! "$VENV/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "Warning: this machine has a GPU that the installed torch cannot use; see https://pytorch.org/get-started" >&2
    fi
}

run_demo() {
    make_venv
    install_torch
    say "Installing kmrcnn"
    install --editable "$ROOT[torch$(cuda_extra)]"
    report_device
    say "samples/shapes.py $*"
    KERAS_BACKEND=torch exec "$VENV/bin/python" "$ROOT/samples/shapes.py" "$@"
}

run_tests() {
    local tensorflow=tensorflow-cpu backend status=0 logs workers
    [ "$(uname)" = Linux ] || tensorflow=tensorflow
    make_venv
    install_torch
    say "Installing kmrcnn, $tensorflow, jax and keras-cv"
    install --editable "$ROOT[test,jax,kerascv$(cuda_extra)]" "$tensorflow"
    # What the tests compare with. Its Python code is enough, and without its dependencies no other torch is fetched.
    install --no-deps "$TORCHVISION"
    # The compiler of CUDA kernels, which needs no GPU. This one knows every architecture from Volta to Blackwell.
    [ "$(uname)" != Linux ] || install nvidia-cuda-nvrtc-cu12
    report_device
    cd "$ROOT"
    say "ruff check"
    "$VENV/bin/ruff" check . || status=1
    logs=$(mktemp -d)
    workers=$("$VENV/bin/python" -c 'import os; print(min(os.cpu_count(), 8))')
    for backend in torch tensorflow jax; do
        say "pytest on $backend"
        KERAS_BACKEND=$backend "$VENV/bin/python" -m pytest -n "$workers" --dist loadfile --durations 5 "$@" 2>&1 \
            | tee "$logs/$backend" || status=1
    done
    say "Summary"
    for backend in torch tensorflow jax; do printf '%-11s %s\n' "$backend" "$(tail -n 1 "$logs/$backend")"; done
    rm -r "$logs"
    [ "$status" = 0 ] && echo "All passed." || echo "FAILED."
    return "$status"
}

job=${1:-}
shift || true
VENV=${KMRCNN_VENV:-$ROOT/.venv-$job}
case "$job" in
    demo) run_demo "$@" ;;
    test) run_tests "$@" ;;
    *) fail "usage: tools/setup.sh demo|test [options]" ;;
esac
