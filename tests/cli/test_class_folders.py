"""Folders of images by class, from the command line: their labels, what says that these are in another order, and --classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.command_line import Kwbench, refused
from support.small_models import digits

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_RUN = ("--attack", "noop", "--tile", "16", "--threads", "1")


def _write(folder: Path, names: tuple[str, ...]) -> Path:
    """Write forty digits into one folder for each class."""
    test = digits().test
    pixels = (test.images[:40, 0] * 255).round().astype(np.uint8)
    for number, (image, label) in enumerate(zip(pixels, test.labels[:40].tolist(), strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["{}", "class {}", "digit-0{}"])
def test_numbered_folders_need_no_file(kwb: Kwbench, name: str) -> None:
    folder = _write(Path("own"), tuple(name.format(number) for number in range(10)))
    answer = kwb("evaluate", "small", "--data", folder, *_RUN, "--json")
    assert answer.json["a_std"]["value"] > 0.9
    assert answer.json["notes"][0].startswith("labels ")


def test_named_folders_are_hinted_at_and_a_file_brings_the_accuracy_back(kwb: Kwbench) -> None:
    folder = _write(Path("own"), _WORDS)
    answer = kwb("evaluate", "small", "--data", folder, *_RUN)
    assert answer.code == 0
    text = " ".join(answer.out.split())
    assert "labels by folder name: 0 eight, 1 five, 2 four, 3 nine, 4 one, 5 seven, 6 six, 7 three, 8 two, 9 zero." in text
    assert "if each folder's label were the number that its name says; --classes FILE names the classes" in text
    Path("classes.txt").write_text("\n".join(_WORDS))
    answer = kwb("evaluate", "small", "--data", folder, "--classes", "classes.txt", *_RUN, "--json")
    assert answer.json["a_std"]["value"] > 0.9
    assert answer.json["notes"] == [f"labels by folder name: {', '.join(f'{n} {word}' for n, word in enumerate(_WORDS))}"]
    # The mapping is on record.
    assert "0 zero, 1 one" in kwb("show", "small").out


def test_a_file_of_other_classes_is_refused(kwb: Kwbench) -> None:
    folder = _write(Path("own"), _WORDS)
    Path("classes.txt").write_text("\n".join(_WORDS[:9]))
    answer = kwb("evaluate", "small", "--data", folder, "--classes", "classes.txt", *_RUN)
    refused(answer, 2, "lists no class of the name of the folder 'nine'")
