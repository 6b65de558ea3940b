"""Models evaluated from outside the process of their code, for files that nobody vouches for.

The code runs in a process that may neither write outside a temporary folder nor open connections, without the secrets of the
environment. Images go in; logits and gradients come out, as bytes that hold numbers only. Attacks, labels, distances, checks
and the record stay here, so that no code can decide its own outcomes.

Operations inside the model cannot be seen from here, so attacks that relax them follow its plain gradients.
"""

import hashlib
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, DamagedData, KwbenchError, UsageError
from kwbench.evaluation.execution.channel import Channel, NoAnswer
from kwbench.evaluation.execution.confinement import Confinement, confine
from kwbench.evaluation.execution.processes import STALLED, ServerProcess, server_process
from kwbench.evaluation.execution.sandbox import write_launcher
from kwbench.model.outputs import find_logits, refusal
from kwbench.networks.loaded import Loaded
from kwbench.networks.user_files import load_file_model
from kwbench.networks.user_names import is_path, parse_file_model
from kwbench.randomness import seeded_globally

# The first byte of an answer: tensors, JSON, or the message of an error.
_TENSORS, _JSON = b"T", b"J"
_ERRORS: dict[bytes, type[Exception]] = {
    b"U": UsageError,
    b"D": DamagedData,
    b"C": CannotEvaluate,
    b"M": MemoryError,
    b"R": RuntimeError,
}
# Bytes of an answer beside its numbers, and of a message; classes of a model.
_MOST_BESIDE, _LONGEST, _MOST_CLASSES = 1 << 16, 2000, 100_000


class OutsideModel(nn.Module):
    """A module in another process. It answers images (b, c, h, w) on any device with logits (b, k), once differentiable."""

    def __init__(self, name: str, child: ServerProcess, confinement: Confinement, time_limit: float | None) -> None:
        super().__init__()
        self._name, self._child, self._time_limit = name, child, time_limit
        self._finalizer = weakref.finalize(self, _end, child, confinement)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Its random draws follow torch's global generator, as those of a module here would."""
        seed = int(torch.randint(1 << 31, ()))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.ask("answer", x, seed)
        logits: Tensor = _Answer.apply(x, self, seed)  # type: ignore[no-untyped-call]
        return logits

    def ask(self, what: str, x: Tensor, seed: int, weights: Tensor | None = None) -> Tensor:
        """Return logits, or the gradient at x of their sum weighted by `weights` (b, k)."""
        tensors = {"x": _plain(x)} | ({} if weights is None else {"weights": _plain(weights)})
        numbers = len(x) * _MOST_CLASSES if weights is None else 2 * x.numel()
        answer = self.exchange((what, safetensors.torch.save(tensors), seed), 8 * numbers + _MOST_BESIDE)
        try:
            value = safetensors.torch.load(answer)["value"].to(x.device)
        except Exception as failure:  # noqa: BLE001 - foreign code may answer anything
            raise self._no_answer(failure) from None
        if weights is not None and value.shape != x.shape:
            raise CannotEvaluate(f"{self._name}: its process sent a gradient of shape {tuple(value.shape)}")
        return value if weights is None else value.to(x.dtype)

    def exchange(self, message: Any, most: int | None = None) -> bytes:
        """Send a message and return the answer, of at most so many bytes. Raises what the answer says."""
        pipe = self._child.pipe
        try:
            pipe.send(message)
            answer = pipe.recv_bytes(most, self._time_limit)
        except NoAnswer as failure:
            self.close()
            raise CannotEvaluate(f"{self._name}: {failure}; the process was stopped") from None
        except (EOFError, OSError) as failure:
            self._child.process.join(5)
            code = self._child.process.exitcode
            died = self._child.memory.exceeded or f"died (exit code {code})"
            reason = f"sent what is no answer ({failure})" if code is None else died
            raise CannotEvaluate(f"{self._name}: its process {reason}; what was finished is on record") from None
        kind = answer[:1]
        if kind in _ERRORS:
            raise _ERRORS[kind](answer[1 : 1 + _LONGEST].decode(errors="replace"))
        if kind not in (_TENSORS, _JSON):
            raise self._no_answer(ValueError("unknown kind"))
        return answer[1:]

    def close(self) -> None:
        """End the process, and remove its temporary folder."""
        self._finalizer()

    def _no_answer(self, failure: Exception) -> CannotEvaluate:
        return CannotEvaluate(f"{self._name}: its process sent what is no answer ({type(failure).__name__})")

    def __deepcopy__(self, memo: dict[int, Any]) -> "OutsideModel":
        return self


class _Answer(torch.autograd.Function):
    """One pass through an OutsideModel, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: OutsideModel, seed: int) -> Tensor:
        ctx.save_for_backward(x.detach().clone())
        ctx.module, ctx.seed = module, seed
        return module.ask("traced answer", x, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.module.ask("gradient", x, ctx.seed, weights), None, None


def load_outside(
    name: str, time_limit: float | None, memory_limit: float | None = None, *, sandbox: bool = False, **weights: Any
) -> Loaded:
    """Return the module of path/to/file.py:factory, whose code runs in another process; see `load_file_model`.

    `weights` are the other arguments of `load_file_model`. `time_limit` bounds the seconds of each pass, and `memory_limit`
    the bytes of memory. With `sandbox`, its process sees no other files than it needs; see there. The hash covers the file
    itself, and what its process reports: it tells honest models apart. Raises as `load_file_model` does.
    """
    source = Path(parse_file_model(name).source)
    confinement = Confinement()
    child = None
    try:
        # The folder of a file is its program; a module is looked for in the working folder, too.
        readable = [source.parent if is_path(str(source)) else Path.cwd()]
        readable += [weights["checkpoint"]] if weights.get("checkpoint") is not None else []
        launcher = write_launcher(confinement.folder, readable) if sandbox else None
        with confinement.environment():
            child = server_process(__name__, launcher)
        module = OutsideModel(name, child, confinement, None)
    except BaseException:
        _end(child, confinement)
        raise
    try:
        child.pipe.send((confinement.folder, torch.get_num_threads()))
        child.memory.start(memory_limit)
        module.exchange("started")  # kwbench's own imports are not subject to the time limit
        module._time_limit, child.pipe.patience = time_limit, STALLED
        answer = json.loads(module.exchange(("load", name, weights), _MOST_BESIDE))
        reported, notes, kept_in = str(answer["sha256"]), list(map(str, answer["notes"])), bool(answer["confined"])
    except (ValueError, KeyError, TypeError) as failure:
        module.close()
        raise CannotEvaluate(f"{name}: its process sent what is no answer ({type(failure).__name__})") from None
    except BaseException:
        module.close()
        raise
    content = source.read_bytes() if is_path(str(source)) and source.is_file() else name.encode()
    digest = hashlib.sha256(b"outside\0" + content + reported.encode()).hexdigest()
    open_ended = [] if kept_in else ["warning: this system cannot keep its code from files and connections"]
    return Loaded(module.eval(), digest, (*notes, "evaluated from outside the process of its code", *open_ended))


def serve(pipe: Channel) -> None:
    """Serve an OutsideModel at the other end of the pipe until it is closed."""
    folder, threads = pipe.recv()
    torch.set_num_threads(threads)
    confined = confine(folder)
    passes = _Passes(nn.Module())
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        with _answering_errors(pipe):
            if message == "started":
                pipe.send_bytes(_JSON)
            elif message[0] == "load":
                loaded = load_file_model(message[1], **message[2])
                passes = _Passes(loaded.module)
                report = {"sha256": loaded.sha256, "notes": loaded.notes, "confined": confined}
                pipe.send_bytes(_JSON + json.dumps(report).encode())
            else:
                what, content, seed = message
                tensors = safetensors.torch.load(content)
                value = (
                    passes.gradient(tensors["x"], seed, tensors["weights"])
                    if what == "gradient"
                    else (passes.logits(tensors["x"], seed, traced=what == "traced answer"))
                )
                pipe.send_bytes(_TENSORS + safetensors.torch.save({"value": _plain(value)}))


class _Passes:
    """Passes through a module. The last one for a gradient is kept, since its gradient is asked for next."""

    def __init__(self, module: nn.Module) -> None:
        for weights in module.parameters():
            weights.requires_grad_(False)
        self._module = module
        self._kept: tuple[Tensor, int, Tensor] | None = None

    def logits(self, x: Tensor, seed: int, *, traced: bool) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w), with random draws from this seed."""
        self._kept = None
        x.requires_grad_(traced)
        with seeded_globally(seed), torch.set_grad_enabled(traced):
            # A module may overwrite its input.
            output = self._module(x.clone())
        logits = output if isinstance(output, Tensor) else find_logits(output)[0]
        if logits is None or (reason := refusal(logits, len(x))) is not None:
            raise CannotEvaluate(str(refusal(output, len(x)) if logits is None else reason))
        if traced:
            self._kept = x, seed, logits
        return logits

    def gradient(self, x: Tensor, seed: int, weights: Tensor) -> Tensor:
        """Return the gradient at x of the logits' sum weighted by `weights` (b, k); zero where there is none."""
        if self._kept is None or self._kept[1] != seed or not torch.equal(self._kept[0], x):
            self.logits(x, seed, traced=True)
        assert self._kept is not None
        x, _, logits = self._kept
        self._kept = None
        if not logits.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(logits, x, weights.to(logits.dtype), allow_unused=True)
        return torch.zeros_like(x) if gradient is None else gradient


@contextmanager
def _answering_errors(pipe: Channel) -> Iterator[None]:
    """Answer with what this block raises."""
    try:
        yield
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        known = (mark for mark, kind in _ERRORS.items() if isinstance(failure, kind))
        is_own = isinstance(failure, KwbenchError | MemoryError)
        message = str(failure) if is_own else f"{type(failure).__name__}: {failure}"
        pipe.send_bytes((next(known, b"R") if is_own else b"R") + message.encode(errors="replace")[:_LONGEST])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).cpu().contiguous()


def _end(child: ServerProcess | None, confinement: Confinement) -> None:
    if child is not None:
        with suppress(OSError):
            child.close()
    confinement.remove()
