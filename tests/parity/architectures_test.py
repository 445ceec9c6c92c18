"""Every architecture against transformers in float32, on small models.

What transformers computes was recorded by record_architectures.py, so torch is needed
only to record it again and to load what r1jax exports.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from r1jax.errors import InputError
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.weights import hf, hf_config
from tests.parity import architectures

TOLERANCE = 1e-4  # of a logit, and of a gradient times its norm; 3e-5 was seen on CPU
NUM_PREFILLED = 7

RECORDED = json.loads(architectures.RECORDED.read_text(encoding="utf-8"))["models"]


def models(everyday):
  """Parametrises a test: one seed of the named models, and the rest as slow."""
  cases = [
    pytest.param(
      f"{name}/{seed}",
      marks=() if name in everyday and not number else pytest.mark.slow,
    )
    for name, architecture in architectures.ARCHITECTURES.items()
    for number, seed in enumerate(architecture.seeds)
  ]
  return pytest.mark.parametrize("model", cases, indirect=True, scope="module")


each_model = models(everyday=architectures.ARCHITECTURES)


def with_torch(test):
  """A slow test of each model that runs transformers itself."""
  absent = [x for x in ("torch", "transformers") if importlib.util.find_spec(x) is None]
  needs = pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")
  return each_model(pytest.mark.slow(pytest.mark.torch(needs(test))))


class Model(NamedTuple):
  """A model of architectures.py, read from a folder, and what is recorded of it.

  Attributes:
    computed: what `compiled` gives, as numpy arrays.
  """

  name: str
  seed: int
  folder: pathlib.Path
  c: ModelConfig
  params: dict
  tokens_BL: np.ndarray
  computed: Any
  want: dict[str, Any]


@pytest.fixture(scope="module", name="model")
def _model(request, tmp_path_factory):
  name, seed = request.param.split("/")
  fields, want = architectures.ARCHITECTURES[name].fields, RECORDED[request.param]
  tensors = architectures.weights(fields, int(seed))
  assert architectures.checksum(tensors) == want["weights"], "not the weights recorded"
  folder = tmp_path_factory.mktemp(name)
  architectures.write(folder, fields, tensors)
  c, params = hf.load_hf(folder)
  tokens_BL = architectures.tokens(fields, int(seed))
  computed = jax.device_get(compiled(c)(params, tokens_BL))
  return Model(name, int(seed), folder, c, params, tokens_BL, computed, want)


@functools.cache
def compiled(c: ModelConfig):
  """(params, tokens) -> ((loss, (logits, those of the MTP module, experts)), gradient).

  Experts are a list, with the [B, L, K] of each layer that has them.

  The loss is the mean cross-entropy of the next tokens, plus that of the tokens after
  them where there is an MTP module.
  """

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params, tokens_BL):
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    hidden_BLD, _, routed = transformer.forward(c, params, tokens_BL, positions_BL)
    logits_BLV = transformer.unembed(params, hidden_BLD)
    loss = cross_entropy(logits_BLV, tokens_BL, 1)
    experts = [] if routed is None else list(routed.experts_ZBLK)
    further_BLV = None
    if c.mtp_depth:
      hidden_BLD, routed = transformer.predict_further(
        c, params, hidden_BLD, tokens_BL, positions_BL
      )
      experts += list(routed.experts_ZBLK[:, :, :-1])  # the last token has no next one
      further_BLV = transformer.unembed(params, hidden_BLD)
      loss += cross_entropy(further_BLV, tokens_BL, 2)
    return loss, (logits_BLV, further_BLV, experts)

  return run


def cross_entropy(logits_BLV, tokens_BL, ahead: int):
  """Mean over the tokens that lie `ahead` of those that the logits are at."""
  wanted_BL = tokens_BL[:, ahead:]
  logp_BLV = jax.nn.log_softmax(logits_BLV[:, : wanted_BL.shape[1]])
  return -jnp.take_along_axis(logp_BLV, wanted_BL[..., None], axis=-1).mean()


def at_places(logits_BLV, last: int):
  return np.asarray(
    [logits_BLV[row, min(at, last)] for row, at in architectures.PLACES]
  )


@each_model
def test_logits_loss_and_experts(model):
  (loss, (logits_BLV, further_BLV, experts)), _ = model.computed
  want, last = model.want, architectures.LENGTH - 1
  for layer_BLK, load in zip(experts, want["loads"], strict=True):
    assert np.bincount(layer_BLK.ravel(), minlength=len(load)).tolist() == load
  np.testing.assert_allclose(
    at_places(logits_BLV, last), want["logits"], rtol=0, atol=TOLERANCE
  )
  if model.c.mtp_depth:
    got = at_places(further_BLV, last - 1)
    np.testing.assert_allclose(got, want["further_logits"], rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(loss, want["loss"], rtol=0, atol=TOLERANCE)


@each_model
def test_gradients(model, tmp_path):
  """Of every stored tensor, under the name and in the layout that export gives it."""
  hf.save_hf(tmp_path, model.c, model.computed[1])
  gradients = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  copies = (".embed_tokens.weight", ".shared_head.head.weight")
  for name in list(gradients):
    if name.endswith("e_score_correction_bias"):
      assert not gradients.pop(name).any(), name
    elif name.startswith("model.layers.") and name.endswith(copies):
      del gradients[name]
  want = model.want["gradients"]
  got = architectures.measured(model.seed, gradients)
  assert got.keys() == want.keys()
  worst = {
    name: np.abs(np.subtract(got[name], want[name])).max() / (want[name][0] or 1e-6)
    for name in want
  }
  assert max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda e: -e[1])[:5]


# transformer_test.py has the same, everyday, of each architecture.
@models(everyday=("llama3", "deepseek_v3"))
def test_one_token_at_a_time_is_one_forward(model):
  """Latent attention makes keys and values of the latent in one forward, and attends to
  the latent itself where there is a cache."""
  logits_BLV = model.computed[0][1][0]
  cache = caches.empty(model.c, *model.tokens_BL.shape)
  start = 0
  for end in range(NUM_PREFILLED, architectures.LENGTH + 1):
    tokens_BL = model.tokens_BL[:, start:end]
    positions_BL = np.broadcast_to(np.arange(start, end), tokens_BL.shape)
    got, cache = fed(model.c)(model.params, tokens_BL, positions_BL, cache)
    np.testing.assert_allclose(got, logits_BLV[:, start:end], rtol=0, atol=TOLERANCE)
    start = end


@functools.cache
def fed(c: ModelConfig):
  @jax.jit
  def feed(params, tokens_BL, positions_BL, cache):
    hidden_BLD, cache, _ = transformer.forward(
      c, params, tokens_BL, positions_BL, cache=cache
    )
    return transformer.unembed(params, hidden_BLD), cache

  return feed


@each_model
def test_config_as_transformers_writes_it(model):
  assert hf_config.config_from_hf(model.want["config"]) == model.c


@pytest.fixture(scope="module", name="recorder")
def _recorder():
  """The module that records, which imports torch."""
  from tests.parity import record_architectures

  return record_architectures


@with_torch
def test_recorded_again(model, recorder):
  got, want = recorder.record(model.name, model.seed), dict(model.want)
  assert got.keys() == want.keys()
  versions = {"transformers_version": None}
  assert got.pop("config") | versions == want.pop("config") | versions
  for exact in ("weights", "loads"):
    assert got.pop(exact) == want.pop(exact)
  for key, value in got.items():
    leaves = (jax.tree.leaves(tree) for tree in (value, want[key]))
    np.testing.assert_allclose(*leaves, rtol=1e-5, atol=1e-5, err_msg=key)


@with_torch
def test_transformers_loads_what_is_exported(model, recorder, tmp_path):
  hf.save_hf(tmp_path, model.c, model.params)
  got, want = (
    recorder.logits(folder, model.tokens_BL) for folder in (tmp_path, model.folder)
  )
  assert got.keys() == want.keys()
  for key, logits_BLV in got.items():
    np.testing.assert_array_equal(logits_BLV, want[key], err_msg=key)
  np.testing.assert_allclose(
    got["logits"], model.computed[0][1][0], rtol=0, atol=TOLERANCE
  )


@with_torch
def test_what_transformers_exports_is_loaded(model, recorder, tmp_path):
  recorder.load(model.folder).save_pretrained(tmp_path)
  want_c, want = model.c, dict(model.params)
  if want.pop("mtp", None):
    # It drops the module, and still announces it.
    with pytest.raises(InputError, match="num_nextn_predict_layers=1"):
      hf.load_hf(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {"num_nextn_predict_layers": 0}))
    want_c = dataclasses.replace(want_c, mtp_depth=0)
  c, params = hf.load_hf(tmp_path)
  assert c == want_c
  jax.tree.map(np.testing.assert_array_equal, params, want)
