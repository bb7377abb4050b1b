"""The text form of scalings round-trips exactly, and bad input is refused with what to do."""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hf_longctx.rope as rope
from hf_longctx.rope import NTK, DynamicNTK, Linear, Llama3, LongRoPE, NoScaling, NTKByParts, YaRN
from rope_cases import PACKAGE_METHODS, example

positive = st.floats(1e-6, 1e6) | st.integers(1, 10**6)
at_least_one = st.floats(1, 1e300) | st.integers(1, 10**20)


@st.composite
def scalings(draw):
    """Any scaling of any registered method, its options drawn by the kinds that they declare."""
    cls = PACKAGE_METHODS[draw(st.sampled_from(sorted(PACKAGE_METHODS)))]
    pairs = draw(st.integers(1, 5))
    kinds = {
        "positive": positive,
        "nonnegative": positive | st.just(0),
        "flag": st.booleans(),
        "positives": st.lists(positive, min_size=pairs, max_size=pairs),
    }
    options = {}
    for spec in cls.options():
        kind = spec.metadata["kind"]
        if kind == "positives" or draw(st.booleans()):
            options[spec.name] = draw(kinds[kind])
    extents = sorted(cls.extents())
    if extents and (extent := draw(st.sampled_from(extents))):
        options[extent] = draw(at_least_one if extent == "factor" else st.integers(1, 10**9))
    for low, high in (("alpha", "beta"), ("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        if high in defaults:
            assume(options.get(low, defaults[low]) < options.get(high, defaults[high]))
    return cls(**options)


@settings(max_examples=300)
@given(scalings())
def test_text_round_trip_is_exact(scaling):
    text = str(scaling)
    assert rope.parse(text) == scaling
    assert str(rope.parse(text)) == text
    assert hash(rope.parse(text)) == hash(scaling)


@pytest.mark.parametrize(
    ("text", "scaling", "canonical"),
    [
        ("linear:2", Linear(2), None),
        ("ntk:2.5", NTK(2.5), None),
        ("dynamic", DynamicNTK(), "dynamic:1"),
        ("dynamic:1", DynamicNTK(1), None),
        ("by-parts:4", NTKByParts(4), None),
        ("yarn:4", YaRN(4), None),
        ("yarn:4.0", YaRN(4), "yarn:4"),
        (" yarn : 4 , beta_fast = 16 ", YaRN(4, beta_fast=16), "yarn:4,beta_fast=16"),
        ("yarn:beta_fast=16,factor=4", YaRN(4, beta_fast=16), "yarn:4,beta_fast=16"),
        ("yarn:4,beta_fast=32", YaRN(4), "yarn:4"),
        ("yarn:4,truncate=false", YaRN(4, truncate=False), None),
        ("yarn:to=32768", YaRN.to(32768), None),
        ("yarn:to=32k,beta_fast=16", YaRN.to(32768, beta_fast=16), "yarn:to=32768,beta_fast=16"),
        ("linear:to=1M", Linear.to(1048576), "linear:to=1048576"),
        ("llama3:8,high_freq_factor=6", Llama3(8, high_freq_factor=6), None),
        ("longrope:4,short=1/1.02,long=1/1.5", LongRoPE(4, short_factor=[1, 1.02], long_factor=[1, 1.5]), None),
        ("none", NoScaling(), None),
    ],
)
def test_text_forms(text, scaling, canonical):
    assert rope.parse(text) == scaling
    assert str(rope.parse(text)) == (canonical or text)
    assert rope.parse(scaling) is scaling


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yarm:4", "unknown RoPE scaling 'yarm': did you mean 'yarn'.*by-parts.*yarn"),
        ("YaRN:4", "did you mean 'yarn'"),
        ("by_parts:4", "did you mean 'by-parts'"),
        ("", "unknown RoPE scaling ''.*choose one of"),
        ("yarn", "exactly one of factor and target.*neither"),
        ("yarn:", "cannot read ''.*options are"),
        ("yarn:4,", "cannot read ''"),
        ("yarn:four", "factor must be a number.*'four'"),
        ("yarn:4,beta_fst=16", "'beta_fst=16'; did you mean 'beta_fast'.*options are.*mscale"),
        ("yarn:4,5", "cannot read '5'"),
        ("yarn:4,beta_fast=16,beta_fast=8", "beta_fast is given twice"),
        ("yarn:4,factor=8", "factor is given twice"),
        ("yarn:4,to=32k", "exactly one of factor and target"),
        ("yarn:to=32kb", "to must be a length.*'32kb'"),
        ("yarn:to=-1", "to must be a length"),
        ("yarn:to=0", "target must be at least 1"),
        ("yarn:4,truncate=no", "truncate must be true or false, got 'no'"),
        ("yarn:0.5", "factor must be at least 1, got 0.5"),
        ("yarn:nan", "factor must be finite"),
        ("yarn:inf", "factor must be finite"),
        ("none:4", "cannot read '4'; write just 'none'"),
        ("dynamic:to=32k", "cannot read 'to=32k'"),
        ("longrope:4", "short_factor is empty"),
        ("longrope:4,short=1/x,long=1/2", "short must be a number.*'x'"),
    ],
)
def test_text_errors(text, says):
    with pytest.raises(ValueError, match=says):
        rope.parse(text)


def test_text_must_be_text():
    with pytest.raises(TypeError, match="rope must be a text such as 'yarn:4'"):
        rope.parse(4)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: Linear(), ValueError, "exactly one of factor and target, got neither"),
        (lambda: Linear(2, target=4096), ValueError, "got factor=2 and target=4096"),
        (lambda: Linear(True), TypeError, "Linear: factor must be a number, got True"),
        (lambda: Linear("2"), TypeError, "factor must be a number, got '2'"),
        (lambda: Linear(float("inf")), ValueError, "factor must be finite"),
        (lambda: Linear(10**400), ValueError, "factor must be finite"),
        (lambda: Linear(0.99), ValueError, "factor must be at least 1, got 0.99"),
        (lambda: DynamicNTK(0), ValueError, "factor must be at least 1, got 0"),
        (lambda: Linear.to(32768.0), TypeError, "target must be an integer, got 32768.0"),
        (lambda: Linear.to(True), TypeError, "target must be an integer"),
        (lambda: Linear.to(0), ValueError, "target must be at least 1"),
        (lambda: DynamicNTK.to(4096), ValueError, "follows every length by itself and takes no target, got 4096"),
        (lambda: NoScaling.to(4096), ValueError, "takes no target"),
        (lambda: Linear.to(4096).resolve(8192), ValueError, "target 4096 is below the trained length 8192"),
        (lambda: Linear(2).resolve(0), ValueError, "trained must be at least 1, got 0"),
        (
            lambda: YaRN(4, beta_fast=1),
            ValueError,
            "beta_fast must be above beta_slow, got beta_fast=1 and beta_slow=1",
        ),
        (lambda: YaRN(4, beta_slow=64), ValueError, "beta_fast must be above beta_slow"),
        (lambda: YaRN(4, beta_fast=None), TypeError, "beta_fast must be a number, got None"),
        (lambda: YaRN(4, truncate=1), TypeError, "truncate must be True or False, got 1"),
        (lambda: YaRN(4, attention_factor=0), ValueError, "attention_factor must be above 0"),
        (lambda: YaRN(4, mscale=-1), ValueError, "mscale must be at least 0"),
        (lambda: NTKByParts(4, alpha=32), ValueError, "beta must be above alpha"),
        (lambda: Llama3(4, low_freq_factor=0), ValueError, "low_freq_factor must be above 0"),
        (lambda: LongRoPE(4), ValueError, "short_factor is empty"),
        (lambda: LongRoPE(4, short_factor=[1.0], long_factor=[1, 2]), ValueError, "equal lengths, got 1 and 2"),
        (
            lambda: LongRoPE(4, short_factor=[1, 0], long_factor=[1, 2]),
            ValueError,
            r"short_factor\[1\] must be above 0",
        ),
        (lambda: LongRoPE(4, short_factor="12", long_factor=[1, 2]), TypeError, "short_factor must be a list"),
        (
            lambda: LongRoPE(4, short_factor=[1, None], long_factor=[1, 2]),
            TypeError,
            r"short_factor\[1\] must be a number",
        ),
    ],
)
def test_bad_scalings_are_refused_when_built(build, error, says):
    with pytest.raises(error, match=says):
        build()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: NTK(2).inv_freq(2, 1e4, 4096), ValueError, "rotary dim of at least 4, got 2"),
        (lambda: DynamicNTK().inv_freq(2, 1e4, 4096), ValueError, "rotary dim of at least 4, got 2"),
        (lambda: NTK(2).inv_freq(7, 1e4, 4096), ValueError, "dim must be even, got 7"),
        (lambda: Linear(2).inv_freq(0, 1e4, 4096), ValueError, "dim must be at least 1, got 0"),
        (lambda: Linear(2).inv_freq(64.0, 1e4, 4096), TypeError, "dim must be an integer"),
        (lambda: Linear(2).inv_freq(64, None, 4096), TypeError, "base must be a number, got None"),
        (lambda: Linear(2).inv_freq(64, 1, 4096), ValueError, "base must be above 1"),
        (lambda: Linear(2).inv_freq(64, 1e4, 4096, 0), ValueError, "length must be at least 1"),
        (
            lambda: example("longrope", 64).inv_freq(32, 1e4, 4096),
            ValueError,
            "have 32 entries.*dim of 32 has 16 pairs",
        ),
        (lambda: example("longrope").attention_scaling(1), ValueError, "trained must be at least 2"),
    ],
)
def test_bad_geometry_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("write", ["parameters", "as_longrope"])
@pytest.mark.parametrize(
    ("method", "current", "says"),
    [
        (YaRN(4), {"rope_type": "default"}, "no rope_theta"),
        (YaRN(4), {"rope_type": "default", "rope_theta": None}, "no rope_theta"),
        (YaRN(4), {"full_attention": {"rope_theta": 1e4}}, r"only \['full_attention'\]; .*nested"),
        (YaRN(4), {"rope_type": "proportional", "rope_theta": 1e4}, "cannot scale rope_type 'proportional'"),
        (YaRN.to(1024), {"rope_theta": 1e4}, "target 1024 is below the trained length 2048"),
        (example("longrope", dim=32), {"rope_theta": 1e4}, "have 16 entries"),
    ],
)
def test_bad_exports_are_refused(write, method, current, says):
    with pytest.raises(ValueError, match=says):
        getattr(method, write)(current, dim=64, trained=2048)


def test_scalings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        YaRN(4).factor = 8
