"""kwbench verify: images that were made elsewhere are judged, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack

import kwbench
from kwbench.data import Array, Batch
from support.command_line import Kwbench, refused
from support.small_models import digits, first_images
from support.small_registry import trained

N, EPS = 24, 0.1
FAST = ("--eps", "0.1", "--tile", "16", "--threads", "1")

Images = Array


@pytest.fixture(scope="module")
def batch() -> Batch:
    return first_images(N)


@pytest.fixture(scope="module")
def saved_by_autoattack(batch: Batch) -> Any:
    """What AutoAttack's own code returns and its script saves, with a tiny budget: images and their predictions."""
    attack = AutoAttack(trained("relu", 6).eval(), eps=EPS, version="custom", attacks=["apgd-ce"], seed=0)
    attack.apgd.n_iter, attack.verbose = 5, False
    return attack.run_standard_evaluation(batch.x, batch.y, batch_size=N)


@pytest.fixture(scope="module")
def by_autoattack(saved_by_autoattack: Any) -> torch.Tensor:
    images: torch.Tensor = saved_by_autoattack[0]
    return images


def accuracy_of(images: torch.Tensor, batch: Batch) -> float:
    with torch.no_grad():
        return float((trained("relu", 6).eval()(images).argmax(dim=1) == batch.y).double().mean())


def test_images_that_autoattack_saved_have_the_accuracy_that_it_found(
    kwb: Kwbench, batch: Batch, saved_by_autoattack: Any, by_autoattack: torch.Tensor
) -> None:
    torch.save({"adv_complete": saved_by_autoattack}, "images.pth")  # as examples/eval.py of AutoAttack does
    answer = kwb("verify", "small", "images.pth", "--name", "Theirs", "--paper", "https://example.org", *FAST, "--json")
    assert answer.code == 0, answer.err
    (attack,) = answer.json["attacks"]
    assert attack["name"] == "Theirs (external)"
    assert attack["accuracy"]["value"] == answer.json["a_rob"]["value"] == accuracy_of(by_autoattack, batch)
    assert answer.json["a_rob"]["value"] < answer.json["a_std"]["value"]
    printed = kwb("verify", "small", "images.pth", "--name", "Theirs", "--paper", "https://example.org", *FAST)
    assert "images made elsewhere (https://example.org) and judged here" in printed.out


@pytest.mark.parametrize("form", ["npz", "npy", "tensor", "uint8"])
def test_other_forms_of_files_are_read(form: str, kwb: Kwbench, by_autoattack: torch.Tensor) -> None:
    images = by_autoattack.numpy()
    writers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "npz": ("a.npz", lambda path: np.savez(path, anything=images, y=first_images(N).y.numpy())),
        "npy": ("a.npy", lambda path: np.save(path, images)),
        "tensor": ("a.pt", lambda path: torch.save(by_autoattack, path)),
        "uint8": ("a.npz", lambda path: np.savez(path, x=(np.rint(images * 255)).astype(np.uint8))),
    }
    path, write = writers[form]
    write(path)
    answer = kwb("verify", "small", path, *FAST[2:], "--eps", "0.105", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["a_rob"]["value"] < answer.json["a_std"]["value"]


def test_exported_images_are_verified_at_their_positions(kwb: Kwbench) -> None:
    run = ("--attack", "pgd", "--set", "pgd.steps=3", "--n", N, *FAST, "--keep-adversarials", "--json")
    evaluated = kwb("evaluate", "small", *run).json
    assert kwb("export", "small", "--adversarials", "out.npz").code == 0
    assert len(np.load("out.npz")["x"]) < N
    answer = kwb("verify", "small", "out.npz", "--n", N, *FAST, "--json")
    assert answer.json["a_rob"]["value"] == evaluated["a_rob"]["value"]


@pytest.mark.parametrize("suite", [("--attack", "noop"), ("--suite", "cascade.yaml")])
def test_the_worst_case_includes_the_images_on_request_alone(
    suite: tuple[str, str], kwb: Kwbench, tmp_path: Path, by_autoattack: torch.Tensor
) -> None:
    (tmp_path / "cascade.yaml").write_text("cascade: true\nattacks: {noop: {}, blind: {attack: random-sign}}\n")
    np.savez("a.npz", x_adv=by_autoattack.numpy())
    beside, within = (kwb("verify", "small", "a.npz", *suite, *FAST, *more, "--json").json for more in ((), ("--worst-case",)))
    accuracies = [attack["accuracy"] for attack in beside["attacks"]]
    assert beside["attacks"][-1]["name"] == "a (external)"
    assert accuracies[-1]["value"] < beside["a_rob"]["value"] <= beside["a_std"]["value"]
    assert within["a_rob"]["value"] <= accuracies[-1]["value"]
    refused(kwb("verify", "small", "a.npz", "--worst-case", *FAST), 2, "--worst-case")


def refusals() -> dict[str, tuple[Callable[[Images], Images], int, tuple[str, ...]]]:
    def with_nan(images: Images) -> Images:
        images[3, 0, 1, 1] = np.nan
        return images

    def out_of_range(images: Images) -> Images:
        images[[5, 7]] += 2
        return images

    def out_of_ball(images: Images) -> Images:
        images[4] = np.where(first_images(N).x[4].numpy() > 0.5, 0.39, 0.61)
        return images

    return {
        "nan": (with_nan, 4, ("1 image refused", "sample 3: ", "NaN")),
        "range": (out_of_range, 4, ("2 images refused", "samples 5, 7: ", "outside [0, 1]")),
        "ball": (out_of_ball, 4, ("sample 4: ", "outside the ball linf 0.1", "at distance 0.6")),
        "order": (lambda images: images[::-1], 4, ("samples 0, 1, 2", "nearest to sample 23", "index")),
        "count": (lambda images: np.repeat(images, 20, axis=0), 2, (f"holds {20 * N} images for 360 samples",)),
        "shape": (lambda images: images[:, :, :4], 2, ("shape (1, 4, 8)",)),
        "type": (lambda images: (images > 0.5).astype(np.int32), 4, ("int32",)),
    }


@pytest.mark.parametrize("case", list(refusals()))
def test_images_that_cannot_be_adversarial_are_refused_by_sample_and_key(
    case: str, kwb: Kwbench, by_autoattack: torch.Tensor
) -> None:
    change, code, parts = refusals()[case]
    np.savez("a.npz", x_adv=change(by_autoattack.numpy().copy()))
    refused(kwb("verify", "small", "a.npz", *FAST), code, "a.npz: x_adv: ", *parts)


def test_labels_and_counts_that_do_not_fit_are_refused(kwb: Kwbench, by_autoattack: torch.Tensor) -> None:
    images, labels = by_autoattack.numpy(), first_images(N).y.numpy()
    np.savez("labels.npz", x_adv=images, y=np.roll(labels, 1))
    refused(kwb("verify", "small", "labels.npz", *FAST), 4, "labels.npz: x_adv: ", "another label")
    np.savez("index.npz", x_adv=images, index=np.full(N, 500))
    refused(kwb("verify", "small", "index.npz", *FAST), 2, "index", "no such sample")
    np.savez("two.npz", first=images, second=images)
    refused(kwb("verify", "small", "two.npz", *FAST), 2, "--key", "first, second")
    refused(kwb("verify", "small", "two.npz", "--key", "third", *FAST), 2, "no key 'third'")
    refused(kwb("verify", "small", "two.npz", "--key", "first", "--n", "10", *FAST), 2, f"holds {N} images for 10 samples")
    refused(kwb("verify", "small", "missing.npz", *FAST), 3, "missing.npz")
    Path("text.pt").write_text("no tensors")
    refused(kwb("verify", "small", "text.pt", *FAST), 4, "text.pt")


def test_python_verifies_images_in_memory(batch: Batch, by_autoattack: torch.Tensor) -> None:
    result = kwbench.verify(trained("relu", 6).eval(), by_autoattack, batch.x, batch.y, eps=EPS, tile=16)
    assert result.a_rob is not None
    assert result.a_rob.value == accuracy_of(by_autoattack, batch)
    changed = by_autoattack.clone()
    changed[2] = digits().test.batch([200]).x[0]
    with pytest.raises(kwbench.DamagedData, match="adversarials: 1 image refused: sample 2"):
        kwbench.verify(trained("relu", 6).eval(), changed, batch.x, batch.y, eps=EPS, tile=16)
