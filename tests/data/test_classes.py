"""Labels of folders: their natural order, or the order that a file gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kwbench.data import load_dataset
from kwbench.data.classes import mapping_note, natural_order, read_class_order
from kwbench.errors import CannotEvaluate, UsageError


def _folders(root: Path, *names: str) -> Path:
    """Write one grey image for each folder, as bright as its place in `names`."""
    for brightness, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((2, 2), brightness, dtype=np.uint8)).save(root / name / "0.png")
    return root


def _labels(root: Path, classes: Path | None = None) -> list[int]:
    """Return the label of each folder, in the order in which they were written."""
    test = load_dataset("x", data=root, classes=classes).test
    return [int(label) for _, label in sorted(zip(test.images[:, 0, 0, 0].tolist(), test.labels.tolist(), strict=True))]


@pytest.mark.parametrize(
    "ordered",
    [
        [str(number) for number in range(12)],
        [f"class_{number}" for number in range(1, 12)],
        ["1", "01", "2", "v1.9", "v1.10", "v10"][1:],
        ["a", "a1", "a1b", "a2", "a10", "b"],
        ["n01440764", "n01443537", "n09246464"],
        ["bird", "Zebra"][::-1],
    ],
)
def test_numbers_in_names_count_as_numbers(ordered: list[str], tmp_path: Path) -> None:
    assert natural_order(reversed(ordered)) == ordered
    assert _labels(_folders(tmp_path, *ordered)) == list(range(len(ordered)))


_NAMES = ["zero", "one", "two", "great white shark"]


@pytest.mark.parametrize(
    "text",
    [
        "zero\none\ntwo\ngreat white shark\n",
        "\ufeffzero\r\none \r\ntwo\r\ngreat white shark\r\n\r\n",
        json.dumps(_NAMES),
        json.dumps({str(index): name for index, name in enumerate(_NAMES)}),
        json.dumps({str(index): [f"n{index}", name] for index, name in enumerate(_NAMES)}),
        "zero\none\ntwo\nGreat_White-Shark\n",
    ],
)
def test_a_file_gives_the_order_of_the_classes(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text(text, encoding="utf-8")
    root = _folders(tmp_path / "images", "great_white_shark", "one", "zero")
    assert _labels(root, tmp_path / "classes") == [3, 1, 0]
    dataset = load_dataset("x", data=root, classes=tmp_path / "classes")
    # Classes without images count, too.
    assert (dataset.classes, len(dataset.class_names)) == (4, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("zero\nten\n", "no class of the name of the folder 'one'; known: ten, zero"),
        ("zero\nones\n", "did you mean 'ones'"),
        ("zero\none\none\n", "lists 2 classes of the name of the folder 'one'"),
        ('[["zero", "one"]]', "two folders are one class"),
        ("", "names no class"),
        ("zero\n\none\n", "'' is not the name of a class"),
        ("[1, 2]", "one name a line"),
        ('{"0": "zero", "2": "one"}', "indices do not run from 0 to 1"),
        ('{"zero": 0}', "one name a line"),
        ("[" * 100_000, "one name a line"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text(text)
    root = _folders(tmp_path / "images", "zero", "one")
    with pytest.raises(UsageError, match=r"--classes .*classes: ") as refusal:
        load_dataset("x", data=root, classes=tmp_path / "classes")
    assert reason in str(refusal.value)


def test_a_missing_file_and_labels_that_are_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="cannot be read"):
        read_class_order(tmp_path / "none")
    np.savez(tmp_path / "own.npz", x_test=np.zeros((2, 1, 2, 2), dtype=np.uint8), y_test=np.arange(2))
    for data in (tmp_path / "own.npz", None):
        with pytest.raises(UsageError, match="it orders the folders of images that --data names"):
            load_dataset("digits", data=data, classes=tmp_path / "classes")


def test_the_note_on_many_classes_leaves_out_those_in_the_middle() -> None:
    assert mapping_note(["bee", "ant"]) == "labels by folder name: 0 bee, 1 ant"
    assert mapping_note(["0", "1"]) == "labels are the folders' names, 0 to 1"
    note = mapping_note([f"n{number}" for number in range(1000)])
    assert note.startswith("labels by folder name: 0 n0, 1 n1,")
    assert note.endswith("8 n8, 9 n9, ..., 990 n990, 991 n991, 992 n992, 993 n993, 994 n994, 995 n995, 996 n996, 997 n997, "
                         "998 n998, 999 n999")  # fmt: skip
