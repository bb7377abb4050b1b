"""What each scaling writes into a config is what transformers then computes, and reads back."""

import json

import pytest
import torch
from transformers import Phi3Config

import hf_longctx.rope as rope
from hf_longctx.rope import DynamicNTK, Llama3, LongRoPE, NTKByParts, YaRN
from rope_cases import PACKAGE_METHODS, close, example, in_transformers, llama

EXPORTED = [
    *(example(name) for name in sorted(PACKAGE_METHODS)),
    *(example(name, factor=16.0) for name in sorted(PACKAGE_METHODS)),
    *(example(name, factor=1.0) for name in sorted(PACKAGE_METHODS)),
    YaRN(3.5, beta_fast=16, beta_slow=2),
    YaRN(8, truncate=False),
    YaRN(8, attention_factor=1.25),
    YaRN(40, mscale=0.707, mscale_all_dim=1.0),
    NTKByParts(4, alpha=2, beta=20),
    Llama3(32, low_freq_factor=2, high_freq_factor=8),
    DynamicNTK(1),
    LongRoPE(4, short_factor=[1.0] * 32, long_factor=[2.5] * 32, attention_factor=1.5),
    YaRN.to(10000),
]


@pytest.mark.parametrize("length", [None, 2048, 5000, 40000])
@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("method", EXPORTED, ids=lambda m: str(m)[:32])
def test_export_is_what_transformers_computes(method, base, length):
    current = {"rope_type": "default", "rope_theta": base}
    parameters = method.parameters(current, dim=64, trained=2048)
    json.dumps(parameters)
    config = llama(parameters, method.max_positions(2048, 2048))
    frequencies, attention = in_transformers(config, length)
    close(frequencies, method.inv_freq(64, base, 2048, length))
    assert attention == pytest.approx(method.attention_scaling(2048), rel=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("dim", "base", "trained"), [(8, 1e4, 32), (64, 1e4, 4), (64, 10.0, 1 << 20), (2, 1e4, 4096), (64, 1e4, 7)]
)
def test_yarn_follows_transformers_where_its_ramp_degenerates(dim, base, trained, truncate):
    method = YaRN(4, truncate=truncate)
    parameters = method.parameters({"rope_theta": base}, dim=dim, trained=trained)
    frequencies, _ = in_transformers(llama(parameters, 4 * trained, dim))
    close(frequencies, method.inv_freq(dim, base, trained))


@pytest.mark.parametrize("name", sorted(set(PACKAGE_METHODS) - {"dynamic"}))
def test_phi3_takes_every_fixed_method_as_longrope(name):
    method = example(name, dim=24)
    current = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    parameters = method.as_longrope(current, dim=24, trained=2048)
    assert parameters["partial_rotary_factor"] == 0.75
    config = Phi3Config(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=method.max_positions(2048, 2048),
        original_max_position_embeddings=2048,
        rope_parameters=parameters,
        pad_token_id=0,
    )
    for length in (1000, 4000):
        frequencies, attention = in_transformers(config, length)
        close(frequencies, method.inv_freq(24, 1e4, 2048, length))
        assert attention == pytest.approx(method.attention_scaling(2048), rel=1e-12)


def test_dynamic_has_no_longrope_form():
    with pytest.raises(ValueError, match="changes its frequencies with the length"):
        DynamicNTK().as_longrope({"rope_theta": 1e4}, dim=64, trained=2048)


@pytest.mark.parametrize("name", sorted(PACKAGE_METHODS))
def test_export_merges_over_an_earlier_scaling(name):
    plain_config = {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "mrope_section": [16, 24]}
    for earlier in sorted(PACKAGE_METHODS):
        current = example(earlier).parameters(plain_config, dim=64, trained=2048) | {"rope_theta": 5e5}
        before = json.dumps(current)
        parameters = example(name).parameters(current, dim=64, trained=2048)
        assert parameters == example(name).parameters(plain_config, dim=64, trained=2048)
        assert parameters["partial_rotary_factor"] == 0.5
        assert parameters["mrope_section"] == [16, 24]
        assert json.dumps(current) == before
        parameters["mrope_section"].append(1)
        assert json.dumps(current) == before


def test_original_length_is_always_written_where_the_type_takes_it():
    for name in PACKAGE_METHODS:
        parameters = example(name).parameters({"rope_theta": 1e4}, dim=64, trained=2048)
        takes = parameters["rope_type"] in ("yarn", "llama3", "longrope")
        assert parameters.get("original_max_position_embeddings") == (2048 if takes else None), name


@pytest.mark.parametrize("name", sorted(PACKAGE_METHODS))
def test_reading_back_an_exported_scaling(name):
    parameters = example(name).parameters({"rope_theta": 1e4}, dim=64, trained=2048)
    read = rope.from_parameters(parameters)
    if parameters["rope_type"] == "default":
        assert read is None
    else:
        assert torch.equal(read.inv_freq(64, 1e4, 2048), example(name).inv_freq(64, 1e4, 2048))
        assert read.parameters({"rope_theta": 1e4}, dim=64, trained=2048) == parameters


def test_reading_a_factor_from_the_two_lengths():
    parameters = {"rope_type": "yarn", "original_max_position_embeddings": 4096, "rope_theta": 1e4}
    assert rope.from_parameters(parameters, max_positions=16384) == YaRN(4)
    with pytest.raises(ValueError, match="no factor"):
        rope.from_parameters(parameters)
    with pytest.raises(ValueError, match="'proportional'.*known are"):
        rope.from_parameters({"rope_type": "proportional", "rope_theta": 1e4})
