"""A user's own patterns on a model: what runs is what was given, or patching refuses and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pytest
import torch

import hf_longctx as lc
from families import build, tokens
from fingerprint import fingerprint
from hf_longctx.attention import attend
from hf_longctx.hf.rotary import geometry
from hf_longctx.hf.round_trip import check_pattern, same
from hf_longctx.patterns import (
    Block,
    Full,
    Global,
    Heads,
    Layers,
    Pattern,
    SlidingWindow,
    Union,
    Windowed,
    gallery,
    parse,
)
from hf_longctx.patterns.base import REGISTRY
from hf_longctx.rope import DynamicNTK
from hf_longctx.rope.base import _REGISTRY as SCALINGS
from hf_longctx.training.recipes import find_recipe
from hf_longctx.training.stage_plan import plan_stages


@pytest.fixture(autouse=True)
def own_classes():
    """Classes that a test registers are gone after it."""
    before, scalings = dict(REGISTRY), dict(SCALINGS)
    yield
    for registry, kept in ((REGISTRY, before), (SCALINGS, scalings)):
        registry.clear()
        registry.update(kept)


class Near(Pattern, name=None):
    """What the classes below have in common: the last `w` keys."""

    w = 2

    def allows(self, q, k, *, layer=0, head=0):
        return q - k < self.w


def unnamed():
    class Even(Pattern, name=None):
        def allows(self, q, k, *, layer=0, head=0):
            return k % 2 == 0

    return Even()


def plain():
    class Plain(Near, name="plain"):
        def __init__(self, w=2):
            object.__setattr__(self, "w", w)

    return Plain(7)


def plain_below_a_dataclass():
    class Shifted(SlidingWindow, name="shifted"):
        def __init__(self, window, by=0):
            super().__init__(window)
            object.__setattr__(self, "by", by)

    return Shifted(7, 3)


def hidden_beside_fields():
    @dataclass(frozen=True)
    class Hidden(Near, name="hidden"):
        w: int

        def __init__(self, w, by=0):
            object.__setattr__(self, "w", w)
            object.__setattr__(self, "by", by)

    return Hidden(7, 3)


def slotted():
    class Slotted(Near, name="slotted"):
        __slots__ = ("by",)

        def __init__(self, by=0):
            object.__setattr__(self, "by", by)

    return Slotted(3)


def required_argument():
    class Needy(Near, name="needy"):
        def __init__(self, w):
            object.__setattr__(self, "w", w)

    return Needy(7)


def tuple_field():
    @dataclass(frozen=True)
    class Offsets(Pattern, name="offsets"):
        at: tuple[int, ...] = (0,)

        def allows(self, q, k, *, layer=0, head=0):
            return torch.isin(q - k, torch.tensor(self.at))

    return Offsets((0, 3))


def changed_field():
    @dataclass(frozen=True)
    class Doubled(Near, name="doubled"):
        w: int

        def __post_init__(self):
            object.__setattr__(self, "w", 2 * self.w)

    return Doubled(4)


def signs_in_a_string():
    @dataclass(frozen=True)
    class Labelled(Near, name="labelled"):
        label: str = ""

    return Labelled("a+full")


def defined_again():
    def define():
        @dataclass(frozen=True)
        class Mine(Near, name="mine"):
            w: int = 1

        return Mine

    old = define()(4)
    define()
    return old


REFUSED = {
    unnamed: "Even has no name.*Pattern, name='even'",
    plain: "Plain would not come back.*'plain'.*leaves out part.*frozen dataclass",
    plain_below_a_dataclass: "Shifted would not come back",
    hidden_beside_fields: "Hidden would not come back.*'hidden:7'.*leaves out part",
    slotted: "Slotted would not come back",
    required_argument: "Needy would not come back.*missing a required argument: 'w'",
    tuple_field: r"Offsets would not come back.*offsets.at is of type tuple\[int, \.\.\.\], which has no text form",
    changed_field: "Doubled would not come back.*'doubled:8'",
    signs_in_a_string: "Labelled would not come back.*reads as Union",
    defined_again: "Mine was defined again since this one was made, so make it again",
}


@pytest.mark.parametrize("wrap", ["alone", "union", "heads", "layers", "within"])
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_would_not_come_back_is_refused(make, wrap):
    own = make()
    attention = {
        "alone": own,
        "union": own | Global(1),
        "heads": Heads([SlidingWindow(4), own]),
        "layers": Layers({0: Full(), "*": own | Global(1)}),
        "within": Windowed(own, 9) | Global(1),
    }[wrap]
    model = build("llama")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=REFUSED[make]):
        lc.patch(model, attention=attention)
    assert fingerprint(model) == before
    assert not lc.is_patched(model)


def test_attend_takes_them_all():
    x = torch.randn(1, 2, 12, 8)
    assert attend(x, x, x, unnamed()).shape == x.shape
    assert attend(x, x, x, plain()).shape == x.shape


@pytest.mark.parametrize("text", ["needy", "offsets:3", "doubled:4"])
def test_text_that_says_something_else_is_refused(text):
    required_argument(), tuple_field(), changed_field()
    model = build("llama")
    with pytest.raises(ValueError, match=text.split(":")[0]):
        lc.patch(model, attention=text)
    assert not lc.is_patched(model)


@pytest.mark.parametrize(
    "joined", [Windowed(Block(8) | Global(2), 4), Union((Block(8),)), Heads([Union((Heads([Block(8)]), Full()))])]
)
def test_built_by_hand_in_a_way_that_text_cannot_say(joined):
    model = build("llama")
    with pytest.raises(ValueError, match="would not come back.*join patterns by"):
        lc.patch(model, attention=joined)
    assert not lc.is_patched(model)


def test_within_runs_as_itself():
    ids = tokens(1, 30)
    given = Block(8).within(4) | Global(2).within(9)
    assert str(given) == "block:8,0&window:4+global:2&window:9"
    with torch.no_grad():
        model = lc.patch(build("llama"), attention=given)
        out = model(ids).logits
        i = torch.arange(30)
        seen = ((i[:, None] // 8 == i // 8) & (i[:, None] - i < 4)) | ((i < 2) & (i[:, None] - i < 9))
        mask = torch.where(seen & (i <= i[:, None]), 0.0, -torch.inf)[None, None]
        stock = build("llama")
        stock.set_attn_implementation("eager")
        assert torch.allclose(out, stock(ids, attention_mask=mask).logits, atol=1e-5)
        assert "block:8,0&window:4" in str(lc.describe(model))


@dataclass(frozen=True)
class Fields(Pattern, name="fields_of_tests"):
    a: int | None = None
    b: float = 1.0
    c: bool = False
    d: str = "x"
    e: Literal["near", "far"] = "near"
    f: str | None = None
    g: float | None = field(default=None, metadata={"named": True})
    h: int = field(default=0, init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "table", torch.arange(3))
        object.__setattr__(self, "rule", lambda d: d < (self.a or 3))

    @cached_property
    def width(self):
        return torch.tensor(self.a or 3)

    def allows(self, q, k, *, layer=0, head=0):
        return q - k < self.width


#: Out of the registry, which tests of other files loop over; the tests that need it put it back.
REGISTERED = REGISTRY.pop("fields_of_tests")


@pytest.mark.parametrize(
    "own",
    [
        Fields(),
        Fields(5),
        Fields(None, 1e16, True, "", "far", "y", 1e-300),
        Fields(b=float("inf"), g=-2.5),
        Fields(b=4),  # a whole number in a field of floats
    ],
)
def test_fields_with_a_text_form(own):
    REGISTRY["fields_of_tests"] = REGISTERED
    assert own.width >= 3  # a cached property is no part of it
    assert parse(str(own)) == own
    for joined in (own, own.within(9) | Global(1), Layers({"0": Heads([own, Full()])})):
        check_pattern(joined)
    with torch.no_grad():
        assert lc.patch(build("llama"), attention=own)(tokens(1, 9)).logits.isfinite().all()


def test_a_field_that_may_be_none_reads_numbers_as_numbers():
    REGISTRY["fields_of_tests"] = REGISTERED
    assert parse("fields_of_tests:5").a == 5
    assert parse("fields_of_tests:None,f=None") == Fields()
    with pytest.raises(ValueError, match="fields_of_tests.a is 'x': it must be a whole number"):
        parse("fields_of_tests:x")
    with pytest.raises(ValueError, match="must be one of near, far"):
        parse("fields_of_tests:e=middle")


def test_the_gallery_draws_a_pattern_whose_fields_are_not_all_sizes():
    REGISTRY["fields_of_tests"] = REGISTERED
    tuple_field()
    drawn = dict(gallery())
    assert drawn["fields_of_tests"] == Fields()
    assert str(drawn["offsets"]) == "offsets:(0,)"


def test_a_plain_class_that_holds_nothing_else_runs_and_drops_keys():
    class Recent(Pattern, name="recent"):
        def allows(self, q, k, *, layer=0, head=0):
            return q - k < 4

        def keeps(self, position, now):
            return now - position < 4

    assert same(Recent(), Recent())
    ids = tokens(1, 12)
    expected = lc.patch(build("llama"), attention="window:4").generate(ids, max_new_tokens=6, do_sample=False)
    for given in (Recent(), "recent"):
        out = lc.patch(build("llama"), attention=given).generate(ids, max_new_tokens=6, do_sample=False)
        assert torch.equal(out, expected)


def test_a_pattern_defined_again_runs_as_it_is_now():
    def define(window):
        @dataclass(frozen=True)
        class Mine(Pattern, name="mine"):
            def allows(self, q, k, *, layer=0, head=0):
                return q - k < window

        return Mine()

    model, ids = build("llama"), tokens(1, 40)
    with torch.no_grad():
        for window in (1, 30):
            expected = lc.patch(build("llama"), attention=SlidingWindow(window))(ids).logits
            with lc.patched(model, attention=define(window)):
                assert torch.allclose(model(ids).logits, expected, atol=1e-5)


def test_a_scaling_defined_again_runs_as_it_is_now():
    def define(power):
        @dataclass(frozen=True)
        class Mine(DynamicNTK):
            name = "mine-of-tests"

            def frequencies(self, dim, base, trained, length):
                return super().frequencies(dim, base, trained, length) ** (power if length > trained else 1)

        return Mine(1)

    model, ids = build("llama"), tokens(1, 80)
    outs = []
    with torch.no_grad():
        for power in (1, 2):
            with lc.patched(model, rope=define(power)):
                outs.append(model(ids).logits)
        with lc.patched(model, rope="dynamic:1"):
            assert torch.equal(model(ids).logits, outs[0])
    assert not torch.allclose(outs[0], outs[1], atol=1e-3)


def test_a_scaling_that_would_not_come_back_is_refused():
    class Hidden(DynamicNTK):
        name = "hidden-of-tests"

        def __init__(self, power=1):
            super().__init__(1)
            object.__setattr__(self, "power", power)

    model = build("llama")
    before = fingerprint(model)
    with pytest.raises(ValueError, match="rope Hidden would not come back.*frozen dataclass"):
        lc.patch(model, rope=Hidden(3))
    assert fingerprint(model) == before
    with pytest.raises(ValueError, match="rope Hidden would not come back"):
        plan_stages(find_recipe("default"), geometry(model.config), to=128, rope=Hidden(3))
