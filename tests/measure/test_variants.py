"""Variants: what the text form says, and what it may not say."""

import pytest

from hf_longctx.measure.variants import Variant, as_variants, parse_variant


def test_the_text_form_is_read_and_stock_comes_first():
    text = "mix: rope=yarn:4,beta_fast=16 attention=0,-1=full;*=random:3,64,seed=0 own_windows=replace"
    stock, mix = as_variants([text], stock=True)
    assert (stock.name, stock.definition()) == ("stock", {})
    assert mix.definition() == {
        "attention": "0,-1=full;*=random:3,64,seed=0",
        "rope": "yarn:4,beta_fast=16",
        "own_windows": "replace",
    }
    assert as_variants({"mix": mix.definition()}, stock=False) == (mix,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope=yarn:2", "has no name"),
        ("yarn2", "has no name"),
        ("a: ropes=yarn:2", "unknown key 'ropes'.*Did you mean 'rope'"),
        ("a: name=b", "unknown key 'name'"),
        ("a: rope=", "no value for 'rope'"),
        ("a: rope=yarn:2 rope=yarn:4", "gives 'rope' twice"),
        ("a: backend=dense", "changes nothing"),
        ("a:", "changes nothing"),
        ("stock: rope=yarn:2", "reserved"),
        ("../a: rope=yarn:2", "cannot be part of a file name"),
    ],
)
def test_a_slip_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(text)


def test_names_are_unique_and_something_must_run():
    with pytest.raises(ValueError, match="'a' is used 2 times"):
        as_variants(["a: rope=yarn:2", "a: rope=yarn:4"], stock=True)
    with pytest.raises(ValueError, match="nothing to run"):
        as_variants([], stock=False)
    with pytest.raises(TypeError, match="give a Variant or its text form"):
        as_variants([3], stock=True)
    with pytest.raises(ValueError, match="changes nothing"):
        as_variants([Variant("idle")], stock=True)
