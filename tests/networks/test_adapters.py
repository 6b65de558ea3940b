"""Models of other libraries, offline: small files in each library's own format, which these tests write."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.adapters import ADAPTERS, Wanted, is_adapted, load_adapted
from kwbench.networks.loaded import Loaded
from kwbench.torchvision_schemas import make_torchvision_importable

INFO = {
    "name": "Fast is better",
    "link": "https://arxiv.org/abs/2001.03994",
    "clean_acc": "83.34",
    "autoattack_acc": "43.21",
    "eps": "8/255",
}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def load(name: str, **options: Any) -> Loaded:
    prefix, _, rest = name.partition(":")
    wanted: dict[str, Any] = {"dataset": "cifar10", "shape": (3, 32, 32), "classes": 10, "norm": "linf"}
    return load_adapted(f"{prefix}:{rest}", Wanted(rest, **wanted | options))


def answers(loaded: Loaded, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        logits: Tensor = loaded.module(images)
    return logits


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder, and empty caches of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_torchvision_importable()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    yield
    torch.manual_seed(torch.initial_seed())


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()


def test_names_of_other_libraries_are_told_from_files_and_packages() -> None:
    assert [is_adapted(adapter.example) for adapter in ADAPTERS.values()] == [True] * 6
    assert not any(map(is_adapted, ("net.py:net", "own.models:net", "resnet18-relu", "cifar10/x", "timm", "onnx:")))


class TestTimm:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        import timm

        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=10)
        timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
        return tmp_path / "saved"

    def test_a_folder_as_timm_saves_it_is_loaded_with_its_preprocessing(self, folder: Path) -> None:
        import timm

        loaded = load(f"timm:{folder}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        resized = nn.functional.interpolate(IMAGES, size=(160, 160), mode="bilinear", antialias=True)
        expected = model((resized - 0.5) / 0.5)
        assert torch.allclose(answers(loaded), expected, atol=1e-5)
        assert loaded.notes == ("images are resized from 32 x 32 to 160 x 160 within the model",)
        assert loaded.origin["library"] == "timm"
        assert loaded.origin["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    def test_other_weights_are_another_model(self, folder: Path) -> None:
        import safetensors.torch

        before = load(f"timm:{folder}").sha256
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["fc.bias"] += 1
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        assert load(f"timm:{folder}").sha256 != before

    def test_weights_of_the_hub_come_from_its_cache_with_their_revision(self, folder: Path, tmp_path: Path) -> None:
        import timm

        revision = "0123456789abcdef0123456789abcdef01234567"
        cache = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(revision)
        (cache / "snapshots" / revision).mkdir(parents=True)
        model = timm.create_model("test_resnet")
        import safetensors.torch

        safetensors.torch.save_file(model.state_dict(), cache / "snapshots" / revision / "model.safetensors")
        loaded = load("timm:test_resnet.r160_in1k", classes=1000)
        assert loaded.origin["revision"] == revision
        assert answers(loaded).shape == (2, 1000)

    def test_nothing_is_fetched_unless_it_may_be(self) -> None:
        message = r"its weights are not on this machine; --download fetches https://huggingface.co/timm/test_vit"
        with pytest.raises(CannotEvaluate, match=message):
            load("timm:test_vit.r160_in1k")

    def test_a_checkpoint_of_ones_own_fits_the_data_set(self, tmp_path: Path) -> None:
        import safetensors.torch
        import timm

        model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
        safetensors.torch.save_file(
            {f"net.{key}": value for key, value in model.state_dict().items()}, tmp_path / "w.safetensors"
        )
        grey: dict[str, Any] = {"shape": (1, 8, 8), "checkpoint": tmp_path / "w.safetensors", "strip_prefix": "net."}
        loaded = load("timm:test_resnet", **grey)
        images = IMAGES[:, :1, :8, :8]
        assert torch.allclose(answers(loaded, images), model.eval()((images - 0.5) / 0.5), atol=1e-5)
        assert loaded.origin["checkpoint_sha256"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [("test_resnett", "no such model; did you mean 'test_resnet'"), ("test_byobnet.none", "no such|no weights|raised")],
    )
    def test_unknown_names_are_refused(self, name: str, message: str) -> None:
        with pytest.raises((UsageError, CannotEvaluate), match=message):
            load(f"timm:{name}")


class TestHuggingFace:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
        )
        config.num_labels = 10
        ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        preprocessor = {
            "do_resize": True,
            "size": {"height": 16, "width": 16},
            "resample": 2,
            "do_normalize": True,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.4],
        }
        (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return tmp_path / "vit"

    def test_a_folder_as_transformers_saves_it_is_loaded_with_its_preprocessing(self, folder: Path) -> None:
        from transformers import ViTForImageClassification

        loaded = load(f"hf:{folder}")
        resized = nn.functional.interpolate(IMAGES, size=(16, 16), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
        model: Any = ViTForImageClassification.from_pretrained(folder)
        model.eval()
        assert torch.allclose(answers(loaded), model((resized - mean) / std).logits, atol=1e-5)
        assert loaded.origin["weights_sha256"]

    def test_without_weights_or_preprocessing_it_says_what_is_missing(self, folder: Path) -> None:
        (folder / "preprocessor_config.json").unlink()
        with pytest.raises(CannotEvaluate, match=r"preprocessor_config\.json is not beside the weights"):
            load(f"hf:{folder}")
        (folder / "model.safetensors").unlink()
        with pytest.raises(CannotEvaluate, match="holds no weights"):
            load(f"hf:{folder}")
        with pytest.raises(CannotEvaluate, match=r"--download fetches https://huggingface.co/some/vit"):
            load("hf:some/vit")


class TestTorchvision:
    def test_a_checkpoint_is_read_into_a_classifier_that_normalises(self, tmp_path: Path) -> None:
        import safetensors.torch
        import torchvision

        torch.manual_seed(0)
        model = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=10).eval()
        safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
        loaded = load("torchvision:shufflenet_v2_x0_5", checkpoint=tmp_path / "w.safetensors")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        assert torch.allclose(answers(loaded), model((IMAGES - mean) / std), atol=1e-5)

    def test_weights_that_are_missing_or_not_torchvisions_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CannotEvaluate, match=r"--download fetches https://download\.pytorch\.org/models/resnet18-f37072fd"):
            load("torchvision:resnet18")
        file = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        file.parent.mkdir(parents=True)
        torch.save({"a": torch.ones(1)}, file)
        with pytest.raises(DamagedData, match=r"resnet18-f37072fd\.pth: .*must begin with f37072fd"):
            load("torchvision:resnet18")

    @pytest.mark.parametrize(
        ("name", "message"),
        [("resnet81", "no classifier 'resnet81'; did you mean 'resnet18'"), ("resnet18.V3", "has no weights 'V3'")],
    )
    def test_unknown_names_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load(f"torchvision:{name}")


class TestFiles:
    def test_an_onnx_file_answers_like_the_network_that_it_holds(self, tmp_path: Path) -> None:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        weight = np.random.default_rng(0).normal(size=(3 * 32 * 32, 10)).astype(np.float32)
        nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
            [numpy_helper.from_array(weight, "w")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "net.onnx")
        loaded = load("onnx:net.onnx")
        assert torch.allclose(answers(loaded), IMAGES.flatten(1) @ torch.from_numpy(weight), atol=1e-3)
        assert loaded.origin["file_sha256"] == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()

    def test_an_exported_program_answers_like_its_network(self, tmp_path: Path) -> None:
        network = small_network()
        batch = torch.export.Dim("batch", min=1, max=512)
        program = torch.export.export(network, (IMAGES,), dynamic_shapes={"input": {0: batch}})
        torch.export.save(program, tmp_path / "net.pt2")
        loaded = load("export:net.pt2")
        assert torch.allclose(answers(loaded), network(IMAGES), atol=1e-5)

    @pytest.mark.parametrize("name", ["onnx:net.onnx", "export:net.pt2"])
    def test_missing_and_damaged_files_are_refused_by_name(self, name: str, tmp_path: Path) -> None:
        file = name.partition(":")[2]
        with pytest.raises(CannotEvaluate, match=rf"{file}: cannot be read"):
            load(name)
        (tmp_path / file).write_bytes(b"neither")
        with pytest.raises((CannotEvaluate, DamagedData), match=file):
            load(name)


class TestRobustBench:
    """The real `load_model`, whose code torchattacks' wheel holds; it imports pkg_resources, which setuptools dropped."""

    @pytest.fixture(autouse=True)
    def _package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "pkg_resources.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path / "site")
        yield
        sys.modules.pop("pkg_resources", None)

    @pytest.fixture
    def network(self, tmp_path: Path) -> nn.Module:
        """A network of the zoo with random weights, saved where RobustBench puts it."""
        from robustbench.model_zoo.cifar10 import Wong2020FastNet

        torch.manual_seed(0)
        network: nn.Module = Wong2020FastNet().eval()
        folder = tmp_path / "models" / "cifar10" / "Linf"
        folder.mkdir(parents=True)
        torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, folder / "Wong2020Fast.pt")
        return network

    def test_a_model_of_the_zoo_is_loaded_with_its_claims(self, tmp_path: Path, network: nn.Module) -> None:
        folder = tmp_path / "model_info" / "cifar10" / "Linf"
        folder.mkdir(parents=True)
        (folder / "Wong2020Fast.json").write_text(json.dumps(INFO))
        loaded = load("robustbench:Wong2020Fast")
        assert torch.equal(answers(loaded), network(IMAGES))
        assert loaded.claimed is not None
        assert (loaded.claimed.a_std, loaded.claimed.autoattack, loaded.claimed.best_known) == (0.8334, 0.4321, 0.4321)
        assert loaded.claimed.sentence() == (
            "RobustBench claims at eps 8/255, in percent: A_std 83.34, under AutoAttack 43.21, best known 43.21"
        )
        assert loaded.origin["Wong2020Fast.pt"]
        (folder / "Wong2020Fast.json").write_text("{}")
        with pytest.raises(DamagedData, match=r"Wong2020Fast\.json"):
            load("robustbench:Wong2020Fast")

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            (
                "Wong2020Fast",
                {},
                r"its weights are \(models/cifar10/Linf/Wong2020Fast\.pt\) not .* --download fetches https://drive",
            ),
            ("Wong2020Fats", {}, "no such model for cifar10 in Linf; did you mean 'Wong2020Fast'"),
            ("Wong2020Fast", {"dataset": "digits"}, "not for digits in linf; choose with --dataset and --norm"),
        ],
    )
    def test_what_is_not_there_is_refused_with_the_remedy(self, name: str, options: dict[str, str], message: str) -> None:
        with pytest.raises((UsageError, CannotEvaluate), match=message):
            load(f"robustbench:{name}", **options)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kwbench.networks.adapters.onnx_files", raising=False)
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(CannotEvaluate, match=r"onnx:net\.onnx: .*onnx2torch.*pip install 'kwbench\[onnx\]'"):
        load("onnx:net.onnx")
