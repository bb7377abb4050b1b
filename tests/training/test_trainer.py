"""How a stage is set up for transformers' Trainer."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from hf_longctx.training.phases import OPTIMIZER, read_phases
from hf_longctx.training.trainer import Setup


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_process_trains_on_one_gpu(gpus, monkeypatch, tmp_path, caplog):
    """The trainer would take all, with another batch size than was asked for."""
    setup_devices = TrainingArguments._setup_devices.func

    def set_up(self):
        device = setup_devices(self)
        self._n_gpu = gpus
        return device

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(set_up))
    (stage,) = read_phases("match:2", batch=2, length=16)
    made = Setup(OPTIMIZER, stage, tmp_path, None, "none", 0, micro_batch=2).arguments()
    assert made.train_batch_size == 2
    assert made._n_gpu == min(gpus, 1)
    assert ("accelerate launch" in caplog.text) == (gpus > 1)
