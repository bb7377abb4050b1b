"""The RoPE formulas against reference values and a recomputation in plain Python."""

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from hf_longctx.rope import NTK, DynamicNTK, Linear, Llama3, NoScaling, NTKByParts, YaRN
from hf_longctx.rope.ntk import ntk_base
from rope_cases import close, example, plain

GOLDEN = json.loads((Path(__file__).parent / "golden_rope.json").read_text())
ROWS = [pytest.param(row, id=f"d{row['dim']}-b{row['base']}-s{row['factor']}") for row in GOLDEN["table"]]


def assert_printed(value: float, printed: str) -> None:
    """Equal to every digit printed: within half a unit of the last place."""
    half = Decimal(printed).as_tuple().exponent - 1
    assert abs(Decimal(value) - Decimal(printed)) <= Decimal(f"5e{half}"), f"{value!r} is not {printed}"


def by_turns(dim, base, trained, s, i, low, high):
    f = plain(dim, base, i)
    keep = min(max((trained * f / (2 * math.pi) - low) / (high - low), 0), 1)
    return (1 - keep) * f / s + keep * f


def by_index(dim, base, trained, s, i, truncate=True):
    low, high = (dim * math.log(trained / (2 * math.pi * n)) / (2 * math.log(base)) for n in (32, 1))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    k = min(max((i - low) / (high - low), 0), 1)
    f = plain(dim, base, i)
    return k * f / s + (1 - k) * f


ORACLES = {
    "none": lambda d, b, L, s, i: plain(d, b, i),
    "linear": lambda d, b, L, s, i: plain(d, b, i) / s,
    "ntk": lambda d, b, L, s, i: plain(d, b, i) * s ** (-2 * i / (d - 2)),
    "by-parts": lambda d, b, L, s, i: by_turns(d, b, L, s, i, 1, 32),
    "llama3": lambda d, b, L, s, i: by_turns(d, b, L, s, i, 1, 4),
    "yarn": by_index,
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("column", "name"),
    [("default", "none"), ("ntk", "ntk"), ("yarn", "yarn"), ("by_parts", "by-parts"), ("llama3", "llama3")],
)
def test_reference_value_at_a_quarter(row, column, name):
    dim, base, factor = int(row["dim"]), float(row["base"]), float(row["factor"])
    assert_printed(example(name, dim, factor).inv_freq(dim, base, 4096)[dim // 4].item(), row[column])


@pytest.mark.parametrize("row", ROWS)
def test_reference_values_of_the_row(row):
    dim, base, factor = int(row["dim"]), float(row["base"]), float(row["factor"])
    assert_printed(ntk_base(base, factor, dim), row["ntk_base"])
    assert "/".join(map(str, YaRN(factor).ramp(dim, base, 4096))) == row["ramp"]
    assert_printed(NoScaling().inv_freq(dim, base, 4096)[-1].item(), row["last_default"])
    for method in (Linear, NTK, YaRN, Llama3, NTKByParts):
        close(method(factor).inv_freq(dim, base, 4096)[-1], plain(dim, base, dim // 2 - 1) / factor)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", ORACLES)
def test_every_pair_against_plain_python(row, name):
    dim, base, factor = int(row["dim"]), float(row["base"]), float(row["factor"])
    got = example(name, dim, factor).inv_freq(dim, base, 4096)
    assert got.dtype == torch.float64
    close(got, [ORACLES[name](dim, base, 4096, factor, i) for i in range(dim // 2)])


def test_reference_attention_scaling():
    for factor, printed in GOLDEN["yarn_attention"].items():
        assert_printed(YaRN(float(factor)).attention_scaling(4096), printed)
    for factor, trained, printed in GOLDEN["longrope_attention"]:
        assert_printed(example("longrope", factor=float(factor)).attention_scaling(trained), printed)
    assert example("longrope", factor=1.0).attention_scaling(4096) == 1.0


def test_llama31_official():
    case = GOLDEN["llama31"]
    dim, base, trained, factor = case["dim"], float(case["base"]), case["trained"], float(case["factor"])
    got, default = Llama3(factor).inv_freq(dim, base, trained), NoScaling().inv_freq(dim, base, trained)
    for pair, printed in case["pairs"].items():
        assert_printed(got[int(pair)].item(), printed)
    whole, divided = case["untouched_up_to"], case["divided_from"]
    assert torch.equal(got[: whole + 1], default[: whole + 1])
    assert torch.equal(got[divided:], default[divided:] / factor)
    assert (got[whole + 1 : divided] < default[whole + 1 : divided]).all()
    assert (got[whole + 1 : divided] > default[whole + 1 : divided] / factor).all()


@pytest.mark.parametrize(("key", "truncate"), [("qwen_yarn", True), ("llama2_64k_untruncated", False)])
def test_published_yarn_checkpoints(key, truncate):
    case = GOLDEN[key]
    geometry = case["dim"], float(case["base"]), case["trained"]
    yarn = YaRN(float(case["factor"]), truncate=truncate)
    for bound, printed in zip(yarn.ramp(*geometry), case["ramp"], strict=True):
        assert_printed(bound, printed)
    for pair, printed in case["pairs"].items():
        assert_printed(yarn.inv_freq(*geometry)[int(pair)].item(), printed)
        oracle = by_index(*geometry, float(case["factor"]), int(pair), truncate)
        close(yarn.inv_freq(*geometry)[int(pair)], oracle)


@pytest.mark.parametrize(("factor", "length", "printed"), GOLDEN["dynamic_base"]["rows"])
def test_dynamic_base_grows_with_the_length(factor, length, printed):
    case = GOLDEN["dynamic_base"]
    geometry = case["dim"], float(case["base"]), case["trained"]
    method = DynamicNTK(float(factor))
    assert_printed(method.base_at(*geometry, length), printed)
    new = geometry[1] * (float(factor) * length / 4096 - (float(factor) - 1)) ** (128 / 126)
    close(method.inv_freq(*geometry, length), [plain(128, new, i) for i in range(64)])


def test_the_two_yarn_ramps_are_two_methods():
    case = GOLDEN["yarn_ramps_disagree"]
    geometry = case["dim"], float(case["base"]), case["trained"]
    assert_printed(NTKByParts(float(case["factor"])).inv_freq(*geometry)[case["pair"]].item(), case["paper"])
    assert_printed(YaRN(float(case["factor"])).inv_freq(*geometry)[case["pair"]].item(), case["code"])
