"""The benchmark command counts what it says, and its limit holds what it says."""

import contextlib
import dataclasses
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding
from r1jax.errors import InputError
from tests import tiny
from tests.benchmarks import engine, limits, peer_process, peers, run, work

Q, G, P, T = 2, 3, 6, 4
SIZES = {
  "cpu_devices": 0,  # this process has made its devices
  "zero.rollout.prompts": Q,
  "zero.rollout.group_size": G,
  "zero.rollout.prompt_length": P,
  "zero.rollout.max_tokens": T,
  "zero.rollout.slots": 4,
  "zero.training.rows": 2,
  "zero.training.row_length": P + T + 3,
  "zero.training.minibatches": 2,
}
SET = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
CHANGES = SET[1::2]
ALL = ["rollout", "score", "update", "step", "refill", "prompts"]


@pytest.fixture(name="quick")
def _quick(monkeypatch):
  """Programs this small compile for far longer than they run."""
  before = jax.config.values["jax_disable_most_optimizations"]
  monkeypatch.setattr("r1jax.limits.SHORTEST_S", 0.005)
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
  ("name", "tokens"),
  [
    ("rollout", Q * G * T),
    ("score", Q * G * (P + T) / 2),  # two mini-batches
    ("update", Q * G * (P + T) / 2),
    ("step", Q * G * T),
  ],
)
def test_fields_and_counts(name, tokens, tmp_path, capsys):
  argv = [name, "--model", "quickstart", "--repeats", "2", *SET]
  assert run.main([*argv, "--json", str(tmp_path)]) == 0
  (path,) = tmp_path.iterdir()
  assert path.name == f"{name}-quickstart-cpu.json"
  got = json.loads(path.read_text(encoding="utf-8"))
  assert f"{name}, quickstart, float32" in capsys.readouterr().out
  assert got["name"] == name
  assert got["command"].startswith(f"python tests/benchmarks/run.py {name} --model")
  assert got["versions"]["jax"] == jax.__version__
  assert "jax devices" in got["device"]
  assert got["settings"]["weights"].startswith("random")
  assert got["settings"]["rollout"]["prompts"] == Q
  assert len(got["seconds"]) == 2
  assert got["median_s"] == pytest.approx(np.mean(got["seconds"]))
  assert got["tokens"] == tokens
  assert got["tokens_per_s"] == pytest.approx(tokens / got["median_s"])
  assert 0 < got["tokens_per_s"] < got["limit_tokens_per_s"]
  ratio = got["tokens_per_s"] / got["limit_tokens_per_s"]
  assert got["fraction_of_limit"] == pytest.approx(ratio)
  assert 0.05 < got["peak_rss_gib"] < 100
  if name == "step":  # nothing long lies between its phases
    spent_s = sum(got[f"{phase}_s"] for phase in ("rollout", "pack", "score", "update"))
    assert 0.7 * got["median_s"] < spent_s <= got["median_s"]
  assert (0 < got["mfu"] < 1) if name in ("score", "update") else "mfu" not in got


def test_all_runs_each_in_a_process_of_its_own(monkeypatch):
  commands = []

  def started(command, **_):
    commands.append(command[2:])
    return run.subprocess.CompletedProcess(command, returncode=len(commands) == 2)

  monkeypatch.setattr(run.subprocess, "run", started)
  assert run.main(["all", "--repeats", "1"]) == 1
  assert commands == [[name, "--repeats", "1"] for name in ALL]
  commands.clear()
  assert run.main(["--peer", "trl", "all"]) == 0
  assert commands == [["step", "--peer", "trl"]]


def test_prompts_are_fed_once_a_row():
  given = work.config_of("quickstart", CHANGES).to_dict()
  run_ = work.start(given)
  batch, *_ = work.random_batches(run_, given["zero"])
  # A row holds one answer only: of 3 answers each has its prompt.
  assert work.counted(given["zero"], batch) == {
    "tokens": Q * G * (P + T) / 2,
    "fed_tokens": G * (P + T),
  }
  zero = given["zero"]
  zero["training"] |= {"row_length": P - 1 + G * (T + 1)}
  batch, *_ = work.random_batches(run_, zero)
  assert work.counted(zero, batch)["fed_tokens"] == P - 1 + G * (T + 1)


def small(**sizes):
  """(Run of a decoder of one layer, settings of the stage)."""
  given = work.config_of("quickstart", ["cpu_devices=0"], sizes).to_dict()
  c = tiny.config(depth=1)
  run_ = dataclasses.replace(
    work.start(given), model=c, model_params=lambda: tiny.params(c)
  )
  return run_, given["zero"]


@pytest.mark.usefixtures("quick")
def test_refill_beside_waves():
  sizes = {"prompts": 8, "group_size": 2, "prompt_length": P, "max_tokens": 12}
  refill = engine.refill(*small(**sizes, slots=4))
  ours, waves = refill.call(0), refill.beside["waves"](0)
  lengths_B = engine.geometric(16, 12)
  assert ours["tokens"] == waves["tokens"] == lengths_B.sum()
  assert waves["slot_steps"] == 4 * lengths_B.reshape(-1, 4).max(axis=1).sum()
  assert ours["slot_steps"] < waves["slot_steps"]
  for seen in (ours, waves):
    share = 1 - lengths_B.sum() / seen["slot_steps"]
    assert seen["idle_share"] == pytest.approx(share)


def test_lengths_of_answers():
  lengths_B = engine.geometric(4096, 64)
  assert lengths_B.min() == 1
  assert lengths_B.max() == 64
  assert lengths_B.mean() == pytest.approx(64 / 4, rel=0.05)


@pytest.mark.parametrize("slots", [0, 5, 16, 3])
def test_slots_that_make_no_waves_are_refused(slots):
  run_, zero = small(prompts=8, group_size=2, slots=slots)
  with pytest.raises(InputError, match=f"config.rollout.slots={slots}: must be"):
    engine.refill(run_, zero)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("cache", ["", "int8"])
def test_a_shared_prompt_costs_once(cache):
  sizes = {"prompt_length": 12, "group_size": 4, "max_tokens": 2, "cache": cache}
  run_, zero = small(**engine.PROMPTS | sizes)
  prompts = engine.shared_prompts(run_, zero)
  ours, repeated = prompts.call(0), prompts.beside["repeated"](0)
  c = run_.model
  a_head = c.head_dim + 4 if cache else 4 * c.head_dim  # with a scale, or float32
  assert ours["tokens"] == repeated["tokens"] == 2 * 4 * 2
  assert ours["prefill_tokens"] == 2 * 11
  assert ours["prompt_cache_bytes"] == 2 * 12 * 2 * c.kv_heads * a_head
  for key in ("prefill_tokens", "prefill_flop", "prompt_cache_bytes"):
    assert repeated[key] == 4 * ours[key]
  assert {"prefill_s", "decode_s"} <= set(ours)


def test_the_engine_is_the_stages_sampler():
  settings = {"draft": "ngram", "draft_tokens": 2, "weights": "int8", "cache": "int8"}
  run_, zero = small(**settings, slots=4)
  plan, weights = engine.held(run_, zero, run_.params_of(""))
  assert (plan.draft, plan.draft_tokens, plan.cache) == ("ngram", 2, "int8")
  assert (plan.samples, plan.slots) == (zero["rollout"]["group_size"], 4)
  assert weights["layers"]["0"]["mlp"]["up"].values.dtype == np.int8


@pytest.mark.usefixtures("quick")
def test_refill_with_drafts():
  """Without them each slot-step that is not idle makes one token."""
  sizes = {"prompts": 4, "group_size": 2, "prompt_length": P, "max_tokens": 32}
  drafts = {"draft": "ngram", "draft_tokens": 3, "temperature": 0.0}
  seen = engine.refill(*small(**sizes, slots=4, **drafts)).call(0)
  assert seen["tokens"] == engine.geometric(8, 32).sum()
  assert seen["slot_steps"] * (1 - seen["idle_share"]) < seen["tokens"] - 1


@pytest.mark.parametrize(
  ("key", "value"), [("oversample", 2), ("lag", 1), ("stop_strings", ("a",))]
)
def test_settings_that_nothing_would_show_are_refused(key, value):
  with pytest.raises(InputError, match=rf"rollout.{key}=.*: benchmarks draw whole"):
    small(**{key: value})


def test_ours_and_another_take_turns(monkeypatch):
  asked = []

  def one(who, held):
    def call(repeat):
      asked.append((who, repeat))
      return {"tokens": 8, "part_s": 10.0 + repeat % 3, "held": held}

    return call

  def start(*_):
    limit = {"seconds": 1e-9}
    return work.Work(
      one("ours", 2), {}, lambda tries: limit, {"waves": one("waves", 6)}
    )

  @contextlib.contextmanager
  def started(*_, calls):
    peer = peer_process.Peer.__new__(peer_process.Peer)
    peer.about, peer.call = {"calls": calls}, one("trl", 5)
    yield peer

  monkeypatch.setitem(run.WORK, "step", start)
  monkeypatch.setattr(peer_process, "started", started)
  got = run.measure("step", "quickstart", ["cpu_devices=0"], 3, peer="trl")
  order = ("ours", "waves", "trl")
  assert asked == [(who, repeat) for repeat in range(4) for who in order]
  assert got["part_s"] == 11  # the median of 11, 12 and 10
  assert len(got["waves"]["seconds"]) == 3
  assert got["over_ours"]["waves"]["held"] == 3
  assert got["over_ours"]["trl"]["held"] == 2.5
  assert got["trl"]["calls"] == 4


def test_a_peer_is_told_the_same_work():
  given = work.config_of("quickstart", CHANGES).to_dict()
  run_, zero = work.start(given), given["zero"]
  told = peer_process.job_of("transformers", "update", run_, zero)
  job = peers.Job(**told, folder="", has_weights=False, calls=2)
  (batch, *_), part = work.random_batches(run_, zero), Q * G // 2
  rows = [job.prompts[q] + job.completions[b] for b, q in enumerate(job.prompt_of)]
  assert len(rows) == len(job.advantage) == part
  tokens_BL = batch.experience.rows.tokens_BL.reshape(-1, P + T + 3)[:, : P + T]
  ours = [row for row in tokens_BL.tolist() if any(row)]
  assert sorted(ours) == sorted(rows)
  advantage_BL = batch.experience.advantage_BL.reshape(-1, P + T + 3)
  assert sorted(advantage_BL[:part, P].tolist()) == pytest.approx(sorted(job.advantage))


STUB = """
import json, sys
job = json.loads(sys.stdin.readline())
print(json.dumps({"threads": 2, "calls": job["calls"]}), flush=True)
for line in sys.stdin:
  if json.loads(line)["call"] == 2:
    sys.exit(3)
  print(json.dumps({"tokens": 5}), flush=True)
"""


def test_a_peer_answers_line_by_line(monkeypatch, tmp_path):
  (tmp_path / "stub.py").write_text(STUB, encoding="utf-8")
  monkeypatch.setattr(peer_process, "_SCRIPT", tmp_path / "stub.py")
  monkeypatch.setattr(peer_process, "_PACKAGES", {"trl": ("json",)})
  given = work.config_of("quickstart", CHANGES).to_dict()
  start = peer_process.started(
    "trl", sys.executable, "step", work.start(given), given, calls=2
  )
  with start as peer:
    assert peer.about == {"threads": 2, "calls": 2}
    assert peer.call(0) == {"tokens": 5}
    assert peer.call(1) == {"tokens": 5}
    with pytest.raises(InputError, match="--peer trl ended with code 3"):
      peer.call(2)


def test_missing_packages_are_named(monkeypatch, capsys):
  monkeypatch.setattr(peer_process, "_PACKAGES", {"trl": ("json", "no_such_package")})
  assert run.main(["step", "--model", "quickstart", "--peer", "trl", *SET]) == 2
  said = capsys.readouterr().err
  assert "lacks no_such_package; name an interpreter" in said
  assert (
    run.main(
      [
        "step",
        "--model",
        "quickstart",
        "--peer",
        "trl",
        "--peer-python",
        "no/python",
        *SET,
      ]
    )
    == 2
  )
  assert "--peer-python no/python: is no Python" in capsys.readouterr().err


def test_a_peer_without_the_benchmark_is_refused(capsys):
  with pytest.raises(SystemExit):
    run.main(["step", "--peer", "transformers"])
  assert "can be asked for rollout, score, update only" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
  ("peer", "name"),
  [(peer, name) for peer, names in peer_process.BENCHMARKS.items() for name in names],
)
def test_a_peer_does_the_same(peer, name, tmp_path):
  for package in peer_process._PACKAGES[peer]:
    pytest.importorskip(package)
  if not work.SMOLLM2.exists():
    pytest.skip(f"{work.SMOLLM2} is not there")
  small = [
    "--set",
    "zero.rollout.max_tokens=4",
    "--set",
    "zero.rollout.prompt_length=6",
  ]
  small += ["--set", "zero.rollout.prompts=2", "--set", "zero.rollout.group_size=2"]
  argv = [name, "--repeats", "1", "--peer", peer, "--json", str(tmp_path / "a.json")]
  assert run.main([*argv, *small]) == 0
  got = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
  assert got[peer]["tokens"] == got["tokens"]
  assert got[peer]["versions"]["torch"]
  assert got[peer]["peak_rss_gib"] > 0.5
  if name == "score":
    assert got[peer]["logp_mean"] == pytest.approx(got["logp_mean"], rel=1e-5)
  if name == "step":
    phases = ("rollout_s", "score_s", "update_s")
    spent_s = sum(got[peer][phase] for phase in phases)
    assert spent_s == pytest.approx(got[peer]["median_s"], rel=0.05)


def test_an_unknown_setting_is_named(capsys):
  argv = ["score", "--model", "quickstart", "--set", "zero.rollout.promts=2"]
  assert run.main(argv) == 2
  assert "promts" in capsys.readouterr().err


def test_a_preset_has_its_own_vocabulary_and_sizes():
  c = work.config_of("qwen2.5-1.5b", ["zero.rollout.slots=256"])
  model, _ = work.setup.make_model(
    c.to_dict(), work.Endless(), sharding.single_device()
  )
  assert model.vocab == 151_936
  assert (c.zero.rollout.group_size, c.zero.rollout.slots) == (16, 256)
  assert c.zero.rollout.prompt_length + c.zero.rollout.max_tokens == 1024


def test_a_mixture_is_refused(capsys):
  assert run.main(["score", "--model", "deepseek-v2-lite"]) == 2
  assert "has experts or latent attention" in capsys.readouterr().err


@pytest.mark.parametrize("backward", [False, True])
def test_no_product_is_left_out(backward):
  """The compiler sees that the results are not read, and computes them all the same."""
  rows, sizes, num_matrices = 8, (16, 24), 5
  program = limits.products(sharding.single_device(), backward=backward)
  weights = [jnp.ones(sizes)] * num_matrices
  x_BI = jnp.ones((rows, sizes[0]))
  compiled = program.lower(1, x_BI, weights).compile()
  num_kinds = 3 if backward else 1
  assert compiled.as_text().count(" dot(") == num_matrices * num_kinds
  # The first numbers of y = x @ w, y @ w.T and x.T @ y; two passes over the matrices.
  first = sizes[0]
  want = 2 * num_matrices * first * sum([1, sizes[1], rows][:num_kinds])
  assert compiled(2, x_BI, weights) == want


@pytest.mark.parametrize("num_matrices", [1, 2])
def test_every_pass_computes(num_matrices):
  program = limits.products(sharding.single_device(), backward=False)
  x_BI, weights = jnp.ones((256, 512)), [jnp.ones((512, 512))] * num_matrices

  def seconds(passes):
    began = time.perf_counter()
    program(passes, x_BI, weights).block_until_ready()
    return time.perf_counter() - began

  seconds(1)
  assert min(seconds(40) for _ in range(3)) > 4 * min(seconds(2) for _ in range(5))
