"""What a recipe comes to for a model: windows, factors, lengths, and what is refused."""

from __future__ import annotations

import pytest

from hf_longctx.hf.rotary import RopeGeometry
from hf_longctx.rope import NTK, parse
from hf_longctx.training.recipes import RECIPES, find_recipe, parse_steps, plan_stages

LLAMA2 = RopeGeometry(dim=128, base=1e4, trained=4096, max_positions=4096, current=None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_plans_for_llama_2(name):
    recipe = find_recipe(name)
    to = 32768 if recipe.factor is None and recipe.rope != "theta" else None
    stages = plan_stages(recipe, LLAMA2, to=to)
    assert len(stages) == len(recipe.stages)
    assert recipe.source
    for stage in stages:
        assert LLAMA2.trained < stage.window >= stage.length
        assert stage.batch >= 1
        assert 0 < stage.learning_rate < 1e-3
        assert parse(stage.rope).factor > 1


def test_yarn_as_published():
    """s 16 for 400 steps, then s 32 for 200 more, both on 64K (YaRN, section 4.1)."""
    found = [(s.rope, s.window, s.length, s.steps, s.batch) for s in plan_stages(find_recipe("yarn-32"), LLAMA2)]
    assert found == [("yarn:16", 65536, 65536, 400, 64), ("yarn:32", 131072, 65536, 200, 64)]
    assert find_recipe("yarn-32").betas == (0.9, 0.95)


def test_easycontext_raises_theta_as_published():
    stages = plan_stages(find_recipe("easycontext"), LLAMA2)
    thetas = [parse(s.rope).parameters({"rope_theta": 1e4}, dim=128, trained=4096)["rope_theta"] for s in stages]
    assert thetas == pytest.approx([1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8], rel=1e-9)
    assert all(isinstance(parse(s.rope), NTK) for s in stages)
    # One million tokens a step, less the slack of windows that are no power of two.
    assert all(0.95 * 2**20 < s.batch * s.length < 1.05 * 2**20 for s in stages)


def test_the_factor_counts_from_the_trained_length():
    scaled = RopeGeometry(dim=128, base=1e4, trained=4096, max_positions=65536, current=parse("yarn:16"))
    [stage] = plan_stages(find_recipe("default"), scaled, to=131072)
    assert stage.rope == "yarn:32"


def test_own_stages_lengths_and_options():
    stages = plan_stages(
        find_recipe("default"), LLAMA2, rope="yarn:beta_fast=16", stages="8k:10,16k:5", length=2048, batch=2,
        learning_rate=1e-3,
    )  # fmt: skip
    assert [(s.rope, s.window, s.length, s.steps) for s in stages] == [
        ("yarn:2,beta_fast=16", 8192, 2048, 10),
        ("yarn:4,beta_fast=16", 16384, 2048, 5),
    ]
    assert {(s.batch, s.learning_rate) for s in stages} == {(2, 1e-3)}
    assert parse_steps(" 8k:10 , 16k:5") == ((8192, 10), (16384, 5))


def test_steps_are_shared_out():
    assert [s.steps for s in plan_stages(find_recipe("yarn-32"), LLAMA2, steps=30)] == [20, 10]
    assert sum(s.steps for s in plan_stages(find_recipe("easycontext"), LLAMA2, steps=50)) == 50


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("default", {}, "--to 32k"),
        ("default", {"to": 4096}, "extends nothing"),
        ("default", {"to": 8192, "rope": "yarn:4"}, "make them agree"),
        ("default", {"to": 8192, "rope": "dynamic"}, "not fixed"),
        ("default", {"to": 8192, "rope": "none"}, "not fixed"),
        ("default", {"to": 8192, "rope": "yarm"}, "yarn"),
        ("default", {"to": 8192, "stages": "8k:1,16k:1"}, "make them agree"),
        ("default", {"stages": "8k"}, "WINDOW:STEPS"),
        ("default", {"to": 8192, "length": 9000}, "longer than the window"),
        ("yarn-32", {"steps": 1}, "at least one"),
        ("easycontext", {"to": 8192}, "of its own"),
    ],
)
def test_what_cannot_be_is_refused(recipe, given, words):
    with pytest.raises(ValueError, match=words):
        plan_stages(find_recipe(recipe), LLAMA2, **given)


def test_a_slip_names_the_nearest_recipe():
    with pytest.raises(ValueError, match="did you mean 'longlora'"):
        find_recipe("longlra")
