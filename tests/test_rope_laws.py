"""The laws that RoPE scalings obey, whatever the model's numbers."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_longctx.rope as rope
from hf_longctx.rope import NTK, DynamicNTK, Linear, NoScaling, Scaling, YaRN
from rope_cases import PACKAGE_METHODS, close, example, in_transformers, llama, plain

geometries = st.tuples(
    st.integers(2, 64).map(lambda n: 2 * n), st.floats(1e3, 1e7), st.integers(256, 1 << 17), st.floats(1, 64)
)


@given(geometries)
def test_ntk_stretches_geometrically_from_one_to_the_factor(geometry):
    dim, base, trained, factor = geometry
    ratio = NoScaling().inv_freq(dim, base, trained) / NTK(factor).inv_freq(dim, base, trained)
    log = ratio.log()
    assert log[0] == 0
    assert log[-1].item() == pytest.approx(math.log(factor), abs=1e-9)
    assert log.mean().item() == pytest.approx(math.log(factor) / 2, abs=1e-9)


@settings(max_examples=60)
@given(geometries, st.sampled_from(sorted(set(PACKAGE_METHODS) - {"longrope", "dynamic"})))
def test_every_pair_lies_between_unscaled_and_fully_interpolated(geometry, name):
    dim, base, trained, factor = geometry
    default = NoScaling().inv_freq(dim, base, trained)
    scaled = example(name, dim, factor).inv_freq(dim, base, trained)
    assert (scaled <= default * (1 + 1e-12)).all()
    assert (scaled >= default / factor * (1 - 1e-12)).all()
    assert (scaled.diff() < 0).all()


@given(geometries, st.sampled_from(sorted(set(PACKAGE_METHODS) - {"longrope"})))
def test_factor_one_changes_nothing_at_the_trained_length(geometry, name):
    dim, base, trained, _ = geometry
    method = example(name, dim, 1.0)
    close(method.inv_freq(dim, base, trained), NoScaling().inv_freq(dim, base, trained), rtol=1e-12)
    assert method.attention_scaling(trained) == 1.0
    assert method.max_positions(trained, trained) == trained


@given(geometries, st.integers(1, 1 << 20))
def test_dynamic_of_factor_one_is_ntk_of_the_length_at_hand(geometry, length):
    dim, base, trained, _ = geometry
    ntk = NTK(max(length / trained, 1.0))
    close(DynamicNTK().inv_freq(dim, base, trained, length), ntk.inv_freq(dim, base, trained), rtol=1e-12)


def test_longrope_switches_lists_past_the_trained_length():
    method = example("longrope", dim=8)
    short, long = (
        NoScaling().inv_freq(8, 1e4, 100) / torch.tensor(x) for x in (method.short_factor, method.long_factor)
    )
    for length, expected in ((None, short), (1, short), (100, short), (101, long)):
        close(method.inv_freq(8, 1e4, 100, length), expected, rtol=1e-6)


def test_length_dependence_is_declared():
    for name in PACKAGE_METHODS:
        method = example(name)
        near, far = method.inv_freq(64, 1e4, 2048), method.inv_freq(64, 1e4, 2048, 20000)
        assert torch.equal(near, far) != method.length_dependent, name


@settings(max_examples=50)
@given(st.integers(1, 1 << 20), st.integers(0, 1 << 20))
def test_a_target_is_the_factor_that_reaches_it(trained, more):
    resolved = YaRN.to(trained + more).resolve(trained)
    assert resolved.target is None
    assert resolved.factor == (trained + more) / trained
    assert resolved.resolve(trained) is resolved
    assert resolved.max_positions(trained, trained) == trained + more


def test_dynamic_leaves_the_maximum_alone():
    assert DynamicNTK(4).max_positions(8192, 8192) == 8192
    # transformers grows the base from max_position_embeddings, so an extended maximum must come back down.
    assert DynamicNTK(4).max_positions(8192, 32768) == 8192


def test_yarn_attention_options():
    log = 0.1 * math.log(40)
    assert YaRN(40, attention_factor=1.5, mscale=1, mscale_all_dim=2).attention_scaling(4096) == 1.5
    assert YaRN(40, mscale=0.7, mscale_all_dim=2).attention_scaling(4096) == (0.7 * log + 1) / (2 * log + 1)
    for one_of_two in (YaRN(40, mscale=0.7), YaRN(40, mscale=0.7, mscale_all_dim=0)):
        assert one_of_two.attention_scaling(4096) == pytest.approx(log + 1, rel=1e-15)


def test_frequencies_are_real_under_a_meta_device():
    with torch.device("meta"):
        for name in PACKAGE_METHODS:
            assert example(name).inv_freq(64, 1e4, 2048, 4096).device.type == "cpu", name


def test_wavelengths():
    rows = rope.wavelengths(Linear(2), NTK(4), 64, 1e4, 2048)
    assert [row.pair for row in rows] == list(range(32))
    assert rows[0].before == pytest.approx(4 * math.pi)
    assert rows[0].after == pytest.approx(2 * math.pi)
    assert rows[-1].ratio == pytest.approx(2)
    for row in rows:
        assert row.turns_before * row.before == pytest.approx(2048)
        assert row.turns_after * row.after == pytest.approx(2048)
    grown = rope.wavelengths(NoScaling(), DynamicNTK(), 64, 1e4, 2048, 8192)
    assert grown[-1].ratio == pytest.approx(4)


def test_unseen_angles_follow_from_the_definition():
    for method in (NoScaling(), Linear(4), NTK(4), YaRN(4)):
        got = rope.unseen(method, 64, 1e5, 8192, 32768)
        frequencies = method.inv_freq(64, 1e5, 8192).tolist()
        expected = []
        for i, f in enumerate(frequencies):
            seen = 8192 * plain(64, 1e5, i)
            if seen < 2 * math.pi and 32768 * f > seen * (1 + 1e-9):
                expected.append(i)
        assert got == expected
    assert rope.unseen(NoScaling(), 64, 1e5, 8192, 8192) == []
    assert len(rope.unseen(NoScaling(), 64, 1e5, 8192, 32768)) == 12
    assert rope.unseen(Linear(4), 64, 1e5, 8192, 32768) == []
    assert rope.unseen(YaRN(4), 64, 1e5, 8192, 32768) == []
    # A raised base reaches the full stretch at the last pair only.
    assert rope.unseen(NTK(4), 64, 1e5, 8192, 32768)[-1] == 30


def test_a_method_of_ones_own_is_one_class():
    @dataclasses.dataclass(frozen=True)
    class Sqrt(Scaling):
        name = "sqrt-of-tests"

        def frequencies(self, dim, base, trained, length):
            return rope.default_inv_freq(dim, base) / math.sqrt(self.scale(trained))

    try:
        assert "sqrt-of-tests" in rope.names()
        assert rope.parse("sqrt-of-tests:4") == Sqrt(4)
        parameters = Sqrt(4).parameters({"rope_theta": 1e4}, dim=64, trained=2048)
        frequencies, _ = in_transformers(llama(parameters, Sqrt(4).max_positions(2048, 2048)))
        close(frequencies, Sqrt(4).inv_freq(64, 1e4, 2048))
        with pytest.raises(ValueError, match="'yarn' is taken by YaRN"):
            type("Other", (Scaling,), {"name": "yarn"})
    finally:
        from hf_longctx.rope import base

        del base._REGISTRY["sqrt-of-tests"]
