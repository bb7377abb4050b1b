"""What a recipe comes to for a model: windows, factors, lengths, and what is refused."""

from __future__ import annotations

import pytest

from hf_longctx.hf.rotary import RopeGeometry
from hf_longctx.rope import NTK, parse
from hf_longctx.training.recipes import RECIPES, Recipe, Stage, Step, find_recipe
from hf_longctx.training.stage_plan import parse_steps, plan_stages

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


def test_linear_pi_as_published():
    """Section 3.1: 1000 steps, all parameters, 64 sequences of the window, AdamW at 2e-5 without decay, warm-up 20."""
    recipe = find_recipe("linear-pi")
    llama = RopeGeometry(dim=128, base=1e4, trained=2048, max_positions=2048, current=None)
    [stage] = plan_stages(recipe, llama, to=8192)
    assert stage == Stage(8192, 8192, "linear:4", steps=1000, batch=64, learning_rate=2e-5)
    assert (recipe.tune, recipe.betas, recipe.weight_decay, recipe.warmup) == ("full", (0.9, 0.95), 0.0, 20)


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


@pytest.mark.parametrize("steps", [7, 8, 9, 50, 4640])
def test_as_many_steps_as_asked_for(steps):
    shared = [s.steps for s in plan_stages(find_recipe("easycontext"), LLAMA2, steps=steps)]
    assert sum(shared) == steps
    assert min(shared) >= 1
    assert max(shared) == max(shared[:2])  # what does not divide is taken from or given to the largest


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
        ("yarn-32", {"to": 8192}, "recipe 'yarn-32': a stage with a window of 4096 extends nothing"),
        ("default", {"stages": "1:3,8k:5"}, "window of 1 extends nothing, since the model is for 4096"),
        ("default", {"stages": "4k:5,8k:5"}, "window of 4096 extends nothing"),
        ("default", {"stages": "16k:5,8k:5,32k:5"}, "window of 8192 comes after one of 16384"),
        ("default", {"to": 8192, "batch": -2}, r"batch is -2: .*at least 1"),
        ("default", {"to": 8192, "batch": 0}, r"batch is 0: .*at least 1"),
        ("default", {"to": 8192, "batch": 2.0}, r"batch is 2\.0: .*whole"),
        ("default", {"to": 8192, "steps": 0}, r"steps is 0: .*at least 1"),
        ("default", {"to": 8192, "length": 0}, r"length is 0: .*at least 1"),
        ("default", {"to": 8192, "learning_rate": 0.0}, r"learning_rate is 0\.0: .*finite number above 0"),
        ("default", {"to": 8192, "learning_rate": -1e-4}, r"learning_rate is -0\.0001"),
        ("default", {"to": 8192, "learning_rate": float("nan")}, "learning_rate is nan"),
        ("default", {"to": 8192, "learning_rate": float("inf")}, "learning_rate is inf"),
        ("easycontext", {"to": 8192}, "of its own"),
    ],
)
def test_what_cannot_be_is_refused(recipe, given, words):
    with pytest.raises(ValueError, match=words):
        plan_stages(find_recipe(recipe), LLAMA2, **given)


def test_a_stage_within_what_a_scaled_model_claims_is_refused():
    """It would compute with the frequencies that the model has."""
    scaled = RopeGeometry(dim=128, base=1e4, trained=4096, max_positions=65536, current=parse("yarn:16"))
    with pytest.raises(ValueError, match="window of 65536 extends nothing, since the model is for 65536"):
        plan_stages(find_recipe("yarn-32"), scaled, to=131072)


def test_an_own_recipe_is_checked_too_and_its_zeros_are_kept():
    own = {"name": "own", "source": "me", "rope": "yarn", "tune": "full", "stages": (Step(5),)}
    with pytest.raises(ValueError, match="batch of recipe 'own' is 0"):
        plan_stages(Recipe(**own, batch=0), LLAMA2, to=8192)
    with pytest.raises(ValueError, match="learning_rate of recipe 'own' is 0"):
        plan_stages(Recipe(**{**own, "stages": (Step(5, learning_rate=0),)}), LLAMA2, to=8192)
    with pytest.raises(ValueError, match="steps of a stage of recipe 'own' is 0"):
        plan_stages(Recipe(**{**own, "stages": (Step(0),)}), LLAMA2, to=8192)
    fixed = Recipe(**{**own, "stages": (Step(5, window=8192, length=1024), Step(5, length=1))})
    assert [(s.window, s.length) for s in plan_stages(fixed, LLAMA2, to=16384)] == [(8192, 1024), (16384, 1)]


def test_a_slip_names_the_nearest_recipe():
    with pytest.raises(ValueError, match="did you mean 'longlora'"):
        find_recipe("longlra")
