"""From a registry entry or a user's own file to a network: what is refused, and that the weights are the pinned ones."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kwbench.config.registry import ModelEntry, Registry
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.model import Model
from kwbench.networks.entries import build_module, load_entry
from kwbench.networks.user_files import imported_sources, is_file_model, load_file_model
from kwbench.networks.weights import load_weights
from kwbench.training import save_checkpoint

ENTRY: dict[str, Any] = {"architecture": {"name": "cnn3", "width": 2, "hidden": 4}, "activation": {"name": "relu"}}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_module(entry(), (1, 8, 8), 10).eval()


def entry(**sections: Any) -> ModelEntry:
    return validate(ModelEntry, ENTRY | sections, "registry.yaml")


def pinned(folder: Path, content: bytes, sha256: str | None = None, **sections: Any) -> tuple[Registry, ModelEntry]:
    """A registry whose entry `net` pins these bytes."""
    (folder / "net.safetensors").write_bytes(content)
    checkpoint = {"file": "net.safetensors", "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    made = entry(checkpoint=checkpoint, **sections)
    return Registry(folder / "registry.yaml", {"net": made}), made


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


# Registry entries


def test_a_pinned_checkpoint_comes_back_as_it_was_saved(tmp_path: Path, network: nn.Module, digits: DataSet) -> None:
    digest = save_checkpoint(network, tmp_path / "deep" / "net.safetensors")
    content = (tmp_path / "deep" / "net.safetensors").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert not list(tmp_path.glob("deep/.*")), "a draft was left behind"
    registry, made = pinned(tmp_path, content)
    loaded = load_entry(registry, "net", made, digits)
    assert loaded.sha256 == digest
    assert not loaded.module.training
    x = digits.test.batch(range(5)).x
    with torch.no_grad():
        assert torch.equal(loaded.module(x), network(x))


def test_a_checkpoint_may_be_read_from_elsewhere_but_its_hash_still_holds(
    tmp_path: Path, network: nn.Module, digits: DataSet
) -> None:
    content = safetensors.torch.save(weights(network))
    registry, made = pinned(tmp_path, content)
    (tmp_path / "net.safetensors").rename(tmp_path / "moved")
    assert load_entry(registry, "net", made, digits, tmp_path / "moved").sha256 == hashlib.sha256(content).hexdigest()
    (tmp_path / "moved").write_bytes(content + b" ")
    with pytest.raises(DamagedData, match=r"moved: .* pins"):
        load_entry(registry, "net", made, digits, tmp_path / "moved")


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path, digits: DataSet) -> None:
    registry, made = pinned(tmp_path, b"x")
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(CannotEvaluate, match=r"net\.safetensors: .*No such file.*kwbench train net"):
        load_entry(registry, "net", made, digits)
    with pytest.raises(CannotEvaluate, match=r"'net' has no checkpoint in .*kwbench train net"):
        load_entry(registry, "net", entry(), digits)


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><p>Sign in", "an HTML page"),
        (b"<html>404", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"PK\x03\x04 archive/data.pkl", "a zip archive"),
        (b"12345", "5 bytes"),
    ],
)
def test_a_wrong_file_in_place_of_a_checkpoint_is_called_what_it_is(
    tmp_path: Path, digits: DataSet, content: bytes, described: str
) -> None:
    registry, made = pinned(tmp_path, content, sha256="0" * 64)
    with pytest.raises(
        DamagedData, match=rf"net\.safetensors: {described}.* with sha256 {hashlib.sha256(content).hexdigest()}, but .*0000"
    ):
        load_entry(registry, "net", made, digits)


def test_truncation_and_a_single_flipped_bit_are_noticed(tmp_path: Path, network: nn.Module, digits: DataSet) -> None:
    content = safetensors.torch.save(weights(network))
    sha256 = hashlib.sha256(content).hexdigest()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    for damage in (content[:-1], content[:8], bytes(flipped)):
        registry, made = pinned(tmp_path, damage, sha256=sha256)
        with pytest.raises(DamagedData, match=r"but .* pins"):
            load_entry(registry, "net", made, digits)


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {each: tensor for each, tensor in tensors.items() if each != key}


CHANGES: dict[str, Any] = {
    "missing: conv1.weight, unexpected: none": lambda own: without(own, "conv1.weight"),
    "missing: none, unexpected: more": lambda own: own | {"more": torch.zeros(1)},
    r"fc2.bias has shape \(9,\), the network needs \(10,\)": lambda own: own | {"fc2.bias": torch.zeros(9)},
    r"fc2.bias has shape \(10, 1\)": lambda own: own | {"fc2.bias": torch.zeros(10, 1)},
    "fc2.bias is torch.int64, the network needs torch.float32": lambda own: (
        own | {"fc2.bias": torch.zeros(10, dtype=torch.int64)}
    ),
    "fc2.bias holds NaN or infinity": lambda own: own | {"fc2.bias": torch.full((10,), float("nan"))},
    "conv1.bias holds NaN or infinity": lambda own: own | {"conv1.bias": torch.tensor([0.0, float("-inf")])},
    # Finite as it is stored, infinite as it would be used.
    "fc1.bias holds NaN or infinity": lambda own: own | {"fc1.bias": torch.full((4,), 1e300, dtype=torch.float64)},
}


@pytest.mark.parametrize("message", CHANGES)
def test_weights_that_do_not_fit_are_refused_by_name_even_under_the_right_hash(
    tmp_path: Path, network: nn.Module, digits: DataSet, message: str
) -> None:
    registry, made = pinned(tmp_path, safetensors.torch.save(CHANGES[message](weights(network))))
    with pytest.raises(DamagedData, match=message):
        load_entry(registry, "net", made, digits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_stored_in_another_precision(network: nn.Module, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in weights(network).items()}
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, safetensors.torch.save(stored), "net")
    for key, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[key].float())


def test_whatever_the_bytes_only_damage_is_reported(network: nn.Module) -> None:
    content = safetensors.torch.save(weights(network))
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[int(rng.integers(0, 400))] ^= int(rng.integers(1, 256))
        try:
            load_weights(network, bytes(changed), "net")
        except DamagedData as refusal:
            assert str(refusal).startswith("net: ")  # noqa: PT017 - either outcome is fine


def test_labels_that_miss_the_last_classes_do_not_shrink_the_network(tmp_path: Path, network: nn.Module) -> None:
    np.savez(tmp_path / "few.npz", x_test=np.zeros((3, 1, 8, 8), dtype=np.uint8), y_test=[0, 1, 4])
    registry, made = pinned(tmp_path, safetensors.torch.save(weights(network)))
    few = load_dataset("digits", data=tmp_path / "few.npz")
    assert few.classes == 5
    with torch.no_grad():
        assert load_entry(registry, "net", made, few).module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_images_that_are_not_like_those_of_the_data_set_in_a_models_name_are_refused(tmp_path: Path) -> None:
    registry, made = pinned(tmp_path, b"never read")
    for shape, labels, message in (
        ((3, 8, 8), [0, 1, 9], r"own: images are 3 x 8 x 8, those of cifar10, which 'cifar10/net' takes, are 3 x 32 x 32"),
        ((3, 32, 32), [0, 1, 10], "own: holds the label 10, 'cifar10/net' knows the 10 of cifar10"),
    ):
        np.savez(tmp_path / "own.npz", x_test=np.zeros((3, *shape), dtype=np.uint8), y_test=labels)
        with pytest.raises(UsageError, match=message):
            load_entry(registry, "cifar10/net", made, load_dataset("cifar10", data=tmp_path / "own.npz"))


# Building


def test_networks_that_cannot_take_the_images_are_refused_when_they_are_built() -> None:
    odd = entry(architecture={"name": "resnet18", "width": 9}, activation={"name": "stochastic_lwta"})
    with pytest.raises(UsageError, match="cannot take images of 1 x 8 x 8: units: 9 channels do not divide"):
        build_module(odd, (1, 8, 8), 10)
    with pytest.raises(UsageError, match="cannot take images of 1 x 1 x 1"):
        build_module(entry(), (1, 1, 1), 10)


def test_normalisation_must_have_a_value_for_each_channel() -> None:
    for mean, std, message in (([0.5], [1.0, 1.0, 1.0], "normalise.mean: has 1"), ([0.5] * 3, [1.0], "normalise.std: has 1")):
        with pytest.raises(UsageError, match=f"{message} values, the images have 3 channels"):
            build_module(entry(normalise={"mean": mean, "std": std}), (3, 8, 8), 10)


def test_building_a_network_draws_for_its_weights_alone() -> None:
    noisy = entry(activation={"name": "stochastic_lwta"})
    torch.manual_seed(0)
    build_module(noisy, (1, 8, 8), 10)
    after = torch.rand(1)
    torch.manual_seed(0)
    build_module(entry(), (1, 8, 8), 10)
    assert torch.equal(after, torch.rand(1))


def test_a_built_network_is_ready_for_training() -> None:
    assert build_module(entry(), (1, 8, 8), 10).training


# A user's own file

FACTORY = """
import pathlib

import torch
from torch import nn

def net():
    torch.manual_seed({seed})
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout())
"""


@pytest.fixture
def _imports_as_they_were() -> Any:
    path, loaded = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - loaded:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "own"), [("a/b.py:net", True), ("b.py:", True), ("b.py", False), ("resnet18-relu", False), ("b:py", False)]
)
def test_a_file_and_a_factory_make_a_model_of_ones_own(name: str, own: bool) -> None:
    assert is_file_model(name) is own


@pytest.mark.usefixtures("_imports_as_they_were")
class TestFileModels:
    """Each test leaves the import system as it was."""

    def test_the_factorys_module_comes_ready_for_evaluation_in_its_own_precision(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text(FACTORY.format(seed=0).replace("nn.Dropout())", "nn.Dropout()).double()"))
        loaded = load_file_model(f"{tmp_path}/defence.py:net")
        assert not loaded.module.training
        assert loaded.module(torch.zeros((2, 1, 8, 8), dtype=torch.float64)).dtype == torch.float64

    def test_the_hash_follows_the_file_and_the_weights(self, tmp_path: Path) -> None:
        file = tmp_path / "defence.py"
        source = FACTORY.replace(
            "torch.manual_seed({seed})", "torch.manual_seed(int(pathlib.Path(__file__ + '.seed').read_text()))"
        )
        file.write_text(source)
        digests = []
        for seed, comment in (("0", ""), ("0", ""), ("1", ""), ("0", "# another file")):
            (tmp_path / "defence.py.seed").write_text(seed)
            file.write_text(source + comment)
            digests.append(load_file_model(f"{file}:net").sha256)
            sys.modules.pop("defence", None)
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3

    def test_the_hash_follows_what_the_file_imports_from_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text("import scaling\n" + FACTORY.format(seed=0))
        digests = []
        for factor in (1, 1, 2):
            (tmp_path / "scaling.py").write_text(f"FACTOR = {factor}\n")
            digests.append(load_file_model(f"{tmp_path}/defence.py:net").sha256)
            for name in ("defence", "scaling"):
                sys.modules.pop(name, None)
        assert digests[0] == digests[1] != digests[2]

    def test_the_hash_follows_code_that_is_not_installed_wherever_it_lies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / "defence.py").write_text("import scaling, quopri\n" + FACTORY.format(seed=0))
        (tmp_path / "lib").mkdir()
        monkeypatch.syspath_prepend(tmp_path / "lib")
        digests = []
        for factor in (1, 1, 2):
            (tmp_path / "lib" / "scaling.py").write_text(f"FACTOR = {factor}\n")
            digests.append(load_file_model(f"{tmp_path}/app/defence.py:net").sha256)
            sources = dict(imported_sources(tmp_path / "app", ["scaling", "quopri", "torch", "kwbench.networks.entries"]))
            assert sources == {"scaling": f"FACTOR = {factor}\n".encode()}
            for name in ("defence", "scaling"):
                sys.modules.pop(name, None)
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.parametrize(
        "held",
        [
            "self.register_buffer('scale', torch.tensor(GIVEN), persistent=False)",
            "self.scales = [torch.tensor(GIVEN)]",
            "self.scales = {'by': (np.array(GIVEN),)}",
            "self.scale = GIVEN",
            "self[1].scale = str(GIVEN)",
        ],
        ids=["buffer that is not saved", "list of tensors", "array", "number", "text in a part"],
    )
    def test_the_hash_follows_what_a_module_holds_beside_its_weights(self, tmp_path: Path, held: str) -> None:
        digests = []
        for given in ("1.0", "1.0", "2.0"):
            (tmp_path / "given").write_text(given)
            (tmp_path / "defence.py").write_text(
                f"""
import pathlib
import numpy as np
import torch
from torch import nn

GIVEN = float((pathlib.Path(__file__).parent / "given").read_text())

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Identity())
        {held}
"""
            )
            digests.append(load_file_model(f"{tmp_path}/defence.py:Net").sha256)
            sys.modules.pop("defence", None)
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_a_scripted_module_is_a_module(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text(FACTORY.format(seed=0) + "\ndef scripted(): return torch.jit.script(net())\n")
        module, scripted = (load_file_model(f"{tmp_path}/defence.py:{name}").module for name in ("net", "scripted"))
        x = torch.rand(3, 1, 8, 8, requires_grad=True)
        model = Model(scripted, name="scripted", classes=10, shape=(1, 8, 8), tile=4)
        assert torch.equal(model(x), module(x))
        assert not any(weights.requires_grad for weights in scripted.parameters())

    def test_weights_of_every_type_are_hashed(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text(
            """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for index, dtype in enumerate((torch.bool, torch.int64, torch.bfloat16, torch.float64)):
            self.register_buffer(f"b{index}", torch.ones((), dtype=dtype))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("strided", torch.arange(6.0).view(2, 3).t())
"""
        )
        assert len(load_file_model(f"{tmp_path}/defence.py:Net").sha256) == 64

    @pytest.mark.parametrize(
        ("source", "name", "error", "message"),
        [
            ("def near(): ...\ndef other(): ...\n", "net", UsageError, "has no factory 'net'; it defines: near, other"),
            ("net = 3\n", "net", UsageError, "has no factory 'net'; it defines: nothing callable"),
            ("def net(): return 3\n", "net", UsageError, r"net returned int; it must return a torch\.nn\.Module"),
            ("def net(): return 1 / 0\n", "net", CannotEvaluate, "net raised ZeroDivisionError"),
            ("def net(width): ...\n", "net", CannotEvaluate, "net raised TypeError: .*width"),
            ("raise KeyError('x')\n", "net", CannotEvaluate, "importing it raised KeyError"),
            ("import sys\nsys.exit(0)\n", "net", CannotEvaluate, "importing it raised SystemExit"),
            ("def net(): raise SystemExit(0)\n", "net", CannotEvaluate, "net raised SystemExit"),
            ("def net(:\n", "net", CannotEvaluate, "importing it raised SyntaxError"),
            ("import no_such_module_anywhere\n", "net", CannotEvaluate, "ModuleNotFoundError: .*no_such_module_anywhere"),
        ],
    )
    def test_files_that_give_no_module_are_refused_with_the_reason(
        self, tmp_path: Path, source: str, name: str, error: type[Exception], message: str
    ) -> None:
        (tmp_path / "defence.py").write_text(source)
        with pytest.raises(error, match=rf"defence\.py.*{message}"):
            load_file_model(f"{tmp_path}/defence.py:{name}")

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"none\.py: no such file; .* path/to/file\.py:factory"):
            load_file_model(f"{tmp_path}/none.py:net")


def test_a_folder_with_its_own_models_package_is_imported_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from models.nets import net\n")
    (tmp_path / "models" / "nets.py").write_text(FACTORY.format(seed=0))
    (tmp_path / "defence.py").write_text("from models import net\n")
    model = f"{tmp_path}/defence.py:net"
    code = f"from kwbench.networks.user_files import load_file_model; print(load_file_model({model!r}).module)"
    # From the root of the source tree, where a folder `models` holds the checkpoints.
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PYTHONPATH": str(root / "bench")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Linear(in_features=64, out_features=10" in answer.stdout
