"""Users' models of many kinds, each a small file: loaded, attacked, and the same model at the next start."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kwbench.data import DataSet, dataset_from_arrays
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.outcome import Status
from support.small_registry import fast_suite

HEAD = """
import argparse, copy, functools, io, pathlib
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent

def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(32, 10)).eval()

class Wrapped(nn.Module):
    def __init__(self, function, network=None):
        super().__init__()
        self.network, self.function = network or cnn(), function

    def forward(self, x):
        return self.function(self.network, x)
"""

# Wrappings of one network that change none of its answers, as the expression that a factory returns.
SAME = {
    "plain": "cnn()",
    "training mode forgotten": "cnn().train()",
    "train() returns nothing": "Frozen(cnn())",
    "normalised, and scaled back": "Wrapped(lambda network, x: network(((x - 0.5) / 0.25) * 0.25 + 0.5))",
    "expects 0 to 255": "Wrapped(lambda network, x: network((x * 255) / 255))",
    "ensemble in a list": "Wrapped(lambda network, x, held=[cnn().train(), cnn()]: mean(held, x))",
    "ensemble in a ModuleList": "Wrapped(mean, nn.ModuleList([cnn(), cnn()]))",
    "settings in a namespace": "Wrapped(lambda network, x, args=argparse.Namespace(scale=1): args.scale * network(x))",
    "scripted": "torch.jit.script(cnn())",
    "traced": "torch.jit.trace(cnn(), torch.rand(4, 3, 32, 32))",
    "compiled": "torch.compile(cnn(), backend='eager')",
    "exported": "torch.export.export(cnn(), (torch.rand(4, 3, 32, 32),)).module()",
    "traced by fx": "torch.fx.symbolic_trace(cnn())",
    "DataParallel": "nn.DataParallel(cnn())",
    "float64 inside": "Wrapped(lambda network, x: network(x.double()), cnn().double())",
    "channels last": "Wrapped(lambda network, x: network(x.contiguous(memory_format=torch.channels_last)))",
    "changes its input": "Wrapped(lambda network, x: network(x.mul_(2).div_(2)))",
    "keeps activations by hooks": "hooked()",
    "weight norm": "normed()",
    "whole module in a file": "saved(torch.save, functools.partial(torch.load, weights_only=False))",
    "scripted module in a file": "saved(lambda made, path: torch.jit.save(torch.jit.script(made), path), torch.jit.load)",
}
# Models with answers of their own.
OTHERS = {
    "log-softmax": "Wrapped(lambda network, x: network(x).log_softmax(1))",
    "softmax": "Wrapped(lambda network, x: network(x).softmax(1))",
    "half inside": "Wrapped(lambda network, x: network(x.bfloat16()), cnn().bfloat16())",
    "autocast": "Wrapped(torch.autocast('cpu', torch.bfloat16)(lambda network, x: network(x)))",
    "int8, dynamic": "torch.ao.quantization.quantize_dynamic(cnn(), {nn.Linear}, dtype=torch.qint8)",
    "int8, static": "static()",
    "rounds pixels": "Wrapped(lambda network, x: network((x * 8).round() / 8))",
    "through NumPy": "Wrapped(lambda network, x: network(torch.from_numpy(np.clip(x.detach().numpy() * 1.1, 0, 1))))",
    "JPEG": "Wrapped(lambda network, x: network(torch.stack([jpeg(image) for image in x])))",
    "noise": "Wrapped(lambda network, x: network(x + 0.1 * torch.randn_like(x)))",
    "noise of its own generator": "Wrapped(lambda network, x, rng=np.random.default_rng(0): network(x + float(rng.normal())))",
    "random resize": "Wrapped(lambda network, x: network(F.interpolate(x, int(torch.randint(24, 32, ())))))",
    "random forest": "Wrapped(functools.partial(scored, forest()))",
    "nearest neighbours": "Wrapped(functools.partial(scored, neighbours()))",
    "FFT": "Wrapped(lambda network, x: network(torch.fft.ifft2(torch.fft.fft2(x) * 0.9).real))",
    "transformer": "transformer()",
    "torchvision": "torchvision().models.shufflenet_v2_x0_5(num_classes=10)",
    "timm": "timm().create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=12, depth=1, num_classes=10)",
    "Hugging Face": "Wrapped(lambda network, x: network(x).logits, hugging_face())",
    "ONNX": "onnx()",
}
MADE = """
class Frozen(nn.Sequential):
    def train(self, mode=True): return None

def mean(networks, x): return sum(network(x) for network in networks) / len(networks)

def hooked():
    made, kept = cnn(), []
    made[0].register_forward_hook(lambda module, inputs, outputs: kept.append(outputs.detach()) or None)
    return made

def normed():
    made = cnn()
    nn.utils.parametrizations.weight_norm(made[6])
    return made.eval()

def saved(save, load):
    save(cnn(), HERE / "whole.pt")
    return load(HERE / "whole.pt")

def static():
    from torch.ao import quantization as q
    made = q.QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)))
    made.qconfig = q.get_default_qconfig("onednn" if "x86" not in torch.backends.quantized.supported_engines else "x86")
    prepared = q.prepare(made.eval())
    prepared(torch.rand(8, 3, 32, 32))
    return q.convert(prepared)

def jpeg(image):
    from PIL import Image
    file = io.BytesIO()
    pixels = (image.detach().permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return torch.from_numpy(np.array(Image.open(file)).astype("float32") / 255).permute(2, 0, 1)

def scored(classifier, network, x):
    return torch.from_numpy(classifier.predict_proba(x.detach().flatten(1).numpy())).float()

def samples():
    rng = np.random.default_rng(0)
    return rng.random((40, 3072), dtype="float32"), np.arange(40) % 10

def forest():
    from sklearn.ensemble import RandomForestClassifier
    return RandomForestClassifier(5, random_state=0).fit(*samples())

def neighbours():
    from sklearn.neighbors import KNeighborsClassifier
    return KNeighborsClassifier(3).fit(*samples())

def transformer():
    layer = nn.TransformerEncoderLayer(48, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Unfold(4, stride=4), nn.Flatten(2), Transposed(), encoder, nn.Flatten(), nn.Linear(64 * 48, 10))

class Transposed(nn.Module):
    def forward(self, x): return x.transpose(1, 2)

def torchvision():
    import torchvision
    return torchvision

def timm():
    import timm
    return timm

def hugging_face():
    from transformers import ViTConfig, ViTForImageClassification
    return ViTForImageClassification(ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                                               image_size=32, patch_size=8, num_labels=10))

def onnx():
    import onnx2torch
    from onnx import TensorProto, helper, numpy_helper
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3072, 10)).astype("float32"), "weights")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "net", [x], [y], [weights])
    return onnx2torch.convert(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))
"""


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path) -> Iterator[None]:
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    sys.path[:] = path
    sys.modules.pop("defence", None)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> DataSet:
    rng = np.random.default_rng(1)
    return dataset_from_arrays(rng.random((4, 3, 32, 32), dtype="float32"), np.arange(4), "noise")


def evaluator(folder: Path, model: str, images: DataSet) -> LocalEvaluator:
    """Return the evaluator of a model, loaded as at every start."""
    (folder / "defence.py").write_text(f"{HEAD}{MADE}\ndef net():\n    torch.manual_seed(0)\n    return {model}\n")
    sys.modules.pop("defence", None)
    suite = fast_suite("square", settings=("square.steps=3",))
    return LocalEvaluator(Request(f"{folder}/defence.py:net", suite, images=images, n=4, tile=4, eps="8/255", threads=1))


def attacked(loaded: LocalEvaluator) -> list[Any]:
    """Return what the clean images and the attacked ones came to: statuses and predictions."""
    clean = loaded.judge_clean(range(4))
    outcomes = [*clean, *loaded.judge("square", range(4), clean, None)]
    assert {outcome.status for outcome in outcomes} <= {Status.WRONG, Status.BROKEN, Status.HELD}, outcomes
    return [(outcome.status, outcome.prediction) for outcome in outcomes]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAME)
def test_one_network_in_any_wrapping_has_the_same_outcomes_and_is_recognised(
    kind: str, tmp_path: Path, images: DataSet
) -> None:
    bare = attacked(evaluator(tmp_path, "cnn()", images))
    first, again = (evaluator(tmp_path, SAME[kind], images) for _ in range(2))
    assert attacked(first) == bare
    assert first.facts.identity == again.facts.identity
    assert not first.facts.stochastic


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_kind_is_evaluated_and_recognised(kind: str, tmp_path: Path, images: DataSet) -> None:
    first, again = (evaluator(tmp_path, OTHERS[kind], images) for _ in range(2))
    attacked(first)
    facts = [replace(each.facts, answers=None) for each in (first, again)]
    assert facts[0] == facts[1]
    assert first.facts.stochastic is (kind in {"noise", "noise of its own generator", "random resize"})
