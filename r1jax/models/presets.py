"""Named shapes: data, not code."""

from r1jax.models.config import ModelConfig

PRESETS = {
  # Trained from scratch in minutes on a laptop; its tokenizer brings the vocabulary.
  # The base of its wavelengths fits sequences of tens of tokens.
  "tiny": ModelConfig(
    depth=3,
    width=96,
    heads=4,
    kv_heads=4,
    head_dim=24,
    ffw=256,
    vocab=64,
    rope_base=1000.0,
    name="tiny",
  ),
  # The published config of HuggingFaceTB/SmolLM2-135M and its Instruct form.
  "smollm2-135m": ModelConfig(
    depth=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffw=1536,
    vocab=49152,
    rope_base=100_000.0,
    norm_eps=1e-5,
    tied_head=True,
    max_length=8192,
    name="smollm2-135m",
  ),
}
