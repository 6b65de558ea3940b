"""The forms in which users have their models: every one is loaded, or refused with what to do instead."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kwbench.cli.main import app
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.model import Model
from kwbench.networks.loaded import Loaded
from kwbench.networks.user_files import load_file_model
from kwbench.networks.user_names import candidates, parse_file_model, require_model_name

NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 10))
"""


@pytest.fixture(autouse=True)
def _imports_as_they_were(tmp_path: Path) -> Any:
    path, loaded = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - loaded:
        module = sys.modules[name]
        if str(tmp_path) in f"{getattr(module, '__file__', '')} {getattr(module, '__path__', '')}":
            del sys.modules[name]


def load(folder: Path, source: str, factory: str = "net", **options: Any) -> Loaded:
    """Return the model of a file, loaded as in a fresh process."""
    (folder / "defence.py").write_text(source)
    sys.modules.pop("defence", None)
    return load_file_model(f"{folder}/defence.py:{factory}", **options)


def logits(loaded: Loaded) -> torch.Tensor:
    """Return the logits of two images, as kwbench asks for them."""
    model = Model(loaded.module, name="defence", classes=10, shape=(1, 8, 8), tile=2, beside=loaded.hidden)
    return model(torch.linspace(0, 1, 128).view(2, 1, 8, 8))


class TestForms:
    @pytest.mark.parametrize(
        ("added", "factory"),
        [
            ("model = net()\n", "model"),
            ("class Net(nn.Sequential):\n    def __init__(self): super().__init__(net())\n", "Net"),
            ("class Zoo:\n    @staticmethod\n    def small(): return net()\n", "Zoo.small"),
            ("import functools\nmade = functools.partial(lambda width: net(), 3)\n", "made"),
        ],
        ids=["instance", "class", "dotted", "partial"],
    )
    def test_an_instance_a_class_and_other_callables_are_models_as_functions_are(
        self, tmp_path: Path, added: str, factory: str
    ) -> None:
        expected = logits(load(tmp_path, NET))
        assert torch.equal(logits(load(tmp_path, NET + added, factory)), expected)

    def test_train_and_eval_need_not_return_the_module(self, tmp_path: Path) -> None:
        source = NET + (
            "class Frozen(nn.Sequential):\n    def train(self, mode=True): super().train(mode)\n"
            "class Mute(nn.Sequential):\n    def eval(self): super().eval()\n"
        )
        expected = logits(load(tmp_path, NET))
        for kind in ("Frozen", "Mute"):
            loaded = load(tmp_path, f"{source}\ndef made(): return {kind}(net())\n", "made")
            assert torch.equal(logits(loaded), expected)
            assert loaded.notes == ()

    @pytest.mark.parametrize("made", ["exported", "nn.Sequential(exported, nn.Dropout())"], ids=["whole", "part"])
    def test_exported_modules_keep_their_mode(self, tmp_path: Path, made: str) -> None:
        export = "exported = torch.export.export(net().eval(), (torch.rand(2, 1, 8, 8),)).module()"
        loaded = load(tmp_path, f"{NET}\ndef made():\n    {export}\n    return {made}\n", "made")
        assert torch.allclose(logits(loaded), logits(load(tmp_path, NET)), atol=1e-5)
        assert loaded.notes == ()

    def test_a_module_exported_in_training_mode_is_a_warning(self, tmp_path: Path) -> None:
        made = "def made():\n    return torch.export.export(net().train(), (torch.rand(2, 1, 8, 8),)).module()\n"
        (note,) = load(tmp_path, NET + made, "made").notes
        assert note.startswith("warning: 1 GraphModule")

    def test_the_defaults_of_the_users_code_hold_in_its_passes_alone(self, tmp_path: Path) -> None:
        source = """
import torch
from torch import nn
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.autograd.set_detect_anomaly(True)
torch.backends.cudnn.benchmark = True

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1).to(torch.get_default_dtype())) @ torch.eye(10)
"""
        loaded = load(tmp_path, source, "Net")
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_anomaly_enabled()
        assert not torch.backends.cudnn.benchmark
        assert logits(loaded).dtype == torch.float32
        assert torch.get_default_dtype() == torch.float32
        with pytest.raises(AttributeError):
            loaded.module(None)
        assert torch.get_default_dtype() == torch.float32

    def test_sparse_weights_are_loaded(self, tmp_path: Path) -> None:
        source = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.eye(64)[:10].to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.weight, x.flatten(1).T).T
"""
        assert torch.equal(logits(load(tmp_path, source, "Net")), torch.linspace(0, 1, 128).view(2, 64)[:, :10])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_torchvision_can_be_imported(self, tmp_path: Path) -> None:
        source = "import torchvision\ndef net(): return torchvision.models.squeezenet1_1(num_classes=10)\n"
        assert isinstance(load(tmp_path, source).module, nn.Module)


class TestModesAndHiddenModules:
    @pytest.mark.parametrize(
        ("holding", "used"),
        [
            ("self.held = [net(), net()]", "self.held[0](x)"),
            ("self.held = {'a': (net(),)}", "self.held['a'][0](x)"),
            ("self.held = Box(net())", "self.held.network(x)"),
            ("self.held = lambda made=net(): made", "self.held()(x)"),
            ("pass", "GLOBAL(x)"),
        ],
        ids=["list", "dictionary", "object", "closure", "global"],
    )
    def test_modules_that_eval_does_not_reach_are_put_into_evaluation_mode_and_frozen(
        self, tmp_path: Path, holding: str, used: str
    ) -> None:
        source = f"""{NET}
class Box:
    def __init__(self, network): self.network = network

GLOBAL = net()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {holding}

    def forward(self, x): return {used}
"""
        loaded = load(tmp_path, source, "Net")
        assert torch.equal(logits(loaded), logits(load(tmp_path, NET)))
        assert not any(parameter.requires_grad for module in loaded.hidden for parameter in module.parameters())
        (note,) = load(tmp_path, source, "Net").notes
        assert note.startswith("eval() does not reach ")
        assert "Sequential that it uses, which w" in note

    def test_a_dropout_that_refuses_is_a_warning(self, tmp_path: Path) -> None:
        source = f"""{NET}
class Stubborn(nn.Dropout):
    def train(self, mode=True): return super().train(True)

def noisy(): return nn.Sequential(nn.Flatten(), Stubborn(), nn.Linear(64, 10))
"""
        (note,) = load(tmp_path, source, "noisy").notes
        assert note.startswith("warning: 1 Stubborn cannot be put into evaluation mode")

    def test_an_own_generator_takes_part_and_is_noticed(self, tmp_path: Path) -> None:
        source = """
import numpy as np
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.rng = np.random.default_rng(SEED)
"""
        digests = [load(tmp_path, "import torch; torch.manual_seed(0)" + source.replace("SEED", seed), "Net") for seed in "112"]
        assert all(loaded.draws_itself for loaded in digests)
        assert digests[0].sha256 == digests[1].sha256 != digests[2].sha256


class TestFilesOfTheFactory:
    @pytest.mark.parametrize("reading", ["open(PATH).close()", "PATH.read_text()", "__import__('numpy').load(PATH)"])
    def test_files_that_it_reads_take_part_and_those_that_it_writes_do_not(self, tmp_path: Path, reading: str) -> None:
        import numpy as np

        source = f"""{NET}
import pathlib, time
PATH = pathlib.Path(__file__).with_name("settings.npy")

def reading():
    held = {reading}
    log = pathlib.Path(__file__).with_name("log.txt")
    log.write_text(str(time.time()))
    assert log.read_text()
    return net()
"""
        digests = []
        for value in (1, 1, 2):
            if "numpy" in reading:
                np.save(tmp_path / "settings.npy", np.array(value))
            else:
                (tmp_path / "settings.npy").write_text(str(value))
            digests.append(load(tmp_path, source, "reading").sha256)
        assert digests[0] == digests[1] != digests[2]

    def test_the_identity_does_not_depend_on_the_folder(self, tmp_path: Path) -> None:
        source = NET + (
            "import pathlib\nHERE = pathlib.Path(__file__).parent\nclass Net(nn.Sequential):\n"
            "    def __init__(self):\n        super().__init__(net())\n        self.path, self.text = HERE, str(HERE / 'a')\n"
            "    def forward(self, x): return super().forward(x) if HERE else x\n"
        )
        digests = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            digests.append(load(tmp_path / name, source, "Net").sha256)
        assert digests[0] == digests[1]


class TestCheckpoints:
    @pytest.mark.parametrize("form", ["pt", "safetensors"])
    def test_a_checkpoint_is_loaded_into_the_module_and_takes_part(self, tmp_path: Path, form: str) -> None:
        import safetensors.torch

        own = load(tmp_path, NET)
        weights = {key: value + 1 if value.is_floating_point() else value for key, value in own.module.state_dict().items()}
        file = tmp_path / f"weights.{form}"
        torch.save(weights, file) if form == "pt" else safetensors.torch.save_file(weights, file)
        other = load(tmp_path, NET, checkpoint=file)
        assert torch.equal(other.module.state_dict()["1.weight"], weights["1.weight"])
        assert other.sha256 != own.sha256

    def test_a_checkpoint_that_is_missing_or_does_not_fit_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(CannotEvaluate, match=r"--checkpoint .*none\.pt: cannot be read \(No such file"):
            load(tmp_path, NET, checkpoint=tmp_path / "none.pt")
        state = load(tmp_path, NET).module.state_dict()
        torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "prefixed.pt")
        with pytest.raises(DamagedData, match=r"prefixed\.pt: keys do not fit .*1\.bias.*module\.1\.bias.*--strip-prefix"):
            load(tmp_path, NET, checkpoint=tmp_path / "prefixed.pt")
        (tmp_path / "text.pt").write_text("no weights")
        with pytest.raises(DamagedData, match=r"text\.pt: not a safetensors file"):
            load(tmp_path, NET, checkpoint=tmp_path / "text.pt")

    @pytest.mark.parametrize("form", ["pt", "safetensors"])
    def test_a_key_and_a_prefix_lead_to_the_weights(self, tmp_path: Path, form: str) -> None:
        import safetensors.torch

        state = load(tmp_path, NET).module.state_dict()
        prefixed = {f"module.{key}": value + 1 if value.is_floating_point() else value for key, value in state.items()}
        file = tmp_path / f"weights.{form}"
        torch.save({"nets": {"ema": prefixed}}, file) if form == "pt" else safetensors.torch.save_file(prefixed, file)
        key = {"key": "nets.ema"} if form == "pt" else {}
        loaded = load(tmp_path, NET, checkpoint=file, strip_prefix="module.", **key)
        assert torch.equal(loaded.module.state_dict()["1.weight"], prefixed["module.1.weight"])
        with pytest.raises(UsageError, match=r"has no key 'other'|holds the weights alone"):
            load(tmp_path, NET, checkpoint=file, key="other")
        if form == "safetensors":
            with pytest.raises(UsageError, match=r"no key begins with 'model\.'"):
                load(tmp_path, NET, checkpoint=file, strip_prefix="model.")


class TestArguments:
    SOURCE = NET.replace("def net():", "def net(width=10, *, scale=1.0, name=''):").replace("10)", "width)")

    @pytest.mark.parametrize(
        ("call", "width"), [("net", 10), ("net()", 10), ("net(12)", 12), ("net(width=11, name='a:b(c)')", 11)]
    )
    def test_a_factory_gets_the_literals_in_its_name(self, tmp_path: Path, call: str, width: int) -> None:
        assert load(tmp_path, self.SOURCE, call).module(torch.zeros(2, 1, 8, 8)).shape == (2, width)

    def test_one_call_is_written_in_one_way(self) -> None:
        calls = ('net.py:net( 28 ,path = "w.pt")', "net.py:net(28, path='w.pt')")
        parsed = [parse_file_model(call) for call in calls]
        assert parsed[0] == parsed[1]
        assert parsed[0].call == "net(28, path='w.pt')"
        assert parse_file_model("net.py:net()").call == "net"
        assert parse_file_model("a (copy)/net.py:net(1)").source == "a (copy)/net.py"
        assert parse_file_model("own.models:net([1, {'a': None}])").positional == ([1, {"a": None}],)

    @pytest.mark.parametrize("call", ["net(open('x'))", "net(width=)", "net(*[1])", "net(**{})", "net(width)"])
    def test_arguments_that_are_no_literals_are_refused(self, tmp_path: Path, call: str) -> None:
        with pytest.raises(UsageError, match=r"the arguments of net must be literals, such as net\(depth=28"):
            load(tmp_path, self.SOURCE, call)

    def test_a_module_takes_no_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"defence\.py:model\(1\): model is a module"):
            load(tmp_path, NET + "model = net()\n", "model(1)")


class TestPackages:
    @pytest.mark.parametrize("init", [True, False], ids=["package", "plain folder"])
    @pytest.mark.parametrize("relative", ["from .layers import net", "from . import layers\nnet = layers.net"])
    def test_relative_imports_work_in_a_package_and_in_a_plain_folder(self, tmp_path: Path, init: bool, relative: str) -> None:
        folder = tmp_path / "mydef"
        folder.mkdir()
        (folder / "layers.py").write_text(NET)
        if init:
            (folder / "__init__.py").write_text("")
        expected = logits(load(tmp_path, NET))
        assert torch.equal(logits(load(folder, relative)), expected)

    def test_imports_that_climb_two_folders_work(self, tmp_path: Path) -> None:
        (tmp_path / "a.b" / "inner").mkdir(parents=True)
        (tmp_path / "a.b" / "layers.py").write_text(NET)
        assert len(logits(load(tmp_path / "a.b" / "inner", "from ..layers import net\n"))) == 2

    def test_a_dotted_name_is_imported_from_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own_package").mkdir()
        (tmp_path / "own_package" / "layers.py").write_text(NET)
        (tmp_path / "own_package" / "models.py").write_text("from .layers import net\n")
        monkeypatch.chdir(tmp_path)
        loaded = load_file_model("own_package.models:net")
        assert torch.equal(logits(loaded), logits(load(tmp_path, NET)))
        with pytest.raises(UsageError, match=r"own_package\.other: there is no module 'own_package\.other'"):
            load_file_model("own_package.other:net")


class TestMessages:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("def net(): pass\n", "returned None, perhaps for want of a return statement"),
            (
                "def net(width): pass\n",
                "missing 1 required positional argument: 'width'; give it in the name, as",
            ),
            ("import numba_of_old\n", "install numba_of_old beside kwbench"),
            (
                "import argparse\np = argparse.ArgumentParser()\np.add_argument('lr')\np.parse_args()\n",
                "required: lr.*no arguments",
            ),
            ("import torch\nnet = {'a': torch.ones(1)}\n", r"has no factory 'net' \(net is a state dict; build the network"),
        ],
    )
    def test_what_is_wrong_is_said_with_the_remedy(self, tmp_path: Path, source: str, message: str) -> None:
        with pytest.raises((CannotEvaluate, UsageError), match=rf"defence\.py.*{message}"):
            load(tmp_path, source)

    def test_parse_args_finds_no_arguments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["kwbench", "evaluate", "--db", "x"])
        source = NET + "import argparse\nparser = argparse.ArgumentParser()\nparser.parse_args()\n"
        assert len(logits(load(tmp_path, source))) == 2
        assert sys.argv[0] == "kwbench"

    def test_a_pickled_model_finds_its_class_in_the_file_or_is_told_to_import_it(self, tmp_path: Path) -> None:
        script = "class Own(nn.Linear):\n    pass\n"
        loading = f"import pathlib\ndef net(): return torch.load({str(tmp_path / 'whole.pt')!r}, weights_only=False)\n"
        namespace: dict[str, Any] = {"__name__": "__main__", "nn": nn}
        exec(script, namespace)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["__main__"], "Own", namespace["Own"], raising=False)
            torch.save(namespace["Own"](64, 10), tmp_path / "whole.pt")
        header = "import torch\nfrom torch import nn\n"
        assert type(load(tmp_path, header + script + loading).module).__name__ == "Own"
        with pytest.raises(CannotEvaluate, match=r"needs the class 'Own' of the script that saved it.*define or import Own"):
            load(tmp_path, header + loading)
        with pytest.raises(CannotEvaluate, match=r"holds more than weights.*weights_only=False"):
            load(tmp_path, header + loading.replace(", weights_only=False", ""))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("defence.py", r"name the function, class or module .* such as .*defence\.py:net; it defines net, Net, model"),
            ("none.py", "no such file"),
            ("net.onnx", r"evaluate onnx:.*net\.onnx"),
            ("net.pt2", r"evaluate export:.*net\.pt2"),
            ("net.pt", r"a file of weights, not of code; .* --checkpoint .*net\.pt"),
        ],
    )
    def test_a_file_without_a_factory_is_told_how_to_name_one(self, tmp_path: Path, name: str, message: str) -> None:
        defined = "def cnn(width): pass\nclass Net(nn.Module): pass\nclass Other: pass\nmodel = net()\n_hidden = net()\n"
        (tmp_path / "defence.py").write_text(NET + defined)
        with pytest.raises(UsageError, match=message):
            require_model_name(f"{tmp_path}/{name}")

    def test_names_of_the_registry_and_damaged_code_pass(self) -> None:
        require_model_name("resnet18-kwta0.1")
        assert candidates("def (") == []


def test_a_factory_may_use_a_data_loader_with_workers(tmp_path: Path) -> None:
    """In the process of its own that a user's file runs in."""
    source = (
        NET
        + """
from torch.utils.data import DataLoader, TensorDataset

def loading():
    loader = DataLoader(TensorDataset(torch.rand(4, 1, 8, 8)), batch_size=2, num_workers=1)
    assert sum(len(batch) for batch, in loader) == 4
    return net()
"""
    )
    (tmp_path / "defence.py").write_text(source)
    command = ["evaluate", f"{tmp_path}/defence.py:loading", "--attack", "fgsm", "--dataset", "digits", "--n", "8", "--json"]
    command += ["--threads", "1", "--db", str(tmp_path / "x.db")]
    for _ in range(2):
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.output
        assert json.loads(answer.stdout)["notes"] == []
    with sqlite3.connect(tmp_path / "x.db") as connection:
        assert connection.execute("SELECT count(*) FROM evaluations").fetchone() == (1,)
