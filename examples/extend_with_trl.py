"""Can I keep my own trainer? Patch the model, and give it to TRL's SFTTrainer.

    pip install trl
    python examples/extend_with_trl.py demo --steps 20 --length 2048

The patch scales RoPE and computes attention by the engine, which keeps packed documents apart without flash-attn. TRL
packs, computes the loss in tiles, and saves. `settle_rope` then makes the RoPE the model's own, so that what is saved
loads in plain transformers.
"""

import argparse
import itertools

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import hf_longctx as lc
from hf_longctx.measure import prose
from hf_longctx.training import settle_rope

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="demo", help="hub id, local folder, or 'demo'")
parser.add_argument("--rope", default="yarn:4")
parser.add_argument("--length", type=int, default=2048, help="tokens of a training sequence")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--out", default="runs/trl")
arguments = parser.parse_args()

model, tokenizer = lc.load_model(arguments.model)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
lc.patch(model, rope=arguments.rope, attention="full")
print(lc.describe(model))

sentences = prose.sentences("trl")
documents = [" ".join(itertools.islice(sentences, 30)) for _ in range(40)]
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"text": documents}),
    args=SFTConfig(
        output_dir=arguments.out,
        max_length=arguments.length,
        packing=True,  # documents restart their positions, where the engine begins a new one
        max_steps=arguments.steps,
        per_device_train_batch_size=1,
        learning_rate=2e-5,
        gradient_checkpointing=True,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        bf16=model.device.type == "cuda",
        use_cpu=model.device.type == "cpu",
        disable_tqdm=True,
    ),
)
result = trainer.train()
print(f"mean loss {result.training_loss:.3f} over {arguments.steps} steps")
settle_rope(model)
model.config.use_cache = True
model.save_pretrained(arguments.out)
tokenizer.save_pretrained(arguments.out)
print(f"{arguments.out}: {model.config.max_position_embeddings} tokens under {model.config.rope_parameters}")
