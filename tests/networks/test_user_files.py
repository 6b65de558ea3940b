"""A user's own file: its factory, its hash, and the reasons for which it is refused."""

import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.model import Model
from kwbench.networks.user_code import imported_sources
from kwbench.networks.user_files import load_file_model
from kwbench.networks.user_names import is_file_model

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
    ("name", "own"),
    [("a/b.py:net", True), ("b.py:", True), ("a.b:net", True), ("b.py", False), ("resnet18-relu", False), ("b:", False)],
)
def test_a_path_and_a_factory_name_a_users_model(name: str, own: bool) -> None:
    assert is_file_model(name) is own


@pytest.mark.usefixtures("_imports_as_they_were")
class TestFileModels:
    """Each test restores the import system."""

    def test_the_factorys_module_is_in_evaluation_mode_and_keeps_its_precision(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text(FACTORY.format(seed=0).replace("nn.Dropout())", "nn.Dropout()).double()"))
        loaded = load_file_model(f"{tmp_path}/defence.py:net")
        assert not loaded.module.training
        assert loaded.module(torch.zeros((2, 1, 8, 8), dtype=torch.float64)).dtype == torch.float64

    def test_the_hash_changes_with_the_file_and_the_weights(self, tmp_path: Path) -> None:
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

    def test_the_hash_does_not_change_with_source_that_is_read_for_a_traceback(self, tmp_path: Path) -> None:
        file = tmp_path / "defence.py"
        file.write_text(
            "import traceback\n" + FACTORY.format(seed=0).replace("def net():", "def net():\n    traceback.format_stack()")
        )
        digests = []
        linecache.clearcache()
        for _ in range(2):  # the second time, the lines of this test are at hand
            digests.append(load_file_model(f"{file}:net").sha256)
            sys.modules.pop("defence", None)
        assert digests[0] == digests[1]

    def test_the_hash_changes_with_modules_imported_from_the_files_folder(self, tmp_path: Path) -> None:
        (tmp_path / "defence.py").write_text("import scaling\n" + FACTORY.format(seed=0))
        digests = []
        for factor in (1, 1, 2):
            (tmp_path / "scaling.py").write_text(f"FACTOR = {factor}\n")
            digests.append(load_file_model(f"{tmp_path}/defence.py:net").sha256)
            for name in ("defence", "scaling"):
                sys.modules.pop(name, None)
        assert digests[0] == digests[1] != digests[2]

    def test_the_hash_changes_with_imported_code_that_is_not_installed(
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
    def test_the_hash_changes_with_values_that_a_module_holds_besides_its_weights(self, tmp_path: Path, held: str) -> None:
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
    def test_a_scripted_module_is_accepted(self, tmp_path: Path) -> None:
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
    def test_files_without_a_working_factory_are_refused_with_the_reason(
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
    # Run in the root of the source tree, whose folder `models` holds the checkpoints.
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
