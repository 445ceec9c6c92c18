"""Records what transformers computes with the small models of architectures.py.

  python -m tests.parity.record_architectures > tests/parity/architectures.json

Needs torch, transformers, numpy and safetensors, and nothing of r1jax. The committed
file was made with the versions that it names, torch's build for CPUs, in float32.
"""

import copy
import json
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from transformers import cache_utils, modeling_layers

from tests.parity import architectures

DIGITS = 6  # significant ones, of what is recorded


def load(folder: str) -> transformers.PreTrainedModel:
  """A model of a folder, every tensor of which has found its place."""
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    experts_implementation="eager",
    output_loading_info=True,
  )
  further = f"model.layers.{model.config.num_hidden_layers}."
  report["unexpected_keys"] = {
    name for name in report["unexpected_keys"] if not name.startswith(further)
  }
  assert not any(report.values()), report
  # Not the training mode: some mixtures add noise or losses in it.
  return model.eval()


def further_module(model: transformers.PreTrainedModel):
  """The module that predicts one token further, as drafting loads it, or None."""
  if not getattr(model.config, "num_mtp_layers", 0):
    return None
  # Which tensors belong to it is told by the number of the released model's last layer.
  model._keys_to_ignore_on_load_unexpected = [
    rf"model\.layers\.{model.config.num_hidden_layers}\..*"
  ]
  return modeling_layers.MtpModel.from_pretrained(model).eval()


def run(model, module, tokens: torch.Tensor) -> dict[str, Any]:
  """Logits, the sum of the losses, and tokens that each expert of each layer got."""
  loads = []

  def count(gate, _, out):
    loads.append(torch.bincount(out[2].flatten(), minlength=gate.num_experts).tolist())

  layers = list(model.model.layers)
  if module is not None:
    layers.append(module.layers[0].mtp_block)
  gates = [
    layer.mlp.gate.register_forward_hook(count)
    for layer in layers
    if hasattr(layer.mlp, "gate")
  ]
  out = model(tokens, use_cache=False, output_hidden_states=True)
  result = {"logits": out.logits, "loss": _loss(out.logits, tokens, 1), "loads": loads}
  if module is not None:
    hidden = module.forward_layer(
      0,
      out.hidden_states[-1][:, :-1],
      torch.arange(1, tokens.shape[1])[None],
      cache_utils.MtpCache(config=model.config.get_mtp_config()),
      input_ids=tokens[:, 1:],
    )
    result["further_logits"] = module.shared_head(hidden)
    result["loss"] = result["loss"] + _loss(result["further_logits"], tokens, 2)
  for gate in gates:
    gate.remove()
  return result


def _loss(logits: torch.Tensor, tokens: torch.Tensor, ahead: int) -> torch.Tensor:
  """Mean cross-entropy of the tokens that lie `ahead` of those that logits are at."""
  wanted = tokens[:, ahead:]
  return torch.nn.functional.cross_entropy(
    logits[:, : wanted.shape[1]].flatten(0, 1), wanted.flatten()
  )


def logits(folder: str, tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
  """All logits of a folder's model, by the keys of `run`."""
  model = load(folder)
  with torch.no_grad():
    out = run(model, further_module(model), torch.from_numpy(tokens_BL))
  return {key: out[key].numpy() for key in ("logits", "further_logits") if key in out}


def gradients(model, module) -> dict[str, np.ndarray]:
  """{stored name: gradient}, with experts apart as released models store them."""
  found = {name: parameter.grad for name, parameter in model.named_parameters()}
  if module is not None:
    layer = f"model.layers.{model.config.num_hidden_layers}."
    for name, parameter in module.layers[0].named_parameters():
      name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
      found[layer + name] = parameter.grad
  apart = {}
  for name, gradient in found.items():
    gradient = gradient.numpy()
    prefix, fused, kind = name.rpartition(".experts.")
    if not fused:
      apart[name] = gradient
      continue
    for expert, of_expert in enumerate(gradient):
      if kind == "gate_up_proj":
        parts = dict(zip(("gate_proj", "up_proj"), np.split(of_expert, 2), strict=True))
      else:
        parts = {kind: of_expert}
      for part, array in parts.items():
        apart[f"{prefix}.experts.{expert}.{part}.weight"] = array
  return apart


def record(name: str, seed: int) -> dict[str, Any]:
  """What a model computes, or an AssertionError where it would prove too little."""
  fields = architectures.ARCHITECTURES[name].fields
  tensors = architectures.weights(fields, seed)
  tokens = torch.from_numpy(architectures.tokens(fields, seed))
  with tempfile.TemporaryDirectory() as folder:
    architectures.write(folder, fields, tensors)
    model = load(folder)
    module = further_module(model)
    written = json.loads(model.config.to_json_string(use_diff=True))
    out = run(model, module, tokens)
    out["loss"].backward()
    with torch.no_grad():
      _assert_settled(model, module, tokens, out)
    _assert_scaling_acts(folder, fields, tensors, tokens, out["logits"])
  found = gradients(model, module)
  recorded = {
    "config": written,
    "weights": architectures.checksum(tensors),
    "loss": out["loss"].item(),
    "loads": out["loads"],
    "logits": _at_places(out["logits"]),
    "gradients": architectures.measured(seed, found),
  }
  if module is not None:
    recorded["further_logits"] = _at_places(out["further_logits"])
  return recorded


def _at_places(logits: torch.Tensor) -> list[list[float]]:
  last = logits.shape[1] - 1
  return [logits[row, min(at, last)].tolist() for row, at in architectures.PLACES]


def _assert_settled(model, module, tokens, out) -> None:
  """No near tie decides where a token goes, and the biases of experts do decide."""
  if not out["loads"]:
    return
  original = copy.deepcopy(model.state_dict())
  for number, parameter in enumerate(model.parameters()):
    noise = architectures.uniform(number, "noise", tuple(parameter.shape))
    parameter.mul_(1 + 1e-5 * torch.from_numpy(noise).float())
  assert run(model, module, tokens)["loads"] == out["loads"], "a near tie: other seed"
  model.load_state_dict(original)
  biases = [b for name, b in model.named_buffers() if name.endswith("correction_bias")]
  for bias in biases:
    bias.zero_()
  if biases:
    assert run(model, module, tokens)["loads"] != out["loads"], "biases do nothing"
  model.load_state_dict(original)


def _assert_scaling_acts(folder, fields, tensors, tokens, logits) -> None:
  if not fields.get("rope_scaling"):
    return
  architectures.write(folder, fields | {"rope_scaling": None}, tensors)
  with torch.no_grad():
    plain = load(folder)(tokens, use_cache=False).logits
  assert (plain - logits).abs().max() > 0.1, "rope_scaling does nothing"


def _rounded(value: Any) -> Any:
  if isinstance(value, float):
    return float(f"{value:.{DIGITS}g}")
  if isinstance(value, list):
    return [_rounded(entry) for entry in value]
  if isinstance(value, dict):
    return {key: _rounded(entry) for key, entry in value.items()}
  return value


def _lines(value: Any, depth: int) -> str:
  """JSON with a line for every entry of the outer `depth` levels."""
  if not depth or not isinstance(value, dict):
    return json.dumps(value, separators=(",", ":"))
  entries = [f"{json.dumps(k)}: {_lines(v, depth - 1)}" for k, v in value.items()]
  return "{\n" + ",\n".join(entries) + "\n}"


def main() -> None:
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  golden = {
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "models": {
      f"{name}/{seed}": _rounded(record(name, seed))
      for name, seed in architectures.every_case()
    },
  }
  print(_lines(golden, depth=3), file=sys.stdout)


if __name__ == "__main__":
  main()
