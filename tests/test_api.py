"""The Python API, on small real models, in this process and in scripts as users write them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kwbench
from kwbench.evaluation.arguments import samples_in_memory
from kwbench.evaluation.runner import Progress
from kwbench.networks.in_memory import loaded_in_memory
from support.small_models import Noisy, first_images, trained_cnn

EPS = 0.1

# The lines of the package's docstring, as a user's script without a __main__ guard, on digits.
SCRIPT = """\
import json

import torch
from sklearn.datasets import load_digits

import kwbench


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def forward(self, x):
        return self.layers(x)


torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
model = Net()
optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
x, y = x[:24], y[:24]

result = kwbench.evaluate(model, x, y, suite="strong", eps="8/255", db="results.db")
adversarial = kwbench.attack("apgd", model, x, y, eps="8/255", steps=50)
named = kwbench.evaluate("resnet18-relu", attacks=["fgsm"], n=8)
print(json.dumps({
    "a_std": [result.a_std.value, result.a_std.low, result.a_std.high],
    "a_rob": [result.a_rob.value, result.a_rob.low, result.a_rob.high],
    "verdict": result.verdict.conclusion,
    "attacks": len(result.attacks),
    "samples": len(result.samples),
    "adversarials": list(result.adversarials.shape),
    "adversarial": list(adversarial.shape),
    "farthest": (adversarial - x).abs().max().item(),
    "named": named.a_std.value,
    "record": len(kwbench.results("results.db")),
}))
"""


def images(n: int = 24) -> tuple[Tensor, Tensor]:
    batch = first_images(n)
    return batch.x, batch.y


def test_the_lines_of_the_docstring_work_in_a_fresh_process_with_a_class_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    for name in ("a_std", "a_rob"):
        value, low, high = answer[name]
        assert low <= value <= high
    assert answer["a_rob"][0] <= answer["a_std"][0]
    assert answer["verdict"] in ("confirmed", "overestimated", "inconclusive", "degenerate")
    assert answer["samples"] == 24
    assert answer["adversarials"] == answer["adversarial"] == [24, 1, 8, 8]
    assert 0 < answer["farthest"] <= 8 / 255 + 1e-6
    assert answer["record"] == answer["attacks"] + 1, "every attack that ran, and the clean images"
    assert answer["named"] > 0.9


def test_numbers_tables_and_images_agree() -> None:
    x, y = images()
    model = trained_cnn()
    result = kwbench.evaluate(model, x, y, attacks=["fgsm", "pgd"], parameters={"pgd.steps": 10}, eps=EPS)
    assert result.a_std is not None
    assert result.a_rob is not None
    with torch.no_grad():
        clean, attacked = (model(z).argmax(dim=1) == y for z in (x, result.adversarials))
    assert result.a_std.value == pytest.approx(clean.float().mean().item())
    assert result.a_rob.value == pytest.approx(attacked.float().mean().item())
    assert 0 < result.a_rob.value < result.a_std.value, "the images must tell something"
    assert (result.adversarials - x).abs().max() <= EPS + 1e-6
    assert result.samples["status"].tolist() == [
        "wrong" if not right else "held" if robust else "broken" for right, robust in zip(clean, attacked, strict=True)
    ]
    assert result.samples["robust"].mean() == pytest.approx(result.a_rob.value)
    assert list(result.attacks.index) == ["fgsm", "pgd"]
    assert result.attacks["accuracy"].min() >= result.a_rob.value
    assert (result.model, result.n, str(result.threat)) == ("Sequential", 24, "linf 0.1")
    assert "A_rob" in str(result)
    assert result.to_json()["a_rob"]["value"] == result.a_rob.value


@pytest.mark.parametrize(
    "source",
    [
        TensorDataset,
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
        lambda x, y: [(image, int(label)) for image, label in zip(x, y, strict=True)],
    ],
    ids=["Dataset", "DataLoader", "list"],
)
def test_samples_come_from_a_dataset_or_a_loader_as_from_tensors(source: Callable[[Tensor, Tensor], Any]) -> None:
    x, y = images()
    from_tensors = kwbench.evaluate(trained_cnn(), x, y, attacks="fgsm", eps=EPS, n=20)
    from_source = kwbench.evaluate(trained_cnn(), source(x, y), attacks="fgsm", eps=EPS, n=20)
    assert from_source.samples.equals(from_tensors.samples)
    assert from_source.n == 20


def test_arrays_of_whole_pixels_are_images_too() -> None:
    x, y = images(8)
    pixels = (x.numpy() * 255).round().astype(np.uint8)
    result = kwbench.evaluate(trained_cnn(), pixels, y.numpy(), attacks="noop", eps=EPS)
    assert result.n == 8
    assert (result.adversarials * 255).round().numpy().astype(np.uint8).tolist() == pixels.tolist()


def test_float_images_in_memory_are_not_copied() -> None:
    x, y = torch.rand(1000, 3, 32, 32), torch.arange(1000) % 10
    assert np.shares_memory(samples_in_memory(x, y, None, "images", None).test.images, x.numpy())


def test_a_module_is_left_as_it_was_given() -> None:
    model = deepcopy(trained_cnn()).requires_grad_().train()
    first = next(model.parameters()).requires_grad_(False)
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    kwbench.evaluate(model, *images(8), attacks="fgsm", eps=EPS)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [
        parameter is not first for parameter in model.parameters()
    ]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def class_of(source: str) -> type[nn.Module]:
    """Return the class Net of a source that `inspect` cannot find, as in a notebook."""
    namespace: dict[str, Any] = {"Module": nn.Module, "no_grad": torch.no_grad, "__name__": "notebook"}
    exec(source, namespace)
    return namespace["Net"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_callers_gradient_mode_takes_no_gradients_from_attacks(mode: Callable[[], Any]) -> None:
    outside = kwbench.attack("fgsm", trained_cnn(), *images(8), eps=EPS)
    with mode():
        assert torch.equal(kwbench.attack("fgsm", trained_cnn(), *images(8), eps=EPS), outside)


def test_weights_that_cannot_be_used_are_named() -> None:
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(kwbench.CannotEvaluate, match=r"made under torch\.inference_mode"):
        kwbench.evaluate(made, *images(8), attacks="fgsm", eps=EPS)
    with pytest.raises(kwbench.CannotEvaluate, match="on the device meta have no values"):
        kwbench.evaluate(deepcopy(trained_cnn()).to("meta"), *images(8), attacks="fgsm", eps=EPS)


class TestIdentity:
    def test_the_identity_of_a_module_depends_on_weights_values_and_code(self) -> None:
        class Scaled(nn.Module):
            def __init__(self, scale: float) -> None:
                super().__init__()
                self.scale = scale

            def forward(self, x: Tensor) -> Tensor:
                return self.scale * x.flatten(1)[:, :10]

        class Shifted(Scaled):
            def forward(self, x: Tensor) -> Tensor:
                return self.scale + x.flatten(1)[:, :10]

        digests = [loaded_in_memory(module).sha256 for module in (Scaled(1.0), Scaled(1.0), Scaled(2.0), Shifted(1.0))]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3

    def test_depends_on_base_classes_and_functions_in_attributes(self) -> None:
        def with_function(function: Callable[[Tensor], Tensor]) -> nn.Module:
            module = trained_cnn()
            module.preprocess = function  # type: ignore[assignment]
            return module

        def with_base(scale: int) -> nn.Module:
            source = f"class Base(Module):\n    def forward(self, x):\n        return {scale} * x\nclass Net(Base):\n    pass\n"
            return class_of(source)()

        assert loaded_in_memory(with_base(1)).sha256 != loaded_in_memory(with_base(2)).sha256
        digests = [loaded_in_memory(with_function(f)).sha256 for f in (lambda x: x - 1, lambda x: x - 1, lambda x: x - 2)]
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.parametrize(
        "body",
        [
            "def forward(self, x):\n        return {} * x",
            "def forward(self, x, scale={}):\n        return scale * x",
            "scale = {}\n    def forward(self, x):\n        return self.scale * x",
            "@no_grad()\n    def forward(self, x):\n        return {} * x",
            "@property\n    def scale(self):\n        return {}",
            "@staticmethod\n    def scaled(x):\n        return {} * x",
            "def forward(self, x):\n        return (lambda value: {} * value)(x)",
        ],
    )
    def test_depends_on_the_code_of_a_class_without_source(self, body: str) -> None:
        source = "class Net(Module):\n    " + body
        digests = [loaded_in_memory(class_of(source.format(scale))()).sha256 for scale in (2, 2, 3)]
        assert digests[0] == digests[1] != digests[2]

    def test_the_same_module_continues_its_record_and_another_begins_one(self, tmp_path: Path) -> None:
        db = tmp_path / "results.db"
        other = deepcopy(trained_cnn())
        next(other.parameters()).data[0] += 1e-3
        for model in (trained_cnn(), trained_cnn(), other):
            kwbench.evaluate(model, *images(8), attacks="fgsm", eps=EPS, db=db, name="net")
        assert kwbench.results(db)["run"].nunique() == 2

    def test_without_a_database_nothing_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        kwbench.evaluate(trained_cnn(), *images(8), attacks="noop")
        assert list(tmp_path.iterdir()) == []


def test_progress_is_reported_while_it_is_made() -> None:
    seen: list[Progress] = []
    kwbench.evaluate(trained_cnn(), *images(8), attacks=["fgsm", "pgd"], eps=EPS, progress=seen.append)
    assert [progress.label for progress in seen][-1] == "pgd"
    assert seen[-1].done_in_all == seen[-1].rows_in_all == 24


class TestAttack:
    def test_attack_returns_broken_images_and_clean_images_for_all_other_samples(self) -> None:
        x, y = images()
        model = trained_cnn()
        adversarial = kwbench.attack("pgd", model, x, y, eps=EPS, steps=10)
        moved = (adversarial != x).flatten(1).any(dim=1)
        with torch.no_grad():
            right, broken = (model(x).argmax(dim=1) == y), (model(adversarial).argmax(dim=1) != y)
        assert torch.equal(moved, right & broken)
        assert moved.any()

    def test_a_proposal_that_the_judge_refuses_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from kwbench.attacks.controls import NoOp

        monkeypatch.setattr(NoOp, "__call__", lambda self, model, x, y, threat, rng: x + 2 * threat.radius)
        with pytest.raises(kwbench.CannotEvaluate, match=r"noop: .* invalid \(proposed a p"):
            kwbench.attack("noop", trained_cnn(), *images(8), eps=EPS)

    def test_an_unknown_parameter_is_named(self) -> None:
        with pytest.raises(kwbench.UsageError, match="attack 'pgd' has no parameter 'stepps'"):
            kwbench.attack("pgd", trained_cnn(), *images(8), eps=EPS, stepps=3)


def test_a_diagnosis_has_findings_and_a_verdict_against_the_protocol_named() -> None:
    x, y = images(16)
    result = kwbench.diagnose(trained_cnn(), x, y, suite="controls", protocol="noop", eps=EPS)
    assert result.findings
    assert result.verdict is not None
    assert result.verdict.protocol == "noop"


def test_a_stochastic_model_has_probabilities() -> None:
    x, y = images(8)
    result = kwbench.evaluate(Noisy(trained_cnn(), 2.0), x, y, attacks="fgsm", eps=EPS)
    assert result.summary.stochastic
    assert set(result.samples["clean"]) - {0.0, 1.0}
    assert result.adversarials.shape == x.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: kwbench.evaluate(trained_cnn()), "x, y: give images and labels"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x), "y: labels are missing"),
        (lambda x, y: kwbench.evaluate(3, x, y), "model: int; give a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x + 1, y), "x"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, suite="strong", attacks="pgd"), "suite and attacks"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, checkpoint="weights.pt"), "checkpoint: load the weights"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, attacks="pgdd"), "pgdd"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, eps="eight"), "eps"),
        (lambda x, y: kwbench.evaluate("resnet18-relu", y=y), "y: labels without images"),
        (lambda x, y: kwbench.evaluate("resnet18-relu", x.repeat(1, 3, 1, 1), y), "does not fit images of 3 x 8 x 8"),
        (lambda x, y: kwbench.evaluate("resnet18-relu", x, y + 10), "does not fit .* labels up to 1"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), [1, 2, 3]), "must yield"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), [("a", 1)]), "images are str"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), [(x[0], "a")]), "labels are str"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), [{"image": x[0], "label": 1}]), "yields dict"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), [(x[0], 1), (x[0, :, 1:], 1)]), "resize"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), TensorDataset(x, y), y), "y: leave it out; x is a TensorDataset"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), list(zip(x, y, strict=True)), y), "x, y: cannot be made arrays"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(nn.Module, x, y), "the class Module; give an instance"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, data="images.npz"), "x, data: give one"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, split="validation"), "split: 'validation'; images in memory"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, suite=["pgd"]), "suite: .* attacks= takes"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, attacks=3), "attacks: 3; give"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, attacks=[None]), "attacks: None is not"),  # type: ignore[list-item]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, parameters=["a"]), "parameters: .* mapping"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, n="4"), "n: '4'; it must be an integer or None"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, seed=None), "seed: None; it must be an integer"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, tile=1.5), "tile: 1.5"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, threads=0), "threads: 0; it must be at least 1"),
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, time_limit="3"), "time_limit: '3'"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.evaluate(trained_cnn(), x, y, progress=True), "progress: True; give a function"),  # type: ignore[arg-type]
        (lambda x, y: kwbench.diagnose(trained_cnn(), x, y, epz=EPS), "option 'epz' is unknown; did you mean 'eps'?"),
        (
            lambda x, y: kwbench.attack("pgd", trained_cnn(), x, y, options={"nn": 3}),
            "option 'nn' is unknown; did you mean",
        ),
        (lambda x, y: kwbench.attack("pgd", trained_cnn(), x, y, options={"eps": 1}), "eps is an argument of kwbench.attack"),
        (lambda x, y: kwbench.attack(trained_cnn(), "pgd", x, y), "name: .* attack first, then the model"),  # type: ignore[arg-type]
    ],
)
def test_wrong_use_is_refused_with_the_right_use(call: Callable[[Tensor, Tensor], Any], message: str) -> None:
    with pytest.raises(kwbench.UsageError, match=message):
        call(*images(8))


def test_a_label_beyond_the_logits_is_named() -> None:
    x, y = images(8)
    with pytest.raises(kwbench.CannotEvaluate, match="has 10 classes, but a label is 19; labels count from 0"):
        kwbench.evaluate(trained_cnn(), x, torch.full_like(y, 19), attacks="noop")


@pytest.mark.parametrize("first", [1, 2])
def test_labels_that_do_not_count_from_0_are_named_with_what_to_do(first: int) -> None:
    x, y = images(32)
    shifted = y % 8 + first
    reason = f"labels run from {first} to {first + 7}, but the model's 8 classes are numbered from 0; subtract {first} from the"
    with pytest.raises(kwbench.CannotEvaluate, match=reason):
        kwbench.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), x, shifted, attacks="fgsm")


def test_a_data_set_may_be_iterable_only() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(*images(8), strict=True)

    assert kwbench.evaluate(trained_cnn(), Stream(), attacks="noop", n=5).n == 5


def test_an_exception_of_a_data_set_is_reported_as_its_own() -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            raise FileNotFoundError("7.png")

    with pytest.raises(kwbench.CannotEvaluate, match=r"x: Broken raised FileNotFoundError: 7\.png"):
        kwbench.evaluate(trained_cnn(), Broken(), attacks="noop")


def test_threads_may_begin_one_database_together(tmp_path: Path) -> None:
    def evaluate(name: str) -> None:
        kwbench.evaluate(trained_cnn(), *images(8), attacks="noop", name=name, db=tmp_path / "results.db")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(evaluate, ["first", "second"]))
    assert set(kwbench.results(tmp_path / "results.db")["model"]) == {"first", "second"}


def test_a_result_shows_its_numbers_in_a_notebook() -> None:
    result = kwbench.evaluate(trained_cnn(), *images(8), attacks="noop", name="net")
    assert repr(result) == f"<EvaluationResult {result}>"


def test_images_that_were_not_kept_are_not_invented() -> None:
    result = kwbench.evaluate(trained_cnn(), *images(8), attacks="fgsm", eps=EPS, keep_adversarials=False)
    with pytest.raises(kwbench.CannotEvaluate, match="evaluate with keep_adversarials=True"):
        _ = result.adversarials


def test_importing_kwbench_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, kwbench; print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
