import ast

import pytest
import torch

from cmrfed.core import precision
from cmrfed.core.precision import SWITCH, arithmetic, autocast, cpu_units, full_precision, granted, has_bf16
from cmrfed.evaluation.utility.segmenter import train_segmenter
from cmrfed.segmentation.settings import SegmenterConfig
from tests.support import SOURCES


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What was found out about this machine counts before and after a test alone."""
    monkeypatch.delenv(SWITCH, raising=False)
    precision._in_hardware.cache_clear()
    yield
    precision._in_hardware.cache_clear()


@pytest.mark.parametrize(
    ("units", "there"),
    [
        ({"avx2", "avx512_f", "avx512_bf16"}, True),  # Intel Cooper Lake, AMD Zen 4
        ({"avx512_f", "amx_tile", "amx_bf16"}, True),  # Intel Sapphire Rapids
        ({"neon", "sve", "bf16"}, True),  # ARM Neoverse V1
        ({"avx2", "avx512_f", "avx512_vnni"}, False),  # Intel Ice Lake
        ({"avx2", "fma3"}, False),  # AMD Zen 2 and 3
        ({"avx2", "avx_ne_convert", "amx_int8", "amx_tile"}, False),
        ({"neon"}, False),
        (set(), False),
    ],
)
def test_a_processor_has_bf16_by_its_units(monkeypatch, units, there):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True) | {"cpu_name": "bf16"})
    assert has_bf16("cpu") is there
    assert (granted("bf16", "cpu"), arithmetic("bf16", "cpu")) == (
        ("bf16", torch.bfloat16) if there else ("fp32", torch.float32)
    )
    assert (granted("fp32", "cpu"), arithmetic("fp32", "cpu")) == ("fp32", torch.float32)


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16", True),
        ("flags\t\t: fpu avx2", False),
        ("Features\t: fp asimd bf16", True),
        ("", False),
    ],
)
def test_an_old_torch_is_told_by_linux(monkeypatch, line, there):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(precision.Path, "read_text", lambda *_, **__: f"processor : 0\n{line}\n")
    assert has_bf16("cpu") is there


def test_without_proc_there_is_none(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(precision.Path, "read_text", missing)
    assert cpu_units() == frozenset()


@pytest.mark.parametrize(("value", "off"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_it_can_be_switched_off_and_not_on(monkeypatch, value, off):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert has_bf16("cpu")
    monkeypatch.setenv(SWITCH, value)
    assert has_bf16("cpu") is not off


def test_float32_is_computed_without_autocast():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast("cpu", torch.float32):
        assert layer(x).dtype == torch.float32
    with autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with full_precision("cpu"):
            assert layer(x).dtype == torch.float32


def test_a_segmenter_computes_in_float32_where_there_is_no_bf16(monkeypatch):
    images, masks = torch.rand(4, 1, 16, 16) * 2 - 1, torch.randint(4, (4, 16, 16))
    half = SegmenterConfig(steps=2, channels=(4, 8), batch_size=2)
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    with_it = train_segmenter(images, masks, half, 0).state_dict()
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    without, plain = (
        train_segmenter(images, masks, config, 0).state_dict()
        for config in (half, half.model_copy(update={"precision": "fp32"}))
    )
    assert all(torch.equal(without[name], plain[name]) for name in plain)
    assert not all(torch.equal(with_it[name], plain[name]) for name in plain)


def test_no_other_module_decides_on_the_arithmetic():
    """By attribute and import, so that words in docstrings do not count."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        if path.name != "precision.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("bfloat16", "autocast", "amp"))
        and getattr(node.value, "id", "") == "torch"
    ]
    assert not found
