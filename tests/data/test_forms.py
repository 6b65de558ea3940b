"""Images of the user's own in other forms: resized, under other names, in files of CIFAR-10-C, and as ImageNet lies."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kwbench.data import DataForm, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.torchvision_schemas import import_torchvision

RNG = np.random.default_rng(0)


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestSizes:
    @pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (33, 47), (20, 20)])
    @pytest.mark.parametrize("form", [DataForm(32), DataForm(32, 28), DataForm(None, 17), DataForm(64, 32)])
    def test_images_are_resized_and_cropped_as_by_torchvision(self, height: int, width: int, form: DataForm) -> None:
        transforms = import_torchvision().transforms
        image = picture(height, width)
        steps = [transforms.Resize(form.resize)] if form.resize else []
        steps += [transforms.CenterCrop(form.center_crop)] if form.center_crop else []
        expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image))).transpose(2, 0, 1)
        assert np.array_equal(form.shaped(image.transpose(2, 0, 1), "it"), expected)

    def test_folders_of_images_of_several_sizes_become_one_size(self, tmp_path: Path) -> None:
        for name, size in (("ant", (20, 30)), ("bee", (30, 20))):
            (tmp_path / "val" / name).mkdir(parents=True)
            Image.fromarray(picture(*size)).save(tmp_path / "val" / name / "0.png")
        (tmp_path / "train").mkdir()  # as in ImageNet, whose training images are not read
        with pytest.raises(DamagedData, match="--resize and --center-crop make them so"):
            load_dataset("x", data=tmp_path)
        dataset = load_dataset("x", data=tmp_path, form=DataForm(16, 12))
        assert (dataset.shape, len(dataset.test), dataset.class_names) == ((3, 12, 12), 2, ("ant", "bee"))

    def test_what_cannot_be_resized_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x_test=RNG.random((2, 3, 8, 8), dtype=np.float32), y_test=np.arange(2))
        with pytest.raises(UsageError, match="x_test is float32; only uint8"):
            load_dataset("x", data=tmp_path / "a.npz", form=DataForm(4))
        with pytest.raises(UsageError, match=r"--center-crop 9: it has 8 x 8 pixels; --resize 9 enlarges it"):
            DataForm(None, 9).shaped(np.zeros((3, 8, 8), dtype=np.uint8), "it")
        with pytest.raises(UsageError, match="--resize 0"):
            DataForm(0)
        with pytest.raises(UsageError, match="are for images of your own"):
            load_dataset("digits", form=DataForm(4))


class TestKeys:
    def test_arrays_of_other_names_are_the_test_split(self, tmp_path: Path) -> None:
        images = RNG.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
        dataset = load_dataset("x", data=tmp_path / "a.npz", form=DataForm(keys=("images", "labels")))
        assert np.array_equal(dataset.test.images, images)
        assert dataset.classes == 6
        with pytest.raises(DamagedData, match=r"key 'x' of --keys is missing; it holds images, labels"):
            load_dataset("x", data=tmp_path / "a.npz", form=DataForm(keys=("x", "labels")))
        with pytest.raises(DamagedData, match=r"key 'x_test' is missing.*--keys names others; it holds images, labels"):
            load_dataset("x", data=tmp_path / "a.npz")


class TestCorruptions:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "CIFAR-10-C"
        folder.mkdir()
        np.save(folder / "fog.npy", RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
        np.save(folder / "snow.npy", RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
        np.save(folder / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), 5))
        return folder

    def test_a_severity_is_a_fifth_of_a_file(self, folder: Path) -> None:
        dataset = load_dataset("cifar10", data=folder / "fog.npy", form=DataForm(severity=2))
        whole = np.load(folder / "fog.npy").transpose(0, 3, 1, 2)
        assert np.array_equal(dataset.test.images, whole[10:20])
        assert dataset.test.labels.tolist() == list(range(10))
        assert dataset.name == "fog-2"
        assert len(load_dataset("cifar10", data=folder / "fog.npy").test) == 50

    def test_the_folder_itself_lists_its_files(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"name one of its files: .*fog\.npy, .*snow\.npy"):
            load_dataset("cifar10", data=folder)

    def test_damaged_and_missing_files_are_named(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="--severity 6"):
            DataForm(severity=6)
        np.save(folder / "odd.npy", np.zeros((7, 32, 32, 3), dtype=np.uint8))
        with pytest.raises(UsageError, match=r"odd\.npy holds 7 images, which are not five blocks"):
            load_dataset("cifar10", data=folder / "odd.npy", form=DataForm(severity=1))
        (folder / "fog.npy").write_bytes(b"no array")
        with pytest.raises(DamagedData, match=r"fog\.npy: not a readable npy file"):
            load_dataset("cifar10", data=folder / "fog.npy")
        (folder / "labels.npy").unlink()
        with pytest.raises(CannotEvaluate, match=r"labels\.npy: cannot be read"):
            load_dataset("cifar10", data=folder / "snow.npy")
