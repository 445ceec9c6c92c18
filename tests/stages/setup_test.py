"""From a config to the settings of its stages, with errors that name a key."""

import copy
import re

import pytest

from r1jax.errors import InputError
from r1jax.stages import setup
from tests import small_run


@pytest.fixture(name="config")
def _config():
  return small_run.get_config().to_dict()


def test_a_stage_sees_its_own_sections_before_the_shared_ones(config):
  config["zero"]["template"] = {**config["template"], "suffix": "!"}
  config["init"] = "shared"
  config["not_run"] = {"kind": "sft"}
  stages = setup.stage_configs(config)
  assert list(stages) == ["base", "zero"]
  assert stages["base"]["template"]["suffix"] == ""
  assert stages["zero"]["template"]["suffix"] == "!"
  assert stages["zero"]["init"] == "base"
  for settings in stages.values():
    assert not settings.keys() & (setup.GLOBAL | {"base", "zero"})


def change(path, value):
  """Sets a key of a nested dict, or takes it away (None)."""

  def apply(config):
    *sections, key = path.split(".")
    for section in sections:
      config = config[section]
    if value is None:
      del config[key]
    else:
      config[key] = value

  return apply


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("stages", (), r"config\.stages=\(\): name each stage once"),
    ("stages", ("base", "base"), "name each stage once"),
    ("stages", ("base", "one"), r"names 'one', and there is no config\.one"),
    ("zero.kind", "gpro", r"config\.zero\.kind='gpro'.*did you mean 'grpo'"),
    ("zero.init", "zero", r"config\.zero\.init='zero': must be .*before it \(base\)"),
    ("base.init", "zero", r"config\.base\.init='zero'.*\(there is none\)"),
    ("rolout", {}, r"config\.rolout is not known.*'rollout'"),
    ("zero.rolout", {}, r"config\.zero\.rolout is not known.*'rollout'"),
    ("zero.rollout.topp", 1, r"config\.zero\.rollout\.topp is not known.*'top_p'"),
    ("template.sufix", "", r"config\.template\.sufix is not known.*'suffix'"),
    ("zero.loss.clip_low", None, r"config\.zero\.loss\.clip_low is missing"),
    ("template", None, r"config\.base\.template is missing"),
    ("zero.loss", 3, r"config\.zero\.loss=3: must be a section"),
  ],
)
def test_what_does_not_fit_is_named(config, path, value, message):
  change(path, value)(config)
  with pytest.raises(InputError, match=message):
    setup.stage_configs(config)


def test_keys_of_errors_are_moved_to_where_the_config_has_them(config):
  said = "config.loss.kl_coef and config.template.suffix of config.zero"
  want = "config.zero.loss.kl_coef and config.template.suffix of config.zero"
  with pytest.raises(InputError, match=f"^{re.escape(want)}$"):  # noqa: SIM117
    with setup.keys_of("zero", config):
      raise InputError(said)


def test_a_result_depends_on_all_but_what_is_named_as_free(config):
  settings = setup.stage_configs(config)["zero"]
  before = copy.deepcopy(settings)
  depends = setup.depends_on(settings, {"seed": 3})
  assert settings == before
  assert depends["seed"] == 3
  for section, values in settings.items():
    if isinstance(values, dict):
      free = {path for path in setup.FREE if path.startswith(f"{section}.")}
      left_out = {f"{section}.{key}" for key in values.keys() - depends[section].keys()}
      assert left_out == free
      assert depends[section].items() <= values.items()
    else:
      assert depends[section] == values
