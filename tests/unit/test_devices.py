"""Nothing in the code but the place for it decides where numbers are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import SOURCES

PLACE = {"cmrfed/core/device.py", "cmrfed/core/precision.py"}
ALLOWED = {
    "cmrfed/evaluation/features/extractors.py": "TorchScript reads a file onto the device that it is told",
    "cmrfed/core/settings/config.py": "the names that settings may hold",
    "cmrfed/privacy/dpsgd/noise.py": "the state of a generator, which is laid out differently on each kind of device",
}
KINDS = ("cpu", "cuda", "mps")
METHODS = {"cpu", "cuda", "pin_memory"}
FACTORIES = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm",
    "tensor", "zeros",
}  # fmt: skip


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of all that decides on a device: kinds, copies to one, and tensors that are made without one.

    ``*_like`` and ``new_*`` follow a tensor, and random numbers with ``generator=`` follow that.
    """
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if text in KINDS or text.startswith(tuple(f"{kind}:" for kind in KINDS)):
            yield line, f"names the device {text!r}"
        if isinstance(node, ast.keyword) and node.arg in ("map_location", "pin_memory"):
            yield line, f"sets {node.arg}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in METHODS:
            yield line, f"calls .{node.func.attr}()"
        named = {keyword.arg for keyword in node.keywords}
        made = getattr(node.func.value, "id", "") == "torch" and node.func.attr in FACTORIES
        if made and not named & {"device", "generator"}:
            yield line, f"torch.{node.func.attr} without device="


@pytest.mark.parametrize(
    "source",
    [
        "x.cpu()",
        "x.to('cpu')",
        "x.cuda()",
        "torch.device('cuda:1')",
        "torch.load(path, map_location=here)",
        "x.pin_memory()",
        "DataLoader(data, pin_memory=True)",
        *(f"torch.{name}(3)" for name in sorted(FACTORIES)),
    ],
)
def test_what_decides_on_a_device_is_found(source):
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.zeros_like(x)",
        "x.new_zeros(3)",
        "torch.zeros(3, device=x.device)",
        "torch.rand(3, generator=rng)",
        "torch.from_numpy(array)",
        "'trains on the cpu'",
    ],
)
def test_what_follows_a_tensor_is_fine(source):
    assert not list(faults(source))


def test_no_other_module_decides_on_a_device():
    root = Path(__file__).parents[2]
    found = [
        f"{name}:{line}: {what}"
        for name, source in ((path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in SOURCES)
        if name.startswith("cmrfed/") and name not in PLACE | ALLOWED.keys()
        for line, what in faults(source)
    ]
    assert not found, "\n".join(["take cmrfed.core.device, or a device from a tensor:", *found])


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_what_is_allowed_is_needed(name):
    assert list(faults((Path(__file__).parents[2] / name).read_text(encoding="utf-8")))
