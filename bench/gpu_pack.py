"""Pack what `make speed-gpu` needs on a GPU machine without a network: a folder of wheels and models, below 60 MB.

    python bench/gpu_pack.py FOLDER [--python 3.12] [--cifar10 FILE.npz]

The machine must have Python and PyTorch with what PyTorch needs. The folder gets the wheel of kwbench, the wheels of WHEELS in
the versions of constraints.txt, the networks that are compared, and with --cifar10 as many of its test images as are used.
pyautoattack comes without its examples, which are most of it. `bench/speed/gpu.sh` unpacks the folder.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

LIMIT = 60_000_000
# What kwbench and the libraries need beyond PyTorch, NumPy, SciPy, pandas, Matplotlib, Pillow and scikit-learn.
WHEELS = (
    *("pyautoattack", "foolbox", "eagerpy", "GitPython", "gitdb", "smmap", "torchattacks", "adv-lib", "requests", "tqdm"),
    *("SQLAlchemy", "greenlet", "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("ruamel.yaml", "typer", "shellingham", "annotated-doc", "rich", "markdown-it-py", "mdurl", "Pygments"),
    *("safetensors", "filelock", "colorama"),
)
# Files below the repository that are packed if they exist. The last one is trained by bench/papers/gpu.sh.
MODELS = (
    "models/cifar10/resnet18-w16-relu-fast.safetensors",
    "models/cifar10/resnet18-w16-relu.safetensors",
    "bench/papers/models/cifar10/resnet18-w64-relu-at.safetensors",
)
# The most images that a benchmark takes.
IMAGES = 5000
_EXAMPLES = "pyautoattack/examples/"


def download(folder: Path, python: str) -> None:
    """Download the wheels for Linux and this version of Python, and build that of kwbench."""
    pip = [sys.executable, "-m", "pip"]
    platforms = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "any"]
    # pip takes no constraints for the platform of another machine without wheels alone.
    target = ["--only-binary", ":all:", "--no-deps", "--python-version", python, *platforms]
    constraints = ["--constraint", "constraints.txt"]
    quiet = ["--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    subprocess.run([*pip, "download", *quiet, *target, *constraints, *WHEELS], check=True)
    build = [*pip, "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", str(folder), "."]
    subprocess.run(build, check=True)


def without_examples(wheel: Path) -> None:
    """Remove the examples of pyautoattack from its wheel."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        smaller = Path(folder) / wheel.name
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target:
            for item in source.infolist():
                if item.filename.startswith(_EXAMPLES):
                    continue
                content = source.read(item)
                if item.filename.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(line for line in lines if not line.startswith(_EXAMPLES)).encode()
                target.writestr(item, content)
        smaller.replace(wheel)


def pack_models(repository: Path, tree: Path) -> list[str]:
    """Copy the models that exist below the repository to the same paths below `tree`; return those that do not exist."""
    for name in MODELS:
        if (repository / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, tree / name)
    return [name for name in MODELS if not (repository / name).exists()]


def pack_images(source: Path, target: Path) -> None:
    """Write the test images that benchmarks use, compressed."""
    with np.load(source) as arrays:
        np.savez_compressed(target, x_test=arrays["x_test"][:IMAGES], y_test=arrays["y_test"][:IMAGES])


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def require_small(folder: Path) -> None:
    """Raise SystemExit, naming the largest files, if a folder is not below the limit."""
    size = size_of(folder)
    if size >= LIMIT:
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
        largest = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in files[:5])
        raise SystemExit(f"{folder}: {size / 1e6:.1f} MB, and at most {LIMIT / 1e6:.0f} MB may travel; the largest: {largest}")


def main() -> None:
    """Make the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version of Python of the GPU machine (default: 3.12)")
    parser.add_argument("--cifar10", type=Path, help="an npz file of CIFAR-10's test images")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tree").mkdir(parents=True)
    download(folder / "wheels", arguments.python)
    for wheel in (folder / "wheels").glob("pyautoattack-*.whl"):
        without_examples(wheel)
    for missing in pack_models(Path(), folder / "tree"):
        print(f"not packed, because it does not exist: {missing}")
    if arguments.cifar10 is not None:
        pack_images(arguments.cifar10, folder / "cifar10.npz")
    require_small(folder)
    print(f"{folder}: {len(list((folder / 'wheels').iterdir()))} wheels, {size_of(folder) / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
