"""The same contract on CUDA in bfloat16. Skipped without a GPU; not yet run on one."""

from __future__ import annotations

import pytest
import torch

import hf_longctx as lc
from families import FAMILIES, build, dense, padding, tokens
from test_contract import LENGTH, PATTERNS, positions

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PATTERNS)
def test_no_farther_from_float32_than_twice_plain_bfloat16(name, family):
    """flash-attention's rule: error against float32 at most twice that of eager attention in the same dtype."""
    ids, mask = tokens(2, LENGTH).cuda(), padding("left", 2, LENGTH).cuda()
    step = {"attention_mask": mask, "position_ids": positions(mask)}
    with torch.no_grad():
        exact = build(family, attention="eager").cuda()
        with dense(exact, PATTERNS[name], mask):
            expected = exact(ids, **step).logits
        plain = build(family, attention="eager").to("cuda", torch.bfloat16)
        with dense(plain, PATTERNS[name], mask):
            error = (plain(ids, **step).logits.float() - expected)[mask.bool()].abs().max()
        model = lc.patch(build(family).to("cuda", torch.bfloat16), attention=PATTERNS[name])
        got = model(ids, **step).logits.float()
    assert (got - expected)[mask.bool()].abs().max() <= 2 * error + 1e-3


def test_unpatched_on_another_device():
    model, ids = build("llama"), tokens(1, 20)
    with torch.no_grad():
        expected = model(ids).logits
        lc.patch(model, attention="window:8+global:2", rope="yarn:2").cuda()
        model(ids.cuda())
        lc.unpatch(model)
        torch.testing.assert_close(model(ids.cuda()).logits.cpu(), expected, atol=1e-4, rtol=1e-4)
