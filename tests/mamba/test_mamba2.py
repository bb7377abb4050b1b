"""`Mamba2`: its text form, which layers it selects, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_longctx.mamba import INITS, Mamba2, parse


@st.composite
def plans(draw):
    init = draw(st.sampled_from(INITS))
    drawn = init != "attention"
    return Mamba2(
        draw(st.sampled_from(["1::4", "0,-1", "full_attention", "3", "2:20", "*", "0,2::3,full_attention"])),
        init,
        draw(st.sampled_from([None, True, False])),
        1024 if drawn else draw(st.integers(1, 1 << 24)),
        draw(st.integers(2, 64)),
        draw(st.integers(0, 1 << 31)) if drawn else 0,
    )


@given(plans())
def test_the_text_form_reads_back_exactly(plan):
    assert parse(str(plan)) == plan
    assert parse(plan) is plan
    assert parse(str(plan).replace(",", " , ")) == plan


def test_defaults_follow_the_init():
    assert [Mamba2("0", init).rotates for init in INITS] == [True, False, False]
    assert Mamba2("0", "random", rope=True).rotates
    assert str(Mamba2(3, rope=False, memory=64)) == "3,rope=false,memory=64"


def test_selects_like_layers():
    kinds = ("full_attention", "sliding_attention") * 4
    assert Mamba2("1::4").select(kinds) == (1, 5)
    assert Mamba2("0,-1").select(kinds) == (0, 7)
    assert Mamba2("sliding_attention").select(kinds) == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("9", "'9' matches no layer"),
        (":3", "leaves no attention layer"),
        ("2:", "layer 3 is of type 'linear_attention'"),
        ("chunked", "'chunked' matches no layer"),
    ],
)
def test_layers_that_cannot_be_converted(layers, message):
    kinds = ("full_attention",) * 3 + ("linear_attention",)
    with pytest.raises(ValueError, match=message):
        Mamba2(layers).select(kinds)
    with pytest.raises(ValueError, match="'\\*' leaves no attention layer among 2"):
        Mamba2("*").select(kinds[:2])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (3, TypeError, "mamba is 3"),
        ("", ValueError, "layers is ''"),
        ("1::4,init=mamba", ValueError, "init is 'mamba'"),
        ("1::4,init=randm", ValueError, "did you mean 'random'"),
        ("1::4,int=random", ValueError, "did you mean 'init'"),
        ("1::4,init=random,3", ValueError, "cannot read '3'"),
        ("1::4,seed=1", ValueError, "draws nothing at random"),
        ("1::4,init=random,memory=9", ValueError, "draws its own decay"),
        ("1::4,memory=0", ValueError, "memory is 0"),
        ("1::4,memory=x", ValueError, "memory must be a whole number"),
        ("1::4,conv=1", ValueError, "conv is 1"),
        ("1::4,rope=1", ValueError, "rope must be true or false"),
        ("1::4,rope=true,rope=true", ValueError, "rope is given twice"),
        ("a b=c", ValueError, "cannot read 'ab=c'"),
    ],
)
def test_bad_text(text, error, message):
    with pytest.raises(error, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"layers": None}, "layers"), ({"rope": 1}, "rope"), ({"conv": 4.0}, "conv"), ({"memory": True}, "memory")],
)
def test_bad_types(fields, message):
    with pytest.raises(TypeError, match=message):
        Mamba2(**{"layers": "0", **fields})
